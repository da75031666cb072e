"""Images resampled to a coarser or finer grid, in a folder of their own.

A resampled image lies below ``derivatives/laion-fmri-fetchers/`` under the original's
path and name, with a ``res-`` entity such as ``res-2pt5`` for 2.5 mm. Its header notes
how and from which version of the original it was made, so that it can be used again;
the ``.json`` beside it names the original, as BIDS derivatives do.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from joblib import Parallel, delayed

from laion_fmri_fetchers import __version__, volumes
from laion_fmri_fetchers.cache.files import (
    files_on_disk,
    local_path,
    read_file,
    readable,
    write_atomically,
)
from laion_fmri_fetchers.cache.inventory import size_on_disk
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout import grids
from laion_fmri_fetchers.layout.keys import Record, record_of, record_of_path
from laion_fmri_fetchers.layout.trees import MADE_HERE, brain_mask_name
from laion_fmri_fetchers.messages import counted, listed, warn

# How the description in the header of a resampled image begins.
_MARK = "resampled: "

# Where a NIfTI-1 header has its description (``descrip``).
_DESCRIPTION = slice(148, 228)

# Bytes at the end of a gzip file: CRC-32 and length of its uncompressed content.
_GZIP_TRAILER = 8


class Grid(NamedTuple):
    """An isotropic grid that images are resampled to."""

    resolution: float  # voxel size in mm
    interpolation: str
    keep_original: bool
    data_dir: str

    def target(self, path: str) -> str:
        """Return the path of the resampled image of a file, by its id."""
        return local_path(self.data_dir, grids.resampled_path(path, self.resolution))

    def method(self, rec: Record) -> str:
        """Return how the description of a file's resampled image begins."""
        interpolation = grids.interpolation_for(rec, self.interpolation)
        return f"{_MARK}{self.resolution:g} mm, {interpolation}, "

    def has(self, rec: Record) -> bool:
        """Return whether the resampled image of a file is on disk, and still fits it.

        One made in another way does not, nor one of another version of the original.
        """
        if not grids.can_be_resampled(rec):
            return False
        text, file = description_of(self.target(rec["id"])), rec["absolute_path"]
        is_of_version = not os.path.isfile(file) or text.endswith(origin(file))
        return text.startswith(self.method(rec)) and is_of_version


def make_grid(
    resolution: float | None, interpolation: str, keep_original: bool, data_dir: str
) -> Grid | None:
    """Check the grid that images are to be resampled to; None for none."""
    grids.interpolation_for({"suffix": None}, interpolation)
    if resolution is None:
        if interpolation != "continuous" or keep_original is not True:
            raise InvalidQueryError(
                f"interpolation is {interpolation!r} and keep_original is "
                f"{keep_original!r}, but nothing is resampled: give resolution too, or "
                "leave them out"
            )
        return None
    grids.resolution_label(resolution)
    if resolution < 0.5:  # likely in cm: the finest images have 0.8 mm
        warn(
            f"resolution is {resolution:g} mm, finer than any image of the dataset; "
            f"did you mean {10 * resolution:g}?"
        )
    return Grid(float(resolution), interpolation, bool(keep_original), data_dir)


def check_targets(files: Iterable[Record], grid: Grid) -> None:
    """Raise where two files would be resampled to one; warn of those that cannot be."""
    originals: dict[str, str] = {}
    others = []
    for rec in files:
        if not grids.can_be_resampled(rec):
            others.append(rec["id"])
            continue
        path = grids.resampled_path(rec["id"], grid.resolution)
        other = originals.setdefault(path, rec["id"])
        if other != rec["id"]:
            raise InvalidQueryError(
                f"{other} and {rec['id']} are one image on two grids, and would be one "
                "file when resampled. Choose one grid by a term, such as res='1pt8'."
            )
    if others:
        warn(
            "resolution is for volumes in NIfTI files; returned as published: "
            f"{listed(others)}."
        )


