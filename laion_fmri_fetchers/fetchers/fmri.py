"""fetch_laion_fmri: from arguments to a Bunch of files and metadata.

The way through, with no step back::

    arguments -> Selection, Call, Grid   select, prepare
              -> Known                   know_subjects: bucket or saved listings, disk
              -> subjects                choose_subjects, by subject_filter
              -> images                  choose_images, by sessions and image_filter
              -> trials                  trial tables: obtain, read, choose_trials
              -> masks and maps          choose_rois, choose_companions
              -> files                   plan, obtain
              -> Bunch                   _bunch

Filters cut metadata at each step, before bytes move: of the bucket, nothing but
listings and small tables is read until the plan stands.
"""

from __future__ import annotations

import gzip
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.arrays.resample import (
    describe_folder,
    find_resampled,
    interpolation_for,
    resample_file,
)
from laion_fmri_fetchers.exceptions import (
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.grids import (
    can_be_resampled,
    resampled_path,
    resolution_label,
)
from laion_fmri_fetchers.layout.keys import (
    clean_key,
    is_held_out,
    is_of_trials,
    noise_ceiling_name,
    place_of,
)
from laion_fmri_fetchers.layout.trees import (
    BULK,
    FUNCTIONAL_GRID,
    GATED,
    PARTICIPANTS,
    ROOT_FILES,
    listings_of,
    trials_id,
)
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.filters import admits
from laion_fmri_fetchers.query.selection import Selection, select
from laion_fmri_fetchers.storage.catalog import Wanted
from laion_fmri_fetchers.storage.files import local_path, write_atomically
from laion_fmri_fetchers.storage.known import (
    SUBJECT_TREES,
    Known,
    Record,
    find_subjects,
    know,
    know_subjects,
    size_on_disk,
)
from laion_fmri_fetchers.storage.notes import note_removed
from laion_fmri_fetchers.storage.obtain import (
    Outcome,
    Planned,
    obtain,
    plan,
    planned_size,
)
from laion_fmri_fetchers.storage.settings import Call, Result, prepare
from laion_fmri_fetchers.storage.state import brain_mask_file
from laion_fmri_fetchers.storage.tables import read_participants, read_trials
from laion_fmri_fetchers.storage.versions import compare_versions

from .choose import (
    Companions,
    Trials,
    align,
    check_names,
    choose_companions,
    choose_images,
    choose_rois,
    choose_subjects,
    choose_trials,
    describe_subjects,
    earlier_tables,
    has_filter,
    images_with_trials,
    leave_out_absent,
    limit_images,
    roi_names,
    session_names,
    session_of,
    tables_of,
)


class Grid(NamedTuple):
    """An isotropic grid that images are resampled to."""

    resolution: float
    interpolation: str
    keep_original: bool


class Chosen(NamedTuple):
    """What a Bunch is made of."""

    images: list[Record]
    rois: list[Record]
    companions: Companions
    trials: Trials

    def files(self) -> list[Record]:
        """Return the records of all files."""
        return [
            *self.images,
            *self.rois,
            *self.companions.brain_masks,
            *self.companions.noise_ceilings,
        ]

    def without(self, ids: set[str]) -> Chosen:
        """Return the same without some files."""

        def others(records: list[Record]) -> list[Record]:
            return [rec for rec in records if rec["id"] not in ids]

        companions = Companions(*map(others, self.companions))
        return Chosen(others(self.images), others(self.rois), companions, self.trials)


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
    mode: str | None = None,
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
    grid = _grid(resolution, interpolation, keep_original)
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
        dry_run=dry_run,
    )
    subject_names, known = know_subjects(selection, call, grid and grid.resolution)
    _check_subjects(subject_names, selection, known, call)
    participants = _participants(selection, known, call)
    described = describe_subjects(subject_names, known.records, participants)
    described = choose_subjects(described, selection.subject_filter)
    names = {meta["subject"] for meta in described}
    records = [rec for rec in known.records if rec["subject"] in names]
    _check_names(selection, records, names, known, call)
    images = choose_images(records, selection)
    _tell_of_bulk(images, call)
    images, trials, tables = _choose_by_trials(images, selection, known, call)
    derived = _derived_masks(names, call)
    chosen = Chosen(
        images,
        choose_rois(records, selection),
        choose_companions(records, names, known.absent, derived),
        trials,
    )
    chosen = _leave_out_absent(chosen, selection.is_named, known, call)
    described = [m for m in described if _is_there(m["subject"], records, known)]
    query = selection.as_query()
    if grid is not None:
        query |= {"resolution": resolution, "interpolation": interpolation}
    return _fetch(chosen, described, query, selection, known, call, grid, tables)


