"""HDF5 files on disk, opened; and their values of variable length, which must end.

HDF5 keeps such values in collections (*global heaps*): one behind the other, each
behind a header of its number and size. To read one, the library steps from header to
header up to the end of the collection. Where a hole of zeros is in the place of a
header, as an interrupted copy leaves it, a step has no length, and it never arrives;
nothing can interrupt it, since it holds the lock of the interpreter meanwhile. So the
same steps are taken here first, which costs a few short reads per picture.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from laion_fmri_fetchers.cache.files import unreadable
from laion_fmri_fetchers.exceptions import CorruptImageError, LaionFmriError

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])
"""What a dataset holds in the place of each value."""

_COLLECTION = struct.Struct("<4sB3xQ")
"""Signature, version, and size in bytes with this header."""

_VALUE = struct.Struct("<HHxxxxQ")
"""Number (0: free space), count of references, size without this header."""


@contextlib.contextmanager
def open_hdf5(file: str, kind: str, stream: BinaryIO | None = None) -> Iterator[Any]:
    """Open an HDF5 file to be read, by its name or by a stream of it.

    Not with HDF5's own locks: file systems without locks refuse them, as does a program
    that has the file open.

    Raises
    ------
    CorruptImageError
        If it is damaged, or found to be so within the block.
    DataDirectoryError
        If this user may not read it.
    OSError
        If the machine fails to read it, or another program is writing to it.
    """
    import h5py

    try:
        try:
            content = h5py.File(stream or file, "r", locking=False)
        except OSError as error:
            # The user has it open, with locks; within a process, all must be alike.
            if "locking flag" not in str(error):
                raise
            content = h5py.File(file, "r")
        with content:
            yield content
    except LaionFmriError:
        raise
    except PermissionError as error:
        raise unreadable(file) from error
    except (OSError, KeyError, ValueError, IndexError) as error:
        is_damage = not getattr(error, "errno", None)
        if not is_damage or "open for write" in str(error):
            raise
        raise CorruptImageError(
            f"The {kind} {file} cannot be read ({error}). Fetch it again with "
            "mode='overwrite'."
        ) from error


def check_values(
    dataset: Any, start: int, stop: int, descriptor: int | None = None
) -> None:
    """Raise unless reading values of a dataset ends.

    Parameters
    ----------
    dataset : h5py.Dataset
        One-dimensional. Where its values do not have variable length, or it is
        compressed, nothing is checked.
    start, stop : int
        Which values are to be read.
    descriptor : int, optional
        Of a file that h5py reads by a stream of Python.

    Raises
    ------
    ValueError
        If a collection that holds one of them has a hole.
    """
    file = dataset.file
    if descriptor is None and file.driver == "sec2":
        descriptor = file.id.get_vfd_handle()
    if descriptor is None or file.userblock_size or not hasattr(os, "pread"):
        return
    addresses: set[int] = set()
    for at, n_values in _stretches(dataset, start, stop):
        data = os.pread(descriptor, n_values * _REFERENCE.itemsize, at)
        whole = len(data) // _REFERENCE.itemsize * _REFERENCE.itemsize
        references = np.frombuffer(data[:whole], _REFERENCE)
        addresses.update(references["address"][references["length"] > 0].tolist())
    for address in addresses:
        _check_collection(descriptor, address)


def _stretches(dataset: Any, start: int, stop: int) -> list[tuple[int, int]]:
    """Return where in the file references lie: offset in bytes, and how many."""
    size = _REFERENCE.itemsize
    if not dataset.dtype.hasobject or dataset.id.get_create_plist().get_nfilters():
        return []
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        has_references = dataset.id.get_storage_size() == len(dataset) * size
        if offset is None or not has_references:
            return []
        return [(offset + start * size, stop - start)]
    (step,) = dataset.chunks
    stretches = []
    for first in range(start // step * step, stop, step):
        chunk = dataset.id.get_chunk_info_by_coord((first,))
        begin, end = max(start, first), min(stop, first + step)
        if chunk.byte_offset is not None and chunk.size == step * size:
            stretches.append((chunk.byte_offset + (begin - first) * size, end - begin))
    return stretches


def _check_collection(descriptor: int, address: int) -> None:
    """Step through a collection as HDF5 does; raise where a step has no length."""
    signature, version, size = _unpacked(_COLLECTION, descriptor, address)
    if signature != b"GCOL" or version != 1:
        raise ValueError(f"there is no collection of values at byte {address}")
    at, end = address + _COLLECTION.size, address + size
    while at + _VALUE.size <= end:
        number, _, length = _unpacked(_VALUE, descriptor, at)
        step = _VALUE.size + -(-length // 8) * 8 if number else length
        if step < _VALUE.size:
            raise ValueError(f"its values have a hole at byte {at}")
        at += step


def _unpacked(form: struct.Struct, descriptor: int, at: int) -> tuple:
    data = os.pread(descriptor, form.size, at)
    if len(data) < form.size:
        raise ValueError("the file ends early")
    return form.unpack(data)
