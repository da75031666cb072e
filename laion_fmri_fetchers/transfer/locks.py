"""Locks of files that are being fetched; they only save double work.

A lock file lies beside the unfinished files. Where locks do not work, as on some
network file systems, what is returned locks nothing, and two processes fetch a file.
"""

from __future__ import annotations

import contextlib
import os

from filelock import FileLock, Timeout


def try_lock(folder: str, name: str) -> FileLock | None:
    """Take a lock, or return None: another holds it.

    Where locks do not work, what is returned locks nothing.
    """
    lock = FileLock(os.path.join(folder, f"{name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError):
        pass
    return lock


def unlock(lock: FileLock) -> None:
    """Release a lock, and remove its file before another can wait for it."""
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.release()


def signs_of_life(folder: str, file_stem: str) -> object:
    """Return what changes while another process fetches a file.

    Lock files do not count: some versions of filelock change them by mere trying.
    """
    try:
        return {
            (entry.name, entry.stat().st_mtime_ns)
            for entry in os.scandir(folder)
            if entry.name.startswith(file_stem) and not entry.name.endswith(".lock")
        }
    except OSError:
        return None
