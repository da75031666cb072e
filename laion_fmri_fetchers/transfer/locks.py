"""Locks of files that are being fetched; they only save double work.

A lock file lies beside the unfinished files. Where locks do not work, as on some
network file systems, what is returned locks nothing, and two processes fetch a file.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time

from filelock import FileLock, Timeout

from . import policy


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


class LockTable:
    """The locks that this process holds in a partial folder.

    Small files of a folder share one, as to lock takes as long as to fetch them.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._lock = threading.Lock()
        self._held: dict[str, tuple[FileLock, set[Claim]]] = {}

    def take(self, name: str, claim: Claim, is_shared: bool) -> bool:
        """Let a claim hold a lock, if no other process and, unshared, no other does."""
        with self._lock:
            lock, holders = self._held.get(name, (None, set()))
            lock = lock or try_lock(self.folder, name)
            if lock is None or (holders and not is_shared):
                return False
            self._held[name] = (lock, holders | {claim})
            return True

    def give_back(self, name: str, claim: Claim) -> None:
        """Let a claim hold a lock no longer; the last one releases it."""
        with self._lock:
            if name not in self._held:
                return
            lock, holders = self._held.pop(name)
            if holders - {claim}:
                self._held[name] = (lock, holders - {claim})
            else:
                unlock(lock)


class Claim:
    """A file's claim to be fetched by this process and no other.

    Parameters
    ----------
    table : LockTable
        The locks of this process.
    file_stem, folder_stem : str
        Names of the file's own lock, and of that which small files of a folder share.
    """

    def __init__(self, table: LockTable, file_stem: str, folder_stem: str):
        self._table, self._stem, self._folder_stem = table, file_stem, folder_stem
        self._name: str | None = None
        self._signs: object = None
        self._signs_at = 0.0
        self.n_looks = 0
        """How often another process was seen to hold the lock."""

    def take(self, is_small: bool, timeout: float) -> float:
        """Take the lock; else return the seconds after which to try again.

        A holder that shows no sign of life for long is not waited for.
        """
        limits = policy.POLICY
        name = self._folder_stem if is_small else self._stem
        if self._table.take(name, self, is_shared=is_small):
            self._name = name
            return 0.0
        now, signs = time.monotonic(), signs_of_life(self._table.folder, self._stem)
        if signs != self._signs or not self.n_looks:
            self._signs, self._signs_at = signs, now
        elif now - self._signs_at > max(limits.lock_patience, 4 * timeout):
            return 0.0
        # The exponent is bounded, as 1.5 to the power of 2,000 is not a float.
        wait = min(limits.poll * 1.5 ** min(self.n_looks, 64), limits.longest_poll)
        self.n_looks += 1
        return wait * random.uniform(0.5, 1.5)

    def give_back(self) -> None:
        """Release the lock."""
        name, self._name = self._name, None
        if name:
            self._table.give_back(name, self)
