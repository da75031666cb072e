"""Terms of filters, written as on a shell."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.values import (
    GreaterOrEqual,
    GreaterThan,
    IsIn,
    LessOrEqual,
    LessThan,
    NotEqual,
    Pattern,
)

TERM_FORM = (
    "FIELD OP VALUE; OP is = != >= <= > < ~ (regular expression, from the start) "
    "in (a,b,c)"
)

_SPECIAL: dict[str, Callable[[Any], Any]] = {
    ">=": GreaterOrEqual,
    "<=": LessOrEqual,
    ">": GreaterThan,
    "<": LessThan,
    "!=": NotEqual,
}
# Names of special values -> how a shell spells them.
OPERATORS = {"IsIn": "in"} | {kind.__name__: sign for sign, kind in _SPECIAL.items()}

_TERM = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<|~|\bin\b)\s*(.*?)\s*", re.DOTALL)
# Fields whose values are numbers.
_NUMBERS = frozenset(
    {"n_reps", "beta_index", "image_index", "run", "echo", "repetition", "size"}
    | {"h5_index", "caption_idx", "mask_row", "instance_id", "score"}
)


def parse_terms(terms: Sequence[str]) -> ResultFilter | None:
    """Return the filter that passes what matches all terms, written as on a shell.

    Parameters
    ----------
    terms : sequence of str
        Such as ``"n_reps>=12"``, ``"label~shared"`` or ``"session in ses-01,ses-02"``.

    Returns
    -------
    ResultFilter or None
        None without terms.

    Raises
    ------
    InvalidQueryError
        If a term cannot be parsed, or compares a number with text.

    Examples
    --------
    >>> parse_terms(["n_reps>=4", "n_reps<12"])({"n_reps": 4})
    True
    """
    filters = [ResultFilter(dict([_term(text)])) for text in terms]
    return reduce(operator.and_, filters) if filters else None


def _term(text: str) -> tuple[str, Any]:
    """Return the field of a term, and the value or special value to match."""
    match = _TERM.fullmatch(text)
    if not match:
        raise InvalidQueryError(
            f"Cannot parse {text!r} as a filter; expected {TERM_FORM}"
        )
    field, sign, values = match.groups()
    if sign == "~":
        return field, Pattern(values)
    if sign == "in":
        return field, IsIn(*(_value(field, v) for v in values.strip("()").split(",")))
    value = _value(field, values)
    return field, _SPECIAL[sign](value) if sign in _SPECIAL else value


def _value(field: str, text: str) -> str | int | float | None:
    text = text.strip().strip("'\"")
    if text.lower() in ("null", "none"):
        return None
    if field not in _NUMBERS:
        return text
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    raise InvalidQueryError(f"{field} is a number; {text!r} is not")
