"""Checks of the arguments that calls share, and their values in one form."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, TypeVar

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS
from laion_fmri_fetchers.layout.names import as_integer

MODES = ("download_new", "overwrite", "offline")

Function = TypeVar("Function", bound=Callable[..., Any])
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})

# Seconds, twelve days: in effect no limit. Sockets take 24 days (2**31 ms) at most.
_LONGEST_TIMEOUT = 1e6


def check_mode(mode: object) -> str:
    """Return a mode in lower case; None stands for the mode set by the environment.

    Raises
    ------
    InvalidQueryError
        If it is not a mode, or the environment's setting is neither yes nor no.

    Examples
    --------
    >>> check_mode("OFFLINE"), check_mode(None)
    ('offline', 'download_new')
    """
    if mode is None:
        given = os.environ.get("LAION_FMRI_OFFLINE", "")
        asked = given.strip().strip("'\"").lower()
        if asked not in (*_YES, *_NO):
            raise InvalidQueryError(
                f"LAION_FMRI_OFFLINE is {given!r}; set it to 1 to open no socket, or 0"
            )
        return "offline" if asked in _YES else "download_new"
    if not isinstance(mode, str) or mode.lower() not in MODES:
        raise InvalidQueryError(f"mode is {mode!r}; {did_you_mean(mode, MODES)}")
    return mode.lower()


def user_path(given: Any, name: str) -> str:
    """Return a path that a user gave, with ``~`` and ``$VAR`` replaced.

    Parameters
    ----------
    given : str or path
        The path.
    name : str
        The argument, variable or option by which it was given.

    Raises
    ------
    InvalidQueryError
        If it is empty or no path, names a variable that is not set, or has quotation
        marks around it or control characters, as settings copied from files have.

    Examples
    --------
    >>> os.environ["SCRATCH"] = "/scratch/ada"
    >>> user_path("$SCRATCH/laion_fmri", "data_dir")
    '/scratch/ada/laion_fmri'
    """
    path = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise InvalidQueryError(f"{name} is {given!r}; it must be a path")
    if not path:
        raise InvalidQueryError(f"{name} is empty; it must be a path")
    if re.search(r"^['\"]|[\x00-\x1f\x7f]", path):
        raise InvalidQueryError(
            f"{name} is {path!r}; remove the quotation marks around it, and control "
            "characters such as line ends"
        )
    for variable in re.findall(r"\$\{?(\w+)", path):
        if not os.environ.get(variable):
            raise InvalidQueryError(
                f"{name} is {path!r}, but the variable {variable} is not set"
            )
    expanded = os.path.expanduser(os.path.expandvars(path))
    if expanded.startswith("~"):
        user = expanded[1:].partition("/")[0]
        why = f"there is no user {user!r}" if user else "there is no home directory"
        raise InvalidQueryError(f"{name} is {path!r}, but {why}; write the folder out")
    return expanded


def check_positive(value: Any, name: str, whole: bool = False) -> Any:
    """Return a positive number, as an int if ``whole``; else InvalidQueryError."""
    number: Any = as_integer(value) if whole else value
    if isinstance(value, bool) or not hasattr(number, "__float__") or not number > 0:
        raise InvalidQueryError(
            f"{name} is {value!r}; it must be a positive {'whole ' * whole}number"
        )
    return number


def check_timeout(timeout: Any) -> float:
    """Return a time-out in seconds, at most one that sockets and threads take.

    Raises
    ------
    InvalidQueryError
        If it is not a positive number.

    Examples
    --------
    >>> check_timeout(30), check_timeout(float("inf"))
    (30.0, 1000000.0)
    """
    check_positive(timeout, "timeout")
    return float(min(timeout, _LONGEST_TIMEOUT))


def check_verbose(verbose: Any) -> int:
    """Return a level as int; InvalidQueryError if it is not a whole number."""
    level = int(verbose) if isinstance(verbose, bool) else as_integer(verbose)
    if level is None:
        raise InvalidQueryError(f"verbose is {verbose!r}; it must be 0, 1, 2 or 3")
    return level


def only_its_arguments(function: Function) -> Function:
    """Decorate a call such that an argument it lacks is an error with the right place.

    An iterator among the arguments becomes a list, as it can be read only once.

    Examples
    --------
    >>> @only_its_arguments
    ... def fetch(models="all"):
    ...     pass
    >>> fetch(modelz="CLIP")
    Traceback (most recent call last):
    laion_fmri_fetchers.exceptions.InvalidQueryError: fetch has no argument 'modelz'; \
did you mean 'models'?
    """
    arguments = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        for name in options.keys() - arguments.keys():
            raise InvalidQueryError(
                f"{function.__name__} has no argument {name!r}; "
                f"{right_place(name, options[name], arguments)}"
            )
        return function(*map(once, args), **{n: once(v) for n, v in options.items()})

    def once(value: Any) -> Any:
        return list(value) if isinstance(value, Iterator) else value

    return checked  # type: ignore[return-value]


def right_place(name: str, value: object, arguments: Iterable[str]) -> str:
    """Return where an argument that a call lacks belongs, to end a message with.

    Examples
    --------
    >>> right_place("n_reps", 12, ["subjects", "trial_filter"])
    "it is a field of trials: trial_filter={'n_reps': 12}"
    >>> right_place("standardize", "zscore", ["subjects"])
    'it is an argument of fetch_laion_betas, load_betas'
    """
    if f"{name}s" in arguments:
        return f"use {name}s="
    if name in TRIAL_FIELDS:
        owner = "" if "trial_filter" in arguments else " of fetch_laion_fmri"
        return f"it is a field of trials: trial_filter={{{name!r}: {value!r}}}{owner}"
    return calls_with(name) or did_you_mean(name, arguments)


def calls_with(argument: str) -> str:
    """Return which public calls have an argument, to end a message with."""
    package = import_module(__name__.partition(".")[0])
    public = [getattr(package, name) for name in package.__all__]
    calls = [
        function.__name__
        for function in filter(inspect.isfunction, public)
        if argument in inspect.signature(function).parameters
    ]
    return f"it is an argument of {', '.join(calls)}" if calls else ""


def check_fetched(data: object, key: str) -> None:
    """Raise InvalidQueryError for an argument that is not the Bunch of a fetcher.

    Parameters
    ----------
    data : object
        The argument.
    key : str
        A key of the Bunch that other Bunches do not have.

    Examples
    --------
    >>> check_fetched({}, "images_meta")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    laion_fmri_fetchers.exceptions.InvalidQueryError: data is a dict without ...
    """
    if not hasattr(data, key):
        raise InvalidQueryError(
            f"data is a {type(data).__name__} without {key}; it must be the Bunch that "
            "fetch_laion_fmri or fetch_laion_fmri_ids returned"
        )


def as_limit(max_images: Any) -> int | None:
    """Return the largest number of images, None for all.

    Raises
    ------
    InvalidQueryError
        If it is not a whole number.
    """
    number = -1 if max_images is None else as_integer(max_images)
    if number is None:
        raise InvalidQueryError(
            f"max_images is {max_images!r}; give a whole number, or None for all"
        )
    return None if number < 0 else number
