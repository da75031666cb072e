"""Filters on metadata: special values, `ResultFilter`, and masks of DataFrames.

A filter passes what fulfils all of its terms (``field == value``, where a special
value stands for many) and all of its tests (functions of a record; other filters and
their combinations are tests too). It is asked in two ways, with one answer::

    ResultFilter ─┬─ called ─▶ a record: a dict ─────────────────────────────▶ bool
                  └─ .mask ──▶ a DataFrame ─▶ _Rows ─┬─ terms, by column ─┬──▶ array
                                                     └─ functions, by row ┘

A term is matched with a whole column by numpy where numpy decides as Python does, else
with the column's distinct values, and where those may differ in type, with each value.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from numbers import Number
from typing import TYPE_CHECKING, Any

from laion_fmri_fetchers.exceptions import InvalidQueryError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Test = Callable[[dict], bool]

_PLAIN = frozenset({str, int, float, bool, type(None)})
_NEVER_NA = _PLAIN - {float}
_NUMERIC = re.compile(r"u?int(8|16|32|64)|float(16|32|64)|bool(ean)?", re.IGNORECASE)
_OF_ONE_TYPE = frozenset({"string", "integer", "boolean"})
_RESERVED = frozenset({"self", "query_terms", "callable_filter"})


def _is_na(value: Any) -> bool:
    """Tell whether a value is None, NaN, NaT or pandas.NA."""
    kind = type(value)
    if kind in _PLAIN:
        return value is None or value != value
    if kind.__name__ in ("NAType", "NaTType"):
        return True
    may_be = isinstance(value, Number) or kind.__name__ == "datetime64"
    return may_be and not _same(value, value)


def _null_as_none(value: Any) -> Any:
    return None if _is_na(value) else value


def _same(term: Any, value: Any) -> bool:
    """Tell whether a term takes a value; what cannot be compared, it does not."""
    try:
        return bool(term == value)
    except Exception:  # arrays and pandas.NA have no truth value
        return False


def _alike(a: Any, b: Any) -> bool:
    """Tell whether two terms or arguments are the same; 1, 1.0 and True are not."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_alike, a, b))
    return a is b or _same(a, b) or (_is_na(a) and _is_na(b))


def _holds(container: Container, item: Any) -> bool:
    try:
        return bool(item in container)
    except Exception:  # a number in a string
        return False


class _SpecialValue:
    """A stand-in for all the values that it equals.

    Two special values are equal if they are of one type and have the same arguments.
    """

    _names: tuple[str, ...] = ()
    """The attributes that hold the arguments."""
    _negated = False
    """Whether it stands for all values but those that it accepts."""

    def _accepts(self, value: Any) -> bool:
        raise NotImplementedError

    def _arguments(self) -> tuple:
        return tuple(getattr(self, name) for name in self._names)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _SpecialValue):
            same_type = type(self) is type(other)
            return same_type and _alike(self._arguments(), other._arguments())
        try:
            accepted = bool(self._accepts(other))
        except Exception:  # a failed cast, an array without a truth value
            accepted = False
        return accepted is not self._negated

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._arguments()))})"


class _Nullness(_SpecialValue):
    def _accepts(self, value: Any) -> bool:
        return _is_na(value) or not value


class _OrderComparison(_SpecialValue):
    _names = ("bound_",)
    _compare: Callable[[Any, Any], Any]

    def __init__(self, bound: Any):
        self.bound_ = bound

    def _accepts(self, value: Any) -> bool:
        return self._compare(type(self.bound_)(value), self.bound_)


