"""A 4-D image in one pass: wanted voxels of wanted volumes, and statistics over all.

Values that are not finite are holes: they are 0 and count in no statistic.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np

from .volumes import iter_volumes, read_header, scaled
from .voxels import Signature, offsets_of


class How(NamedTuple):
    """What is done with values on the way into an array."""

    standardize: str | None
    """None, "zscore" or "zscore_sample": each voxel over all volumes."""
    average: bool
    """Whether a row takes several trials."""
    dtype: str


class Part(NamedTuple):
    """What was read of an image."""

    rows: np.ndarray
    """Sums over the trials of each row; empty where they were written elsewhere."""
    holes: dict[int, list[np.ndarray]]
    """Of rows that average: row -> the columns of its holes, an array a trial."""


def read_session(
    file: Signature,
    packed: bytes,
    volumes: np.ndarray,
    rows: np.ndarray,
    how: How,
    place: tuple[np.ndarray, np.ndarray] | None = None,
) -> Part:
    """Read an image in one pass; add the volume of trial i to row rows[i].

    The rows are new ones, or those of an array that ``place`` gives: the array, and
    where in it.
    """
    header = read_header(file[0])
    bits = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    mask = np.unpackbits(bits, count=math.prod(header.shape)).astype(bool)
    offsets = offsets_of(mask.reshape(header.shape))
    n_rows, n_columns = rows.max() + 1, len(offsets)
    if place is None:
        out, at = np.zeros((n_rows, n_columns), dtype=how.dtype), np.arange(n_rows)
    else:
        out, at = place

    rows_of: dict[int, list[int]] = {}
    for index, row in zip(volumes.tolist(), rows.tolist(), strict=True):
        rows_of.setdefault(index, []).append(row)
    wanted = range(header.n_volumes) if how.standardize else sorted(rows_of)
    moments = np.zeros((3, n_columns)) if how.standardize else None
    holes: dict[int, list[np.ndarray]] = {}
    picked = np.empty(n_columns, dtype=header.dtype)
    for volume, index in zip(iter_volumes(header, wanted), wanted, strict=True):
        np.take(volume, offsets, out=picked, mode="clip")
        values = scaled(header, picked, how.dtype)
        hole = _holes(values)
        values[hole] = 0
        for row in rows_of.get(index, ()):
            if how.average:
                out[at[row]] += values
            else:
                out[at[row]] = values
            if len(hole):
                holes.setdefault(row, []).append(hole)
        if moments is not None:
            _add_to(moments, values, hole)
    if moments is not None:
        mean, deviation = _mean_and_deviation(moments, how.standardize)
        for row, n_trials in enumerate(np.bincount(rows)):
            n_finite = count_finite(n_trials, holes.get(row), n_columns)
            out[at[row]] = (out[at[row]] - n_finite * mean) / deviation
    read = out if place is None else np.empty((0, n_columns), dtype=how.dtype)
    return Part(read, holes if how.average else {})


def _holes(values: np.ndarray) -> np.ndarray:
    """Return where values are not finite."""
    finite = np.isfinite(values)
    found = () if finite.all() else np.flatnonzero(~finite)
    return np.array(found, dtype=np.int32)


def _add_to(moments: np.ndarray, values: np.ndarray, hole: np.ndarray) -> None:
    """Add a volume to count, mean and sum of squared deviations (after Welford)."""
    n_finite, mean, squares = moments
    n_finite += 1
    n_finite[hole] -= 1
    deviation = values - mean
    deviation[hole] = 0
    mean += deviation / np.maximum(n_finite, 1)
    deviation *= values - mean
    squares += deviation


def _mean_and_deviation(
    moments: np.ndarray, standardize: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return both of each voxel; a deviation of 0 as 1."""
    n_finite, mean, squares = moments
    n_free = n_finite - (standardize == "zscore_sample")
    deviation = np.sqrt(squares / np.maximum(n_free, 1))
    deviation[deviation < np.finfo(np.float64).eps] = 1
    return mean, deviation


def count_finite(
    n_trials: int, holes: list[np.ndarray] | None, n_columns: int
) -> int | np.ndarray:
    """Return of how many trials the columns of a row are finite."""
    if not holes:
        return n_trials
    return n_trials - np.bincount(np.concatenate(holes), minlength=n_columns)