# --- What a derived image is of --------------------------------------------------


def description_of(file: str) -> str:
    """Return the description in the header of an image, "" where it has none."""
    try:
        with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
            header = stream.read(_DESCRIPTION.stop)
    except (OSError, EOFError, zlib.error):
        return ""
    return header[_DESCRIPTION].rstrip(b"\0").decode("latin-1")


def origin(file: str) -> str:
    """Return how the description of a derived image ends: the version of its source.

    The size alone does not suffice, as a mask that was moved by a few voxels often
    keeps it; a description has room for 80 characters.
    """
    with readable(), open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if file.endswith(".gz"):
            stream.seek(-min(size, _GZIP_TRAILER), os.SEEK_END)
            return f"from {size}-{stream.read().hex()}"
        return f"from {size}-{os.fstat(stream.fileno()).st_mtime_ns:x}"


def find_resampled(grid: Grid) -> dict[str, str]:
    """Return the resampled images on disk, by the id of their original."""
    files, _ = files_on_disk(grid.data_dir, [(MADE_HERE, "")])
    entity = f"_res-{grids.resolution_label(grid.resolution)}"
    found = {}
    for path in files:
        if not path.endswith(".json") or entity not in path.rpartition("/")[2]:
            continue
        try:
            sidecar = json.loads(read_file(local_path(grid.data_dir, path)))
            original = sidecar["Sources"][0].removeprefix("bids::")
            method = grid.method(record_of_path(original))
            target = grid.target(original)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # not one of ours
        if description_of(target).startswith(method):
            found[original] = target
    return found


# --- Resampling ------------------------------------------------------------------


def mask_record(subject: str, file: str) -> Record:
    """Return a record of a brain mask, which may be a derived one, to resample it."""
    path = f"brain_masks/{subject}/{brain_mask_name(subject)}"
    return {**record_of(path), "absolute_path": file}


def resample_files(files: Iterable[Record], grid: Grid) -> None:
    """Resample files that are not on the grid yet, each once.

    They are resampled one after the other, or as `joblib.parallel_config` says.

    Warns
    -----
    UserWarning
        If images that were made with another interpolation are replaced.
    """
    file = local_path(grid.data_dir, f"{MADE_HERE}dataset_description.json")
    if not os.path.exists(file):
        description = {
            "Name": "LAION-fMRI, resampled",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",  # BIDS requires this file of derivatives
            "GeneratedBy": [{"Name": "laion_fmri_fetchers", "Version": __version__}],
        }
        _write_json(file, description)
    wanted = {rec["id"]: rec for rec in files if grids.can_be_resampled(rec)}
    missing = [rec for rec in wanted.values() if not grid.has(rec)]
    replaced = []
    for rec in missing:
        before = description_of(grid.target(rec["id"]))
        if before.startswith(_MARK) and not before.startswith(grid.method(rec)):
            replaced.append(grid.target(rec["id"]))
    if replaced:
        warn(
            f"{counted(len(replaced), 'resampled image')} made with another "
            f"interpolation {'are' if len(replaced) > 1 else 'is'} replaced, such as "
            f"{replaced[0]}. What was fetched earlier names the same files."
        )
    Parallel()(delayed(resample_file)(rec, grid) for rec in missing)


