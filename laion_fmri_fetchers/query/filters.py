"""`ResultFilter` and its combinations: which records pass, and which rows of a table.

A filter passes what fulfils all of its parts: terms (``field == value``, where a
special value stands for many), combinations of other filters, and functions of a
record. It is asked in two ways, with the same answer::

    ResultFilter ─┬─ called ─▶ a record, a dict ─▶ each part in turn ──────▶ bool
                  └─ .mask ──▶ a DataFrame ─┬─ a term, per distinct value ─┬▶ bools
                                            └─ a function, per row ────────┘
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from laion_fmri_fetchers.exceptions import InvalidQueryError

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

_SYMBOLS = {"AND": "&", "OR": "|", "XOR": "^", "NOT": "~"}
_FUNCTION = "callable_filter"
_RESERVED = frozenset({"self", "query_terms", _FUNCTION})
# Kinds of columns, as pandas infers, of which equal values are of one type.
_OF_ONE_TYPE = frozenset(
    {"string", "integer", "floating", "boolean", "categorical", "datetime64", "empty"}
)


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
        if not isinstance(query_terms, (Mapping, type(None))):
            raise InvalidQueryError(
                f"query_terms must be a dict (field -> value), not {query_terms!r}; "
                "a function or a filter is a callable_filter."
            )
        terms = {**(query_terms or {}), **kwargs}
        self.query_terms_ = {name: as_term(value) for name, value in terms.items()}
        self.callable_filters_: list[Test] = []
        if callable_filter is not None:
            self.add_filter(callable_filter)

    def __call__(self, candidate: Mapping[str, Any]) -> bool:
        """Return whether a record passes."""
        for field, term in self.query_terms_.items():
            if not equals(term, null_as_none(candidate.get(field))):
                return False
        if not self.callable_filters_:
            return True
        record = {field: null_as_none(value) for field, value in candidate.items()}
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
        if not df.columns.is_unique:  # of columns with one name the last, as in a dict
            df = df.loc[:, ~df.columns.duplicated(keep="last")]
        for field, term in terms_of(self):
            if isinstance(term, OrderComparison):
                check_comparison(term, field, values_of(field, df))
        return _mask(self, df)

    def AND(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what both pass; the other may be a dict or a function."""
        return _combined("AND", self, other_filter)

    def OR(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what at least one passes; see `AND`."""
        return _combined("OR", self, other_filter)

    def XOR(self, other_filter: Any) -> ResultFilter:  # noqa: N802
        """Return a filter of what exactly one passes; see `AND`."""
        return _combined("XOR", self, other_filter)

    def NOT(self) -> ResultFilter:  # noqa: N802
        """Return a filter of what this one does not pass."""
        return _combined("NOT", self)

    __and__ = __rand__ = AND
    __or__ = __ror__ = OR
    __xor__ = __rxor__ = XOR
    __invert__ = NOT

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
        if hasattr(callable_filter, "query_terms_"):  # nilearn's filters become ours
            callable_filter = as_filter(callable_filter)
        self.callable_filters_.append(callable_filter)

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
        return _tree(self, to_plain)

    def __copy__(self) -> ResultFilter:
        # Not a deep copy: a function may be a method of an object with a lock or an
        # open file, or of one that gathers what its owner reads.
        new = type(self)(self.query_terms_)
        new.callable_filters_ = [
            copy(test) if isinstance(test, ResultFilter) else test
            for test in self.callable_filters_
        ]
        return new

    def __hash__(self) -> int:
        # Terms may change while a filter is in a set, so that they cannot count.
        return hash(ResultFilter)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResultFilter):
            return NotImplemented
        mine, theirs = ([*parts_of(f, is_deep=False)] for f in (self, other))
        return _are_among(mine, theirs) and _are_among(theirs, mine)

    def __bool__(self) -> bool:
        raise InvalidQueryError(
            "A filter has no truth value, so `and`, `or` and `not` cannot combine it; "
            "combine filters with &, | and ~"
        )

    def __repr__(self) -> str:
        return _source(_tree(self, lambda term: term))


@dataclass(frozen=True)
class Combination:
    """Filters of which one must pass (OR), only one (XOR), or none (NOT), as a test."""

    word: str
    operands: tuple[ResultFilter, ...]

    def __call__(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record passes."""
        answers = (operand(record) for operand in self.operands)
        if self.word == "OR":
            return any(answers)
        return sum(answers) == (1 if self.word == "XOR" else 0)


def _combined(word: str, *operands: Any) -> ResultFilter:
    """Return a filter that combines copies of its operands."""
    name = f"operand of {_SYMBOLS[word]}"
    filters = [copy(as_filter(operand, name)) for operand in operands]
    new = ResultFilter()
    new.callable_filters_ += (
        filters if word == "AND" else [Combination(word, tuple(filters))]
    )
    return new


def _mask(test: Test, df: pd.DataFrame) -> np.ndarray:
    """Return which rows pass a test, each asked for what those before it left open."""
    import numpy as np

    rows = np.ones(len(df), dtype=bool)
    if isinstance(test, ResultFilter):
        for field, term in test.query_terms_.items():
            rows &= _matches(term, field, df)
        for each in test.callable_filters_:
            rows[rows] = _mask(each, df if rows.all() else df[rows])
    elif isinstance(test, Combination):
        last = test.operands[-1]
        rows = _mask(test.operands[0], df)
        if test.word == "NOT":
            rows = ~rows
        elif test.word == "OR":
            rows[~rows] = _mask(last, df[~rows])
        else:
            rows ^= _mask(last, df)
    else:
        # By column: to box and check each cell takes five times as long.
        columns = [
            df[name].astype(object).where(df[name].notna(), None).tolist()
            for name in df
        ]
        records = zip(*columns, strict=True) if columns else [()] * len(df)
        rows[:] = [bool(test(dict(zip(df, cells, strict=True)))) for cells in records]
    return rows


def _matches(term: Any, field: str, df: pd.DataFrame) -> Any:
    """Return which rows of a DataFrame fulfil a term, asked once per distinct value."""
    import numpy as np

    if field not in df:
        return equals(term, None)
    keys, values = _distinct(df, field)
    answers = {key: equals(term, value) for key, value in values.items()}
    return np.fromiter(map(answers.__getitem__, keys), bool, len(df))


def _distinct(df: pd.DataFrame, field: str) -> tuple[Sequence, dict[Any, Any]]:
    """Return a key for each row of a column, and the value of each key, null as None.

    On the labels of all trials, a dict is twice as fast as `pandas.factorize`.
    """
    import pandas as pd

    if pd.api.types.infer_dtype(df[field], skipna=True) in _OF_ONE_TYPE:
        keys: Sequence = df[field].tolist()
        return keys, {key: null_as_none(key) for key in dict.fromkeys(keys)}
    # Each row by itself: lists have no hash, and 1, 1.0 and True have one.
    # As objects, or pandas before 3 gives timedelta64, whose 0 equals False.
    values = enumerate(df[[field]].astype(object).to_dict("list")[field])
    return range(len(df)), {row: null_as_none(value) for row, value in values}


def check_comparison(term: Any, field: str, values: Iterable) -> None:
    """Raise InvalidQueryError for a bound that no value of its field compares with."""
    # A user's own comparison may compare in another way.
    is_own = type(term) in SPECIAL_VALUES.values()
    if not (is_own and isinstance(term, OrderComparison)):
        return
    values = [value for value in values if value is not None]
    (bound,) = term.arguments
    # The beginning of an ISO date, such as a year, compares as text does.
    is_odd_text = isinstance(bound, str) and not re.match(r"\d{4}(-|$)", bound)
    if values and is_odd_text and all(map(as_utc, values)):
        raise InvalidQueryError(
            f"{field} is a date, such as {values[0]!r}, and is compared with "
            f"{bound!r}; write the date as in '2026-09-28'"
        )
    if values and all(term.accepts(value) is None for value in values):
        raise InvalidQueryError(
            f"{field} cannot be compared with {term!r}: it is "
            f"{type(values[0]).__name__}, such as {values[0]!r}, and the bound is "
            f"{type(bound).__name__}"
        )


def parts_of(test: Test, *, is_deep: bool = True) -> Iterator[Any]:
    """Yield the terms of a filter, as pairs, and its functions.

    Those of its combinations, too, or if not ``is_deep`` these as they are: then all
    that is yielded must be fulfilled.
    """
    if isinstance(test, ResultFilter):
        yield from test.query_terms_.items()
        for each in test.callable_filters_:
            yield from parts_of(each, is_deep=is_deep)
    elif is_deep and isinstance(test, Combination):
        for operand in test.operands:
            yield from parts_of(operand)
    else:
        yield test


def _are_among(parts: list, others: list) -> bool:
    return all(any(are_same(part, other) for other in others) for part in parts)


def _tree(test: Test, leaf: Callable[[Any], Any]) -> dict[str, Any]:
    """Return terms, made ``leaf`` each, and tests as dicts, see `to_dict`."""
    if isinstance(test, Combination):
        return {test.word: [_tree(each, leaf) for each in test.operands]}
    if not isinstance(test, ResultFilter):
        return {_FUNCTION: getattr(test, "__name__", None) or repr(test)}
    terms = {field: leaf(term) for field, term in test.query_terms_.items()}
    parts = [terms] if terms else []
    for part in (_tree(each, leaf) for each in test.callable_filters_):
        parts += part["AND"] if [*part] == ["AND"] else [part] if part else []
    return {"AND": parts} if len(parts) > 1 else (parts or [{}])[0]


def _source(tree: dict[str, Any], is_nested: bool = False) -> str:
    """Return a filter as Python source."""
    word, content = next(iter(tree.items()), ("", None))
    if word == _FUNCTION and len(tree) == 1:
        return f"ResultFilter({_FUNCTION}={content})"
    if not (word in _SYMBOLS and isinstance(content, list)):
        are_keywords = all(
            str(name).isidentifier() and not keyword.iskeyword(name) for name in tree
        )
        if not are_keywords or not _RESERVED.isdisjoint(tree):
            return f"ResultFilter({tree!r})"
        terms = ", ".join(f"{name}={term!r}" for name, term in tree.items())
        return f"ResultFilter({terms})"
    texts = [_source(part, is_nested=True) for part in content]
    if word == "NOT":
        return f"~{texts[0]}"
    text = f" {_SYMBOLS[word]} ".join(texts)
    return f"({text})" if is_nested else text


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
    if isinstance(value, ResultFilter):
        return value
    if hasattr(value, "query_terms_"):  # nilearn's
        new = ResultFilter(value.query_terms_)
        for test in value.callable_filters_:
            if getattr(test, "__name__", None) != "_empty_filter":
                new.add_filter(test)
        return new
    if value is None or isinstance(value, Mapping):
        terms = dict(value or {})
        word, content = next(iter(terms.items())) if len(terms) == 1 else ("", None)
        if word == _FUNCTION:
            raise InvalidQueryError(
                f"{name} was saved with the name of the function {content} alone; pass "
                "the function itself."
            )
        if word in _SYMBOLS and isinstance(content, list) and content:
            first, *others = [as_filter(part, name) for part in content]
            combine = getattr(ResultFilter, word)
            return ~first if word == "NOT" else reduce(combine, others, first)
        return ResultFilter({f: from_plain(term) for f, term in terms.items()})
    if callable(value):
        return ResultFilter(callable_filter=value)
    raise InvalidQueryError(
        f"{name} must be a dict of terms (field -> value), a ResultFilter, a function "
        f"of one record, or None, not {value!r}."
    )


def terms_of(filt: ResultFilter) -> list[tuple[str, Any]]:
    """Return all terms of a filter, of its combinations too: fields and values.

    Examples
    --------
    >>> terms_of(ResultFilter(roi="FFA1") | ~ResultFilter(hemi="L"))
    [('roi', 'FFA1'), ('hemi', 'L')]
    """
    return [part for part in parts_of(filt) if isinstance(part, tuple)]


def fields(filt: ResultFilter) -> set[str]:
    """Return the fields of all terms of a filter; functions may look at others."""
    return {field for field, _ in terms_of(filt)}


def has_functions(filt: ResultFilter) -> bool:
    """Return whether functions are among the tests of a filter.

    Examples
    --------
    >>> has_functions(ResultFilter(run=1)), has_functions(~as_filter(bool))
    (False, True)
    """
    return not all(isinstance(part, tuple) for part in parts_of(filt))


def is_empty(filt: ResultFilter) -> bool:
    """Return whether a filter passes everything."""
    return filt == ResultFilter()


def values_of(field: str, among: Any) -> list:
    """Return the values of a field among candidates, null as None."""
    if not hasattr(among, "columns"):
        return [null_as_none(record.get(field)) for record in among]
    return [*_distinct(among, field)[1].values()] if field in among else [None]


def admits(test: Test, field: str, value: Any) -> bool:
    """Return False if it is certain that no record with this value of a field passes.

    Examples
    --------
    >>> early = ResultFilter(session=["ses-01", "ses-02"]) & (lambda record: True)
    >>> admits(early, "session", "ses-02"), admits(early, "session", "ses-03")
    (True, False)
    """
    if isinstance(test, ResultFilter):
        terms, tests = test.query_terms_, test.callable_filters_
        fits = field not in terms or equals(terms[field], null_as_none(value))
        return fits and all(admits(each, field, value) for each in tests)
    if isinstance(test, Combination) and test.word == "OR":
        return any(admits(each, field, value) for each in test.operands)
    return True
