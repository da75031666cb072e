"""Which voxels become columns: masks and maps on one grid, combined.

Values of a volume are held flat, in the order of the file: the first axis varies
fastest. Columns are in nilearn's order, that of ``volume[mask]``: the last axis does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import (
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.names import clean_roi

from .volumes import Header, iter_volumes, read_header, scaled

TOLERANCE = 0.1
"""Voxels by which the corners of a mask may be off the grid of the betas."""

Signature = tuple[str, int, int]
"""A file as it is: its path, size in bytes and time of change in ns."""


class Columns(NamedTuple):
    """The voxels that become columns, and what is known of them."""

    mask: np.ndarray
    """Boolean, of the grid's shape."""
    roi_masks: dict[str, np.ndarray]
    """ROI -> boolean, over columns."""
    noise_ceilings: dict[str, np.ndarray]
    """Name -> percent, over columns."""


class _Wanted(NamedTuple):
    """What the voxels are to be in."""

    within: list[Signature]
    """All of these masks,"""
    given: np.ndarray | None
    """this one too,"""
    rois: dict[str, list[Signature]]
    """one of these, unless"""
    whole: bool
    """the whole brain is wanted,"""
    noise_ceilings: dict[str, Signature]
    threshold: tuple[str, float] | None
    """and one of these at least so high."""


def find_columns(
    data: Bunch,
    subject: str,
    rois: str | Sequence[str],
    mask_img: Any,
    nc_threshold: float | None,
    noise_ceiling: str,
    grid: Header,
    cached: Callable,
) -> Columns:
    """Find the voxels of a subject that are asked for.

    Parameters
    ----------
    data, subject, rois, mask_img, nc_threshold, noise_ceiling
        As in `load_betas`.
    grid : Header
        Of an image whose grid masks and maps must be on.
    cached : callable
        Makes a function keep its results.

    Returns
    -------
    Columns

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, a mask is on another grid, or no voxel is left.
    NotCachedError
        If a mask or map is not on disk.
    CorruptImageError
        If one cannot be read.
    """
    roi_files, whole = _roi_files(data, subject, rois)
    maps = dict(data.noise_ceilings.get(subject, {}))
    threshold = _threshold(nc_threshold, noise_ceiling, list(maps))
    within = [data.brain_masks[subject]] if subject in data.brain_masks else []
    given = None
    if isinstance(mask_img, (str, os.PathLike)):
        within.append(os.fspath(mask_img))
    elif mask_img is not None:
        given = _given_mask(mask_img, grid)
    elif not within:
        raise InvalidQueryError(
            f"data holds no brain mask of {subject}; pass one as mask_img"
        )
    wanted = _Wanted(
        [signature(file) for file in within],
        given,
        {name: [signature(file) for file in own] for name, own in roi_files.items()},
        whole,
        {name: signature(file) for name, file in maps.items()},
        threshold,
    )
    columns = cached(_combine)(wanted, grid.shape, grid.affine)
    if not columns.mask.any():
        raise InvalidQueryError(
            "No voxel is in all of what was asked for: the brain mask, rois, mask_img "
            "and nc_threshold."
        )
    return columns


def signature(file: str) -> Signature:
    """Return what tells whether a file changed."""
    try:
        stat = os.stat(file)
    except FileNotFoundError as error:
        raise NotCachedError(
            f"{file} is not on disk. Fetch it by the call that made data, without "
            "dry_run."
        ) from error
    return file, stat.st_size, stat.st_mtime_ns


def _roi_files(
    data: Bunch, subject: str, rois: str | Sequence[str]
) -> tuple[dict[str, list[str]], bool]:
    """Return the masks of the ROIs asked for, and whether the whole brain is."""
    there: dict[str, list[str]] = {}
    categories: dict[str, list[str]] = {}
    files = [*data.rois, *data.images]
    for file, meta in zip(files, [*data.rois_meta, *data.images_meta], strict=True):
        is_volume = meta["extension"] in ("nii", "nii.gz")
        if meta["image_type"] == "roi" and is_volume and meta["subject"] == subject:
            there.setdefault(meta["roi"], []).append(file)
            categories.setdefault(meta["roi_category"], []).append(meta["roi"])
    wanted: dict[str, list[str]] = {}
    whole = False
    for asked in [rois] if isinstance(rois, str) else list(rois):
        name = clean_roi(asked) if isinstance(asked, str) else None
        if asked == "brain":
            whole = True
        elif asked == "fetched":
            wanted |= there
        elif asked in categories:
            wanted |= {one: there[one] for one in categories[asked]}
        elif name in there:
            wanted[name] = there[name]
        else:
            hint = did_you_mean(asked, [*there, *categories, "brain", "fetched"])
            raise InvalidQueryError(f"data holds no ROI {asked!r} of {subject}; {hint}")
    if not wanted and not whole:
        raise InvalidQueryError(
            f"data holds no ROI masks of {subject}. Fetch some with rois=, or load all "
            "voxels with rois='brain'."
        )
    return wanted, whole


