"""Reading and writing at a position of a file that several threads share."""

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
