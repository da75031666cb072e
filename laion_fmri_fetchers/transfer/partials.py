"""Unfinished files on disk: their ranges, journals, hashes and locks.

While it is fetched, a file lives in the partial folder, under names that no other
process writes to::

    {stem}.{host}-{process}-{random}.part    its bytes, each at its offset
    {stem}.{host}-{process}-{random}.done    journal: what it is, then finished ranges
    {stem}.lock                              held by who fetches it

The stem is a hash of where the file will go. A lock only saves double work; small files
of a folder share one. What others left of a file is copied from, never written to. The
journal is written after the bytes, a line at a time: a line cut off by a crash is not
read, and bytes that a crash of the machine lost do not pass the hash of the whole file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MIB = 2**20
_IDLE = 3600.0
_OLD = 3 * 24 * 3600.0
_BINARY = getattr(os, "O_BINARY", 0)
_CLOSED = _UNKNOWN = -1


# --- Checking a file against what is known of it ---------------------------------


def part_sizes(size: int, n_parts: int) -> list[int]:
    """Return the usual part sizes with which an object has so many parts.

    Parameters
    ----------
    size : int
        Bytes of the object.
    n_parts : int
        The number at the end of its ETag.

    Returns
    -------
    list of int
        Bytes of a part; powers of two first. Empty where no usual size fits.

    Examples
    --------
    >>> part_sizes(20 * 2**20, 3) == [8 * 2**20]
    True
    >>> part_sizes(20 * 2**20, 7)
    []
    """
    if n_parts == 1:
        return [max(size, 1)]
    powers = [2**k * _MIB for k in range(13)]
    usual = powers + [5 * p for p in powers] + [n * _MIB for n in (15, 25, 50, 100)]
    return [p for p in usual if -(-size // p) == n_parts]


def check_file(
    path: str | os.PathLike,
    *,
    size: int | None = None,
    etag: str | None = None,
    sha256: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> str | None:
    """Check a file against what is known of it.

    Parameters
    ----------
    path : path
        The file.
    size : int, optional
        Bytes it must have.
    etag : str, optional
        ETag of its object. It is checked where it is an MD5, or that of a multi-part
        object with a usual part size.
    sha256 : str, optional
        Hexadecimal SHA-256; where it is given, the ETag is not looked at.
    progress : callable, optional
        Called with the number of bytes after each piece that was read.

    Returns
    -------
    str or None
        What is wrong, with both values; None if nothing is.

    Raises
    ------
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as stream:
    ...     _ = stream.write(b"hello") and stream.flush()
    ...     check_file(stream.name, size=6)
    ...     check_file(stream.name, etag="5d41402abc4b2a76b9719d911017c592")
    'it has 5 bytes instead of 6'
    """
    with open(path, "rb", buffering=0) as stream:
        found = os.fstat(stream.fileno()).st_size
        if size is not None and found != size:
            return f"it has {found} bytes instead of {size}"
        wrong = None
        for chains in _ways_to_check(found, etag, sha256):
            at = stream.seek(0)
            while chunk := stream.read(_MIB):
                for chain in chains:
                    chain.feed(at, chunk)
                at += len(chunk)
                if progress:
                    progress(len(chunk))
            again = _mismatch(chains, etag, sha256)
            if again is None:
                return None
            wrong = wrong or again
        return wrong


class Chain:
    """The hash of bytes ``start`` to ``stop`` of a file, which are fed in order."""

    __slots__ = ("at", "busy", "hasher", "stop")

    def __init__(self, algorithm: str, start: int, stop: int):
        self.at, self.stop = start, stop
        self.hasher = hashlib.new(algorithm, usedforsecurity=False)
        self.busy = False

    def feed(self, offset: int, chunk: bytes | memoryview) -> None:
        """Take what is next for the hash from a chunk at an offset of the file."""
        begin, end = self.at - offset, min(self.stop - offset, len(chunk))
        if 0 <= begin < end:
            whole = begin == 0 and end == len(chunk)
            self.hasher.update(chunk if whole else memoryview(chunk)[begin:end])
            self.at = offset + end


def _ways_to_check(
    size: int, etag: str | None, sha256: str | None
) -> Iterator[list[Chain]]:
    """Yield lists of hashes, any of which shows that a file is right."""
    if sha256:
        yield [Chain("sha256", 0, size)]
        return
    match = re.fullmatch(r"[0-9a-f]{32}(?:-([1-9]\d{0,4}))?", bare(etag or ""))
    if match and not match[1]:
        yield [Chain("md5", 0, size)]
    elif match:
        for part in part_sizes(size, int(match[1])):
            starts = range(0, max(size, 1), part)
            yield [Chain("md5", a, min(a + part, size)) for a in starts]


def _mismatch(chains: list[Chain], etag: str | None, sha256: str | None) -> str | None:
    """Return what the hashes of a whole file say against it."""
    if not chains:
        return None
    name, expected = (
        ("SHA-256", sha256.lower()) if sha256 else ("ETag", bare(etag or ""))
    )
    if "-" in expected:
        joined = b"".join(chain.hasher.digest() for chain in chains)
        parts = hashlib.md5(joined, usedforsecurity=False).hexdigest()
        found = f"{parts}-{len(chains)}"
    else:
        found = chains[0].hasher.hexdigest()
    return None if found == expected else f"its {name} is {found} instead of {expected}"


def bare(etag: str) -> str:
    """Return an ETag without what surrounds it.

    >>> bare('W/"abc"')
    'abc'
    """
    return etag.strip().removeprefix("W/").strip('"')


# --- Ranges ----------------------------------------------------------------------

Ranges = list[tuple[int, int]]


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges sorted, with those that touch joined.

    >>> merged([(8, 9), (0, 4), (4, 6)])
    [(0, 6), (8, 9)]
    """
    joined: Ranges = []
    for start, stop in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def gaps(done: Ranges, start: int, stop: int) -> Ranges:
    """Return what of a range is not in merged ranges.

    >>> gaps([(0, 4), (6, 8)], 2, 10)
    [(4, 6), (8, 10)]
    """
    missing = []
    for a, b in [*done, (stop, stop)]:
        if start < min(a, stop):
            missing.append((start, min(a, stop)))
        start = max(start, b)
    return missing


