"""Filters on whole columns of a DataFrame, with the answers of a row-by-row loop.

A term is matched with a column in the fastest way that decides as Python does::

    Rows.match ─┬─ numbers, in numpy ──────── _match_numbers, _match_bound
                ├─ text, in numpy or a set ── _match_strings
                └─ anything else ──────────── _match_distinct: each distinct value,
                                              or each value where types may differ
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .values import (
    PLAIN_TYPES,
    SPECIAL_VALUES,
    Membership,
    NotEqual,
    Nullness,
    OrderComparison,
    SpecialValue,
    equals,
    null_as_none,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_NEVER_NULL = PLAIN_TYPES - {float}
_NUMERIC = re.compile(r"u?int(8|16|32|64)|float(16|32|64)|bool(ean)?", re.IGNORECASE)
_OF_ONE_TYPE = frozenset({"string", "integer", "boolean"})
"""Objects, as pandas infers, of which equal ones are of one type."""
_OWN_TYPES = frozenset(SPECIAL_VALUES.values())


class Rows:
    """Chosen rows of a DataFrame, or all of them, read one column at a time."""

    def __init__(self, df: pd.DataFrame, chosen: np.ndarray | None = None):
        self._df = df
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._df) if self._chosen is None else len(self._chosen)

    def all(self) -> np.ndarray:
        """Return a mask that keeps all rows."""
        import numpy as np

        return np.ones(len(self), dtype=bool)

    def only(self, keep: np.ndarray) -> Rows:
        """Return those of the rows that a mask keeps."""
        if keep.all():
            return self
        chosen = keep.nonzero()[0]
        return Rows(self._df, chosen if self._chosen is None else self._chosen[chosen])

    def match(self, name: str, term: Any) -> np.ndarray:
        """Return which rows fulfil a term."""
        if name not in self._df:
            return self.all() & equals(term, None)
        values = self._column(name)
        hits = None
        if type(term) in _OWN_TYPES or type(term).__module__ == "builtins":
            hits = _match_quickly(term, values)
        return _match_distinct(term, values) if hits is None else hits

    def passing(self, functions: list[Callable[[dict], bool]]) -> np.ndarray:
        """Return which rows pass all functions."""
        names = list(dict.fromkeys(self._df.columns))
        columns = [_elements(self._column(name)) for name in names]
        rows = zip(*columns, strict=True)
        records = (dict(zip(names, row, strict=True)) for row in rows)
        if not names:
            records = ({} for _ in range(len(self)))
        return _filled(all(test(record) for test in functions) for record in records)

    def distinct(self, name: str) -> list:
        """Return the values of a column, null as None, each once if they have hashes.

        Values that are equal but of other types, as 1 and True, count as one.
        """
        import numpy as np
        import pandas as pd

        if name not in self._df:
            return [None] * min(len(self), 1)
        values = self._column(name)
        with suppress(TypeError):  # lists have no hash
            # pd.unique makes integers of pandas' own dates, before pandas 3.
            is_numpy = isinstance(values, np.ndarray)
            values = pd.unique(values) if is_numpy else values.unique()
        return _elements(values)

    def _column(self, name: str) -> Any:
        """Return a column as a numpy array, or as pandas' own where it has none."""
        import numpy as np

        column = self._df[name]
        if column.ndim == 2:  # columns of one name: the last, as in a dict
            column = self._df.iloc[:, (self._df.columns == name).nonzero()[0][-1]]
        has_numpy = isinstance(column.dtype, np.dtype) and column.dtype.kind not in "mM"
        values = column.to_numpy() if has_numpy else column.array
        return values if self._chosen is None else values.take(self._chosen)


