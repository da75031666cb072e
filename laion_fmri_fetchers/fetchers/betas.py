"""fetch_laion_betas and pack_betas: voxels of sessions, from the bucket or the disk.

::

    arguments ─▶ Selection, Settings ─▶ Inventory ─▶ images
              ─▶ trials, masks, maps      fetch_chosen: small files only
              ─▶ voxels                   find_voxels
              ─▶ what the store lacks     missing_voxels, plan_sources, fill_store
              ─▶ Bunch                    load_voxels, which reads from the store
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.betas import sources
from laion_fmri_fetchers.betas.fill import (
    FillOptions,
    fill_from_images,
    fill_store,
    remove_fetched,
)
from laion_fmri_fetchers.betas.load import (
    Workers,
    check_options,
    grid_of,
    load_voxels,
    subjects_in,
)
from laion_fmri_fetchers.betas.rows import trial_tables, trials_of, warn_of_order
from laion_fmri_fetchers.betas.store import DamagedPartError, session_folder
from laion_fmri_fetchers.betas.voxels import VoxelChoice, find_voxels
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.data_dir import is_writable
from laion_fmri_fetchers.cache.inventory import Inventory, take_inventory_of_subjects
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.exceptions import (
    BucketError,
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.grids import is_resampled
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.selection import Selection, is_one_name, select
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.volumes import read_header

from .bunch import as_plan, fetch_chosen, warn_if_down
from .choose import choose_images, describe_subjects, names_of
from .subjects import check_names, check_subjects

_SOURCES = ("auto", "model", "images")

# Seconds after which nobody needs an image that was fetched for its voxels.
_FORGOTTEN = 3600.0

# Fillings of a store in which parts turn out to be damaged when they are read.
_TRIES = 3


@documented
@only_its_arguments
def fetch_laion_betas(  # noqa: C901 - its steps, in order
    subjects: str | int | Iterable[str | int] = "sub-01",
    rois: str | Sequence[str] = "all",
    sessions: str | int | Iterable[str | int] = "all",
    *,
    trial_filter: Any = None,
    roi_filter: Any = None,
    mask_img: Any = None,
    nc_threshold: float | None = None,
    noise_ceiling: str = "Allrep",
    standardize: str | None = None,
    average_repeats: bool = False,
    labels: str | Sequence[str] | None = None,
    dtype: Any = "float32",
    as_dask: bool = False,
    source: str = "auto",
    keep_images: bool = False,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    n_jobs: int | None = 1,
    verbose: int = 1,
) -> Bunch:
    """Fetch single-trial betas of some voxels, without the images that hold them.

    A beta image has a session's trials volume by volume, so a region needs all of its
    1.15 GB. The session's model file has the same betas voxel by voxel: of that, only
    the voxels asked for are downloaded, by HTTP ranges. They are kept in the voxel
    store of the data directory, so that later calls download only what is missing.

    Which voxel each row of a model file is, and that its values are those of the beta
    image, is proved with the image's first volume. Where it cannot be proved, the
    images are downloaded instead, a few at a time, and removed again.

    Parameters
    ----------
    subjects : str, int, or several, default="sub-01"
        ``"sub-01"``, ``"01"`` or 1. A list or ``"all"``: each of them by itself, since
        the voxels of two do not correspond.
    rois : str or sequence of str, default="all"
        ROI names with or without hyphens (``"FFA1"``), categories (``"face"``),
        ``"V1"``, ``"V2"`` or ``"V3"`` for dorsal and ventral part, or several of
        them; ``"all"``: all ROIs of the subject; ``"brain"``: all voxels.
    sessions : str, int, or several, default="all"
        ``"ses-01"``, ``"01"`` or 1, several of them (a range too), or ``"all"`` that
        are not held out.
    trial_filter : dict, `ResultFilter` or callable, optional
        Conditions on trials; sessions without such a trial are not fetched.
    roi_filter : dict, `ResultFilter` or callable, optional
        Conditions on the records of ROI masks.
    mask_img : Niimg-like, optional
        Only voxels in this mask: a path or a 3-D image on the grid of the betas, of 0
        (or NaN) and one other value. They must lie in ``rois``, too; with
        ``rois="brain"``, all of the mask is taken.
    nc_threshold : float, optional
        Only voxels whose noise ceiling is at least this, in percent (0 to 100).
    noise_ceiling : {"Allrep", "12rep", "4rep"}, default="Allrep"
        Which of the subject's noise ceilings the threshold is for.
    standardize : {None, "zscore", "zscore_sample"}, default=None
        Z-score each voxel within each session, as `load_betas` does.
    average_repeats : bool, default=False
        Average the trials of each label, after standardizing.
    labels : str or sequence of str, optional
        Only trials of these images, in their order; sessions without one are not
        fetched. See `shared_labels`.
    dtype : dtype, default="float32"
        Floating point type of the result.
    as_dask : bool, default=False
        Return ``data`` as a dask array over the voxel store, with a chunk per session.
    source : {"auto", "model", "images"}, default="auto"
        ``"auto"``: what is stored, then images on disk, then model files, or images
        where a model file cannot be used or would be more bytes; ``"model"`` or
        ``"images"``: only these for voxels that are not stored.
    keep_images : bool, default=False
        Whether images that were downloaded for their voxels stay on disk.
    %(mode)s
    %(data_dir)s
    dry_run : bool, default=False
        Plan only: nothing but listings, trial tables, masks and noise ceilings is
        downloaded.
    %(n_connections)s
    %(timeout)s
    n_jobs : int, default=1
        Threads that read images and the store, counted as joblib does; -1: as many as
        there are processors. Model files are read by ``n_connections`` at once.
    %(verbose)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        As from `load_betas`: ``data``, an array of shape (n_trials, n_voxels),
        ``trials``, ``mask_img``, ``roi_masks``, ``noise_ceilings`` and ``groups``. With
        ``dry_run``: ``plan``, a :class:`pandas.DataFrame` with ``id``, ``size`` in
        bytes, ``reason`` and ``source`` of each file of which something would be
        downloaded; ``plan_size``, their sum; and ``sizes``, a dict with the bytes of
        either way, ``"model"`` and ``"images"``. Those of model files are approximate:
        what lies between voxels is read too, where that saves time.

        With a list of subjects or ``"all"``, a Bunch of such Bunches: subject -> its
        betas, or its plan.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, no trial or voxel is left, the trials lack one of
        ``labels``, or, with ``source="model"``, the bucket has no model file.
    NotCachedError
        Offline, if voxels of a session that was named are not on disk.
    CorruptImageError
        If an image is damaged or, with ``source="model"``, a model file is not proved
        to hold the betas of the image.
    BucketError
        If the bucket cannot be read or, with ``source="model"``, ignores ranges.
    HeldOutSessionError
        If a held-out session was named and the bucket denies it.
    DownloadError
        If something could not be downloaded after all retries.
    DiskSpaceError
        If the disk is too small.
    LicenseNotAcceptedError
        If the CC0 terms are not accepted.
    MemoryError
        If the result is larger than the free memory.

    Warns
    -----
    UserWarning
        As `load_betas`; if the bucket has another version of what is stored.

    See Also
    --------
    load_betas : The same from images on disk.
    pack_betas : Fill the voxel store from images on disk.

    Notes
    -----
    The numbers are those of the beta images, value for value. The store keeps the ETags
    of the files they are from: where the bucket has another version, what is stored is
    used with a warning, and ``mode="overwrite"`` fetches it anew.

    Examples
    --------
    All trials of a face-selective region, a few MB::

        betas = fetch_laion_betas("sub-01", rois="FFA1")
        betas.data.shape

    What a call would download, by way::

        plan = fetch_laion_betas("sub-01", rois="V1", dry_run=True)
        print(plan.sizes)
    """
    if source not in _SOURCES:
        hint = did_you_mean(source, list(_SOURCES))
        raise InvalidQueryError(f"source is {source!r}; {hint}")
    if rois is None:
        raise InvalidQueryError(
            "rois is None; give names of ROIs or categories, 'all', or 'brain' for all "
            "voxels"
        )
    options = check_options(standardize, average_repeats, dtype)
    # Small files are fetched for a plan too: without masks and maps, nobody knows how
    # many voxels there are.
    settings = make_settings(**{**locals(), "dry_run": False})
    is_one = isinstance(rois, str) or not isinstance(rois, Iterable)
    named = [rois] if is_one else [*rois]
    arguments = inspect.signature(fetch_laion_betas).parameters
    of_masks = [name for name in named if name != "brain"] or "all"
    selection = select(**{**locals(), "rois": of_masks})
    names, inventory = take_inventory_of_subjects(selection, settings)
    records = [rec for rec in inventory.records if rec["subject"] in names]
    check_subjects(selection, inventory)
    check_names(records, names, inventory, selection)
    data = fetch_chosen(
        choose_images(records, selection),
        records,
        describe_subjects(names, records, {}),
        inventory,
        selection,
        labels=labels,
        with_images=False,
    )
    data.query = {name: data.query[name] for name in data.query if name in arguments}

    how = FillOptions(source, bool(keep_images), n_jobs)
    existing, results = names_of(records), {}
    for name in selection.subjects or names:
        # It was warned of ROIs that only others have.
        own_rois = rois
        if selection.rois:
            own_rois = [roi for roi in selection.rois if roi in existing.get(name, ())]
            own_rois += [roi for roi in named if roi == "brain"]
            if not own_rois:
                continue
        if name not in data.brain_masks:
            inventory.refuse(
                f"The bucket has no brain mask of {name} on the grid of the betas, so "
                "it cannot be told which voxels there are. Fetch images with "
                "fetch_laion_fmri, and give load_betas a mask_img.",
                f"There is no brain mask of {name} on the grid of the betas on disk.",
            )
        grid = read_header(data.brain_masks[name])
        choice = VoxelChoice(own_rois, mask_img, nc_threshold, noise_ceiling)
        voxels = find_voxels(data, name, choice, grid)
        metas = [meta for meta in data.images_meta if meta["subject"] == name]
        tables = trial_tables(settings.data_dir, metas)
        sources.learn_versions(metas, settings.data_dir, inventory)
        for n_left in reversed(range(_TRIES)):
            missing = sources.missing_voxels(
                metas, tables, voxels.mask, settings.data_dir, inventory
            )
            if inventory.is_cut_off:
                lost = _lost_sessions(missing, metas, inventory, selection)
                missing = [m for m in missing if m.record["session"] not in lost]
                is_lost = data.trials["session"].isin(lost)
                is_lost &= data.trials["subject"] == name
                data.trials = data.trials[~is_lost]
            plan = sources.plan_sources(missing, source, grid, inventory)
            if dry_run:
                results[name] = _describe_plan(plan, settings.verbose)
                break
            fill_store(plan, how, inventory)
            # What was just shown to be read is read from the store in no time.
            verbose_of_load = 0 if missing else settings.verbose
            workers = Workers(n_jobs, verbose_of_load, bool(as_dask))
            try:
                results[name] = load_voxels(
                    data, name, voxels, labels, options, workers, tables
                )
                break
            except DamagedPartError:
                # It is removed, and its voxels are missing now.
                if inventory.is_cut_off or not n_left:
                    raise
        if not (dry_run or inventory.is_cut_off):
            folders = [
                session_folder(settings.data_dir, name, meta["session"])
                for meta in metas
            ]
            remove_fetched(folders, min_age=_FORGOTTEN)
    warn_if_down(inventory)
    if is_one_name(subjects):
        return next(iter(results.values()))
    if not dry_run:
        warn_of_order(results)
    return Result(**results)


def _lost_sessions(
    missing: list[sources.MissingVoxels],
    metas: list[Record],
    inventory: Inventory,
    selection: Selection,
) -> list[str]:
    """Return the sessions of a subject that are unavailable offline, with a warning.

    Raises
    ------
    BucketError
        If the bucket did not answer.
    NotCachedError
        If sessions were named, or none is left.
    """
    lost = [each.record["session"] for each in missing if not each.is_on_disk]
    if not lost:
        return []
    settings = inventory.settings
    problem = (
        f"Voxels of {counted(len(lost), 'session')} of {metas[0]['subject']} are not "
        f"in the voxel store, and the images are not in {settings.data_dir}: "
        f"{listed(lost)}."
    )
    if inventory.error:
        raise BucketError(f"{inventory.error} {problem}")
    if selection.sessions is not None or len(lost) == len(metas):
        raise NotCachedError(f"{problem} {settings.how_to_fetch}")
    warn(f"{problem} They are left out. {settings.how_to_fetch}")
    return lost


def _describe_plan(plan: sources.SourcePlan, verbose: int) -> Bunch:
    """Return what a dry run returns."""
    bunch = Result(**as_plan(plan.files, "id size reason source"), sizes=plan.sizes)
    by_model, by_images = (readable_size(plan.sizes[w]) for w in ("model", "images"))
    tell(
        f"About {readable_size(bunch.plan_size)} of {counted(len(plan.files), 'file')} "
        f"would be downloaded; by model files {by_model}, by images {by_images}",
        verbose,
    )
    return bunch


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
        Images read at once, by threads, counted as joblib does.
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
        n_voxels, missing = _not_packed(data, name, choice)
        tell(
            f"Storing {n_voxels} voxels of {name} from "
            f"{counted(len(missing), 'image')}",
            verbose,
        )
        fill_from_images(missing, n_jobs, verbose)


def _not_packed(
    data: Bunch, subject: str, choice: VoxelChoice
) -> tuple[int, list[sources.MissingVoxels]]:
    """Return the number of voxels chosen, and what the store lacks of them."""
    metas = [
        {**meta, "absolute_path": file}
        for file, meta in zip(data.images, data.images_meta, strict=True)
        if meta["image_type"] == "betas" and meta["subject"] == subject
    ]
    grid = grid_of(data, subject)
    mask = find_voxels(data, subject, choice, grid).mask
    tables = trial_tables(data.data_dir, metas)
    missing = sources.missing_voxels(metas, tables, mask, data.data_dir)
    return int(np.count_nonzero(mask)), missing


def remove_packed_images(data: Bunch, subject: str) -> list[str]:
    """Delete the beta images of a subject of which all voxels of the brain are stored.

    Returns
    -------
    list of str
        Ids of the images.
    """
    choice = VoxelChoice("brain", None, None, "Allrep")
    missing = _not_packed(data, subject, choice)[1]
    not_packed = {each.record["session"] for each in missing}
    removed = []
    for meta in data.images_meta:
        is_image = meta["image_type"] == "betas" and meta["subject"] == subject
        file = meta["absolute_path"]
        if is_image and meta["session"] not in not_packed and os.path.exists(file):
            # A machine that fails now would lose both the image and its voxels.
            folder = session_folder(data.data_dir, subject, meta["session"])
            for part in folder.glob("*/*.np[yz]"):
                with open(part, "rb") as stream:
                    os.fsync(stream.fileno())
            os.unlink(file)
            removed.append(meta["id"])
    return removed
