"""The HDF5 file of a GLMsingle model, in every form it may have.

Which of the forms the published files have is not documented. GLMsingle 1.2 writes
each array as it is, contiguous and uncompressed, so that is what `model_file` writes
unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .formats import hdf5_bytes

_LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "gzip": {"chunks": True, "compression": "gzip"},
}


def model_file(
    betas: np.ndarray,
    mask: np.ndarray,
    maps: Mapping[str, np.ndarray] | None = None,
    *,
    shape: str = "2d",
    layout: str = "contiguous",
    dtype: str = "float32",
    order: str = "C",
    rows: str = "mask",
) -> bytes:
    """Return a ``…_desc-GLMsingle_model.h5``.

    Parameters
    ----------
    betas : array of shape (X, Y, Z, n_trials)
        The data of the session's beta image.
    mask : bool array of shape (X, Y, Z)
        The voxels that the model has.
    maps : dict of str to array of shape (X, Y, Z), optional
        Per-voxel results by name, such as ``R2``; each keeps its dtype.
    shape : {"2d", "glmsingle", "volume"}, default="2d"
        Shape of ``betasmd``: (n_voxels, n_trials), (n_voxels, 1, 1, n_trials) or
        (X, Y, Z, n_trials), where voxels outside the mask are NaN. Per-voxel results
        have it without the trials.
    layout : {"contiguous", "chunked", "gzip"}, default="contiguous"
        How arrays lie in the file.
    dtype : {"float32", "float64"}, default="float32"
        Of ``betasmd``.
    order : {"C", "F"}, default="C"
        Order of the voxels: of ``betas[mask]``, or with the first axis fastest.
    rows : {"mask", "shuffled"}, default="mask"
        Whether rows follow that order, or none that could be found out.

    Returns
    -------
    bytes
        The file.

    Raises
    ------
    ValueError
        When an option is none of those above, when a volume shall have an order of
        rows, or when the shapes of betas, mask and maps differ.

    Examples
    --------
    >>> import h5py, io
    >>> betas = np.arange(24, dtype="f4").reshape(2, 2, 2, 3)
    >>> data = model_file(betas, betas[..., 0] > 0, {"R2": betas[..., 1]})
    >>> with h5py.File(io.BytesIO(data)) as file:
    ...     file["betasmd"].shape, file["betasmd"].chunks, file["R2"].shape
    ((7, 3), None, (7,))
    """
    for name, value, choices in (
        ("shape", shape, ("2d", "glmsingle", "volume")),
        ("layout", layout, tuple(_LAYOUTS)),
        ("dtype", dtype, ("float32", "float64")),
        ("order", order, ("C", "F")),
        ("rows", rows, ("mask", "shuffled")),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is not one of {choices}.")
    if shape == "volume" and (order, rows) != ("C", "mask"):
        raise ValueError("A volume has no rows: order and rows cannot be chosen.")

    indices = np.argwhere(mask) if order == "C" else np.argwhere(mask.T)[:, ::-1]
    if rows == "shuffled":
        indices = np.random.default_rng(0).permutation(indices)
    voxels = tuple(indices.T)
    arrays = {"betasmd": betas.astype(dtype, copy=False), **(maps or {})}
    for name, array in arrays.items():
        if array.shape[:3] != mask.shape:
            raise ValueError(f"{name} is {array.shape}, but the mask {mask.shape}.")
        values = array[voxels]
        if shape == "2d":
            arrays[name] = values
        elif shape == "glmsingle":
            arrays[name] = values.reshape(len(values), 1, 1, *values.shape[1:])
        else:
            outside = np.nan if array.dtype.kind == "f" else 0
            arrays[name] = np.where(
                mask.reshape(mask.shape + (1,) * (array.ndim - 3)), array, outside
            ).astype(array.dtype)
    return hdf5_bytes(arrays, **_LAYOUTS[layout])
