"""One session's betas, read in one pass: chosen trials at chosen voxels.

They come from the beta image, a volume at a time, or from the voxel store, some voxels
at a time; the numbers are the same, bit by bit. Values that are not finite ("holes")
are 0, and count in no statistic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.volumes import Header, iter_volumes, read_header, scaled

from .store import read_blocks
from .voxels import offsets_of

# Bytes copied at once from the store: few enough to be in a core's cache still, after
# they were searched for holes.
_COPIED = 2**21

Holes = dict[int, list[np.ndarray]]
"""Row -> the voxels where one of its trials is not finite, an array per trial."""


class RowOptions(NamedTuple):
    """How values become rows of the result."""

    standardize: str | None
    """None, "zscore" or "zscore_sample": each voxel over all of a session's trials."""
    average: bool
    """Whether a row is the average of several trials."""
    dtype: str


def read_session(
    source: str | Path,
    voxels: np.ndarray,
    volumes: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
    out: np.ndarray,
) -> Holes:
    """Read a session in one pass; add trial i to ``out[rows[i]]``.

    Parameters
    ----------
    source : str or Path
        The image, or the folder of its version in the voxel store.
    voxels : numpy.ndarray of int, shape (n_voxels,)
        Positions in a flat volume, the last axis varying fastest.
    volumes : numpy.ndarray of int, shape (n_trials,)
        The volume of each trial.
    rows : numpy.ndarray of int, shape (n_trials,)
        The row of each trial; that of several only where rows are averages.
    options : RowOptions
        How values become rows. Of averages, ``out`` gets the sums.
    out : numpy.ndarray, shape (n_rows, n_voxels)
        Zeros in these rows; others are not touched.

    Returns
    -------
    dict
        The holes of each row.
    """
    if isinstance(source, Path):
        if not (options.standardize or options.average):
            _copy_stored(read_blocks(source, voxels, _COPIED), volumes, rows, out)
            return {}
        holes: Holes = {}
        for columns, values in read_blocks(source, voxels):
            by_trial = np.array(values.T, dtype=options.dtype, order="C")
            block = out[:, columns]
            found = _add_volumes(enumerate(by_trial), volumes, rows, options, block)
            for row, positions in found.items():
                shifted = [position + columns.start for position in positions]
                holes.setdefault(row, []).extend(shifted)
        return holes
    header = read_header(source)
    # All of them, where statistics are.
    indices = (
        [*range(header.n_volumes)]
        if options.standardize
        else np.unique(volumes).tolist()
    )
    picked = read_voxels(header, voxels, indices, options.dtype)
    indexed = zip(indices, picked, strict=True)
    return _add_volumes(indexed, volumes, rows, options, out)


def _copy_stored(
    blocks: Iterable[tuple[slice, np.ndarray]],
    volumes: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
) -> None:
    """Copy stored values as they are, some voxels at a time; holes are 0."""
    taken, target = (
        # Consecutive ones as a slice, which needs no copy.
        slice(int(index[0]), int(index[-1]) + 1)
        if len(index) and (np.diff(index) == 1).all()
        else index
        for index in (volumes, rows)
    )
    for columns, values in blocks:
        block = values[:, taken]
        is_finite = np.isfinite(block)
        if not is_finite.all():
            block = np.where(is_finite, block, 0)
        out[target, columns] = block.T


def read_voxels(
    header: Header, voxels: np.ndarray, indices: Sequence[int], dtype: str
) -> Iterator[np.ndarray]:
    """Yield the values of voxels in volumes of an image, in one pass.

    Each is valid until the next one is read.

    Parameters
    ----------
    header : Header
        Of the image.
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.
    indices : sequence of int
        The volumes, increasing.
    dtype : str
        A floating point type.
    """
    offsets = offsets_of(voxels, header.shape)
    picked = np.empty(len(offsets), dtype=header.dtype)
    for volume in iter_volumes(header, indices):
        # In its default mode, numpy would copy `out`; the offsets are in range.
        np.take(volume, offsets, out=picked, mode="clip")
        yield scaled(header, picked, dtype)


