"""Which voxels: masks, maps and thresholds on one grid, combined.

Volumes are held flat, in the order of the file: the first axis varies fastest. Voxels
are listed in nilearn's order, that of ``volume[mask]``: the last axis does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import (
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.keys import is_nifti, on_one_grid, subject_of_name
from laion_fmri_fetchers.layout.names import rois_named, with_unions
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.query.values import in_order
from laion_fmri_fetchers.volumes import Header, iter_volumes, read_header, scaled

# Voxels by which the corners of a mask may be off the grid of the betas: tools round
# affines when they save them.
_TOLERANCE = 0.1


class VoxelChoice(NamedTuple):
    """The arguments of `load_betas` that choose voxels."""

    rois: str | Sequence[str]
    mask_img: Any
    nc_threshold: float | None
    noise_ceiling: str


class Voxels(NamedTuple):
    """The voxels of the result, and values at each of them."""

    choice: VoxelChoice
    grid: Header
    """Header of an image on the grid."""
    mask: np.ndarray
    """Boolean, of the grid's shape."""
    roi_masks: dict[str, np.ndarray]
    """ROI -> boolean per voxel, of the ROIs asked for."""
    noise_ceilings: dict[str, np.ndarray]
    """Name -> percent per voxel."""
    roi_files: dict[str, list[str]]
    """ROI -> its mask files, of all ROIs there are, asked for or not."""
    roi_categories: dict[str, str]
    """ROI -> its category, of the same."""


def find_voxels(data: Bunch, subject: str, choice: VoxelChoice, grid: Header) -> Voxels:
    """Find the voxels of a subject that are asked for.

    Parameters
    ----------
    data : :class:`sklearn.utils.Bunch`
        From `fetch_laion_fmri`.
    subject : str
        Such as ``"sub-01"``.
    choice : VoxelChoice
        The voxels asked for.
    grid : Header
        Header of an image whose grid masks and maps must be on.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, a mask is on another grid, or no voxel is left.
    NotCachedError
        If a mask or map is not on disk.
    CorruptImageError
        If a mask or map cannot be read.
    """
    rois, mask_img, nc_threshold, noise_ceiling = choice
    files, categories = _roi_masks_of(data, subject)
    chosen, is_whole_brain = _chosen_rois(rois, categories, subject)
    maps = data.noise_ceilings.get(subject, {})
    _check_threshold(nc_threshold, noise_ceiling, maps, subject)

    inside = np.ones(math.prod(grid.shape), dtype=bool)
    if mask_img is not None:
        inside &= _given_mask(mask_img, subject, grid)
    if subject in data.brain_masks:
        inside &= _read_mask(data.brain_masks[subject], grid)
    elif mask_img is None:
        raise InvalidQueryError(
            f"data holds no brain mask of {subject}; pass one as mask_img"
        )
    if nc_threshold is not None:
        inside &= _read_map(maps[noise_ceiling], grid) >= float(nc_threshold)
    # As positions: the masks of all ROIs as volumes would take 3 MB each.
    in_rois = {
        roi: np.concatenate([np.flatnonzero(_read_mask(f, grid)) for f in files[roi]])
        for roi in chosen
    }
    n_before = int(np.count_nonzero(inside))
    if not is_whole_brain:
        in_any = np.zeros_like(inside)
        in_any[np.concatenate([*in_rois.values()])] = True
        inside &= in_any
    mask = np.ascontiguousarray(inside.reshape(grid.shape, order="F"))
    offsets = offsets_of(np.flatnonzero(mask), grid.shape)
    if not len(offsets):
        raise InvalidQueryError(
            f"No voxel of {subject} meets all criteria: the brain mask, rois, "
            "mask_img and nc_threshold."
        )
    roi_masks = {roi: np.isin(offsets, within) for roi, within in in_rois.items()}
    empty = [roi for roi, within in roi_masks.items() if not within.any()]
    n_outside = n_before - len(offsets)
    if mask_img is not None and isinstance(rois, str) and rois in ("fetched", "all"):
        if n_outside:
            warn(
                f"{n_outside:,} of {counted(n_before, 'voxel')} of mask_img are left "
                f"out, as they lie in none of the ROIs (rois is {rois!r}); "
                "rois='brain' takes all of mask_img."
            )
    elif empty:
        warn(
            f"No voxel of {listed(empty)} of {subject} remains after the brain mask, "
            "mask_img and nc_threshold; on a coarse grid, a small ROI may have none."
        )
    ceilings = {name: _read_map(file, grid)[offsets] for name, file in maps.items()}
    return Voxels(choice, grid, mask, roi_masks, ceilings, files, categories)