class _Several(_SpecialValue):
    def __init__(self, *values: Any):
        setattr(self, self._names[0], values)

    def _arguments(self) -> tuple:
        return getattr(self, self._names[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._arguments()!r}"


class _Membership(_Several):
    def _accepts(self, value: Any) -> bool:
        return value in self._arguments()


class IsNull(_Nullness):
    """Equal to what is null: falsy (0 and "" too), NaN, NaT or pandas.NA.

    Examples
    --------
    >>> IsNull() == 0, IsNull() == float("nan"), IsNull() == "a"
    (True, True, False)
    """


class NotNull(_Nullness):
    """Equal to all that `IsNull` is not equal to.

    Examples
    --------
    >>> NotNull() == "a", NotNull() == 0, NotNull() == float("nan")
    (True, False, False)
    """

    _negated = True


class NotEqual(_SpecialValue):
    """Equal to all but one value.

    Parameters
    ----------
    negated : object
        What a value must differ from.

    Examples
    --------
    >>> NotEqual(0) == "0", NotEqual(0) == 0
    (True, False)
    """

    _names = ("negated_",)
    _negated = True

    def __init__(self, negated: Any):
        self.negated_ = negated

    def _accepts(self, value: Any) -> bool:
        return self.negated_ == value


class GreaterOrEqual(_OrderComparison):
    """Equal to all from a bound upwards, once they are cast to the bound's type.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type.

    Examples
    --------
    >>> GreaterOrEqual(4) == 4, GreaterOrEqual(4) == "5", GreaterOrEqual(4) == "a"
    (True, True, False)
    """

    _compare = staticmethod(operator.ge)


class GreaterThan(_OrderComparison):
    """Equal to all above a bound, once they are cast to the bound's type.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type.

    Examples
    --------
    >>> GreaterThan(3) == 4, GreaterThan(3) == 3.7, GreaterThan(3.0) == 3.7
    (True, False, True)
    """

    _compare = staticmethod(operator.gt)


class LessOrEqual(_OrderComparison):
    """Equal to all up to a bound, once they are cast to the bound's type.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type.

    Examples
    --------
    >>> LessOrEqual("ses-05") == "ses-05", LessOrEqual("ses-05") == "ses-10"
    (True, False)
    """

    _compare = staticmethod(operator.le)


class LessThan(_OrderComparison):
    """Equal to all below a bound, once they are cast to the bound's type.

    Parameters
    ----------
    bound : object
        The bound; values are cast to its type.

    Examples
    --------
    >>> LessThan(7) == 5, LessThan(7) == 7, LessThan(7) == None
    (True, False, False)
    """

    _compare = staticmethod(operator.lt)


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

    _names = ("accepted_",)


class NotIn(_Membership):
    """Equal to all but the values given.

    Parameters
    ----------
    *values : object
        The values that do not pass.

    Examples
    --------
    >>> NotIn("LAION", "NSD") == "OOD", NotIn("LAION", "NSD") == "NSD"
    (True, False)
    """

    _names = ("rejected_",)
    _negated = True


class Contains(_Several):
    """Equal to each container, such as a string, that has all the items given.

    Parameters
    ----------
    *values : object
        Items that a container must have, all of them.

    Examples
    --------
    >>> Contains("OOD", "shape") == "shared_4rep_OOD_shape_a.png", Contains("a") == 10
    (True, False)
    """

    _names = ("must_be_contained_",)

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, Container) and all(
            _holds(value, item) for item in self._arguments()
        )


class NotContains(_Several):
    """Equal to each container, such as a string, that has none of the items given.

    Parameters
    ----------
    *values : object
        Items of which a container must have none.

    Examples
    --------
    >>> NotContains("OOD") == "shared_12rep_LAION_a.jpg", NotContains("OOD") == 10
    (True, False)
    """

    _names = ("must_not_be_contained_",)

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, Container) and not any(
            _holds(value, item) for item in self._arguments()
        )


class Pattern(_SpecialValue):
    r"""Equal to each string that a regular expression matches from its start.

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
    """

    _names = ("pattern_", "flags_")

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

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, str) and bool(
            re.match(self.pattern_, value, self.flags_)
        )

    def __repr__(self) -> str:
        return f"Pattern(pattern={self.pattern_!r}, flags={self.flags_})"


