"""Terms of filters, written as on a shell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError

from .filters import ResultFilter
from .values import (
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
OPERATORS = {
    **{value.__name__: operator for operator, value in _SPECIAL.items()},
    "IsIn": "in",
}
"""Names of special values -> how a shell spells them."""

_TERM = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<|~|\bin\b)\s*(.*?)\s*", re.DOTALL)
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
_NUMBERS = frozenset(
    {"n_reps", "beta_index", "image_index", "run", "echo", "repetition", "size"}
    | {"h5_index", "caption_idx", "mask_row", "instance_id", "score"}
)
"""Fields whose values are numbers."""


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
    if not terms:
        return None
    first, *others = [ResultFilter(dict([_term(text)])) for text in terms]
    for other in others:
        first &= other
    return first


def _term(text: str) -> tuple[str, Any]:
    """Return the field of a term, and the value or special value to match."""
    match = _TERM.fullmatch(text)
    if not match:
        raise InvalidQueryError(
            f"Cannot parse {text!r} as a filter; expected {TERM_FORM}"
        )
    field, operator, values = match.groups()
    if operator == "~":
        return field, Pattern(values)
    if operator == "in":
        each = re.split(r"\s*,\s*", values.strip("()"))
        return field, IsIn(*(_value(field, value) for value in each))
    special = _SPECIAL.get(operator)
    value = _value(field, values)
    return field, special(value) if special else value


def _value(field: str, text: str) -> str | int | float | None:
    text = text.strip().strip("'\"")
    if text.lower() in ("null", "none"):
        return None
    if field not in _NUMBERS:
        return text
    try:
        return float(text) if _FLOAT.fullmatch(text) else int(text)
    except ValueError:
        raise InvalidQueryError(f"{field} is a number; {text!r} is not") from None