def narrowed(keep: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Return a mask narrowed by the hits among the rows that it keeps."""
    if len(hits) == len(keep):
        return hits
    keep[keep] = hits
    return keep


def _match_quickly(term: Any, values: Any) -> np.ndarray | None:
    """Match a column in numpy; None where numpy would not decide as Python does."""
    if isinstance(term, OrderComparison):
        return _match_bound(term, values)
    accepted = _plain_values(term)
    if accepted is None:
        return None
    hits = _match_numbers(accepted, values)
    if hits is None:
        hits = _match_strings(accepted, values)
    if hits is not None and isinstance(term, SpecialValue) and term.is_negated:
        return ~hits
    return hits


def _filled(hits: Iterable[bool]) -> np.ndarray:
    import numpy as np

    return np.fromiter(hits, dtype=bool)


def _elements(values: Any) -> list:
    """Return a column as `DataFrame.to_dict` does, but with None for any null."""
    import numpy as np

    return [
        v
        if type(v) in _NEVER_NULL
        else null_as_none(_native(v) if isinstance(v, np.generic) else v)
        for v in values.tolist()
    ]


def _native(value: np.generic) -> Any:
    import pandas as pd

    casts = {"b": bool, "i": int, "u": int, "f": float}
    casts |= {"M": pd.Timestamp, "m": pd.Timedelta}
    cast = casts.get(value.dtype.kind)
    return cast(value) if cast else value


def _plain_values(term: Any) -> tuple | None:
    """Return the plain values that a term accepts, or refuses if it is negated.

    None if it is of another kind.
    """
    if not isinstance(term, SpecialValue):
        accepted: tuple = (term,)
    elif isinstance(term, (Membership, NotEqual)):
        accepted = term.arguments_of(term)
    elif isinstance(term, Nullness):
        accepted = (0, None)  # the nulls among numbers
    else:
        return None
    return accepted if PLAIN_TYPES.issuperset(map(type, accepted)) else None


def _match_numbers(accepted: tuple, values: Any) -> np.ndarray | None:
    """Find values in a column of numbers; None if the column has others."""
    import numpy as np

    if not _NUMERIC.fullmatch(str(values.dtype)):
        return None
    numbers, null = _numbers(values)
    hits = null if None in accepted else np.zeros(len(values), dtype=bool)
    for number in (_exact(value, numbers) for value in accepted):
        if number is not None:
            hits = hits | np.asarray((numbers == number) & ~null, dtype=bool)
    return hits


def _match_bound(term: OrderComparison, values: Any) -> np.ndarray | None:
    """Compare numbers with a bound; None where numpy and Python may disagree."""
    import numpy as np

    bound = term.bound_
    if type(bound) not in (int, float) or not _NUMERIC.fullmatch(str(values.dtype)):
        return None
    numbers, null = _numbers(values, as_float=type(bound) is float)
    if _exact(bound, numbers) is None:
        return None
    if type(bound) is int and numbers.dtype.kind == "f":
        numbers, null = np.trunc(numbers), ~np.isfinite(numbers)
    return np.asarray(term.compare(numbers, bound) & ~null, dtype=bool)


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
    """Return a value in the column's type; None if it has no equal there."""
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


def _match_strings(accepted: tuple, values: Any) -> np.ndarray | None:
    """Find strings in a column; None where values or column are not strings alone."""
    import numpy as np
    import pandas as pd

    if not all(type(value) is str for value in accepted):
        return None
    if isinstance(values.dtype, pd.StringDtype):
        if values.dtype.storage != "python":
            return values.isin(accepted)
        values = np.asarray(values)
    if values.dtype != object:
        return None
    with suppress(Exception):  # pandas.NA and arrays have no truth value
        if len(accepted) == 1:
            return np.equal(values, accepted[0])
    with suppress(TypeError):  # lists have no hash
        return _filled(map(frozenset(accepted).__contains__, values.tolist()))
    return None


def _match_distinct(term: Any, values: Any) -> np.ndarray:
    """Match a column's distinct values, or each if they may not be of one type."""
    import pandas as pd

    few = isinstance(values.dtype, (pd.StringDtype, pd.CategoricalDtype))
    if values.dtype == object:
        few = pd.api.types.infer_dtype(values, skipna=True) in _OF_ONE_TYPE
    if not few:
        return _filled(equals(term, value) for value in _elements(values))
    codes, distinct = pd.factorize(values, use_na_sentinel=False)
    return _filled(equals(term, value) for value in _elements(distinct))[codes]