def resample_file(rec: Record, grid: Grid) -> None:
    """Resample an image: volume by volume, by :func:`nilearn.image.resample_img`.

    Raises
    ------
    FileNotFoundError
        If the original does not exist.
    CorruptImageError
        If it cannot be read.
    DiskSpaceError, DataDirectoryError
        If the disk is full, or the folder cannot be written.
    """
    file, target = rec["absolute_path"], grid.target(rec["id"])
    source = volumes.read_header(file)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NaNs or infinite", RuntimeWarning)
        interpolation = grids.interpolation_for(rec, grid.interpolation)
        images = _resampled_volumes(source, grid, interpolation)
        first = next(images)
        zooms = source.nifti.get_zooms()
        header = source.nifti.copy()
        header.set_data_shape((*first.shape, *header.get_data_shape()[3:]))
        header.set_data_dtype(first.get_data_dtype())
        header.set_zooms((*[grid.resolution] * 3, *zooms[3:]))
        header.set_qform(first.affine, int(source.nifti["qform_code"]) or 1)
        header.set_sform(first.affine, int(source.nifti["sform_code"]) or 1)
        header["descrip"] = (grid.method(rec) + origin(file)).encode("latin-1")
        images = itertools.chain([first], images)
        volumes.write_volumes(
            target, (np.asanyarray(im.dataobj) for im in images), header
        )
    # It stands for the original where that is removed, so it has its date.
    with contextlib.suppress(OSError):  # some mounts keep no times
        date = os.stat(file)
        os.utime(target, ns=(date.st_atime_ns, date.st_mtime_ns))
    # Behind the image: where the disk fills, no sidecar of an image is left without it.
    method = grid.method(rec).removeprefix(_MARK).removesuffix(", ")
    sidecar = {
        "Description": f"Resampled to {method}",
        "Resolution": f"{grid.resolution:g} mm isotropic",
        "Sources": [f"bids::{rec['id']}"],
    }
    _write_json(re.sub(r"\.nii(\.gz)?$", ".json", target), sidecar)


def _resampled_volumes(
    source: volumes.Header, grid: Grid, interpolation: str
) -> Iterator[nib.Nifti1Image]:
    """Yield the volumes of an image on the grid, whose axes are those of the space."""
    from nilearn.image import resample_img

    is_scaled = (source.slope, source.inter) != (1, 0)
    keeps_type = interpolation == "nearest" and not is_scaled
    affine, shape = np.diag([grid.resolution] * 3), None
    for volume in volumes.iter_volumes(source):
        values = volumes.scaled(source, volume, None if keeps_type else "float32")
        values = values.reshape(source.shape, order="F").copy("F")
        image = resample_img(
            nib.Nifti1Image(values, source.affine, dtype=values.dtype),
            affine,
            shape,
            interpolation,
            copy_header=True,
            force_resample=True,
        )
        yield image
        affine, shape = image.affine, image.shape


def _write_json(file: str, content: dict[str, Any]) -> None:
    write_atomically(Path(file), (json.dumps(content, indent=2) + "\n").encode())


# --- Resampled images in the place of originals ----------------------------------


def on_grid(records: Iterable[Record], grid: Grid) -> list[Record]:
    """Return records of resampled images; their ``id`` is that of the original."""
    return [
        {
            **rec,
            "relative_path": grids.resampled_path(rec["id"], grid.resolution),
            "absolute_path": grid.target(rec["id"]),
            "res": grids.resolution_label(grid.resolution),
            "size": size_on_disk({"absolute_path": grid.target(rec["id"])}),
        }
        if grids.can_be_resampled(rec)
        else rec
        for rec in records
    ]


def warn_of_empty_rois(records: Iterable[Record], grid: Grid) -> None:
    """Warn of ROIs that are smaller than a voxel, so that none is left of them."""
    empty = []
    for rec in records:
        if rec["roi"] and grids.can_be_resampled(rec):
            (mask,) = volumes.iter_volumes(
                volumes.read_header(rec["absolute_path"]), [0]
            )
            if not mask.any():
                empty.append(f"{rec['roi']} of {rec['subject']}")
    if empty:
        warn(
            f"No voxel of {grid.resolution:g} mm is in {listed(empty)}; choose a finer "
            "resolution."
        )


def remove_originals(records: Iterable[Record]) -> None:
    """Delete files that were resampled."""
    for rec in filter(grids.can_be_resampled, records):
        with contextlib.suppress(FileNotFoundError):  # another process removes it, too
            os.unlink(rec["absolute_path"])
