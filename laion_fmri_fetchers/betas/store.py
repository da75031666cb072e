"""The voxel store: betas once extracted, voxel by voxel with all trials of a session.

In the state folder, each version of a session's betas has a folder of *parts*::

    voxels/sub-XX/ses-YY/<version>/
    ├── <hash>.npy     float32 (n_voxels, n_trials), mapped into memory when it is read
    ├── <hash>.npz     the voxels, and the CRC32 of each row
    └── <ETag>.etag    empty: the bucket had the image under this ETag

A part is written once, whole, and never changed or joined; ``<hash>`` is of its voxels,
so that two processes that extract the same voxels write the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

from laion_fmri_fetchers.cache.files import make_folder, whole_file
from laion_fmri_fetchers.cache.state import state_path
from laion_fmri_fetchers.exceptions import NotCachedError
from laion_fmri_fetchers.remote.disks import FULL

# Bytes of values read, and checked, at once.
_BLOCK = 2**25

# What numpy and json raise for files that are cut short, altered, or not the store's.
DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, tokenize.TokenError),
)


class DamagedPartError(NotCachedError):
    """A part of the store that was altered on disk, and was removed."""


# --- Which versions there are ------------------------------------------------------


class Version(NamedTuple):
    """What stored values were taken from: the name of their folder.

    An image is told by its content: neither its times, which change when a directory
    is copied, nor an ETag, which a directory without listings lacks.
    """

    size: int
    """Bytes of the beta image."""
    tail: str
    """Its last 8 bytes, hexadecimal: in gzip, CRC32 and length of what is packed."""
    trials: str
    """Digest of the trial table, by `digest_trials`; ``""`` without a table."""

    def __str__(self) -> str:
        return "-".join(map(str, self))


def digest_trials(volumes: Iterable[int], labels: Iterable[str]) -> str:
    """Return a digest of a trial table's ``beta_index`` and ``label``.

    Other columns may change without an effect on betas.
    """
    text = json.dumps([*map(int, volumes), *labels])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_version(file: str | os.PathLike, trials: str) -> Version:
    """Return the version of a beta image on disk.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 8))
        return Version(size, stream.read(8).hex(), trials)


def session_folder(data_dir: str, subject: str, session: str) -> Path:
    """Return the folder of a session in the store."""
    return state_path(data_dir, "voxels", subject, session)


def stored_sessions(data_dir: str) -> list[Path]:
    """Return the folders of all sessions."""
    folder = state_path(data_dir, "voxels")
    # Path.glob raises where this user may not look.
    return sorted(folder.glob("sub-*/ses-*")) if os.path.isdir(folder) else []


def known_versions(folder: Path) -> dict[Version, set[str]]:
    """Return the versions of a session, each with the ETags that its image had."""
    versions = {}
    for path in sorted(folder.glob("*-*-*/")):
        if match := re.fullmatch(r"(\d+)-([0-9a-f]*)-([0-9a-f]*)", path.name):
            etags = {unquote(file.stem) for file in path.glob("*.etag")}
            versions[Version(int(match[1]), match[2], match[3])] = etags
    return versions


def note_etag(folder: Path, version: Version, etag: str | None) -> None:
    """Note an ETag of the image of a version of a session."""
    make_folder(str(folder / str(version)))
    if etag:
        (folder / str(version) / f"{quote(etag, safe='')}.etag").touch()


def find_version(folder: Path, record: dict[str, Any], trials: str) -> Version | None:
    """Return the version of a session that a record means, as far as can be told.

    That is the image on disk, if there is one; else what is stored of the record's
    ETag.

    Parameters
    ----------
    folder : Path
        Of the session.
    record : dict
        Of the beta image.
    trials : str
        Digest of the trial table.
    """
    with contextlib.suppress(OSError):
        return image_version(record["absolute_path"], trials)
    found = [
        version
        for version, etags in known_versions(folder).items()
        if version.trials == trials and record["etag"] in etags
    ]
    # Of several that may be meant, none is: a wrong one would go unnoticed.
    return found[0] if len(found) == 1 else None


def remove_other_versions(folder: Path, version: Version) -> None:
    """Remove what is stored of other versions of a session."""
    for other in known_versions(folder).keys() - {version}:
        for file in [*(folder / str(other)).glob("*"), folder / str(other)]:
            # The folder may be that of another user, or another process write into it.
            with contextlib.suppress(OSError):
                file.rmdir() if file.is_dir() else file.unlink()


