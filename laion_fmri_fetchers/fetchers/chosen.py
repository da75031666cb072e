"""From chosen records to the Bunch: files downloaded, resampled, described.

fetch_chosen ─▶ plan_files ─▶ obtain
    └▶ make_bunch ─▶ report_versions ─▶ brain_masks ─▶ on_grid ─▶ align
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Container, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.cache.bunch import FetchedData
from laion_fmri_fetchers.cache.derived import description_of, origin
from laion_fmri_fetchers.cache.files import write_atomically
from laion_fmri_fetchers.cache.inventory import Inventory, report_versions
from laion_fmri_fetchers.cache.obtain import (
    Outcome,
    Planned,
    obtain,
    plan,
    planned_size,
)
from laion_fmri_fetchers.cache.settings import Settings
from laion_fmri_fetchers.cache.state import brain_mask_file
from laion_fmri_fetchers.layout.keys import Record, place_of
from laion_fmri_fetchers.layout.trees import BULK, ROOT_FILES
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn

from .choose import Companions, Trials, align, leave_out_absent
from .grids import (
    Grid,
    check_targets,
    on_grid,
    remove_originals,
    resample_files,
    warn_of_empty_rois,
    warn_of_other_grids,
)


class Chosen(NamedTuple):
    """The content of a Bunch."""

    images: list[Record]
    rois: list[Record]
    companions: Companions
    trials: Trials
    subjects_meta: list[dict[str, Any]]
    tables: Sequence[Record] = ()
    """Trial tables to bring up to date, whichever images are selected."""

    def files(self) -> list[Record]:
        """Return the records of all files."""
        return [*self.images, *self.rois, *self.companions.files(), *self.tables]

    def map(self, change: Callable[[list[Record]], list[Record]]) -> Chosen:
        """Return the same with each list of records changed."""
        companions = Companions(*map(change, self.companions))
        return self._replace(
            images=change(self.images), rois=change(self.rois), companions=companions
        )

    def without_absent(
        self,
        inventory: Inventory,
        is_named: Callable[[Record], bool],
        leave_out: str = "allow_missing=True leaves such files out.",
    ) -> Chosen:
        """Return the same without unavailable files.

        Raises
        ------
        NotCachedError
            If one of them was named, unless files may be missing.
        """
        settings = inventory.settings

        def present(kind: str, records: list[Record]) -> list[Record]:
            return leave_out_absent(
                kind,
                records,
                inventory.absent,
                is_named=lambda rec: is_named(rec) and not settings.allow_missing,
                advice=settings.how_to_fetch,
                leave_out=leave_out,
            )

        masks, ceilings = self.companions
        return self._replace(
            images=present("images", self.images),
            rois=present("ROI masks", self.rois),
            companions=Companions(masks, present("noise ceilings", ceilings)),
        )


def report_bulk(images: Iterable[Record], verbose: int) -> None:
    """Say how large raw and preprocessed data are, before anything else."""
    bulk = [rec for rec in images if place_of(rec["id"])[0] in BULK]
    if bulk:
        size = readable_size(sum(rec["size"] or 0 for rec in bulk))
        files = counted(len(bulk), "file")
        tell(f"Raw or preprocessed data selected: {size} in {files}", verbose)


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
    planned = plan_files(chosen, inventory, is_newer, tables, grid)
    outcome = tables
    if not settings.dry_run:
        outcome += obtain(
            planned,
            inventory,
            accept=accept_license if any(map(_is_data, planned)) else None,
            optional=ROOT_FILES,
        )
    if inventory.error:
        warn(
            f"{inventory.error} By a listing saved earlier, "
            + (
                "this is what is planned."
                if settings.dry_run
                else "everything selected is on disk; continuing offline."
            )
        )
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
        size = planned_size(planned)
        summary += (
            f"; {counted(len(planned), 'file')}, {readable_size(size)}, would be "
            "downloaded for them"
        )
        rows = [(rec["id"], rec["size"], reason) for rec, reason in planned]
        bunch.plan = pd.DataFrame(rows, columns=["id", "size", "reason"])
        bunch.plan_size = size
    tell(summary, settings.verbose)
    return bunch


def plan_files(
    chosen: Chosen,
    inventory: Inventory,
    is_newer: Callable[[Record], bool],
    tables: Outcome,
    grid: Grid | None,
) -> list[Planned]:
    """Return the files to download, and the dataset's root files with them."""
    settings = inventory.settings
    selected = {rec["id"] for rec in chosen.images}
    files = chosen.files()
    if grid is not None:
        check_targets(files, grid)
        warn_of_other_grids([*chosen.images, *chosen.rois])
        if not settings.overwrites:
            files = [rec for rec in files if not grid.has(rec, settings.data_dir)]
    done = tables.fetched | {rec["id"] for rec in tables.failed}
    planned = plan(
        files,
        inventory,
        again=lambda rec: rec["id"] in selected or is_newer(rec),
        done=done,
    )
    return with_root_files(planned, inventory, done={*selected, *done})


