"""fetch_laion_fmri: from arguments to a Bunch of files and metadata.

The way through, with no step back::

    arguments -> Selection, Call     select, prepare
              -> Known               scroll: the bucket, or saved listings, and the disk
              -> subjects            choose_subjects, by subject_filter
              -> images              choose_images, by sessions and image_filter
              -> trials              read_tables, by trial_filter; cuts images
              -> masks and maps      choose_rois, choose_companions
              -> plan                find_missing
              -> transfer            download
              -> Bunch               _bunch

Filters cut metadata at each step, before bytes move: of the bucket, nothing but
listings and small tables is read until the plan stands.
"""

from __future__ import annotations

import gzip
import inspect
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.utils import Bunch

from . import cache, layout
from .bucket import bucket_url
from .calls import Call, Result, prepare
from .choose import (
    Trials,
    choose_companions,
    choose_images,
    choose_rois,
    choose_subjects,
    find_named,
    folders_beside,
    named_records,
    read_tables,
    session_of,
)
from .licenses import accept_license
from .messages import counted, listed, readable_size, tell, warn
from .resample import (
    can_be_resampled,
    interpolation_for,
    resample_file,
    resampled_path,
    resolution_label,
)
from .scroll import (
    Known,
    Record,
    download,
    find_missing,
    refuse_without_bucket,
    scroll,
)
from .selection import Selection, select, select_ids

_MUCH = 10**9
_LESS = (
    ". For less, narrow subjects, sessions, rois or a filter; a dry run lists what "
    "would come."
)


