"""Betas as they are returned: a Bunch, and what can be done with it.

The room that `load_betas` and other ways to betas end in::

    make_betas ──▶ Betas ─┬─ to_img
                          ├─ roi_mask ──────▶ voxels.rois_of, voxels.columns_in
                          ├─ noise_ceiling ─▶ ceilings.ceiling_of_average
                          └─ save ──────────▶ saved.write_values
    read_betas ──▶ saved.read_values
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.labels import MEAN_INVERSE_REPEATS
from laion_fmri_fetchers.messages import counted, listed

from .ceilings import ceiling_of_average, mean_inverse
from .rows import check_rows
from .saved import read_values, write_values
from .voxels import Voxels, columns_in, rois_of


class Betas(Result):
    """The Bunch of `load_betas`: its keys are described there, its methods here.

    Methods read the keys, so they follow what a user changes in them.
    """

    def __dir__(self) -> Iterable[str]:
        return sorted({*super().__dir__(), *_METHODS})

    def to_img(self, values: Any, fill: float = 0) -> nib.Nifti1Image:
        """Put values back on the grid, as an image.

        Parameters
        ----------
        values : array of shape (n_voxels,) or (n_rows, n_voxels)
            A value per voxel, or rows of them as in ``data``.
        fill : float, default=0
            The value outside the voxels. There, `project_to_surface` counts no value of
            an image of decimal numbers that this returned; once it is saved or changed,
            only with NaN.

        Returns
        -------
        :class:`nibabel.nifti1.Nifti1Image`
            3-D of a value per voxel, 4-D of rows, with a volume each. Of the type of
            ``values``, or the nearest that images have: uint8 of bool, float64 of whole
            numbers of 64 bits.

        Raises
        ------
        InvalidQueryError
            If there is not one value per voxel.
        """
        inside = np.asarray(self["mask_img"].dataobj) > 0
        n_voxels = int(inside.sum())
        rows = np.asarray(values)
        if rows.ndim not in (1, 2) or rows.shape[-1] != n_voxels:
            raise InvalidQueryError(
                f"values has the shape {rows.shape}; it must be ({n_voxels},), one "
                f"value per voxel, or (n_rows, {n_voxels})"
            )
        if rows.dtype.kind not in "biuf":
            raise InvalidQueryError(
                f"values are {rows.dtype}; an image takes numbers, or bool"
            )
        kind = _type_in_image(rows)
        if not (np.isfinite(fill) and float(fill).is_integer()):
            kind = np.result_type(kind, np.float32)
        elif fill and kind.kind in "biu":
            kind = np.result_type(kind, np.min_scalar_type(int(fill)))
            kind = _type_in_image(np.empty(0, kind))
        volume = np.full(inside.shape + rows.shape[:-1], fill, dtype=kind)
        volume[inside] = rows.T
        image = nib.Nifti1Image(volume, self["mask_img"].affine)
        image.extra["dtype"] = rows.dtype  # whole numbers of 64 bits became float64
        image.extra["subject"] = subject_of(self["trials"])
        if rows.dtype.kind == "f":  # else 0 is a label or False, outside as well
            image.extra["inside"] = inside
        return image

    def roi_mask(self, rois: str | Iterable[str]) -> np.ndarray:
        """Return which voxels lie in a region.

        Parameters
        ----------
        rois : str or iterable of str
            An ROI (``"FFA1"``, ``"FFA-1"``), a category (``"face"``), or ``"V1"``,
            ``"V2"``, ``"V3"`` for dorsal and ventral part together, in any case; or
            several of them.

        Returns
        -------
        numpy.ndarray of bool, shape (n_voxels,)
            True for columns of ``data`` in any of the ROIs. ROIs
            of ``roi_masks`` and all others whose masks were fetched with the data; the
            masks of these are read from ``roi_files``.

        Raises
        ------
        InvalidQueryError
            If there is no such ROI.
        NotCachedError
            If the mask of an ROI that was not asked for is no longer on disk.
        """
        masks, files = self["roi_masks"], self["roi_files"]
        inside = np.zeros(len(self["coordinates"]), dtype=bool)
        is_single = isinstance(rois, str) or not isinstance(rois, Iterable)
        for name in [rois] if is_single else rois:
            for roi in rois_of(name, self["roi_categories"], "betas"):
                if roi in masks:
                    inside |= masks[roi]
                else:
                    inside |= columns_in(files[roi], self["mask_img"])
        return inside

    def noise_ceiling(
        self, n_repeats: Any, noise_ceiling: str = "Allrep"
    ) -> np.ndarray:
        """Return the noise ceiling for any number of repeats.

        The published maps themselves are in ``noise_ceilings``.

        Parameters
        ----------
        n_repeats : "averaged", float, or array of shape (n_rows,)
            The number of trials that are averaged; of rows that differ in it, the
            number of each, of which the mean of 1/n counts, as in
            ``betas.trials["n_averaged"][test]``. ``"averaged"``: what each
            row of ``data`` is an average of, 1 for single trials.
        noise_ceiling : {"Allrep", "12rep", "4rep"}, default="Allrep"
            The published map that the ceiling is derived from.

        Returns
        -------
        numpy.ndarray of float32, shape (n_voxels,)
            Percent; where the published map is 0, 100 or NaN, that.

        Raises
        ------
        InvalidQueryError
            If an argument is not valid, ``noise_ceilings`` lacks the map, or
            ``trials`` are not those of the rows of ``data``.

        Notes
        -----
        As the publishers define it: 100 s²/(s² + m), with s the ratio of the standard
        deviations of signal and noise, and m the mean of 1/n over images shown n times:
        1/4 and 1/12 of the maps of 4 and 12 repeats, and of ``"Allrep"`` the mean over
        a subject's 6,204 images as planned, 0.226.
        """
        published = self["noise_ceilings"]
        if noise_ceiling not in published or noise_ceiling not in MEAN_INVERSE_REPEATS:
            hint = did_you_mean(noise_ceiling, published)
            raise InvalidQueryError(
                f"betas hold no noise ceiling {noise_ceiling!r}; {hint}"
            )
        if isinstance(n_repeats, str) and n_repeats == "averaged":
            check_rows(self)
            n_repeats = self["trials"].get("n_averaged", 1)
        return ceiling_of_average(
            published[noise_ceiling],
            MEAN_INVERSE_REPEATS[noise_ceiling],
            mean_inverse(n_repeats),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one file, for ``load_betas(path)``.

        It appears whole or not at all; one that exists is replaced. It is an ``.npz``
        of numpy without pickled code.

        Parameters
        ----------
        path : str or path
            The file, such as ``"ffa.npz"``; the name is taken as it is.

        Raises
        ------
        InvalidQueryError
            If a key that was added holds what cannot be saved, keys differ in the
            number of rows or voxels, or ``path`` is a folder.
        DiskSpaceError
            If the disk is full.
        """
        if lacking := [key for key in _KEYS if key not in self]:
            raise InvalidQueryError(
                f"betas lack {listed(lacking)}; load them again before you save them"
            )
        check_rows(self)
        n_rows, n_voxels = self["data"].shape
        inside = np.asarray(self["mask_img"].dataobj) > 0
        sizes = [("mask_img", int(inside.sum()), n_voxels, "voxel")]
        sizes.append(("coordinates", len(self["coordinates"]), n_voxels, "voxel"))
        sizes += [
            (f"{key}[{name!r}]", len(values), size, noun)
            for key, size, noun in (
                ("groups", n_rows, "row"),
                ("roi_masks", n_voxels, "voxel"),
                ("noise_ceilings", n_voxels, "voxel"),
            )
            for name, values in self[key].items()
        ]
        for name, size, expected, noun in sizes:
            if size != expected:
                raise InvalidQueryError(
                    f"betas.{name} is of {counted(size, noun)}, but betas.data of "
                    f"{counted(expected, noun)}; cut all keys alike"
                )
        write_values(path, self)


