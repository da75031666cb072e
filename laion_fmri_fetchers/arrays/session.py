"""One session's beta image, read in one pass: chosen volumes at chosen voxels.

Statistics over all volumes are gathered on the way. Values that are not finite are
holes: they are 0 and count in no statistic::

    read_session ─┬─ volumes.iter_volumes
                  ├─ _holes
                  └─ _add_to, _mean_and_deviation
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np

from .volumes import iter_volumes, read_header, scaled
from .voxels import Signature, offsets_of


class RowOptions(NamedTuple):
    """How values become rows of the result."""

    standardize: str | None
    """None, "zscore" or "zscore_sample": each voxel over all volumes."""
    average: bool
    """Whether a row is the average of several trials."""
    dtype: str


class Target(NamedTuple):
    """Memory that the reader of a session shares with the caller."""

    array: np.ndarray
    """The result, of all sessions."""
    rows: np.ndarray
    """The rows of ``array`` that are those of the session."""


class SessionRows(NamedTuple):
    """The rows read from a session."""

    rows: np.ndarray
    """Sums over the trials of each row; empty where they were written to a `Target`."""
    holes: dict[int, list[np.ndarray]]
    """Of rows that are averages: row -> the voxels of its holes, an array per trial."""


def read_session(
    file: Signature,
    packed_mask: bytes,
    volumes: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
    target: Target | None = None,
) -> SessionRows:
    """Read an image in one pass; add the volume of trial i to row rows[i].

    Parameters
    ----------
    file : Signature
        The image. The version counts where joblib keeps results.
    packed_mask : bytes
        The voxels: a mask of the grid, packed to bits and compressed by zlib, as it
        may be sent to another process.
    volumes : numpy.ndarray of int, shape (n_trials,)
        The volume of each trial.
    rows : numpy.ndarray of int, shape (n_trials,)
        The row of each trial, from 0.
    options : RowOptions
        How values become rows.
    target : Target, optional
        Where to write; None: rows are returned.

    Returns
    -------
    SessionRows
    """
    header = read_header(file[0])
    bits = np.frombuffer(zlib.decompress(packed_mask), dtype=np.uint8)
    mask = np.unpackbits(bits, count=math.prod(header.shape)).astype(bool)
    offsets = offsets_of(mask.reshape(header.shape))
    n_rows, n_voxels = rows.max() + 1, len(offsets)
    if target is None:
        target_rows = np.arange(n_rows)
        out = np.zeros((n_rows, n_voxels), dtype=options.dtype)
    else:
        out, target_rows = target

    rows_of: dict[int, list[int]] = {}
    for volume_index, row in zip(volumes.tolist(), rows.tolist(), strict=True):
        rows_of.setdefault(volume_index, []).append(row)
    indices = range(header.n_volumes) if options.standardize else sorted(rows_of)
    moments = np.zeros((3, n_voxels)) if options.standardize else None
    holes: dict[int, list[np.ndarray]] = {}
    picked = np.empty(n_voxels, dtype=header.dtype)
    for index, volume in zip(indices, iter_volumes(header, indices), strict=True):
        # numpy buffers `out` in its default mode; here offsets are always in range.
        np.take(volume, offsets, out=picked, mode="clip")
        values = scaled(header, picked, options.dtype)
        hole = _holes(values)
        values[hole] = 0
        for row in rows_of.get(index, ()):
            if options.average:
                out[target_rows[row]] += values
            else:
                out[target_rows[row]] = values
            if len(hole):
                holes.setdefault(row, []).append(hole)
        if moments is not None:
            _add_to(moments, values, hole)
    if moments is not None:
        mean, deviation = _mean_and_deviation(moments, options.standardize)
        for row, n_trials in enumerate(np.bincount(rows)):
            n_finite = count_finite(n_trials, holes.get(row), n_voxels)
            summed = out[target_rows[row]]
            out[target_rows[row]] = (summed - n_finite * mean) / deviation
    returned = out if target is None else np.empty((0, n_voxels), dtype=options.dtype)
    return SessionRows(returned, holes if options.average else {})


def _holes(values: np.ndarray) -> np.ndarray:
    """Return the positions of values that are not finite."""
    finite = np.isfinite(values)
    positions = () if finite.all() else np.flatnonzero(~finite)
    return np.array(positions, dtype=np.int32)


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
    """Return mean and deviation of each voxel; a deviation of 0 as 1."""
    n_finite, mean, squares = moments
    n_free = n_finite - (standardize == "zscore_sample")
    deviation = np.sqrt(squares / np.maximum(n_free, 1))
    deviation[deviation < np.finfo(np.float64).eps] = 1
    return mean, deviation


def count_finite(
    n_trials: int, holes: list[np.ndarray] | None, n_voxels: int
) -> int | np.ndarray:
    """Return the number of trials of a row that are finite, for each voxel."""
    if not holes:
        return n_trials
    return n_trials - np.bincount(np.concatenate(holes), minlength=n_voxels)