def fetch_laion_fmri(
    subjects: str | int | Sequence[str | int] = ("sub-01",),
    rois: str | Sequence[str] | None = "all",
    sessions: str | int | Iterable[str | int] = "all",
    *,
    subject_filter: Any = None,
    image_filter: Any = None,
    roi_filter: Any = None,
    trial_filter: Any = None,
    max_images: int | None = None,
    resolution: float | None = None,
    interpolation: str = "continuous",
    keep_original: bool = True,
    mode: str = "download_new",
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **image_terms: Any,
) -> Bunch:
    """Fetch images, ROI masks and trial metadata of LAION-fMRI.

    The local cache is looked at first, then the bucket. What is selected and not on
    disk is downloaded, and stays there for later calls.

    Parameters
    ----------
    subjects : str, int, or several, default=("sub-01",)
        ``"sub-01"``, ``"01"`` or 1, several of them, or ``"all"`` that the bucket
        holds.
    rois : str, sequence of str, or None, default="all"
        ROI names with or without hyphens (``"FFA1"``), categories (``"face"``),
        ``"all"``, or None for none.
    sessions : str, int, or several, default="all"
        ``"ses-01"``, ``"01"`` or 1, several of them (a range too), or ``"all"`` that
        are not held out. Chooses among files of a session, such as betas.
    subject_filter, image_filter, roi_filter, trial_filter : dict, `ResultFilter` or \
callable, optional
        What a record of ``subjects_meta``, ``images_meta`` or ``rois_meta``, or a
        trial as a dict, must fulfil. A term on a field replaces the default term on
        it, see `basic_image_terms` and `basic_roi_terms`. With a trial filter, only
        files of sessions in which a trial passes are fetched.
    max_images : int, optional
        Most images, counted in subject, session order; None or negative: all.
    resolution : float, optional
        Voxel size in mm of an isotropic grid. Images, ROI masks, brain masks and noise
        ceilings are resampled to it, kept beside the originals with a ``res-`` entity,
        and found there by later calls. Files are resampled one after the other, or as
        :func:`joblib.parallel_config` says.
    interpolation : {"continuous", "linear", "nearest"}, default="continuous"
        How images and noise ceilings are resampled; masks always by the nearest voxel.
    keep_original : bool, default=True
        False: delete the originals of ``images`` once they are resampled.
    mode : {"download_new", "overwrite", "offline"}, default="download_new"
        ``"download_new"`` fetches what is not on disk; ``"overwrite"`` fetches all
        that is selected again (masks and tables only if they, too, fulfil a term on
        ``last_modified``); ``"offline"`` opens no socket.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    dry_run : bool, default=False
        Plan only: nothing but listings and the tables that filters read is fetched.
    allow_missing : bool, default=False
        Warn about files that could not be fetched, instead of raising.
    n_connections : int, default=64
        HTTP connections at once.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: summary and progress bar, 2: a line a file, 3: debug.
    **image_terms
        Terms on fields of image records, as in ``image_type="rsquare"``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``images``: list of str, the image files in subject, session order; by
          default the single-trial betas, one 4-D image a session, float32.
        - ``images_meta``: list of dict, their records.
        - ``rois``, ``rois_meta``: list of str and of dict, ROI masks and records.
        - ``brain_masks``: dict, subject -> brain mask on the functional grid.
        - ``noise_ceilings``: dict, subject -> {``"4rep"``, ``"12rep"``, ``"Allrep"``:
          path of the map, in percent}.
        - ``trials``: :class:`pandas.DataFrame`, a row a selected trial, in the order
          of ``images`` and of volumes.
        - ``sample_masks``: list of int arrays, the selected volumes of each image;
          None where an image holds no trials.
        - ``subjects_meta``: list of dict, ``subject``, columns of
          ``participants.tsv``, ``sessions``, ``rois``.
        - ``failed``: list of dict, records with a ``reason``; see ``allow_missing``.
        - ``data_dir``: str; ``query``: dict, what was asked; ``description``: str.
        - ``plan``: :class:`pandas.DataFrame` with ``id``, ``size`` in bytes and
          ``reason`` of each file that would be fetched, and ``plan_size``, their sum
          in bytes; with ``dry_run`` only.

    Raises
    ------
    InvalidQueryError
        If an argument, a term or a field name is not valid.
    NotCachedError
        Offline, if something that was named is not on disk.
    HeldOutSessionError
        If a held-out session was named and the bucket denies it.
    BucketError
        If the bucket cannot be read and what is on disk does not do.
    DownloadError
        If files failed after all retries.
    DiskSpaceError
        If the disk is too small.
    LicenseNotAcceptedError
        If the CC0 terms are not accepted.
    CorruptImageError
        If a trial table is broken.

    See Also
    --------
    fetch_laion_fmri_ids : Fetch exactly the files of a list.
    get_rois : Names of ROIs.

    Notes
    -----
    The publishers advise to z-score each voxel within a session before sessions are
    pooled, as ridge shrinkage differs between voxels.

    Examples
    --------
    Face-selective regions and all trials of images shown 12 times::

        data = fetch_laion_fmri("sub-01", rois="face", trial_filter={"n_reps": 12})

    Maps of explained variance of two subjects, with what would come and how much::

        plan = fetch_laion_fmri([1, 3], image_type="rsquare", dry_run=True)
        print(plan.plan, plan.plan_size)

    Fetch again what changed in the bucket since::

        newest = max(m["last_modified"] for m in data.images_meta)
        fetch_laion_fmri(mode="overwrite", last_modified=GreaterThan(newest))
    """
    selection = select(
        subjects,
        rois,
        sessions,
        subject_filter,
        image_filter,
        roi_filter,
        trial_filter,
        max_images,
        image_terms,
        inspect.signature(fetch_laion_fmri).parameters,
    )
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
        dry_run=dry_run,
    )
    call = _with_grid(call, resolution, interpolation, keep_original)
    known = scroll(selection, call)
    subjects_meta = choose_subjects(selection, call, known)
    images = choose_images(selection, call, known)
    images, trials = read_tables(selection, call, known, images)
    chosen = {
        "images": images,
        "rois": choose_rois(selection, call, known),
        **choose_companions(call, known, known.subjects),
    }
    query = selection.as_query()
    if call.resolution is not None:
        query |= {"resolution": call.resolution, "interpolation": call.interpolation}
    return _fetch(selection, call, known, query, subjects_meta, chosen, trials)


def fetch_laion_fmri_ids(
    image_ids: str | Iterable[str] = (),
    *,
    mode: str = "download_new",
    data_dir: str | os.PathLike | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Bunch:
    """Fetch exactly the named files, to reproduce a selection.

    Parameters
    ----------
    image_ids : str or iterable of str
        The ``id`` of records, or keys of the bucket. Betas bring their trial tables
        and, for each subject, brain mask and noise ceilings; other files come alone.
    mode : {"download_new", "overwrite", "offline"}, default="download_new"
        ``"download_new"`` fetches what is not on disk, ``"overwrite"`` all that is
        named, ``"offline"`` opens no socket.
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    dry_run : bool, default=False
        Plan only: nothing but listings and trial tables is fetched.
    allow_missing : bool, default=False
        Warn about files that could not be fetched, instead of raising.
    n_connections : int, default=64
        HTTP connections at once.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: summary and progress bar, 2: a line a file, 3: debug.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        As from `fetch_laion_fmri`; all files, ROI masks too, are in ``images``, in
        subject, session order, and ``rois`` is empty.

    Raises
    ------
    InvalidQueryError
        If an id names no file of the bucket.
    UnsafeKeyError
        If an id would leave the data directory.
    NotCachedError
        Offline, if a file is not on disk.

    See Also
    --------
    fetch_laion_fmri : Select by subjects, ROIs and filters, and list its errors.

    Examples
    --------
    Save the ids of a selection, and fetch the same files elsewhere::

        ids = [meta["id"] for meta in data.images_meta]
        again = fetch_laion_fmri_ids(ids)
    """
    named = named_records(image_ids)
    selection = select_ids(named)
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
        dry_run=dry_run,
    )
    known = scroll(selection, call, folders_beside(named))
    subjects_meta = choose_subjects(selection, call, known)
    images = find_named(call, known, [rec["id"] for rec in named])
    images, trials = read_tables(selection, call, known, images)
    with_betas = {rec["subject"] for rec in images if rec["image_type"] == "betas"}
    chosen = {
        "images": images,
        "rois": [],
        **choose_companions(call, known, sorted(with_betas)),
    }
    query = {"image_ids": [rec["id"] for rec in images]}
    return _fetch(selection, call, known, query, subjects_meta, chosen, trials)


