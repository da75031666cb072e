"""Writing at a position of a file that several threads share, and what it lies on."""

from __future__ import annotations

import os
import threading
from typing import Any

if hasattr(os, "pwrite"):
    read_at, _write_some = os.pread, os.pwrite
else:
    _seek_lock = threading.Lock()

    def read_at(descriptor: int, size: int, offset: int, /) -> bytes:
        """Read bytes at an offset."""
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)

    def _write_some(descriptor: int, chunk: Any, offset: int, /) -> int:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, chunk)


def write_at(descriptor: int, chunk: bytes | memoryview, offset: int) -> None:
    r"""Write all bytes of a chunk at an offset.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryFile() as file:
    ...     write_at(file.fileno(), b"betas", 3)
    ...     read_at(file.fileno(), 10, 0)
    b'\x00\x00\x00betas'
    """
    rest = memoryview(chunk)
    while rest:
        n_written = _write_some(descriptor, rest, offset)
        rest, offset = rest[n_written:], offset + n_written


def file_system(path: str | os.PathLike) -> str:
    """Return the kind of file system that a path is on, such as "ext4" or "nfs4".

    Returns
    -------
    str
        ``""`` where the operating system does not tell, as all but Linux.
    """
    try:
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for mount in mounts:
                place, _, kind = mount.partition(" - ")
                if place.split()[2] == number:
                    return kind.split()[0]
    except (OSError, AttributeError, IndexError):
        pass
    return ""
