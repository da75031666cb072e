"""Trial tables: downloaded, read, and what trials leave of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import Outcome, obtain, plan
from laion_fmri_fetchers.cache.tables import read_trials
from laion_fmri_fetchers.layout.keys import Record, is_of_trials
from laion_fmri_fetchers.layout.names import clean_session
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import listed, tell, warn
from laion_fmri_fetchers.query.filters import is_empty
from laion_fmri_fetchers.query.rows import rows_with
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.query.term_checks import check_terms

from .choose import Session, limit_images, rows_of_sessions, session_of


def choose_by_trials(
    images: list[Record],
    inventory: Inventory,
    selection: Selection,
    labels: Any = None,
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
    is_filtered = labels is not None or not is_empty(selection.trial_filter)
    if not is_filtered:
        images = limit_images(images, inventory.absent, selection)
    with_tables = [
        rec
        for rec in images
        if is_of_trials(rec) and (is_filtered or rec["image_type"] == "betas")
    ]
    sessions = {trials_id(rec): session_of(rec) for rec in with_tables}
    trials, tables = _read_tables(sessions, inventory, selection)

    # Images without a trial table: it failed, or there is none.
    rows = rows_of_sessions(trials)
    unread = [rec for rec in with_tables if session_of(rec) not in rows]
    failed = {session_of(rec) for rec in tables.failed}
    reason = "the trial table of its session could not be downloaded"
    lost = [{**rec, "reason": reason} for rec in unread if session_of(rec) in failed]
    tables = tables._replace(failed=(*tables.failed, *lost))
    lost_ids = {rec["id"] for rec in lost}
    images = [rec for rec in images if rec["id"] not in lost_ids]
    unread = [rec for rec in unread if rec["id"] not in lost_ids]
    settings = inventory.settings
    if is_filtered and selection.sessions and unread and not settings.allow_missing:
        settings.refuse_offline(
            f"The trial table {trials_id(unread[0])} is not on disk in "
            f"{settings.data_dir}, so trial_filter cannot be applied to a session that "
            "was named."
        )
    ids = [r["id"] for r in unread if is_filtered or r["id"] not in inventory.absent]
    if ids:
        what = "left out." if is_filtered else "returned without trials."
        warn(f"There is no trial table for {listed(ids)}; {what}")
    if not is_filtered:
        return images, trials, tables

    passed = selection.trial_filter.mask(trials)
    check_terms("trial_filter", selection.trial_filter, trials, passed.sum())
    trials = trials[passed]
    if labels is not None:
        trials = trials.iloc[np.sort(rows_with(labels, trials, "the sessions"))]
    left = rows_of_sessions(trials)
    without = [f"{ses} of {sub}" for sub, ses in rows if (sub, ses) not in left]
    if left and without and selection.sessions:
        has = "has" if len(without) == 1 else "have"
        tell(f"{listed(without)} {has} no trial that passes", settings.verbose)
    images = [rec for rec in images if not is_of_trials(rec) or session_of(rec) in left]
    return limit_images(images, inventory.absent, selection), trials, tables


def _read_tables(
    sessions: dict[str, Session], inventory: Inventory, selection: Selection
) -> tuple[pd.DataFrame, Outcome]:
    """Download and read the trial tables of sessions, by id.

    All before them are downloaded too: with these, it is counted which showing of an
    image a trial was.
    """
    last: dict[str, int] = {}
    for subject, session in sessions.values():
        number = int(session.removeprefix("ses-"))
        last[subject] = max(last.get(subject, 0), number)
    earlier = {
        trials_id({"subject": subject, "session": clean_session(number)})
        for subject, n_sessions in last.items()
        for number in range(1, n_sessions)
    } - sessions.keys()
    files = [
        rec
        for rec in inventory.records
        if rec["id"] in sessions or rec["id"] in earlier
    ]
    outcome = obtain(
        plan(
            files,
            inventory,
            again=lambda rec: selection.is_updated(rec) or bool(rec["outdated"]),
        ),
        inventory,
        optional=earlier,
        quiet=True,
    )
    failed = {rec["id"] for rec in outcome.failed}
    on_disk = (inventory.on_disk | outcome.fetched) - failed
    present = [rec for rec in files if rec["id"] in on_disk]
    report_versions(present, inventory, outcome.fetched)
    if uncounted := sorted(failed & earlier):
        warn(
            f"{listed(uncounted)} could not be downloaded, so 'repetition' is unknown "
            "for later sessions."
        )
    with readable():
        data_dir = inventory.settings.data_dir
        trials = read_trials(data_dir, [path for path in sessions if path in on_disk])
    of_sessions = tuple(rec for rec in outcome.failed if rec["id"] in sessions)
    return trials, outcome._replace(failed=of_sessions)
