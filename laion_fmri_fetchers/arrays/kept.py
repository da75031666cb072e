"""Results that joblib keeps on disk: by version of this package, errors named.

keeper ─▶ Kept(function) ─▶ joblib.Memory ─▶ _call
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import joblib

import laion_fmri_fetchers
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.remote.disks import folder_error


def keeper(memory: Any) -> Callable[[Callable], Callable]:
    """Return a decorator by which a function keeps its results.

    Parameters
    ----------
    memory : joblib.Memory, str, path or None
        Where; None: nothing is kept, and functions are returned as they are.
    """
    if memory is None:
        return kept_nowhere
    if isinstance(memory, (str, os.PathLike)):
        memory = user_path(memory, "memory")
        with _disk_named(memory):
            memory = joblib.Memory(memory, verbose=0)
    if isinstance(memory, joblib.Memory) and memory.location and not memory.compress:
        # Mapped, kept rows take memory only where they are added to the result.
        # Copy-on-write, as a single session's rows are the result itself, which its
        # user may change without changing the kept file.
        where, loud = (memory.location, memory.backend), memory._verbose
        memory = joblib.Memory(*where, mmap_mode="c", verbose=loud)
    return lambda function: Kept(memory, function)


def kept_nowhere(function: Callable) -> Callable:
    """Return a function as it is."""
    return function


class Kept:
    """A function that keeps its results; it may be sent to another process.

    Parameters
    ----------
    memory : joblib.Memory
        Where.
    function : callable
        Of a module.
    """

    def __init__(self, memory: Any, function: Callable):
        self._function = function
        self._location = str(getattr(memory, "location", None) or "")
        with _disk_named(self._location):
            self._kept = memory.cache(_call)

    def __call__(self, *arguments: Any) -> Any:
        """Call it, or return what it gave before."""
        version = laion_fmri_fetchers.__version__
        try:
            with _disk_named(self._location):
                return self._kept(version, self._function, *arguments)
        except KeyError:
            # So joblib ends where it could not write what it was to read again.
            return self._function(*arguments)


@contextlib.contextmanager
def _disk_named(location: str) -> Iterator[None]:
    """Let errors of writing to the folder of results name it, and say what to do."""
    try:
        yield
    except OSError as error:
        file = os.path.abspath(os.fspath(error.filename or ""))
        named = folder_error(error, location)
        if named is error or not file.startswith(os.path.abspath(location)):
            raise
        raise named from error


def _call(version: str, function: Callable, *arguments: Any) -> Any:  # noqa: ARG001
    """Call a function; joblib asks for changes of this one only, and of arguments."""
    return function(*arguments)