class ResultFilter:
    """A filter of records, or of the rows of a DataFrame.

    It passes what fulfils all of its terms and all of its tests. Filters combine with
    `AND`, `OR`, `XOR` and `NOT`, or ``&``, ``|``, ``^`` and ``~``; a combination
    keeps copies of its operands. Terms are read, set and removed as items.

    Parameters
    ----------
    query_terms : dict, optional
        Field -> value, or special value, that the field must equal. A list, tuple, set,
        range or 1-D array stands for `IsIn`.
    callable_filter : callable, optional
        A test: a function that tells of a record (a dict) whether it passes, or a
        filter, nilearn's too.
    **kwargs
        More terms, as ``field=value``.

    Attributes
    ----------
    query_terms_ : dict
        The terms.
    callable_filters_ : list of callable
        The tests.

    Raises
    ------
    InvalidQueryError
        If ``query_terms`` is no dict or ``callable_filter`` cannot be called.

    Notes
    -----
    Any null of a candidate is None to terms and functions: NaN, NaT, pandas.NA and a
    field that it lacks. So ``field=None`` takes what is null however a table stores
    it, and only that, while `IsNull` takes 0 and "" as well.

    Two filters are equal if they have the same terms and tests, in any order.

    Examples
    --------
    >>> often = ResultFilter(unique_or_shared="shared", n_reps=GreaterThan(4))
    >>> often({"unique_or_shared": "shared", "n_reps": 12})
    True
    >>> ResultFilter(session=["ses-01", "ses-02"]) & ~ResultFilter(n_reps=4)
    ResultFilter(session=IsIn('ses-01', 'ses-02')) & ~ResultFilter(n_reps=4)
    """

    def __init__(
        self,
        query_terms: Mapping[str, Any] | None = None,
        callable_filter: Test | None = None,
        **kwargs: Any,
    ):
        try:
            terms = dict({} if query_terms is None else query_terms, **kwargs)
        except (TypeError, ValueError, KeyError):
            raise InvalidQueryError(
                f"query_terms must be a dict (field -> value), not {query_terms!r}; "
                "a function or a filter is a callable_filter."
            ) from None
        self.query_terms_ = {name: _as_term(value) for name, value in terms.items()}
        self.callable_filters_: list[Test] = []
        if callable_filter is not None:
            self.add_filter(callable_filter)

    def __call__(self, candidate: Mapping[str, Any]) -> bool:
        """Tell whether a record passes."""
        for name, term in self.query_terms_.items():
            if not _same(term, _null_as_none(candidate.get(name))):
                return False
        if not self.callable_filters_:
            return True
        record = {name: _null_as_none(value) for name, value in candidate.items()}
        return all(test(record) for test in self.callable_filters_)

    def mask(self, df: pd.DataFrame) -> np.ndarray:
        """Tell which rows of a DataFrame pass, all at once.

        Parameters
        ----------
        df : pandas.DataFrame
            One row a candidate; a column that it lacks is null in all rows.

        Returns
        -------
        numpy.ndarray of bool, shape (len(df),)
            What the filter gives for each of ``df.to_dict("records")``.

        Examples
        --------
        >>> import pandas as pd
        >>> trials = pd.DataFrame({"n_reps": [12, 4, None], "run": [1, 2, 3]})
        >>> ResultFilter(n_reps=GreaterOrEqual(4)).mask(trials)
        array([ True,  True, False])
        """
        return self._mask(_Rows(df))

    def _mask(self, rows: _Rows) -> np.ndarray:
        """Tell which rows pass: terms first, then filters, functions last."""
        keep = rows.all()
        for name, term in self.query_terms_.items():
            keep = _narrowed(keep, rows.only(keep).match(name, term))
        functions = []
        for test in self.callable_filters_:
            if isinstance(test, (ResultFilter, _Combination)):
                keep = _narrowed(keep, test._mask(rows.only(keep)))
            else:
                functions.append(test)
        if functions:
            keep = _narrowed(keep, rows.only(keep).passing(functions))
        return keep

    def AND(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what passes both; the other may be a dict or callable."""
        return _combined("&", self, other_filter)

    def OR(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what passes one or both; see `AND`."""
        return _combined("|", self, other_filter)

    def XOR(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what passes just one; see `AND`."""
        return _combined("^", self, other_filter)

    def NOT(self) -> ResultFilter:  # noqa: N802
        """Return a filter of what does not pass."""
        return _combined("~", self)

    __and__, __or__, __xor__, __invert__ = AND, OR, XOR, NOT

    def __rand__(self, other: Any) -> ResultFilter:
        return _combined("&", other, self)

    def __ror__(self, other: Any) -> ResultFilter:
        return _combined("|", other, self)

    def __rxor__(self, other: Any) -> ResultFilter:
        return _combined("^", other, self)

    def __getitem__(self, item: str) -> Any:
        return self.query_terms_[item]

    def __setitem__(self, item: str, value: Any) -> None:
        self.query_terms_[item] = _as_term(value)

    def __delitem__(self, item: str) -> None:
        self.query_terms_.pop(item, None)

    def add_filter(self, callable_filter: Test) -> None:
        """Add a test, a function or a filter, that a candidate must pass too."""
        if not callable(callable_filter):
            raise InvalidQueryError(
                "callable_filter must be a function of one record or a filter, not "
                f"{callable_filter!r}; terms (field -> value) are query_terms."
            )
        self.callable_filters_.append(_ours(callable_filter))

    def __copy__(self) -> ResultFilter:
        new = type(self)(self.query_terms_)
        new.callable_filters_ = list(self.callable_filters_)
        return new

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResultFilter):
            return NotImplemented
        mine, theirs = list(_requirements(self)), list(_requirements(other))
        return _all_among(mine, theirs) and _all_among(theirs, mine)

    def __str__(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return _source(self)


@dataclass(frozen=True)
class _Combination:
    """One of ``& | ^ ~`` and the filters that it combines."""

    symbol: str
    operands: tuple[ResultFilter, ...]

    def __call__(self, record: Mapping[str, Any]) -> bool:
        first, last = self.operands[0], self.operands[-1]
        if self.symbol == "&":
            return first(record) and last(record)
        if self.symbol == "|":
            return first(record) or last(record)
        if self.symbol == "^":
            return first(record) != last(record)
        return not first(record)

    def _mask(self, rows: _Rows) -> np.ndarray:
        keep, last = self.operands[0]._mask(rows), self.operands[-1]
        if self.symbol == "&":
            keep = _narrowed(keep, last._mask(rows.only(keep)))
        elif self.symbol == "|":
            keep[~keep] = last._mask(rows.only(~keep))
        elif self.symbol == "^":
            keep ^= last._mask(rows)
        else:
            keep = ~keep
        return keep


def _combined(symbol: str, *operands: Any) -> ResultFilter:
    operands = tuple(as_filter(operand, f"operand of {symbol}") for operand in operands)
    return ResultFilter(callable_filter=_Combination(symbol, deepcopy(operands)))


def _requirements(node: Any) -> Iterator[Any]:
    """Yield terms, as pairs, and tests, through all that is joined by AND."""
    if isinstance(node, ResultFilter):
        yield from node.query_terms_.items()
        for test in node.callable_filters_:
            yield from _requirements(test)
    elif isinstance(node, _Combination) and node.symbol == "&":
        for operand in node.operands:
            yield from _requirements(operand)
    else:
        yield node


def _all_among(some: list, others: list) -> bool:
    return all(any(_alike(one, other) for other in others) for one in some)


def _source(node: Any, chain: str | None = None) -> str:
    """Return a filter or a test as source.

    In parentheses if it is of several parts, but not if it is all there is or if it
    stands first in a ``chain`` of operands that its own symbol joins.
    """
    parts: list[str] = []
    operands: Sequence[Test]
    if isinstance(node, _Combination):
        symbol, operands = node.symbol, node.operands
        if symbol == "~":
            return f"~{_source(operands[0], symbol)}"
    elif isinstance(node, ResultFilter):
        symbol, operands = "&", node.callable_filters_
        if node.query_terms_ or not operands:
            parts = [f"ResultFilter({_arguments_source(node.query_terms_)})"]
        elif len(operands) == 1:
            return _source(operands[0], chain)
    else:
        name = getattr(node, "__name__", None) or repr(node)
        return f"ResultFilter(callable_filter={name})"
    for operand in operands:
        parts.append(_source(operand, "" if parts else symbol))
    text = f" {symbol} ".join(parts)
    return text if len(parts) == 1 or chain in (None, symbol) else f"({text})"


def _arguments_source(terms: dict) -> str:
    for name in terms:
        if name in _RESERVED or keyword.iskeyword(name) or not str(name).isidentifier():
            return repr(terms)
    return ", ".join(f"{name}={term!r}" for name, term in terms.items())


def _ours(value: Any) -> Any:
    """Return nilearn's special value or filter as ours, anything else as it is."""
    kind = type(value)
    twin = globals().get(kind.__name__) if kind.__module__.startswith("nilearn.") else 0
    if twin is ResultFilter:
        filt = ResultFilter(value.query_terms_)
        for test in value.callable_filters_:
            if getattr(test, "__name__", None) != "_empty_filter":
                filt.add_filter(test)
        return filt
    if isinstance(twin, type) and issubclass(twin, _SpecialValue):
        special = twin.__new__(twin)
        vars(special).update(vars(value))
        return twin(*special._arguments())
    return value


def _as_term(value: Any) -> Any:
    """Return what a term means: a collection is `IsIn`, any null is None."""
    if isinstance(value, Set):
        try:
            value = sorted(value)
        except TypeError:
            value = sorted(value, key=repr)
    elif getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple, range)):
        return IsIn(*(_null_as_none(_ours(one)) for one in value))
    return _null_as_none(_ours(value))