def with_root_files(
    planned: list[Planned], inventory: Inventory, done: Container[str] = ()
) -> list[Planned]:
    """Return planned files, and with them the dataset's root files not on disk."""
    if not planned:
        return planned
    root = [rec for rec in inventory.records if rec["id"] in ROOT_FILES]
    return planned + plan(root, inventory, done=done)


def _is_data(item: Planned) -> bool:
    """Tell whether a file is under the terms of the data, as tables are not."""
    rec = item.record
    return rec["image_type"] != "trials" and rec["id"] not in ROOT_FILES


def make_bunch(
    chosen: Chosen,
    inventory: Inventory,
    query: dict[str, Any],
    outcome: Outcome,
    grid: Grid | None,
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
    chosen = chosen.map(lambda recs: [rec for rec in recs if rec["id"] not in lost])
    report_versions(chosen.files(), inventory, outcome.fetched)
    masks = _brain_masks(chosen, settings)
    if grid is not None:
        masks_on_grid = {s: grid.mask_target(s, settings.data_dir) for s in masks}
        if not settings.dry_run:
            images = [*chosen.images, *chosen.rois, *chosen.companions.noise_ceilings]
            resample_files(images, masks, grid, settings.data_dir, outcome.fetched)
            if not grid.keep_original:
                remove_originals(chosen.images)
        chosen = chosen.map(lambda recs: on_grid(recs, grid, settings.data_dir))
        masks = masks_on_grid
        if not settings.dry_run:
            warn_of_empty_rois([*chosen.rois, *chosen.images], grid)
    trials, sample_masks = align(chosen.trials, chosen.images)
    ceilings: dict[str, dict[str, str]] = {}
    for rec in chosen.companions.noise_ceilings:
        of_subject = ceilings.setdefault(rec["subject"], {})
        of_subject[rec["desc"].removeprefix("Noiseceiling")] = rec["absolute_path"]
    return FetchedData(
        images=[rec["absolute_path"] for rec in chosen.images],
        images_meta=chosen.images,
        rois=[rec["absolute_path"] for rec in chosen.rois],
        rois_meta=chosen.rois,
        roi_files=_roi_files(chosen),
        brain_masks=masks,
        noise_ceilings=ceilings,
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


def _roi_files(chosen: Chosen) -> dict[str, dict[str, str]]:
    """Return the mask file of each subject's ROIs.

    Of several files of an ROI, such as those of both hemispheres, none is left out:
    their names go on with what tells them apart, as in "FFA1 L" and "FFA1 R".
    """
    by_roi: dict[tuple[str, str], list[Record]] = {}
    for rec in chosen.rois:
        by_roi.setdefault((rec["subject"], rec["roi"]), []).append(rec)
    files: dict[str, dict[str, str]] = {m["subject"]: {} for m in chosen.subjects_meta}
    for (subject, roi), recs in by_roi.items():
        fields = ("space", "res", "hemi", "extension")
        differing = [f for f in fields if len({rec[f] for rec in recs}) > 1]
        for rec in recs:
            name = " ".join([roi, *(rec[f] for f in differing if rec[f])])
            files[subject][name] = rec["absolute_path"]
    return files


def _brain_masks(chosen: Chosen, settings: Settings) -> dict[str, str]:
    """Return the brain mask of each subject, derived where the bucket has none."""
    masks = {}
    sources = {rec["subject"]: rec for rec in chosen.companions.brain_masks}
    for meta in chosen.subjects_meta:
        subject = meta["subject"]
        source = sources.get(subject)
        derived = brain_mask_file(settings.data_dir, subject)
        if source and source["image_type"] == "brain_mask":
            masks[subject] = source["absolute_path"]
            continue
        if source and not settings.dry_run:
            _derive_brain_mask(source["absolute_path"], derived)
        if os.path.exists(derived) or (source and settings.dry_run):
            masks[subject] = str(derived)
    return masks


def _derive_brain_mask(mean_rsquare: str, target: Path) -> None:
    """Write the mask of the voxels whose mean R2 is above 0, unless it is there."""
    description = f"R2mean > 0, {origin(mean_rsquare)}"
    if description_of(str(target)) == description:
        return
    import nibabel as nib

    image: Any = nib.load(mean_rsquare)
    values = np.asanyarray(image.dataobj) > 0
    mask = nib.Nifti1Image(values.astype(np.uint8), image.affine)
    mask.header["descrip"] = description.encode()
    try:
        write_atomically(target, gzip.compress(mask.to_bytes(), mtime=0))
    except OSError as error:
        warn(f"No brain mask could be derived from {mean_rsquare}: {error}")
    else:
        warn(
            f"The bucket has no brain mask for this subject; one was derived from "
            f"{mean_rsquare}, where R2 is above 0: {target}"
        )
