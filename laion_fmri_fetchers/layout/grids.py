"""Names of images on other grids than the dataset's own."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from laion_fmri_fetchers.exceptions import InvalidQueryError

from .keys import Record, is_nifti
from .trees import DERIVATIVES, FUNCTIONAL_GRID, MADE_HERE

INTERPOLATIONS = ("continuous", "linear", "nearest")


def resolution_label(resolution: float) -> str:
    """Return a resolution as it is written in file names.

    Parameters
    ----------
    resolution : float
        Voxel size, in mm.

    Returns
    -------
    str
        The value of the ``res-`` entity.

    Raises
    ------
    InvalidQueryError
        If it is not a positive number, or reads as ``res-1pt8``.

    Examples
    --------
    >>> resolution_label(3), resolution_label(2.5)
    ('3', '2pt5')
    """
    is_number = isinstance(resolution, (int, float, np.number))
    if isinstance(resolution, bool) or not is_number or not 0 < resolution < math.inf:
        raise InvalidQueryError(
            f"resolution is {resolution!r}; it must be a voxel size in mm, such as 3"
        )
    label = f"{resolution:g}".replace(".", "pt").replace("-", "m")
    if label == FUNCTIONAL_GRID:
        raise InvalidQueryError(
            f"resolution is {resolution!r}, but res-{label} is the name of the "
            "functional grid itself (1.778 mm); leave resolution out for it"
        )
    return label


def resampled_path(path: str, resolution: float) -> str:
    """Return the path, below the data directory, of an original's resampled image.

    Parameters
    ----------
    path : str
        The original's ``id``.
    resolution : float
        Voxel size, in mm.

    Returns
    -------
    str
        A relative path.

    Examples
    --------
    >>> mask = "derivatives/rois/sub-01/sub-01_space-T1w_res-1pt8_label-MT_mask.nii.gz"
    >>> resampled_path(mask, 3).removeprefix("derivatives/laion-fmri-fetchers/")
    'rois/sub-01/sub-01_space-T1w_res-3_label-MT_mask.nii.gz'
    """
    folder, _, name = path.removeprefix(DERIVATIVES).rpartition("/")
    name = re.sub(r"_res-[^_.]+", "", name)
    space = re.search(r"_space-[^_.]+", name)
    end = space.end() if space else name.rfind("_")
    name = f"{name[:end]}_res-{resolution_label(resolution)}{name[end:]}"
    return f"{MADE_HERE}{folder}/{name}"


def is_resampled(record: Record) -> bool:
    """Return whether a record is of an image on another grid, made from its ``id``."""
    path = record.get("relative_path")
    return path is not None and path != record["id"]


def can_be_resampled(record: Record) -> bool:
    """Return whether a file is an image that can be resampled."""
    return is_nifti(record) and record["image_type"] != "freesurfer"


def interpolation_for(record: dict[str, Any], interpolation: str) -> str:
    """Return the interpolation of a file: for labels and masks, the nearest voxel.

    Parameters
    ----------
    record : dict
        Record of the original.
    interpolation : {"continuous", "linear", "nearest"}
        For all other files.

    Returns
    -------
    str

    Raises
    ------
    InvalidQueryError
        If the interpolation is not one of these.

    Examples
    --------
    >>> interpolation_for({"suffix": "mask"}, "linear")
    'nearest'
    """
    if interpolation not in INTERPOLATIONS:
        raise InvalidQueryError(
            f"interpolation is {interpolation!r}; it must be one of "
            f"{', '.join(map(repr, INTERPOLATIONS))}"
        )
    return "nearest" if record["suffix"] in ("mask", "dseg") else interpolation
