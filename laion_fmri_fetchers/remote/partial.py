"""An unfinished file on disk, which any number of processes may write to.

It lies in the folder of unfinished files under a name made of its target and version::

    3f2a….part      its bytes, each at its place
    3f2a….blocks    a line for each block that is finished: inode, start, stop
    3f2a….done      that list, while the file gets its name

Whoever writes, writes the same bytes to the same place. So two processes that fetch the
same file side by side only waste bandwidth, and what a killed one finished is used by
the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from .checksums import check_file, etag_of, n_parts_of, part_sizes
from .client import Fault
from .locks import try_lock, unlock

BLOCK = 8 * 2**20
"""Bytes of a block: at 25 MB/s per connection 0.3 s, which hides a latency of 50 ms."""
PART_SIZES = range(5 * 2**20, 16 * 2**20 + 1)
"""Bytes of a part of a multi-part object that is fetched as a block, such that its MD5
is taken from the bytes in hand: S3 has no smaller ones but the last."""
_OLD = 3 * 24 * 3600.0
"""Seconds after which unfinished files are removed: a weekend, and a day more."""


class Version(NamedTuple):
    """What is known of an object: from the listing, or from the server."""

    size: int | None
    etag: str | None = None
    sha256: str | None = None
    last_modified: float | None = None


@dataclasses.dataclass
class Block:
    """A piece of a file; ``place`` is how far it has come.

    Only the thread that fetches it changes it.
    """

    start: int
    stop: int
    place: int
    hasher: Any = None
    address: str = dataclasses.field(default="", repr=False)
    """Where it was last asked for; it may be secret."""

    def rewind(self) -> None:
        """Begin anew."""
        self.place = self.start
        self.hasher = hashlib.new(self.hasher.name) if self.hasher else None


class Partial:
    """An unfinished file of one version.

    Parameters
    ----------
    folder : str
        Where unfinished files are.
    target : Path
        Where the file goes.
    version : Version
        Its size is known.
    is_whole : bool
        Whether it is fetched in one request, as the server ignores Range.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, folder: str, target: Path, version: Version, is_whole: bool):
        self.target, self.version, self.is_whole = target, version, is_whole
        self.is_closed = False
        """Whether nothing more is to be written."""
        size = version.size or 0
        name = part_name(folder, target, version)
        self.path = os.path.join(folder, f"{name}.part")
        self._list = os.path.join(folder, f"{name}.blocks")
        self._step, algorithm = _block_size(version, is_whole)
        starts = range(0, max(size, 1), self._step)
        spans = [(a, min(a + self._step, size)) for a in starts]
        done: set[tuple[int, int]] = set()
        # It stays open, so that its inode is given to no other file meanwhile.
        self._stream = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._inode = os.fstat(self._stream.fileno()).st_ino
        # The list is opened once and never made again: what is noted through this
        # descriptor after another process published the file is noted nowhere.
        self._notes = None
        if len(spans) > 1:
            self._notes = open(self._list, "a+b", buffering=0)  # noqa: SIM115
            self._notes.seek(0)
            done = self._read_list(self._notes.read()) & set(spans)
        self.n_resumed = sum(stop - start for start, stop in done)
        self._digests: dict[int, bytes] = {}
        self.missing = [
            Block(a, b, a, hashlib.new(algorithm) if algorithm else None)
            for a, b in spans
            if (a, b) not in done
        ]

    def _read_list(self, content: bytes) -> set[tuple[int, int]]:
        """Return the finished blocks; torn lines and other files' do not count."""
        done = set()
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError):
                inode, start, stop = map(int, line.split())
                if inode == self._inode:
                    done.add((start, stop))
        return done

    def open(self, block: Block) -> Any:
        """Return a stream that writes where a block goes on.

        Raises
        ------
        Fault
            If the unfinished file is no longer ours: another process published it, or
            something removed it.
        """
        try:
            stream = open(self.path, "r+b")  # noqa: SIM115
        except FileNotFoundError:
            raise Fault("its unfinished file was removed", remedy="lost") from None
        if os.fstat(stream.fileno()).st_ino != self._inode:
            stream.close()
            raise Fault("its unfinished file was replaced", remedy="lost")
        stream.seek(block.place)
        return stream

    def note_date(self, last_modified: float | None) -> None:
        """Take the object's date from the server, where it was not listed."""
        if self.version.last_modified is None:
            self.version = self.version._replace(last_modified=last_modified)

    def note(self, block: Block) -> None:
        """Take note of a finished block, for this process and the next one."""
        if block.hasher:
            self._digests[block.start] = block.hasher.digest()
        if self._notes:
            if not (self.version.sha256 or n_parts_of(self.version.etag)):
                # Nothing else would tell that a machine failed before its disk had it.
                os.fsync(self._stream.fileno())
            line = f"{self._inode} {block.start} {block.stop}\n"
            self._notes.write(line.encode())

    def publish(self) -> None:
        """Verify the file, give it the object's date, and its name.

        Raises
        ------
        Fault
            If it is not what it should be (``"mismatch"``), or no longer there
            (``"lost"``).
        """
        try:
            self._check_that_it_is_ours()
            if wrong := self._mismatch():
                raise Fault(wrong, remedy="mismatch")
            if self.version.last_modified is not None:
                os.utime(self.path, (self.version.last_modified,) * 2)
            # The list goes first: a newcomer would pair it with a new, empty file.
            aside = f"{self._list[:-7]}.done"
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._list, aside)
            try:
                self._check_that_it_is_ours()
                self._rename()
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(aside, self._list)
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            if os.stat(self.target).st_ino != self._inode and is_other(
                self.target, self.version
            ):
                # Between the last two steps another process published the file, and
                # a third one began it anew: what we renamed is that unfinished one.
                os.unlink(self.target)
                raise FileNotFoundError
        except FileNotFoundError:
            raise Fault("its unfinished file was removed", remedy="lost") from None

    def _check_that_it_is_ours(self) -> None:
        if os.stat(self.path).st_ino != self._inode:
            raise FileNotFoundError

    def _mismatch(self) -> str | None:
        """Return what is wrong with the bytes on disk; None if nothing is."""
        size, etag, sha256, _ = self.version
        n_blocks = -(-max(size or 0, 1) // self._step)
        if os.path.getsize(self.path) == size and len(self._digests) == n_blocks:
            digests = [self._digests[start] for start in sorted(self._digests)]
            is_multipart = "-" in (etag or "")
            if etag_of(digests, is_multipart=is_multipart) == (sha256 or etag):
                return None
        return check_file(self.path, size=size, etag=etag, sha256=sha256)

    def _rename(self) -> None:
        os.makedirs(self.target.parent, exist_ok=True)
        try:
            os.replace(self.path, self.target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        # A folder of the data directory may be a link to another disk.
        near = self.target.parent / f".{os.path.basename(self.path)}"
        try:
            shutil.copy2(self.path, near)
            self._inode = near.stat().st_ino
            os.replace(near, self.target)
        except OSError:
            near.unlink(missing_ok=True)
            raise
        os.unlink(self.path)

    def close(self) -> None:
        """Leave the file for a later call to go on from."""
        self.is_closed = True
        self._stream.close()
        if self._notes:
            self._notes.close()

    def remove(self) -> None:
        """Delete the file, unless another took its place, and what is known of it."""
        self.close()
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino != self._inode:
                return
        for path in (self._list, self.path):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _block_size(version: Version, is_whole: bool) -> tuple[int, str | None]:
    """Return the bytes of a block, and the checksum that is taken from bytes in hand.

    Where none is, the whole file is read once more at the end.
    """
    size, etag, sha256, _ = version
    n_bytes, n_parts = max(size or 0, 1), n_parts_of(etag)
    if is_whole or n_bytes <= BLOCK:
        if sha256:
            return n_bytes, "sha256"
        return n_bytes, "md5" if n_parts == 1 else None
    if "-" in (etag or "") and not sha256:
        for part in part_sizes(n_bytes, n_parts):
            if part in PART_SIZES:
                return part, "md5"
    return BLOCK, None


def part_name(folder: str, target: Path, version: Version | None = None) -> str:
    """Return the name of a target's unfinished file, or without a version, of its lock.

    It is made of relative paths, so that a data directory can be moved. Where nothing
    tells one version from another, no other call may go on with the file.
    """
    text = os.path.relpath(target, folder)
    if version:
        identity = version.sha256 or version.etag or uuid.uuid4()
        text = f"{text}\n{version.size}\n{identity}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def is_other(path: Path, version: Version) -> str | None:
    """Return why a file is not of a version, or is not there; None if it is."""
    try:
        size, etag, sha256, _ = version
        return check_file(path, size=size, etag=etag, sha256=sha256)
    except OSError as error:
        return str(error.strerror)


def remove_left(folder: str) -> None:
    """Remove what killed processes left: locks, and what nobody wrote to for days."""
    with contextlib.suppress(OSError):
        # Lists come before their files, as when a file is published.
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            stem, _, kind = name.rpartition(".")
            if kind == "lock" and (lock := try_lock(folder, stem)):
                unlock(lock)
            elif kind in ("blocks", "done", "part"):
                part = os.path.join(folder, f"{stem}.part")
                with contextlib.suppress(OSError):
                    is_old = time.time() - os.path.getmtime(path) > _OLD
                    if is_old or not os.path.exists(part):
                        os.unlink(path)