# --- Parts -------------------------------------------------------------------------


class Part(NamedTuple):
    """Some voxels of a session."""

    file: Path
    values: np.ndarray
    """float32 (n_voxels, n_trials), mapped into memory."""
    voxels: np.ndarray
    """Of each row, the position in a flat volume, the last axis varying fastest;
    increasing."""
    crc32: np.ndarray
    """uint32, of the bytes of each row."""

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return the values of rows, after a look at their checksums.

        Raises
        ------
        DamagedPartError
            If a checksum differs; the part is removed, as it would be read again.
        """
        values = np.asarray(self.values[rows])
        if (_row_checksums(values) != self.crc32[rows]).any():
            remove_part(self.file)
            raise DamagedPartError(
                f"A file of the voxel store was damaged: {self.file}. It is removed, "
                "if it can be; call fetch_laion_betas again to restore its voxels."
            )
        return values


def _row_checksums(values: np.ndarray) -> np.ndarray:
    """Return the CRC32 of each row of a contiguous array."""
    from isal import isal_zlib

    sums = (isal_zlib.crc32(row) for row in values)
    return np.fromiter(sums, np.uint32, len(values))


def _name_of(voxels: np.ndarray) -> str:
    return hashlib.sha256(voxels.astype("<i4").tobytes()).hexdigest()[:16]


def find_parts(folder: Path) -> list[Part]:
    """Return the parts in the folder of a version, without those that are damaged."""
    parts = []
    for index in sorted(folder.glob("[!.]*.npz")):
        with contextlib.suppress(*DAMAGED):  # also: its values are still to come
            with np.load(index, allow_pickle=False) as arrays:
                voxels, crc32 = arrays["voxels"], arrays["crc32"]
            file = index.with_suffix(".npy")
            values = np.load(file, mmap_mode="r", allow_pickle=False)
            is_sound = values.dtype == np.dtype("<f4") and values.flags.c_contiguous
            n_rows = {len(values), len(voxels), len(crc32)}
            if is_sound and len(n_rows) == 1 and _name_of(voxels) == index.stem:
                parts.append(Part(file, values, voxels, crc32))
    return parts


@contextlib.contextmanager
def new_part(folder: Path, voxels: np.ndarray, n_trials: int) -> Iterator[np.ndarray]:
    """Give zeros to be filled with values, float32 (n_voxels, n_trials).

    At the end of the block the part appears whole; after an error, not at all.

    Parameters
    ----------
    folder : Path
        Of the version.
    voxels : numpy.ndarray of int
        Positions of the voxels in a flat volume; increasing.
    n_trials : int
        Trials of the session.

    Raises
    ------
    DiskSpaceError
        If the disk is full.
    """
    name, shape = _name_of(voxels), (len(voxels), n_trials)
    with whole_file(folder / f"{name}.npy") as stream:
        about = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, about)
        stream.flush()
        start, size = stream.tell(), 4 * len(voxels) * n_trials
        # Where a mapped page has no place on the disk, writing to it ends the process.
        try:
            os.posix_fallocate(stream.fileno(), 0, start + size)
        except (AttributeError, OSError) as error:  # not on macOS, nor on every disk
            if getattr(error, "errno", None) in FULL:
                raise
            stream.writelines(bytes(4 * n_trials) for _ in voxels)
            stream.flush()
        values = np.memmap(stream, "<f4", "r+", start, shape)
        yield values
        # The index comes first, so that values never lack theirs.
        with whole_file(folder / f"{name}.npz") as index:
            np.savez(index, voxels=voxels.astype("<i4"), crc32=_row_checksums(values))


def remove_part(file: Path) -> None:
    """Remove a part, of which either file is given, as far as this user may."""
    for path in (file.with_suffix(".npy"), file.with_suffix(".npz")):
        with contextlib.suppress(OSError):
            path.unlink()


# --- Reading -----------------------------------------------------------------------


def find_rows(existing: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Return where voxels are among others; -1 where they are not.

    Examples
    --------
    >>> find_rows(np.array([5, 3, 8]), np.array([3, 4, 8])).tolist()
    [1, -1, 2]
    """
    order = np.argsort(existing, kind="stable")
    places = np.searchsorted(existing, voxels, sorter=order)
    rows = order[np.minimum(places, len(order) - 1)]
    return np.where(existing[rows] == voxels, rows, -1)


