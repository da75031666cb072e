"""Betas as they are returned: a Bunch, what can be done with it, and its file."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pandas as pd

from laion_fmri_fetchers.cache.files import whole_file
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.labels import MEAN_INVERSE_REPEATS
from laion_fmri_fetchers.messages import counted, listed
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.query.rows import check_rows

from .ceilings import ceiling_of_average, mean_inverse
from .methods import FetchedData
from .store import DAMAGED
from .voxels import columns_in, rois_of

if TYPE_CHECKING:
    import xarray as xr

_FORMAT = "laion_fmri_fetchers betas"
_FORMAT_VERSION = 1
_PROVENANCE = ("query", "data_dir", "description", "versions")
_KEYS = (
    *("data", "trials", "mask_img", "coordinates", "roi_masks", "roi_files"),
    *("roi_categories", "noise_ceilings", "groups"),
    *_PROVENANCE,
)


class Betas(FetchedData):
    """The Bunch of `load_betas`: its keys are described there, its methods here.

    Methods read the keys, so they follow what a user changes in them.
    """

    def __dir__(self) -> list[str]:
        return sorted(
            {
                *super().__dir__(),
                *("noise_ceiling", "roi_mask", "save", "to_img", "to_xarray"),
            }
        )

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
        n_voxels = np.count_nonzero(inside)
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
        As the dataset's authors define it: 100 s²/(s² + m), with s the ratio of the
        standard deviations of signal and noise, and m the mean of 1/n over images shown
        n times: 1/4 and 1/12 of the maps of 4 and 12 repeats, and of ``"Allrep"`` the
        mean over a subject's 6,204 images as planned, 0.226.
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

    def to_xarray(self) -> xr.DataArray:
        """Return the betas as a labelled array of xarray.

        Returns
        -------
        xarray.DataArray
            ``data``, not copied, with the dimensions ``trial`` and ``voxel``. Its
            coordinates along ``trial`` are the columns of ``trials``; along ``voxel``,
            ``x``, ``y`` and ``z`` in mm, ``roi_FFA1`` and so on (bool) of ``roi_masks``
            and ``noise_ceiling_Allrep`` and so on (percent) of ``noise_ceilings``. Its
            attribute ``subject`` is the subject's name.

        Raises
        ------
        InvalidQueryError
            If ``trials`` are not those of the rows of ``data``.
        ImportError
            Without xarray: ``pip install "laion_fmri_fetchers[xarray]"``.

        Examples
        --------
        The mean over repeats of each image, in a region::

            betas = fetch_laion_betas("sub-01", "face")
            array = betas.to_xarray()
            array[:, array.roi_FFA1].groupby("label").mean("trial")
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise ImportError(
                "to_xarray needs the package xarray: "
                'pip install "laion_fmri_fetchers[xarray]"'
            ) from error
        check_rows(self)
        columns = {str(name): column for name, column in self["trials"].items()}
        voxels = dict(zip("xyz", np.transpose(self["coordinates"]), strict=True))
        voxels |= {f"roi_{name}": mask for name, mask in self["roi_masks"].items()}
        voxels |= {
            f"noise_ceiling_{name}": percent
            for name, percent in self["noise_ceilings"].items()
        }
        if taken := columns.keys() & {*voxels, "trial", "voxel"}:
            raise InvalidQueryError(
                f"betas.trials has columns {listed(sorted(taken))}, names that voxels "
                "have; rename them"
            )
        return xr.DataArray(
            self["data"],
            dims=("trial", "voxel"),
            coords={
                **{k: ("trial", _without_nulls(v)) for k, v in columns.items()},
                **{k: ("voxel", v) for k, v in voxels.items()},
            },
            name="betas",
            attrs={"subject": subject_of(self["trials"]) or ""},
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the betas to one file, for ``load_betas(path)``.

        It appears whole or not at all; one that exists is replaced. It is an ``.npz``
        of numpy without pickled code. Keys that were added are not saved.

        Parameters
        ----------
        path : str or path
            The file, such as ``"ffa.npz"``; the name is taken as it is.

        Raises
        ------
        InvalidQueryError
            If a column of ``trials`` holds what cannot be saved, keys differ in the
            number of rows or voxels, or ``path`` is a folder.
        DiskSpaceError
            If the disk is full.
        """
        if missing := [key for key in _KEYS if key not in self]:
            raise InvalidQueryError(
                f"betas lack {listed(missing)}; load them again before you save them"
            )
        check_rows(self)
        voxels = np.argwhere(np.asarray(self["mask_img"].dataobj) > 0)
        n_voxels = self["data"].shape[1]
        sizes = {"mask_img": len(voxels), "coordinates": len(self["coordinates"])}
        for key in ("roi_masks", "noise_ceilings"):
            sizes |= {f"{key}[{name!r}]": len(v) for name, v in self[key].items()}
        for name, size in sizes.items():
            if size != n_voxels:
                raise InvalidQueryError(
                    f"betas.{name} is of {counted(size, 'voxel')}, but betas.data of "
                    f"{counted(n_voxels, 'voxel')}; cut all keys alike"
                )
        about = {
            "format": _FORMAT,
            "version": _FORMAT_VERSION,
            "shape": self["mask_img"].shape,
            "roi_masks": list(self["roi_masks"]),
            "noise_ceilings": list(self["noise_ceilings"]),
            "trials": _table_to_plain(self["trials"]),
            **{key: self[key] for key in ("roi_files", "roi_categories", *_PROVENANCE)},
        }
        file = user_path(path, "path")
        if os.path.isdir(file):
            raise InvalidQueryError(
                f"path is {file}, which is a folder; name a file in it"
            )
        with whole_file(file) as stream:
            np.savez(
                stream,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                data=np.asarray(self["data"]),
                voxels=voxels.astype(np.int32),
                affine=self["mask_img"].affine,
                roi_masks=_stacked(self["roi_masks"], bool, n_voxels),
                noise_ceilings=_stacked(self["noise_ceilings"], np.float32, n_voxels),
            )


class RoiMasks(dict):
    """ROI -> bool array, of the ROIs asked for; others are found by a method."""

    def __missing__(self, name: str) -> np.ndarray:
        raise KeyError(
            f"{name!r} is not among the ROIs asked for, {listed(list(self))}; "
            f"betas.roi_mask({name!r}) finds ROIs, categories and unions"
        )


def make_betas(
    data: Any,
    trials: pd.DataFrame,
    mask: np.ndarray,
    affine: np.ndarray,
    *,
    roi_masks: dict[str, np.ndarray],
    roi_files: dict[str, list[str]],
    roi_categories: dict[str, str],
    noise_ceilings: dict[str, np.ndarray],
    **provenance: Any,
) -> Betas:
    """Return the Bunch of `load_betas`, with what follows from trials and voxels.

    Parameters
    ----------
    data : array of shape (n_rows, n_voxels)
        The values.
    trials : pandas.DataFrame
        One row per row of ``data``; with ``n_averaged`` where rows are averages.
    mask : numpy.ndarray of bool
        The voxels that are the columns, on the grid.
    affine : numpy.ndarray of shape (4, 4)
        Of the grid.
    roi_masks, roi_files, roi_categories, noise_ceilings
        As of `Voxels`.
    **provenance
        ``query``, ``data_dir``, ``description`` and ``versions``.
    """
    # np.argwhere would look at each axis of the whole grid.
    axes = np.unravel_index(np.flatnonzero(mask), mask.shape)
    mask_img = nib.Nifti1Image(mask.astype(np.uint8), affine)
    mask_img.extra["subject"] = subject_of(trials)
    return Betas(
        data=data,
        trials=trials,
        mask_img=mask_img,
        coordinates=nib.affines.apply_affine(affine, np.column_stack(axes)),
        roi_masks=RoiMasks(roi_masks),
        roi_files=roi_files,
        roi_categories=roi_categories,
        noise_ceilings=noise_ceilings,
        groups={
            name: np.array(trials[name], dtype=object)
            for name in ("session", "label")
            if name in trials and trials[name].notna().all()
        },
        **provenance,
    )


def read_betas(path: str | os.PathLike) -> Betas:
    """Read betas that ``betas.save(path)`` wrote.

    Raises
    ------
    NotCachedError
        If there is no such file.
    CorruptImageError
        If it is damaged, or something else.
    InvalidQueryError
        If a later version of this package wrote it.
    """
    file = user_path(path, "path")
    try:
        # By a stream: numpy leaves the file open where it is no archive.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != _FORMAT:
                raise ValueError("it holds something else")
            if about["version"] <= _FORMAT_VERSION:
                mask = np.zeros(about["shape"], dtype=bool)
                mask[tuple(arrays["voxels"].T)] = True
                return make_betas(
                    arrays["data"],
                    _table_from_plain(about["trials"]),
                    mask,
                    arrays["affine"],
                    **{
                        key: dict(zip(about[key], arrays[key], strict=True))
                        for key in ("roi_masks", "noise_ceilings")
                    },
                    **{
                        key: about[key]
                        for key in ("roi_files", "roi_categories", *_PROVENANCE)
                    },
                )
    except FileNotFoundError as error:
        raise NotCachedError(
            f"There is no file {file} that the method save of betas could have written."
        ) from error
    except (*DAMAGED, IndexError) as error:
        # Where an altered archive names a place before its beginning, it is EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = str(error) or type(error).__name__
        raise CorruptImageError(
            f"{file} cannot be read ({reason}). It is damaged, or not what the method "
            "save of betas wrote; load and save the betas again."
        ) from error
    raise InvalidQueryError(
        f"{file} was written by a later version of laion_fmri_fetchers; update the "
        "package to read it."
    )


def _stacked(arrays: dict[str, np.ndarray], dtype: Any, n_voxels: int) -> np.ndarray:
    """Return arrays of a dict as the rows of one, also where there are none."""
    rows = [np.asarray(values, dtype) for values in arrays.values()]
    return np.array(rows, dtype).reshape(len(rows), n_voxels)


def _table_to_plain(table: pd.DataFrame) -> list[list[Any]]:
    """Return a table as JSON has it: columns with their types, nulls as None.

    The float of a JSON text is the same float when it is read, which those of
    ``DataFrame.to_json`` are not: it writes 15 digits.
    """
    if not table.columns.is_unique:
        raise InvalidQueryError(
            "betas.trials has two columns of one name, so it cannot be saved"
        )
    # An index that has a name becomes a column, in which trials are found as well.
    is_named = any(name is not None for name in table.index.names)
    table = table.reset_index(drop=not is_named)
    columns = []
    for name, column in table.items():
        values = column.astype(object).where(column.notna(), None).tolist()
        categories = None
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories = [column.cat.categories.tolist(), column.cat.ordered]
        plain = [name, str(column.dtype), values, categories]
        try:
            columns.append(json.loads(json.dumps(plain, default=_plain_value)))
        except TypeError as error:
            raise InvalidQueryError(
                f"betas.trials[{name!r}] cannot be saved: {error}. Remove the column, "
                "or make it one of numbers, texts or dates"
            ) from error
    return columns


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (dt.date, dt.timedelta)):
        return str(value)
    raise TypeError(f"it has a {type(value).__name__}")


def _table_from_plain(columns: list[list[Any]]) -> pd.DataFrame:
    table = {}
    for name, dtype, values, categories in columns:
        kind: Any = pd.CategoricalDtype(*categories) if categories else dtype
        table[name] = pd.Series(values, dtype=object).astype(kind)
    return pd.DataFrame(table)


def subject_of(trials: pd.DataFrame) -> str | None:
    """Return the subject of betas; None where their trials have none, or several."""
    names = list(trials["subject"].unique()) if "subject" in trials else []
    return names[0] if len(names) == 1 else None


def _without_nulls(column: pd.Series) -> np.ndarray:
    """Return a column as numpy has it: nullable integers with nulls become floats."""
    if column.dtype.kind in "iub" and not column.isna().any():
        return column.to_numpy(column.dtype.kind)
    if column.dtype.kind in "iub":
        return column.to_numpy(float, na_value=np.nan)
    return column.to_numpy()


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