def cut(ranges: Ranges, step: int) -> Ranges:
    """Cut ranges at the multiples of a step.

    >>> cut([(3, 10)], 4)
    [(3, 4), (4, 8), (8, 10)]
    """
    return [
        (max(a, start), min(a + step, stop))
        for start, stop in ranges
        for a in range(start - start % step, stop, step)
    ]


def length(ranges: Ranges) -> int:
    """Return the number of bytes in merged ranges."""
    return sum(stop - start for start, stop in ranges)


# --- Who writes to a file --------------------------------------------------------

_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40] or "host"
_active: set[str] = set()


def _new_owner() -> str:
    owner = f"{_HOST}-{os.getpid()}-{secrets.token_hex(6)}"
    _active.add(owner)
    return owner


def _is_gone(owner: str) -> bool:
    """Tell whether it is certain that nobody writes under an owner's name any more."""
    host, process = [*owner.rsplit("-", 2), "", ""][:2]
    if host != _HOST or not process.isdecimal():
        return False
    if int(process) == os.getpid():
        return owner not in _active
    if os.name == "nt":
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


# --- A file that this process writes to ------------------------------------------


def stem(relative: str) -> str:
    """Return how the names of a file's partial files begin."""
    return hashlib.sha256(os.fsencode(relative)).hexdigest()[:24]


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
        self._owner = _new_owner()
        self._part, self._journal_path = _names(
            folder, stem(self.relative), self._owner
        )
        self._journal: int | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY
        self._file = os.open(self._part, flags, 0o666)

    def know(self, size: int, etag: str | None) -> None:
        """Go on with a size and an ETag that are certain now."""
        self.size, self.etag = size, etag
        self.chains = next(_ways_to_check(size, etag, self.sha256), [])

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
        written = 0
        while written < len(chunk):
            rest = memoryview(chunk)[written:]
            written += _pwrite(self._file, rest, at + written)
        for chain in chains:
            chain.feed(at, chunk)

    def record(self, start: int, stop: int) -> None:
        """Note in the journal that a range is on disk."""
        if not self.chains and stop > start:
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
                        chunk = _pread(self._file, min(_MIB, stop - chain.at), chain.at)
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

    def copy(self, leftover: Leftover) -> int:
        """Take the finished ranges of another's file; return the number of bytes."""
        before = length(self.done)
        with open(leftover.part, "rb", buffering=0) as source:
            for piece in leftover.done:
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
        """Return what is wrong with the whole file."""
        self.catch_up()
        wrong = _mismatch(self.chains, self.etag, self.sha256)
        if wrong and len([*_ways_to_check(self.size, self.etag, self.sha256)]) > 1:
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

    def _leave(self, keep: bool) -> None:
        journal, self._journal = self._journal, None
        useless = [] if keep and journal is not None else [self._part]
        if journal is not None:
            with contextlib.suppress(OSError):
                os.write(journal, b"[]\n")
            os.close(journal)
            if useless:
                useless.append(self._journal_path)
        for path in useless:
            with contextlib.suppress(OSError):
                os.unlink(path)
        _active.discard(self._owner)


def _names(folder: str, file_stem: str, owner: str) -> tuple[str, str]:
    base = os.path.join(folder, f"{file_stem}.{owner}")
    return f"{base}.part", f"{base}.done"


