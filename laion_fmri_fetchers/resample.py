"""Images on a coarser or finer grid, beside the originals.

A resampled file carries the original's name with a ``res-`` entity, ``res-2pt5`` for
2.5 mm, and says in its header what it was made from, so that it can be used again.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import joblib
import nibabel as nib
import numpy as np

from .exceptions import CorruptImageError, InvalidQueryError
from .volumes import Header, iter_volumes, read_header, scaled, write_volumes

INTERPOLATIONS = ("continuous", "linear", "nearest")

_OWN_GRIDS = (None, "1pt8")


def resolution_label(resolution: float) -> str:
    """Return a resolution as file names have it.

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
        If it is no positive number, or reads as the dataset's own ``res-1pt8``.

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
    if label in _OWN_GRIDS:
        raise InvalidQueryError(
            f"resolution is {resolution!r}, but res-{label} is the name of the "
            "functional grid itself (1.778 mm); leave resolution out for it"
        )
    return label


def resampled_path(path: str, resolution: float) -> str:
    """Return where the resampled image of a file is, or of an id.

    Parameters
    ----------
    path : str
        Path of the original, or its ``id``.
    resolution : float
        Voxel size, in mm.

    Returns
    -------
    str
        A path in the same folder.

    Examples
    --------
    >>> resampled_path("rois/sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz", 3)
    'rois/sub-01_space-T1w_res-3_label-FFA1_mask.nii.gz'
    >>> resampled_path("sub-01_ses-01_space-T1w_stat-effect_statmap.nii.gz", 2.5)
    'sub-01_ses-01_space-T1w_res-2pt5_stat-effect_statmap.nii.gz'
    """
    folder, name = os.path.split(path)
    name = re.sub(r"_res-[^_.]+", "", name)
    space = re.search(r"_space-[^_.]+", name)
    at = space.end() if space else name.rfind("_")
    name = f"{name[:at]}_res-{resolution_label(resolution)}{name[at:]}"
    return os.path.join(folder, name)


def is_resampled(record: dict[str, Any]) -> bool:
    """Tell by a record whether a file was made here, and is not of the dataset.

    Examples
    --------
    >>> is_resampled({"res": "3"}), is_resampled({"res": "1pt8"})
    (True, False)
    """
    return record["res"] not in _OWN_GRIDS


def can_be_resampled(record: dict[str, Any]) -> bool:
    """Tell by a record whether a file is a volume image."""
    is_image = record["extension"] in ("nii", "nii.gz")
    return is_image and record["image_type"] != "freesurfer"


