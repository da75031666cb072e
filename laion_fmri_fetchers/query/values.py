"""Terms: the special values, each equal to many values, and how terms are read.

The special values are those of nilearn's `fetch_neurovault`, with the same meaning but
for nulls: NaN, NaT and pandas.NA are null here, and a null never passes a comparison.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import date
from numbers import Number
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError

PLAIN_TYPES: frozenset[type] = frozenset({str, int, float, bool, type(None)})

_TYPES_WITH_NULLS = frozenset({"NAType", "NaTType", "datetime64"})

# Values of a collection beyond which they are shown in short.
MANY = 50

_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")


def in_order(given: Iterable) -> list:
    """Return values as a list; those of a set sorted, so that calls repeat.

    Examples
    --------
    >>> in_order(["b", "a"]), in_order({"b", "a"})
    (['b', 'a'], ['a', 'b'])
    """
    if not isinstance(given, (set, frozenset)):
        return list(given)
    return sorted(given, key=lambda value: (type(value).__name__, value))


def check_order(given: Any, name: str) -> None:
    """Raise InvalidQueryError for a set where rows are in the order of an argument.

    Examples
    --------
    >>> check_order({"a.jpg"}, "labels")
    Traceback (most recent call last):
    laion_fmri_fetchers.exceptions.InvalidQueryError: labels is a set, whose order \
differs from process to process, and rows follow it; give a list, as by sorted(labels)
    """
    if isinstance(given, (set, frozenset)):
        raise InvalidQueryError(
            f"{name} is a {type(given).__name__}, whose order differs from process to "
            f"process, and rows follow it; give a list, as by sorted({name})"
        )


def is_null(value: Any) -> bool:
    """Return whether a value is None, NaN, NaT or pandas.NA."""
    kind = type(value)
    if kind in PLAIN_TYPES:
        return value is None or value != value
    # Of a type that has nulls: a user's own term may not be equal to itself, either.
    may_be = isinstance(value, Number) or kind.__name__ in _TYPES_WITH_NULLS
    return may_be and not equals(value, value)


def null_as_none(value: Any) -> Any:
    """Return None for a null, and any other value as it is."""
    return None if is_null(value) else value


def equals(term: Any, value: Any) -> bool:
    """Return whether a term takes a value; False where the two cannot be compared."""
    try:
        return bool(term == value)
    except Exception:  # arrays and pandas.NA have no truth value
        return False


def are_same(a: Any, b: Any) -> bool:
    """Return whether two terms or arguments are the same; 1, 1.0 and True are not."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(are_same, a, b))
    return a is b or equals(a, b) or (is_null(a) and is_null(b))


def as_utc(value: Any) -> Any:
    """Return a date or a time as a Timestamp in UTC; None for what is neither.

    Examples
    --------
    >>> as_utc("2026-09-28"), as_utc("2026-09-28T02:00+02:00"), as_utc("ses-01")
    (Timestamp('2026-09-28 00:00:00+0000', tz='UTC'), \
Timestamp('2026-09-28 00:00:00+0000', tz='UTC'), None)
    """
    is_date = isinstance(value, date) or type(value).__name__ == "datetime64"
    if not (is_date or (isinstance(value, str) and _ISO_DATE.fullmatch(value))):
        return None
    import pandas as pd

    try:
        moment = pd.Timestamp(value)
    except ValueError:  # as of the 31st of February
        return None
    return moment.tz_localize("UTC") if moment.tz is None else moment.tz_convert("UTC")


class SpecialValue:
    """A stand-in for all the values that it equals.

    Two special values are equal if they are of one type and have the same arguments.
    """

    # Whether it equals all values but those that it accepts.
    is_negated = False
    arguments: tuple = ()

    def _accepts(self, value: Any) -> Any: ...

    def accepts(self, value: Any) -> bool | None:
        """Return whether a value is accepted; None where this cannot be decided."""
        try:
            return bool(self._accepts(value))
        except Exception:  # a failed cast, an array without a truth value
            return None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SpecialValue):
            is_same_kind = type(self) is type(other)
            return is_same_kind and are_same(self.arguments, other.arguments)
        return bool(self.accepts(other)) is not self.is_negated

    def __bool__(self) -> bool:
        raise InvalidQueryError(
            f"{self!r} has no truth value, so `and`, `or` and `not` cannot combine it; "
            "combine filters with &, | and ~, as in ResultFilter(run=LessThan(3)) | "
            "ResultFilter(run=GreaterThan(8))"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.arguments))})"


class OrderComparison(SpecialValue):
    """Base of the comparisons with a bound."""

    compare: Callable[[Any, Any], Any]

    def __init__(self, bound: Any):
        self.arguments = (bound,)

    def _accepts(self, value: Any) -> bool:
        # A cast to text would make "None" or "nan" of a null, and compare that.
        if is_null(value):
            return False
        (bound,) = self.arguments
        date_of_bound = as_utc(bound)
        date_of_value = None if date_of_bound is None else as_utc(value)
        if date_of_value is not None:
            return self.compare(date_of_value, date_of_bound)
        if date_of_bound is not None and not isinstance(bound, str):
            raise TypeError(f"{value!r} is not a date")
        return self.compare(type(bound)(value), bound)