def _move(part: str, target: str) -> None:
    """Rename a file; where that leads to another file system, copy it first."""
    try:
        os.replace(part, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        name = f".{os.path.basename(part)}"
        near = os.path.join(os.path.dirname(target), name)
        shutil.copyfile(part, near)
        os.replace(near, target)
        os.unlink(part)


if hasattr(os, "pwrite"):
    _pread, _pwrite = os.pread, os.pwrite
else:
    _seek_lock = threading.Lock()

    def _pread(descriptor: int, size: int, offset: int, /) -> bytes:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)

    def _pwrite(descriptor: int, chunk: Buffer, offset: int, /) -> int:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, chunk)


# --- What unfinished downloads leave ---------------------------------------------


class Leftover(NamedTuple):
    """An unfinished file, perhaps of another process.

    ``is_free`` says that nobody writes to it any more, as far as one can know.
    """

    part: str
    journal: str
    header: dict[str, Any]
    done: Ranges
    is_free: bool

    def fits(self, size: int | None, etag: str | None, sha256: str | None) -> bool:
        """Tell whether it holds bytes of what is to be fetched."""
        header = self.header
        return (
            bool(self.done)
            and header["sha256"] == sha256
            and size in (None, header["size"])
            and etag in (None, header["etag"])
            and bool(header["etag"] or sha256)
        )

    def remove(self) -> None:
        """Delete it."""
        for path in (self.journal, self.part):
            with contextlib.suppress(OSError):
                os.unlink(path)


def leftovers(folder: str) -> dict[str, list[Leftover]]:
    """Return the unfinished files in the partial folder, by stem."""
    owners = set()
    for name in os.listdir(folder):
        file_stem, _, rest = name.partition(".")
        owner, _, kind = rest.partition(".")
        if kind in ("part", "done"):
            owners.add((file_stem, owner))
    found: dict[str, list[Leftover]] = {}
    for file_stem, owner in owners:
        part, journal = _names(folder, file_stem, owner)
        header, done, is_left = _read_journal(journal)
        leftover = Leftover(part, journal, header, done, is_left or _is_gone(owner))
        found.setdefault(file_stem, []).append(leftover)
    return found


def _read_journal(journal: str) -> tuple[dict[str, Any], Ranges, bool]:
    """Return header, finished ranges, and whether its writer is done with it."""
    try:
        with open(journal, "rb") as stream:
            first, *lines = stream.read().split(b"\n")[:-1]
        header = json.loads(first)
        ranges = [json.loads(line) for line in lines]
        done = merged((a, b) for a, b in filter(None, ranges))
        is_valid = (
            header.keys() == {"relative", "size", "etag", "sha256"}
            and isinstance(header["size"], int)
            and not gaps([(0, header["size"])], done[0][0], done[-1][1])
        )
    except (OSError, ValueError, TypeError, AttributeError, IndexError):
        is_valid = False
    return (header, done, [] in ranges) if is_valid else ({}, [], False)


def clean(folder: str, keep: Collection[str] = (), locks: bool = True) -> None:
    """Remove what nobody will need any more.

    Parameters
    ----------
    folder : str
        The partial folder.
    keep : collection of str
        Stems of files that are wanted, even where there is one of the same size.
    locks : bool, default=True
        Whether to remove also the files of locks that nobody holds.
    """
    try:
        names = os.listdir(folder)
        groups = leftovers(folder)
    except OSError:
        return
    for file_stem, group in groups.items():
        for leftover in group:
            age = min(_age(leftover.part), _age(leftover.journal))
            useless = file_stem not in keep and _is_useless(folder, leftover)
            if age > _OLD or (useless and (leftover.is_free or age > _IDLE)):
                leftover.remove()
    for name in names:
        if locks and name.endswith(".lock"):
            lock = try_lock(folder, name.removesuffix(".lock"))
            if lock:
                unlock(lock)


def _is_useless(folder: str, leftover: Leftover) -> bool:
    header = leftover.header
    return not header or is_whole(
        os.path.normpath(os.path.join(folder, header["relative"])), header["size"]
    )


def _age(path: str) -> float:
    try:
        return time.time() - os.path.getmtime(path)
    except OSError:
        return float("inf")


def is_whole(path: str | os.PathLike, size: int | None) -> bool:
    """Tell whether a file is there with the size that it must have."""
    try:
        return os.path.isfile(path) and os.path.getsize(path) == size
    except OSError:
        return False


# --- Locks -----------------------------------------------------------------------


def try_lock(folder: str, name: str) -> FileLock | None:
    """Take a lock, or return None: another holds it.

    Where locks do not work, what is returned locks nothing.
    """
    lock = FileLock(os.path.join(folder, f"{name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError):
        pass
    return lock


def unlock(lock: FileLock) -> None:
    """Release a lock, and remove its file before another can wait for it."""
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.release()


def signs_of_life(folder: str, file_stem: str) -> object:
    """Return what changes while another process fetches a file.

    Lock files do not count: some versions of filelock change them by mere trying.
    """
    try:
        return {
            (entry.name, entry.stat().st_mtime_ns)
            for entry in os.scandir(folder)
            if entry.name.startswith(file_stem) and not entry.name.endswith(".lock")
        }
    except OSError:
        return None
