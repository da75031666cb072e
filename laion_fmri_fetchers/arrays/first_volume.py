"""The first volume of a beta image, from the first bytes of its file.

It proves which voxel each row of a model file is, see `model_proof`.
"""

from __future__ import annotations

import io
import math
import threading
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib

_HEADER = 352
_MARGIN = 1.04
"""The first bytes fetched, as a multiple of the mean size of a volume: volumes of a
session differ by some percent."""

_MORE = 0.25
"""Bytes fetched when these were too few, as a multiple of what was fetched."""

_LARGEST_VOLUME = 2**28

_DECODING = threading.BoundedSemaphore(2)
"""Volumes decoded at once: each takes 24 MB meanwhile, and 4 MB afterwards."""

_DAMAGED: tuple[Any, ...] = (
    isal_zlib.error,
    zlib.error,
    OSError,
    ValueError,
    nib.spatialimages.HeaderDataError,
)


class VolumeError(Exception):
    """A beta image whose first volume cannot be read, with the reason."""


class FirstVolume(NamedTuple):
    """The first volume of a 4-D image."""

    voxels: np.ndarray
    """Where it is not 0: positions in a flat volume, the last axis varying fastest;
    increasing."""
    values: np.ndarray
    """float32, of these voxels."""
    shape: tuple[int, int, int]
    n_volumes: int
    affine: np.ndarray

    def at(self, voxels: np.ndarray) -> np.ndarray:
        """Return the values of any voxels."""
        if voxels is self.voxels or not len(self.voxels):
            return self.values if len(self.voxels) else np.zeros(len(voxels), "f4")
        places = np.searchsorted(self.voxels, voxels)
        places = np.minimum(places, len(self.voxels) - 1)
        return np.where(self.voxels[places] == voxels, self.values[places], 0)

    def mask(self) -> np.ndarray:
        """Return the voxels that are not 0, as a flat mask."""
        mask = np.zeros(math.prod(self.shape), dtype=bool)
        mask[self.voxels] = True
        return mask


def read_first_volume(
    fetch: Callable[[int, int], bytes | bytearray],
    size: int,
    n_volumes: int,
    is_compressed: bool,
) -> FirstVolume:
    """Read the first volume of an image by ranges of its file.

    Parameters
    ----------
    fetch : callable
        Returns bytes ``start`` to ``stop`` of the file.
    size : int
        Bytes of the file.
    n_volumes : int
        Volumes that it should have, from which follow the bytes to begin with.
    is_compressed : bool
        Whether it is a ``.nii.gz``.

    Raises
    ------
    VolumeError
        If it is not a 4-D image of real numbers, or too short.
    """
    content = bytearray()
    wanted = int(size / max(n_volumes, 1) * _MARGIN) + 2**14
    while True:
        stop = min(size, wanted)
        content += fetch(len(content), stop)
        try:
            with _DECODING:
                return _read(content, is_compressed)
        except EOFError:
            if stop == size:
                raise VolumeError("it ends before its first volume does") from None
        wanted = stop + int(stop * _MORE) + 2**14


def _read(content: bytearray, is_compressed: bool) -> FirstVolume:
    """Read the volume; raise EOFError where the bytes are too few."""
    raw = io.BytesIO(content)
    stream = igzip.IGzipFile(fileobj=raw) if is_compressed else raw
    try:
        start = _take(stream, _HEADER)
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(start.tobytes()))
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        offset = int(header.get_data_offset())
        n_bytes = math.prod(shape[:3]) * dtype.itemsize
        if len(shape) != 4 or dtype.kind not in "iuf" or min(shape) < 1:
            raise VolumeError(f"it is {dtype} of shape {shape}")
        if n_bytes > _LARGEST_VOLUME or not _HEADER <= offset <= 2**20:
            raise VolumeError("its header is not that of betas")
        _take(stream, offset - _HEADER)
        values = _take(stream, n_bytes).view(dtype)
    except VolumeError:
        raise
    except EOFError:
        raise
    except _DAMAGED as error:
        raise VolumeError(f"it cannot be read ({error})") from None
    slope, inter = header.get_slope_inter()
    if slope not in (None, 1.0) or inter not in (None, 0.0):
        values = values * float(slope or 1.0) + float(inter or 0.0)
    values = values.astype(np.float32, copy=False).reshape(shape[:3], order="F")
    values = values.ravel()
    voxels = np.flatnonzero(values)
    return FirstVolume(
        voxels,
        values[voxels],
        tuple(shape[:3]),
        int(shape[3]),
        header.get_best_affine(),
    )


def _take(stream: io.BufferedIOBase | igzip.IGzipFile, n_bytes: int) -> np.ndarray:
    """Read bytes of a stream that may end in the middle."""
    content, n_read = np.empty(n_bytes, np.uint8), 0
    while n_read < n_bytes:
        piece = stream.read(min(n_bytes - n_read, 2**20))
        if not piece:
            raise EOFError
        content[n_read : n_read + len(piece)] = np.frombuffer(piece, np.uint8)
        n_read += len(piece)
    return content