def as_filter(value: Any, name: str = "filter") -> ResultFilter:
    """Return an argument as a filter.

    Parameters
    ----------
    value : None, dict, ResultFilter or callable
        None passes everything, a dict is terms. A filter, nilearn's too, and a
        function of one record are what they are.
    name : str, default="filter"
        The argument's name, for the error.

    Returns
    -------
    ResultFilter
        The filter.

    Raises
    ------
    InvalidQueryError
        If the value is none of these.

    Examples
    --------
    >>> as_filter({"roi": ["FFA1", "FFA2"]})
    ResultFilter(roi=IsIn('FFA1', 'FFA2'))
    """
    value = _ours(value)
    if isinstance(value, ResultFilter):
        return value
    if value is None or isinstance(value, Mapping):
        return ResultFilter(value)
    if callable(value):
        return ResultFilter(callable_filter=value)
    raise InvalidQueryError(
        f"{name} must be a dict of terms (field -> value), a ResultFilter, a function "
        f"of one record, or None, not {value!r}."
    )


def fields(filt: Test) -> set[str]:
    """Return the names of all fields in a filter's terms; not what functions look at.

    Examples
    --------
    >>> sorted(fields(ResultFilter(roi="FFA1") | ~ResultFilter(hemi="L")))
    ['hemi', 'roi']
    """
    if isinstance(filt, _Combination):
        return set().union(*map(fields, filt.operands))
    if isinstance(filt, ResultFilter):
        return set(filt.query_terms_).union(*map(fields, filt.callable_filters_))
    return set()


