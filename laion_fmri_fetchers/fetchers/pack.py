"""pack_betas: voxels of beta images on disk into the voxel store.

pack_betas ─▶ find_voxels ─▶ lacking.jobs_on_disk ─▶ lacking.extract_all
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.arrays.voxel_store import flush_parts, session_folder
from laion_fmri_fetchers.betas.load import grid_of, subjects_in
from laion_fmri_fetchers.betas.rows import trials_of
from laion_fmri_fetchers.betas.voxels import VoxelChoice, find_voxels
from laion_fmri_fetchers.cache.data_dir import is_writable
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.grids import is_resampled
from laion_fmri_fetchers.messages import counted, tell
from laion_fmri_fetchers.query.arguments import only_its_arguments

from .lacking import Job, extract_all, jobs_on_disk


@only_its_arguments
def pack_betas(
    data: Bunch,
    subjects: str | int | Sequence[str | int] | None = None,
    rois: str | Sequence[str] = "brain",
    *,
    mask_img: Any = None,
    nc_threshold: float | None = None,
    noise_ceiling: str = "Allrep",
    n_jobs: int | None = 1,
    verbose: int = 1,
) -> None:
    """Fill the voxel store from beta images on disk.

    The store has each voxel's trials side by side, so `load_betas` and
    `fetch_laion_betas` take a region from it in a fraction of a second, where an image
    is decompressed from its first byte to its last. The whole brain of a session takes
    about 1.15 GB, as much as its image.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`.
    subjects : str, int, or several, optional
        ``"sub-01"``, ``"01"`` or 1, several of them; None or ``"all"``: each of whom
        ``data`` holds betas.
    rois : str or sequence of str, default="brain"
        The voxels, as for `load_betas`: ROI names, categories, ``"fetched"``, or
        ``"brain"`` for all.
    mask_img : Niimg-like, optional
        Only voxels in this mask.
    nc_threshold : float, optional
        Only voxels whose noise ceiling is at least this, in percent (0 to 100).
    noise_ceiling : {"Allrep", "12rep", "4rep"}, default="Allrep"
        Which of the noise ceilings the threshold is for.
    n_jobs : int, default=1
        Images read at once, by joblib's threads or what
        :func:`joblib.parallel_config` says.
    verbose : int, default=1
        0: silent, 1: a progress bar.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, or the data directory cannot be written.
    NotCachedError
        If an image is not on disk.
    CorruptImageError
        If an image is damaged.
    DiskSpaceError
        If the disk is full; sessions that were stored stay.

    Examples
    --------
    All voxels of some sessions, once; regions are then read from the store::

        data = fetch_laion_fmri("sub-01", sessions=range(1, 5))
        pack_betas(data)
        betas = load_betas(data, rois="FFA1")
    """
    trials_of(data)
    if any(map(is_resampled, data.images_meta)):
        raise InvalidQueryError(
            "data holds resampled images, and the voxel store is of the dataset's own "
            "grid: fetch without resolution."
        )
    if not is_writable(data.data_dir):
        raise InvalidQueryError(
            f"The data directory {data.data_dir} cannot be written, so nothing can be "
            "stored in it."
        )
    choice = VoxelChoice(rois, mask_img, nc_threshold, noise_ceiling)
    for name in subjects_in(data, subjects):
        mask, jobs = _lacking(data, name, choice)
        tell(
            f"Storing {mask.sum()} voxels of {name} from {counted(len(jobs), 'image')}",
            verbose,
        )
        extract_all(jobs, n_jobs, verbose)


def remove_packed_images(data: Bunch, subject: str) -> list[str]:
    """Delete the beta images of a subject of which all voxels of the brain are stored.

    Returns
    -------
    list of str
        Ids of the images.
    """
    _, jobs = _lacking(data, subject, VoxelChoice("brain", None, None, "Allrep"))
    lacking = {job.task.session for job in jobs}
    removed = []
    for meta in data.images_meta:
        is_image = meta["image_type"] == "betas" and meta["subject"] == subject
        file = meta["absolute_path"]
        if is_image and meta["session"] not in lacking and os.path.exists(file):
            flush_parts(session_folder(data.data_dir, subject, meta["session"]))
            os.unlink(file)
            removed.append(meta["id"])
    return removed


def _lacking(
    data: Bunch, subject: str, choice: VoxelChoice
) -> tuple[np.ndarray, list[Job]]:
    """Return the mask of the voxels chosen, and the sessions that lack some."""
    grid = grid_of(data, subject)
    voxels = find_voxels(data, subject, choice, grid)
    return voxels.mask, jobs_on_disk(data, subject, voxels.mask)
