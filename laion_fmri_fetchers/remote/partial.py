"""An unfinished file on disk, which any number of processes may write to.

It lies in the folder of unfinished files under a name made of its target and version::

    3f2a….part      its bytes, each at its place
    3f2a….blocks    a line for each block that is finished: inode, start, stop

Whoever writes, writes the same bytes to the same place. So two processes that fetch the
same file side by side only waste bandwidth, and what a killed one finished is used by
the next.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checksums import check_file, etag_of, n_parts_of, part_sizes
from .client import Fault
from .disks import try_lock, unlock

if TYPE_CHECKING:
    from .download import Download

# Bytes of a block: at 25 MB/s per connection 0.3 s, which hides a latency of 50 ms.
BLOCK = 8 * 2**20
# Bytes of a part of a multi-part object that is fetched as a block, such that its MD5
# is taken from the bytes in hand: S3 has no smaller ones but the last.
PART_SIZES = range(5 * 2**20, 16 * 2**20 + 1)
# Seconds between notes of finished blocks, where each needs the disk to be waited for.
_NOTE_EVERY = 1.0
# Seconds after which unfinished files are removed: a weekend, and a day more.
_OLD = 3 * 24 * 3600.0


class Partial:
    """An unfinished file of one version.

    Parameters
    ----------
    folder : str
        Where unfinished files are.
    download : Download
        What it is to become; its size is known.
    is_whole : bool
        Whether it is fetched in one request, as the server ignores Range.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, folder: str, download: Download, is_whole: bool):
        self.download, self.is_whole = download, is_whole
        self.is_closed = False  # nothing more is to be written
        size = download.size or 0
        name = part_name(folder, download)
        self.path = os.path.join(folder, f"{name}.part")
        self._list = os.path.join(folder, f"{name}.blocks")
        step, self.algorithm = _block_size(download, is_whole)
        blocks = [(a, min(a + step, size)) for a in range(0, max(size, 1), step)]
        # It stays open, so that its inode is given to no other file meanwhile.
        self._stream = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._inode = os.fstat(self._stream.fileno()).st_ino
        # The list is opened once and never made again: what is noted through this
        # descriptor after another process published the file is noted nowhere.
        self._notes: Any = io.BytesIO()
        if len(blocks) > 1:
            self._notes = open(self._list, "a+b", buffering=0)  # noqa: SIM115
        self._notes.seek(0)
        self._unnoted, self._noted_at = b"", time.monotonic()
        self._has_checksum = bool(download.sha256 or n_parts_of(download.etag))
        noted = set(self._notes.read().split(b"\n"))
        self.missing = [block for block in blocks if self._line(*block) not in noted]
        self.n_resumed = size - sum(stop - start for start, stop in self.missing)
        self._blocks, self._digests = blocks, dict[int, bytes]()

    def _line(self, start: int, stop: int) -> bytes:
        return f"{self._inode} {start} {stop}".encode()

    def open(self) -> Any:
        """Return a stream that writes to the file.

        Raises
        ------
        Fault
            If the unfinished file is no longer ours: another process published it, or
            something removed it.
        """
        try:
            stream = open(self.path, "r+b")  # noqa: SIM115
            if os.fstat(stream.fileno()).st_ino == self._inode:
                return stream
            stream.close()
        except FileNotFoundError:
            pass
        raise Fault("its unfinished file was removed", remedy="lost")

    def note(
        self, start: int, stop: int, digest: bytes | None, date: float | None
    ) -> None:
        """Take note of a finished block, for this process and the next one."""
        if digest:
            self._digests[start] = digest
        if self.download.last_modified is None:
            self.download = self.download._replace(last_modified=date)
        self._unnoted += self._line(start, stop) + b"\n"
        if self._has_checksum or time.monotonic() - self._noted_at > _NOTE_EVERY:
            self._write_notes()

    def _write_notes(self) -> None:
        if not self._has_checksum:
            # Nothing else would tell that a machine failed before its disk had it.
            os.fsync(self._stream.fileno())
        self._notes.write(self._unnoted)
        self._unnoted, self._noted_at = b"", time.monotonic()

    def publish(self) -> None:
        """Verify the file, give it its name, and the object's date.

        Raises
        ------
        Fault
            If it is not what it should be (``"mismatch"``), or no longer there
            (``"lost"``).
        """
        _, _, target, size, etag, sha256, date = self.download
        check = functools.partial(check_file, size=size, etag=etag, sha256=sha256)
        try:
            self._check_that_it_is_ours()
            # Where not all digests are in hand, or they are wrong, it is read again.
            digests = [digest for _, digest in sorted(self._digests.items())]
            is_multipart, is_known = "-" in str(etag), len(digests) == len(self._blocks)
            got = etag_of(digests, is_multipart=is_multipart) if is_known else None
            if got != (sha256 or etag) and (wrong := check(self.path)):
                raise Fault(wrong, remedy="mismatch")
            # The list goes first: a newcomer would pair it with a new, empty file.
            self._unnoted = b""
            if len(self._blocks) > 1:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._list)
            # Another process may publish the file right now, and a third one begin it
            # anew: it gets a name that no other process knows, and is looked at again.
            self._check_that_it_is_ours()
            taken = f"{self.path[:-5]}-{uuid.uuid4().hex}.part"
            os.replace(self.path, taken)
            if os.stat(taken).st_ino != self._inode:
                os.unlink(taken)
                raise FileNotFoundError
        except FileNotFoundError:
            raise Fault("its unfinished file was removed", remedy="lost") from None
        try:
            _move(taken, target)
        except OSError:
            os.replace(taken, self.path)
            if len(self._blocks) > 1:
                lines = [self._line(*block) for block in self._blocks]
                Path(self._list).write_bytes(b"\n".join(lines))
            raise
        # Only now: with the object's date, an unfinished file would look forgotten.
        if date is not None:
            with contextlib.suppress(OSError):  # some mounts keep no times
                os.utime(target, (date, date))

    def _check_that_it_is_ours(self) -> None:
        if os.stat(self.path).st_ino != self._inode:
            raise FileNotFoundError

    def close(self) -> None:
        """Leave the file for a later call to go on from."""
        self.is_closed = True
        if self._unnoted:
            with contextlib.suppress(OSError):
                self._write_notes()
        self._stream.close()
        self._notes.close()

    def remove(self) -> None:
        """Delete the file, unless another took its place, and what is known of it."""
        self.close()
        with contextlib.suppress(OSError):
            self._check_that_it_is_ours()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._list)
            os.unlink(self.path)


