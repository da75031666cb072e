"""The voxel store: betas once extracted, voxel by voxel with all trials of a session.

In the state folder, each session has a folder of *parts*::

    voxels/sub-XX/ses-YY/
    ├── <name>.npy   float32 (n_voxels, n_trials), mapped into memory when it is read
    └── <name>.npz   which voxels these are, what they were taken from, a checksum

A part is written once and never changed: its index first, then the values, by a rename.
So an index without values is not a part, and values have an index. Processes that
extract the same voxels at the same time write two parts with the same values. `compact`
joins the parts of a session into a single part when they get many.

::

    find_parts ──▶ coverage                    what is stored
    new_part ──▶ PartWriter                    adds to it
    StoredSession.values ──▶ _places_in_parts  reads from it
    compact, check_session                     keep it small, and sound
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import secrets
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from laion_fmri_fetchers.cache.files import whole_file
from laion_fmri_fetchers.cache.state import state_path
from laion_fmri_fetchers.exceptions import DiskSpaceError, NotCachedError
from laion_fmri_fetchers.remote.disks import FULL, try_lock, unlock

from .disk import file_system, write_at

_FORMAT = 1
_BLOCK = 2**25
"""Bytes copied at once."""

_MOST_PARTS = 8
"""Parts of a session from which they are joined: each costs a reader some ms."""

_MOST_WASTE = 1.25
"""Rows in all parts, as a multiple of voxels, from which the parts are joined."""

_HIDDEN = ".withdrawn."
_MAPPED = 24 * 3600.0
"""Seconds that a reader may go on with a part that was joined."""

_SETTLED = 3600.0
"""Seconds after which the values of an index are not waited for."""

_TRIES = 8
"""Looks at a folder while others join its parts."""

_SMALL_PART = 2**25
"""Bytes of a part up to which waiting for the disk takes no time worth a word."""

_FIRST_WAIT = 0.02
"""Seconds until the second look; each later wait is twice as long, 2.5 s in all."""

DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError),
)
"""What numpy raises for files that are cut short, altered, or not its own."""


class Origin(NamedTuple):
    """What stored values were taken from."""

    shape: tuple[int, ...]
    """Voxels of the grid, by axis."""
    n_trials: int
    image: str | None
    """ETag of the session's beta image."""
    image_size: int | None
    """Bytes of the image."""
    image_time: int | None
    """When the image on disk was changed last, in ns; None: taken from the bucket."""
    model: str | None
    """ETag of the model file; None: taken from the image."""
    trials: str | None
    """MD5 of the trial table."""

    @property
    def values(self) -> tuple[Any, ...]:
        """What is the same for the same values, as far as the bucket tells."""
        return self.image, self.image_size, self.n_trials, self.trials


class Version(NamedTuple):
    """The version of a session that is meant; None where it is not known."""

    image: str | None
    """ETag of the beta image."""
    image_size: int | None
    """Bytes of the image."""
    image_time: int | None
    """When the image on disk was changed last, in ns."""
    trials: str | None
    """MD5 of the trial table on disk."""

    def admits(self, origin: Origin) -> bool:
        """Tell whether values are of this version, as far as can be told.

        Examples
        --------
        >>> origin = Origin((2, 2, 2), 9, "etag", 100, None, None, None)
        >>> Version(None, None, None, None).admits(origin)
        True
        >>> Version("etag", 101, None, None).admits(origin)
        False
        """
        return all(
            None in pair or pair[0] == pair[1]
            for pair in (
                (self.image, origin.image),
                (self.image_size, origin.image_size),
                (self.image_time, origin.image_time),
                (self.trials, origin.trials),
            )
        )


def version_of(meta: dict[str, Any], trials: str | None) -> Version:
    """Return the version of a session on disk, or else in the bucket.

    Parameters
    ----------
    meta : dict
        Record of the beta image.
    trials : str or None
        MD5 of the trial table on disk.
    """
    try:
        stat = os.stat(meta["absolute_path"])
    except OSError:
        return Version(meta.get("etag"), meta.get("size"), None, trials)
    return Version(image_version(meta), stat.st_size, stat.st_mtime_ns, trials)


def image_version(meta: dict[str, Any]) -> str | None:
    """Return the ETag of a file; of an outdated one on disk, what stands for it.

    Its ETag is not known, and must not be taken for that of the bucket's version.
    """
    if meta.get("outdated") and meta.get("etag") is None:
        return f"outdated {meta['size']} {meta['last_modified']}"
    return meta.get("etag")


