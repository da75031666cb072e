"""One session's betas, read in one pass: chosen trials at chosen voxels.

They come from the beta image, a volume at a time, or from the voxel store, some voxels
at a time. Statistics over all trials are gathered on the way. Values that are not
finite are holes: they are 0 and count in no statistic::

    read_session ─┬─ _of_image ──▶ volumes.iter_volumes
                  ├─ _of_store ──▶ voxel_store.blocks_of
                  └─ _fill_rows ─┬─ _holes
                                 └─ _add_to, _mean_and_deviation
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

from .voxel_store import StoredSession, blocks_of
from .voxels import Signature, offsets_of

_COPIED = 2**21
"""Bytes copied at once: they are still in a core's cache after a look for holes."""


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


def pack_mask(mask: np.ndarray) -> bytes:
    """Return a mask in the form that `read_session` takes."""
    return zlib.compress(np.packbits(mask).tobytes(), 1)


def read_session(
    source: Signature | StoredSession,
    packed_mask: bytes,
    shape: tuple[int, int, int],
    volumes: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
    target: Target | None = None,
) -> SessionRows:
    """Read a session in one pass; add the volume of trial i to row rows[i].

    Parameters
    ----------
    source : Signature or StoredSession
        The image, or its voxels in the store. The version counts where joblib keeps
        results.
    packed_mask : bytes
        The voxels: a mask of the grid, packed to bits and compressed by zlib, as it
        may be sent to another process.
    shape : tuple of int
        Voxels of the grid, by axis.
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
    bits = np.frombuffer(zlib.decompress(packed_mask), dtype=np.uint8)
    mask = np.unpackbits(bits, count=math.prod(shape)).astype(bool)
    n_rows, n_voxels = rows.max() + 1, int(np.count_nonzero(mask))
    if target is None:
        target_rows = np.arange(n_rows)
        out = np.zeros((n_rows, n_voxels), dtype=options.dtype)
    else:
        out, target_rows = target
    returned = out if target is None else np.empty((0, n_voxels), dtype=options.dtype)
    if isinstance(source, StoredSession):
        places = source.values(np.flatnonzero(mask))
        if not (options.standardize or options.average):
            _copy_stored(places, volumes, out, target_rows[rows])
            return SessionRows(returned, {})
        blocks = _of_store(places, options)
    else:
        blocks = _of_image(source[0], mask, volumes, options)
    holes: dict[int, list[np.ndarray]] = {}
    for block in blocks:
        its_holes = _fill_rows(
            out[:, block.columns], target_rows, block, volumes, rows, options
        )
        for row, positions in its_holes.items():
            shifted = [p + block.columns.start for p in positions]
            holes.setdefault(row, []).extend(shifted)
    return SessionRows(returned, holes if options.average else {})


class _Block(NamedTuple):
    """Some voxels of a session."""

    columns: slice
    """Which of the voxels asked for."""
    volumes: Iterator[tuple[int, np.ndarray]]
    """Index and values of volumes, in their order; the values may be changed."""
    n_voxels: int


def _of_image(
    file: str, mask: np.ndarray, volumes: np.ndarray, options: RowOptions
) -> Iterator[_Block]:
    """Yield the values of an image, all voxels in a block; it is read only once."""
    header = read_header(file)
    offsets = offsets_of(np.flatnonzero(mask), header.shape)
    needed = np.unique(volumes).tolist()
    indices = range(header.n_volumes) if options.standardize else needed

    def read() -> Iterator[tuple[int, np.ndarray]]:
        picked = np.empty(len(offsets), dtype=header.dtype)
        for index, volume in zip(indices, iter_volumes(header, indices), strict=True):
            # numpy buffers `out` in its default mode; here offsets are in range.
            np.take(volume, offsets, out=picked, mode="clip")
            yield index, scaled(header, picked, options.dtype)

    yield _Block(slice(0, len(offsets)), read(), len(offsets))


def _of_store(
    places: list[tuple[np.ndarray, np.ndarray]], options: RowOptions
) -> Iterator[_Block]:
    """Yield stored values, some voxels at a time."""
    for columns, values in blocks_of(places):
        by_trial = np.array(values.T, dtype=options.dtype, order="C")
        yield _Block(columns, iter(enumerate(by_trial)), len(values))


def _copy_stored(
    places: list[tuple[np.ndarray, np.ndarray]],
    volumes: np.ndarray,
    out: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Copy stored values of volumes into rows as they are; holes are 0."""
    taken, target = _as_slice(volumes), _as_slice(rows)
    for columns, values in blocks_of(places, _COPIED):
        block = values[:, taken]
        is_finite = np.isfinite(block)
        if not is_finite.all():
            block = np.where(is_finite, block, 0)
        out[target, columns] = block.T


def _as_slice(indices: np.ndarray) -> np.ndarray | slice:
    """Return indices as a slice where they are consecutive, which needs no copy."""
    if len(indices) and (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def _fill_rows(
    out: np.ndarray,
    target_rows: np.ndarray,
    block: _Block,
    volumes: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
) -> dict[int, list[np.ndarray]]:
    """Add the volumes of a block to their rows, and return the rows' holes."""
    rows_of: dict[int, list[int]] = {}
    for volume_index, row in zip(volumes.tolist(), rows.tolist(), strict=True):
        rows_of.setdefault(volume_index, []).append(row)
    moments = np.zeros((3, block.n_voxels)) if options.standardize else None
    holes: dict[int, list[np.ndarray]] = {}
    for index, values in block.volumes:
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
            n_finite = count_finite(n_trials, holes.get(row), block.n_voxels)
            summed = out[target_rows[row]]
            out[target_rows[row]] = (summed - n_finite * mean) / deviation
    return holes


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
