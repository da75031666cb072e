"""Subjects that a fetcher selects: whether they exist, and their descriptions."""

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
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.trees import PARTICIPANTS
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import (
    ResultFilter,
    is_empty,
)
from laion_fmri_fetchers.query.selection import Selection

from .choose import missing_names, roi_names, session_names


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
    absent = [name for name in names if not is_on_disk(name, inventory)]
    without = {*names} - {rec["subject"] for rec in inventory.records}
    absent += sorted(without - {*absent})
    if not absent or not named:
        return
    settings = inventory.settings
    published, _ = find_subjects(settings)
    text = listed(list(published)) or "none"
    for name in absent:
        is_published = name in published
        problem = (
            f"Nothing of {name} is on disk in {settings.data_dir}; known subjects: "
            f"{text}."
        )
        if is_published and name in without:
            warn(f"The bucket has no files of {name} where the selection looks.")
        elif is_published and may_be_left_out and settings.allow_missing:
            warn(f"{problem} It is left out.")
        else:
            can_be = is_published and may_be_left_out
            hint = " allow_missing=True leaves it out." if can_be else ""
            inventory.refuse(
                f"There is no subject {name!r}; there are {text}.", problem + hint
            )


def is_on_disk(subject: str, inventory: Inventory) -> bool:
    """Tell whether not all files of a subject are absent; online, none is."""
    absent = inventory.absent
    if not absent:
        return True
    of_subject = [rec for rec in inventory.records if rec["subject"] == subject]
    return not of_subject or any(rec["id"] not in absent for rec in of_subject)


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
        With a filter, the table must be had; without, a dry run does without it.
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


def check_names(
    records: list[Record],
    subjects: Iterable[str],
    inventory: Inventory,
    selection: Selection,
) -> None:
    """Raise for sessions and ROIs that no subject has; warn where some lack them."""
    for kind, names, names_in in (
        ("session", selection.sessions, session_names),
        ("ROI", selection.rois, roi_names),
    ):
        by_subject = names_in(records) if names else {}
        of_subjects = {name: by_subject.get(name, set()) for name in sorted(subjects)}
        for lacking, name, hint in missing_names(kind, names, of_subjects):
            has = "has" if len(lacking) == 1 else "have"
            if len(lacking) < len(of_subjects):
                warn(f"{listed(lacking)} {has} no {kind} {name}; it is left out there.")
                continue
            inventory.refuse(
                f"{listed(lacking)} {has} no {kind} {name}; {hint}",
                f"No {kind} {name} of {listed(lacking)} is on disk in "
                f"{inventory.settings.data_dir}; {hint}",
            )
