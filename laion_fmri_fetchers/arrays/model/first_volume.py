"""The first volume of a beta image, from the first bytes of its file.

It proves which voxel each row of a model file is, see `proof`.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib

from laion_fmri_fetchers.messages import readable_size

_MARGIN = 1.04
"""The first bytes fetched, as a multiple of the mean size of a volume: volumes of a
session differ by some percent."""

_MORE = 0.25
"""Bytes fetched when these were too few, as a multiple of what was fetched."""

_MOST = 8
"""Bytes fetched at most, as a multiple of those fetched first."""

_LARGEST_VOLUME = 2**28

_PIECE = 2**20
"""Bytes of a volume decoded at once: it is never in memory as a whole."""

_DAMAGED: tuple[Any, ...] = (
    isal_zlib.error,
    zlib.error,
    OSError,
    ValueError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
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

    def at(self, voxels: np.ndarray) -> np.ndarray:
        """Return the values of any voxels."""
        if np.array_equal(voxels, self.voxels):
            return self.values
        if not len(self.voxels):
            return np.zeros(len(voxels), np.float32)
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
    cores: Executor,
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
    cores : concurrent.futures.Executor
        Decodes it.

    Raises
    ------
    VolumeError
        If it is not a 4-D image of real numbers, or too short.
    """
    content = bytearray()
    wanted = int(size / max(n_volumes, 1) * _MARGIN) + 2**14
    most = min(size, _MOST * wanted)
    while True:
        stop = min(most, wanted)
        content += fetch(len(content), stop)
        try:
            return cores.submit(_read, content, is_compressed).result()
        except EOFError:
            if stop == size:
                raise VolumeError("it ends before its first volume does") from None
            if stop == most:
                raise VolumeError(
                    f"its first {readable_size(most)} lack its first volume"
                ) from None
        wanted = stop + int(stop * _MORE) + 2**14


def _read(content: bytearray, is_compressed: bool) -> FirstVolume:
    """Read the volume; raise EOFError where the bytes are too few."""
    raw = io.BytesIO(content)
    stream = igzip.IGzipFile(fileobj=raw) if is_compressed else raw
    try:
        # Not by `from_fileobj`, which reads extensions too: they may be cut off here.
        start = _take(stream, nib.Nifti1Header.sizeof_hdr)
        longer = nib.Nifti2Header.sizeof_hdr
        if nib.Nifti2Header.may_contain_header(start.ljust(longer)):
            start += _take(stream, longer - len(start))
        kind = nib.Nifti1Header if len(start) < longer else nib.Nifti2Header
        header = kind(start)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        offset = int(header.get_data_offset())
        n_bytes = math.prod(shape[:3]) * dtype.itemsize
        if len(shape) != 4 or dtype.kind not in "iuf" or min(shape) < 1:
            raise VolumeError(f"it is {dtype} of shape {shape}")
        if n_bytes > _LARGEST_VOLUME or not len(start) < offset:
            raise VolumeError("its header is not that of betas")
        _take(stream, offset - len(start))
        places, values = _values_of(stream, n_bytes, dtype, header)
    except (VolumeError, EOFError):
        raise
    except _DAMAGED as error:
        raise VolumeError(f"it cannot be read ({error})") from None
    axes = np.unravel_index(places, shape[:3], order="F")
    # By the first axis, then the second; they are in order of the third already.
    order = np.lexsort((axes[1].astype(np.uint16), axes[0].astype(np.uint16)))
    voxels = np.ravel_multi_index(axes, shape[:3])[order]
    return FirstVolume(voxels, values[order], tuple(shape[:3]), int(shape[3]))


def _values_of(
    stream: io.BufferedIOBase | igzip.IGzipFile,
    n_bytes: int,
    dtype: np.dtype,
    header: nib.Nifti1Header,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a volume that are not 0, and their places in the file."""
    slope, inter = header.get_slope_inter()
    places, values = [], []
    for start in range(0, n_bytes, _PIECE):
        piece = np.frombuffer(_take(stream, min(_PIECE, n_bytes - start)), dtype)
        if slope not in (None, 1.0) or inter not in (None, 0.0):
            piece = piece.astype(float) * (slope or 1.0) + (inter or 0.0)
        is_set = np.flatnonzero(piece)
        places.append(is_set + start // dtype.itemsize)
        values.append(piece[is_set].astype(np.float32))
    return np.concatenate(places), np.concatenate(values)


def _take(stream: io.BufferedIOBase | igzip.IGzipFile, n_bytes: int) -> bytes:
    """Read bytes of a stream that may end in the middle."""
    pieces = []
    while n_bytes:
        piece = stream.read(min(n_bytes, _PIECE))
        if not piece:
            raise EOFError
        pieces.append(piece)
        n_bytes -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
