"""Subjects, sessions, ROIs and files that were named: whether there are any such."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

from laion_fmri_fetchers.cache.files import local_path, readable
from laion_fmri_fetchers.cache.inventory import (
    Inventory,
    find_subjects,
    report_versions,
)
from laion_fmri_fetchers.cache.obtain import Outcome, obtain, plan
from laion_fmri_fetchers.cache.tables import read_participants, report_flaws
from laion_fmri_fetchers.exceptions import NotCachedError, did_you_mean
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.names import is_published_roi, with_unions
from laion_fmri_fetchers.layout.trees import HELD_OUT, PARTICIPANTS
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.filters import is_empty
from laion_fmri_fetchers.query.selection import Selection

from .choose import names_of

_NAMES_SHOWN = 40


def check_subjects(
    selection: Selection, inventory: Inventory, may_be_left_out: bool = False
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
    settings = inventory.settings
    for name in sorted(selection.subjects or ()):
        own = [rec["id"] for rec in inventory.records if rec["subject"] == name]
        if not inventory.absent.issuperset(own):
            continue
        published, _ = find_subjects(settings)
        known = listed(list(published)) or "none"
        if name in published and not own:
            warn(f"The bucket has no files of {name} where the selection looks.")
            continue
        problem = (
            f"Nothing of {name} is on disk in {settings.data_dir}; known subjects: "
            f"{known}."
        )
        can_leave_out = name in published and may_be_left_out
        if can_leave_out and settings.allow_missing:
            warn(f"{problem} It is left out.")
            continue
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
    subjects, names = sorted(subjects), names_of(records)
    existing = set().union(*(names.get(subject, ()) for subject in subjects))
    sessions = {name for name in existing if name.startswith("ses-")}
    for kind, asked, known in (
        ("session", selection.sessions, sessions - HELD_OUT),
        ("ROI", selection.rois, existing - sessions),
    ):
        for name in asked or ():
            without = [s for s in subjects if name not in names.get(s, ())]
            if not without:
                continue
            lacks = f"{listed(without)} {'has' if len(without) == 1 else 'have'} no"
            if len(without) < len(subjects):
                warn(f"{lacks} {kind} {name}; it is left out there.")
                continue
            hint = did_you_mean(name, with_unions(known))
            if known and (kind == "session" or is_published_roi(name)):
                hint = f"there are {listed(sorted(known), most=_NAMES_SHOWN)}."
            inventory.refuse(
                f"{lacks} {kind} {name}; {hint}",
                f"No {kind} {name} of {listed(without)} is on disk in "
                f"{inventory.settings.data_dir}; {hint}",
            )


def leave_out_absent(
    kind: str,
    chosen: list[Record],
    inventory: Inventory,
    is_named: Callable[[Record], bool],
) -> list[Record]:
    """Return the available files; never leave one out without a warning.

    Parameters
    ----------
    kind : str
        What the files are, in the plural.
    chosen : list of dict
        Records of selected files.
    inventory : Inventory
        Which are absent, and whether they may be.
    is_named : callable
        Whether a record's file, its session or ROI was named: then it is an error,
        unless ``allow_missing``.

    Raises
    ------
    NotCachedError
        If a file that was named is unavailable.
    """
    settings, absent = inventory.settings, inventory.absent
    missing = [rec for rec in chosen if rec["id"] in absent]
    named = [rec["id"] for rec in missing if is_named(rec)]
    if named and not settings.allow_missing:
        can_leave_out = settings.allow_missing is not None
        advice = " allow_missing=True leaves such files out." * can_leave_out
        raise NotCachedError(
            f"{counted(len(named), 'file')} of the selection "
            f"{'is' if len(named) == 1 else 'are'} not on disk: {listed(named)}. "
            f"{settings.how_to_fetch}{advice}"
        )
    if missing:
        names = dict.fromkeys(
            f"{rec['roi'] or rec['session'] or rec['id'].rpartition('/')[2]} of "
            f"{rec['subject']}"
            for rec in missing
        )
        warn(
            f"{len(missing)} of {len(chosen)} {kind} are in the saved listing but not "
            f"on disk, and are left out: {listed([*names])}. {settings.how_to_fetch}"
        )
    return [rec for rec in chosen if rec["id"] not in absent]


def participants(
    inventory: Inventory, selection: Selection
) -> dict[str, dict[str, Any]]:
    """Return the columns of ``participants.tsv`` by subject; it may be missing.

    With a filter on subjects, the table is required; without, a dry run does without.
    """
    settings, on_disk = inventory.settings, inventory.on_disk
    is_needed = not is_empty(selection.subject_filter)
    if is_needed or not settings.dry_run:
        table = [rec for rec in inventory.records if rec["id"] == PARTICIPANTS]
        optional = () if is_needed else {PARTICIPANTS}
        outcome = obtain_tables(table, inventory, selection, optional)
        on_disk |= outcome.fetched
        for rec in outcome.failed:
            warn(f"{rec['id']} could not be downloaded ({rec['reason']}).")
    if PARTICIPANTS not in on_disk:
        return {}
    file = local_path(settings.data_dir, PARTICIPANTS)
    with readable():
        rows, flaws = read_participants(file)
    advice = "Delete it, and the same call online fetches it again."
    report_flaws(file, flaws, selection.subject_filter, advice)
    return rows


def obtain_tables(
    files: list[Record],
    inventory: Inventory,
    selection: Selection,
    optional: Container[str],
) -> Outcome:
    """Download tables that filters read; with "overwrite", also those outdated."""

    def again(rec: Record) -> bool:
        return selection.is_updated(rec) or rec["outdated"]

    planned = plan(files, inventory, again=again)
    outcome = obtain(planned, inventory, optional=optional, quiet=True)
    on_disk = inventory.on_disk | outcome.fetched
    present = [rec for rec in files if rec["id"] in on_disk]
    report_versions(present, inventory, outcome.fetched)
    return outcome