def _threshold(
    nc_threshold: object, noise_ceiling: object, there: list[str]
) -> tuple[str, float] | None:
    if nc_threshold is None:
        return None
    if isinstance(nc_threshold, bool) or not isinstance(nc_threshold, (int, float)):
        raise InvalidQueryError(
            f"nc_threshold is {nc_threshold!r}; it must be a number, in percent"
        )
    if noise_ceiling not in there:
        hint = did_you_mean(noise_ceiling, there)
        raise InvalidQueryError(
            f"data holds no noise ceiling {noise_ceiling!r} of the subject; {hint}"
        )
    return str(noise_ceiling), float(nc_threshold)


def _combine(
    wanted: _Wanted, shape: tuple[int, int, int], affine: np.ndarray
) -> Columns:
    """Read masks and maps, and combine them."""
    grid = shape, affine
    mask = np.ones(math.prod(shape), dtype=bool)
    if wanted.given is not None:
        mask &= wanted.given
    for file, *_ in wanted.within:
        mask &= _read_mask(file, grid)
    rois = {
        name: np.concatenate([np.flatnonzero(_read_mask(f, grid)) for f, *_ in files])
        for name, files in wanted.rois.items()
    }
    if not wanted.whole:
        in_rois = np.zeros_like(mask)
        for inside in rois.values():
            in_rois[inside] = True
        mask &= in_rois
    if wanted.threshold:
        name, least = wanted.threshold
        mask &= _read_map(wanted.noise_ceilings[name][0], grid) >= least
    volume = np.ascontiguousarray(mask.reshape(shape, order="F"))
    offsets = offsets_of(volume)
    return Columns(
        volume,
        {name: np.isin(offsets, inside) for name, inside in rois.items()},
        {
            name: _read_map(file, grid)[offsets]
            for name, (file, *_) in wanted.noise_ceilings.items()
        },
    )


def offsets_of(mask: np.ndarray) -> np.ndarray:
    """Return where the columns of a mask are in a flat volume.

    Examples
    --------
    >>> mask = np.zeros((2, 2, 2), dtype=bool)
    >>> mask[0, 0, 1] = mask[0, 1, 0] = mask[1, 0, 0] = True
    >>> offsets_of(mask).tolist()
    [4, 2, 1]
    """
    voxels = np.unravel_index(np.flatnonzero(mask), mask.shape)
    return np.ravel_multi_index(voxels, mask.shape, order="F")


def _read_map(file: str, grid: tuple, dtype: Any = "float32") -> np.ndarray:
    """Read a 3-D image on the grid, flat."""
    header = read_header(file)
    _check_grid(header.shape, header.affine, grid, file)
    (volume,) = iter_volumes(header, [0])
    return scaled(header, volume, dtype)


def _read_mask(file: str, grid: tuple) -> np.ndarray:
    return _inside(_read_map(file, grid, dtype=None))


def _given_mask(image: Any, grid: Header) -> np.ndarray:
    """Return a mask given as an image, flat."""
    values = np.asanyarray(image.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    _check_grid(values.shape, image.affine, (grid.shape, grid.affine), "mask_img")
    return _inside(values.ravel(order="F"))


def _inside(values: np.ndarray) -> np.ndarray:
    return (values != 0) & np.isfinite(values)


def _check_grid(shape: tuple, affine: np.ndarray, grid: tuple, name: str) -> None:
    if shape != grid[0] or _displacement(affine, *grid) > TOLERANCE:
        raise InvalidQueryError(
            f"The mask or map {name} is not on the grid of the betas. Its shape is "
            f"{shape}, theirs {grid[0]}; its affine is\n{affine}\ntheirs is\n"
            f"{grid[1]}\nnilearn.image.resample_to_img brings it there."
        )


def on_grid(shape: tuple, affine: np.ndarray, grid: Header) -> bool:
    """Tell whether an image is on a grid, up to rounding of its affine."""
    if shape != grid.shape:
        return False
    return _displacement(affine, grid.shape, grid.affine) <= TOLERANCE


def _displacement(affine: np.ndarray, shape: tuple, expected: np.ndarray) -> float:
    """Return by how many voxels the corners of a grid are off, at most."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    there = affine @ np.vstack([corners, np.ones(8)])
    return float(np.abs((np.linalg.inv(expected) @ there)[:3] - corners).max())
