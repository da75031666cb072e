"""Terms: the special values, each equal to many values, and how terms are read.

The special values are those of nilearn's `fetch_neurovault`, with the same meaning but
for nulls: NaN, NaT and pandas.NA are null here, and a null never passes a comparison.
"""

from __future__ import annotations

import operator
import re
from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Reversible,
    Sequence,
    Set,
    ValuesView,
)
from datetime import date
from numbers import Number
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError

PLAIN_TYPES: frozenset[type] = frozenset({str, int, float, bool, type(None)})

MANY = 50
"""Values of a collection beyond which they are shown in short, and looked up."""

_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")


def is_unordered(given: Any) -> bool:
    """Return whether it is a set, whose order differs from process to process.

    Examples
    --------
    >>> is_unordered({"a", "b"}), is_unordered({"a": 1, "b": 2}.keys())
    (True, False)
    """
    return isinstance(given, Set) and not isinstance(given, Reversible)


def in_order(given: Iterable) -> list:
    """Return values as a list; those of a set sorted, so that calls repeat.

    Examples
    --------
    >>> in_order(["b", "a"]), in_order({"b", "a"})
    (['b', 'a'], ['a', 'b'])
    """
    if not is_unordered(given):
        return list(given)
    try:
        return sorted(given)
    except TypeError:  # of several types
        return sorted(given, key=repr)


def check_order(given: Any, name: str) -> None:
    """Raise InvalidQueryError for a set where rows are in the order of an argument.

    Examples
    --------
    >>> check_order({"a.jpg"}, "labels")
    Traceback (most recent call last):
    laion_fmri_fetchers.exceptions.InvalidQueryError: labels is a set, whose order \
differs from process to process, and rows follow it; give a list, as by sorted(labels)
    """
    if is_unordered(given):
        raise InvalidQueryError(
            f"{name} is a {type(given).__name__}, whose order differs from process to "
            f"process, and rows follow it; give a list, as by sorted({name})"
        )


def is_null(value: Any) -> bool:
    """Return whether a value is None, NaN, NaT or pandas.NA."""
    kind = type(value)
    if kind in PLAIN_TYPES:
        return value is None or value != value
    if kind.__name__ in ("NAType", "NaTType"):
        return True
    may_be = isinstance(value, Number) or kind.__name__ == "datetime64"
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


def _contains(container: Container, item: Any) -> bool:
    try:
        return bool(item in container)
    except Exception:  # a number in a string
        return False


def as_utc(value: Any) -> Any:
    """Return a date or a time as a Timestamp in UTC; None for what is neither.

    Examples
    --------
    >>> as_utc("2026-09-28"), as_utc("2026-09-28T02:00+02:00"), as_utc("ses-01")
    (Timestamp('2026-09-28 00:00:00+0000', tz='UTC'), \
Timestamp('2026-09-28 00:00:00+0000', tz='UTC'), None)
    """
    if isinstance(value, str):
        if not _ISO_DATE.fullmatch(value):
            return None
    elif not isinstance(value, date) and type(value).__name__ != "datetime64":
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

    argument_names: tuple[str, ...] = ()
    """The attributes that hold the arguments, called as in nilearn."""
    is_negated = False
    """Whether it is equal to all values but those that it accepts."""

    def _accepts(self, value: Any) -> bool:
        raise NotImplementedError

    @classmethod
    def arguments_of(cls, value: Any) -> tuple:
        """Return the arguments of a special value of this type, ours or nilearn's."""
        return tuple(getattr(value, name) for name in cls.argument_names)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SpecialValue):
            if type(self) is not type(other):
                return False
            return are_same(self.arguments_of(self), other.arguments_of(other))
        try:
            is_accepted = bool(self._accepts(other))
        except Exception:  # a failed cast, an array without a truth value
            is_accepted = False
        return is_accepted is not self.is_negated

    def __bool__(self) -> bool:
        raise InvalidQueryError(
            f"{self!r} has no truth value, so `and`, `or` and `not` cannot combine it; "
            "combine filters with &, | and ~, as in ResultFilter(run=LessThan(3)) | "
            "ResultFilter(run=GreaterThan(8))"
        )

    def __repr__(self) -> str:
        arguments = ", ".join(map(repr, self.arguments_of(self)))
        return f"{type(self).__name__}({arguments})"


