"""`ResultFilter` and its combinations: which records pass, and which rows of a table.

A filter passes a candidate that fulfils all of its terms (``field == value``, where a
special value stands for many) and all of its tests (functions of a record; other
filters and their combinations are tests too). It is asked in two ways, with the same
answer::

    ResultFilter ─┬─ called ─▶ a record: a dict ─▶ terms, then tests ─────▶ bool
                  └─ .mask ──▶ a DataFrame ──────▶ columns.Rows ──────────▶ bool array
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from laion_fmri_fetchers.exceptions import InvalidQueryError

from .columns import Rows, narrowed
from .values import (
    SPECIAL_VALUES,
    OrderComparison,
    are_same,
    as_term,
    as_utc,
    equals,
    from_plain,
    null_as_none,
    to_plain,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Test = Callable[[dict], bool]

_RESERVED = frozenset({"self", "query_terms", "callable_filter"})
_WORD_OF_SYMBOL = {"&": "AND", "|": "OR", "^": "XOR", "~": "NOT"}
_FUNCTION = "callable_filter"
"""Key of a function's name in a filter as plain values."""


class ResultFilter:
    """A filter of records, or of the rows of a DataFrame.

    It passes candidates that fulfil all of its terms and all of its tests. Filters
    combine with `AND`, `OR`, `XOR` and `NOT`, or ``&``, ``|``, ``^`` and ``~``; a
    combination keeps copies of its operands. Terms are read, set and removed as items.

    Parameters
    ----------
    query_terms : dict, optional
        Field -> value, or special value, that the field must equal. A list, tuple, set,
        range, iterator, 1-D array or ``dict.values()`` stands for `IsIn`.
    callable_filter : callable, optional
        A test: a function of a record (a dict) that returns whether it passes, or a
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
        If ``query_terms`` is not a dict or ``callable_filter`` cannot be called.

    Notes
    -----
    Any null of a candidate is None to terms and functions: NaN, NaT, pandas.NA and a
    field that it lacks. So ``field=None`` takes nulls however a table stores them, and
    only these, while `IsNull` takes 0 and "" as well.

    Two filters are equal if they have the same terms and tests, in any order. Copies
    have terms of their own, but share functions.

    Examples
    --------
    >>> from laion_fmri_fetchers import GreaterThan
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
        self.query_terms_ = {name: as_term(value) for name, value in terms.items()}
        self.callable_filters_: list[Test] = []
        if callable_filter is not None:
            self.add_filter(callable_filter)

    def __call__(self, candidate: Mapping[str, Any]) -> bool:
        """Return whether a record passes."""
        for name, term in self.query_terms_.items():
            if not equals(term, null_as_none(candidate.get(name))):
                return False
        if not self.callable_filters_:
            return True
        record = {name: null_as_none(value) for name, value in candidate.items()}
        return all(test(record) for test in self.callable_filters_)

    def mask(self, df: pd.DataFrame) -> np.ndarray:
        """Return which rows of a DataFrame pass, all at once.

        Parameters
        ----------
        df : pandas.DataFrame
            One row per candidate; a missing column is null in all rows.

        Returns
        -------
        numpy.ndarray of bool, shape (len(df),)
            The answer of the filter for each of ``df.to_dict("records")``.

        Raises
        ------
        InvalidQueryError
            If a term such as `GreaterThan` can be compared with no value of its field.

        Examples
        --------
        >>> import pandas as pd
        >>> from laion_fmri_fetchers import GreaterOrEqual
        >>> trials = pd.DataFrame({"n_reps": [12, 4, None], "run": [1, 2, 3]})
        >>> ResultFilter(n_reps=GreaterOrEqual(4)).mask(trials)
        array([ True,  True, False])
        """
        rows = Rows(df)
        check_comparisons(self, rows.distinct)
        return self._mask(rows)

    def _mask(self, rows: Rows) -> np.ndarray:
        """Return which rows pass: terms first, then filters, functions last."""
        keep = rows.all()
        for name, term in self.query_terms_.items():
            keep = narrowed(keep, rows.only(keep).match(name, term))
        functions = []
        for test in self.callable_filters_:
            if isinstance(test, (ResultFilter, Combination)):
                keep = narrowed(keep, test._mask(rows.only(keep)))
            else:
                functions.append(test)
        if functions:
            keep = narrowed(keep, rows.only(keep).passing(functions))
        return keep

    def AND(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what both pass; the other may be a dict or a function."""
        return _combined("&", self, other_filter)

    def OR(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what at least one passes; see `AND`."""
        return _combined("|", self, other_filter)

    def XOR(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what exactly one passes; see `AND`."""
        return _combined("^", self, other_filter)

    def NOT(self) -> ResultFilter:  # noqa: N802
        """Return a filter of what this one does not pass."""
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
        self.query_terms_[item] = as_term(value)

    def __delitem__(self, item: str) -> None:
        self.query_terms_.pop(item, None)

    def add_filter(self, callable_filter: Test) -> None:
        """Add a test, a function or a filter, that a candidate must pass too."""
        if not callable(callable_filter):
            raise InvalidQueryError(
                "callable_filter must be a function of one record or a filter, not "
                f"{callable_filter!r}; terms (field -> value) are query_terms."
            )
        self.callable_filters_.append(_from_nilearn(callable_filter))

    def to_dict(self) -> dict[str, Any]:
        """Return the filter as plain values, which ``json.dumps`` takes.

        Fetchers take them as a filter again. Of a function, only the name is kept; a
        filter with functions is refused when it is asked again.

        Returns
        -------
        dict
            The terms, with special values as ``{name: arguments}``. Where there are
            tests, ``{"AND": [...]}`` of terms and tests, which may be ``"OR"``,
            ``"XOR"`` and ``"NOT"`` in turn.

        Examples
        --------
        >>> from laion_fmri_fetchers import GreaterThan
        >>> ResultFilter(run=[1, 2], n_reps=GreaterThan(4)).to_dict()
        {'run': [1, 2], 'n_reps': {'GreaterThan': [4]}}
        >>> (~ResultFilter(dataset="OOD")).to_dict()
        {'NOT': [{'dataset': 'OOD'}]}
        """
        terms = {name: to_plain(term) for name, term in self.query_terms_.items()}
        parts = [terms] if terms else []
        parts += [_plain_test(test) for test in self.callable_filters_]
        if len(parts) == 1:
            return parts[0]
        return {"AND": parts} if parts else {}

    def __copy__(self) -> ResultFilter:
        # Not a deep copy: a function may be a method of an object with a lock or an
        # open file, or of one that gathers what its owner reads.
        new = type(self)(self.query_terms_)
        new.callable_filters_ = [
            copy(test) if isinstance(test, (ResultFilter, Combination)) else test
            for test in self.callable_filters_
        ]
        return new

    def __hash__(self) -> int:
        # Terms may change while a filter is in a set, so that they cannot count.
        return hash(ResultFilter)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResultFilter):
            return NotImplemented
        mine, theirs = list(_requirements(self)), list(_requirements(other))
        return _all_among(mine, theirs) and _all_among(theirs, mine)

    def __bool__(self) -> bool:
        raise InvalidQueryError(
            "A filter has no truth value, so `and`, `or` and `not` cannot combine it; "
            "combine filters with &, | and ~"
        )

    def __repr__(self) -> str:
        return _source(self)


