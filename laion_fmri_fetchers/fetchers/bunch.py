"""From chosen records to the Bunch: files downloaded, resampled, described.

plan_files ─▶ obtain ─▶ make_bunch: brain masks, resampling, trials in order
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Container, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.cache.bunch import FetchedData
from laion_fmri_fetchers.cache.files import write_atomically
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import (
    Outcome,
    Planned,
    obtain,
    plan,
    planned_size,
)
from laion_fmri_fetchers.cache.state import brain_mask_file
from laion_fmri_fetchers.layout.grids import can_be_resampled
from laion_fmri_fetchers.layout.keys import Record, place_of
from laion_fmri_fetchers.layout.trees import BULK, ROOT_FILES
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn

from .choose import align_trials, leave_out_absent
from .resample import (
    Grid,
    check_targets,
    description_of,
    mask_record,
    on_grid,
    origin,
    remove_originals,
    resample_files,
    warn_of_empty_rois,
)


class Chosen(NamedTuple):
    """The content of a Bunch."""

    images: list[Record]
    rois: list[Record]
    companions: list[Record]  # brain masks, or maps to derive them, and noise ceilings
    trials: pd.DataFrame
    subjects_meta: list[dict[str, Any]]
    # Trial tables to bring up to date, whichever the images.
    tables: Sequence[Record] = ()

    def files(self) -> list[Record]:
        """Return the records of all files."""
        return [*self.images, *self.rois, *self.companions, *self.tables]

    def without_absent(
        self,
        inventory: Inventory,
        is_named: Callable[[Record], bool],
        leave_out: str = "allow_missing=True leaves such files out.",
    ) -> Chosen:
        """Return the same without unavailable files; see `leave_out_absent`."""
        settings = inventory.settings
        present = partial(
            leave_out_absent,
            absent=inventory.absent,
            is_named=lambda rec: is_named(rec) and not settings.allow_missing,
            advice=settings.how_to_fetch,
            leave_out=leave_out,
        )
        masks = [rec for rec in self.companions if not _is_ceiling(rec)]
        ceilings = [rec for rec in self.companions if _is_ceiling(rec)]
        return self._replace(
            images=present("images", self.images),
            rois=present("ROI masks", self.rois),
            companions=masks + present("noise ceilings", ceilings),
        )


def fetch_chosen(
    chosen: Chosen,
    inventory: Inventory,
    query: dict[str, Any],
    is_newer: Callable[[Record], bool],
    tables: Outcome,
    grid: Grid | None = None,
) -> Bunch:
    """Download chosen files that are missing, and make the Bunch.

    Parameters
    ----------
    chosen : Chosen
        Records of files, and trials.
    inventory : Inventory
        What is on disk, and how to work.
    query : dict
        What was asked.
    is_newer : callable
        Whether a file that only goes with the images is downloaded again in mode
        ``"overwrite"``.
    tables : Outcome
        Outcome of downloading the trial tables.
    grid : Grid, optional
        The grid to resample to.
    """
    settings = inventory.settings
    bulk = [rec for rec in chosen.images if place_of(rec["id"])[0] in BULK]
    if bulk:
        size = readable_size(sum(rec["size"] or 0 for rec in bulk))
        files = counted(len(bulk), "file")
        tell(f"Raw or preprocessed data selected: {size} in {files}", settings.verbose)
    planned = plan_files(chosen, inventory, is_newer, tables, grid)
    outcome = tables
    if not settings.dry_run:
        # Tables are not under the terms of the data.
        needs_terms = any(
            item.record["image_type"] != "trials"
            and item.record["id"] not in ROOT_FILES
            for item in planned
        )
        outcome += obtain(
            planned,
            inventory,
            accept=accept_license if needs_terms else None,
            optional=ROOT_FILES,
        )
    if inventory.error:
        state = "everything selected is on disk; continuing offline."
        if settings.dry_run:
            state = "this is what is planned."
        warn(f"{inventory.error} By a listing saved earlier, {state}")
    bunch = make_bunch(chosen, inventory, query, outcome, grid)

    subjects = listed([meta["subject"] for meta in chosen.subjects_meta])
    types = {meta["image_type"] for meta in bunch.images_meta}
    kind = "beta image" if types == {"betas"} else "image file"  # not a stimulus
    summary = (
        f"{counted(len(bunch.images), kind)}, "
        f"{counted(len(bunch.rois), 'ROI mask')} and "
        f"{counted(len(bunch.trials), 'trial')}"
        f"{f' of {subjects}' if subjects else ''} in {settings.data_dir}"
    )
    if settings.dry_run:
        rows = [(rec["id"], rec["size"], reason) for rec, reason in planned]
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = planned_size(planned)
        summary += (
            f"; {counted(len(planned), 'file')}, {readable_size(bunch.plan_size)}, "
            "would be downloaded for them"
        )
    tell(summary, settings.verbose)
    return bunch


def plan_files(
    chosen: Chosen,
    inventory: Inventory,
    is_newer: Callable[[Record], bool],
    tables: Outcome,
    grid: Grid | None = None,
) -> list[Planned]:
    """Return the files to download, and the dataset's root files with them."""
    files = chosen.files()
    if grid is not None:
        check_targets(files, grid)
        published = [*chosen.images, *chosen.rois]
        others = [rec["id"] for rec in published if not can_be_resampled(rec)]
        if others:
            warn(
                "resolution is for volumes in NIfTI files; returned as published: "
                f"{listed(others)}."
            )
        if not inventory.settings.overwrites:
            files = [rec for rec in files if not grid.has(rec)]
    selected = {rec["id"] for rec in chosen.images}
    done = tables.fetched | {rec["id"] for rec in tables.failed}
    planned = plan(
        files,
        inventory,
        again=lambda rec: rec["id"] in selected or is_newer(rec),
        done=done,
    )
    return with_root_files(planned, inventory, done=selected | done)


