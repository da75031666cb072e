"""Ranges of bytes: joined, cut, and the gaps between them."""

from __future__ import annotations

from collections.abc import Iterable

Ranges = list[tuple[int, int]]


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges sorted, with those that touch joined.

    >>> merged([(8, 9), (0, 4), (4, 6)])
    [(0, 6), (8, 9)]
    """
    joined: Ranges = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def gaps(done: Ranges, start: int, stop: int) -> Ranges:
    """Return what of a range is not in merged ranges.

    >>> gaps([(0, 4), (6, 8)], 2, 10)
    [(4, 6), (8, 10)]
    """
    missing = []
    for a, b in [*done, (stop, stop)]:
        if start < min(a, stop):
            missing.append((start, min(a, stop)))
        start = max(start, b)
    return missing


def cut(ranges: Ranges, step: int) -> Ranges:
    """Cut ranges at the multiples of a step.

    >>> cut([(3, 10)], 4)
    [(3, 4), (4, 8), (8, 10)]
    """
    return [
        (max(a, start), min(a + step, stop))
        for start, stop in ranges
        for a in range(start - start % step, stop, step)
    ]


def length(ranges: Ranges) -> int:
    """Return the number of bytes in merged ranges."""
    return sum(stop - start for start, stop in ranges)
