"""Images on another grid: which are resampled, where to, and in whose place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from joblib import Parallel, delayed

from laion_fmri_fetchers.arrays.resample import (
    describe_folder,
    find_resampled,
    resample_file,
)
from laion_fmri_fetchers.cache.derived import MARK, description_of, method
from laion_fmri_fetchers.cache.files import local_path
from laion_fmri_fetchers.cache.inventory import size_on_disk
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.grids import (
    can_be_resampled,
    interpolation_for,
    resampled_path,
    resolution_label,
)
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.trees import brain_mask_name
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.volumes import iter_volumes, read_header

_FINEST = 0.5
"""Voxel size in mm below which a resolution is likely in cm: anatomical images have
0.8 mm."""


class Grid(NamedTuple):
    """An isotropic grid that images are resampled to."""

    resolution: float
    """In mm."""
    interpolation: str
    keep_original: bool

    def as_query(self) -> dict[str, Any]:
        """Return the arguments that matter for what is returned."""
        return {"resolution": self.resolution, "interpolation": self.interpolation}

    def target(self, rec: Record, data_dir: str) -> str:
        """Return the path of the resampled image of a record's file."""
        return local_path(data_dir, resampled_path(rec["id"], self.resolution))

    def has(self, rec: Record, data_dir: str) -> bool:
        """Tell whether the resampled image of a file is on disk, and still fits it."""
        return can_be_resampled(rec) and find_resampled(
            rec["absolute_path"],
            self.target(rec, data_dir),
            self.resolution,
            interpolation_for(rec, self.interpolation),
        )

    def mask_target(self, subject: str, data_dir: str) -> str:
        """Return the path of the resampled brain mask of a subject."""
        mask = f"brain_masks/{subject}/{brain_mask_name(subject)}"
        path = resampled_path(mask, self.resolution)
        return local_path(data_dir, path)


class _Job(NamedTuple):
    """An image to resample."""

    file: str
    target: str
    interpolation: str
    source: str
    """The ``id`` of the original; "" for one that was derived here."""


def make_grid(
    resolution: float | None, interpolation: str, keep_original: bool
) -> Grid | None:
    """Check the grid that images are to be resampled to; None for none."""
    interpolation_for({"suffix": None}, interpolation)
    if resolution is None:
        settings = {"interpolation": interpolation, "keep_original": keep_original}
        defaults = {"interpolation": "continuous", "keep_original": True}
        for name, value in settings.items():
            if value != defaults[name]:
                raise InvalidQueryError(
                    f"{name} is {value!r}, but nothing is resampled: give resolution "
                    f"too, or leave {name} out"
                )
        return None
    resolution_label(resolution)
    if resolution < _FINEST:
        warn(
            f"resolution is {resolution:g} mm, finer than any image of the dataset; "
            f"did you mean {10 * resolution:g}?"
        )
    return Grid(float(resolution), interpolation, bool(keep_original))


def check_targets(files: Iterable[Record], grid: Grid) -> None:
    """Raise where two files would be resampled to one."""
    originals: dict[str, str] = {}
    for rec in filter(can_be_resampled, files):
        path = resampled_path(rec["id"], grid.resolution)
        other = originals.setdefault(path, rec["id"])
        if other != rec["id"]:
            raise InvalidQueryError(
                f"{other} and {rec['id']} are one image on two grids, and would be one "
                "file when resampled. Choose one grid by a term, such as res='1pt8'."
            )


def warn_of_other_grids(files: Iterable[Record]) -> None:
    """Warn of files that stay on the grid they have, such as those of surfaces."""
    others = [rec["id"] for rec in files if not can_be_resampled(rec)]
    if others:
        warn(
            f"resolution is for volumes in NIfTI files; returned as published: "
            f"{listed(others)}."
        )


def resample_files(
    files: Iterable[Record],
    masks: Mapping[str, str],
    grid: Grid,
    data_dir: str,
    fetched: Container[str],
) -> None:
    """Resample images and brain masks that are not on the grid yet.

    Parameters
    ----------
    files : iterable of dict
        Records of images.
    masks : mapping
        Subject -> path of its brain mask.
    grid : Grid
        The grid.
    data_dir : str
        The data directory.
    fetched : container of str
        Ids of images downloaded just now, which are resampled in any case.
    """
    describe_folder(data_dir)
    jobs = [
        _Job(
            rec["absolute_path"],
            grid.target(rec, data_dir),
            interpolation_for(rec, grid.interpolation),
            path,
        )
        for path, rec in {rec["id"]: rec for rec in files}.items()
        if can_be_resampled(rec)
    ]
    jobs += [
        _Job(file, grid.mask_target(subject, data_dir), "nearest", "")
        for subject, file in masks.items()
    ]
    replaced = []
    for job in jobs:
        made = description_of(job.target)
        wanted = method(grid.resolution, job.interpolation)
        if made.startswith(MARK) and not made.startswith(wanted):
            replaced.append(job.target)
    if replaced:
        warn(
            f"{counted(len(replaced), 'resampled image')} made with another "
            f"interpolation {'are' if len(replaced) > 1 else 'is'} replaced, such as "
            f"{replaced[0]}. What was fetched earlier names the same files."
        )
    Parallel()(
        delayed(resample_file)(
            job.file,
            job.target,
            grid.resolution,
            job.interpolation,
            source=job.source,
            overwrite=job.source in fetched,
        )
        for job in jobs
    )


def on_grid(records: Iterable[Record], grid: Grid, data_dir: str) -> list[Record]:
    """Return records of resampled images; their ``id`` is that of the original."""
    return [
        {
            **rec,
            "relative_path": resampled_path(rec["id"], grid.resolution),
            "absolute_path": grid.target(rec, data_dir),
            "res": resolution_label(grid.resolution),
            "size": size_on_disk({"absolute_path": grid.target(rec, data_dir)}),
        }
        if can_be_resampled(rec)
        else rec
        for rec in records
    ]


def warn_of_empty_rois(records: Iterable[Record], grid: Grid) -> None:
    """Warn of ROIs that are smaller than a voxel, so that none is left of them."""
    empty = []
    for rec in records:
        if rec["roi"] and can_be_resampled(rec):
            (mask,) = iter_volumes(read_header(rec["absolute_path"]), [0])
            if not mask.any():
                empty.append(f"{rec['roi']} of {rec['subject']}")
    if empty:
        warn(
            f"No voxel of {grid.resolution:g} mm is in {listed(empty)}; choose a finer "
            "resolution."
        )


def remove_originals(records: Iterable[Record]) -> None:
    """Delete files that were resampled."""
    kept = []
    for rec in filter(can_be_resampled, records):
        with contextlib.suppress(OSError):  # another process may remove it, too
            os.unlink(rec["absolute_path"])
        if os.path.lexists(rec["absolute_path"]):
            kept.append(rec["id"])
    if kept:
        warn(
            f"{counted(len(kept), 'original')} could not be deleted, such as "
            f"{kept[0]}: the folder cannot be written."
        )