def with_root_files(
    planned: list[Planned], inventory: Inventory, done: Container[str] = ()
) -> list[Planned]:
    """Return planned files, and with them the dataset's root files not on disk."""
    if not planned:
        return planned
    root = [rec for rec in inventory.records if rec["id"] in ROOT_FILES]
    return planned + plan(root, inventory, done=done)


def make_bunch(
    chosen: Chosen,
    inventory: Inventory,
    query: dict[str, Any],
    outcome: Outcome,
    grid: Grid | None = None,
) -> Bunch:
    """Return the Bunch of files that were chosen and did not fail."""
    settings = inventory.settings
    failed = [rec for rec in outcome.failed if rec["id"] not in ROOT_FILES]
    if failed:
        warn(
            f"{counted(len(failed), 'file')} could not be downloaded and left out: "
            f"{listed(sorted(rec['id'] for rec in failed))}. The reasons are in the "
            "Bunch under 'failed'."
        )
    lost = {rec["id"] for rec in failed}
    images, rois, companions = (
        [rec for rec in recs if rec["id"] not in lost]
        for recs in (chosen.images, chosen.rois, chosen.companions)
    )
    files = [*images, *rois, *companions, *chosen.tables]
    report_versions(files, inventory, outcome.fetched)
    ceilings = [rec for rec in companions if _is_ceiling(rec)]
    sources = {rec["subject"]: rec for rec in companions if not _is_ceiling(rec)}
    masks = {}
    for meta in chosen.subjects_meta:
        mask = _brain_mask(meta["subject"], sources.get(meta["subject"]), inventory)
        if mask:
            masks[meta["subject"]] = mask

    if grid is not None:
        mask_records = [mask_record(*each) for each in masks.items()]
        if not settings.dry_run:
            resample_files([*images, *rois, *ceilings, *mask_records], grid)
            if not grid.keep_original:
                remove_originals(images)
        masks = {rec["subject"]: grid.target(rec["id"]) for rec in mask_records}
        images, rois, ceilings = (on_grid(r, grid) for r in (images, rois, ceilings))
        if not settings.dry_run:
            warn_of_empty_rois([*rois, *images], grid)

    trials, sample_masks = align_trials(chosen.trials, images)
    noise_ceilings: dict[str, dict[str, str]] = {}
    for rec in ceilings:
        of_subject = noise_ceilings.setdefault(rec["subject"], {})
        of_subject[rec["desc"].removeprefix("Noiseceiling")] = rec["absolute_path"]
    roi_files: dict[str, dict[str, str]] = {
        meta["subject"]: _name_rois(meta["subject"], rois)
        for meta in chosen.subjects_meta
    }
    return FetchedData(
        images=[rec["absolute_path"] for rec in images],
        images_meta=images,
        rois=[rec["absolute_path"] for rec in rois],
        rois_meta=rois,
        roi_files=roi_files,
        brain_masks=masks,
        noise_ceilings=noise_ceilings,
        trials=trials,
        sample_masks=sample_masks,
        subjects_meta=chosen.subjects_meta,
        failed=[{k: v for k, v in rec.items() if k != "status"} for rec in failed],
        data_dir=settings.data_dir,
        query=query,
        description=resources.files(__package__)
        .joinpath("laion_fmri.rst")
        .read_text("utf-8"),
    )


def _is_ceiling(rec: Record) -> bool:
    return rec["image_type"] == "subject_noise_ceiling"


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


def _brain_mask(
    subject: str, source: Record | None, inventory: Inventory
) -> str | None:
    """Return the brain mask of a subject; None where there is none.

    Where the bucket has none, it is the voxels whose mean R2 is above 0, written anew
    where the map of it changed.
    """
    if source and source["image_type"] == "brain_mask":
        return source["absolute_path"]
    settings = inventory.settings
    target = brain_mask_file(settings.data_dir, subject)
    if source is None or settings.dry_run:
        return str(target) if source or os.path.exists(target) else None
    mean_rsquare = source["absolute_path"]
    description = f"R2mean > 0, {origin(mean_rsquare)}"
    if description_of(str(target)) == description:
        return str(target)
    image: Any = nib.load(mean_rsquare)
    values = np.asanyarray(image.dataobj) > 0
    mask = nib.Nifti1Image(values.astype(np.uint8), image.affine)
    mask.header["descrip"] = description.encode()
    try:
        write_atomically(Path(target), gzip.compress(mask.to_bytes(), mtime=0))
    except OSError as error:
        warn(f"No brain mask could be derived from {mean_rsquare}: {error}")
        return str(target) if os.path.exists(target) else None
    warn(
        f"The bucket has no brain mask for this subject; one was derived from "
        f"{mean_rsquare}, where R2 is above 0: {target}"
    )
    return str(target)
