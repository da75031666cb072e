"""What errors of a disk mean, by a name of ours that says what to do."""

from __future__ import annotations

import errno
import os
import shutil

from laion_fmri_fetchers.exceptions import DataDirectoryError, DiskSpaceError
from laion_fmri_fetchers.messages import readable_size

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Errors of a disk that is full, or of a quota that is."""
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    if number in _DENIED:
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
        disk = os.statvfs(folder) if hasattr(os, "statvfs") else None
        free = readable_size(shutil.disk_usage(folder).free)
        text = f"{os.strerror(error.errno)}: {free} are free in {folder}"
        if disk and disk.f_files and not disk.f_favail:
            text = f"there is no inode for another file in {folder}"
    full = DiskSpaceError(
        f"The disk is full ({text}). Downloaded files are kept. Make space, then "
        "repeat the call to resume."
    )
    full.errno = error.errno
    return full


def check_space(folder: str, n_bytes: int) -> None:
    """Raise a `DiskSpaceError` if a disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        error = DiskSpaceError(
            f"{readable_size(n_bytes)} are needed in {folder}, but "
            f"{readable_size(free)} are free. Make space, use another data directory, "
            "or select less."
        )
        error.errno = errno.ENOSPC
        raise error
