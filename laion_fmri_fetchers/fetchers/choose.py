"""Which subjects, images, trials and masks are selected: records in, records out.

Nothing here reads a file, asks a server or knows a mode. Records are those of all files
known; which of them are available is decided last, by `leave_out_absent`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import NotCachedError
from laion_fmri_fetchers.layout.keys import (
    Record,
    is_functional_brain_mask,
    is_of_session,
    is_of_trials,
)
from laion_fmri_fetchers.layout.trees import GLM, HELD_OUT, IMAGE_TYPES
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, admits, fields
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.query.term_checks import check_fields, check_terms

# A subject and one of its sessions.
Session = tuple[str, str]


# --- Subjects --------------------------------------------------------------------


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
            of_subject = names.setdefault(rec["subject"], set())
            of_subject |= {rec["roi"], rec["roi_category"]}
    return names


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
        elif rec["id"].startswith(GLM) and is_of_trials(rec):
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
    given = selection.image_filter
    types = {t for t in IMAGE_TYPES if admits(given, "image_type", t)}
    candidates = [
        rec for rec in records if rec["subject"] and selection.is_in_sessions(rec)
    ]
    # By type first, as most files are of other types and filters take time.
    chosen = [rec for rec in candidates if rec["image_type"] in types and given(rec)]
    check_terms("the terms on images", given, candidates, len(chosen))
    return chosen


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


def tables_to_update(records: Iterable[Record], selection: Selection) -> list[Record]:
    """Return the trial tables that terms on the version of files are to update.

    Where nothing but its table changed, no image of a session passes such a term.
    """
    given = selection.image_filter
    asks_for_versions = fields(given) & {"outdated", "last_modified"}
    if not asks_for_versions or not admits(given, "image_type", "betas"):
        return []
    return [
        rec
        for rec in records
        if rec["image_type"] == "trials"
        and selection.is_in_sessions(rec)
        and admits(given, "session", rec["session"])
        and selection.is_updated(rec)
    ]


# --- Trials ----------------------------------------------------------------------


def session_of(rec: Record) -> Session:
    """Return subject and session of a record."""
    return rec["subject"], rec["session"]


def rows_of_sessions(trials: pd.DataFrame) -> dict[Session, slice]:
    """Return the rows of each session of a trial table."""
    _, starts = np.unique(trials["image_index"], return_index=True)
    first = trials.iloc[starts]
    sessions = zip(first["subject"], first["session"], strict=True)
    rows = map(slice, starts, [*starts[1:], len(trials)])
    return dict(zip(sessions, rows, strict=True))


def align_trials(
    trials: pd.DataFrame, images: list[Record]
) -> tuple[pd.DataFrame, list[np.ndarray | None]]:
    """Return the trials in the order of images, and the volumes of each image."""
    rows = rows_of_sessions(trials)
    volumes = trials["beta_index"].to_numpy()
    sample_masks: list[np.ndarray | None] = []
    order = [np.empty(0, dtype=np.intp)]
    for rec in images:
        of_image = rows.get(session_of(rec)) if rec["image_type"] == "betas" else None
        if of_image is None:
            sample_masks.append(None)
        else:
            sample_masks.append(volumes[of_image].copy())
            order.append(np.arange(of_image.start, of_image.stop))
    frame = trials.iloc[np.concatenate(order)].reset_index(drop=True)
    sizes = [0 if mask is None else len(mask) for mask in sample_masks]
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
            names = rec["roi"], rec["roi_category"]
            return min(place.get(name, last) for name in names)

        masks = [rec for rec in masks if order(rec) < last]
        masks.sort(key=lambda rec: (rec["subject"], order(rec)))
    passed = [rec for rec in masks if selection.roi_filter(rec)]
    check_terms("the terms on ROI masks", selection.roi_filter, masks, len(passed))
    return passed


def choose_companions(
    records: Iterable[Record], subjects: Container[str], absent: Container[str]
) -> list[Record]:
    """Return the files that go with images: a brain mask per subject, noise ceilings.

    Where a subject has no mask, it is the map of mean R2, to derive one from.

    Parameters
    ----------
    records : iterable of dict
        Records of all files.
    subjects : container of str
        Whose.
    absent : container of str
        Ids of files that are unavailable.
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
    return [*{**means, **masks}.values(), *ceilings]


# --- Files that are unavailable --------------------------------------------------


def leave_out_absent(
    kind: str,
    chosen: list[Record],
    absent: Container[str],
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
    absent : container of str
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
    missing = [rec for rec in chosen if rec["id"] in absent]
    if not missing:
        return chosen
    named = [rec["id"] for rec in missing if is_named(rec)]
    if named:
        raise NotCachedError(
            f"{counted(len(named), 'file')} of the selection "
            f"{'is' if len(named) == 1 else 'are'} not on disk: {listed(named)}. "
            f"{advice} {leave_out}"
        )
    names = [
        f"{rec['roi'] or rec['session'] or rec['id'].rpartition('/')[2]} of "
        f"{rec['subject']}"
        for rec in missing
    ]
    warn(
        f"{len(missing)} of {len(chosen)} {kind} are in the saved listing but not on "
        f"disk, and are left out: {listed([*dict.fromkeys(names)])}. {advice}"
    )
    return [rec for rec in chosen if rec["id"] not in absent]
