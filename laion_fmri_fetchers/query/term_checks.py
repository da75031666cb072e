"""Checks of filters against candidates: fields that none has, terms that none fulfils.

What nothing fulfils is more often a typo than meant, so there is a warning of it, with
the values that there are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from numbers import Number
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS, label_values
from laion_fmri_fetchers.messages import counted, listed, warn

from .arguments import calls_with
from .filters import (
    ResultFilter,
    check_comparison,
    fields,
    has_functions,
    parts_of,
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

_MOST_VALUES = 20


def check_fields(given: ResultFilter, name: str, existing: Iterable[str]) -> None:
    """Raise InvalidQueryError for a term on a field that no candidate has."""
    existing = list(existing)
    for field in sorted(fields(given) - {*existing}):
        hint = calls_with(field) or did_you_mean(field, existing)
        if field in TRIAL_FIELDS and name != "trial_filter":
            hint = "it is a field of trials; use trial_filter instead"
        raise InvalidQueryError(
            f"{field!r} is not a field that {name} can test; {hint}"
        )


def check_terms(name: str, given: ResultFilter, among: Any, n_passed: int) -> None:
    """Warn of a filter that nothing passes, and of parts of it that nothing fulfils.

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
    hints: dict[str, str] = {}
    for field, term in terms_of(given):
        present = values_of(field, among)
        check_comparison(term, field, present)
        if any(equals(term, value) for value in present):
            if n_passed:
                _check_values(name, field, term, present)
        elif not _asks_for_versions(field, term):
            hints[repr(ResultFilter({field: term}))] = _hint(field, present, term)
    if n_passed:
        for part, hint in hints.items():
            warn(f"Nothing fulfils {part}, a part of {name}.{_among(hint)}")
    elif hints or has_functions(given) or not _is_up_to_date(given, among):
        types = [term for field, term in terms_of(given) if field == "image_type"]
        if has_functions(given) and types and isinstance(types[0], str):
            hints["functions"] = (
                f"functions saw image_type {types[0]!r} alone; add "
                "image_type=NotNull() to show them other types"
            )
        warn(f"Nothing passes {name}, {given!r}.{_among(*hints.values())}")


def _asks_for_versions(field: str, term: Any) -> bool:
    """Return whether a term asks for new files, of which there may be none."""
    is_bound = isinstance(term, OrderComparison)
    return field == "outdated" or (field == "last_modified" and is_bound)


def _is_up_to_date(given: ResultFilter, among: Any) -> bool:
    """Return whether records fail a filter only by terms that ask for new files."""
    parts = parts_of(given, is_deep=False)
    terms = [part for part in parts if isinstance(part, tuple)]
    others = [each for each in terms if not _asks_for_versions(*each)]
    if len(others) == len(terms):
        return False
    return any(all(equals(term, rec.get(f)) for f, term in others) for rec in among)


def _among(*hints: str) -> str:
    """Return hints as a sentence."""
    given = [hint for hint in dict.fromkeys(hints) if hint]
    return f" Among the candidates, {'; '.join(given)}." if given else ""


def _hint(field: str, present: list, term: Any) -> str:
    """Return what sets a term apart from the values of its field; "" if too many."""
    found = [value for value in present if value is not None]
    names = sorted(set(map(str, found)))
    if isinstance(term, Pattern) and any(
        re.search(term.arguments[0], name, term.arguments[1]) for name in names
    ):
        return (
            f"{field} has it, but not at the start, where Pattern matches: begin it "
            "with '.*', or use Contains"
        )
    asked = _plain_values(term)
    types, wrong = ({*map(_type_name, values)} for values in (found, asked))
    differ = bool(types and wrong and not types & wrong)
    if len(names) <= _MOST_VALUES:
        text = f"{field} is {listed(names, _MOST_VALUES)}" if names else ""
    elif differ:
        text = f"{field} is {names[0]} and others"
    else:
        close = difflib.get_close_matches(str(asked[0]), names, 1) if asked else []
        text = f"{close[0]!r} is nearest" if close else ""
    if differ:
        text += f" ({listed(sorted(types))}, not {listed(sorted(wrong))})"
    return text


def _plain_values(term: Any) -> list:
    """Return the plain values that a term names."""
    kinds = (IsIn, NotIn, NotEqual, NotContains, OrderComparison)
    values = term.arguments if isinstance(term, kinds) else (term,)
    return [v for v in values if type(v) in PLAIN_TYPES and v is not None]


def _type_name(value: Any) -> str:
    if isinstance(value, Number):
        return "numbers"
    return "text" if isinstance(value, str) else f"{type(value).__name__}s"


def _check_values(name: str, field: str, term: Any, present: list) -> None:
    """Warn of values of a term that no candidate has, and of numbers compared as text.

    A value to leave out that no candidate has leaves out nothing, as a typo does.
    """
    found = [value for value in present if value is not None]
    asked = _plain_values(term)
    is_text = isinstance(term, OrderComparison) and isinstance(term.arguments[0], str)
    if is_text and all(isinstance(value, Number) for value in found):
        warn(
            f"{ResultFilter({field: term})!r}, a part of {name}, compares numbers as "
            "text, where '12' is less than '4'. Give the bound as a number."
        )
    if type(term) is NotContains:
        missing = [v for v in asked if not any(equals(Contains(v), f) for f in found)]
    elif type(term) in (IsIn, NotIn, NotEqual):
        having = {*_plain_values(IsIn(*found))}
        missing = [value for value in asked if value not in having]
    else:
        return
    # Some sessions do not show all images of a split: only what cannot be a label is a
    # mistake then. Nor has all of an interval, as in range(1, 13), to be there.
    is_of_labels = field in ("label", "image_name")
    if len(asked) > MANY or (is_of_labels and type(term) is not IsIn):
        missing = [v for v in missing if is_of_labels and not label_values(str(v))[0]]
    is_of_numbers = len(asked) > 2 and all(type(value) is int for value in asked)
    if is_of_numbers and {*asked} == {*range(min(asked), max(asked) + 1)}:
        return
    if missing:
        hint = _hint(field, present, IsIn(*missing))
        warn(
            f"{len(missing):,} of {counted(len(asked), 'value')} of {field} in {name} "
            f"match nothing: {listed([*map(repr, missing)])}.{_among(hint)}"
        )
