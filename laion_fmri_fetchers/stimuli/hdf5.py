"""HDF5 files, opened for reading, and checked where HDF5 itself would not return.

Values of variable length, as encoded images are, lie in collections (*global heaps*):
one behind the other, each behind a header with its number and size. HDF5 steps from
header to header. A header of zeros, as an interrupted copy leaves it, is a step of no
length, so that it steps for ever, holding Python's global lock: not even Ctrl-C ends
it. (Seen with HDF5 1.14 and 2.0.)
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from laion_fmri_fetchers.cache.files import unreadable
from laion_fmri_fetchers.exceptions import CorruptImageError, LaionFmriError

# What a dataset holds in place of each value.
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])
# Signature, version, and size in bytes with this header.
_COLLECTION = struct.Struct("<4sB3xQ")
# Number (0: free space), count of references, size without this header.
_VALUE = struct.Struct("<HHxxxxQ")


@contextlib.contextmanager
def open_hdf5(file: str, kind: str) -> Iterator[Any]:
    """Open an HDF5 file for reading.

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
            # File systems without locks refuse HDF5's, and so does a program that has
            # the file open.
            content = h5py.File(file, "r", locking=False)
        except OSError as error:
            # This process has it open with locks, and HDF5 wants all alike.
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
        # What fails on a sound file has a number; HDF5's own errors have none.
        if getattr(error, "errno", None) or "open for write" in str(error):
            raise
        raise CorruptImageError(
            f"The {kind} {file} cannot be read ({error}). Fetch it again with "
            "mode='overwrite'."
        ) from error


def check_values(dataset: Any, start: int, stop: int) -> None:
    """Raise a ValueError unless reading values of a one-dimensional dataset ends.

    Only values of variable length are checked, and where the file's layout is plain.
    """
    file, size = dataset.file, _REFERENCE.itemsize
    if (
        not dataset.dtype.hasobject
        or dataset.id.get_create_plist().get_nfilters()
        or file.id.get_create_plist().get_sizes() != (8, 8)
        or file.userblock_size
        or file.driver != "sec2"
        or not hasattr(os, "pread")
    ):
        return
    if dataset.chunks:
        (step,) = dataset.chunks
        firsts = range(start // step * step, stop, step)
        offsets = [dataset.id.get_chunk_info_by_coord((i,)).byte_offset for i in firsts]
    else:
        step, firsts = len(dataset), range(1)
        offsets = [dataset.id.get_offset()]
    descriptor = file.id.get_vfd_handle()
    addresses: set[int] = set()
    for first, offset in zip(firsts, offsets, strict=True):
        if offset is None:  # nothing was written there
            continue
        begin, end = max(start, first), min(stop, first + step)
        data = os.pread(
            descriptor, (end - begin) * size, offset + (begin - first) * size
        )
        references = np.frombuffer(data[: len(data) // size * size], _REFERENCE)
        addresses.update(references["address"][references["length"] > 0].tolist())
    for address in addresses:
        _check_collection(descriptor, address)


def _check_collection(descriptor: int, address: int) -> None:
    """Step through a collection as HDF5 does; raise where a step has no length."""

    def unpack(form: struct.Struct, at: int) -> tuple[Any, ...]:
        data = os.pread(descriptor, form.size, at)
        if len(data) < form.size:
            raise ValueError("the file ends early")
        return form.unpack(data)

    signature, version, size = unpack(_COLLECTION, address)
    if signature != b"GCOL" or version != 1:
        raise ValueError(f"there is no collection of values at byte {address}")
    at, end = address + _COLLECTION.size, address + size
    while at + _VALUE.size <= end:
        number, _, length = unpack(_VALUE, at)
        step = _VALUE.size + -(-length // 8) * 8 if number else length
        if step < _VALUE.size:
            raise ValueError(f"its values have a hole at byte {at}")
        at += step
