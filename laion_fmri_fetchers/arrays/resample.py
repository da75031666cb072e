"""Images resampled to a coarser or finer grid, in a folder of their own.

A resampled file lies below ``derivatives/laion-fmri-fetchers/`` under the original's
path and name, with a ``res-`` entity such as ``res-2pt5`` for 2.5 mm. Its header notes
how and from which version of the original it was made, so that it can be used again;
the ``.json`` beside it names the original, as BIDS derivatives do::

    resample_file ─┬─ find_resampled: is a resampled image of this version on disk?
                   └─ _resample ─┬─ volumes.iter_volumes
                                 ├─ _resampled, volume by volume
                                 └─ volumes.write_volumes
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import nibabel as nib
import numpy as np

from laion_fmri_fetchers import __version__
from laion_fmri_fetchers.cache.derived import description_of, method, origin
from laion_fmri_fetchers.cache.files import local_path, write_atomically
from laion_fmri_fetchers.layout.grids import interpolation_for
from laion_fmri_fetchers.layout.trees import MADE_HERE
from laion_fmri_fetchers.volumes import (
    Header,
    iter_volumes,
    read_header,
    scaled,
    write_volumes,
)


def find_resampled(
    file: str, target: str, resolution: float, interpolation: str = "continuous"
) -> bool:
    """Return whether a resampled image is on disk and still fits its original.

    Parameters
    ----------
    file : str
        Path of the original, which need not exist any more.
    target : str
        Path of the resampled image.
    resolution : float
        Voxel size, in mm.
    interpolation : {"continuous", "linear", "nearest"}, default="continuous"
        The interpolation that it must have been made with.

    Returns
    -------
    bool
        False also for an image made in another way, or of another version of the
        original.
    """
    description = description_of(target)
    if not description.startswith(method(resolution, interpolation)):
        return False
    return not os.path.isfile(file) or description.endswith(origin(file))


def resample_file(
    file: str,
    target: str,
    resolution: float,
    interpolation: str = "continuous",
    *,
    source: str = "",
    overwrite: bool = False,
    n_jobs: int | None = None,
) -> None:
    """Resample an image to an isotropic grid.

    One volume after the other is read, resampled by
    :func:`nilearn.image.resample_img` and written.

    Parameters
    ----------
    file : str
        A 3-D or 4-D ``.nii.gz`` or ``.nii`` file.
    target : str
        Where to write; its folder is made.
    resolution : float
        Voxel size of the grid, in mm. Its axes are those of the space, and it is the
        same for all images on one grid.
    interpolation : {"continuous", "linear", "nearest"}, default="continuous"
        Splines of order 3, 1 or 0.
    source : str, default=""
        The original's ``id``, to note in the ``.json`` beside the image.
    overwrite : bool, default=False
        Resample again even where `find_resampled` finds the image.
    n_jobs : int, optional
        Volumes resampled at once, through joblib.

    Raises
    ------
    InvalidQueryError
        If the resolution or interpolation is not valid.
    FileNotFoundError
        If neither the original nor the resampled image exists.
    CorruptImageError
        If the original cannot be read.
    DiskSpaceError, DataDirectoryError
        If the disk is full, or the folder cannot be written.

    Examples
    --------
    >>> import tempfile, nibabel as nib, numpy as np
    >>> folder = tempfile.mkdtemp()
    >>> file, target = folder + "/image.nii.gz", folder + "/res-2.nii.gz"
    >>> values = np.arange(1458, dtype="float32").reshape(9, 9, 9, 2)
    >>> nib.save(nib.Nifti1Image(values, np.eye(4)), file)
    >>> resample_file(file, target, 2)
    >>> nib.load(target).shape
    (5, 5, 5, 2)
    """
    interpolation_for({"suffix": None}, interpolation)
    is_made = find_resampled(file, target, resolution, interpolation)
    if overwrite or not is_made:
        _resample(file, target, float(resolution), interpolation, n_jobs)
    elif os.path.exists(_sidecar(target)):
        return
    sidecar = {
        "Description": f"Resampled to {resolution:g} mm, {interpolation}",
        "Resolution": f"{resolution:g} mm isotropic",
        "Sources": [f"bids::{source}"],
    }
    # Behind the image: where the disk fills, no sidecar of an image is left without it.
    write_atomically(_sidecar(target), json.dumps(sidecar, indent=2).encode())


def _sidecar(target: str) -> Path:
    folder, name = os.path.split(target)
    return Path(folder, f"{name.partition('.')[0]}.json")


def describe_folder(data_dir: str) -> None:
    """Write the ``dataset_description.json`` that BIDS requires of derivatives."""
    file = Path(local_path(data_dir, f"{MADE_HERE}dataset_description.json"))
    if os.path.exists(file):
        return
    description = {
        "Name": "LAION-fMRI, resampled",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "laion_fmri_fetchers", "Version": __version__}],
    }
    write_atomically(file, (json.dumps(description, indent=2) + "\n").encode())


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
        description = method(resolution, interpolation) + origin(file)
        header["descrip"] = description.encode("latin-1")
        write_volumes(target, (np.asanyarray(im.dataobj) for im in images), header)
    # It stands for the original where that is removed, so it has its date.
    with contextlib.suppress(OSError):  # some mounts keep no times
        date = os.stat(file)
        os.utime(target, ns=(date.st_atime_ns, date.st_mtime_ns))


def _images(source: Header, dtype: Any) -> Iterator[nib.Nifti1Image]:
    for volume in iter_volumes(source):
        yield _image(source, volume, dtype)


def _image(source: Header, volume: np.ndarray, dtype: Any) -> nib.Nifti1Image:
    """Return a volume as a 3-D image."""
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
