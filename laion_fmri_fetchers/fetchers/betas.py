"""fetch_laion_betas: from the bucket to an array of trials x voxels.

The way through::

    arguments ─▶ Selection, Settings           select, make_settings
              ─▶ Inventory ─▶ images, trials   as `fmri` has it
              ─▶ masks, maps, tables           obtain: small files only
              ─▶ voxels                        find_voxels
              ─▶ what the voxel store lacks    jobs_of, choose_ways
              ─▶ the store                     fill_store: by ranges of model files
              ─▶ Bunch                         load_voxels, which reads from the store
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.arrays.voxel_store import session_folder
from laion_fmri_fetchers.betas.load import Workers, check_options, load_voxels
from laion_fmri_fetchers.betas.rows import warn_of_order
from laion_fmri_fetchers.betas.voxels import VoxelChoice, find_voxels
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.inventory import (
    Inventory,
    find_subjects,
    take_inventory_of_subjects,
)
from laion_fmri_fetchers.cache.obtain import obtain
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.exceptions import (
    BucketError,
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.selection import is_one_name, select
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.volumes import Header, read_header

from .choose import (
    choose_companions,
    choose_images,
    choose_rois,
    describe_subjects,
)
from .chosen import (
    Chosen,
    make_bunch,
    plan_files,
)
from .lacking import (
    HowToFill,
    Job,
    choose_ways,
    fill_store,
    jobs_of,
    remove_fetched,
    sizes_by_way,
)
from .public_files import needed
from .subjects import check_names, check_subjects
from .trials import choose_by_trials

_SOURCES = ("auto", "model", "images")

_FORGOTTEN = 3600.0
"""Seconds after which nobody needs an image that was fetched for its voxels."""


@documented
@only_its_arguments
def fetch_laion_betas(
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
        Workers of joblib that fill the store and read from it. 1 is a process that
        reads several sessions at once, which is fastest on a single machine; workers of
        dask on other machines must see the data directory.
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
    given = dict(locals())
    if source not in _SOURCES:
        hint = did_you_mean(source, list(_SOURCES))
        raise InvalidQueryError(f"source is {source!r}; {hint}")
    options = check_options(standardize, average_repeats, dtype)
    selection = select(
        subjects,
        _fetched_rois(rois),
        sessions,
        None,
        None,
        roi_filter,
        trial_filter,
        None,
        {},
        inspect.signature(fetch_laion_betas).parameters,
    )
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=False,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
        dry_run=dry_run,
    )
    if not is_one_name(subjects):
        each = selection.subjects or find_subjects(settings)[0]
        betas = {
            name: fetch_laion_betas(**{**given, "subjects": name}) for name in each
        }
        if not dry_run:
            warn_of_order(betas)
        return Result(**betas)
    choice = VoxelChoice(rois, mask_img, nc_threshold, noise_ceiling)
    names, inventory = take_inventory_of_subjects(selection, settings)
    check_subjects(names, inventory, named=True)
    records = [rec for rec in inventory.records if rec["subject"] in names]
    check_names(records, names, inventory, selection)
    images = choose_images(records, selection)
    with needed():
        images, trials, tables = choose_by_trials(images, inventory, selection, labels)
    small = Chosen(
        [],
        choose_rois(records, selection),
        choose_companions(records, names, inventory.absent),
        trials,
        describe_subjects(names, records, {}),
    ).without_absent(inventory, selection.is_named, leave_out="")
    chosen = small._replace(images=images)
    # Masks and maps are fetched by a dry run, too: without them, nobody knows how many
    # voxels there are.
    planned = plan_files(small, inventory, selection.is_newer, tables, None)
    with needed():
        fetched = obtain(planned, inventory, accept=accept_license, quiet=True)
    on_disk = inventory._replace(settings=settings._replace(dry_run=False))
    query = {k: v for k, v in selection.as_query().items() if k in given}
    data = make_bunch(chosen, on_disk, query, tables + fetched, None)
    grid = _grid(data, names[0], inventory)
    voxels = find_voxels(data, names[0], choice, grid)
    jobs = jobs_of(data, voxels.mask, inventory)
    if inventory.is_cut_off:
        lost = _refuse_or_warn(
            jobs, images, inventory, are_named=selection.sessions is not None
        )
        if lost:
            kept = [rec for rec in chosen.images if rec["session"] not in lost]
            data = make_bunch(
                chosen._replace(images=kept), inventory, query, tables, None
            )
        jobs = [job for job in jobs if job.is_on_disk]
    if inventory.error:
        warn(f"{inventory.error} Everything selected is on disk; continuing offline.")
    ways = choose_ways(jobs, source, inventory)
    if dry_run:
        return _planned(ways.plan(), sizes_by_way(jobs), settings.verbose)
    with needed():
        fill_store(ways, HowToFill(source, bool(keep_images), n_jobs), inventory)
    if not inventory.is_cut_off:
        where = settings.data_dir, names[0]
        folders = (session_folder(*where, m["session"]) for m in data.images_meta)
        remove_fetched(folders, min_age=_FORGOTTEN)
    workers = Workers(n_jobs, settings.verbose, bool(as_dask))
    return load_voxels(data, names[0], voxels, labels, options, workers)


def _fetched_rois(rois: Any) -> Any:
    """Return the ROIs whose masks are fetched; of the whole brain, all of them."""
    if rois is None:
        raise InvalidQueryError(
            "rois is None; give names of ROIs or categories, 'all', or 'brain' for all "
            "voxels"
        )
    if isinstance(rois, str) or not isinstance(rois, Iterable):
        return "all" if rois == "brain" else rois
    return [name for name in rois if name != "brain"] or "all"


def _grid(data: Bunch, subject: str, inventory: Inventory) -> Header:
    """Return the header of the subject's brain mask."""
    if subject in data.brain_masks:
        return read_header(data.brain_masks[subject])
    problem = f"brain mask of {subject} on the grid of the betas"
    if inventory.is_cut_off:
        how = inventory.settings.how_to_fetch
        raise NotCachedError(f"There is no {problem} on disk. {how}")
    raise InvalidQueryError(
        f"The bucket has no {problem}, so it cannot be told which voxels there are. "
        "Fetch images with fetch_laion_fmri, and give load_betas a mask_img."
    )


