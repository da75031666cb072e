"""Which subjects, images, trials and masks are selected: records in, records out.

Nothing here reads a file, asks a server or knows a mode.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.layout.keys import (
    Record,
    is_functional_brain_mask,
    is_of_session,
    is_of_trials,
)
from laion_fmri_fetchers.layout.trees import GLM, HELD_OUT, IMAGE_TYPES
from laion_fmri_fetchers.query.filters import admits, fields
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.query.term_checks import check_terms


def names_of(records: Iterable[Record]) -> dict[str, set[str]]:
    """Return the sessions, ROIs and ROI categories of each subject."""
    names: dict[str, set[str]] = {}
    for rec in records:
        of_subject = names.setdefault(rec["subject"], set())
        if rec["roi"]:
            of_subject |= {rec["roi"], rec["roi_category"]}
        elif is_of_session(rec):
            of_subject.add(rec["session"])
    return names


def describe_subjects(
    subjects: Iterable[str],
    records: Iterable[Record],
    participants: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a description of each subject: participant, sessions and ROIs."""
    described = []
    for subject in subjects:
        own = [rec for rec in records if rec["subject"] == subject]
        images = [r for r in own if r["id"].startswith(GLM) and is_of_trials(r)]
        sessions = {rec["session"] for rec in images} - HELD_OUT
        rois = {rec["roi"] for rec in own} - {None}
        names = {"sessions": sorted(sessions), "rois": sorted(rois)}
        described.append({"subject": subject, **participants.get(subject, {}), **names})
    return described


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
    if limit is None or selection.sessions:
        return images[:limit]
    present = [rec for rec in images if rec["id"] not in absent]
    return present[:limit] if len(present) >= limit else images


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


def align_trials(
    trials: pd.DataFrame, images: list[Record]
) -> tuple[pd.DataFrame, list[np.ndarray | None]]:
    """Return the trials in the order of images, and the volumes of each image."""
    place = {
        (rec["subject"], rec["session"]): number
        for number, rec in enumerate(images)
        if rec["image_type"] == "betas"
    }
    sessions = zip(trials["subject"], trials["session"], strict=True)
    index = np.array([place.get(each, -1) for each in sessions], dtype=np.int64)
    frame = trials.assign(image_index=index)[index >= 0]
    frame = frame.sort_values("image_index", kind="stable", ignore_index=True)
    volumes = dict(iter(frame.groupby("image_index")["beta_index"]))
    sample_masks = [
        volumes[number].to_numpy(copy=True) if number in volumes else None
        for number in range(len(images))
    ]
    return frame, sample_masks


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


def choose_brain_masks(
    records: Iterable[Record], absent: Container[str]
) -> list[Record]:
    """Return a brain mask per subject, or else a map of mean R2 to derive one from."""
    masks: dict[str, Record] = {}
    means: dict[str, Record] = {}
    for rec in records:
        if rec["id"] in absent:
            continue
        if is_functional_brain_mask(rec):
            masks.setdefault(rec["subject"], rec)
        elif rec["image_type"] == "mean_rsquare":
            means.setdefault(rec["subject"], rec)
    return [*{**means, **masks}.values()]
