"""Sessions as a dask array, which reads them when it is computed.

lazy_rows ─▶ a chunk per session ─▶ session.read_session, by dask's workers
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from laion_fmri_fetchers.betas.store import StoredSession
from laion_fmri_fetchers.exceptions import InvalidQueryError

from .session import RowOptions, pack_mask, read_session
from .voxels import Signature


def lazy_rows(
    sources: Sequence[Signature | StoredSession],
    volumes: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    mask: np.ndarray,
    options: RowOptions,
) -> Any:
    """Return trials x voxels as a dask array with a chunk per session.

    Parameters
    ----------
    sources : sequence of Signature or StoredSession
        The sessions.
    volumes : sequence of numpy.ndarray of int
        The volumes of each session's trials.
    positions : sequence of numpy.ndarray of int
        The row of each of these trials in the result.
    mask : numpy.ndarray of bool
        The voxels, of the grid's shape.
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
    n_voxels, packed_mask = int(np.count_nonzero(mask)), pack_mask(mask)
    read = dask.delayed(_rows, pure=True)
    chunks = [
        dask.array.from_delayed(
            read(source, packed_mask, mask.shape, of_session, options),
            shape=(len(of_session), n_voxels),
            dtype=options.dtype,
        )
        for source, of_session in zip(sources, volumes, strict=True)
        if len(of_session)
    ]
    if not chunks:
        return dask.array.zeros((0, n_voxels), dtype=options.dtype)
    stacked = dask.array.concatenate(chunks)
    order = np.concatenate([rows for rows in positions if len(rows)])
    if np.array_equal(order, np.arange(len(order))):
        return stacked
    return stacked[np.argsort(order)]


def _rows(
    source: Signature | StoredSession,
    packed_mask: bytes,
    shape: tuple[int, int, int],
    volumes: np.ndarray,
    options: RowOptions,
) -> np.ndarray:
    rows = np.arange(len(volumes))
    return read_session(source, packed_mask, shape, volumes, rows, options).rows
