"""Which subjects, images, trials and masks are selected: records in, records out.

Nothing here reads a file, asks a server or knows a mode. Records are those of all files
known; which of them are available is decided last, by `leave_out_absent`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import (
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.keys import (
    Record,
    is_functional_brain_mask,
    is_held_out,
    is_of_session,
    is_of_trials,
)
from laion_fmri_fetchers.layout.names import (
    clean_session,
    is_published_roi,
    with_unions,
)
from laion_fmri_fetchers.layout.trees import GLM, HELD_OUT, IMAGE_TYPES, trials_id
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, admits, fields
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.query.term_checks import (
    check_fields,
    check_terms,
)

Session = tuple[str, str]
"""A subject and one of its sessions."""

_NAMES_SHOWN = 40


class Trials(NamedTuple):
    """Trial tables: ``image_index`` of a trial is the position of its session."""

    frame: pd.DataFrame
    sessions: list[Session]


class Companions(NamedTuple):
    """Files that go with images: a brain mask for each subject, its noise ceilings."""

    brain_masks: list[Record]
    noise_ceilings: list[Record]

    def files(self) -> list[Record]:
        """Return the records of all files."""
        return self.brain_masks + self.noise_ceilings


# --- Subjects --------------------------------------------------------------------


def describe_subjects(
    subjects: Iterable[str],
    records: Iterable[Record],
    participants: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a description of each subject: participant, sessions and ROIs."""
    sessions: dict[str, set[str]] = {subject: set() for subject in subjects}
    rois: dict[str, set[str]] = {subject: set() for subject in sessions}
    for rec in records:
        subject = rec["subject"]
        if subject not in sessions:
            continue
        if rec["roi"]:
            rois[subject].add(rec["roi"])
        elif rec["session"] in sessions[subject] or not rec["id"].startswith(GLM):
            continue
        elif is_of_trials(rec):
            sessions[subject].add(rec["session"])
    return [
        {
            "subject": subject,
            **participants.get(subject, {}),
            "sessions": sorted(sessions[subject] - HELD_OUT),
            "rois": sorted(rois[subject]),
        }
        for subject in sessions
    ]


def choose_subjects(
    described: list[dict[str, Any]], subject_filter: ResultFilter
) -> list[dict[str, Any]]:
    """Return the subjects that pass the filter."""
    if described:
        names = {name for meta in described for name in meta}
        check_fields(subject_filter, "subject_filter", names)
    chosen = [meta for meta in described if subject_filter(meta)]
    check_terms("subject_filter", subject_filter, described, len(chosen))
    return chosen


# --- Images ----------------------------------------------------------------------


def choose_images(records: Iterable[Record], selection: Selection) -> list[Record]:
    """Return the images of the selected sessions that pass the image filter."""
    named = None if selection.sessions is None else {*selection.sessions}
    types = {t for t in IMAGE_TYPES if _admits_type(selection.image_filter, t)}
    in_sessions = [
        rec
        for rec in records
        if rec["subject"] is not None and _is_in_sessions(rec, named)
    ]
    chosen = [
        rec
        for rec in in_sessions
        if rec["image_type"] in types and selection.image_filter(rec)
    ]
    name = "the terms on images"
    check_terms(name, selection.image_filter, in_sessions, len(chosen))
    return chosen


def _admits_type(given: ResultFilter, image_type: str) -> bool:
    return admits(given, "image_type", image_type)


def _is_in_sessions(rec: Record, named: set[str] | None) -> bool:
    """Tell whether a file is of a selected session, or of the subject as a whole."""
    if not is_of_session(rec):
        return True
    return not is_held_out(rec) if named is None else rec["session"] in named


def is_updated(rec: Record, selection: Selection) -> bool:
    """Return whether mode "overwrite" fetches a file again that goes with images.

    It does where the file, too, passes the terms on its version.
    """
    passes = admits(selection.image_filter, "outdated", rec["outdated"])
    return passes and selection.is_newer(rec)


def updated_tables(records: Iterable[Record], selection: Selection) -> list[Record]:
    """Return the trial tables that terms on the version of files are to update.

    Where nothing but its table changed, no image of a session passes such a term.
    """
    given = selection.image_filter
    asks_for_versions = fields(given) & {"outdated", "last_modified"}
    if not asks_for_versions or not _admits_type(given, "betas"):
        return []
    named = None if selection.sessions is None else {*selection.sessions}
    return [
        rec
        for rec in records
        if rec["image_type"] == "trials"
        and _is_in_sessions(rec, named)
        and admits(given, "session", rec["session"])
        and is_updated(rec, selection)
    ]


