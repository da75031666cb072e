"""Rows of a model file, read by HTTP ranges into rows of an array."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.objects import RemoteObject
    from laion_fmri_fetchers.remote.ranges import RangeReader

# Bytes between two rows that are read with them rather than asked for separately: as
# many as a line of 4 MB/s and connection moves in 60 ms. A number that is measured
# would make what was announced wrong.
_WORTH = 2**18
# Bytes between rows, as a share of the rows', that are read anyway; more only where
# there would be more ranges than this: four times the usual number of connections.
_MOST_UNUSED = 0.1
_MANY = 256

# Requests of a session at most where rows lie together: more connections at once are
# not faster on a fast line, but get in each other's way.
_MOST_PIECES = 16


def ranges_of_rows(rows: np.ndarray, row_size: int) -> list[tuple[int, int]]:
    """Return the ranges of rows to read, so that they arrive soonest.

    The bytes between two rows are read with them where that takes no longer than a
    request of their own, the smallest gaps first.

    Parameters
    ----------
    rows : numpy.ndarray of int
        Increasing.
    row_size : int
        Bytes.

    Examples
    --------
    >>> ranges_of_rows(np.array([0, 1, 3, *range(90, 99)]), 100)
    [(0, 4), (90, 99)]
    >>> ranges_of_rows(np.empty(0, int), 100)
    []
    """
    if not len(rows):
        return []
    gaps = np.diff(rows) - 1
    by_size = np.argsort(gaps, kind="stable")
    is_little = np.cumsum(gaps[by_size]) <= _MOST_UNUSED * len(rows)
    n_left = np.arange(len(gaps), 0, -1)
    is_read = (is_little | (n_left > _MANY)) & (gaps[by_size] * row_size <= _WORTH)
    is_joined = gaps == 0
    is_joined[by_size[is_read]] = True
    edges = np.flatnonzero(~is_joined)
    starts, stops = rows[np.append(0, edges + 1)], rows[np.append(edges, -1)] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def read_rows(
    reader: RangeReader,
    target: RemoteObject,
    offset: int,
    rows: np.ndarray,
    values: np.ndarray,
    places: np.ndarray,
) -> None:
    """Read rows of an object into rows of an array.

    Parameters
    ----------
    reader : RangeReader
        Reads the object.
    target : RemoteObject
        The object.
    offset : int
        Where its row 0 begins.
    rows : numpy.ndarray of int
        Increasing.
    values : numpy.ndarray of float32, shape (n, n_trials)
        The array; contiguous.
    places : numpy.ndarray of int
        The row of the array that each row goes to.

    Raises
    ------
    Fault
        If the object cannot be read.
    """
    from laion_fmri_fetchers.remote.ranges import SMALLEST_PIECE, split

    size = values.strides[0]
    ranges = np.array(ranges_of_rows(rows, size)).reshape(-1, 2) * size + offset
    step = max(int(np.diff(ranges).sum()) // _MOST_PIECES, SMALLEST_PIECE)
    pieces = [
        piece for start, stop in ranges.tolist() for piece in split(start, stop, step)
    ]
    # Rows side by side in both are copied at once.
    is_new = (np.diff(rows, prepend=-2) != 1) | (np.diff(places, prepend=-2) != 1)
    firsts = np.flatnonzero(is_new)
    lengths = np.diff(firsts, append=len(rows)) * size
    starts = offset + rows[firsts] * size
    runs = np.column_stack([starts, starts + lengths, places[firsts] * size]).tolist()
    stops = (starts + lengths).tolist()
    content = values.data.cast("B")

    def copy(position: int, chunk: memoryview) -> None:
        end = position + len(chunk)
        for i in range(bisect.bisect_right(stops, position), len(runs)):
            start, stop, place = runs[i]
            if start >= end:
                break
            a, b = max(position, start), min(end, stop)
            content[place + a - start : place + b - start] = chunk[
                a - position : b - position
            ]

    reader.read(target, pieces, copy)