class _Several(SpecialValue):
    """Base of special values with any number of arguments."""

    def __init__(self, *values: Any):
        self.arguments = values

    def __repr__(self) -> str:
        if len(self.arguments) <= MANY:
            return f"{type(self).__name__}{self.arguments!r}"
        first = ", ".join(map(repr, self.arguments[:2]))
        return f"{type(self).__name__}({first}, and {len(self.arguments) - 2:,} more)"


class _Membership(_Several):
    """Base of `IsIn` and `NotIn`."""

    def __init__(self, *values: Any):
        super().__init__(*values)
        self._texts = frozenset(value for value in values if type(value) is str)
        self._others = tuple(value for value in values if type(value) is not str)

    def _accepts(self, value: Any) -> bool:
        # Looked up, as a split has 25,000 labels. What is no text may equal a text in
        # a way of its own, as `Pattern` does.
        if type(value) is str:
            return value in self._texts or value in self._others
        return value in self.arguments


class IsNull(SpecialValue):
    """Equal to every null: falsy values (0 and "" too), NaN, NaT and pandas.NA.

    Examples
    --------
    >>> IsNull() == 0, IsNull() == float("nan"), IsNull() == "a"
    (True, True, False)
    """

    def _accepts(self, value: Any) -> bool:
        return is_null(value) or not value


class NotNull(SpecialValue):
    """Equal to every value that `IsNull` is not equal to.

    Examples
    --------
    >>> NotNull() == "a", NotNull() == 0, NotNull() == float("nan")
    (True, False, False)
    """

    is_negated = True
    _accepts = IsNull._accepts


class NotEqual(SpecialValue):
    """Equal to every value but one.

    Parameters
    ----------
    negated : object
        The value that does not pass.

    Examples
    --------
    >>> NotEqual(0) == "0", NotEqual(0) == 0
    (True, False)
    """

    is_negated = True

    def __init__(self, negated: Any):
        self.arguments = (negated,)

    def _accepts(self, value: Any) -> Any:
        return self.arguments[0] == value


class GreaterOrEqual(OrderComparison):
    """Equal to values of at least a bound, cast to the type of the bound.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type, and a null never passes. Dates and
        times, also as ISO 8601 text, are compared as such; those without a time zone
        are UTC.

    Examples
    --------
    >>> GreaterOrEqual(4) == 4, GreaterOrEqual(4) == "5", GreaterOrEqual(4) == "a"
    (True, True, False)
    """

    compare = staticmethod(operator.ge)


class GreaterThan(OrderComparison):
    """Equal to values above a bound, cast to the type of the bound.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type, and a null never passes. Dates and
        times, also as ISO 8601 text, are compared as such; those without a time zone
        are UTC.

    Examples
    --------
    >>> GreaterThan(3) == 4, GreaterThan(3) == 3.7, GreaterThan(3.0) == 3.7
    (True, False, True)
    """

    compare = staticmethod(operator.gt)


class LessOrEqual(OrderComparison):
    """Equal to values of at most a bound, cast to the type of the bound.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type, and a null never passes. Dates and
        times, also as ISO 8601 text, are compared as such; those without a time zone
        are UTC.

    Examples
    --------
    >>> LessOrEqual("ses-05") == "ses-05", LessOrEqual("ses-05") == "ses-10"
    (True, False)
    """

    compare = staticmethod(operator.le)


class LessThan(OrderComparison):
    """Equal to values below a bound, cast to the type of the bound.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type, and a null never passes. Dates and
        times, also as ISO 8601 text, are compared as such; those without a time zone
        are UTC.

    Examples
    --------
    >>> LessThan(7) == 5, LessThan(7) == 7, LessThan(7) == None
    (True, False, False)
    """

    compare = staticmethod(operator.lt)


class IsIn(_Membership):
    """Equal to each of the values given.

    Parameters
    ----------
    *values : object
        The values that pass.

    Examples
    --------
    >>> IsIn("LAION", "NSD") == "NSD", IsIn("LAION", "NSD") == "OOD"
    (True, False)
    """


class NotIn(_Membership):
    """Equal to every value but those given.

    Parameters
    ----------
    *values : object
        The values that do not pass.

    Examples
    --------
    >>> NotIn("LAION", "NSD") == "OOD", NotIn("LAION", "NSD") == "NSD"
    (True, False)
    """

    is_negated = True


class Contains(_Several):
    """Equal to containers, such as strings, that have all of the items given.

    Parameters
    ----------
    *values : object
        Items that a container must have, all of them.

    Examples
    --------
    >>> Contains("OOD", "shape") == "shared_4rep_OOD_shape_a.png", Contains("a") == 10
    (True, False)
    """

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, Container) and all(
            item in value for item in self.arguments
        )


