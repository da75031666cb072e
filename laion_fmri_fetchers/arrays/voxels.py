"""The voxels to load: masks and maps on one grid, combined.

The steps::

    find_voxels ─┬─ _available_rois, _chosen_rois, _threshold ─▶ _Criteria
                 └─ _combine ─┬─ _read_mask, _read_map ─▶ Voxels
                              └─ offsets_of
    columns_in ──▶ _read_mask, of an ROI that was not asked for

Values of a volume are held flat, in the order of the file: the first axis varies
fastest. Voxels are listed in nilearn's order, that of ``volume[mask]``: the last axis
does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
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

TOLERANCE = 0.1
"""Voxels by which the corners of a mask may be off the grid of the betas."""

Signature = tuple[str, int, int]
"""The version of a file: its path, size in bytes and time of change in ns."""


class VoxelChoice(NamedTuple):
    """The arguments of `load_betas` that choose voxels."""

    rois: str | Sequence[str]
    mask_img: Any
    nc_threshold: float | None
    noise_ceiling: str


class Voxels(NamedTuple):
    """The voxels of the result, and values at each of them."""

    mask: np.ndarray
    """Boolean, of the grid's shape."""
    roi_masks: dict[str, np.ndarray]
    """ROI -> boolean per voxel."""
    noise_ceilings: dict[str, np.ndarray]
    """Name -> percent per voxel."""
    roi_files: dict[str, list[str]]
    """ROI -> its mask files, of all ROIs there are, asked for or not."""
    roi_categories: dict[str, str]
    """ROI -> its category, of the same."""
    n_outside: int
    """Voxels that are left out for this alone: they lie in none of the ROIs."""


class _Criteria(NamedTuple):
    """The criteria for voxels; each of them must be fulfilled."""

    mask_files: list[Signature]
    """Voxels lie in all of these masks."""
    mask: np.ndarray | None
    """Voxels lie in this mask, flat; None: in any."""
    rois: dict[str, list[Signature]]
    """ROI -> its mask files; voxels lie in one of the ROIs."""
    whole_brain: bool
    """Whether voxels outside of the ROIs are taken, too."""
    noise_ceilings: dict[str, Signature]
    """Name -> its map, which is read at the voxels."""
    threshold: tuple[str, float] | None
    """Name and least value of a noise ceiling, in percent; None: any value."""


def find_voxels(
    data: Bunch, subject: str, choice: VoxelChoice, grid: Header, cached: Callable
) -> Voxels:
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
    cached : callable
        Makes a function keep its results.

    Returns
    -------
    Voxels

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, a mask is on another grid, or no voxel is left.
    NotCachedError
        If a mask or map is not on disk.
    CorruptImageError
        If a mask or map cannot be read.
    """
    available, categories = _available_rois(data, subject)
    chosen, whole_brain = _chosen_rois(choice.rois, available, categories, subject)
    maps = dict(data.noise_ceilings.get(subject, {}))
    threshold = _threshold(
        choice.nc_threshold, choice.noise_ceiling, list(maps), subject
    )
    mask_files = [data.brain_masks[subject]] if subject in data.brain_masks else []
    mask_img, mask = choice.mask_img, None
    _check_subject(mask_img, subject)
    if isinstance(mask_img, (str, os.PathLike)):
        file = user_path(mask_img, "mask_img")
        if not os.path.exists(file):
            raise InvalidQueryError(f"mask_img is {file!r}, which does not exist")
        values = _read_map(file, (grid.shape, grid.affine), dtype=None)
        mask = _only_value(values)
    elif mask_img is not None:
        mask = _mask_of_image(mask_img, grid)
    elif not mask_files:
        raise InvalidQueryError(
            f"data holds no brain mask of {subject}; pass one as mask_img"
        )
    criteria = _Criteria(
        [signature(file) for file in mask_files],
        mask,
        {roi: [signature(file) for file in available[roi]] for roi in chosen},
        whole_brain,
        {name: signature(file) for name, file in maps.items()},
        threshold,
    )
    voxels = cached(_combine)(criteria, grid.shape, grid.affine)
    if not voxels.mask.any():
        raise InvalidQueryError(
            f"No voxel of {subject} fulfils all of the criteria: the brain mask, rois, "
            "mask_img and nc_threshold."
        )
    is_default = isinstance(choice.rois, str) and choice.rois in ("fetched", "all")
    if mask_img is not None and is_default and voxels.n_outside:
        n_voxels = voxels.n_outside + int(np.count_nonzero(voxels.mask))
        warn(
            f"{voxels.n_outside:,} of {counted(n_voxels, 'voxel')} of mask_img are "
            f"left out, as they lie in none of the ROIs (rois is {choice.rois!r}); "
            "rois='brain' takes all of mask_img."
        )
    empty = [roi for roi, inside in voxels.roi_masks.items() if not inside.any()]
    if empty and not (mask_img is not None and is_default):
        warn(
            f"No voxel of {listed(empty)} of {subject} is left, by the brain mask, "
            "mask_img and nc_threshold; on a coarse grid, a small ROI may have none."
        )
    return voxels._replace(roi_files=available, roi_categories=categories)


def signature(file: str) -> Signature:
    """Return the version of a file, which changes with its content."""
    try:
        stat = os.stat(file)
    except FileNotFoundError as error:
        raise NotCachedError(
            f"{file} is not on disk. Fetch it by the call that made data, without "
            "dry_run."
        ) from error
    return file, stat.st_size, stat.st_mtime_ns


def _available_rois(
    data: Bunch, subject: str
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the mask files and the category of each ROI of a subject."""
    files: dict[str, list[str]] = {}
    categories: dict[str, str] = {}
    paths = [*data.rois, *data.images]
    metas = [*data.rois_meta, *data.images_meta]
    masks = [
        {**meta, "absolute_path": file}
        for file, meta in zip(paths, metas, strict=True)
        if (meta["image_type"], meta["subject"]) == ("roi", subject) and is_nifti(meta)
    ]
    for mask in on_one_grid(masks):
        files.setdefault(mask["roi"], []).append(mask["absolute_path"])
        categories[mask["roi"]] = mask["roi_category"]
    return files, categories