def limit_images(
    images: list[Record], absent: Container[str], selection: Selection
) -> list[Record]:
    """Return the first ``max_images``.

    Absent images count only where their sessions were named; among all sessions, the
    first available ones are returned.
    """
    limit = selection.max_images
    if limit is None:
        return images
    if selection.sessions is None:
        present = [rec for rec in images if rec["id"] not in absent]
        return present[:limit] if len(present) >= limit else images
    return images[:limit]


# --- Trials ----------------------------------------------------------------------


def tables_of(images: Iterable[Record]) -> dict[str, Session]:
    """Return the trial tables of the sessions of images: id -> session."""
    return {trials_id(rec): session_of(rec) for rec in images}


def earlier_tables(sessions: Iterable[Session]) -> list[str]:
    """Return the trial tables of all sessions before some, by number.

    Which showing of an image a trial was can be counted with these alone.
    """
    last: dict[str, int] = {}
    for subject, session in sessions:
        number = int(session.removeprefix("ses-"))
        last[subject] = max(last.get(subject, 0), number)
    return [
        trials_id({"subject": subject, "session": clean_session(number)})
        for subject, n_sessions in last.items()
        for number in range(1, n_sessions)
    ]


def choose_trials(trials: Trials, trial_filter: ResultFilter) -> Trials:
    """Return the trials that pass the filter."""
    passed = trial_filter.mask(trials.frame)
    check_terms("trial_filter", trial_filter, trials.frame, passed.sum())
    return trials._replace(frame=trials.frame[passed])


def images_with_trials(images: list[Record], trials: Trials) -> list[Record]:
    """Return the images of sessions with trials, and those of no such session."""
    with_trials = {trials.sessions[i] for i in trials.frame["image_index"].unique()}
    return [
        rec for rec in images if not is_of_trials(rec) or session_of(rec) in with_trials
    ]


def session_of(rec: Record) -> Session:
    """Return subject and session of a record."""
    return rec["subject"], rec["session"]


def align(
    trials: Trials, images: list[Record]
) -> tuple[pd.DataFrame, list[np.ndarray | None]]:
    """Return the trials in the order of images, and the volumes of each image."""
    frame = trials.frame
    table = frame["image_index"].to_numpy()
    starts = np.searchsorted(table, np.arange(len(trials.sessions) + 1))
    position = {session: i for i, session in enumerate(trials.sessions)}
    volumes = frame["beta_index"].to_numpy()
    sample_masks: list[np.ndarray | None] = []
    tables = []
    for rec in images:
        at = position.get(session_of(rec)) if rec["image_type"] == "betas" else None
        if at is None:
            sample_masks.append(None)
        else:
            sample_masks.append(volumes[starts[at] : starts[at + 1]].copy())
            tables.append(at)
    sizes = [0 if mask is None else len(mask) for mask in sample_masks]
    if tables != [*range(len(trials.sessions))]:
        rows = [np.arange(starts[at], starts[at + 1]) for at in tables]
        frame = frame.iloc[np.concatenate([np.empty(0, dtype=np.intp), *rows])]
    frame = frame.reset_index(drop=True)
    frame["image_index"] = np.repeat(np.arange(len(images)), sizes)
    return frame, sample_masks


# --- Masks and maps --------------------------------------------------------------


def choose_rois(records: Iterable[Record], selection: Selection) -> list[Record]:
    """Return the masks of the selected ROIs and categories that pass the filter.

    Of each subject, in the order in which they were named.
    """
    if selection.rois == ():
        return []
    masks = [rec for rec in records if rec["roi"]]
    if selection.rois is not None:
        place = {name: i for i, name in reversed([*enumerate(selection.rois)])}
        last = len(place)

        def order(rec: Record) -> int:
            of_roi = place.get(rec["roi"], last)
            return min(of_roi, place.get(rec["roi_category"], last))

        masks = [rec for rec in masks if order(rec) < last]
        masks.sort(key=lambda rec: (rec["subject"], order(rec)))
    passed = [rec for rec in masks if selection.roi_filter(rec)]
    check_terms("the terms on ROI masks", selection.roi_filter, masks, len(passed))
    return passed


