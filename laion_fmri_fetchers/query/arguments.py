"""Checks of the arguments that fetchers share, and their values in one form."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
from collections.abc import Callable, Hashable, Iterable
from importlib import import_module
from numbers import Number
from typing import Any, TypeVar

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS, label_values
from laion_fmri_fetchers.layout.names import as_integer
from laion_fmri_fetchers.messages import counted, listed, warn

from .filters import (
    ResultFilter,
    admits,
    check_comparisons,
    fields,
    has_functions,
    terms_of,
    values_of,
)
from .values import (
    MANY,
    PLAIN_TYPES,
    Contains,
    IsIn,
    NotContains,
    NotEqual,
    NotIn,
    OrderComparison,
    Pattern,
    equals,
)

MODES = ("download_new", "overwrite", "offline")

Function = TypeVar("Function", bound=Callable[..., Any])
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})
_MOST_VALUES = 20

OF_VERSION = frozenset({"last_modified", "outdated"})
"""Fields of terms that ask for new files; there may be none."""

_LONGEST_TIMEOUT = 1e6
"""Seconds, twelve days: in effect no limit. Sockets take 24 days (2**31 ms) at most."""


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


def refuse_offline(mode: str, error: Exception) -> None:
    """Raise an error where a mode opens no socket, so that what it says is final.

    Examples
    --------
    >>> refuse_offline("download_new", OSError("fsaverage6 is not on this machine"))
    """
    if mode == "offline":
        raise error


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
        return function(*args, **options)

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
    calls = [
        name
        for name in package.__all__
        if inspect.isfunction(function := getattr(package, name))
        and argument in inspect.signature(function).parameters
    ]
    return f"it is an argument of {', '.join(calls)}" if calls else ""


def check_fields(given: ResultFilter, name: str, existing: Iterable[str]) -> None:
    """Raise InvalidQueryError for a term on a field that no candidate has."""
    existing = list(existing)
    for field in sorted(fields(given) - set(existing)):
        raise InvalidQueryError(
            f"{field!r} is not a field that {name} can test; "
            f"{calls_with(field) or did_you_mean(field, existing)}"
        )


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
    if max_images is None:
        return None
    number = as_integer(max_images)
    if number is None:
        raise InvalidQueryError(
            f"max_images is {max_images!r}; give a whole number, or None for all"
        )
    return None if number < 0 else number


def check_terms(name: str, given: ResultFilter, among: Any, n_passed: int) -> None:
    """Warn of each term, and each value of a list, that no candidate fulfils.

    Terms on versions of files are left out: that nothing is newer is no fault.

    Parameters
    ----------
    name : str
        The argument's name.
    given : ResultFilter
        The filter.
    among : list of dict or pandas.DataFrame
        The candidates; without any, there is nothing to say.
    n_passed : int
        How many of them passed.

    Raises
    ------
    InvalidQueryError
        If a bound cannot be compared with any value of its field.
    """
    if not len(among):
        return
    values = {field: values_of(field, among) for field in fields(given)}
    check_comparisons(given, values.__getitem__)
    hints: dict[str, str] = {}
    for field, term in terms_of(given):
        present = values[field]
        if field in OF_VERSION:
            continue
        if not any(equals(term, value) for value in present):
            hints[repr(ResultFilter({field: term}))] = _hint(field, present, term)
        elif n_passed:
            _warn_of_values(name, field, term, present)
    if not n_passed and not values.keys() & OF_VERSION:
        hints |= _contradictions(given, values)
        warn(f"Nothing passes {name}, {given!r}.{_among(*hints.values())}")
    elif n_passed:
        for part, hint in hints.items():
            warn(f"Nothing fulfils {part}, a part of {name}.{_among(hint)}")


def _contradictions(given: ResultFilter, values: dict[str, list]) -> dict[str, str]:
    """Return hints on fields of which all values are refused, by terms or functions."""
    hints = {}
    for field, present in sorted(values.items()):
        admitted = {str(v) for v in present if admits(given, field, v)}
        if not admitted:
            hints[field] = _hint(field, present)
        elif field == "image_type" and len(admitted) == 1 and has_functions(given):
            hints[field] = (
                f"functions saw image_type {admitted.pop()!r} alone; add "
                "image_type=NotNull() to show them other types"
            )
    return hints


def _among(*hints: str) -> str:
    """Return hints as a sentence; of two that begin alike, the first."""
    first = {hint.partition(" (")[0]: hint for hint in reversed(hints) if hint}
    return (
        f" Among the candidates, {'; '.join(reversed(first.values()))}."
        if first
        else ""
    )


def _hint(field: str, present: list, term: Any = None) -> str:
    """Return what sets a term apart from the values of its field; "" if too many."""
    found = [value for value in present if value is not None]
    names = sorted(set(map(str, found)))
    if isinstance(term, Pattern) and any(
        re.search(term.pattern_, name, term.flags_) for name in names
    ):
        return (
            f"{field} has it, but not at the start, where Pattern matches: begin it "
            "with '.*', or use Contains"
        )
    of_values = isinstance(term, (IsIn, OrderComparison))
    asked = _plain(term.arguments_of(term) if of_values else (term,))
    types, wrong = ({*map(_type_name, of)} for of in (found, asked))
    differ = types and wrong and not types & wrong
    if 0 < len(names) <= _MOST_VALUES:
        text = f"{field} is {listed(names, _MOST_VALUES)}"
    elif differ:
        text = f"{field} is {names[0]} and others"
    else:
        text = _nearest(asked, names)
    if differ:
        text += f" ({listed(sorted(types))}, not {listed(sorted(wrong))})"
    return text


def _plain(values: Iterable) -> list:
    return [v for v in values if type(v) in PLAIN_TYPES and v is not None]


def _type_name(value: Any) -> str:
    if isinstance(value, Number):
        return "numbers"
    return "text" if isinstance(value, str) else f"{type(value).__name__}s"


def _nearest(asked: list, names: list[str]) -> str:
    """Return the name that is nearest to the first value asked for, if any is near."""
    close = difflib.get_close_matches(str(asked[0]), names, 1) if asked else []
    return f"{close[0]!r} is nearest" if close else ""


def _warn_of_values(name: str, field: str, term: Any, present: list) -> None:
    """Warn of values of a list that no candidate has, and of numbers compared as text.

    A long list, such as the labels of a split, names images that some sessions do not
    show: of these, only values that cannot be labels are a mistake. Whole numbers in a
    row are an interval, and not all of it has to be there. Of values to leave out, one
    that no candidate has leaves out nothing, as a typo does; labels excepted.
    """
    found = [value for value in present if value is not None]
    is_text = isinstance(term, OrderComparison) and isinstance(term.bound_, str)
    if is_text and all(isinstance(value, Number) for value in found):
        warn(
            f"{ResultFilter({field: term})!r}, a part of {name}, compares numbers as "
            "text, where '12' is less than '4'. Give the bound as a number."
        )
    if type(term) not in (IsIn, NotIn, NotEqual, NotContains):
        return
    asked = _plain(term.arguments_of(term))
    if type(term) is NotContains:
        lacking = [v for v in asked if not any(equals(Contains(v), f) for f in found)]
    else:
        have = {value for value in found if isinstance(value, Hashable)}
        lacking = [value for value in asked if value not in have]
    is_of_labels = field in ("label", "image_name")
    if len(asked) > MANY or (is_of_labels and type(term) is not IsIn):
        lacking = [v for v in lacking if is_of_labels and not label_values(str(v))[0]]
    is_interval = len(asked) > 2 and all(type(value) is int for value in asked)
    if is_interval and {*asked} == {*range(min(asked), max(asked) + 1)}:
        return
    if lacking:
        hint = _hint(field, present, IsIn(*lacking))
        warn(
            f"{len(lacking):,} of {counted(len(asked), 'value')} of {field} in {name} "
            f"match nothing: {listed([*map(repr, lacking)])}.{_among(hint)}"
        )