class Nullness(SpecialValue):
    """Base of `IsNull` and `NotNull`."""

    def _accepts(self, value: Any) -> bool:
        return is_null(value) or not value


class OrderComparison(SpecialValue):
    """Base of the comparisons with a bound."""

    argument_names = ("bound_",)
    compare: Callable[[Any, Any], Any]

    def __init__(self, bound: Any):
        self.bound_ = bound

    def _accepts(self, value: Any) -> bool:
        # A cast to text would make "None" or "nan" of a null, and compare that.
        if is_null(value):
            return False
        moment, bound = as_utc(value), as_utc(self.bound_)
        if moment is None and bound is not None and not isinstance(self.bound_, str):
            raise TypeError(f"{value!r} is not a date")
        if moment is not None and bound is not None:
            return self.compare(moment, bound)
        return self.compare(type(self.bound_)(value), self.bound_)

    def can_compare(self, value: Any) -> bool:
        """Return whether a value that is not null can be compared with the bound."""
        try:
            bool(self._accepts(value))
        except Exception:  # a failed cast, an array without a truth value
            return False
        return True


class _Several(SpecialValue):
    """Base of special values with any number of arguments, in one attribute."""

    def __init__(self, *values: Any):
        setattr(self, self.argument_names[0], values)

    @classmethod
    def arguments_of(cls, value: Any) -> tuple:
        return tuple(getattr(value, cls.argument_names[0]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.arguments_of(self)!r}"


class Membership(_Several):
    """Base of `IsIn` and `NotIn`, which may have the thousands of labels of a split."""

    _texts: tuple[tuple, frozenset[str]] | None = None

    def _accepts(self, value: Any) -> bool:
        values = self.arguments_of(self)
        if len(values) <= MANY or type(value) is not str:
            return value in values
        # Others than texts may equal a text in ways of their own, as `Pattern` does.
        if self._texts is None or self._texts[0] is not values:
            self._texts = values, frozenset(v for v in values if type(v) is str)
        if value in self._texts[1]:
            return True
        return len(self._texts[1]) < len(values) and value in values

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in vars(self).items() if name != "_texts"}

    def __repr__(self) -> str:
        values = self.arguments_of(self)
        if len(values) <= MANY:
            return super().__repr__()
        first = ", ".join(map(repr, values[:2]))
        return f"{type(self).__name__}({first}, and {len(values) - 2:,} more)"


class IsNull(Nullness):
    """Equal to every null: falsy values (0 and "" too), NaN, NaT and pandas.NA.

    Examples
    --------
    >>> IsNull() == 0, IsNull() == float("nan"), IsNull() == "a"
    (True, True, False)
    """


class NotNull(Nullness):
    """Equal to every value that `IsNull` is not equal to.

    Examples
    --------
    >>> NotNull() == "a", NotNull() == 0, NotNull() == float("nan")
    (True, False, False)
    """

    is_negated = True


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

    argument_names = ("negated_",)
    is_negated = True

    def __init__(self, negated: Any):
        self.negated_ = negated

    def _accepts(self, value: Any) -> bool:
        return self.negated_ == value


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


class IsIn(Membership):
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

    argument_names = ("accepted_",)


