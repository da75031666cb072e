"""Calls that must fail or warn, with the words that tell a user why."""

from __future__ import annotations

import contextlib
import warnings

import pytest


def fails(error, words, call, *args, **options):
    """Return the error of a call, whose message must match."""
    with pytest.raises(error, match=words) as caught:
        call(*args, **options)
    return caught.value


def warned(words, call, *args, **options):
    """Return what a call returns that must warn."""
    with pytest.warns(UserWarning, match=words):
        return call(*args, **options)


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