def _roi_masks_of(
    data: Bunch, subject: str
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the mask files and the category of each ROI of a subject."""
    files: dict[str, list[str]] = {}
    categories: dict[str, str] = {}
    metas = [*data.rois_meta, *data.images_meta]
    records = [
        {**meta, "absolute_path": file}
        for file, meta in zip([*data.rois, *data.images], metas, strict=True)
        if (meta["image_type"], meta["subject"]) == ("roi", subject) and is_nifti(meta)
    ]
    for record in on_one_grid(records):
        files.setdefault(record["roi"], []).append(record["absolute_path"])
        categories[record["roi"]] = record["roi_category"]
    return files, categories


def _chosen_rois(
    rois: object, categories: dict[str, str], subject: str
) -> tuple[list[str], bool]:
    """Return the ROIs asked for, and whether the whole brain is."""
    if not isinstance(rois, Iterable):
        raise InvalidQueryError(
            f"rois is {rois!r}; give names of ROIs or categories, 'fetched', or "
            "'brain' for all voxels"
        )
    names = [rois] if isinstance(rois, str) else in_order(rois)
    chosen: list[str] = []
    for name in names:
        if name in ("fetched", "all"):
            chosen += categories
        elif name != "brain":
            others = ("brain", "fetched")
            chosen += rois_of(name, categories, f"data of {subject}", others)
    is_whole_brain = "brain" in names
    if not chosen and not is_whole_brain:
        raise InvalidQueryError(
            f"data holds no ROI masks of {subject}. Fetch some with rois=, or load all "
            "voxels with rois='brain'."
        )
    return list(dict.fromkeys(chosen)), is_whole_brain


def rois_of(
    name: object, categories: dict[str, str], holder: str, others: Sequence[str] = ()
) -> list[str]:
    """Return the ROIs that the name of an ROI, a union or a category stands for.

    Parameters
    ----------
    name : str
        With or without hyphens, in any case.
    categories : dict
        ROI -> its category, of the ROIs there are.
    holder : str
        What holds them, for messages.
    others : sequence of str
        Other names that would be valid, for messages.

    Raises
    ------
    InvalidQueryError
        If it stands for none, or a part of a union does not exist.

    Examples
    --------
    >>> categories = {"FFA1": "face", "OFA": "face", "V1d": "retinotopy"}
    >>> rois_of("ffa-1", categories, "data"), rois_of("face", categories, "data")
    (['FFA1'], ['FFA1', 'OFA'])
    """
    text = name if isinstance(name, str) else ""
    if text.replace("-", "") in categories:
        return [text.replace("-", "")]
    rois = []
    for published in rois_named(text):
        members = [roi for roi, of in categories.items() if of == published]
        if not members and published not in categories:
            known = [*with_unions(categories), *categories.values(), *others]
            hint = did_you_mean(name, known)
            raise InvalidQueryError(f"There is no ROI {name!r} in {holder}; {hint}")
        rois += members or [published]
    return rois


def _check_threshold(
    nc_threshold: object, noise_ceiling: object, maps: Collection[str], subject: str
) -> None:
    """Raise InvalidQueryError for a threshold or map that is not valid."""
    if nc_threshold is None:
        if noise_ceiling != "Allrep":
            raise InvalidQueryError(
                f"noise_ceiling is {noise_ceiling!r}, the map that nc_threshold is "
                "for; give nc_threshold too. betas.noise_ceilings has all maps."
            )
        return
    if isinstance(nc_threshold, bool) or not isinstance(nc_threshold, Real):
        raise InvalidQueryError(
            f"nc_threshold is {nc_threshold!r}; it must be a number, in percent"
        )
    if noise_ceiling not in maps:
        hint = did_you_mean(noise_ceiling, maps)
        raise InvalidQueryError(
            f"data holds no noise ceiling {noise_ceiling!r} of {subject}; {hint}"
        )
    if 0 < float(nc_threshold) < 1:
        warn(
            f"nc_threshold is {nc_threshold:g} percent, which keeps nearly all voxels; "
            f"did you mean {100 * float(nc_threshold):g}?"
        )


def _given_mask(mask_img: Any, subject: str, grid: Header) -> np.ndarray:
    """Return the argument ``mask_img`` as a flat mask."""
    file, owner = mask_img, None
    if hasattr(mask_img, "get_filename"):
        file, owner = mask_img.get_filename(), mask_img.extra.get("subject")
    if isinstance(file, (str, os.PathLike)):
        owner = subject_of_name(os.path.basename(file))
    if owner not in (None, subject):
        name = os.path.basename(file) if file else "betas.mask_img"
        raise InvalidQueryError(
            f"mask_img is {name}, a mask of {owner}, and the betas are of {subject}: "
            "voxels of two people do not correspond. Load each subject with a mask of "
            "its own."
        )
    if isinstance(mask_img, (str, os.PathLike)):
        file = user_path(mask_img, "mask_img")
        if not os.path.exists(file):
            raise InvalidQueryError(f"mask_img is {file!r}, which does not exist")
        values = _read_map(file, grid, dtype=None)
    elif hasattr(mask_img, "dataobj"):
        volume = np.asanyarray(mask_img.dataobj)
        if volume.ndim == 4 and volume.shape[3] == 1:
            volume = volume[..., 0]
        _check_grid(volume.shape, mask_img.affine, grid, "mask_img")
        values = volume.ravel(order="F")
    else:
        raise InvalidQueryError(
            f"mask_img is a {type(mask_img).__name__}; it must be a path or an image. "
            "Of a fitted masker, pass its mask_img_."
        )
    inside = (values != 0) & np.isfinite(values)
    chosen = values[inside]
    if len(chosen) and chosen.min() != chosen.max():
        # Every voxel of a map that is not exactly 0 would be taken.
        raise InvalidQueryError(
            f"mask_img has values from {chosen.min():g} to {chosen.max():g}; a mask "
            "has 0 and one other. nilearn.image.binarize_img makes one of a map, by a "
            "threshold."
        )
    return inside


def columns_in(files: Iterable[str], mask_img: Any) -> np.ndarray:
    """Return which voxels of a mask lie in any of several others.

    Parameters
    ----------
    files : iterable of str
        Masks on the grid.
    mask_img : nibabel.nifti1.Nifti1Image
        The voxels.

    Returns
    -------
    numpy.ndarray of bool, shape (n_voxels,)

    Raises
    ------
    NotCachedError
        If a mask is not on disk.
    InvalidQueryError
        If it is on another grid.
    CorruptImageError
        If it cannot be read.
    """
    mask = np.asarray(mask_img.dataobj) > 0
    offsets = offsets_of(np.flatnonzero(mask), mask.shape)
    inside = np.zeros(len(offsets), dtype=bool)
    for file in files:
        inside |= _read_mask(file, mask_img)[offsets]
    return inside


def offsets_of(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return where voxels are in a flat volume of a file, the first axis fastest.

    Parameters
    ----------
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.
    shape : tuple of int
        Voxels of the grid, by axis.

    Examples
    --------
    >>> offsets_of(np.array([1, 2, 4]), (2, 2, 2)).tolist()
    [4, 2, 1]
    """
    axes = np.unravel_index(voxels, shape)
    return np.ravel_multi_index(axes, shape, order="F")


def cached_header(file: str) -> Header:
    """Read the header of an image that a fetcher named.

    Raises
    ------
    NotCachedError
        If it is not on disk.
    """
    try:
        return read_header(file)
    except FileNotFoundError as error:
        raise NotCachedError(
            f"{file} is not on disk. Fetch it by the call that made data, without "
            "dry_run."
        ) from error


def _read_map(file: str, grid: Any, dtype: Any = "float32") -> np.ndarray:
    """Read a 3-D image on a grid (of a header or an image), flat."""
    header = cached_header(file)
    if header.n_volumes != 1:
        raise InvalidQueryError(
            f"The mask or map {file} has {header.n_volumes} volumes; it must be a "
            "single one."
        )
    _check_grid(header.shape, header.affine, grid, file)
    (volume,) = iter_volumes(header, [0])
    return scaled(header, volume, dtype)


def _read_mask(file: str, grid: Any) -> np.ndarray:
    values = _read_map(file, grid, dtype=None)
    return (values != 0) & np.isfinite(values)


def _check_grid(shape: tuple, affine: np.ndarray, grid: Any, name: str) -> None:
    if not on_grid(shape, affine, grid):
        raise InvalidQueryError(
            f"The mask or map {name} is not on the grid of the betas. Its shape is "
            f"{shape}, theirs {grid.shape}; its affine is\n{affine}\ntheirs is\n"
            f"{grid.affine}\nnilearn.image.resample_to_img resamples it to that grid."
        )


def on_grid(shape: tuple, affine: np.ndarray, grid: Any) -> bool:
    """Return whether an image is on the grid of another, up to a rounded affine.

    Parameters
    ----------
    shape : tuple of int
        Voxels by axis.
    affine : numpy.ndarray of shape (4, 4)
        Of the image.
    grid : Header or Nifti1Image
        The other one.
    """
    if tuple(shape) != tuple(grid.shape):
        return False
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    points = np.linalg.inv(grid.affine) @ affine @ np.vstack([corners, np.ones(8)])
    return bool(np.abs(points[:3] - corners).max() <= _TOLERANCE)
