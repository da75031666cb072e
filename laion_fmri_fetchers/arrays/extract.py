"""A session's voxels from its beta image on disk: one pass, and into the store.

extract ─▶ volumes.iter_volumes ─▶ some volumes at a time ─▶ a new part
"""

from __future__ import annotations

import errno
import os
import threading

import numpy as np

from laion_fmri_fetchers.betas.voxels import offsets_of
from laion_fmri_fetchers.exceptions import CorruptImageError, NotCachedError
from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

from .model.session import Task
from .voxel_store import new_part

_BLOCK = 2**26
"""Bytes of volumes gathered before they are written: a voxel's trials lie side by side
in the store, and to write them one by one would be slow."""


def extract(
    task: Task, *, is_kept: bool = True, stop: threading.Event | None = None
) -> int:
    """Store voxels of a session, taken from its beta image.

    Parameters
    ----------
    task : Task
        What is lacking.
    is_kept : bool, default=True
        Whether the image stays on disk, so that a change of it is to be noticed.
    stop : threading.Event, optional
        Set where the work is to be given up.

    Returns
    -------
    int
        Trials of the session.

    Raises
    ------
    CorruptImageError
        If the image is damaged, or disagrees with its trial table.
    NotCachedError
        If it is not on disk.
    InterruptedError
        If the work was given up.
    """
    try:
        return _extract(task, is_kept, stop)
    except OSError as error:
        # ESTALE: on NFS, another machine removed it while it was read.
        is_lost = isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE
        if not is_lost or os.path.exists(task.image_file):
            raise
        raise NotCachedError(f"{task.image_file} is not on disk.") from error


def _extract(task: Task, is_kept: bool, stop: threading.Event | None) -> int:
    header = read_header(task.image_file)
    time = os.stat(task.image_file).st_mtime_ns if is_kept else None
    if header.shape != task.shape:
        raise CorruptImageError(
            f"The image {header.file} is {header.shape}, but the masks of "
            f"{task.subject} are {task.shape}."
        )
    if task.n_trials not in (None, header.n_volumes):
        raise CorruptImageError(
            f"The image {header.file} has {header.n_volumes} volumes, but its trial "
            f"table has {task.n_trials} trials. `laion-fmri-fetchers verify --repair` "
            "fetches damaged files again."
        )
    offsets = offsets_of(task.voxels, task.shape)
    n_at_once = max(1, min(header.n_volumes, _BLOCK // (4 * len(offsets))))
    gathered = np.empty((n_at_once, len(offsets)), np.float32)
    picked = np.empty(len(offsets), dtype=header.dtype)
    origin = task.origin(header.n_volumes, None, time)
    with new_part(task.folder, task.voxels, origin) as writer:
        values = writer.values()
        for i, volume in enumerate(iter_volumes(header)):
            if stop is not None and stop.is_set():
                raise InterruptedError("the work was given up")
            np.take(volume, offsets, out=picked, mode="clip")
            gathered[i % n_at_once] = scaled(header, picked, "float32")
            n = i % n_at_once + 1
            if n == n_at_once or i + 1 == header.n_volumes:
                values[:, i + 1 - n : i + 1] = gathered[:n].T
    return header.n_volumes
