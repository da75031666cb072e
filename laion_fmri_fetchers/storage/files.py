"""Files of the data directory: their paths, scanning them, and writing them whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from laion_fmri_fetchers.layout.keys import is_local_folder, is_local_name

if TYPE_CHECKING:
    pass


def local_path(data_dir: str, relative_path: str) -> str:
    """Return the absolute path of a file of the data directory."""
    path = f"{data_dir}/{relative_path}"
    return path if os.sep == "/" else path.replace("/", os.sep)


def files_on_disk(
    data_dir: str, wanted: Iterable[tuple[str, str]]
) -> tuple[set[str], set[str]]:
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
    files : set of str
        Relative paths. Hidden files are left out, and names that are not as this
        package or the dataset's own would write them.
    folders : set of str
        Relative paths, ending in ``/``, of the folders of levels looked at.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for prefix, delimiter in wanted:
        _scan_folder(
            local_path(data_dir, prefix), prefix, files, folders if delimiter else None
        )
    return files, folders


def _scan_folder(
    folder: str, prefix: str, files: set[str], folders: set[str] | None
) -> None:
    if not is_local_folder(prefix[:-1]):
        return
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        if entry.is_dir():
            if folders is None:
                _scan_folder(entry.path, f"{prefix}{name}/", files, None)
            else:
                folders.add(f"{prefix}{name}/")
        elif entry.is_file() and is_local_name(name):
            files.add(prefix + name)


@contextlib.contextmanager
def whole_file(file: str | os.PathLike, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file to be written such that it appears whole or not at all.

    It is written under a hidden name beside its own, and renamed at the end of the
    block; where the block fails, nothing is left. The hidden name is short, as names of
    stimuli are as long as a file system allows.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with whole_file(folder + "/new/table.csv") as stream:
    ...     _ = stream.write(b"image_name")
    >>> os.listdir(folder + "/new")
    ['table.csv']
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.parent / f".{os.getpid()}-{secrets.token_hex(8)}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(file: Path, content: bytes | bytearray, mode: int = 0o666) -> None:
    """Write a small file such that it appears whole or not at all."""
    with whole_file(file, mode) as stream:
        stream.write(content)
