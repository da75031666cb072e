"""Sessions as a dask array, a chunk each, which is read when it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from laion_fmri_fetchers.exceptions import InvalidQueryError

from .session import RowOptions, read_session


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
