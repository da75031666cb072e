"""From chosen images to the Bunch: trials, what goes with them, downloads.

choose_by_trials ─▶ choose_rois, choose_brain_masks ─▶ plan_files ─▶ obtain ─▶ Bunch
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Container, Iterable
from importlib import resources
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.betas.methods import FetchedData
from laion_fmri_fetchers.cache.files import readable, write_atomically
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import Outcome, Planned, obtain, plan
from laion_fmri_fetchers.cache.state import brain_mask_file
from laion_fmri_fetchers.cache.tables import read_trials
from laion_fmri_fetchers.layout.keys import Record, is_of_trials, place_of
from laion_fmri_fetchers.layout.trees import BULK, ROOT_FILES, trials_id
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.filters import is_empty
from laion_fmri_fetchers.query.rows import rows_with
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.query.term_checks import check_terms

from . import resample
from .choose import (
    align_trials,
    choose_brain_masks,
    choose_rois,
    limit_images,
    tables_to_update,
)
from .subjects import leave_out_absent, obtain_tables


def fetch_chosen(  # noqa: C901 - its steps, in order
    images: list[Record],
    records: list[Record],
    subjects_meta: list[dict[str, Any]],
    inventory: Inventory,
    selection: Selection,
    *,
    grid: resample.Grid | None = None,
    labels: Any = None,
    with_images: bool = True,
) -> FetchedData:
    """Download chosen images and what goes with them, and make the Bunch.

    Parameters
    ----------
    images : list of dict
        Records of images, which trials may cut.
    records : list of dict
        Records of files that may go with them: ROI masks, brain masks, noise ceilings.
    subjects_meta : list of dict
        Descriptions of the subjects.
    inventory : Inventory
        What is on disk, and how to work.
    selection : Selection
        What was asked.
    grid : Grid, optional
        The grid to resample to.
    labels : str or sequence of str, optional
        Only trials of these stimulus images.
    with_images : bool, default=True
        False: images need not be on disk, and nothing is said of the download.
    """
    settings, is_named = inventory.settings, selection.is_named

    # Images that trials leave, and what goes with them.
    images, trials, tables = choose_by_trials(images, inventory, selection, labels)
    if with_images:
        images = leave_out_absent("images", images, inventory, is_named)
    rois = choose_rois(records, selection)
    rois = leave_out_absent("ROI masks", rois, inventory, is_named)
    masks = choose_brain_masks(records, inventory.absent)
    ceilings = [r for r in records if r["image_type"] == "subject_noise_ceiling"]
    ceilings = leave_out_absent("noise ceilings", ceilings, inventory, is_named)
    updates = tables_to_update(records, selection) if settings.overwrites else []

    # Download what is missing.
    bulk = [rec for rec in images if place_of(rec["id"])[0] in BULK]
    if bulk:
        size = readable_size(sum(rec["size"] or 0 for rec in bulk))
        number = counted(len(bulk), "file")
        tell(f"Raw or preprocessed data selected: {size} in {number}", settings.verbose)
    files = [*(images if with_images else ()), *rois, *masks, *ceilings, *updates]
    if grid:
        resample.check_targets([*images, *rois, *masks, *ceilings], grid)
        files = [r for r in files if settings.overwrites or not grid.has(r)]
    chosen = {rec["id"] for rec in images}
    planned = plan_files(
        files,
        inventory,
        again=lambda rec: rec["id"] in chosen or selection.is_updated(rec),
        done=tables.fetched | {rec["id"] for rec in tables.failed},
    )
    outcome = tables
    if not settings.dry_run:
        outcome += obtain_files(planned, inventory, quiet=not with_images)
    if with_images:
        warn_if_down(inventory)

    # What arrived, on the grid asked for.
    failed = without_status(outcome.failed)
    lost = {rec["id"] for rec in failed}
    if lost:
        warn(
            f"{counted(len(failed), 'file')} could not be downloaded and left out: "
            f"{listed(sorted(lost))}. The reasons are in the Bunch under 'failed'."
        )
    images, rois, masks, ceilings = (
        [rec for rec in recs if rec["id"] not in lost]
        for recs in (images, rois, masks, ceilings)
    )
    files = [*images, *rois, *masks, *ceilings, *updates]
    report_versions(files, inventory, outcome.fetched)
    masks = [_brain_mask(rec, inventory) for rec in masks]
    if grid:
        if not settings.dry_run:
            resample.resample_files([*images, *rois, *masks, *ceilings], grid)
            if not grid.keep_original:
                resample.remove_originals(images)
        images, rois, masks, ceilings = (
            resample.on_grid(recs, grid) for recs in (images, rois, masks, ceilings)
        )
        if not settings.dry_run:
            resample.warn_of_empty_rois([*rois, *images], grid)

    # The Bunch, and what is said of it.
    trials, sample_masks = align_trials(trials, images)
    noise_ceilings: dict[str, dict[str, str]] = {}
    for rec in ceilings:
        name = rec["desc"].removeprefix("Noiseceiling")
        noise_ceilings.setdefault(rec["subject"], {})[name] = rec["absolute_path"]
    subjects = [meta["subject"] for meta in subjects_meta]
    bunch = FetchedData(
        images=[rec["absolute_path"] for rec in images],
        images_meta=images,
        rois=[rec["absolute_path"] for rec in rois],
        rois_meta=rois,
        roi_files={subject: _name_rois(subject, rois) for subject in subjects},
        brain_masks={rec["subject"]: rec["absolute_path"] for rec in masks},
        noise_ceilings=noise_ceilings,
        trials=trials,
        sample_masks=sample_masks,
        subjects_meta=subjects_meta,
        failed=failed,
        data_dir=settings.data_dir,
        query=selection.as_query(),
        description=description(),
    )
    if with_images:
        types = {meta["image_type"] for meta in images}
        kind = "beta image" if types == {"betas"} else "image file"  # not a stimulus
        summary = (
            f"{counted(len(images), kind)}, {counted(len(rois), 'ROI mask')} and "
            f"{counted(len(trials), 'trial')}"
            f"{f' of {listed(subjects)}' if subjects else ''} in {settings.data_dir}"
        )
        if settings.dry_run:
            rows = [(rec["id"], rec["size"], reason) for rec, reason in planned]
            bunch.update(as_plan(rows))
            summary += (
                f"; {counted(len(rows), 'file')}, {readable_size(bunch.plan_size)}, "
                "would be downloaded for them"
            )
        tell(summary, settings.verbose)
    return bunch


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
    outcome = obtain_tables(files, inventory, selection, optional=earlier)
    failed = {rec["id"] for rec in outcome.failed}
    on_disk = (inventory.on_disk | outcome.fetched) - failed
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


def plan_files(
    files: list[Record],
    inventory: Inventory,
    again: Callable[[Record], bool],
    done: Container[str] = (),
) -> list[Planned]:
    """Return the files to download, and with any the dataset's root files."""
    planned = plan(files, inventory, again=again, done=done)
    if planned:
        root = ROOT_FILES - {rec["id"] for rec in files}
        others = [rec for rec in inventory.records if rec["id"] in root]
        planned += plan(others, inventory, done=done)
    return planned