def locate(
    folder: Path, voxels: np.ndarray
) -> tuple[list[tuple[Part, np.ndarray]], np.ndarray]:
    """Find voxels in the parts of a version.

    Parameters
    ----------
    folder : Path
        Of the version.
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.

    Returns
    -------
    places : list of (Part, numpy.ndarray)
        Each part that is needed, and for each voxel its row in it, or -1.
    missing : numpy.ndarray of int
        The voxels that no part has.
    """
    places, is_left = [], np.ones(len(voxels), dtype=bool)
    for part in find_parts(folder):
        rows = np.where(is_left, find_rows(part.voxels, voxels), -1)
        if (rows >= 0).any():
            places.append((part, rows))
            is_left &= rows < 0
    return places, voxels[is_left]


def find_stored(
    data_dir: str, record: dict[str, Any], voxels: np.ndarray, trials: str
) -> Path | None:
    """Return the folder of a session's version, if it has all of some voxels.

    Parameters
    ----------
    data_dir : str
        The data directory.
    record : dict
        Of the beta image; if the image is on disk, its version counts.
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.
    trials : str
        Digest of the trial table on disk, by `digest_trials`.
    """
    folder = session_folder(data_dir, record["subject"], record["session"])
    # Most sessions are not stored, and nothing is read of their images.
    version = find_version(folder, record, trials) if folder.exists() else None
    if version is None or len(locate(folder / str(version), voxels)[1]):
        return None
    return folder / str(version)


def read_blocks(
    folder: Path, voxels: np.ndarray, n_bytes: int = _BLOCK
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield stored values in blocks of voxels: which of them, float32 (n, n_trials).

    Parameters
    ----------
    folder : Path
        Of the version.
    voxels : numpy.ndarray of int
        Positions in a flat volume, the last axis varying fastest.
    n_bytes : int
        Of a block, about.

    Raises
    ------
    DamagedPartError
        If values were altered on disk.
    NotCachedError
        If the store lacks some of the voxels.
    """
    places, missing = locate(folder, voxels)
    if len(missing):
        raise NotCachedError(
            f"Voxels of {folder.parent.name} of {folder.parent.parent.name} were "
            "removed from the voxel store while it was read; call again."
        )
    n_trials = places[0][0].values.shape[1]
    step = max(1, n_bytes // (n_trials * 4))
    for start in range(0, len(voxels), step):
        columns = slice(start, min(start + step, len(voxels)))
        part, rows = places[0][0], places[0][1][columns]
        if rows[0] >= 0 and (np.diff(rows) == 1).all():  # no copy is needed
            yield columns, part.read(slice(int(rows[0]), int(rows[-1]) + 1))
            continue
        block = np.empty((len(rows), n_trials), np.float32)
        for part, rows in places:
            is_here = rows[columns] >= 0
            if is_here.any():
                block[is_here] = part.read(rows[columns][is_here])
        yield columns, block


# --- Upkeep ------------------------------------------------------------------------


def check_session(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a session's parts, and what is wrong with each, or ``""``."""
    for version in sorted(folder.glob("[!.]*/")):
        parts = {part.file: part for part in find_parts(version)}
        for file in sorted(version.glob("[!.]*.npy")):
            if file not in parts:
                yield file, "it cannot be read, or its index is missing or damaged"
                continue
            _, values, voxels, crc32 = parts[file]
            step = max(1, _BLOCK // max(1, values.strides[0]))
            blocks = (slice(i, i + step) for i in range(0, len(voxels), step))
            is_sound = all(
                np.array_equal(_row_checksums(values[block]), crc32[block])
                for block in blocks
            )
            yield file, "" if is_sound else "its checksum differs"


def describe_store(data_dir: str) -> list[dict[str, Any]]:
    """Return what is stored: subject, session, voxels, and bytes on disk."""
    described = []
    for folder in stored_sessions(data_dir):
        parts = [part for path in folder.glob("*/") for part in find_parts(path)]
        if parts:
            voxels, size = np.unique(np.concatenate([p.voxels for p in parts])), 0
            for file in folder.rglob("*"):
                with contextlib.suppress(OSError):  # another process removes it
                    size += file.stat().st_size
            described.append(
                {
                    "subject": folder.parent.name,
                    "session": folder.name,
                    "n_voxels": len(voxels),
                    "size": size,
                }
            )
    return described