class Part(NamedTuple):
    """Some voxels of a session."""

    file: Path
    """Their values."""
    voxels: np.ndarray
    """Their positions in a flat volume, the last axis varying fastest; by row."""
    origin: Origin
    crc32: int
    """Of the bytes of ``file``."""
    time: int
    """When they were written, in ns."""

    def open(self) -> np.ndarray:
        """Return the values, mapped into memory: float32, (n_voxels, n_trials)."""
        return np.load(self.file, mmap_mode="r", allow_pickle=False)


class StoredSession(NamedTuple):
    """Voxels of a session in the store; it may be sent to another process."""

    data_dir: str
    subject: str
    session: str
    origin: Origin
    version: Version

    def values(self, voxels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the values of voxels, mapped into memory.

        Parameters
        ----------
        voxels : numpy.ndarray of int
            Positions in a flat volume, the last axis varying fastest.

        Returns
        -------
        list of (numpy.ndarray, numpy.ndarray)
            Values of a part, and for each voxel its row there, -1 where it has none.
            Each voxel is in one of them.

        Raises
        ------
        NotCachedError
            If the store lacks some of them.
        """
        folder = session_folder(self.data_dir, self.subject, self.session)
        for _ in range(_TRIES):
            parts = [
                part
                for part in find_parts(folder)
                if part.origin.values == self.origin.values
                and self.version.admits(part.origin)
            ]
            with contextlib.suppress(*DAMAGED):
                places, lacks = _places_in_parts(parts, voxels)
                if not lacks:
                    return places
        raise NotCachedError(
            f"Voxels of {self.session} of {self.subject} were removed from the voxel "
            "store while it was read; call again."
        )


def find_stored(
    data_dir: str,
    meta: dict[str, Any],
    voxels: np.ndarray,
    trials: str | None,
) -> StoredSession | None:
    """Return a session of the store that has voxels of an image's version.

    Parameters
    ----------
    data_dir : str
        The data directory.
    meta : dict
        Record of the beta image; where the image is on disk, parts are void that were
        taken from another one.
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.
    trials : str or None
        MD5 of the trial table on disk.
    """
    names = data_dir, meta["subject"], meta["session"]
    version = version_of(meta, trials)
    parts, covered = parts_of(version, find_parts(session_folder(*names)), voxels)
    if not (parts and covered.all()):
        return None
    return StoredSession(*names, parts[0].origin, version)


class PartWriter:
    """Takes the values of a new part, row by row or in pieces of bytes.

    Attributes
    ----------
    folder : Path
        Where the part will be.
    row_size : int
        Bytes of a row.
    """

    def __init__(self, stream: BinaryIO, folder: Path, shape: tuple[int, int]):
        self._stream, self.folder, self._shape = stream, folder, shape
        self.row_size = shape[1] * 4
        stream.write(_header_of(shape))
        stream.flush()
        self._start = stream.tell()
        # A full disk is then known before a page of the mapped file is written, which
        # would end the process.
        if not _allocate(stream, self._start, shape[0] * self.row_size):
            stream.writelines(bytes(self.row_size) for _ in range(shape[0]))
            stream.flush()

    def put(self, position: int, content: memoryview | bytes) -> None:
        """Write bytes at a position, counted from the first value."""
        write_at(self._stream.fileno(), content, self._start + position)

    def values(self) -> np.ndarray:
        """Return the values, mapped into memory, to be read and written."""
        if 0 in self._shape:
            return np.empty(self._shape, np.float32)
        return np.memmap(self._stream, "<f4", "r+", self._start, self._shape)


def _allocate(stream: BinaryIO, start: int, size: int) -> bool:
    """Let the file system set bytes aside; tell whether it can."""
    try:
        os.posix_fallocate(stream.fileno(), start, max(1, size))
    except AttributeError:
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        return False
    return True


def _header_of(shape: tuple[int, int]) -> bytes:
    """Return how a ``.npy`` file of values begins."""
    stream = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()


def session_folder(data_dir: str, subject: str, session: str) -> Path:
    """Return the folder of a session's parts."""
    return store_folder(data_dir) / subject / session


def store_folder(data_dir: str) -> Path:
    """Return the folder of the store."""
    return state_path(data_dir, "voxels")


def stored_sessions(data_dir: str) -> list[Path]:
    """Return the folders of all sessions."""
    folder = store_folder(data_dir)
    # Path.glob raises where this user may not look.
    return sorted(folder.glob("sub-*/ses-*")) if os.path.isdir(folder) else []


def find_parts(folder: Path) -> list[Part]:
    """Return the parts in a session's folder, newest first, without damaged ones.

    Another process may join parts meanwhile: the joined part is there before the others
    are removed. So a folder all of whose files are still there was seen whole; else it
    is looked at again, after a while, as network file systems show it late.
    """
    parts: list[Part] = []
    files: list[Path] = []
    for n in range(_TRIES):
        time.sleep(_FIRST_WAIT * 2 ** (n - 1) if n else 0)
        before, files = files, sorted(folder.glob("[!.]*.np[yz]"))
        indices = [file for file in files if file.suffix == ".npz"]
        parts = [part for index in indices if (part := _read_index(index))]
        # A link that leads nowhere is never there.
        is_settled = n >= _TRIES // 2 and files == before
        if is_settled or all(map(os.path.lexists, files)):
            break
    return sorted(parts, key=lambda part: part.time, reverse=True)


def _read_index(index: Path) -> Part | None:
    file = index.with_suffix(".npy")
    try:
        with open(index, "rb") as stream:
            arrays = dict(np.load(stream, allow_pickle=False))
        about = json.loads(str(arrays["about"]))
        if about.pop("format") != _FORMAT:
            return None
        crc32, shape = int(about.pop("crc32")), tuple(map(int, about.pop("shape")))
        origin = Origin(shape=shape, **about)
        voxels = arrays["voxels"]
        time_written = _time_of_values(file, (len(voxels), origin.n_trials))
    except DAMAGED:
        return None
    is_sound = voxels.ndim == 1 and voxels.dtype.kind == "i" and len(voxels)
    if not is_sound or voxels.min() < 0 or voxels.max() >= math.prod(shape):
        return None
    return Part(file, voxels, origin, crc32, time_written)


def _time_of_values(file: Path, shape: tuple[int, int]) -> int:
    """Return when a file was written that has, as it seems, values of a shape.

    Raises
    ------
    ValueError
        If it has not, by its beginning and length.
    """
    header = _header_of(shape)
    with open(file, "rb") as stream:
        stat = os.fstat(stream.fileno())
        is_whole = stat.st_size == len(header) + shape[0] * shape[1] * 4
        if not is_whole or stream.read(len(header)) != header:
            raise ValueError(f"{file} has other values than its index")
        return stat.st_mtime_ns


def parts_of(
    version: Version, parts: list[Part], voxels: np.ndarray
) -> tuple[list[Part], np.ndarray]:
    """Return the parts of a version, and for each voxel whether they have it.

    Where a version is not known well enough, so that parts of different values may be
    meant, they are those with most of the voxels.
    """
    groups: dict[tuple[Any, ...], list[Part]] = {}
    for part in parts:
        if version.admits(part.origin):
            groups.setdefault(part.origin.values, []).append(part)
    best: list[Part] = []
    covered = np.zeros(len(voxels), dtype=bool)
    for group in groups.values():
        its_covered = coverage(group, voxels)
        if not best or its_covered.sum() > covered.sum():
            best, covered = group, its_covered
    return best, covered


def coverage(parts: list[Part], voxels: np.ndarray) -> np.ndarray:
    """Return for each voxel whether a part has it."""
    covered = np.zeros(len(voxels), dtype=bool)
    for part in parts:
        covered |= np.isin(voxels, part.voxels)
    return covered


def _places_in_parts(
    parts: list[Part], voxels: np.ndarray
) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
    """Return values and rows of voxels by part, and whether some are in none.

    The first of the parts counts that has a voxel.
    """
    places = []
    is_left = np.ones(len(voxels), dtype=bool)
    for part in parts:
        rows, has = rows_in(part.voxels, voxels)
        has &= is_left
        if has.any():
            places.append((part.open(), np.where(has, rows, -1)))
            is_left &= ~has
    return places, bool(is_left.any())


def rows_in(listed: np.ndarray, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where voxels are in a list, and whether they are.

    Examples
    --------
    >>> rows_in(np.array([5, 3, 8]), np.array([3, 4, 8]))
    (array([1, 0, 2]), array([ True, False,  True]))
    """
    order = np.argsort(listed, kind="stable")
    at = np.searchsorted(listed, voxels, sorter=order)
    rows = order[np.minimum(at, len(order) - 1)]
    return rows, listed[rows] == voxels


@contextlib.contextmanager
def new_part(folder: Path, voxels: np.ndarray, origin: Origin) -> Iterator[PartWriter]:
    """Add voxels to a session; the part appears whole, or not at all.

    Parameters
    ----------
    folder : Path
        Of the session.
    voxels : numpy.ndarray of int
        Positions of the voxels in a flat volume, by row.
    origin : Origin
        What the values are taken from.

    Raises
    ------
    DiskSpaceError
        If the disk is full.
    """
    name = secrets.token_hex(8)
    try:
        with whole_file(folder / f"{name}.npy") as stream:
            writer = PartWriter(stream, folder, (len(voxels), origin.n_trials))
            yield writer
            # A machine that fails may keep the length of a file and lose its values,
            # which would then read as 0. For a gigabyte, that is as long as to fetch
            # it: such parts are flushed before their images are removed.
            if len(voxels) * writer.row_size <= _SMALL_PART:
                _flush(stream)
            about = {
                "format": _FORMAT,
                **origin._asdict(),
                "crc32": _crc32(stream),
            }
            with whole_file(folder / f"{name}.npz") as index:
                np.savez(index, voxels=voxels.astype(np.int32), about=json.dumps(about))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(folder / f"{name}.npz")
        raise


def flush_parts(folder: Path) -> None:
    """Have all parts of a session on disk, as what they were taken from is removed."""
    for part in find_parts(folder):
        with open(part.file, "rb") as stream:
            _flush(stream)


def _flush(stream: BinaryIO) -> None:
    """Have what was written on disk, if the file system knows how."""
    try:
        os.fsync(stream.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _crc32(stream: BinaryIO) -> int:
    from isal import isal_zlib

    crc32 = 0
    stream.seek(0)
    while block := stream.read(_BLOCK // 32):
        crc32 = isal_zlib.crc32(block, crc32)
    return crc32


def _sum_of(part: Part) -> int:
    with open(part.file, "rb") as stream:
        return _crc32(stream)


def check_part(part: Part) -> str:
    """Return what is wrong with a part: ``""`` where nothing is."""
    try:
        part.open()
        return "" if _sum_of(part) == part.crc32 else "its checksum differs"
    except DAMAGED as error:
        return f"it cannot be read ({error})"


def check_session(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a session's parts, and what is wrong with each, or ``""``."""
    parts = {part.file: part for part in find_parts(folder)}
    for file in sorted(folder.glob("[!.]*.np[yz]")):
        if file in parts:
            yield file, check_part(parts[file])
        elif file.suffix == ".npy":
            yield file, "its index is missing or damaged, or of other values"
        elif _is_orphan(file):
            yield file, "it is the index of values that are missing"


def _is_orphan(index: Path) -> bool:
    """Tell whether an index has no values, nor will have: the index comes first."""
    try:
        age = time.time() - index.stat().st_mtime
    except OSError:
        return False
    return age > _SETTLED and not index.with_suffix(".npy").exists()


def compact(folder: Path, *, always: bool = False) -> None:
    """Join the parts of a session where they are many, or repeat each other.

    Parts of other versions of the images are removed where what is stored of the
    newest version has their voxels, too. Without a lock that works, two processes
    write the same part, and the next call joins these.

    Parameters
    ----------
    folder : Path
        Of the session.
    always : bool, default=False
        Whether to join also a few parts.
    """
    lock = try_lock(str(folder), "compact")
    if lock is None:
        return
    try:
        if len([*folder.glob("[!.]*.npy")]) > 1:
            are_gone = True
            while are_gone and (parts := _to_join(find_parts(folder), always)):
                are_gone = _join(folder, parts)
            _remove_outdated(folder)
        for index in filter(_is_orphan, folder.glob("[!.]*.npz")):
            remove_part(index)
        _remove_hidden(folder)
    except (*DAMAGED, DiskSpaceError):
        return  # Another process joins them, or there is no space: all parts are left.
    finally:
        unlock(lock)


def _to_join(parts: list[Part], always: bool) -> list[Part]:
    """Return parts of the same values that are worth joining."""
    groups: dict[tuple[Any, ...], list[Part]] = {}
    for part in parts:
        key = *part.origin.values, part.origin.image_time
        groups.setdefault(key, []).append(part)
    for same in groups.values():
        if len(same) == 1:
            continue
        n_rows = sum(len(p.voxels) for p in same)
        n_voxels = len(np.unique(np.concatenate([p.voxels for p in same])))
        is_much = len(same) > _MOST_PARTS or n_rows > _MOST_WASTE * n_voxels
        if is_much or always:
            return same
    return []


def _join(folder: Path, parts: list[Part]) -> bool:
    """Join parts, of which damaged ones are removed first; tell whether they are gone.

    A part joined with damaged ones would be as wrong, with a checksum that is right.
    """
    damaged = [part.file for part in parts if _sum_of(part) != part.crc32]
    if damaged:
        are_gone = [remove_part(file) for file in damaged]
        return all(are_gone)
    voxels = np.unique(np.concatenate([part.voxels for part in parts]))
    places, _ = _places_in_parts(parts, voxels)
    step = max(1, _BLOCK // (parts[0].origin.n_trials * 4))
    with new_part(folder, voxels, parts[0].origin) as writer:
        for start in range(0, len(voxels), step):
            block = _gathered(places, slice(start, start + step))
            writer.put(start * writer.row_size, bytes_of(block))
    del places  # Windows removes no file that is mapped into memory.
    are_gone = [_withdraw(part.file) for part in parts]
    return all(are_gone)


def bytes_of(values: np.ndarray) -> memoryview:
    """Return the bytes of an array, in C order."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _gathered(places: list[tuple[np.ndarray, np.ndarray]], of: slice) -> np.ndarray:
    """Return the values of some voxels, out of the parts that have them."""
    n_trials = places[0][0].shape[1]
    block = np.empty((len(places[0][1][of]), n_trials), np.float32)
    for values, rows in places:
        has = rows[of] >= 0
        block[has] = values[rows[of][has]]
    return block


def remove_part(file: Path) -> bool:
    """Remove a part, of which either file is given; tell whether it is gone."""
    files = [file.with_suffix(suffix) for suffix in (".npy", ".npz")]
    for path in files:
        with contextlib.suppress(OSError):  # the folder is that of another user
            os.unlink(path)
    return not any(map(os.path.lexists, files))


def _withdraw(file: Path) -> bool:
    """Remove a part whose values are in another one; who reads it goes on.

    On NFS, who has mapped a file that another machine removes is killed by a bus error.
    So it is hidden there, which readers do not notice, and removed on another day.
    """
    if file_system(file.parent).startswith("nfs"):
        hidden = file.with_name(f"{_HIDDEN}{file.name}")
        with contextlib.suppress(OSError):
            os.utime(file)
            os.replace(file, hidden)
    return remove_part(file)


def _remove_hidden(folder: Path) -> None:
    """Remove parts that were hidden more than a day ago."""
    for file in folder.glob(f"{_HIDDEN}*"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _MAPPED:
                file.unlink()


def remove_other_versions(folder: Path, etag: str | None) -> None:
    """Remove parts of other versions of the beta image than one in the bucket."""
    version = Version(etag, None, None, None)
    for part in find_parts(folder):
        if not version.admits(part.origin):
            remove_part(part.file)


def _remove_outdated(folder: Path) -> None:
    """Remove parts of other versions where the newest version has their voxels."""
    parts = find_parts(folder)
    if not parts:
        return
    newest = parts[0].origin
    current: list[Part] = []
    others: list[Part] = []
    for part in parts:
        times = newest.image_time, part.origin.image_time
        is_same_time = None in times or times[0] == times[1]
        is_current = part.origin.values == newest.values and is_same_time
        (current if is_current else others).append(part)
    for part in others:
        if coverage(current, part.voxels).all():
            _withdraw(part.file)


def blocks_of(
    places: list[tuple[np.ndarray, np.ndarray]], n_bytes: int = _BLOCK
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield values in blocks of voxels: which of them, and float32 (n, n_trials).

    Parameters
    ----------
    places : list
        From `StoredSession.values`.
    n_bytes : int
        Of a block, about.
    """
    n_voxels, n_trials = len(places[0][1]), places[0][0].shape[1]
    step = max(1, n_bytes // (n_trials * 4))
    for start in range(0, n_voxels, step):
        of = slice(start, min(start + step, n_voxels))
        values, rows = places[0]
        is_run = (
            len(places) == 1
            and rows[of.start] + (of.stop - of.start) - 1 == (rows[of.stop - 1])
        )
        if is_run and (np.diff(rows[of]) == 1).all():
            yield of, values[rows[of.start] : rows[of.stop - 1] + 1]
        else:
            yield of, _gathered(places, of)


def describe_store(data_dir: str) -> list[dict[str, Any]]:
    """Return what is stored: subject, session, voxels, and bytes on disk."""
    described = []
    for folder in stored_sessions(data_dir):
        if parts := find_parts(folder):
            voxels = np.unique(np.concatenate([part.voxels for part in parts]))
            described.append(
                {
                    "subject": folder.parent.name,
                    "session": folder.name,
                    "n_voxels": len(voxels),
                    "size": _size_of(folder),
                }
            )
    return described


def _size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder, from which others may remove some."""
    size = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            size += entry.stat().st_size
    return size
