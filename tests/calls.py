"""The calls that most tests make, without a word, and what they ask and warn of."""

from __future__ import annotations

import contextlib
import warnings

from laion_fmri_fetchers import fetch_laion_fmri, fetch_laion_fmri_ids


def fetch(*args, **options):
    return fetch_laion_fmri(*args, **{"verbose": 0, **options})


def fetch_ids(*args, **options):
    return fetch_laion_fmri_ids(*args, **{"verbose": 0, **options})


def gets(server):
    """Return the keys of objects that a server was asked for, request by request."""
    return [key for method, key, _ in server.requests if method == "GET" and key]


def warnings_of(call, *args, **options):
    """Return the texts of a call's warnings, also of those that are the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **options)
    return [str(one.message) for one in caught]


@contextlib.contextmanager
def no_warning():
    """Make an error of any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