def interpolation_for(record: dict[str, Any], interpolation: str) -> str:
    """Return how to resample a file: labels and masks by the nearest voxel.

    Parameters
    ----------
    record : dict
        Record of the original.
    interpolation : {"continuous", "linear", "nearest"}
        For all else.

    Returns
    -------
    str

    Raises
    ------
    InvalidQueryError
        If the interpolation is another.

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


def find_resampled(
    file: str | os.PathLike, resolution: float, interpolation: str = "continuous"
) -> str | None:
    """Return the resampled image of a file where there is one that holds.

    Parameters
    ----------
    file : str or path
        The original; it need not exist anymore.
    resolution : float
        Voxel size, in mm.
    interpolation : {"continuous", "linear", "nearest"}, default="continuous"
        How it must have been made.

    Returns
    -------
    str or None
        Its path. None where there is none, or one made otherwise, or of an original of
        another size in bytes.
    """
    file = os.fspath(file)
    target = resampled_path(file, resolution)
    try:
        found = read_header(target).nifti["descrip"].item().decode("latin-1")
    except (FileNotFoundError, CorruptImageError):
        return None
    made_as_asked = found.startswith(_how(resolution, interpolation))
    of_this_one = not os.path.exists(file) or found.endswith(_origin(file))
    return target if made_as_asked and of_this_one else None


def _how(resolution: float, interpolation: str) -> str:
    return f"resampled: {resolution:g} mm, {interpolation}, "


def _origin(file: str) -> str:
    return f"from {os.path.getsize(file)} bytes"


def resample_file(
    file: str | os.PathLike,
    resolution: float,
    interpolation: str = "continuous",
    *,
    overwrite: bool = False,
    keep_original: bool = True,
    n_jobs: int | None = None,
) -> str:
    """Resample an image to an isotropic grid, and write it beside the original.

    It is read, resampled by :func:`nilearn.image.resample_img` and written a volume at
    a time.

    Parameters
    ----------
    file : str or path
        A 3-D or 4-D ``.nii.gz`` or ``.nii`` file.
    resolution : float
        Voxel size of the grid, in mm. Its axes are those of the space, and it is the
        same for all images on one grid.
    interpolation : {"continuous", "linear", "nearest"}, default="continuous"
        Splines of order 3, 1 or 0.
    overwrite : bool, default=False
        Resample again where `find_resampled` finds a file.
    keep_original : bool, default=True
        False: delete the original when the resampled file is whole.
    n_jobs : int, optional
        Volumes resampled at once, through joblib.

    Returns
    -------
    str
        Path of the resampled file.

    Raises
    ------
    InvalidQueryError
        If the resolution or interpolation is not valid.
    FileNotFoundError
        If neither the original nor a resampled file exists.
    CorruptImageError
        If the original cannot be read.

    Examples
    --------
    >>> import tempfile, nibabel as nib, numpy as np
    >>> file = tempfile.mkdtemp() + "/sub-01_space-T1w_statmap.nii.gz"
    >>> values = np.arange(1458, dtype="float32").reshape(9, 9, 9, 2)
    >>> nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    >>> resampled = resample_file(file, 2)
    >>> resampled.rpartition("/")[2], nib.load(resampled).shape
    ('sub-01_space-T1w_res-2_statmap.nii.gz', (5, 5, 5, 2))
    """
    file = os.fspath(file)
    interpolation_for({"suffix": None}, interpolation)
    target = None if overwrite else find_resampled(file, resolution, interpolation)
    if target is None:
        target = resampled_path(file, resolution)
        _resample(file, target, float(resolution), interpolation, n_jobs)
    if not keep_original:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
    return target


def _resample(
    file: str, target: str, resolution: float, interpolation: str, n_jobs: int | None
) -> None:
    source = read_header(file)
    is_scaled = (source.slope, source.inter) != (1, 0)
    keeps_type = interpolation == "nearest" and not is_scaled
    dtype = None if keeps_type else "float32"
    (volume,) = iter_volumes(source, [0])
    isotropic = np.diag([resolution] * 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NaNs or infinite", RuntimeWarning)
        first = _resampled(_image(source, volume, dtype), interpolation, isotropic)
        images = joblib.Parallel(
            n_jobs=n_jobs,
            prefer="threads",
            return_as="generator",
            pre_dispatch="n_jobs",
        )(
            joblib.delayed(_resampled)(image, interpolation, first.affine, first.shape)
            for image in _images(source, dtype)
        )
        header = source.nifti.copy()
        header.set_data_shape((*first.shape, *header.get_data_shape()[3:]))
        header.set_data_dtype(first.get_data_dtype())
        header.set_zooms((*[resolution] * 3, *source.nifti.get_zooms()[3:]))
        header.set_qform(first.affine, int(source.nifti["qform_code"]) or 1)
        header.set_sform(first.affine, int(source.nifti["sform_code"]) or 1)
        description = _how(resolution, interpolation) + _origin(file)
        header["descrip"] = description.encode("latin-1")
        write_volumes(target, (np.asanyarray(im.dataobj) for im in images), header)


def _images(source: Header, dtype: Any) -> Iterator[nib.Nifti1Image]:
    for volume in iter_volumes(source):
        yield _image(source, volume, dtype)


def _image(source: Header, volume: np.ndarray, dtype: Any) -> nib.Nifti1Image:
    """Return a volume as an image of its own."""
    values = scaled(source, volume, dtype).reshape(source.shape, order="F").copy("F")
    return nib.Nifti1Image(values, source.affine, dtype=values.dtype)


def _resampled(
    image: nib.Nifti1Image,
    interpolation: str,
    affine: np.ndarray,
    shape: tuple[int, int, int] | None = None,
) -> nib.Nifti1Image:
    from nilearn.image import resample_img

    return resample_img(
        image, affine, shape, interpolation, copy_header=True, force_resample=True
    )