@dataclass(frozen=True)
class Combination:
    """One of ``& | ^ ~`` and the filters that it combines, as a test."""

    symbol: str
    operands: tuple[ResultFilter, ...]

    def __call__(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record passes."""
        first, last = self.operands[0], self.operands[-1]
        if self.symbol == "&":
            return first(record) and last(record)
        if self.symbol == "|":
            return first(record) or last(record)
        if self.symbol == "^":
            return first(record) != last(record)
        return not first(record)

    def __copy__(self) -> Combination:
        return Combination(self.symbol, tuple(map(copy, self.operands)))

    def _mask(self, rows: Rows) -> np.ndarray:
        keep, last = self.operands[0]._mask(rows), self.operands[-1]
        if self.symbol == "&":
            keep = narrowed(keep, last._mask(rows.only(keep)))
        elif self.symbol == "|":
            keep[~keep] = last._mask(rows.only(~keep))
        elif self.symbol == "^":
            keep ^= last._mask(rows)
        else:
            keep = ~keep
        return keep


def _combined(symbol: str, *operands: Any) -> ResultFilter:
    """Return a filter with one test, a combination of copies of its operands."""
    filters = (as_filter(operand, f"operand of {symbol}") for operand in operands)
    return ResultFilter(callable_filter=Combination(symbol, tuple(map(copy, filters))))


def _plain_test(test: Test) -> dict[str, Any]:
    """Return a test as plain values, see `ResultFilter.to_dict`."""
    if isinstance(test, ResultFilter):
        return test.to_dict()
    if isinstance(test, Combination):
        operands = [operand.to_dict() for operand in test.operands]
        return {_WORD_OF_SYMBOL[test.symbol]: operands}
    return {_FUNCTION: _name_of(test)}


def _from_plain(given: Mapping[str, Any], name: str) -> ResultFilter:
    """Return a filter of terms, or of what `ResultFilter.to_dict` returned."""
    if len(given) == 1:
        ((word, content),) = given.items()
        if word in _WORD_OF_SYMBOL.values() and isinstance(content, list) and content:
            filters = [as_filter(part, name) for part in content]
            if word == "NOT":
                return filters[0].NOT()
            return reduce(getattr(ResultFilter, word), filters)
        if word == _FUNCTION:
            raise InvalidQueryError(
                f"{name} was saved with the name of the function {content} alone; pass "
                "the function itself."
            )
    return ResultFilter({field: from_plain(term) for field, term in given.items()})


def _requirements(node: Any) -> Iterator[Any]:
    """Yield terms, as pairs, and tests, through all that is joined by AND."""
    if isinstance(node, ResultFilter):
        yield from node.query_terms_.items()
        for test in node.callable_filters_:
            yield from _requirements(test)
    elif isinstance(node, Combination) and node.symbol == "&":
        for operand in node.operands:
            yield from _requirements(operand)
    else:
        yield node


def _all_among(requirements: list, others: list) -> bool:
    return all(any(are_same(each, other) for other in others) for each in requirements)


def _source(node: Any, chain: str | None = None) -> str:
    """Return a filter or a test as source.

    Several parts are put in parentheses, unless they are the whole source, or stand
    first in a ``chain`` of operands that their own symbol joins.
    """
    parts: list[str] = []
    operands: Sequence[Test]
    if isinstance(node, Combination):
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
        return f"ResultFilter(callable_filter={_name_of(node)})"
    for operand in operands:
        parts.append(_source(operand, "" if parts else symbol))
    text = f" {symbol} ".join(parts)
    return text if len(parts) == 1 or chain in (None, symbol) else f"({text})"


def _arguments_source(terms: dict) -> str:
    for name in terms:
        if name in _RESERVED or keyword.iskeyword(name) or not str(name).isidentifier():
            return repr(terms)
    return ", ".join(f"{name}={term!r}" for name, term in terms.items())


def _name_of(function: Test) -> str:
    return getattr(function, "__name__", None) or repr(function)


def _from_nilearn(test: Test) -> Test:
    """Return a filter of nilearn as ours, any other test as it is."""
    kind = type(test)
    if kind.__name__ != "ResultFilter" or not kind.__module__.startswith("nilearn."):
        return test
    terms, tests = test.query_terms_, test.callable_filters_  # type: ignore[attr-defined]
    filt = ResultFilter(terms)
    for function in tests:
        if getattr(function, "__name__", None) != "_empty_filter":
            filt.add_filter(function)
    return filt


def as_filter(value: Any, name: str = "filter") -> ResultFilter:
    """Return an argument as a filter.

    Parameters
    ----------
    value : None, dict, ResultFilter or callable
        None passes everything; a dict holds terms, or was returned by
        `ResultFilter.to_dict`. A filter may be nilearn's, too.
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
    value = _from_nilearn(value)
    if isinstance(value, ResultFilter):
        return value
    if value is None:
        return ResultFilter()
    if isinstance(value, Mapping):
        return _from_plain(value, name)
    if callable(value):
        return ResultFilter(callable_filter=value)
    raise InvalidQueryError(
        f"{name} must be a dict of terms (field -> value), a ResultFilter, a function "
        f"of one record, or None, not {value!r}."
    )


def terms_of(filt: Test) -> list[tuple[str, Any]]:
    """Return all terms of a filter, of its combinations too: fields and values.

    Examples
    --------
    >>> terms_of(ResultFilter(roi="FFA1") | ~ResultFilter(hemi="L"))
    [('roi', 'FFA1'), ('hemi', 'L')]
    """
    if isinstance(filt, ResultFilter):
        terms, parts = list(filt.query_terms_.items()), filt.callable_filters_
    else:
        terms, parts = [], list(getattr(filt, "operands", ()))
    return terms + [term for part in parts for term in terms_of(part)]


def fields(filt: Test) -> set[str]:
    """Return the fields of all terms of a filter; functions may look at others."""
    return {field for field, _ in terms_of(filt)}


def values_of(field: str, among: Any) -> list:
    """Return the values of a field among candidates, null as None."""
    if hasattr(among, "columns"):
        return Rows(among).distinct(field)
    return [null_as_none(record.get(field)) for record in among]


def check_comparisons(filt: Test, values_of: Callable[[str], list]) -> None:
    """Raise InvalidQueryError for a bound that no value of its field compares with.

    Parameters
    ----------
    filt : ResultFilter
        The filter.
    values_of : callable
        Returns the values that candidates have of a field, null as None.
    """
    for field, term in terms_of(filt):
        # A user's own comparison may compare in another way.
        is_own = type(term) in SPECIAL_VALUES.values()
        if not (is_own and isinstance(term, OrderComparison)):
            continue
        values = [value for value in values_of(field) if value is not None]
        bound = term.bound_ if isinstance(term.bound_, str) else "2026"
        # The beginning of an ISO date, such as a year, compares as text does.
        if (
            not re.match(r"\d{4}(-|$)", bound)
            and values
            and all(as_utc(value) for value in values)
        ):
            raise InvalidQueryError(
                f"{field} is a date, such as {values[0]!r}, and is compared with "
                f"{term.bound_!r}; write the date as in '2026-09-28'"
            )
        if values and not any(map(term.can_compare, values)):
            raise InvalidQueryError(
                f"{field} cannot be compared with {term!r}: it is "
                f"{type(values[0]).__name__}, such as {values[0]!r}, and the bound is "
                f"{type(term.bound_).__name__}"
            )


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
        fits = field not in terms or equals(terms[field], null_as_none(value))
        return fits and all(admits(t, field, value) for t in filt.callable_filters_)
    if isinstance(filt, Combination) and filt.symbol in "&|":
        every_or_any = all if filt.symbol == "&" else any
        return every_or_any(admits(part, field, value) for part in filt.operands)
    return True


def is_empty(filt: ResultFilter) -> bool:
    """Return whether a filter passes everything."""
    return filt == ResultFilter()


def has_functions(filt: Test) -> bool:
    """Return whether functions are among the tests of a filter.

    Examples
    --------
    >>> has_functions(ResultFilter(run=1)), has_functions(~as_filter(bool))
    (False, True)
    """
    if isinstance(filt, Combination):
        return any(map(has_functions, filt.operands))
    if isinstance(filt, ResultFilter):
        return any(map(has_functions, filt.callable_filters_))
    return True