_KEYS = (
    *("data", "trials", "mask_img", "coordinates", "roi_masks", "roi_files"),
    *("roi_categories", "noise_ceilings", "groups"),
)
_METHODS = ("copy", "noise_ceiling", "roi_mask", "save", "to_img")


class RoiMasks(dict):
    """ROI -> bool array, of the ROIs asked for; others are found by a method."""

    def __missing__(self, name: str) -> np.ndarray:
        raise KeyError(
            f"{name!r} is not among the ROIs asked for, {listed(list(self))}; "
            f"betas.roi_mask({name!r}) finds ROIs, categories and unions"
        )


class Rows(NamedTuple):
    """What the rows of the result are."""

    data: Any
    """Array of shape (n_rows, n_voxels)."""
    trials: pd.DataFrame
    """One row per row of ``data``; with ``n_averaged`` where rows are averages."""


def make_betas(rows: Rows, voxels: Voxels, affine: np.ndarray) -> Betas:
    """Return the Bunch of `load_betas`.

    Parameters
    ----------
    rows : Rows
        The values and the trials.
    voxels : Voxels
        What the columns are.
    affine : numpy.ndarray of shape (4, 4)
        Of the grid that ``voxels.mask`` is on.

    Returns
    -------
    Betas
    """
    # np.argwhere would look at each axis of the whole grid.
    axes = np.unravel_index(np.flatnonzero(voxels.mask), voxels.mask.shape)
    places = np.column_stack(axes)
    mask_img = nib.Nifti1Image(voxels.mask.astype(np.uint8), affine)
    mask_img.extra["subject"] = subject_of(rows.trials)
    return Betas(
        data=rows.data,
        trials=rows.trials,
        mask_img=mask_img,
        coordinates=nib.affines.apply_affine(affine, places),
        roi_masks=RoiMasks(voxels.roi_masks),
        roi_files=voxels.roi_files,
        roi_categories=voxels.roi_categories,
        noise_ceilings=voxels.noise_ceilings,
        groups={
            name: np.array(rows.trials[name], dtype=object)
            for name in ("session", "label")
            if rows.trials[name].notna().all()
        },
    )


def read_betas(path: str | os.PathLike) -> Betas:
    """Read betas that ``betas.save(path)`` wrote."""
    values = read_values(path)
    if lacking := [key for key in _KEYS if key not in values]:
        raise CorruptImageError(
            f"{os.fspath(path)} lacks {listed(lacking)}, so it holds something else "
            "than betas; load and save them again."
        )
    values["mask_img"].extra["subject"] = subject_of(values["trials"])
    return Betas(**{**values, "roi_masks": RoiMasks(values["roi_masks"])})


def subject_of(trials: pd.DataFrame) -> str | None:
    """Return the subject of betas, None where their trials do not tell one."""
    names = set(trials.get("subject", ()))
    return names.pop() if len(names) == 1 else None


def _type_in_image(values: np.ndarray) -> np.dtype:
    """Return a type for values that NIfTI, and tools that read it, have."""
    kind = values.dtype.kind
    if kind == "b":
        return np.dtype(np.uint8)
    if values.dtype.itemsize > (8 if kind == "f" else 4):
        return np.dtype(np.float64)
    if values.dtype == np.float16:
        return np.dtype(np.float32)
    return values.dtype
