"""fetch_laion_fmri: from arguments to a Bunch of files and metadata.

The way through, with no step back::

    arguments -> Selection, Call     select, prepare
              -> Known               _look: the bucket, or saved listings, and the disk
              -> subjects            _choose_subjects, by subject_filter
              -> images              _choose_images, by sessions and image_filter
              -> trials              _read_tables, by trial_filter; cuts images
              -> masks and maps      _choose_rois, _choose_companions
              -> plan                _missing
              -> transfer            _download
              -> Bunch               _bunch

Filters cut metadata at each step, before bytes move: of the bucket, nothing but
listings and small tables is read until the plan stands.
"""

from __future__ import annotations

import gzip
import inspect
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.utils import Bunch

from . import cache, layout
from .bucket import bucket_url
from .calls import Call, Result, fetch_records, prepare
from .catalog import Catalog, Wanted, look, records
from .exceptions import (
    BucketError,
    DownloadError,
    HeldOutSessionError,
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from .filters import admits
from .licenses import accept_license
from .messages import counted, listed, readable_size, tell, warn
from .resample import (
    can_be_resampled,
    find_resampled,
    interpolation_for,
    is_resampled,
    resample_file,
    resampled_path,
    resolution_label,
)
from .selection import (
    Selection,
    check_fields,
    is_empty,
    select,
    select_ids,
    warn_of_nothing,
)
from .tables import read_participants, read_trials

_MUCH = 10**9
_LESS = (
    ". For less, narrow subjects, sessions, rois or a filter; a dry run lists what "
    "would come."
)

Record = dict[str, Any]


@dataclass
class _Known:
    """What is known of some subjects, and what came of fetching."""

    catalog: Catalog
    subjects: list[str]
    ids: dict[tuple[str, str], list[str]]
    records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    failed: list[Record] = field(default_factory=list)


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
    known = _look(selection, call)
    subjects_meta = _choose_subjects(selection, call, known)
    images = _choose_images(selection, call, known)
    images, trials = _read_tables(selection, call, known, images)
    chosen = {
        "images": images,
        "rois": _choose_rois(selection, call, known),
        **_choose_companions(call, known, known.subjects),
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
    named = _named_records(image_ids)
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
    known = _look(selection, call, _folders_beside(named))
    subjects_meta = _choose_subjects(selection, call, known)
    images = _find_named(call, known, [rec["id"] for rec in named])
    images, trials = _read_tables(selection, call, known, images)
    with_betas = {rec["subject"] for rec in images if rec["image_type"] == "betas"}
    chosen = {
        "images": images,
        "rois": [],
        **_choose_companions(call, known, sorted(with_betas)),
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


def _look(selection: Selection, call: Call, beside: Sequence[Wanted] = ()) -> _Known:
    """Look at the bucket and the disk, only where the selection may lead."""
    how: Any = {
        "n_connections": call.n_connections,
        "timeout": call.timeout,
        "verbose": call.verbose,
    }
    offline, error = call.mode == "offline", None
    subjects = selection.subjects
    if subjects is None:
        top = look([(layout.GLM, "/")], call.data_dir, offline=offline, **how)
        _refuse_unlisted(top, call)
        subjects = layout.subjects_among(top.folders)
        offline, error = offline or top.error is not None, top.error
    wanted = [("", "/"), *beside]
    for subject in subjects:
        wanted += layout.listings_of(subject, selection.sessions)
        if admits(selection.image_filter, "image_type", "freesurfer"):
            wanted.append((f"{layout.FREESURFER}{subject}/", ""))
    found = look(dict.fromkeys(wanted), call.data_dir, offline=offline, **how)
    found = found._replace(error=error or found.error)
    _refuse_unlisted(found, call)
    known_ids = set(found.objects)
    if call.mode != "overwrite":
        known_ids |= found.on_disk
    ids: dict[tuple[str, str], list[str]] = {}
    for one in known_ids:
        ids.setdefault(layout.place(one), []).append(one)
    return _Known(found, sorted(subjects), ids)


def _refuse_unlisted(found: Catalog, call: Call) -> None:
    if found.error and found.unlisted:
        if not found.on_disk:
            raise BucketError(
                f"{found.error} Nothing of it is in {call.data_dir}, and no listing "
                "was saved earlier."
            )
        lacking = [prefix or "the top level" for prefix in found.unlisted]
        raise BucketError(
            f"{found.error} No listing of {listed(lacking)} was saved earlier, so what "
            "is missing cannot be told. mode='offline' returns what is there."
        )


def _records(call: Call, known: _Known, tree: str, subject: str) -> list[Record]:
    """Return the records of a subject's files in a tree, made once."""
    place = (tree, subject)
    if place not in known.records:
        ids, objects = known.ids.get(place, []), known.catalog.objects
        known.records[place] = [
            rec
            for rec in records(known.catalog, ids, call.data_dir)
            if rec["id"] in objects or not is_resampled(rec)
        ]
    return known.records[place]


def _is_cached(rec: Record, call: Call, known: _Known) -> bool:
    """Tell whether a file, or what was resampled from it, is on disk."""
    if rec["id"] in known.catalog.on_disk:
        return True
    if call.resolution is None or not can_be_resampled(rec):
        return False
    how = interpolation_for(rec, call.interpolation)
    return find_resampled(rec["absolute_path"], call.resolution, how) is not None


def _choose_subjects(
    selection: Selection, call: Call, known: _Known
) -> list[dict[str, Any]]:
    """Find the subjects there are, describe them, and filter."""
    there = [s for s in known.subjects if _is_there(s, call, known)]
    absent = sorted(set(known.subjects) - set(there))
    if absent and selection.subjects is not None:
        _raise_no_subject(absent[0], call, known)
    table = _participants(selection, call, known)
    meta = []
    for subject in there:
        rois = _records(call, known, layout.ROIS, subject)
        meta.append(
            {
                "subject": subject,
                **table.get(subject, {}),
                "sessions": sorted(_sessions(known, subject) - layout.HELD_OUT),
                "rois": sorted({rec["roi"] for rec in rois if rec["roi"]}),
            }
        )
    if meta:
        names = {name for one in meta for name in one}
        check_fields(selection.subject_filter, "subject_filter", names)
    described = meta
    meta = [one for one in meta if selection.subject_filter(one)]
    if described and not meta:
        warn_of_nothing("subject_filter", selection.subject_filter, described)
    known.subjects = [one["subject"] for one in meta]
    return meta


def _is_there(subject: str, call: Call, known: _Known) -> bool:
    ids = (i for tree in layout.TREES for i in known.ids.get((tree, subject), ()))
    return any(call.mode != "offline" or i in known.catalog.on_disk for i in ids)


def _raise_no_subject(subject: str, call: Call, known: _Known) -> None:
    offline = call.mode == "offline" or known.catalog.error is not None
    top = look([(layout.GLM, "/")], call.data_dir, offline=offline)
    there = listed(list(layout.subjects_among(top.folders))) or "others"
    if call.mode == "offline":
        raise NotCachedError(
            f"Nothing of {subject} is on disk in {call.data_dir}; the bucket has "
            f"{there}. {call.how_to_fetch}"
        )
    raise InvalidQueryError(f"There is no subject {subject!r}; there are {there}.")


def _sessions(
    known: _Known, subject: str, paths: Iterable[str] | None = None
) -> set[str]:
    """Return the image-viewing sessions of a subject, held-out ones too."""
    glm = f"{layout.GLM}{subject}/"
    if paths is None:
        paths = [*known.ids.get((layout.GLM, subject), ()), *known.catalog.folders]
    names = {p[len(glm) :].partition("/")[0] for p in paths if p.startswith(glm)}
    return {name for name in names if layout.clean_session(name) == name}


def _participants(
    selection: Selection, call: Call, known: _Known
) -> dict[str, dict[str, Any]]:
    """Return the columns of ``participants.tsv`` by subject; it may be missing."""
    if not (call.dry_run and is_empty(selection.subject_filter)):
        table = records(
            known.catalog,
            {layout.PARTICIPANTS} & set(known.catalog.objects),
            call.data_dir,
        )
        _download(_missing(table, selection, call, known), call, known)
    if layout.PARTICIPANTS not in known.catalog.on_disk:
        return {}
    file = cache.local_path(call.data_dir, layout.PARTICIPANTS)
    return read_participants(file)


def _choose_images(selection: Selection, call: Call, known: _Known) -> list[Record]:
    """Return the images of the chosen sessions that pass the image filter."""
    sessions = _choose_sessions(selection, call, known)
    types = layout.IMAGE_TYPES.items()
    trees = {t for i, t in types if admits(selection.image_filter, "image_type", i)}
    there = [
        rec
        for subject in known.subjects
        for tree in (layout.TREES if None in trees else sorted(filter(None, trees)))
        for rec in _records(call, known, tree, subject)
        if not layout.is_of_session(rec) or rec["session"] in sessions[subject]
    ]
    found = [rec for rec in there if selection.image_filter(rec)]
    if there and not found and call.mode != "offline":
        warn_of_nothing("the terms on images", selection.image_filter, there)
    return sorted(found, key=_order)


def _order(rec: Record) -> tuple[str, str, str]:
    return rec["subject"] or "", rec["session"] or "", rec["id"]


def _choose_sessions(
    selection: Selection, call: Call, known: _Known
) -> dict[str, set[str]]:
    """Return the chosen sessions of each subject."""
    there = {subject: _sessions(known, subject) for subject in known.subjects}
    if selection.sessions is None:
        return {subject: names - layout.HELD_OUT for subject, names in there.items()}
    if call.mode == "offline":
        on_disk = known.catalog.on_disk
        there = {subject: _sessions(known, subject, on_disk) for subject in there}
    for name in selection.sessions:
        _check_named(f"session {name}", name, there, call)
    return {subject: names & {*selection.sessions} for subject, names in there.items()}


def _choose_rois(selection: Selection, call: Call, known: _Known) -> list[Record]:
    """Return the masks of the ROIs and categories asked for."""
    if selection.rois == ():
        return []
    masks = [
        rec
        for subject in known.subjects
        for rec in _records(call, known, layout.ROIS, subject)
        if rec["roi"] and _can_come(rec, call, known)
    ]
    there: dict[str, set[str]] = {subject: set() for subject in known.subjects}
    for rec in masks:
        there[rec["subject"]] |= {rec["roi"], rec["roi_category"]}
    for name in selection.rois or ():
        _check_named(f"ROI {name}", name, there, call)
    names = None if selection.rois is None else {*selection.rois}
    named = [
        rec
        for rec in masks
        if names is None or rec["roi"] in names or rec["roi_category"] in names
    ]
    passed = [rec for rec in named if selection.roi_filter(rec)]
    if named and not passed:
        warn_of_nothing("the terms on ROI masks", selection.roi_filter, named)
    return passed


def _check_named(what: str, name: str, there: dict[str, set[str]], call: Call) -> None:
    """Warn of a name that some subjects lack; raise for one that all lack."""
    lacking = [subject for subject, names in there.items() if name not in names]
    if not lacking:
        return
    if len(lacking) < len(there):
        warn(f"There is no {what} for {listed(lacking)}, where it is left out.")
        return
    names = set().union(*there.values()) - {None} - layout.HELD_OUT
    hint = did_you_mean(name, names)
    if call.mode == "offline" and layout.is_published_roi(name):
        hint = f"there are {listed(sorted(names), most=40)}."
    if what.startswith("session"):
        hint = f"there are {listed(sorted(names), most=40)}."
    if call.mode == "offline":
        raise NotCachedError(
            f"No {what} of {listed(lacking)} is on disk in {call.data_dir}; {hint} "
            f"{call.how_to_fetch}"
        )
    raise InvalidQueryError(f"There is no {what} for {listed(lacking)}; {hint}")


def _can_come(rec: Record, call: Call, known: _Known) -> bool:
    """Tell whether a file is on disk, or the bucket may be asked for it."""
    return call.mode != "offline" or _is_cached(rec, call, known)


def _choose_companions(
    call: Call, known: _Known, subjects: Iterable[str]
) -> dict[str, list[Record]]:
    """Return the files that go with images: a brain mask a subject, noise ceilings."""
    masks, ceilings = [], []
    for subject in subjects:
        anatomical = _records(call, known, layout.ANATOMICAL, subject)
        maps = _records(call, known, layout.GLM, subject)
        can_come = [rec for rec in anatomical + maps if _can_come(rec, call, known)]
        own = [rec for rec in can_come if layout.is_functional_brain_mask(rec)]
        if not own and not cache.brain_mask_file(call.data_dir, subject).exists():
            own = [rec for rec in can_come if rec["image_type"] == "mean_rsquare"]
        masks += own[:1]
        ceilings += [
            rec for rec in can_come if rec["image_type"] == "subject_noise_ceiling"
        ]
    return {"brain_masks": masks, "noise_ceilings": ceilings}


def _named_records(image_ids: str | Iterable[str]) -> list[Record]:
    """Return the records of ids as far as their names tell."""
    ids = [image_ids] if isinstance(image_ids, str) else list(image_ids)
    for one in ids:
        if not isinstance(one, str):
            raise InvalidQueryError(
                f"image_ids holds {one!r}; give ids or keys, as str"
            )
    named = {rec["id"]: rec for rec in map(layout.record, ids)}
    for gated in layout.GATED & set(named):
        raise InvalidQueryError(
            f"{gated!r} is gated by a Data Use Agreement; use fetch_laion_stimuli."
        )
    return sorted(named.values(), key=_order)


def _folders_beside(named: list[Record]) -> list[Wanted]:
    """Return the folders of named files that lie beside what subjects are listed by."""
    folders = {
        rec["id"].rpartition("/")[0]
        for rec in named
        if layout.place(rec["id"])[0]
        not in (layout.GLM, layout.ROIS, layout.ANATOMICAL)
    }
    return [(f"{folder}/", "/") for folder in sorted(folders) if folder]


def _find_named(call: Call, known: _Known, ids: list[str]) -> list[Record]:
    """Return the records of named files; raise for one that is not there."""
    there = known.catalog.on_disk
    if call.mode != "offline":
        there = there | set(known.catalog.objects)
    for one in ids:
        if one not in there:
            hint = did_you_mean(one, there)
            if call.mode == "offline":
                raise NotCachedError(
                    f"{one} is not on disk in {call.data_dir}; {hint} "
                    f"{call.how_to_fetch}"
                )
            raise InvalidQueryError(f"There is no file {one!r} in the bucket; {hint}")
    return records(known.catalog, ids, call.data_dir)


class _Trials(NamedTuple):
    """Trial tables: ``image_index`` of a trial is the position of its session."""

    frame: pd.DataFrame
    sessions: list[tuple[str, str]]


def _read_tables(
    selection: Selection, call: Call, known: _Known, images: list[Record]
) -> tuple[list[Record], _Trials]:
    """Read trial tables, and cut the images by the trial filter and ``max_images``."""
    filtered = not is_empty(selection.trial_filter)
    if filtered:
        of_sessions = [rec for rec in images if layout.is_of_session(rec)]
        trials = _trials(selection, call, known, of_sessions)
        dropped = _without_table(selection, call, known, of_sessions, trials)
        passed = selection.trial_filter.mask(trials.frame)
        if len(passed) and not passed.any():
            warn_of_nothing("trial_filter", selection.trial_filter, trials.frame)
        trials = trials._replace(frame=trials.frame[passed])
        sessions = {trials.sessions[i] for i in trials.frame["image_index"].unique()}
        images = [
            rec
            for rec in images
            if not layout.is_of_session(rec) or _session(rec) in sessions - dropped
        ]
    if call.mode == "offline":
        images = _only_cached(selection, call, known, images)
    images = images[: selection.max_images]
    if not filtered:
        betas = [rec for rec in images if rec["image_type"] == "betas"]
        trials = _trials(selection, call, known, betas)
        dropped = _without_table(selection, call, known, betas, trials)
        images = [
            rec
            for rec in images
            if rec["image_type"] != "betas" or _session(rec) not in dropped
        ]
    return images, trials


def _session(rec: Record) -> tuple[str, str]:
    return rec["subject"], rec["session"]


def _trials(
    selection: Selection, call: Call, known: _Known, images: list[Record]
) -> _Trials:
    """Fetch and read the trial tables of the sessions of images."""
    ids = {layout.trials_id(rec): _session(rec) for rec in images}
    in_bucket = [one for one in ids if one in known.catalog.objects]
    tables = records(known.catalog, in_bucket, call.data_dir)
    _download(_missing(tables, selection, call, known), call, known)
    failed = {rec["id"] for rec in known.failed}
    on_disk = [o for o in ids if o in known.catalog.on_disk and o not in failed]
    return _Trials(read_trials(call.data_dir, on_disk), [ids[one] for one in on_disk])


def _without_table(
    selection: Selection,
    call: Call,
    known: _Known,
    images: list[Record],
    trials: _Trials,
) -> set[tuple[str, str]]:
    """Say which sessions have no trial table; return those to drop."""
    lacking = [rec for rec in images if _session(rec) not in set(trials.sessions)]
    failed = {_session(rec) for rec in known.failed if rec["image_type"] == "trials"}
    known.failed += [
        {**rec, "reason": "the trial table of its session could not be fetched"}
        for rec in lacking
        if _session(rec) in failed
    ]
    lacking = [rec for rec in lacking if _session(rec) not in failed]
    filtered = not is_empty(selection.trial_filter)
    if lacking and filtered and call.mode == "offline" and selection.sessions:
        raise NotCachedError(
            f"The trial table {layout.trials_id(lacking[0])} is not on disk in "
            f"{call.data_dir}, so trial_filter cannot be applied to a session that "
            f"was named. {call.how_to_fetch}"
        )
    seen = [rec for rec in lacking if _can_come(rec, call, known)]
    if seen:
        warn(
            f"There is no trial table for {listed([rec['id'] for rec in seen])}; "
            + ("left out." if filtered else "returned without trials.")
        )
    return failed | {_session(rec) for rec in lacking if filtered}


def _only_cached(
    selection: Selection, call: Call, known: _Known, images: list[Record]
) -> list[Record]:
    """Return the images on disk; raise for a session that was named and is not."""
    cached = [rec for rec in images if _is_cached(rec, call, known)]
    there = {rec["session"] for rec in cached}
    for rec in images:
        if selection.sessions and layout.is_of_session(rec) and rec not in cached:
            what = f"{rec['session']} of {rec['subject']}"
            if rec["session"] not in there:
                raise NotCachedError(
                    f"The {rec['image_type']} of {what} lack on disk in "
                    f"{call.data_dir}. {call.how_to_fetch}"
                )
            warn(f"The {rec['image_type']} of {what} lack on disk and are left out.")
    return cached


def _missing(
    wanted: Iterable[Record],
    selection: Selection,
    call: Call,
    known: _Known,
    selected: Iterable[str] = (),
) -> list[tuple[Record, str]]:
    """Return the records that must be fetched, each with the reason.

    In overwrite mode these are the ``selected`` ids; what goes with them is fetched
    again where it, too, fulfils a term on ``last_modified``.
    """
    if call.mode == "offline":
        return []
    missing = {}
    for rec in wanted:
        one = rec["id"]
        if one in known.fetched or one not in known.catalog.objects:
            continue
        if not _is_cached(rec, call, known):
            missing[one] = rec, "missing"
        elif call.mode == "overwrite" and (
            one in selected
            or admits(selection.image_filter, "last_modified", rec["last_modified"])
        ):
            missing[one] = rec, "overwrite"
    return list(missing.values())


def _download(
    missing: list[tuple[Record, str]], call: Call, known: _Known, quiet: bool = True
) -> None:
    """Fetch files; note what came and what failed, or raise."""
    if not missing:
        return
    _refuse_without_bucket([rec for rec, _ in missing], call, known)
    by_id = {rec["id"]: rec for rec, _ in missing}
    verbose = 0 if quiet and call.verbose < 2 else call.verbose
    failed = fetch_records(by_id.values(), call, verbose)
    known.fetched |= set(by_id) - set(failed)
    known.catalog.on_disk.update(set(by_id) - set(failed))
    if failed and not call.allow_missing:
        _raise_failed(by_id, failed)
    known.failed += [
        {**by_id[one], "reason": failure["reason"]} for one, failure in failed.items()
    ]


def _raise_failed(by_id: dict[str, Record], failed: dict[str, dict]) -> None:
    held_out = sorted(
        f"{by_id[one]['session']} of {by_id[one]['subject']}"
        for one, failure in failed.items()
        if failure["status"] == 403 and by_id[one]["session"] in layout.HELD_OUT
    )
    if held_out:
        raise HeldOutSessionError(
            f"{listed(list(dict.fromkeys(held_out)))} is held out for evaluation: the "
            "bucket denies it (status 403). Leave it out of sessions."
        )
    reasons = [f"  {one}: {failure['reason']}" for one, failure in failed.items()]
    raise DownloadError(
        f"{len(failed)} of {len(by_id)} files could not be fetched. What arrived "
        "stays, and the same call goes on from there; allow_missing=True does without "
        "the others.\n" + "\n".join(reasons),
        failed=[{**by_id[one], "reason": f["reason"]} for one, f in failed.items()],
    )


def _refuse_without_bucket(missing: list[Record], call: Call, known: _Known) -> None:
    """Raise where files are missing and the bucket did not answer."""
    if missing and known.catalog.error:
        raise BucketError(
            f"{known.catalog.error} Missing in {call.data_dir}: "
            f"{listed([rec['id'] for rec in missing])}. mode='offline' returns what is "
            "there."
        )


def _fetch(
    selection: Selection,
    call: Call,
    known: _Known,
    query: dict[str, Any],
    subjects_meta: list[dict[str, Any]],
    chosen: dict[str, list[Record]],
    trials: _Trials,
) -> Bunch:
    """Fetch what is missing of the chosen files, and make the Bunch."""
    selected = {rec["id"] for rec in chosen["images"]}
    wanted = [rec for kind in chosen.values() for rec in kind]
    missing = _missing(wanted, selection, call, known, selected)
    size = sum(rec["size"] or 0 for rec, _ in missing)
    if missing and not call.dry_run:
        _refuse_without_bucket([rec for rec, _ in missing], call, known)
        tell(
            f"Fetching {counted(len(missing), 'file')}, {readable_size(size)}, from "
            f"{bucket_url()} to {call.data_dir}{_LESS if size >= _MUCH else ''}",
            call.verbose,
        )
        if any(rec["image_type"] != "trials" for rec, _ in missing):
            accept_license(call.data_dir)
        _download(missing, call, known, quiet=False)
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
    known: _Known,
    query: dict[str, Any],
    subjects_meta: list[dict[str, Any]],
    chosen: dict[str, list[Record]],
    trials: _Trials,
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


def _resample(call: Call, known: _Known, chosen: dict[str, list[Record]]) -> None:
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
    trials: _Trials, images: list[Record]
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
        at = position.get(_session(rec)) if rec["image_type"] == "betas" else None
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


def _brain_masks(call: Call, known: _Known, masks: list[Record]) -> dict[str, str]:
    """Return a brain mask a subject; derived where the bucket has none."""
    found = {}
    for subject in known.subjects:
        derived = cache.brain_mask_file(call.data_dir, subject)
        own = [rec for rec in masks if rec["subject"] == subject]
        if own and own[0]["image_type"] == "mean_rsquare" and not call.dry_run:
            _derive_brain_mask(own[0]["absolute_path"], derived)
        elif own:
            found[subject] = own[0]["absolute_path"]
            continue
        if derived.exists():
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
