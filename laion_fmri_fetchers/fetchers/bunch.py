"""From chosen images to the Bunch: what goes with them, downloads, resampling.

choose_by_trials ─▶ choose_rois, choose_brain_masks ─▶ plan_files ─▶ obtain ─▶ Bunch
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Container, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.betas.methods import FetchedData
from laion_fmri_fetchers.cache.files import write_atomically
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import Outcome, Planned, obtain, plan
from laion_fmri_fetchers.cache.state import brain_mask_file
from laion_fmri_fetchers.layout.keys import Record, place_of
from laion_fmri_fetchers.layout.trees import BULK, ROOT_FILES
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.query.selection import Selection

from . import resample
from .choose import align_trials, choose_brain_masks, choose_rois, tables_to_update
from .subjects import leave_out_absent
from .trials import choose_by_trials


def fetch_chosen(  # noqa: C901 - its steps, in order
    images: list[Record],
    records: list[Record],
    subjects_meta: list[dict[str, Any]],
    inventory: Inventory,
    selection: Selection,
    query: dict[str, Any],
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
    query : dict
        The same in plain values.
    grid : Grid, optional
        The grid to resample to.
    labels : str or sequence of str, optional
        Only trials of these stimulus images.
    with_images : bool, default=True
        False: images need not be on disk, and nothing is said of the download.
    """
    settings, is_named = inventory.settings, selection.is_named
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
    masks = [found for rec in masks if (found := _brain_mask(rec, inventory))]
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
        query=query,
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


def plan_files(
    files: Iterable[Record],
    inventory: Inventory,
    again: Callable[[Record], bool],
    done: Container[str] = (),
) -> list[Planned]:
    """Return the files to download, and with any the dataset's root files."""
    planned = plan(files, inventory, again=again, done=done)
    if planned:
        chosen = {rec["id"] for rec in files}
        root = ROOT_FILES - chosen
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


def description(name: str = "laion_fmri") -> str:
    """Return a text on the dataset: content, access, licence, how to cite."""
    return (resources.files(__package__) / f"{name}.rst").read_text("utf-8")


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


def _brain_mask(rec: Record, inventory: Inventory) -> Record | None:
    """Return a brain mask; of a map of mean R2, the voxels where it is above 0.

    That is written anew where the map changed, and None where it cannot be written.
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
    try:
        write_atomically(Path(file), gzip.compress(mask.to_bytes(), mtime=0))
    except OSError as error:
        warn(f"No brain mask could be derived from {mean_rsquare}: {error}")
        return derived if file.exists() else None
    warn(
        f"The bucket has no brain mask for this subject; one was derived from "
        f"{mean_rsquare}, where R2 is above 0: {file}"
    )
    return derived