def admits(filt: Test, field: str, value: Any) -> bool:
    """Return False if it is certain that no record with this value of a field passes.

    Examples
    --------
    >>> early = ResultFilter(session=["ses-01", "ses-02"]) & (lambda record: True)
    >>> admits(early, "session", "ses-02"), admits(early, "session", "ses-03")
    (True, False)
    """
    if isinstance(filt, ResultFilter):
        terms = filt.query_terms_
        fits = field not in terms or _same(terms[field], _null_as_none(value))
        return fits and all(admits(t, field, value) for t in filt.callable_filters_)
    if isinstance(filt, _Combination) and filt.symbol in "&|":
        every_or_any = all if filt.symbol == "&" else any
        return every_or_any(admits(one, field, value) for one in filt.operands)
    return True


class _Rows:
    """Some rows of a DataFrame, read a column at a time."""

    def __init__(self, df: pd.DataFrame, chosen: np.ndarray | None = None):
        self._df = df
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._df) if self._chosen is None else len(self._chosen)

    def all(self) -> np.ndarray:
        import numpy as np

        return np.ones(len(self), dtype=bool)

    def only(self, keep: np.ndarray) -> _Rows:
        if keep.all():
            return self
        chosen = keep.nonzero()[0]
        return _Rows(self._df, chosen if self._chosen is None else self._chosen[chosen])

    def match(self, name: str, term: Any) -> np.ndarray:
        """Tell in which rows a term is fulfilled."""
        if name not in self._df:
            return self.all() & _same(term, None)
        values = self._column(name)
        if type(term).__module__ not in ("builtins", __name__):
            return _match_distinct(term, values)  # a user's own kind of value
        found = None
        if (wanted := _membership(term)) is not None:
            found = _match_numbers(wanted, values)
            if found is None:
                found = _match_strings(wanted, values)
            if found is not None and getattr(term, "_negated", False):
                found = ~found
        elif isinstance(term, _OrderComparison):
            found = _match_bound(term, values)
        return _match_distinct(term, values) if found is None else found

    def passing(self, functions: list[Test]) -> np.ndarray:
        """Tell which rows pass all functions."""
        names = list(dict.fromkeys(self._df.columns))
        columns = [_elements(self._column(name)) for name in names]
        rows = zip(*columns, strict=True)
        records = (dict(zip(names, row, strict=True)) for row in rows)
        if not names:
            records = ({} for _ in range(len(self)))
        return _filled(all(test(record) for test in functions) for record in records)

    def _column(self, name: str) -> Any:
        """Return a column as a numpy array, or as pandas' own where it has none."""
        import numpy as np

        column = self._df[name]
        if column.ndim == 2:  # columns of one name: the last, as in a dict
            column = self._df.iloc[:, (self._df.columns == name).nonzero()[0][-1]]
        has_numpy = isinstance(column.dtype, np.dtype) and column.dtype.kind not in "mM"
        values = column.to_numpy() if has_numpy else column.array
        return values if self._chosen is None else values.take(self._chosen)