class NotIn(Membership):
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

    argument_names = ("rejected_",)
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

    argument_names = ("must_be_contained_",)

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, Container) and all(
            _contains(value, item) for item in self.arguments_of(self)
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

    argument_names = ("must_not_be_contained_",)

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, Container) and not any(
            _contains(value, item) for item in self.arguments_of(self)
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

    argument_names = ("pattern_", "flags_")

    def __init__(self, pattern: str | re.Pattern, flags: int = 0):
        try:
            re.match(pattern, "", flags)
        except Exception as error:
            raise InvalidQueryError(
                f"Pattern: {pattern!r} with flags {flags!r} is not a regular "
                f"expression of text: {error}."
            ) from error
        self.pattern_ = pattern
        self.flags_ = flags

    @classmethod
    def arguments_of(cls, value: Any) -> tuple:
        """Return the pattern, and the flags as a number."""
        return value.pattern_, int(value.flags_)

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, str) and bool(
            re.match(self.pattern_, value, self.flags_)
        )

    def __repr__(self) -> str:
        return f"Pattern(pattern={self.pattern_!r}, flags={self.flags_})"


SPECIAL_VALUES: dict[str, type[SpecialValue]] = {
    kind.__name__: kind
    for kind in (
        *(IsNull, NotNull, NotEqual, IsIn, NotIn, Contains, NotContains, Pattern),
        *(GreaterOrEqual, GreaterThan, LessOrEqual, LessThan),
    )
}
"""Name -> special value, for those of nilearn and those in saved queries."""


def as_term(value: Any) -> Any:
    """Return the meaning of a term: a collection is `IsIn`, any null is None.

    Special values of nilearn become ours, so that they are matched by column too.
    """
    if isinstance(value, Set):
        value = in_order(value)
    elif getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if _is_collection(value):
        return IsIn(*map(_as_single_term, value))
    return _as_single_term(value)


def _is_collection(value: Any) -> bool:
    is_text = isinstance(value, (str, bytes, bytearray, memoryview))
    return not is_text and isinstance(value, (Sequence, ValuesView, Iterator))


def _as_single_term(value: Any) -> Any:
    value = _from_nilearn(value)
    if type(value) in (IsIn, NotIn, NotEqual):
        # Candidates have None for any null, so that their terms must have it too.
        return type(value)(*map(_as_single_term, value.arguments_of(value)))
    return null_as_none(value)


def _from_nilearn(value: Any) -> Any:
    """Return one of nilearn's special values as ours, anything else as it is."""
    kind = type(value)
    if kind.__module__.startswith("nilearn.") and kind.__name__ in SPECIAL_VALUES:
        special = SPECIAL_VALUES[kind.__name__]
        return special(*special.arguments_of(value))
    return value


def to_plain(term: Any) -> Any:
    """Return a term as plain values, which `json.dumps` takes.

    `IsIn` is a list, any other special value a dict of its name and arguments. Values
    of other types than JSON has are kept as text that `from_plain` refuses.

    Examples
    --------
    >>> to_plain(IsIn("LAION", "NSD")), to_plain(GreaterThan(4))
    (['LAION', 'NSD'], {'GreaterThan': [4]})
    """
    if type(term) is IsIn:
        return [to_plain(value) for value in term.arguments_of(term)]
    if type(term) in SPECIAL_VALUES.values():
        arguments = [to_plain(value) for value in _flat_arguments(term)]
        return {type(term).__name__: arguments}
    if hasattr(term, "item") and getattr(term, "ndim", None) == 0:
        term = term.item()  # a number of numpy
    if isinstance(term, tuple(PLAIN_TYPES)):
        return term
    return {"repr": repr(term)}


def _flat_arguments(term: Any) -> tuple:
    """Return the arguments of a special value; of a compiled pattern text and flags."""
    if isinstance(term, Pattern) and isinstance(term.pattern_, re.Pattern):
        return term.pattern_.pattern, term.pattern_.flags
    return term.arguments_of(term)


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
        return [from_plain(item) for item in value]
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, content),) = value.items()
        if name == "repr":
            raise InvalidQueryError(
                f"A term was saved as the text {content} alone; pass the value itself."
            )
        if name in SPECIAL_VALUES and isinstance(content, list):
            return SPECIAL_VALUES[name](*map(from_plain, content))
    return value
