"""What errors of a disk mean, by a name of ours that says what to do; and locks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil

from filelock import FileLock, Timeout

from laion_fmri_fetchers.exceptions import DataDirectoryError, DiskSpaceError
from laion_fmri_fetchers.messages import readable_size

# Errors of a disk that is full, or of a quota that is.
FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def folder_error(error: OSError, folder: str) -> OSError:
    """Return the error of a folder that is to be written, by a name of ours.

    Parameters
    ----------
    error : OSError
        What the operating system says.
    folder : str
        The folder; it need not exist.

    Returns
    -------
    OSError
        A `DiskSpaceError` or `DataDirectoryError` that names the folder; any other
        error as it is.
    """
    number, place = error.errno or 0, existing_parent(folder)
    words = os.strerror(number).lower()
    if number in FULL:
        return full_disk_error(error, place)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        text = (
            f"The folder {place} cannot be written: {words}. It may belong to another "
            "user; ask for the right to write there, or name another data_dir."
        )
    elif number not in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
        return error
    elif os.path.isdir(place):
        text = f"The folder {folder} cannot be made: {words}. Name another data_dir."
    elif os.path.exists(place):
        text = (
            f"{place} is a file, where a folder is needed. Move it away, or name "
            "another data_dir."
        )
    else:
        text = (
            f"{place} is a link to a folder that cannot be reached. Mend or remove the "
            "link, or name another data_dir."
        )
    return DataDirectoryError(text, number, folder)


def existing_parent(folder: str) -> str:
    """Return a path, or where it does not exist, the nearest one above it that does."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def full_disk_error(error: OSError, folder: str) -> DiskSpaceError:
    """Return the error of a disk that became full: what is used up, and where."""
    text = f"{os.strerror(error.errno or errno.ENOSPC)} in {folder}"
    if error.errno == errno.ENOSPC:
        free = readable_size(shutil.disk_usage(folder).free)
        text = f"{os.strerror(error.errno)}: {free} are free in {folder}"
        disk = os.statvfs(folder) if hasattr(os, "statvfs") else None
        if disk and disk.f_files and not disk.f_favail:
            text = f"there is no inode for another file in {folder}"
    full = DiskSpaceError(
        f"The disk is full ({text}). Downloaded files are kept. Make space, then "
        "repeat the call to resume."
    )
    full.errno = error.errno
    return full


def try_lock(folder: str, name: str) -> FileLock | None:
    """Take the lock ``{name}.lock`` of a folder; None if another process holds it.

    Locks save double work, and nothing else. Where they do not work, as on some network
    file systems, what is returned locks nothing.
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
    """Release a lock; its file goes first, so that nobody waits for it by then."""
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.release()
