"""Files of the data directory: their paths, scanning them, and writing them whole."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from laion_fmri_fetchers.exceptions import DataDirectoryError
from laion_fmri_fetchers.layout.keys import clean_name, is_local_folder
from laion_fmri_fetchers.messages import warn
from laion_fmri_fetchers.remote.disks import FULL, folder_error

# A file on its way to its name; and one that was downloaded to another disk.
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.(tmp|part)")

# Seconds without a write after which a temporary file is taken as left by a process
# that was killed: nothing that is written here pauses for three days.
_OLD = 3 * 24 * 3600.0

_swept: set[str] = set()


def local_path(data_dir: str, relative_path: str) -> str:
    """Return the absolute path of a file of the data directory."""
    path = f"{data_dir}/{relative_path}"
    return path if os.sep == "/" else path.replace("/", os.sep)


def files_on_disk(
    data_dir: str, wanted: Iterable[tuple[str, str]]
) -> tuple[dict[str, str], set[str]]:
    """Return files and folders on disk below some folders.

    Parameters
    ----------
    data_dir : str
        The data directory.
    wanted : iterable of (prefix, delimiter)
        Folders below it, ending in ``/`` (``""``: the data directory itself), as for
        a listing of the bucket: with ``"/"``, only one level is looked at.

    Returns
    -------
    files : dict of str to str
        id -> relative path: a file with its key's own name, as other tools copy it, is
        that of the clean name. Hidden files are left out, and names that no key may
        have. What killed processes left of files that they wrote is removed.
    folders : set of str
        Relative paths, ending in ``/``, of the folders of levels looked at.

    Warns
    -----
    UserWarning
        If a folder cannot be read, or files of the two spellings of a name differ.
    """
    files: dict[str, str] = {}
    folders: set[str] = set()

    def scan(folder: str, prefix: str, delimiter: str, above: tuple[str, ...]) -> None:
        """Add what is in a folder; ``above`` are folders whose links led there."""
        inside = []
        for entry in _entries(folder) if is_local_folder(prefix[:-1]) else ():
            with contextlib.suppress(OSError):  # a link to itself, or to what is closed
                if entry.is_dir():
                    inside.append(entry)
                elif entry.is_file() and (name := clean_name(entry.name)):
                    path, found = prefix + name, prefix + entry.name
                    other = files.setdefault(path, found)
                    if other != found:
                        files[path] = _choose_spelling(data_dir, path, found, other)
        for entry in inside:
            linked = (os.path.realpath(folder),) if entry.is_symlink() else ()
            links = (*above, *linked)
            name = f"{prefix}{entry.name}/"
            if delimiter:
                folders.add(name)
            elif not (linked and _leads_back(entry.path, links)):
                scan(entry.path, name, "", links)

    for prefix, delimiter in wanted:
        scan(local_path(data_dir, prefix), prefix, delimiter, ())
    return files, folders


def _entries(folder: str) -> list[os.DirEntry]:
    """Return what is in a folder; remove what killed processes left."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        warn(
            f"The folder {folder} cannot be read: {(error.strerror or '').lower()}. "
            "What is in it counts as not on disk."
        )
        return []
    visible = []
    for entry in entries:
        if not entry.name.startswith("."):
            visible.append(entry)
        elif _TEMPORARY.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _OLD:
                    os.unlink(entry.path)
    return visible


def _leads_back(link: str, folders: Iterable[str]) -> bool:
    """Return whether a link leads to, or above, one of some folders, so in a circle."""
    target = os.path.join(os.path.realpath(link), "")
    return any(f"{folder}{os.sep}".startswith(target) for folder in folders)


def _choose_spelling(data_dir: str, path: str, found: str, other: str) -> str:
    """Return which of two spellings of one file is used: the clean one, if any."""
    used, unused = (found, other) if found == path else (other, found)
    first, second = local_path(data_dir, used), local_path(data_dir, unused)
    if not filecmp.cmp(first, second, shallow=False):
        warn(
            f"{unused} and {used} are one file in two spellings, but differ. "
            "The second is used; remove the one that is wrong."
        )
    return used


def hidden_on_disk(data_dir: str, ids: Iterable[str]) -> set[str]:
    """Return which of some files are on disk, of those with a hidden name.

    The dataset has such files, as FreeSurfer writes some. The scan of the disk passes
    over hidden names, since most are of the operating system.
    """
    hidden = (path for path in ids if "/." in path or path.startswith("."))
    return {path for path in hidden if os.path.isfile(local_path(data_dir, path))}


def read_file(file: str | os.PathLike) -> bytes:
    """Return the content of a small file.

    Raises
    ------
    OSError
        Also for a named pipe or such, which would be waited for.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        raise OSError(errno.EINVAL, "it is not a file", os.fspath(file))
    return Path(file).read_bytes()


@contextlib.contextmanager
def whole_file(file: str | os.PathLike, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file to be written such that it appears whole or not at all.

    It is written under a hidden name beside its own, and renamed at the end of the
    block; where the block fails, nothing is left. The hidden name is short whatever the
    file's, as names of stimuli are as long as a file system allows.

    Raises
    ------
    DiskSpaceError
        If the disk is full.
    DataDirectoryError
        If its folder cannot be made or written.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with whole_file(folder + "/new/table.csv") as stream:
    ...     _ = stream.write(b"image_name")
    >>> os.listdir(folder + "/new")
    ['table.csv']
    """
    target = os.fspath(file)
    folder = os.path.dirname(target) or "."
    make_folder(folder)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, mode), "w+b") as stream:
            yield stream
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # Other errors are of what the block reads, which names itself.
        if isinstance(error, OSError) and (
            error.filename == temporary or (error.errno in FULL and not error.filename)
        ):
            error = folder_error(error, folder)
        raise error


def make_folder(folder: str) -> None:
    """Make a folder and those above it, and remove what killed processes left in it.

    Raises
    ------
    DiskSpaceError, DataDirectoryError
        If it cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        error = folder_error(error, folder)
        raise error
    if folder not in _swept:
        _swept.add(folder)
        _entries(folder)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Let the error of a file that this user may not read say so, by a name of ours."""
    try:
        yield
    except DataDirectoryError:
        raise
    except PermissionError as error:
        raise unreadable(error.filename) from error


def unreadable(file: str) -> DataDirectoryError:
    """Return the error of a file that this user may not read."""
    return DataDirectoryError(
        f"{file} cannot be read: permission denied. It may belong to another user; ask "
        "for the right to read it, or name another data_dir.",
        errno.EACCES,
        file,
    )


def write_atomically(file: Path, content: bytes | bytearray, mode: int = 0o666) -> None:
    """Write a small file such that it appears whole or not at all."""
    with whole_file(file, mode) as stream:
        stream.write(content)
