"""Subjects, sessions and ROIs that were named: whether there are any such."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from laion_fmri_fetchers.cache.files import local_path, readable
from laion_fmri_fetchers.cache.inventory import (
    Inventory,
    find_subjects,
    report_versions,
)
from laion_fmri_fetchers.cache.obtain import obtain, plan
from laion_fmri_fetchers.cache.tables import read_participants, report_flaws
from laion_fmri_fetchers.exceptions import did_you_mean
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.names import is_published_roi, with_unions
from laion_fmri_fetchers.layout.trees import HELD_OUT, PARTICIPANTS
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, is_empty
from laion_fmri_fetchers.query.selection import Selection

from .choose import roi_names, session_names

_NAMES_SHOWN = 40


def is_on_disk(subject: str, inventory: Inventory) -> bool:
    """Return whether any file of a subject is available; online, all are."""
    if not inventory.absent:
        return True
    of_subject = [rec for rec in inventory.records if rec["subject"] == subject]
    return not of_subject or any(r["id"] not in inventory.absent for r in of_subject)


def check_subjects(
    names: Iterable[str],
    inventory: Inventory,
    *,
    named: bool,
    may_be_left_out: bool = False,
) -> None:
    """Raise for a subject that was named and has no files.

    With ``allow_missing``, it is left out offline where the call can go on without.

    Raises
    ------
    InvalidQueryError
        If the bucket has no such subject.
    NotCachedError
        Offline, if none of its files is on disk.
    """
    without = {*names} - {rec["subject"] for rec in inventory.records}
    absent = without | {name for name in names if not is_on_disk(name, inventory)}
    if not absent or not named:
        return
    settings = inventory.settings
    published, _ = find_subjects(settings)
    known = listed(list(published)) or "none"
    for name in sorted(absent):
        problem = (
            f"Nothing of {name} is on disk in {settings.data_dir}; known subjects: "
            f"{known}."
        )
        can_leave_out = name in published and may_be_left_out
        if name in published and name in without:
            warn(f"The bucket has no files of {name} where the selection looks.")
        elif can_leave_out and settings.allow_missing:
            warn(f"{problem} It is left out.")
        else:
            advice = " allow_missing=True leaves it out." * can_leave_out
            inventory.refuse(
                f"There is no subject {name!r}; there are {known}.", problem + advice
            )


def check_names(
    records: list[Record],
    subjects: Iterable[str],
    inventory: Inventory,
    selection: Selection,
) -> None:
    """Raise for sessions and ROIs that no subject has; warn where some lack them."""
    subjects = sorted(subjects)
    for kind, names, names_in in (
        ("session", selection.sessions, session_names),
        ("ROI", selection.rois, roi_names),
    ):
        if not names:
            continue
        by_subject = names_in(records)
        existing = set().union(*(by_subject.get(s, ()) for s in subjects)) - HELD_OUT
        for name in names:
            without = [s for s in subjects if name not in by_subject.get(s, ())]
            has = "has" if len(without) == 1 else "have"
            if not without:
                continue
            if len(without) < len(subjects):
                warn(f"{listed(without)} {has} no {kind} {name}; it is left out there.")
                continue
            hint = did_you_mean(name, with_unions(existing))
            if existing and (kind == "session" or is_published_roi(name)):
                hint = f"there are {listed(sorted(existing), most=_NAMES_SHOWN)}."
            inventory.refuse(
                f"{listed(without)} {has} no {kind} {name}; {hint}",
                f"No {kind} {name} of {listed(without)} is on disk in "
                f"{inventory.settings.data_dir}; {hint}",
            )


def participants(
    inventory: Inventory,
    subject_filter: ResultFilter,
    again: Callable[[Record], bool],
) -> dict[str, dict[str, Any]]:
    """Return the columns of ``participants.tsv`` by subject; it may be missing.

    Parameters
    ----------
    inventory : Inventory
        Where the table may be.
    subject_filter : ResultFilter
        With a filter, the table is required; without, a dry run does without it.
    again : callable
        Whether, in mode ``"overwrite"``, the table is downloaded again.
    """
    is_needed = not is_empty(subject_filter)
    table = [rec for rec in inventory.records if rec["id"] == PARTICIPANTS]
    fetched: frozenset[str] = frozenset()
    if is_needed or not inventory.settings.dry_run:
        outcome = obtain(
            plan(table, inventory, again=lambda r: again(r) or bool(r["outdated"])),
            inventory,
            optional=() if is_needed else {PARTICIPANTS},
            quiet=True,
        )
        fetched = outcome.fetched
        for rec in outcome.failed:
            warn(f"{rec['id']} could not be downloaded ({rec['reason']}).")
        report_versions(table, inventory, fetched)
    if PARTICIPANTS not in inventory.on_disk | fetched:
        return {}
    file = local_path(inventory.settings.data_dir, PARTICIPANTS)
    with readable():
        rows, flaws = read_participants(file)
    advice = "Delete it, and the same call online fetches it again."
    report_flaws(file, flaws, subject_filter, advice)
    return rows
