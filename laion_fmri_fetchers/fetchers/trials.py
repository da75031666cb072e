"""Trial tables: downloaded, read, and what they leave of the images.

choose_by_trials ─▶ read_tables ─▶ choose_trials ─▶ images_with_trials
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import Outcome, obtain, plan
from laion_fmri_fetchers.cache.tables import read_trials
from laion_fmri_fetchers.layout.keys import Record, is_of_trials
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import is_empty
from laion_fmri_fetchers.query.rows import rows_with
from laion_fmri_fetchers.query.selection import Selection

from .choose import (
    Trials,
    choose_trials,
    earlier_tables,
    images_with_trials,
    is_updated,
    limit_images,
    session_of,
    tables_of,
)


def choose_by_trials(
    images: list[Record],
    inventory: Inventory,
    selection: Selection,
    labels: Any = None,
) -> tuple[list[Record], Trials, Outcome]:
    """Cut images by trial filter, labels and ``max_images``, and read their trials.

    Returns
    -------
    images : list of dict
        The images that are left.
    trials : Trials
        Their trials that passed.
    tables : Outcome
        Outcome of downloading the trial tables.
    """
    is_filtered = labels is not None or not is_empty(selection.trial_filter)
    if not is_filtered:
        images = limit_images(images, inventory.absent, selection)
    with_tables = [
        rec
        for rec in images
        if is_of_trials(rec) and (is_filtered or rec["image_type"] == "betas")
    ]
    trials, tables = _read_tables(
        with_tables, inventory, partial(is_updated, selection=selection)
    )
    lacking = [rec for rec in with_tables if session_of(rec) not in {*trials.sessions}]
    images, tables = _without_tables(images, lacking, tables)
    failed = {rec["id"] for rec in tables.failed}
    lacking = [rec for rec in lacking if rec["id"] not in failed]
    if is_filtered:
        if selection.sessions and lacking and not inventory.settings.allow_missing:
            inventory.settings.refuse_offline(
                f"The trial table {trials_id(lacking[0])} is not on disk in "
                f"{inventory.settings.data_dir}, so trial_filter cannot be applied to "
                "a session that was named."
            )
        unfiltered = {rec["id"] for rec in lacking}
        images = [rec for rec in images if rec["id"] not in unfiltered]
        trials = choose_trials(trials, selection.trial_filter)
        if labels is not None:
            rows = np.sort(rows_with(labels, trials.frame, "the sessions"))
            trials = trials._replace(frame=trials.frame.iloc[rows])
        images = images_with_trials(images, trials)
        images = limit_images(images, inventory.absent, selection)
    _warn_of_lacking(lacking, inventory, is_filtered)
    return images, trials, tables


def _read_tables(
    images: list[Record], inventory: Inventory, again: Callable[[Record], bool]
) -> tuple[Trials, Outcome]:
    """Download and read the trial tables of images, and all before them."""
    tables = tables_of(images)
    earlier = {path for path in earlier_tables(tables.values()) if path not in tables}
    needed = [
        rec for rec in inventory.records if rec["id"] in tables or rec["id"] in earlier
    ]
    planned = plan(
        needed, inventory, again=lambda rec: again(rec) or bool(rec["outdated"])
    )
    outcome = obtain(planned, inventory, optional=earlier, quiet=True)
    failed = {rec["id"] for rec in outcome.failed}
    on_disk = (inventory.on_disk | outcome.fetched) - failed
    read = [rec for rec in needed if rec["id"] in on_disk]
    report_versions(read, inventory, outcome.fetched)
    if uncounted := sorted(failed & earlier):
        warn(
            f"{listed(uncounted)} could not be downloaded, so 'repetition' is unknown "
            "for later sessions."
        )
    present = [path for path in tables if path in on_disk]
    with readable():
        frame = read_trials(inventory.settings.data_dir, present)
    failed_tables = tuple(rec for rec in outcome.failed if rec["id"] in tables)
    return (
        Trials(frame, [tables[path] for path in present]),
        outcome._replace(failed=failed_tables),
    )


def _without_tables(
    images: list[Record], lacking: list[Record], tables: Outcome
) -> tuple[list[Record], Outcome]:
    """Return images and outcome without those whose tables failed to download."""
    failed = {session_of(rec) for rec in tables.failed}
    reason = "the trial table of its session could not be downloaded"
    lost = [{**rec, "reason": reason} for rec in lacking if session_of(rec) in failed]
    ids = {rec["id"] for rec in lost}
    return (
        [rec for rec in images if rec["id"] not in ids],
        tables._replace(failed=(*tables.failed, *lost)),
    )


def _warn_of_lacking(
    lacking: list[Record], inventory: Inventory, is_filtered: bool
) -> None:
    ids = [r["id"] for r in lacking if is_filtered or r["id"] not in inventory.absent]
    if ids:
        warn(
            f"There is no trial table for {listed(ids)}; "
            + ("left out." if is_filtered else "returned without trials.")
        )