def _narrowed(keep: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return which of the rows kept so far are also found among these."""
    if len(found) == len(keep):
        return found
    keep[keep] = found
    return keep


def _filled(hits: Iterable[bool]) -> np.ndarray:
    import numpy as np

    return np.fromiter(hits, dtype=bool)


def _elements(values: Any) -> list:
    """Return a column as `DataFrame.to_dict` does, but with None for any null."""
    import numpy as np

    return [
        v
        if type(v) in _NEVER_NA
        else _null_as_none(_native(v) if isinstance(v, np.generic) else v)
        for v in values.tolist()
    ]


def _native(value: np.generic) -> Any:
    import pandas as pd

    casts = {"b": bool, "i": int, "u": int, "f": float}
    casts |= {"M": pd.Timestamp, "m": pd.Timedelta}
    cast = casts.get(value.dtype.kind)
    return cast(value) if cast else value


def _membership(term: Any) -> tuple | None:
    """Return the plain values that a term asks for, or asks not for if it is negated.

    None if it asks for something else.
    """
    if not isinstance(term, _SpecialValue):
        wanted: tuple = (term,)
    elif isinstance(term, (_Membership, NotEqual)):
        wanted = term._arguments()
    elif isinstance(term, _Nullness):
        wanted = (0, None)  # what is null among numbers
    else:
        return None
    return wanted if _PLAIN.issuperset(map(type, wanted)) else None


def _match_numbers(wanted: tuple, values: Any) -> np.ndarray | None:
    """Find values in a column of numbers; None if it is not one."""
    import numpy as np

    if not _NUMERIC.fullmatch(str(values.dtype)):
        return None
    numbers, null = _numbers(values)
    hits = null if None in wanted else np.zeros(len(values), dtype=bool)
    for number in (_exact(value, numbers) for value in wanted):
        if number is not None:
            hits = hits | np.asarray((numbers == number) & ~null, dtype=bool)
    return hits


def _match_bound(term: _OrderComparison, values: Any) -> np.ndarray | None:
    """Compare numbers with a bound; None where numpy would not do as Python does."""
    import numpy as np

    bound = term.bound_
    if type(bound) not in (int, float) or not _NUMERIC.fullmatch(str(values.dtype)):
        return None
    numbers, null = _numbers(values, as_float=type(bound) is float)
    if _exact(bound, numbers) is None:
        return None
    if type(bound) is int and numbers.dtype.kind == "f":
        numbers, null = np.trunc(numbers), ~np.isfinite(numbers)
    return np.asarray(term._compare(numbers, bound) & ~null, dtype=bool)


def _numbers(values: Any, as_float: bool = False) -> tuple[Any, np.ndarray]:
    """Return a column's floats, or integers, and where it is null."""
    import numpy as np

    in_numpy = isinstance(values, np.ndarray)
    if as_float or values.dtype.kind == "f":
        if not in_numpy:
            values = values.to_numpy(dtype=float, na_value=np.nan)
        values = values.astype(float, copy=False)
        return values, np.isnan(values)
    if values.dtype.kind == "b":
        values = values.astype(np.int8 if in_numpy else "Int8")
    return values, np.zeros(len(values), dtype=bool) if in_numpy else values.isna()


def _exact(value: Any, numbers: Any) -> int | float | None:
    """Return a value as one of the column's numbers; None if none can equal it."""
    import numpy as np

    is_float = numbers.dtype.kind == "f"
    try:
        number = float(value) if is_float else int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if number != value:
        return None
    if is_float:
        return number
    limits = np.iinfo(getattr(numbers.dtype, "numpy_dtype", numbers.dtype))
    return number if limits.min <= number <= limits.max else None


def _match_strings(wanted: tuple, values: Any) -> np.ndarray | None:
    """Find strings in a column; None if these are not, or it has other than strings."""
    import numpy as np
    import pandas as pd

    if not all(type(value) is str for value in wanted):
        return None
    if isinstance(values.dtype, pd.StringDtype):
        if values.dtype.storage != "python":
            return values.isin(wanted)
        values = np.asarray(values)
    if values.dtype != object:
        return None
    with suppress(Exception):  # pandas.NA and arrays have no truth value
        if len(wanted) == 1:
            return np.equal(values, wanted[0])
    with suppress(TypeError):  # lists have no hash
        return _filled(map(frozenset(wanted).__contains__, values.tolist()))
    return None


def _match_distinct(term: Any, values: Any) -> np.ndarray:
    """Match a column's distinct values, or each if they may not be of one type."""
    import pandas as pd

    few = isinstance(values.dtype, (pd.StringDtype, pd.CategoricalDtype))
    if values.dtype == object:
        few = pd.api.types.infer_dtype(values, skipna=True) in _OF_ONE_TYPE
    if not few:
        return _filled(_same(term, value) for value in _elements(values))
    codes, distinct = pd.factorize(values, use_na_sentinel=False)
    return _filled(_same(term, value) for value in _elements(distinct))[codes]