def _with_grid(
    call: Call, resolution: float | None, interpolation: str, keep_original: bool
) -> Call:
    """Check the grid that images are to be resampled to."""
    if resolution is None:
        return call
    resolution_label(resolution)
    interpolation_for({"suffix": None}, interpolation)
    return call._replace(
        resolution=float(resolution),
        interpolation=interpolation,
        keep_original=keep_original,
    )


def _fetch(
    selection: Selection,
    call: Call,
    known: Known,
    query: dict[str, Any],
    subjects_meta: list[dict[str, Any]],
    chosen: dict[str, list[Record]],
    trials: Trials,
) -> Bunch:
    """Fetch what is missing of the chosen files, and make the Bunch."""
    selected = {rec["id"] for rec in chosen["images"]}
    wanted = [rec for kind in chosen.values() for rec in kind]
    missing = find_missing(wanted, selection, call, known, selected)
    size = sum(rec["size"] or 0 for rec, _ in missing)
    if missing and not call.dry_run:
        refuse_without_bucket([rec for rec, _ in missing], call, known)
        tell(
            f"Fetching {counted(len(missing), 'file')}, {readable_size(size)}, from "
            f"{bucket_url()} to {call.data_dir}{_LESS if size >= _MUCH else ''}",
            call.verbose,
        )
        if any(rec["image_type"] != "trials" for rec, _ in missing):
            accept_license(call.data_dir)
        download(missing, call, known, quiet=False)
    if known.catalog.error:
        warn(
            f"{known.catalog.error} By a listing saved earlier, "
            + (
                "this is what is planned."
                if call.dry_run
                else "all of the selection is on disk: this call went on offline."
            )
        )
    bunch = _bunch(call, known, query, subjects_meta, chosen, trials)
    what = (
        f"{counted(len(bunch.images), 'image')}, "
        f"{counted(len(bunch.rois), 'ROI mask')} and "
        f"{counted(len(bunch.trials), 'trial')} of "
        f"{listed(known.subjects) or 'no subject'} in {call.data_dir}"
    )
    if call.dry_run:
        what += (
            f"; {counted(len(missing), 'file')}, {readable_size(size)}, would be "
            "fetched for them"
        )
        rows = [(rec["id"], rec["size"], reason) for rec, reason in missing]
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = size
    tell(what, call.verbose)
    return bunch


def _bunch(
    call: Call,
    known: Known,
    query: dict[str, Any],
    subjects_meta: list[dict[str, Any]],
    chosen: dict[str, list[Record]],
    trials: Trials,
) -> Bunch:
    """Return the Bunch of what was chosen and did not fail."""
    failed = {rec["id"] for rec in known.failed}
    chosen = {
        kind: [rec for rec in recs if rec["id"] not in failed]
        for kind, recs in chosen.items()
    }
    _compare_sizes([rec for recs in chosen.values() for rec in recs])
    if call.resolution is not None:
        _resample(call, known, chosen)
    if failed:
        warn(
            f"{len(failed)} files could not be fetched and are left out: "
            f"{listed(sorted(failed))}. The reasons are in the Bunch under 'failed'."
        )
    frame, sample_masks = _align(trials, chosen["images"])
    ceilings: dict[str, dict[str, str]] = {}
    for rec in chosen["noise_ceilings"]:
        name = layout.noise_ceiling_name(rec)
        ceilings.setdefault(rec["subject"], {})[name] = rec["absolute_path"]
    return Result(
        images=[rec["absolute_path"] for rec in chosen["images"]],
        images_meta=chosen["images"],
        rois=[rec["absolute_path"] for rec in chosen["rois"]],
        rois_meta=chosen["rois"],
        brain_masks=_brain_masks(call, known, chosen["brain_masks"]),
        noise_ceilings=ceilings,
        trials=frame,
        sample_masks=sample_masks,
        subjects_meta=subjects_meta,
        failed=known.failed,
        data_dir=call.data_dir,
        query=query,
        description=resources.files(__package__)
        .joinpath("descriptions/laion_fmri.rst")
        .read_text("utf-8"),
    )