def obtain_files(
    planned: list[Planned],
    inventory: Inventory,
    *,
    optional: Iterable[str] = (),
    quiet: bool = False,
) -> Outcome:
    """Download planned files of the data; root files that fail are no failure."""
    # Tables are not under the terms of the data.
    needs_terms = any(
        rec["image_type"] != "trials" and rec["id"] not in ROOT_FILES
        for rec, _ in planned
    )
    outcome = obtain(
        planned,
        inventory,
        accept=accept_license if needs_terms else None,
        optional=ROOT_FILES.union(optional),
        quiet=quiet,
    )
    failed = tuple(rec for rec in outcome.failed if rec["id"] not in ROOT_FILES)
    return outcome._replace(failed=failed)


def without_status(failed: Iterable[Record]) -> list[Record]:
    """Return records of files that failed as users get them, each with a reason."""
    return [{k: v for k, v in rec.items() if k != "status"} for rec in failed]


def warn_if_down(inventory: Inventory) -> None:
    """Warn of a bucket that did not answer, where nothing is missing."""
    if inventory.error:
        state = "everything selected is on disk; continuing offline."
        if inventory.settings.dry_run:
            state = "this is what is planned."
        warn(f"{inventory.error} By a listing saved earlier, {state}")


def as_plan(rows: list[tuple], columns: str = "id size reason") -> dict[str, Any]:
    """Return what a dry run adds to a Bunch: ``plan`` and ``plan_size``."""
    plan = pd.DataFrame(rows, columns=columns.split())
    return {"plan": plan, "plan_size": int(plan["size"].sum())}


def description() -> str:
    """Return the text on the dataset: content, access, licence, how to cite."""
    return (resources.files(__package__) / "laion_fmri.rst").read_text("utf-8")


def _name_rois(subject: str, rois: list[Record]) -> dict[str, str]:
    """Return the mask file of each ROI of a subject.

    Of several files of an ROI, such as those of both hemispheres, none is left out:
    their names go on with what tells them apart, as in "FFA1 L" and "FFA1 R".
    """
    by_roi: dict[str, list[Record]] = {}
    for rec in rois:
        if rec["subject"] == subject:
            by_roi.setdefault(rec["roi"], []).append(rec)
    files = {}
    for roi, recs in by_roi.items():
        fields = ("space", "res", "hemi", "extension")
        differing = [f for f in fields if len({rec[f] for rec in recs}) > 1]
        for rec in recs:
            name = " ".join([roi, *(rec[f] for f in differing if rec[f])])
            files[name] = rec["absolute_path"]
    return files


def _brain_mask(rec: Record, inventory: Inventory) -> Record:
    """Return a brain mask; of a map of mean R2, the voxels where it is above 0.

    That is written anew where the map changed.
    """
    if rec["image_type"] == "brain_mask":
        return rec
    mean_rsquare = rec["absolute_path"]
    file = brain_mask_file(inventory.settings.data_dir, rec["subject"])
    derived = resample.mask_record(rec["subject"], str(file))
    if inventory.settings.dry_run:
        return derived
    text = f"R2mean > 0, {resample.origin(mean_rsquare)}"
    if resample.description_of(str(file)) == text:
        return derived
    image: Any = nib.load(mean_rsquare)
    values = np.asanyarray(image.dataobj) > 0
    mask = nib.Nifti1Image(values.astype(np.uint8), image.affine)
    mask.header["descrip"] = text.encode()
    write_atomically(file, gzip.compress(mask.to_bytes(), mtime=0))
    warn(
        f"The bucket has no brain mask for this subject; one was derived from "
        f"{mean_rsquare}, where R2 is above 0: {file}"
    )
    return derived