class NotContains(_Several):
    """Equal to containers, such as strings, that have none of the items given.

    Parameters
    ----------
    *values : object
        Items of which a container must have none.

    Examples
    --------
    >>> NotContains("OOD") == "shared_12rep_LAION_a.jpg", NotContains("OOD") == 10
    (True, False)
    """

    def _accepts(self, value: Any) -> bool:
        # Not `item in value`, which is an error for a number and a string.
        return isinstance(value, Container) and not any(
            Contains(item) == value for item in self.arguments
        )


class Pattern(SpecialValue):
    r"""Equal to strings that a regular expression matches from their start.

    For text anywhere in a string use `Contains`, or begin the expression with ``.*``.

    Parameters
    ----------
    pattern : str or re.Pattern
        The regular expression, as `re.match` takes it.
    flags : int, default=0
        Flags of `re`, such as ``re.IGNORECASE``.

    Examples
    --------
    >>> Pattern(r"shared_\d+rep", flags=re.IGNORECASE) == "Shared_12rep_LAION_a.jpg"
    True
    >>> label = "shared_4rep_OOD_illusion-classic_a.png"
    >>> Pattern("illusion") == label, Pattern(".*illusion") == label
    (False, True)
    >>> Contains("illusion") == label
    True
    """

    def __init__(self, pattern: str | re.Pattern, flags: int = 0):
        try:
            re.match(pattern, "", flags)
        except Exception as error:
            raise InvalidQueryError(
                f"Pattern: {pattern!r} with flags {flags!r} is not a regular "
                f"expression of text: {error}."
            ) from error
        if isinstance(pattern, re.Pattern):
            flags, pattern = pattern.flags, pattern.pattern
        self.arguments = pattern, int(flags)

    def _accepts(self, value: Any) -> bool:
        return re.match(self.arguments[0], value, self.arguments[1]) is not None

    def __repr__(self) -> str:
        pattern, flags = self.arguments
        return (
            f"Pattern(pattern={pattern!r}, flags={re.RegexFlag(flags) if flags else 0})"
        )


# Those of nilearn, and those in saved queries, by name.
SPECIAL_VALUES: dict[str, type[SpecialValue]] = {
    kind.__name__: kind
    for kind in (
        *(IsNull, NotNull, NotEqual, IsIn, NotIn, Contains, NotContains, Pattern),
        *(GreaterOrEqual, GreaterThan, LessOrEqual, LessThan),
    )
}


def as_term(value: Any) -> Any:
    """Return the meaning of a term: a collection is `IsIn`, any null is None.

    Special values of nilearn become ours.
    """
    is_single = (
        isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) != 1
    )
    if is_single or not isinstance(value, Iterable):
        return _as_single_term(value)
    values = value.tolist() if hasattr(value, "tolist") else in_order(value)
    return IsIn(*map(_as_single_term, values))


def _as_single_term(value: Any) -> Any:
    kind = type(value)
    if kind.__module__.startswith("nilearn.") and kind.__name__ in SPECIAL_VALUES:
        kind = SPECIAL_VALUES[kind.__name__]
        # In the order of its arguments; repr_arg_ and _cast repeat the only one.
        given = [v for n, v in vars(value).items() if n not in ("repr_arg_", "_cast")]
        value = kind(*(given[0] if issubclass(kind, _Several) else given))
    if kind in (IsIn, NotIn, NotEqual):
        # Candidates have None for any null, so that their terms must have it too.
        return kind(*map(_as_single_term, value.arguments))
    return null_as_none(value)


def to_plain(term: Any) -> Any:
    """Return a term as plain values, which `json.dumps` takes.

    `IsIn` is a list, any other special value a dict of its name and arguments. Values
    of other types than JSON has are kept as text that `from_plain` refuses.

    Examples
    --------
    >>> to_plain(IsIn("LAION", "NSD")), to_plain(GreaterThan(4))
    (['LAION', 'NSD'], {'GreaterThan': [4]})
    """
    if type(term) in SPECIAL_VALUES.values():
        arguments = [*map(to_plain, term.arguments)]
        return arguments if type(term) is IsIn else {type(term).__name__: arguments}
    if hasattr(term, "item") and getattr(term, "ndim", None) == 0:
        term = term.item()  # a number of numpy
    return term if isinstance(term, tuple(PLAIN_TYPES)) else {"repr": repr(term)}


def from_plain(value: Any) -> Any:
    """Return a term from plain values; see `to_plain`.

    Raises
    ------
    InvalidQueryError
        If it stands for a value of a type that JSON does not have.

    Examples
    --------
    >>> from_plain({"NotIn": ["LAION", "NSD"]})
    NotIn('LAION', 'NSD')
    """
    if isinstance(value, (list, tuple)):
        return [*map(from_plain, value)]
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, content),) = value.items()
        if name == "repr":
            raise InvalidQueryError(
                f"A term was saved as the text {content} alone; pass the value itself."
            )
        if name in SPECIAL_VALUES and isinstance(content, list):
            return SPECIAL_VALUES[name](*map(from_plain, content))
    return value