def _resample(call: Call, known: Known, chosen: dict[str, list[Record]]) -> None:
    """Replace records by those of the images resampled from them, made if need be."""
    for kind in ("images", "rois", "noise_ceilings"):
        recs = [rec for rec in chosen[kind] if can_be_resampled(rec)]
        if recs and not call.dry_run:
            Parallel()(
                delayed(resample_file)(
                    rec["absolute_path"],
                    call.resolution,
                    interpolation_for(rec, call.interpolation),
                    overwrite=rec["id"] in known.fetched,
                    keep_original=call.keep_original or kind != "images",
                )
                for rec in recs
            )
        chosen[kind] = [
            _resampled(rec, call) if can_be_resampled(rec) else rec
            for rec in chosen[kind]
        ]


def _resampled(rec: Record, call: Call) -> Record:
    """Return the record of the image resampled from that of a record."""
    assert call.resolution is not None
    path = resampled_path(rec["id"], call.resolution)
    file = cache.local_path(call.data_dir, path)
    return {
        **rec,
        "id": path,
        "relative_path": path,
        "absolute_path": file,
        "res": resolution_label(call.resolution),
        "size": os.path.getsize(file) if os.path.exists(file) else None,
    }


def _compare_sizes(chosen: list[Record]) -> None:
    """Warn of files that differ in size from the listing; where none has it, set it."""
    differ = []
    for rec in chosen:
        try:
            size = os.stat(rec["absolute_path"]).st_size
        except OSError:
            continue
        if rec["size"] is None:
            rec["size"] = size
        elif size != rec["size"]:
            differ.append(rec["id"])
    if differ:
        warn(
            f"{len(differ)} files on disk differ in size from the bucket's listing: "
            f"{listed(differ)}. They may be cut short or outdated; "
            "'laion-fmri-fetchers verify --repair' or mode='overwrite' fetches them "
            "again."
        )


def _align(
    trials: Trials, images: list[Record]
) -> tuple[pd.DataFrame, list[np.ndarray | None]]:
    """Return the trials in the order of images, and the volumes of each image."""
    frame = trials.frame
    table = frame["image_index"].to_numpy()
    starts = np.searchsorted(table, np.arange(len(trials.sessions) + 1))
    position = {session: i for i, session in enumerate(trials.sessions)}
    volumes = frame["beta_index"].to_numpy()
    sample_masks: list[np.ndarray | None] = []
    rows = [np.empty(0, dtype=np.intp)]
    for rec in images:
        at = position.get(session_of(rec)) if rec["image_type"] == "betas" else None
        if at is None:
            sample_masks.append(None)
        else:
            sample_masks.append(volumes[starts[at] : starts[at + 1]].copy())
            rows.append(np.arange(starts[at], starts[at + 1]))
    sizes = [0 if mask is None else len(mask) for mask in sample_masks]
    take = np.concatenate(rows)
    if not np.array_equal(take, np.arange(len(frame))):
        frame = frame.iloc[take]
    frame = frame.reset_index(drop=True)
    frame["image_index"] = np.repeat(np.arange(len(images)), sizes)
    return frame, sample_masks


def _brain_masks(call: Call, known: Known, masks: list[Record]) -> dict[str, str]:
    """Return a brain mask a subject; derived where the bucket has none."""
    found = {}
    for subject in known.subjects:
        derived = cache.brain_mask_file(call.data_dir, subject)
        own = [rec for rec in masks if rec["subject"] == subject]
        if own and own[0]["image_type"] == "brain_mask":
            found[subject] = own[0]["absolute_path"]
            continue
        if own and not call.dry_run:
            _derive_brain_mask(own[0]["absolute_path"], derived)
        if derived.exists() or (own and call.dry_run):
            found[subject] = str(derived)
    if call.resolution is None or call.dry_run:
        return found
    return {
        subject: resample_file(path, call.resolution, "nearest")
        for subject, path in found.items()
    }


def _derive_brain_mask(mean_rsquare: str, target: Path) -> None:
    """Write the mask of the voxels whose mean R2 is above 0."""
    import nibabel as nib

    image: Any = nib.load(mean_rsquare)
    mask = np.asanyarray(image.dataobj) > 0
    content = nib.Nifti1Image(mask.astype(np.uint8), image.affine).to_bytes()
    try:
        cache.write_atomically(target, gzip.compress(content, mtime=0))
    except OSError as error:
        warn(f"No brain mask could be derived from {mean_rsquare}: {error}")
    else:
        warn(
            f"The bucket has no brain mask for this subject; one was derived from "
            f"{mean_rsquare}, where R2 is above 0: {target}"
        )
