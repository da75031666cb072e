"""An unfinished file on disk, which only this process writes to.

While it is fetched, a file lives in the partial folder, under names that no other
process writes to::

    {stem}.{owner}.part    its bytes, each at its offset
    {stem}.{owner}.done    journal: what it is, then finished ranges
    {stem}.lock            held by who fetches it

The stem is a hash of where the file will go. What others left of a file is copied from,
never written to. The journal is written after the bytes, a line at a time: a line cut
off by a crash is not read, and bytes that a crash of the machine lost do not pass the
hash of the whole file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable

from .checksums import Chain, check_file, mismatch, ways_to_check
from .owners import forget, is_gone, new_owner
from .positions import read_at, write_at
from .ranges import Ranges, gaps, length, merged

_MIB = 2**20
_BINARY = getattr(os, "O_BINARY", 0)
_CLOSED = _UNKNOWN = -1


def stem(relative: str) -> str:
    """Return how the names of a file's partial files begin."""
    return hashlib.sha256(os.fsencode(relative)).hexdigest()[:24]


def names_of(folder: str, file_stem: str, owner: str) -> tuple[str, str]:
    """Return the paths of an owner's unfinished file and its journal."""
    base = os.path.join(folder, f"{file_stem}.{owner}")
    return f"{base}.part", f"{base}.done"


