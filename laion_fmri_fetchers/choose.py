"""Which subjects, images, trials and masks of what there is are selected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd

from . import cache, layout
from .calls import Call
from .catalog import Wanted, in_order, look, records
from .exceptions import InvalidQueryError, NotCachedError, did_you_mean
from .filters import admits
from .messages import listed, warn
from .scroll import (
    Known,
    Record,
    can_come,
    download,
    find_missing,
    is_cached,
    records_of,
)
from .selection import Selection, check_fields, is_empty, warn_of_nothing
from .tables import read_participants, read_trials


class Trials(NamedTuple):
    """Trial tables: ``image_index`` of a trial is the position of its session."""

    frame: pd.DataFrame
    sessions: list[tuple[str, str]]


def choose_subjects(
    selection: Selection, call: Call, known: Known
) -> list[dict[str, Any]]:
    """Find the subjects there are, describe them, and filter."""
    there = [s for s in known.subjects if _is_there(s, call, known)]
    absent = sorted(set(known.subjects) - set(there))
    if absent and selection.subjects is not None:
        _raise_no_subject(absent[0], call, known)
    table = _participants(selection, call, known)
    meta = []
    for subject in there:
        rois = records_of(call, known, layout.ROIS, subject)
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


def _is_there(subject: str, call: Call, known: Known) -> bool:
    ids = (i for tree in layout.TREES for i in known.ids.get((tree, subject), ()))
    return any(call.mode != "offline" or i in known.catalog.on_disk for i in ids)


def _raise_no_subject(subject: str, call: Call, known: Known) -> None:
    offline = call.mode == "offline" or known.catalog.error is not None
    top = look([(layout.GLM, "/")], call.data_dir, offline=offline)
    there = listed(list(layout.subjects_among(top.folders))) or "none"
    if call.mode == "offline":
        raise NotCachedError(
            f"Nothing of {subject} is on disk in {call.data_dir}; known subjects: "
            f"{there}. {call.how_to_fetch}"
        )
    raise InvalidQueryError(f"There is no subject {subject!r}; there are {there}.")


def _participants(
    selection: Selection, call: Call, known: Known
) -> dict[str, dict[str, Any]]:
    """Return the columns of ``participants.tsv`` by subject; it may be missing."""
    if not (call.dry_run and is_empty(selection.subject_filter)):
        table = records(
            known.catalog,
            {layout.PARTICIPANTS} & set(known.catalog.objects),
            call.data_dir,
        )
        download(find_missing(table, selection, call, known), call, known)
    if layout.PARTICIPANTS not in known.catalog.on_disk:
        return {}
    file = cache.local_path(call.data_dir, layout.PARTICIPANTS)
    return read_participants(file)


def choose_images(selection: Selection, call: Call, known: Known) -> list[Record]:
    """Return the images of the chosen sessions that pass the image filter."""
    sessions = _choose_sessions(selection, call, known)
    types = layout.IMAGE_TYPES.items()
    trees = {t for i, t in types if admits(selection.image_filter, "image_type", i)}
    there = [
        rec
        for subject in known.subjects
        for tree in (layout.TREES if None in trees else sorted(filter(None, trees)))
        for rec in records_of(call, known, tree, subject)
        if not layout.is_of_session(rec) or rec["session"] in sessions[subject]
    ]
    found = [rec for rec in there if selection.image_filter(rec)]
    if there and not found and call.mode == "download_new":
        warn_of_nothing("the terms on images", selection.image_filter, there)
    return sorted(found, key=in_order)


def _choose_sessions(
    selection: Selection, call: Call, known: Known
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


def _sessions(
    known: Known, subject: str, paths: Iterable[str] | None = None
) -> set[str]:
    """Return the image-viewing sessions of a subject, held-out ones too."""
    glm = f"{layout.GLM}{subject}/"
    if paths is None:
        paths = [*known.ids.get((layout.GLM, subject), ()), *known.catalog.folders]
    names = {p[len(glm) :].partition("/")[0] for p in paths if p.startswith(glm)}
    return {name for name in names if layout.clean_session(name) == name}


def choose_rois(selection: Selection, call: Call, known: Known) -> list[Record]:
    """Return the masks of the ROIs and categories asked for."""
    if selection.rois == ():
        return []
    masks = [
        rec
        for subject in known.subjects
        for rec in records_of(call, known, layout.ROIS, subject)
        if rec["roi"] and can_come(rec, call, known)
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
        hint = f"; {hint}" if names else "."
        raise NotCachedError(
            f"No {what} of {listed(lacking)} is on disk in {call.data_dir}{hint} "
            f"{call.how_to_fetch}"
        )
    raise InvalidQueryError(f"There is no {what} for {listed(lacking)}; {hint}")


def choose_companions(
    call: Call, known: Known, subjects: Iterable[str]
) -> dict[str, list[Record]]:
    """Return the files that go with images: a brain mask a subject, noise ceilings."""
    masks, ceilings = [], []
    for subject in subjects:
        anatomical = records_of(call, known, layout.ANATOMICAL, subject)
        maps = records_of(call, known, layout.GLM, subject)
        there = [rec for rec in anatomical + maps if can_come(rec, call, known)]
        own = [rec for rec in there if layout.is_functional_brain_mask(rec)]
        if not own and not cache.brain_mask_file(call.data_dir, subject).exists():
            own = [rec for rec in there if rec["image_type"] == "mean_rsquare"]
        masks += own[:1]
        ceilings += [
            rec for rec in there if rec["image_type"] == "subject_noise_ceiling"
        ]
    return {"brain_masks": masks, "noise_ceilings": ceilings}


def named_records(image_ids: str | Iterable[str]) -> list[Record]:
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
    return sorted(named.values(), key=in_order)


def folders_beside(named: list[Record]) -> list[Wanted]:
    """Return the folders of named files that lie beside what subjects are listed by."""
    folders = {
        rec["id"].rpartition("/")[0]
        for rec in named
        if layout.place(rec["id"])[0]
        not in (layout.GLM, layout.ROIS, layout.ANATOMICAL)
    }
    return [(f"{folder}/", "/") for folder in sorted(folders) if folder]


def find_named(call: Call, known: Known, ids: list[str]) -> list[Record]:
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


def read_tables(
    selection: Selection, call: Call, known: Known, images: list[Record]
) -> tuple[list[Record], Trials]:
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
            if not layout.is_of_session(rec) or session_of(rec) in sessions - dropped
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
            if rec["image_type"] != "betas" or session_of(rec) not in dropped
        ]
    return images, trials


def session_of(rec: Record) -> tuple[str, str]:
    """Return subject and session of a record."""
    return rec["subject"], rec["session"]


def _trials(
    selection: Selection, call: Call, known: Known, images: list[Record]
) -> Trials:
    """Fetch and read the trial tables of the sessions of images."""
    ids = {layout.trials_id(rec): session_of(rec) for rec in images}
    in_bucket = [one for one in ids if one in known.catalog.objects]
    tables = records(known.catalog, in_bucket, call.data_dir)
    download(find_missing(tables, selection, call, known), call, known)
    failed = {rec["id"] for rec in known.failed}
    on_disk = [o for o in ids if o in known.catalog.on_disk and o not in failed]
    return Trials(read_trials(call.data_dir, on_disk), [ids[one] for one in on_disk])


def _without_table(
    selection: Selection,
    call: Call,
    known: Known,
    images: list[Record],
    trials: Trials,
) -> set[tuple[str, str]]:
    """Say which sessions have no trial table; return those to drop."""
    lacking = [rec for rec in images if session_of(rec) not in set(trials.sessions)]
    failed = {session_of(rec) for rec in known.failed if rec["image_type"] == "trials"}
    known.failed += [
        {**rec, "reason": "the trial table of its session could not be fetched"}
        for rec in lacking
        if session_of(rec) in failed
    ]
    lacking = [rec for rec in lacking if session_of(rec) not in failed]
    filtered = not is_empty(selection.trial_filter)
    if lacking and filtered and call.mode == "offline" and selection.sessions:
        raise NotCachedError(
            f"The trial table {layout.trials_id(lacking[0])} is not on disk in "
            f"{call.data_dir}, so trial_filter cannot be applied to a session that "
            f"was named. {call.how_to_fetch}"
        )
    seen = [rec for rec in lacking if can_come(rec, call, known)]
    if seen:
        warn(
            f"There is no trial table for {listed([rec['id'] for rec in seen])}; "
            + ("left out." if filtered else "returned without trials.")
        )
    return failed | {session_of(rec) for rec in lacking if filtered}


def _only_cached(
    selection: Selection, call: Call, known: Known, images: list[Record]
) -> list[Record]:
    """Return the images on disk; raise for a session that was named and is not."""
    cached = [rec for rec in images if is_cached(rec, call, known)]
    there = {rec["session"] for rec in cached}
    for rec in images:
        if selection.sessions and layout.is_of_session(rec) and rec not in cached:
            what = f"{rec['session']} of {rec['subject']}"
            if rec["session"] not in there:
                raise NotCachedError(
                    f"{what} has no {rec['image_type']} on disk in {call.data_dir}. "
                    f"{call.how_to_fetch}"
                )
            warn(f"{what} has no {rec['image_type']} on disk and is left out.")
    return cached