def _refuse_or_warn(
    jobs: list[Job], images: list[Record], inventory: Inventory, *, are_named: bool
) -> set[str]:
    """Return the sessions whose voxels cannot be had, where nothing can be downloaded.

    Raises
    ------
    NotCachedError
        If sessions were named, or none is left.
    """
    lost = [job.task.session for job in jobs if not job.is_on_disk]
    if not lost:
        return set()
    settings = inventory.settings
    problem = (
        f"Voxels of {counted(len(lost), 'session')} of {jobs[0].task.subject} are not "
        f"in the voxel store, and the images are not in {settings.data_dir}: "
        f"{listed(lost)}."
    )
    is_all = {rec["session"] for rec in images} <= {*lost}
    if inventory.error:
        raise BucketError(f"{inventory.error} {problem}")
    if are_named or is_all:
        raise NotCachedError(f"{problem} {settings.how_to_fetch}")
    warn(f"{problem} They are left out. {settings.how_to_fetch}")
    return {*lost}


def _planned(
    rows: list[tuple[str, int, str, str]], sizes: dict[str, int], verbose: int
) -> Bunch:
    """Return what a dry run returns."""
    plan = pd.DataFrame(rows, columns=["id", "size", "reason", "source"])
    size = int(plan["size"].sum())
    tell(
        f"About {readable_size(size)} of {counted(len(plan), 'file')} would be "
        f"downloaded; by model files {readable_size(sizes['model'])}, by images "
        f"{readable_size(sizes['images'])}",
        verbose,
    )
    return Result(plan=plan, plan_size=size, sizes=sizes)