def _chosen_rois(
    rois: object,
    available: dict[str, list[str]],
    categories: dict[str, str],
    subject: str,
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
            chosen += available
        elif name != "brain":
            others = ("brain", "fetched")
            chosen += rois_of(name, categories, f"data of {subject}", others)
    whole_brain = "brain" in names
    if not chosen and not whole_brain:
        raise InvalidQueryError(
            f"data holds no ROI masks of {subject}. Fetch some with rois=, or load all "
            "voxels with rois='brain'."
        )
    return list(dict.fromkeys(chosen)), whole_brain


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

    Returns
    -------
    list of str

    Raises
    ------
    InvalidQueryError
        If it stands for none, or a part of a union is not there.

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


def columns_in(files: Iterable[str], mask_img: Any) -> np.ndarray:
    """Return which voxels of a mask lie in another one.

    Parameters
    ----------
    files : iterable of str
        Masks on the grid, of which one is enough.
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
        signature(file)
        inside |= _read_mask(file, (mask.shape, mask_img.affine))[offsets]
    return inside


def _threshold(
    nc_threshold: object, noise_ceiling: object, available: list[str], subject: str
) -> tuple[str, float] | None:
    """Return the name of a noise ceiling and its least value; None for any value."""
    if nc_threshold is None:
        if noise_ceiling != "Allrep":
            raise InvalidQueryError(
                f"noise_ceiling is {noise_ceiling!r}, the map that nc_threshold is "
                "for; give nc_threshold too. betas.noise_ceilings has all maps."
            )
        return None
    if isinstance(nc_threshold, bool) or not isinstance(nc_threshold, Real):
        raise InvalidQueryError(
            f"nc_threshold is {nc_threshold!r}; it must be a number, in percent"
        )
    if noise_ceiling not in available:
        hint = did_you_mean(noise_ceiling, available)
        raise InvalidQueryError(
            f"data holds no noise ceiling {noise_ceiling!r} of {subject}; {hint}"
        )
    threshold = float(nc_threshold)
    if 0 < threshold < 1:
        warn(
            f"nc_threshold is {threshold:g} percent, which keeps nearly all voxels; "
            f"did you mean {100 * threshold:g}?"
        )
    return str(noise_ceiling), threshold


def _combine(
    criteria: _Criteria, shape: tuple[int, int, int], affine: np.ndarray
) -> Voxels:
    """Read masks and maps, and combine them."""
    grid = shape, affine
    mask = np.ones(math.prod(shape), dtype=bool)
    if criteria.mask is not None:
        mask &= criteria.mask
    for file, *_ in criteria.mask_files:
        mask &= _read_mask(file, grid)
    rois = {
        name: np.concatenate([np.flatnonzero(_read_mask(f, grid)) for f, *_ in files])
        for name, files in criteria.rois.items()
    }
    if criteria.threshold:
        name, least = criteria.threshold
        mask &= _read_map(criteria.noise_ceilings[name][0], grid) >= least
    n_voxels = np.count_nonzero(mask)
    if not criteria.whole_brain:
        in_rois = np.zeros_like(mask)
        for inside in rois.values():
            in_rois[inside] = True
        mask &= in_rois
    volume = np.ascontiguousarray(mask.reshape(shape, order="F"))
    offsets = offsets_of(np.flatnonzero(volume), shape)
    return Voxels(
        volume,
        {name: np.isin(offsets, inside) for name, inside in rois.items()},
        {
            name: _read_map(file, grid)[offsets]
            for name, (file, *_) in criteria.noise_ceilings.items()
        },
        {},
        {},
        int(n_voxels - np.count_nonzero(mask)),
    )


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


def _read_map(file: str, grid: tuple, dtype: Any = "float32") -> np.ndarray:
    """Read a 3-D image on the grid, flat."""
    header = read_header(file)
    if header.n_volumes != 1:
        raise InvalidQueryError(
            f"The mask or map {file} has {header.n_volumes} volumes; it must be a "
            "single one."
        )
    _check_grid(header.shape, header.affine, grid, file)
    (volume,) = iter_volumes(header, [0])
    return scaled(header, volume, dtype)


def _read_mask(file: str, grid: tuple) -> np.ndarray:
    return _inside(_read_map(file, grid, dtype=None))


def _check_subject(mask_img: Any, subject: str) -> None:
    """Raise InvalidQueryError for a mask of another subject, by its file or betas."""
    name, of_subject = "betas.mask_img", None
    if hasattr(mask_img, "get_filename"):
        of_subject = mask_img.extra.get("subject")
        mask_img = mask_img.get_filename()
    if isinstance(mask_img, (str, os.PathLike)):
        name = os.path.basename(mask_img)
        of_subject = subject_of_name(name)
    if of_subject not in (None, subject):
        raise InvalidQueryError(
            f"mask_img is {name}, a mask of {of_subject}, and the betas are of "
            f"{subject}: voxels of two people do not correspond. Load each subject "
            "with a mask of its own."
        )


def _mask_of_image(image: Any, grid: Header) -> np.ndarray:
    """Return a mask given as an image, flat."""
    if not hasattr(image, "dataobj"):
        raise InvalidQueryError(
            f"mask_img is a {type(image).__name__}; it must be a path or an image. Of "
            "a fitted masker, pass its mask_img_."
        )
    values = np.asanyarray(image.dataobj)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    _check_grid(values.shape, image.affine, (grid.shape, grid.affine), "mask_img")
    return _only_value(values.ravel(order="F"))


def _only_value(values: np.ndarray) -> np.ndarray:
    """Return where a mask is; raise for a map, of which nobody set a threshold."""
    inside = _inside(values)
    chosen = values[inside]
    if len(chosen) and chosen.min() != chosen.max():
        raise InvalidQueryError(
            f"mask_img has values from {chosen.min():g} to {chosen.max():g}; a mask "
            "has 0 and one other. nilearn.image.binarize_img makes one of a map, by a "
            "threshold."
        )
    return inside


def _inside(values: np.ndarray) -> np.ndarray:
    return (values != 0) & np.isfinite(values)


def _check_grid(shape: tuple, affine: np.ndarray, grid: tuple, name: str) -> None:
    if shape != grid[0] or _displacement(affine, *grid) > TOLERANCE:
        raise InvalidQueryError(
            f"The mask or map {name} is not on the grid of the betas. Its shape is "
            f"{shape}, theirs {grid[0]}; its affine is\n{affine}\ntheirs is\n"
            f"{grid[1]}\nnilearn.image.resample_to_img resamples it to that grid."
        )


def on_grid(shape: tuple, affine: np.ndarray, grid: Header) -> bool:
    """Return whether an image is on a grid, up to rounding of its affine."""
    if shape != grid.shape:
        return False
    return _displacement(affine, grid.shape, grid.affine) <= TOLERANCE


def _displacement(affine: np.ndarray, shape: tuple, expected: np.ndarray) -> float:
    """Return the largest distance, in voxels, of the corners of two grids."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    points = affine @ np.vstack([corners, np.ones(8)])
    return float(np.abs((np.linalg.inv(expected) @ points)[:3] - corners).max())
