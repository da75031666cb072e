"""Locks that save double work, and nothing else.

Where locks do not work, as on some network file systems, what is returned locks
nothing: two processes then do the same work, and write the same bytes.
"""

from __future__ import annotations

import contextlib
import os

from filelock import FileLock, Timeout


def try_lock(folder: str, name: str) -> FileLock | None:
    """Take the lock ``{name}.lock`` of a folder; None if another process holds it."""
    lock = FileLock(os.path.join(folder, f"{name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError):
        pass
    return lock


def unlock(lock: FileLock) -> None:
    """Release a lock; its file goes first, so that nobody waits for it by then."""
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.release()
