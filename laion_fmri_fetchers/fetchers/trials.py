"""Trial tables: downloaded, read, and what trials leave of the images."""

from __future__ import annotations

from typing import Any

import pandas as pd

from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import Outcome, obtain, plan
from laion_fmri_fetchers.cache.tables import read_trials
from laion_fmri_fetchers.layout.keys import Record, is_of_trials
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import listed, tell, warn
from laion_fmri_fetchers.query.filters import is_empty
from laion_fmri_fetchers.query.rows import rows_with
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.query.term_checks import check_terms

from .choose import limit_images


def choose_by_trials(
    images: list[Record], inventory: Inventory, selection: Selection, labels: Any = None
) -> tuple[list[Record], pd.DataFrame, Outcome]:
    """Cut images by trial filter, labels and ``max_images``, and read their trials.

    Returns
    -------
    images : list of dict
        The images that are left.
    trials : pandas.DataFrame
        Their trials that passed, session by session.
    tables : Outcome
        Outcome of downloading the trial tables, and with it the images that are lost
        as theirs failed.
    """
    settings, absent = inventory.settings, inventory.absent
    is_filtered = labels is not None or not is_empty(selection.trial_filter)
    if not is_filtered:
        images = limit_images(images, absent, selection)
    with_tables = [
        rec
        for rec in images
        if is_of_trials(rec) and (is_filtered or rec["image_type"] == "betas")
    ]
    trials, tables = _read_tables(with_tables, inventory, selection)

    # Images without a trial table: it failed, or there is none.
    read, failed = _sessions(trials), {_session(rec) for rec in tables.failed}
    reason = "the trial table of its session could not be downloaded"
    lost = [{**r, "reason": reason} for r in with_tables if _session(r) in failed]
    tables = tables._replace(failed=(*tables.failed, *lost))
    lost_ids = {rec["id"] for rec in lost}
    images = [rec for rec in images if rec["id"] not in lost_ids]
    unread = [rec for rec in with_tables if _session(rec) not in {*read, *failed}]
    if is_filtered and selection.sessions and unread and not settings.allow_missing:
        settings.refuse_offline(
            f"The trial table {trials_id(unread[0])} is not on disk in "
            f"{settings.data_dir}, so trial_filter cannot be applied to a session that "
            "was named."
        )
    ids = [rec["id"] for rec in unread if is_filtered or rec["id"] not in absent]
    if ids:
        what = "left out." if is_filtered else "returned without trials."
        warn(f"There is no trial table for {listed(ids)}; {what}")
    if not is_filtered:
        return images, trials, tables

    passed = selection.trial_filter.mask(trials)
    check_terms("trial_filter", selection.trial_filter, trials, passed.sum())
    trials = trials[passed]
    if labels is not None:
        of_subjects = trials.groupby("subject", sort=False)
        rows = [own.index[rows_with(labels, own, str(n))] for n, own in of_subjects]
        trials = trials.loc[sorted(row for each in rows for row in each)]
    left = _sessions(trials)
    without = [f"{ses} of {sub}" for sub, ses in read if (sub, ses) not in left]
    if left and without and selection.sessions:
        has = "has" if len(without) == 1 else "have"
        tell(f"{listed(without)} {has} no trial that passes", settings.verbose)
    images = [rec for rec in images if not is_of_trials(rec) or _session(rec) in left]
    return limit_images(images, absent, selection), trials, tables


def _session(rec: Record) -> tuple[str, str]:
    return rec["subject"], rec["session"]


def _sessions(trials: pd.DataFrame) -> dict[tuple[str, str], None]:
    """Return the sessions of trials, in their order."""
    return dict.fromkeys(zip(trials["subject"], trials["session"], strict=True))


def _read_tables(
    images: list[Record], inventory: Inventory, selection: Selection
) -> tuple[pd.DataFrame, Outcome]:
    """Download and read the trial tables of images.

    Those of all earlier sessions are downloaded too: with these, it is counted which
    showing of an image a trial was.
    """
    needed = dict.fromkeys(map(trials_id, images))
    last: dict[str, str] = {}
    for rec in images:
        last[rec["subject"]] = max(rec["session"], last.get(rec["subject"], ""))
    files = [
        rec
        for rec in inventory.records
        if rec["image_type"] == "trials"
        and rec["session"] <= last.get(rec["subject"], "")
    ]
    earlier = {rec["id"] for rec in files} - needed.keys()
    outcome = obtain(
        plan(
            files, inventory, again=lambda r: selection.is_updated(r) or r["outdated"]
        ),
        inventory,
        optional=earlier,
        quiet=True,
    )
    failed = {rec["id"] for rec in outcome.failed}
    on_disk = (inventory.on_disk | outcome.fetched) - failed
    present = [rec for rec in files if rec["id"] in on_disk]
    report_versions(present, inventory, outcome.fetched)
    if unknown := sorted(failed & earlier):
        warn(
            f"{listed(unknown)} could not be downloaded, so 'repetition' is unknown "
            "for later sessions."
        )
    with readable():
        data_dir = inventory.settings.data_dir
        trials = read_trials(data_dir, [path for path in needed if path in on_disk])
    of_images = tuple(rec for rec in outcome.failed if rec["id"] in needed)
    return trials, outcome._replace(failed=of_images)