def _move(path: str, target: Path) -> None:
    """Move a file such that it appears whole, also to another disk."""
    os.makedirs(target.parent, exist_ok=True)
    try:
        os.replace(path, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    # A folder of the data directory may be a link to another disk.
    near = target.parent / f".{os.path.basename(path)}"
    try:
        shutil.copy2(path, near)
        os.replace(near, target)
    except OSError:
        near.unlink(missing_ok=True)
        raise
    os.unlink(path)


def _block_size(download: Download, is_whole: bool) -> tuple[int, str | None]:
    """Return the bytes of a block, and the checksum that is taken from bytes in hand.

    Where none is, the whole file is read once more at the end.
    """
    etag, sha256 = download.etag, download.sha256
    n_bytes, n_parts = max(download.size or 0, 1), n_parts_of(etag)
    if is_whole or n_bytes <= BLOCK:
        return n_bytes, "sha256" if sha256 else "md5" if n_parts == 1 else None
    if "-" in (etag or "") and n_parts and not sha256:
        for part in part_sizes(n_bytes, n_parts):
            if part in PART_SIZES:
                return part, "md5"
    return BLOCK, None


def part_name(folder: str, download: Download) -> str:
    """Return the name of an unfinished file, made of its target and version.

    Where nothing tells one version from another, no other call may go on with it.
    """
    identity = download.sha256 or download.etag or uuid.uuid4()
    return lock_name(folder, download.path, f"\n{download.size}\n{identity}")


def lock_name(folder: str, target: Path, version: str = "") -> str:
    """Return the name of the lock of a target.

    It is made of relative paths, so that a data directory can be moved.
    """
    text = os.path.relpath(target, folder) + version
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def remove_left(folder: str) -> None:
    """Remove what killed processes left: locks, and what nobody wrote to for days."""
    with contextlib.suppress(OSError):
        # Lists come before their files, as when a file is published.
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            stem, _, kind = name.rpartition(".")
            if kind == "lock" and (lock := try_lock(folder, stem)):
                unlock(lock)
            elif kind in ("blocks", "part"):
                part = os.path.join(folder, f"{stem}.part")
                with contextlib.suppress(OSError):
                    is_old = time.time() - os.path.getmtime(path) > _OLD
                    if is_old or not os.path.exists(part):
                        os.unlink(path)
