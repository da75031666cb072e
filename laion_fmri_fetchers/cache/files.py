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
    for prefix, delimiter in wanted:
        _scan_folder(
            local_path(data_dir, prefix), prefix, files, folders if delimiter else None
        )
    return files, folders


def _scan_folder(
    folder: str,
    prefix: str,
    files: dict[str, str],
    folders: set[str] | None,
    linked_from: tuple[str, ...] = (),
) -> None:
    """Add what is in a folder; ``linked_from`` are folders whose links led there."""
    inside = []
    for entry in _entries(folder) if is_local_folder(prefix[:-1]) else ():
        with contextlib.suppress(OSError):  # a link to itself, or to what is closed
            if entry.is_dir():
                inside.append(entry)
            elif entry.is_file() and (name := clean_name(entry.name)):
                _add_file(files, prefix, name, entry)
    for entry in inside:
        name, links = f"{prefix}{entry.name}/", linked_from
        if folders is not None:
            folders.add(name)
            continue
        if entry.is_symlink():
            # A link to a folder above one on the way to it would lead round for ever.
            links = (*linked_from, os.path.realpath(folder))
            target = os.path.join(os.path.realpath(entry.path), "")
            if any(os.path.join(above, "").startswith(target) for above in links):
                continue
        _scan_folder(entry.path, name, files, None, links)


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
        if entry.name.startswith("."):
            _remove_if_left(entry.path)
        else:
            visible.append(entry)
    return visible


def _add_file(
    files: dict[str, str], prefix: str, name: str, entry: os.DirEntry
) -> None:
    """Add a file by its clean name; of two spellings of one, the clean one."""
    path, found = prefix + name, prefix + entry.name
    other = files.get(path, found)
    if other == found or entry.name == name:
        files[path] = found
    if other == found:
        return
    other_file = os.path.join(os.path.dirname(entry.path), os.path.basename(other))
    if not filecmp.cmp(entry.path, other_file, shallow=False):
        unused = other if files[path] == found else found
        warn(
            f"{unused} and {files[path]} are one file in two spellings, but differ. "
            "The second is used; remove the one that is wrong."
        )


def hidden_on_disk(data_dir: str, ids: Iterable[str]) -> set[str]:
    """Return which of some files are on disk, of those with a hidden name.

    The dataset has such files, as FreeSurfer writes some. The scan of the disk passes
    over hidden names, since most are of the operating system.
    """
    hidden = (path for path in ids if "/." in path or path.startswith("."))
    return {path for path in hidden if os.path.isfile(local_path(data_dir, path))}


def _remove_if_left(path: str) -> None:
    """Remove a temporary file that a killed process left."""
    if _TEMPORARY.fullmatch(os.path.basename(path)):
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > _OLD:
                os.unlink(path)


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
    folder = os.path.dirname(target)
    make_folder(folder)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with _errors_named(folder):
        descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
        with _errors_named(folder):
            os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # Other errors are of what is written, which names itself.
        if isinstance(error, OSError) and error.errno in FULL and not error.filename:
            raise folder_error(error, folder) from error
        raise


def make_folder(folder: str) -> None:
    """Make a folder and those above it, and remove what killed processes left in it.

    Raises
    ------
    DiskSpaceError, DataDirectoryError
        If it cannot be made.
    """
    with _errors_named(folder):
        os.makedirs(folder or ".", exist_ok=True)
    if folder not in _swept:
        _swept.add(folder)
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):
                _remove_if_left(os.path.join(folder, name))


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


@contextlib.contextmanager
def _errors_named(folder: str) -> Iterator[None]:
    """Let errors of writing to a folder name it, and say what to do."""
    try:
        yield
    except OSError as error:
        named = folder_error(error, folder)
        if named is error:
            raise
        raise named from error


def write_atomically(file: Path, content: bytes | bytearray, mode: int = 0o666) -> None:
    """Write a small file such that it appears whole or not at all."""
    with whole_file(file, mode) as stream:
        stream.write(content)