class Partial:
    """A file that only this process writes to, until it is whole.

    Parameters
    ----------
    folder : str
        The partial folder.
    target : str
        Where the file will go.
    sha256 : str or None
        What it must have.
    is_stopped : callable
        Tells whether to leave off.
    """

    def __init__(
        self,
        folder: str,
        target: str,
        sha256: str | None,
        is_stopped: Callable[[], bool],
    ):
        self.target, self.relative = target, os.path.relpath(target, folder)
        self.size = _UNKNOWN
        self.etag: str | None = None
        self.sha256 = sha256
        self.done: Ranges = []
        self.chains: list[Chain] = []
        self._is_stopped = is_stopped
        self._lock = threading.RLock()
        self._owner = new_owner()
        self._part, self._journal_path = names_of(
            folder, stem(self.relative), self._owner
        )
        self._journal: int | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY
        self._file = os.open(self._part, flags, 0o666)

    def know(self, size: int, etag: str | None) -> None:
        """Go on with a size and an ETag that are certain now."""
        self.size, self.etag = size, etag
        self.chains = next(ways_to_check(size, etag, self.sha256), [])

    def take_chains(self, start: int, stop: int) -> list[Chain]:
        """Return the hashes that a range can feed as it arrives."""
        with self._lock:
            chains = [
                chain
                for chain in self.chains
                if start <= chain.at < min(stop, chain.stop) and not chain.busy
            ]
            for chain in chains:
                chain.busy = True
        return chains

    def put(self, at: int, chunk: bytes | memoryview, chains: Iterable[Chain]) -> None:
        """Write a chunk at its offset, and hash it."""
        write_at(self._file, chunk, at)
        for chain in chains:
            chain.feed(at, chunk)

    def record(self, start: int, stop: int) -> None:
        """Note in the journal that a range is on disk."""
        if not self.chains and stop > start:
            # Without a hash, nothing would show that a crash of the machine lost bytes
            # of which the journal says that they are on disk.
            os.fsync(self._file)
        with self._lock:
            if stop > start and self._file != _CLOSED:
                self.done = merged([*self.done, (start, stop)])
                if self.done != [(0, self.size)]:
                    self._note(f"[{start}, {stop}]")

    def release(self, chains: Iterable[Chain]) -> None:
        """Give hashes back, and go on with those whose next bytes are on disk."""
        with self._lock:
            for chain in chains:
                chain.busy = False
        self.catch_up()

    def _note(self, line: str) -> None:
        if self._journal is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _BINARY
            self._journal = os.open(self._journal_path, flags, 0o666)
            names = ("relative", "size", "etag", "sha256")
            header = {name: getattr(self, name) for name in names}
            line = f"{json.dumps(header)}\n{line}"
        os.write(self._journal, f"{line}\n".encode())

    def catch_up(self) -> None:
        """Hash what arrived ahead of its turn, now that its turn has come."""
        for chain in self.chains:
            while stop := self._next_stop(chain):
                try:
                    while chain.at < stop and not self._is_stopped():
                        chunk = read_at(
                            self._file, min(_MIB, stop - chain.at), chain.at
                        )
                        if not chunk:
                            raise OSError(errno.EIO, os.strerror(errno.EIO))
                        chain.feed(chain.at, chunk)
                finally:
                    chain.busy = False

    def _next_stop(self, chain: Chain) -> int:
        """Return how far a hash can go, and reserve it; 0 where it cannot."""
        with self._lock:
            stops = [b for a, b in self.done if a <= chain.at < min(b, chain.stop)]
            if chain.busy or not stops or self._is_stopped():
                return 0
            chain.busy = True
            return min(stops[0], chain.stop)

    def copy(self, path: str, ranges: Ranges) -> int:
        """Take finished ranges of another's file; return the number of bytes."""
        before = length(self.done)
        with open(path, "rb", buffering=0) as source:
            for piece in ranges:
                for start, stop in gaps(self.done, *piece):
                    at = source.seek(start)
                    while at < stop and not self._is_stopped():
                        chunk = source.read(min(_MIB, stop - at))
                        if not chunk:
                            break
                        self.put(at, chunk, self.chains)
                        self.record(at, at + len(chunk))
                        at += len(chunk)
        return length(self.done) - before

    def mismatch(self) -> str | None:
        """Return the mismatch of the whole file."""
        self.catch_up()
        wrong = mismatch(self.chains, self.etag, self.sha256)
        if wrong and len([*ways_to_check(self.size, self.etag, self.sha256)]) > 1:
            wrong = check_file(self._part, etag=self.etag)
        return wrong

    def publish(self) -> None:
        """Give the whole, verified file its final name."""
        descriptor, self._file = self._file, _CLOSED
        is_kept = False
        try:
            os.close(descriptor)
            is_kept = True
            try:
                _move(self._part, self.target)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self.target), exist_ok=True)
                _move(self._part, self.target)
            is_kept = False
        finally:
            if is_kept:
                with contextlib.suppress(OSError):
                    self._note(f"[0, {self.size}]")
            self._leave(is_kept)

    def close(self, keep: bool) -> None:
        """Leave the file for a later run to go on from, or for good."""
        with self._lock:
            descriptor, self._file = self._file, _CLOSED
            if descriptor != _CLOSED:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                self._leave(keep)

    def is_published(self) -> bool:
        """Tell whether the whole, right file is in its place, by another's hand."""
        try:
            wrong = check_file(
                self.target, size=self.size, etag=self.etag, sha256=self.sha256
            )
        except OSError:
            return False
        return not wrong

    def _leave(self, keep: bool) -> None:
        journal, self._journal = self._journal, None
        useless = [] if keep and journal is not None else [self._part]
        if journal is not None:
            # On NFS, closing tells of a full disk once more.
            with contextlib.suppress(OSError):
                os.write(journal, b"[]\n")
            with contextlib.suppress(OSError):
                os.close(journal)
            if useless:
                useless.append(self._journal_path)
        for path in useless:
            with contextlib.suppress(OSError):
                os.unlink(path)
        forget(self._owner)


def _move(part: str, target: str) -> None:
    """Rename a file; where that leads to another file system, copy it first."""
    try:
        os.replace(part, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_over(part, target)


def _copy_over(part: str, target: str) -> None:
    """Move a file to another file system, where it appears whole, by a rename."""
    folder, name = os.path.split(target)
    file_stem = os.path.basename(part).partition(".")[0]
    for left in os.listdir(folder):
        hidden, stem_of_left, owner, kind = [*left.split("."), "", "", ""][:4]
        if (hidden, stem_of_left, kind) == ("", file_stem, "part") and is_gone(owner):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, left))
    near = os.path.join(folder, f".{os.path.basename(part)}")
    try:
        shutil.copyfile(part, near)
        os.replace(near, os.path.join(folder, name))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(near)
        if isinstance(error, OSError) and error.errno and os.path.exists(part):
            # Say which disk it is: the one that is copied to.
            raise OSError(error.errno, os.strerror(error.errno), near) from None
        raise
    os.unlink(part)