def _add_volumes(
    indexed: Iterable[tuple[int, np.ndarray]],
    volumes: np.ndarray,
    rows: np.ndarray,
    options: RowOptions,
    out: np.ndarray,
) -> Holes:
    """Add volumes, whose memory is overwritten, to their rows; return the holes.

    The mean and the sum of squared deviations are gathered on the way by Welford's
    method in float64, as sums of squares would lose what is small beside the mean.
    """
    rows_of: dict[int, list[int]] = {}
    for index, row in zip(volumes.tolist(), rows.tolist(), strict=True):
        rows_of.setdefault(index, []).append(row)
    n_voxels = out.shape[1]
    mean, squares = np.zeros((2, n_voxels if options.standardize else 0))
    n_finite: Any = 0  # of each voxel, once they differ
    holes: Holes = {}
    for index, values in indexed:
        is_finite = np.isfinite(values)
        hole = None
        if not is_finite.all():
            hole = np.flatnonzero(~is_finite).astype(np.int32)
            values[hole] = 0
        for row in rows_of.get(index, ()):
            out[row] += values
            if hole is not None:
                holes.setdefault(row, []).append(hole)
        if options.standardize:
            n_finite = n_finite + (1 if hole is None else is_finite)
            deviation = values - mean
            if hole is not None:
                deviation[hole] = 0
            mean += deviation / np.maximum(n_finite, 1)
            deviation *= values - mean
            squares += deviation
    if options.standardize:
        n_free = n_finite - (options.standardize == "zscore_sample")
        scale = np.sqrt(squares / np.maximum(n_free, 1))
        scale[scale < np.finfo(np.float64).eps] = 1  # of constant voxels
        own, counts = np.unique(rows, return_counts=True)
        for row, n_trials in zip(own.tolist(), counts.tolist(), strict=True):
            n_summed = count_finite(n_trials, holes.get(row), n_voxels)
            out[row] = (out[row] - n_summed * mean) / scale
    return holes


def count_finite(
    n_trials: int, holes: list[np.ndarray] | None, n_voxels: int
) -> int | np.ndarray:
    """Return how many of a row's trials are finite, at each voxel."""
    if not holes:
        return n_trials
    return n_trials - np.bincount(np.concatenate(holes), minlength=n_voxels)


# --- With dask ----------------------------------------------------------------------


def lazy_rows(sessions: Sequence[Any], voxels: np.ndarray, options: RowOptions) -> Any:
    """Return trials x voxels as a dask array.

    Parameters
    ----------
    sessions : sequence
        Each with its ``source``, ``volumes``, and ``positions`` of trials in the
        result.
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.
    options : RowOptions
        How values become rows; not averages.

    Raises
    ------
    InvalidQueryError
        If averages are asked for, or dask is not installed.
    """
    if options.average:
        raise InvalidQueryError(
            "as_dask=True gives single trials, as repeats are of several sessions; "
            "leave average_repeats out, and average what you compute"
        )
    try:
        import dask
        import dask.array
    except ImportError:
        raise InvalidQueryError(
            "as_dask=True needs dask: pip install 'dask[array]'"
        ) from None
    # Part of the graph once, not in each task. And none of the tasks is named by its
    # arguments: a cluster would take what it has of a file that changed since.
    shared = dask.delayed(voxels, pure=False, traverse=False)
    read = dask.delayed(_read_chunk, pure=False)
    stacked = dask.array.concatenate(
        [
            dask.array.from_delayed(
                read(session.source, shared, session.volumes, options),
                shape=(len(session.volumes), len(voxels)),
                dtype=options.dtype,
            )
            for session in sessions
        ]
    )
    order = np.concatenate([session.positions for session in sessions])
    if np.array_equal(order, np.arange(len(order))):
        return stacked
    return stacked[np.argsort(order)]


def _read_chunk(
    source: Any, voxels: np.ndarray, volumes: np.ndarray, options: RowOptions
) -> np.ndarray:
    out = np.zeros((len(volumes), len(voxels)), options.dtype)
    read_session(source, voxels, volumes, np.arange(len(volumes)), options, out)
    return out