def choose_companions(
    records: Iterable[Record],
    subjects: Container[str],
    absent: Container[str],
) -> Companions:
    """Return the brain mask and the noise ceilings of each subject.

    Where a subject has no mask, it is the map of mean R2, to derive one from.

    Parameters
    ----------
    records : iterable of dict
        Records of all files.
    subjects : container of str
        Whose.
    absent : container of str
        Ids of files that cannot be had.
    """
    masks: dict[str, Record] = {}
    means: dict[str, Record] = {}
    ceilings = []
    for rec in records:
        subject = rec["subject"]
        if subject not in subjects:
            continue
        if rec["image_type"] == "subject_noise_ceiling":
            ceilings.append(rec)
        elif rec["id"] in absent:
            continue
        elif is_functional_brain_mask(rec):
            masks.setdefault(subject, rec)
        elif rec["image_type"] == "mean_rsquare":
            means.setdefault(subject, rec)
    return Companions([*{**means, **masks}.values()], ceilings)


# --- Names -----------------------------------------------------------------------


def missing_names(
    kind: str, names: Iterable[str] | None, by_subject: dict[str, set[str]]
) -> list[tuple[list[str], str, str]]:
    """Return the names that subjects do not have: subjects, name, and a hint.

    Parameters
    ----------
    kind : {"ROI", "session"}
        What is named.
    names : iterable of str or None
        What was asked for; None: all.
    by_subject : dict
        The names of each subject.
    """
    existing = set().union(*by_subject.values()) - HELD_OUT
    missing = []
    for name in names or ():
        lacking = [s for s, of_subject in by_subject.items() if name not in of_subject]
        if lacking:
            hint = did_you_mean(name, with_unions(existing))
            if existing and (kind == "session" or is_published_roi(name)):
                hint = f"there are {listed(sorted(existing), most=_NAMES_SHOWN)}."
            missing.append((lacking, name, hint))
    return missing


def session_names(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return the sessions of each subject, whichever their files."""
    names: dict[str, set[str]] = {}
    for rec in records:
        if is_of_session(rec):
            names.setdefault(rec["subject"], set()).add(rec["session"])
    return names


def roi_names(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return the ROIs and ROI categories of each subject."""
    names: dict[str, set[str]] = {}
    for rec in records:
        if rec["roi"]:
            names.setdefault(rec["subject"], set()).update(
                (rec["roi"], rec["roi_category"])
            )
    return names


# --- Files that are unavailable --------------------------------------------------


def leave_out_absent(
    kind: str,
    chosen: list[Record],
    absent: Collection[str],
    *,
    is_named: Callable[[Record], bool],
    advice: str,
    leave_out: str = "allow_missing=True leaves such files out.",
) -> list[Record]:
    """Return the available files; never leave one out without a warning.

    Parameters
    ----------
    kind : str
        What the files are, in the plural.
    chosen : list of dict
        Records of selected files.
    absent : collection of str
        Ids of files that are unavailable.
    is_named : callable
        Whether a record's file, its session or ROI was named: then it is an error.
    advice : str
        What to do, to end the message with.
    leave_out : str, optional
        What to do to go on without files that were named.

    Raises
    ------
    NotCachedError
        If a file that was named is unavailable.
    """
    lacking = [rec for rec in chosen if rec["id"] in absent]
    if not lacking:
        return chosen
    named = [rec["id"] for rec in lacking if is_named(rec)]
    if named:
        raise NotCachedError(
            f"{counted(len(named), 'file')} of the selection "
            f"{'is' if len(named) == 1 else 'are'} not on disk: {listed(named)}. "
            f"{advice} {leave_out}"
        )
    present = [rec for rec in chosen if rec["id"] not in absent]
    warn(
        f"{len(lacking)} of {len(chosen)} {kind} are in the saved listing but not on "
        f"disk, and are left out: {listed(_short_names(lacking))}. {advice}"
    )
    return present


def _short_names(lacking: list[Record]) -> list[str]:
    """Return what to call files in a warning: ROI or session, and the subject."""
    return list(
        dict.fromkeys(
            f"{rec['roi'] or rec['session'] or rec['id'].rpartition('/')[2]} of "
            f"{rec['subject']}"
            for rec in lacking
        )
    )