def fetch_laion_fmri_ids(
    image_ids: str | Iterable[str] = (),
    *,
    mode: str | None = None,
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
    image_ids : str or iterable of str, default=()
        The ``id`` of records, or keys of the bucket; one that ends with ``/`` stands
        for every file below it, such as ``"derivatives/retinotopy/sub-01/"``, except
        files that are held out or gated. Betas bring their trial tables and, for each
        subject, brain mask and noise ceilings; other files are fetched alone.
    mode : {"download_new", "overwrite", "offline"}, optional
        ``"download_new"`` (the default) downloads files that are not on disk,
        ``"overwrite"`` all that are named, ``"offline"`` opens no socket; see
        `fetch_laion_fmri`.
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
        If an id is not that of a file of the bucket, or nothing is below a prefix.
    UnsafeKeyError
        If an id would leave the data directory.
    NotCachedError
        Offline, if a file is not on disk, unless ``allow_missing``.

    See Also
    --------
    fetch_laion_fmri : Select by subjects, ROIs and filters, and list its errors.

    Examples
    --------
    Save the ids of a selection, and fetch the same files elsewhere::

        ids = [meta["id"] for meta in data.images_meta]
        again = fetch_laion_fmri_ids(ids)

    All files of a subject in a tree, whatever they are::

        maps = fetch_laion_fmri_ids("derivatives/retinotopy/sub-01/")
    """
    ids, prefixes = _named(image_ids)
    call = prepare(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
        dry_run=dry_run,
    )
    known, names = _know_named(ids, prefixes, call)
    images = _choose_named(ids, prefixes, known, call)
    _tell_of_bulk(images, call)
    names &= {rec["subject"] for rec in images}
    everything = Selection(rois=())
    participants = _participants(everything, known, call)
    images, trials, tables = _choose_by_trials(images, everything, known, call)
    with_betas = {rec["subject"] for rec in images if rec["image_type"] == "betas"}
    derived = _derived_masks(with_betas, call)
    companions = choose_companions(known.records, with_betas, known.absent, derived)
    chosen = Chosen(images, [], companions, trials)
    chosen = _leave_out_absent(chosen, lambda _: True, known, call)
    described = describe_subjects(sorted(names), known.records, participants)
    query = {"image_ids": [*ids, *prefixes]}
    return _fetch(chosen, described, query, everything, known, call, None, tables)


# --- What is asked and known -----------------------------------------------------


def _grid(
    resolution: float | None, interpolation: str, keep_original: bool
) -> Grid | None:
    """Check the grid that images are to be resampled to."""
    if resolution is None:
        return None
    resolution_label(resolution)
    interpolation_for({"suffix": None}, interpolation)
    return Grid(float(resolution), interpolation, bool(keep_original))


def _check_subjects(
    names: list[str], selection: Selection, known: Known, call: Call
) -> None:
    """Raise for a subject that was named and of which nothing is there."""
    there = {rec["subject"] for rec in known.records if rec["id"] not in known.absent}
    absent = sorted(set(names) - there) if selection.subjects else []
    if not absent:
        return
    published, _ = find_subjects(call)
    if known.offline:
        raise NotCachedError(
            f"Nothing of {absent[0]} is on disk in {call.data_dir}; known subjects: "
            f"{listed(list(published)) or 'none'}. {call.how_to_fetch}"
        )
    if absent[0] not in published:
        raise InvalidQueryError(
            f"There is no subject {absent[0]!r}; there are {listed(list(published))}."
        )
    warn(f"The bucket has no files of {absent[0]} where the selection looks.")


def _is_there(subject: str, records: Iterable[Record], known: Known) -> bool:
    return not known.offline or any(
        rec["subject"] == subject and rec["id"] not in known.absent for rec in records
    )


def _participants(
    selection: Selection, known: Known, call: Call
) -> dict[str, dict[str, Any]]:
    """Return the columns of ``participants.tsv`` by subject; it may be missing."""
    filtered = has_filter(selection.subject_filter)
    table = [rec for rec in known.records if rec["id"] == PARTICIPANTS]
    fetched: frozenset[str] = frozenset()
    if filtered or not call.dry_run:
        planned = plan(table, known, call, again=lambda rec: _is_newer(rec, selection))
        optional = () if filtered else {PARTICIPANTS}
        outcome = obtain(planned, known, call, optional=optional, quiet=True)
        fetched = outcome.fetched
        for rec in outcome.failed:
            warn(f"{rec['id']} could not be downloaded ({rec['reason']}).")
    if PARTICIPANTS not in known.on_disk | fetched:
        return {}
    return read_participants(local_path(call.data_dir, PARTICIPANTS))


def _is_newer(rec: Record, selection: Selection) -> bool:
    """Tell whether a file passes a term on the date, where there is one."""
    return admits(selection.image_filter, "last_modified", rec["last_modified"])


def _check_names(
    selection: Selection,
    records: list[Record],
    subjects: Iterable[str],
    known: Known,
    call: Call,
) -> None:
    """Raise for sessions and ROIs that no subject has; warn where some lack them."""
    where = call.data_dir if known.offline else None
    for kind, names, found in (
        ("session", selection.sessions, session_names(records)),
        ("ROI", selection.rois, roi_names(records)),
    ):
        by_subject = {
            subject: found.get(subject, set()) for subject in sorted(subjects)
        }
        check_names(kind, names, by_subject, where)


def _tell_of_bulk(images: list[Record], call: Call) -> None:
    """Say how much raw and preprocessed time series are, before anything else."""
    bulk = [rec for rec in images if place_of(rec["id"])[0] in BULK]
    if bulk:
        size = readable_size(sum(rec["size"] or 0 for rec in bulk))
        tell(
            f"Time series selected: {size} in {counted(len(bulk), 'file')}",
            call.verbose,
        )


# --- Files that were named -------------------------------------------------------


def _named(image_ids: object) -> tuple[list[str], list[str]]:
    """Return ids and prefixes that were named, each once."""
    given = [image_ids] if isinstance(image_ids, str) else image_ids
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidQueryError(f"image_ids is {image_ids!r}; give ids or keys, as str")
    ids: dict[str, None] = {}
    prefixes: dict[str, None] = {}
    for name in given:
        if not isinstance(name, str):
            raise InvalidQueryError(
                f"image_ids holds {name!r}; give ids or keys, as str"
            )
        if name.strip("/") == "" or not name.endswith("/"):
            ids[clean_key(name)] = None
        else:
            prefixes[f"{clean_key(name.rstrip('/'))}/"] = None
    for gated in GATED & set(ids):
        raise InvalidQueryError(
            f"{gated!r} is gated by a Data Use Agreement; use fetch_laion_stimuli."
        )
    return sorted(ids), sorted(prefixes)


def _know_named(
    ids: list[str], prefixes: list[str], call: Call
) -> tuple[Known, set[str]]:
    """Return what is known of named files and of their subjects, and the subjects."""
    folders = {f"{path.rpartition('/')[0]}/" for path in ids} - {"/"}
    wanted: list[Wanted] = [("", "/"), *((folder, "/") for folder in sorted(folders))]
    wanted += [(prefix, "") for prefix in prefixes]
    subjects = {place_of(path)[1] for path in (*ids, *prefixes)}
    while True:
        names = {subject for subject in subjects if subject}
        known = know(
            wanted
            + [
                listing
                for subject in sorted(names)
                for listing in listings_of(subject, SUBJECT_TREES)
            ],
            call,
        )
        below = (
            rec for rec in known.records if rec["id"].startswith((*prefixes, "\0"))
        )
        subjects = names | {rec["subject"] for rec in below if rec["subject"]}
        if subjects == names:
            return known, names


def _choose_named(
    ids: list[str], prefixes: list[str], known: Known, call: Call
) -> list[Record]:
    """Return the records of named files; raise for names that are not there."""
    by_id = {rec["id"]: rec for rec in known.records}
    for path in ids:
        if path not in by_id:
            hint = did_you_mean(path, by_id)
            if known.offline:
                raise NotCachedError(
                    f"{path} is not on disk in {call.data_dir}; {hint} "
                    f"{call.how_to_fetch}"
                )
            raise InvalidQueryError(f"There is no file {path!r} in the bucket; {hint}")
    chosen = {path: by_id[path] for path in ids}
    for prefix in prefixes:
        below = [rec for rec in known.records if rec["id"].startswith(prefix)]
        if not below and known.offline:
            raise NotCachedError(
                f"Nothing below {prefix} is on disk in {call.data_dir}. "
                f"{call.how_to_fetch}"
            )
        if not below:
            raise InvalidQueryError(
                f"There is nothing below {prefix!r} in the bucket; inspect_bucket() "
                "shows its folders."
            )
        free = [rec for rec in below if not is_held_out(rec) and rec["id"] not in GATED]
        if len(free) < len(below):
            tell(
                f"Below {prefix}, {counted(len(below) - len(free), 'file')} held out "
                "for evaluation or gated by the Data Use Agreement are left out",
                call.verbose,
            )
        chosen |= {rec["id"]: rec for rec in free}
    return [rec for rec in known.records if rec["id"] in chosen]


# --- Trials ----------------------------------------------------------------------


def _choose_by_trials(
    images: list[Record], selection: Selection, known: Known, call: Call
) -> tuple[list[Record], Trials, Outcome]:
    """Cut images by the trial filter and ``max_images``, and read their trials."""
    filtered = has_filter(selection.trial_filter)
    if not filtered:
        images = limit_images(images, known.absent, selection)
    with_tables = [
        rec
        for rec in images
        if is_of_trials(rec) and (filtered or rec["image_type"] == "betas")
    ]
    trials, outcome = _read_tables(with_tables, selection, known, call)
    lacking = [rec for rec in with_tables if session_of(rec) not in {*trials.sessions}]
    failed = {session_of(rec) for rec in outcome.failed}
    outcome = outcome._replace(
        failed=tuple(
            rec for rec in outcome.failed if rec["id"] in tables_of(with_tables)
        )
        + tuple(
            {**rec, "reason": "the trial table of its session could not be downloaded"}
            for rec in lacking
            if session_of(rec) in failed
        )
    )
    dropped = _refuse_or_warn(lacking, failed, selection, known, call)
    images = [rec for rec in images if rec["id"] not in dropped]
    if filtered:
        trials = choose_trials(trials, selection.trial_filter)
        images = images_with_trials(images, trials)
        images = limit_images(images, known.absent, selection)
    return images, trials, outcome


def _read_tables(
    images: list[Record], selection: Selection, known: Known, call: Call
) -> tuple[Trials, Outcome]:
    """Download and read the trial tables of images, and all before them."""
    tables = tables_of(images)
    earlier = [one for one in earlier_tables(tables.values()) if one not in tables]
    needed = {*tables, *earlier}
    planned = plan(
        [rec for rec in known.records if rec["id"] in needed],
        known,
        call,
        again=lambda rec: _is_newer(rec, selection),
    )
    outcome = obtain(planned, known, call, optional=earlier, quiet=True)
    failed = {rec["id"] for rec in outcome.failed}
    there = (known.on_disk | outcome.fetched) - failed
    if uncounted := sorted(failed & {*earlier}):
        warn(
            f"{listed(uncounted)} could not be downloaded, so 'repetition' is unknown "
            "for later sessions."
        )
    on_disk = [one for one in tables if one in there]
    frame = read_trials(call.data_dir, on_disk)
    return Trials(frame, [tables[one] for one in on_disk]), outcome


def _refuse_or_warn(
    lacking: list[Record],
    failed: set[tuple[str, str]],
    selection: Selection,
    known: Known,
    call: Call,
) -> set[str]:
    """Return the ids of images to leave out, as their trial tables are not there."""
    filtered = has_filter(selection.trial_filter)
    dropped = {rec["id"] for rec in lacking if session_of(rec) in failed}
    others = [rec for rec in lacking if session_of(rec) not in failed]
    refuses = filtered and known.offline and not call.allow_missing
    if refuses and selection.sessions and others:
        raise NotCachedError(
            f"The trial table {trials_id(others[0])} is not on disk in "
            f"{call.data_dir}, so trial_filter cannot be applied to a session that "
            f"was named. {call.how_to_fetch}"
        )
    seen = [rec["id"] for rec in others if rec["id"] not in known.absent or filtered]
    if seen:
        warn(
            f"There is no trial table for {listed(seen)}; "
            + ("left out." if filtered else "returned without trials.")
        )
    return dropped | ({rec["id"] for rec in others} if filtered else set())


def _derived_masks(subjects: Iterable[str], call: Call) -> set[str]:
    """Return the subjects whose brain mask was derived and need not be again."""
    if call.mode == "overwrite":
        return set()
    return {s for s in subjects if brain_mask_file(call.data_dir, s).exists()}


def _leave_out_absent(
    chosen: Chosen, is_named: Callable[[Record], bool], known: Known, call: Call
) -> Chosen:
    """Leave out files that cannot be had; raise where they were named."""

    def present(kind: str, records: list[Record]) -> list[Record]:
        return leave_out_absent(
            kind,
            records,
            known.absent,
            is_named=lambda rec: is_named(rec) and not call.allow_missing,
            advice=call.how_to_fetch,
        )

    masks, ceilings = chosen.companions
    return chosen._replace(
        images=present("images", chosen.images),
        rois=present("ROI masks", chosen.rois),
        companions=Companions(masks, present("noise ceilings", ceilings)),
    )


# --- Files and the Bunch ---------------------------------------------------------


def _fetch(
    chosen: Chosen,
    subjects_meta: list[dict[str, Any]],
    query: dict[str, Any],
    selection: Selection,
    known: Known,
    call: Call,
    grid: Grid | None,
    tables: Outcome,
) -> Bunch:
    """Download what is missing of the chosen files, and make the Bunch."""
    planned = _plan(chosen, selection, known, call, grid, tables)
    outcome = tables
    if not call.dry_run:
        outcome += obtain(
            planned,
            known,
            call,
            accept=accept_license if any(map(_is_data, planned)) else None,
            optional=ROOT_FILES,
        )
    if known.error:
        warn(
            f"{known.error} By a listing saved earlier, "
            + (
                "this is what is planned."
                if call.dry_run
                else "everything selected is on disk; continuing offline."
            )
        )
    bunch = _bunch(chosen, subjects_meta, query, known, call, grid, outcome)
    summary = (
        f"{counted(len(bunch.images), 'image')}, "
        f"{counted(len(bunch.rois), 'ROI mask')} and "
        f"{counted(len(bunch.trials), 'trial')} of "
        f"{listed([meta['subject'] for meta in subjects_meta]) or 'no subject'} in "
        f"{call.data_dir}"
    )
    if call.dry_run:
        size = planned_size(planned)
        summary += (
            f"; {counted(len(planned), 'file')}, {readable_size(size)}, would be "
            "downloaded for them"
        )
        rows = [(rec["id"], rec["size"], reason) for rec, reason in planned]
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = size
    tell(summary, call.verbose)
    return bunch


def _is_data(item: Planned) -> bool:
    """Tell whether a file is under the terms of the data, as tables are not."""
    rec = item.record
    return rec["image_type"] != "trials" and rec["id"] not in ROOT_FILES


def _plan(
    chosen: Chosen,
    selection: Selection,
    known: Known,
    call: Call,
    grid: Grid | None,
    tables: Outcome,
) -> list[Planned]:
    """Return the files to download, and the dataset's root files with them."""
    selected = {rec["id"] for rec in chosen.images}
    files = chosen.files()
    if grid is not None:
        _check_targets(files, grid)
        if call.mode != "overwrite":
            files = [rec for rec in files if not _has_resampled(rec, call, grid)]
    done = tables.fetched | {rec["id"] for rec in tables.failed}
    planned = plan(
        files,
        known,
        call,
        again=lambda rec: rec["id"] in selected or _is_newer(rec, selection),
        done=done,
    )
    if planned:
        root = [rec for rec in known.records if rec["id"] in ROOT_FILES]
        planned += plan(root, known, call, done={*selected, *done})
    return planned


def _bunch(
    chosen: Chosen,
    subjects_meta: list[dict[str, Any]],
    query: dict[str, Any],
    known: Known,
    call: Call,
    grid: Grid | None,
    outcome: Outcome,
) -> Bunch:
    """Return the Bunch of files that were chosen and did not fail."""
    failed = [rec for rec in outcome.failed if rec["id"] not in ROOT_FILES]
    if failed:
        warn(
            f"{len(failed)} files could not be downloaded and are left out: "
            f"{listed(sorted(rec['id'] for rec in failed))}. The reasons are in the "
            "Bunch under 'failed'."
        )
    chosen = chosen.without({rec["id"] for rec in failed})
    compare_versions(chosen.files(), known, outcome.fetched)
    subjects = [meta["subject"] for meta in subjects_meta]
    masks = _brain_masks(subjects, chosen.companions.brain_masks, call, outcome)
    if grid is not None:
        chosen, masks = _resample(chosen, masks, call, grid, outcome)
    trials, sample_masks = align(chosen.trials, chosen.images)
    ceilings: dict[str, dict[str, str]] = {}
    for rec in chosen.companions.noise_ceilings:
        name = noise_ceiling_name(rec)
        ceilings.setdefault(rec["subject"], {})[name] = rec["absolute_path"]
    return Result(
        images=[rec["absolute_path"] for rec in chosen.images],
        images_meta=chosen.images,
        rois=[rec["absolute_path"] for rec in chosen.rois],
        rois_meta=chosen.rois,
        brain_masks=masks,
        noise_ceilings=ceilings,
        trials=trials,
        sample_masks=sample_masks,
        subjects_meta=subjects_meta,
        failed=[{k: v for k, v in rec.items() if k != "status"} for rec in failed],
        data_dir=call.data_dir,
        query=query,
        description=resources.files(__package__)
        .joinpath("laion_fmri.rst")
        .read_text("utf-8"),
    )


# --- Other grids -----------------------------------------------------------------


def _target(rec: Record, call: Call, grid: Grid) -> str:
    return local_path(call.data_dir, resampled_path(rec["id"], grid.resolution))


def _has_resampled(rec: Record, call: Call, grid: Grid) -> bool:
    """Tell whether the resampled image of a file is on disk, and fits."""
    if not can_be_resampled(rec):
        return False
    method = interpolation_for(rec, grid.interpolation)
    target = _target(rec, call, grid)
    return find_resampled(rec["absolute_path"], target, grid.resolution, method)


def _check_targets(files: list[Record], grid: Grid) -> None:
    """Raise where two files would be resampled to one."""
    originals: dict[str, str] = {}
    for rec in filter(can_be_resampled, files):
        path = resampled_path(rec["id"], grid.resolution)
        other = originals.setdefault(path, rec["id"])
        if other != rec["id"]:
            raise InvalidQueryError(
                f"{other} and {rec['id']} are one image on two grids, and would be one "
                "file when resampled. Choose one grid by a term, such as res='1pt8'."
            )


def _resample(
    chosen: Chosen, masks: dict[str, str], call: Call, grid: Grid, outcome: Outcome
) -> tuple[Chosen, dict[str, str]]:
    """Return what was chosen as resampled images, made where they are not there."""
    groups = (chosen.images, chosen.rois, chosen.companions.noise_ceilings)
    files = {
        rec["id"]: rec for group in groups for rec in filter(can_be_resampled, group)
    }
    targets = {path: _target(rec, call, grid) for path, rec in files.items()}
    mask_targets = {
        subject: local_path(call.data_dir, _mask_path(subject, grid))
        for subject in masks
    }
    if not call.dry_run:
        describe_folder(call.data_dir)
        jobs = [
            (
                rec["absolute_path"],
                targets[path],
                interpolation_for(rec, grid.interpolation),
                path,
            )
            for path, rec in files.items()
        ]
        jobs += [(masks[s], mask_targets[s], "nearest", "") for s in masks]
        Parallel()(
            delayed(resample_file)(
                file,
                target,
                grid.resolution,
                method,
                source=path,
                overwrite=path in outcome.fetched,
            )
            for file, target, method, path in jobs
        )
        if not grid.keep_original:
            _remove_originals(filter(can_be_resampled, chosen.images), call)

    def resampled(records: list[Record]) -> list[Record]:
        return [
            _resampled_record(rec, targets[rec["id"]], grid)
            if rec["id"] in targets
            else rec
            for rec in records
        ]

    companions = chosen.companions._replace(noise_ceilings=resampled(groups[2]))
    new = Chosen(resampled(groups[0]), resampled(groups[1]), companions, chosen.trials)
    return new, mask_targets


def _mask_path(subject: str, grid: Grid) -> str:
    """Return where the resampled brain mask of a subject is."""
    mask = f"{subject}_space-T1w_res-{FUNCTIONAL_GRID}_desc-brain_mask.nii.gz"
    return resampled_path(f"brain_masks/{subject}/{mask}", grid.resolution)


def _remove_originals(records: Iterable[Record], call: Call) -> None:
    removed = []
    for rec in records:
        if os.path.exists(rec["absolute_path"]):
            os.unlink(rec["absolute_path"])
            removed.append(rec["id"])
    if removed:
        note_removed(call.data_dir, removed)


def _resampled_record(rec: Record, target: str, grid: Grid) -> Record:
    """Return the record of a resampled image; its ``id`` is that of the original."""
    return {
        **rec,
        "relative_path": resampled_path(rec["id"], grid.resolution),
        "absolute_path": target,
        "res": resolution_label(grid.resolution),
        "size": size_on_disk({"absolute_path": target}),
    }


# --- Brain masks -----------------------------------------------------------------


def _brain_masks(
    subjects: Iterable[str], records: list[Record], call: Call, outcome: Outcome
) -> dict[str, str]:
    """Return the brain mask of each subject, derived where the bucket has none."""
    masks = {}
    sources = {rec["subject"]: rec for rec in records}
    for subject in subjects:
        source = sources.get(subject)
        derived = brain_mask_file(call.data_dir, subject)
        if source and source["image_type"] == "brain_mask":
            masks[subject] = source["absolute_path"]
            continue
        if source and not call.dry_run:
            is_stale = source["id"] in outcome.fetched
            if is_stale or not derived.exists():
                _derive_brain_mask(source["absolute_path"], derived)
        if derived.exists() or (source and call.dry_run):
            masks[subject] = str(derived)
    return masks


def _derive_brain_mask(mean_rsquare: str, target: Path) -> None:
    """Write the mask of the voxels whose mean R2 is above 0."""
    import nibabel as nib

    image: Any = nib.load(mean_rsquare)
    mask = np.asanyarray(image.dataobj) > 0
    content = nib.Nifti1Image(mask.astype(np.uint8), image.affine).to_bytes()
    try:
        write_atomically(target, gzip.compress(content, mtime=0))
    except OSError as error:
        warn(f"No brain mask could be derived from {mean_rsquare}: {error}")
    else:
        warn(
            f"The bucket has no brain mask for this subject; one was derived from "
            f"{mean_rsquare}, where R2 is above 0: {target}"
        )
