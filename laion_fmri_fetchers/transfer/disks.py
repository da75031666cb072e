"""Disks: what their errors mean, in words, and of what kind they are."""

from __future__ import annotations

import errno
import os
import shutil

from laion_fmri_fetchers.exceptions import DataDirectoryError, DiskSpaceError
from laion_fmri_fetchers.messages import readable_size


def _numbers(*names: str) -> frozenset[int]:
    """Return the numbers of errors, of those that this operating system has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


FULL = _numbers("ENOSPC", "EDQUOT")
"""Errors of a disk that is full, or of a quota that is."""

_DENIED = _numbers("EACCES", "EPERM", "EROFS")

_NO_FOLDER = _numbers("EEXIST", "ENOTDIR", "ELOOP", "ENOENT")
"""Errors of a path that leads through a file, in a circle, or nowhere."""


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
    number = error.errno or 0
    if number in FULL:
        text = words_on_full_disk(number, nearest(folder))
        message = f"The disk is full ({text}). Make space, then call again."
        return disk_space_error(message, number)
    if number in _DENIED:
        reason = os.strerror(number).lower()
        place = nearest(folder)
        return DataDirectoryError(
            f"The folder {place} cannot be written: {reason}. It may belong to another "
            "user; ask for the right to write there, or name another data_dir.",
            number,
            folder,
        )
    if number in _NO_FOLDER:
        return no_folder_error(folder, number)
    return error


def no_folder_error(folder: str, number: int) -> DataDirectoryError:
    """Return the error of a folder that cannot be made: what is in its place."""
    place = nearest(folder)
    if os.path.isdir(place):
        reason = os.strerror(number).lower()
        text = f"The folder {folder} cannot be made: {reason}. Name another data_dir."
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


def nearest(folder: str) -> str:
    """Return a path, or where it does not exist, the nearest one above it that does."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def disk_space_error(message: str, number: int = errno.ENOSPC) -> DiskSpaceError:
    """Return the error of a disk that is full."""
    error = DiskSpaceError(message)
    error.errno = number
    return error


def words_on_full_disk(number: int, folder: str) -> str:
    """Return what is used up; free bytes are named only where they are what lacks."""
    text = os.strerror(number)
    if number != errno.ENOSPC:
        return f"{text} in {folder}"
    if hasattr(os, "statvfs") and os.path.isdir(folder):
        disk = os.statvfs(folder)
        if disk.f_files and not disk.f_favail:
            return f"{text} for another file (inode), though for bytes, in {folder}"
    return (
        f"{text}: {readable_size(shutil.disk_usage(folder).free)} are free in {folder}"
    )


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
