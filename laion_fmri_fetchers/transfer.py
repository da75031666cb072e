"""Many files from HTTP to disk: in parallel, resumed, verified.

::

    download_files ─▶ _Run.watch                   caller's thread: progress, Ctrl-C
                      _Run._work, one a connection: takes the next of
                        _open    lock ─▶ reuse what others left ─▶ cut into ranges
                        _fetch   request ─▶ chunks to disk, hashed on the way ─▶ journal
                      and after the last range of a file
                        _conclude    verify ─▶ rename, or start over, or give up

While it is fetched, a file lives in the partial folder, under names that no other
process writes to::

    {stem}.{host}-{process}-{random}.part    the bytes, each at its offset
    {stem}.{host}-{process}-{random}.done    journal: what it is, then finished ranges
    {stem}.lock                              held by who fetches the file

The lock only saves double work. Where locks do not work, two processes fetch a file
side by side, and the second rename puts the same bytes in place of the first. What a
killed process leaves is copied from by the next one, and never written to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import json
import logging
import os
import random
import re
import secrets
import shutil
import socket
import ssl
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout

from .exceptions import DiskSpaceError
from .messages import readable_size, tell, warn

RANGE = 16 * 2**20
"""Bytes asked for in one request, at most; less where there is little to fetch."""

_CHUNK = 2**17
_READ = 2**18
_MIB = 2**20

_TRIES = 6
_TRIES_UNREACHABLE = 9
_TRIES_UNREACHABLE_AT_FIRST = 3
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 30.0
_CONNECT_TIMEOUT = 10.0
_LEAST_PROGRESS = 2**14
_SMALL = 2**20
_RESTARTS = {"changed": 3, "whole": 3, "lost": 2, "mismatch": 1}

_POLL = 0.05
_LONGEST_POLL = 1.0
_LOCK_PATIENCE = 120.0
_IDLE = 3600.0
_OLD = 3 * 24 * 3600.0

_FULL = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)
)


class Download(NamedTuple):
    """A file to fetch.

    Parameters
    ----------
    id : str
        The name it has in messages and failures.
    url : str or callable
        Its address, or a function ``url(renew)`` that returns the current address.
        After an answer that the address is no longer valid, the function is called
        with True, once an expiry. Addresses that come from a function are secrets.
    path : Path
        Where it goes.
    size : int, optional
        Bytes.
    etag : str, optional
        The object's ETag, without quotes.
    sha256 : str, optional
        Its SHA-256, in hexadecimal digits.
    """

    id: str
    url: str | Callable[[bool], str]
    path: Path
    size: int | None = None
    etag: str | None = None
    sha256: str | None = None


def download_files(
    downloads: Iterable[Download],
    *,
    partial_dir: str | os.PathLike,
    overwrite: bool = False,
    n_connections: int = 32,
    timeout: float = 30.0,
    max_consecutive_fails: int = 100,
    verbose: int = 1,
) -> list[dict[str, Any]]:
    """Download files such that each appears under its name only whole and verified.

    Parameters
    ----------
    downloads : iterable of Download
        What to fetch.
    partial_dir : path
        Folder of unfinished files, on the file system of the final ones. It may be
        shared by any number of processes on any number of machines.
    overwrite : bool, default=False
        Fetch also files that are there with the right size; by default these are
        taken as fetched by another process meanwhile.
    n_connections : int, default=32
        HTTP connections, at most.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    max_consecutive_fails : int, default=100
        Failed files in a row after which the rest is not tried.
    verbose : int, default=1
        0: silent, 1: progress, 2: also a line a file, 3: also retries.

    Returns
    -------
    list of dict
        One dict a file that failed: its ``id``, the ``reason``, and the HTTP
        ``status`` or None. Empty when all is well.

    Raises
    ------
    DiskSpaceError
        If there is not enough space, before the first byte; or if the disk fills.
    LaionFmriError
        If the function of an address raises one.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> missing = Download("README", "http://localhost:9/README", folder / "README")
    >>> failed = download_files([missing], partial_dir=folder / "partial", verbose=0)
    >>> failed[0]["id"], failed[0]["status"]
    ('README', None)
    """
    run = _Run(
        list(downloads),
        Path(partial_dir),
        overwrite=overwrite,
        n_connections=max(1, n_connections),
        timeout=timeout,
        max_consecutive_fails=max_consecutive_fails,
        verbose=verbose,
    )
    if not run.files:
        return []
    os.makedirs(partial_dir, exist_ok=True)
    _clean(run.partial_dir)
    run.find_leftovers()
    run.check_space()
    try:
        run.watch()
    finally:
        run.stop()
    if run.fatal:
        raise run.fatal
    _clean(run.partial_dir)
    for note in run.notes:
        warn(note)
    return run.failures


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
    usual = powers + [5 * p for p in powers] + [n * _MIB for n in (6, 7, 12, 15, 25)]
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
    ...     _ = stream.write(b"hello") or stream.flush()
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
            stream.seek(0)
            at = 0
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


class _Chain:
    """The hash of bytes ``start`` to ``stop`` of a file, which are fed in order."""

    __slots__ = ("at", "busy", "hasher", "start", "stop")

    def __init__(self, algorithm: str, start: int, stop: int):
        self.start = self.at = start
        self.stop = stop
        self.hasher = hashlib.new(algorithm, usedforsecurity=False)
        self.busy = False

    def feed(self, offset: int, chunk: bytes) -> None:
        """Take what is next for the hash from a chunk at an offset of the file."""
        begin, end = self.at - offset, min(self.stop - offset, len(chunk))
        if 0 <= begin < end:
            whole = begin == 0 and end == len(chunk)
            self.hasher.update(chunk if whole else memoryview(chunk)[begin:end])
            self.at = offset + end


def _ways_to_check(
    size: int, etag: str | None, sha256: str | None
) -> Iterator[list[_Chain]]:
    """Yield lists of hashes, any of which shows that a file is right."""
    if sha256:
        yield [_Chain("sha256", 0, size)]
        return
    match = re.fullmatch(r"[0-9a-f]{32}(?:-([1-9]\d{0,4}))?", etag or "")
    if match and not match[1]:
        yield [_Chain("md5", 0, size)]
    elif match:
        for part in part_sizes(size, int(match[1])):
            starts = range(0, max(size, 1), part)
            yield [_Chain("md5", a, min(a + part, size)) for a in starts]


def _mismatch(chains: list[_Chain], etag: str | None, sha256: str | None) -> str | None:
    """Return what the hashes of a whole file say against it."""
    if not chains:
        return None
    name, expected = ("SHA-256", sha256.lower()) if sha256 else ("ETag", etag or "")
    if "-" in expected:
        joined = b"".join(chain.hasher.digest() for chain in chains)
        parts = hashlib.md5(joined, usedforsecurity=False).hexdigest()
        found = f"{parts}-{len(chains)}"
    else:
        found = chains[0].hasher.hexdigest()
    return None if found == expected else f"its {name} is {found} instead of {expected}"


# --- Ranges ----------------------------------------------------------------------

_Ranges = list[tuple[int, int]]


def _merged(ranges: Iterable[tuple[int, int]]) -> _Ranges:
    """Return ranges sorted, with those that touch joined.

    >>> _merged([(8, 9), (0, 4), (4, 6)])
    [(0, 6), (8, 9)]
    """
    merged: _Ranges = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _gaps(done: _Ranges, start: int, stop: int) -> _Ranges:
    """Return what of a range is not in merged ranges.

    >>> _gaps([(0, 4), (6, 8)], 2, 10)
    [(4, 6), (8, 10)]
    """
    gaps = []
    for a, b in [*done, (stop, stop)]:
        if start < min(a, stop):
            gaps.append((start, min(a, stop)))
        start = max(start, b)
    return gaps


def _cut(ranges: _Ranges, step: int) -> _Ranges:
    """Cut ranges at the multiples of a step.

    >>> _cut([(3, 10)], 4)
    [(3, 4), (4, 8), (8, 10)]
    """
    return [
        (max(a, start), min(a + step, stop))
        for start, stop in ranges
        for a in range(start - start % step, stop, step)
    ]


# --- What unfinished downloads leave in the partial folder -----------------------

_active: set[str] = set()
_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40] or "host"


def _new_owner() -> str:
    owner = f"{_HOST}-{os.getpid()}-{secrets.token_hex(6)}"
    _active.add(owner)
    return owner


def _is_gone(owner: str) -> bool:
    """Tell whether it is certain that nobody writes under an owner's name any more."""
    host, _, rest = owner.rpartition("-")[0].rpartition("-")
    if host != _HOST or not rest.isdecimal():
        return False
    if int(rest) == os.getpid():
        return owner not in _active
    if os.name == "nt":
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


class _Leftover(NamedTuple):
    part: Path
    journal: Path
    header: dict[str, Any]
    done: _Ranges
    gone: bool

    def fits(self, file: _File) -> bool:
        """Tell whether it holds bytes of what is to be fetched."""
        header = self.header
        return (
            bool(self.done)
            and header.get("sha256") == file.sha256
            and (file.size is None or file.size == header["size"])
            and (header["etag"] == file.etag or not file.etag)
            and bool(header["etag"] or file.sha256)
        )

    def remove(self) -> None:
        for path in (self.part, self.journal):
            with contextlib.suppress(OSError):
                path.unlink()


def _leftovers(partial_dir: Path) -> dict[str, list[_Leftover]]:
    """Return what is in the partial folder: stem -> its unfinished files."""
    owners = set()
    for name in os.listdir(partial_dir):
        stem, _, rest = name.partition(".")
        owner, _, kind = rest.partition(".")
        if kind in ("part", "done"):
            owners.add((stem, owner))
    found: dict[str, list[_Leftover]] = {}
    for stem, owner in owners:
        part, journal = (
            partial_dir / f"{stem}.{owner}.{kind}" for kind in ("part", "done")
        )
        header, done, given_up = _read_journal(journal)
        gone = given_up or _is_gone(owner)
        leftover = _Leftover(part, journal, header, done, gone)
        found.setdefault(stem, []).append(leftover)
    return found


def _read_journal(journal: Path) -> tuple[dict[str, Any], _Ranges, bool]:
    """Return header, finished ranges, and whether its writer is done with it."""
    try:
        first, *lines = journal.read_bytes().split(b"\n")[:-1]
        header = json.loads(first)
        ranges = [json.loads(line) for line in lines]
        done = _merged((a, b) for a, b in filter(None, ranges))
        if not (isinstance(header["size"], int) and {"etag", "path"} <= set(header)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        return {}, [], False
    if done and (done[0][0] < 0 or done[-1][1] > header["size"]):
        return {}, [], False
    return header, done, [] in ranges


def _clean(partial_dir: Path) -> None:
    """Remove what no one will need any more."""
    try:
        names = os.listdir(partial_dir)
        groups = _leftovers(partial_dir)
    except OSError:
        return
    for leftover in (one for group in groups.values() for one in group):
        age = min(_age(leftover.part), _age(leftover.journal))
        header = leftover.header
        whole = header and _is_whole(partial_dir / header["path"], header["size"])
        useless = whole or not leftover.done
        if age > _OLD or (useless and (leftover.gone or age > _IDLE)):
            leftover.remove()
    for name in names:
        if name.endswith(".lock"):
            lock = _lock_file(partial_dir / name)
            if _try_lock(lock):
                _unlock(lock)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _is_whole(path: Path, size: int | None) -> bool:
    try:
        return path.is_file() and size in (None, path.stat().st_size)
    except OSError:
        return False


def _lock_file(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)


def _try_lock(lock: FileLock) -> bool:
    """Take a lock; where locks do not work, do without."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        pass
    return True


def _unlock(lock: FileLock) -> None:
    with contextlib.suppress(OSError):
        os.unlink(lock.lock_file)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.release()


# --- One file --------------------------------------------------------------------


class _File:
    """A file on its way: what is known of it, and how far it is."""

    def __init__(self, download: Download, partial_dir: Path):
        self.id, self.url = download.id, download.url
        self.path = Path(os.path.abspath(download.path))
        self.size, self.etag, self.sha256 = download.size, None, download.sha256
        if download.etag:
            self.etag = _bare(download.etag)
        self.relative = os.path.relpath(self.path, os.path.abspath(partial_dir))
        self.stem = _stem(self.relative)
        self.locked: str | None = None
        self.partial_dir = partial_dir
        self.url_lock = threading.Lock()
        self.renewed = self.worked = False
        self.began = self.signs_at = 0.0
        self.signs: Any = None
        self.polls = 0
        self.restarts: list[str] = []
        self.ignores_ranges = False
        self.descriptor: int | None = None
        self.reset()

    def reset(self) -> None:
        self.done: _Ranges = []
        self.chains: list[_Chain] = []
        self.journal: int | None = None
        self.is_probed = False
        self.users = 0
        self.verdict: _Fault | None = None

    def create(self) -> None:
        """Make the file that only this run writes to."""
        self.owner = _new_owner()
        base = f"{self.stem}.{self.owner}"
        self.part = self.partial_dir / f"{base}.part"
        self.journal_path = self.partial_dir / f"{base}.done"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self.descriptor = os.open(self.part, flags, 0o666)

    def is_known(self) -> bool:
        """Tell whether ranges can be planned and their answers told to belong together."""
        return self.size is not None and bool(
            self.etag or self.sha256 or self.is_probed
        )

    def know(self, size: int, etag: str | None) -> None:
        """Go on with a size and ETag that are now certain."""
        self.size, self.etag = size, self.etag or etag
        self.chains = next(_ways_to_check(size, self.etag, self.sha256), [])

    def write(self, offset: int, chunk: bytes) -> None:
        while chunk:
            written = _pwrite(self.descriptor, chunk, offset)
            offset += written
            chunk = chunk[written:]

    def record(self, start: int, stop: int) -> None:
        """Note in the journal that a range is on disk."""
        if self.descriptor is None:
            return
        self.done = _merged([*self.done, (start, stop)])
        if self.done == [(0, self.size)]:
            return
        if self.journal is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self.journal = os.open(self.journal_path, flags, 0o666)
            header = {
                "path": self.relative,
                "size": self.size,
                "etag": self.etag,
                "sha256": self.sha256,
            }
            os.write(self.journal, json.dumps(header).encode() + b"\n")
        os.write(self.journal, f"[{start}, {stop}]\n".encode())

    def close(self, keep: bool) -> None:
        """Leave the partial file, for a later run or for good."""
        if self.descriptor is None:
            return
        if keep and self.journal is not None:
            with contextlib.suppress(OSError):
                os.write(self.journal, b"[]\n")
        for descriptor in (self.descriptor, self.journal):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        if not (keep and self.journal is not None):
            for path in (self.part, self.journal_path):
                with contextlib.suppress(OSError):
                    path.unlink()
        self.descriptor = self.journal = None
        _active.discard(self.owner)

    def publish(self) -> None:
        """Give the whole, verified file its final name."""
        descriptor, self.descriptor = self.descriptor, None
        try:
            os.close(descriptor)
            try:
                os.replace(self.part, self.path)
            except FileNotFoundError:
                os.makedirs(self.path.parent, exist_ok=True)
                os.replace(self.part, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.part.unlink()
            raise
        finally:
            if self.journal is not None:
                os.close(self.journal)
                self.journal_path.unlink(missing_ok=True)
            _active.discard(self.owner)


if hasattr(os, "pwrite"):
    _pread, _pwrite = os.pread, os.pwrite
else:
    _seek_lock = threading.Lock()

    def _pread(descriptor: int, length: int, offset: int) -> bytes:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, length)

    def _pwrite(descriptor: int, chunk: bytes, offset: int) -> int:
        with _seek_lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, chunk)


def _stem(relative: str) -> str:
    return hashlib.sha256(os.fsencode(relative)).hexdigest()[:24]


def _bare(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')


# --- HTTP ------------------------------------------------------------------------


class _Fault(Exception):
    """What went wrong with a request or a file; ``remedy`` is more than a retry."""

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        *,
        tries: int = _TRIES,
        wait: float = 0.0,
        remedy: str = "",
    ):
        super().__init__(reason)
        self.reason, self.status, self.tries = reason, status, tries
        self.wait, self.remedy = wait, remedy


class _Connections:
    """Pools of connections, all of which can be cut at once."""

    def __init__(self, n_connections: int, timeout: float):
        self._timeout = urllib3.Timeout(min(timeout, _CONNECT_TIMEOUT), timeout)
        self._n = n_connections
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._are_cut = False

    def get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a request; the body is not read yet. Redirects are followed."""
        for _ in range(4):
            response = self._manager(url).urlopen(
                "GET",
                url,
                headers=headers,
                timeout=self._timeout,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
            )
            target = response.get_redirect_location()
            if not target:
                break
            response.drain_conn()
            url = urljoin(url, target)
        return response

    def cut(self) -> None:
        """End all that waits for the network, now and later."""
        with self._lock:
            self._are_cut = True
            for open_socket in self._sockets:
                _shut(open_socket)

    def close(self) -> None:
        for manager in self._managers.values():
            manager.clear()

    def _note(self, new_socket: socket.socket) -> None:
        with self._lock:
            self._sockets.add(new_socket)
            if self._are_cut:
                _shut(new_socket)

    def _manager(self, url: str) -> urllib3.PoolManager:
        scheme, host = urlsplit(url)[:2]
        base = f"{scheme}://{host}"
        with self._lock:
            if base not in self._managers:
                self._managers[base] = self._new_manager(base)
            return self._managers[base]

    def _new_manager(self, base: str) -> urllib3.PoolManager:
        """Return a pool with the proxy and certificates that requests would use."""
        options: dict[str, Any] = {
            "maxsize": self._n,
            "socket_options": [
                *urllib3.connection.HTTPConnection.default_socket_options,
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            ],
        }
        if base.startswith("https:"):
            options["ssl_context"] = _tls()
        proxies = requests.utils.get_environ_proxies(base + "/")
        proxy = requests.utils.select_proxy(base + "/", proxies)
        if proxy:
            user, password = requests.utils.get_auth_from_url(proxy)
            if user:
                options["proxy_headers"] = urllib3.make_headers(
                    proxy_basic_auth=f"{user}:{password}"
                )
            proxy = requests.utils.prepend_scheme_if_needed(proxy, "http")
            manager: urllib3.PoolManager = urllib3.ProxyManager(proxy, **options)
        else:
            manager = urllib3.PoolManager(**options)
        manager.pool_classes_by_scheme = {
            "http": self._noting(urllib3.HTTPConnectionPool),
            "https": self._noting(urllib3.HTTPSConnectionPool),
        }
        return manager

    def _noting(self, pool_class: type) -> type:
        """Return a class of pools whose connections note their sockets here."""
        note = self._note

        class Connection(pool_class.ConnectionCls):  # type: ignore[name-defined]
            def connect(self) -> None:
                super().connect()
                note(self.sock)

        return type("Pool", (pool_class,), {"ConnectionCls": Connection})


def _tls() -> ssl.SSLContext:
    bundle = (
        os.environ.get("REQUESTS_CA_BUNDLE")
        or os.environ.get("CURL_CA_BUNDLE")
        or requests.certs.where()
    )
    context = urllib3.util.ssl_.create_urllib3_context()
    if os.path.isdir(bundle):
        context.load_verify_locations(capath=bundle)
    else:
        context.load_verify_locations(cafile=bundle)
    return context


def _shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)


def _network_fault(error: Exception, arrived: bool, timeout: float) -> _Fault:
    """Return an error of urllib3 in words that hold no address."""
    inner = error
    while isinstance(getattr(inner, "reason", None), Exception) or (
        inner.args and isinstance(inner.args[-1], Exception)
    ):
        reason = getattr(inner, "reason", None)
        inner = reason if isinstance(reason, Exception) else inner.args[-1]
    unreachable = _TRIES_UNREACHABLE if arrived else _TRIES_UNREACHABLE_AT_FIRST
    if isinstance(inner, urllib3.exceptions.NameResolutionError):
        return _Fault("the server's name cannot be resolved", tries=unreachable)
    if isinstance(inner, urllib3.exceptions.ConnectTimeoutError):
        return _Fault("the server does not accept connections", tries=unreachable)
    if isinstance(inner, urllib3.exceptions.NewConnectionError):
        cause = inner.__cause__ or inner.__context__
        text = os.strerror(cause.errno) if getattr(cause, "errno", 0) else "refused"
        return _Fault(f"cannot connect: {text.lower()}", tries=unreachable)
    if isinstance(inner, (urllib3.exceptions.ReadTimeoutError, TimeoutError)):
        return _Fault(f"no byte for {timeout:g} s")
    if isinstance(inner, urllib3.exceptions.IncompleteRead):
        return _Fault("the body ended early")
    if isinstance(inner, ssl.SSLError):
        return _Fault(f"TLS fails: {inner.reason or type(inner).__name__}", tries=2)
    if isinstance(inner, (urllib3.exceptions.LocationValueError, ValueError)):
        return _Fault("its address is not valid", tries=1)
    if isinstance(inner, OSError) and inner.errno:
        return _Fault(os.strerror(inner.errno).lower())
    return _Fault(f"the connection broke ({type(inner).__name__})")


def _status_fault(response: urllib3.BaseHTTPResponse) -> _Fault:
    """Return an answer that is no success as a fault."""
    status, phrase = response.status, response.reason or ""
    reason = f"status {status} {phrase}".rstrip()
    if status == 412:
        return _Fault("it changed in the bucket", status, remedy="changed")
    if status in (400, 401, 403):
        return _Fault(reason, status, tries=1, remedy="renew")
    if status in (408, 429) or status >= 500:
        wait = 0.0
        with contextlib.suppress(Exception):
            asked = response.headers.get("Retry-After", "0")
            wait = urllib3.Retry().parse_retry_after(asked)
        return _Fault(reason, status, wait=min(wait, 2 * _LONGEST_WAIT))
    return _Fault(reason, status, tries=1)


_thread = threading.local()


def _is_public(record: logging.LogRecord) -> bool:
    return not getattr(_thread, "has_secret", False)


# --- The run ---------------------------------------------------------------------


class _Run:
    """All files of a call and the threads that fetch them."""

    def __init__(
        self,
        downloads: list[Download],
        partial_dir: Path,
        *,
        overwrite: bool,
        n_connections: int,
        timeout: float,
        max_consecutive_fails: int,
        verbose: int,
    ):
        self.partial_dir = partial_dir
        self.overwrite, self.timeout, self.verbose = overwrite, timeout, verbose
        self.n_connections = n_connections
        self.max_consecutive_fails = max_consecutive_fails
        self.files = [_File(download, partial_dir) for download in downloads]
        self.total = sum(file.size or 0 for file in self.files)
        per_connection = self.total // n_connections
        self.step = min(RANGE, max(per_connection, RANGE // 4))
        self.connections = _Connections(n_connections, timeout)
        if any(callable(file.url) for file in self.files):
            logging.getLogger("urllib3.connectionpool").addFilter(_is_public)

        self.failures: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.lines: deque[str] = deque()
        self.fatal: BaseException | None = None
        self.leftovers: dict[str, list[_Leftover]] = {}
        self.locks: dict[str | None, tuple[FileLock, set[_File]]] = {}
        self.reusing = threading.Lock()

        self.lock = threading.Condition()
        self.finished = threading.Event()
        self.stopped = False
        self.pending = deque(self.files)
        self.ready: deque[tuple[_File, int, int | None, int]] = deque()
        self.later: list[tuple[float, int, Any]] = []
        self.n_later = 0
        self.unfinished = len(self.files)
        self.in_a_row = 0
        self.hopeless: _Fault | None = None
        self.arrived = False
        self.workers: list[threading.Thread] = []
        self.idle = 0
        self.settled = 0
        self.live: dict[int, int] = {}

    def find_leftovers(self) -> None:
        self.leftovers = _leftovers(self.partial_dir)

    def check_space(self) -> None:
        """Raise if the disk is too small for what is left to fetch.

        A leftover is freed once it is copied, one at a time.
        """
        need, largest = 0, 0
        for file in self.files:
            reuse: _Ranges = []
            for leftover in self.leftovers.get(file.stem, []):
                if leftover.gone and leftover.fits(file):
                    reuse = _merged([*reuse, *leftover.done])
            saved = sum(stop - start for start, stop in reuse)
            need += max(0, (file.size or 0) - saved)
            largest = max(largest, saved)
        free = shutil.disk_usage(self.partial_dir).free
        if need + largest > free:
            raise DiskSpaceError(
                errno.ENOSPC,
                f"{readable_size(need + largest)} are needed in {self.partial_dir} and "
                f"{readable_size(free)} are free. Make space, name another data "
                "directory, or select less.",
            )

    # The caller's thread

    def watch(self) -> None:
        """Start, and show progress until all files are finished."""
        with self.lock:
            self._hire()
        progress = _Progress(self) if self.verbose else None
        try:
            while not self.finished.wait(0.1):
                if progress:
                    progress.update()
        finally:
            if progress:
                progress.close()

    def stop(self) -> None:
        """Stop all threads; what is unfinished stays for a later call."""
        with self.lock:
            self.stopped = True
            self.lock.notify_all()
        if self.unfinished:
            self.connections.cut()
        deadline = time.monotonic() + 0.8
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self.connections.close()
        for file in self.files:
            file.close(keep=True)
            self._unlock(file)

    def got(self) -> int:
        return self.settled + sum(list(self.live.values()))

    # Workers

    def _hire(self) -> None:
        """Start threads for what waits; the lock is held."""
        work = len(self.ready) + len(self.pending)
        free = self.n_connections - len(self.workers)
        for _ in range(min(work - self.idle, free) if not self.stopped else 0):
            worker = threading.Thread(target=self._work, daemon=True)
            self.workers.append(worker)
            worker.start()
        self.lock.notify(work)

    def _work(self) -> None:
        while True:
            try:
                job = self._next()
                if job is None:
                    return
                if isinstance(job, tuple):
                    self._fetch(*job)
                else:
                    self._open(job)
            except BaseException as error:
                self._abort(error)
                return

    def _next(self) -> Any:
        """Return the next range, or file to open; wait for it if need be."""
        with self.lock:
            while not self.stopped and self.unfinished:
                now = time.monotonic()
                while self.later and self.later[0][0] <= now:
                    job = heapq.heappop(self.later)[2]
                    (self.ready if isinstance(job, tuple) else self.pending).append(job)
                if self.ready:
                    return self.ready.popleft()
                if self.pending:
                    return self.pending.popleft()
                self.idle += 1
                self.lock.wait(self.later[0][0] - now if self.later else None)
                self.idle -= 1
        return None

    def _put_off(self, job: Any, seconds: float) -> None:
        """Put a job off; the lock is held."""
        self.n_later += 1
        due = time.monotonic() + seconds
        heapq.heappush(self.later, (due, self.n_later, job))
        self.lock.notify()

    def _abort(self, error: BaseException) -> None:
        with self.lock:
            self.fatal = self.fatal or error
            self.stopped = True
            self.finished.set()
            self.lock.notify_all()

    def _say(self, level: int, line: str) -> None:
        if self.verbose >= level:
            self.lines.append(line)

    # A file: from its lock to its ranges

    def _open(self, file: _File) -> None:
        """Lock a file, reuse what earlier runs left of it, queue what lacks."""
        if self.hopeless:
            self._fail(file, self.hopeless)
            return
        first = not file.restarts
        if not (file.locked or self._lock(file)):
            return
        if first and not self.overwrite and self._is_there(file):
            return
        file.began = file.began or time.monotonic()
        file.users = 1
        try:
            file.create()
            if first:
                self._reuse(file)
            if not file.chains and file.is_known():
                file.know(file.size, None)
            self._queue(file)
        except OSError as error:
            self._local_fault(file, error)
        self._leave(file)

    def _lock(self, file: _File) -> bool:
        """Take a file's lock; else come back later, for its holder is fetching it.

        A holder that shows no sign of life for long is not waited for.
        """
        small = file.size is not None and file.size <= min(_SMALL, self.step)
        name = _stem(os.path.dirname(file.relative)) if small else file.stem
        with self.lock:
            if name not in self.locks:
                lock = _lock_file(self.partial_dir / f"{name}.lock")
                if _try_lock(lock):
                    self.locks[name] = (lock, set())
            if name in self.locks:
                self.locks[name][1].add(file)
                file.locked = name
                return True
        now, signs = time.monotonic(), None
        with contextlib.suppress(OSError):
            signs = [
                (entry.name, entry.stat().st_mtime_ns)
                for entry in os.scandir(self.partial_dir)
                if entry.name.startswith(file.stem)
            ]
        if signs != file.signs:
            file.signs, file.signs_at = signs, now
        elif now - file.signs_at > max(_LOCK_PATIENCE, 4 * self.timeout):
            file.locked = "broken"
            return True
        wait = min(_POLL * 1.5**file.polls, _LONGEST_POLL) * random.uniform(0.5, 1.5)
        file.polls += 1
        with self.lock:
            self._put_off(file, wait)
        return False

    def _unlock(self, file: _File) -> None:
        with self.lock:
            name, file.locked = file.locked, None
            if name in self.locks:
                lock, users = self.locks[name]
                users.discard(file)
                if not users:
                    del self.locks[name]
                    _unlock(lock)

    def _is_there(self, file: _File) -> bool:
        """Tell whether another process has fetched a file; then it is finished."""
        if file.size is None or not _is_whole(file.path, file.size):
            return False
        self.settled += file.size
        self._finish(file, "another process fetched it")
        return True

    def _reuse(self, file: _File) -> None:
        """Copy the finished ranges of unfinished files that others left."""
        leftovers = self.leftovers.get(file.stem, [])
        if file.polls:
            leftovers = _leftovers(self.partial_dir).get(file.stem, [])
        for leftover in leftovers:
            if not leftover.fits(file):
                continue
            if not file.chains:
                file.know(leftover.header["size"], leftover.header["etag"])
            with self.reusing, contextlib.suppress(FileNotFoundError):
                self._copy(file, leftover)
                if leftover.gone and not self.stopped:
                    leftover.remove()

    def _copy(self, file: _File, leftover: _Leftover) -> None:
        with open(leftover.part, "rb", buffering=0) as source:
            for start, stop in leftover.done:
                for a, b in _gaps(file.done, start, stop):
                    at = a
                    source.seek(at)
                    while at < b and not self.stopped:
                        chunk = source.read(min(_MIB, b - at))
                        if not chunk:
                            break
                        file.write(at, chunk)
                        for chain in file.chains:
                            chain.feed(at, chunk)
                        at += len(chunk)
                    self._record(file, a, at)

    def _queue(self, file: _File, start: int = 0) -> None:
        """Queue the ranges of a file that are not on disk, from some byte on."""
        if not file.is_known():
            ranges: list[tuple[int, int | None]] = [(0, None)]
        elif file.size == 0 or file.ignores_ranges:
            ranges = [(0, file.size)]
        else:
            part = file.chains[0].stop if file.chains else self.step
            step = self.step - self.step % part if part <= self.step else self.step
            ranges = [*_cut(_gaps(file.done, start, file.size), step)]
        with self.lock:
            if self.hopeless:
                self._doom(file, self.hopeless)
            if not (self.stopped or file.verdict):
                self.ready.extend((file, start, stop, 0) for start, stop in ranges)
                file.users += len(ranges)
                self._hire()

    # A range: from the request to the journal

    def _fetch(self, file: _File, start: int, stop: int | None, tries: int) -> None:
        """Fetch bytes start to stop; up to where the server likes if stop is None."""
        me, at, chains, fault = threading.get_ident(), start, [], None
        address = self._address(file)
        try:
            response, stop = self._request(file, start, stop, address)
            chains = self._take_chains(file, start, stop)
            with contextlib.closing(self._chunks(response, stop - start)) as chunks:
                for chunk in chunks:
                    if self.stopped or file.verdict:
                        break
                    file.write(at, chunk)
                    for chain in chains:
                        chain.feed(at, chunk)
                    at += len(chunk)
                    self.live[me] = at - start
        except _Fault as error:
            fault = error
        except OSError as error:
            self._local_fault(file, error)
        with self.lock:
            self.live[me] = 0
            for chain in chains:
                chain.busy = False
        try:
            self._record(file, start, at)
            self._catch_up(file)
        except OSError as error:
            self._local_fault(file, error)
        if fault and not self.stopped:
            tries = 0 if at - start >= _MIB else tries
            self._retry(file, at, stop, tries + 1, fault, address)
        elif at == stop:
            self.in_a_row, self.arrived = 0, True
        self._leave(file)

    def _address(self, file: _File) -> str:
        if isinstance(file.url, str):
            return file.url
        with file.url_lock:
            return file.url(False)

    def _request(
        self, file: _File, start: int, stop: int | None, address: str
    ) -> tuple[urllib3.BaseHTTPResponse, int]:
        """Ask for a range; return the answer, found good, and where it stops."""
        headers = {"Accept-Encoding": "identity"}
        if stop is None or (start, stop) != (0, file.size):
            headers["Range"] = f"bytes={start}-{(stop or self.step) - 1}"
        if file.etag:
            headers["If-Match"] = f'"{file.etag}"'
        _thread.has_secret = callable(file.url)
        fault = None
        try:
            response = self.connections.get(address, headers)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            fault = _network_fault(error, self.arrived, self.timeout)
        finally:
            _thread.has_secret = False
        if fault:
            raise fault
        try:
            return response, self._judge(file, start, stop, response)
        except _Fault:
            length = response.headers.get("Content-Length", "")
            if response.status >= 300 and length.isdecimal() and int(length) < _MIB:
                response.drain_conn()
                response.release_conn()
            else:
                response.close()
            raise

    def _judge(
        self,
        file: _File,
        start: int,
        stop: int | None,
        response: urllib3.BaseHTTPResponse,
    ) -> int:
        """Return where the body of an answer stops; raise if the answer is wrong."""
        status, headers = response.status, response.headers
        announced = headers.get("Content-Length", "")
        length = int(announced) if announced.isdecimal() else None
        if status == 206:
            found = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", "").strip()
            )
            if not found:
                raise _Fault("the server does not say what range it sends", status)
            first, last, total = map(int, found.groups())
            end = min(self.step, total) if stop is None else stop
            if (first, last + 1) != (start, end) and total == (file.size or total):
                raise _Fault("the server sends another range than asked", status)
        elif status == 200:
            total = length if length is not None else file.size
            if total is None:
                raise _Fault("the server does not say its size", status, tries=1)
            if stop is not None and (start, stop) != (0, file.size):
                raise _Fault("the server ignores Range", status, remedy="whole")
            end = total
        elif status == 416 and stop is None:
            end = total = length = 0
        else:
            raise _status_fault(response)
        etag = _bare(headers.get("ETag", "")) or None
        with self.lock:
            if etag and file.etag and etag != file.etag:
                raise _Fault("it changed in the bucket", status, remedy="changed")
            if file.size is not None and total != file.size:
                raise _Fault(f"the server has {total} bytes instead of {file.size}")
            if length is not None and length != end - start:
                raise _Fault(f"Content-Length is {length} instead of {end - start}")
            file.etag = file.etag or etag
            file.worked = True
        if stop is None:
            self._learn(file, total, end)
        return end

    def _learn(self, file: _File, total: int, end: int) -> None:
        """Queue the rest of a file whose size or ETag were not known before."""
        with self.lock:
            self.total += total - (file.size or 0)
            file.know(total, None)
            if end < total:
                file.is_probed = True
                self._queue(file, end)

    def _chunks(
        self, response: urllib3.BaseHTTPResponse, length: int
    ) -> Iterator[bytes]:
        """Yield a body in pieces worth a write, and see that it makes progress."""
        pieces: list[bytes] = []
        held = got = mark = 0
        since = time.monotonic()
        fault = None
        try:
            while got < length and not fault:
                piece = b""
                try:
                    piece = response.read1(min(_READ, length - got))
                except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                    fault = _network_fault(error, self.arrived, self.timeout)
                if not piece:
                    fault = fault or _Fault("the body ended early")
                pieces.append(piece)
                held, got = held + len(piece), got + len(piece)
                now = time.monotonic()
                if got - mark >= _LEAST_PROGRESS:
                    mark, since = got, now
                elif now - since > self.timeout:
                    fault = fault or _Fault(f"no progress for {self.timeout:g} s")
                if held and (held >= _CHUNK or got == length or fault):
                    yield b"".join(pieces)
                    pieces, held = [], 0
            if not length:
                response.drain_conn()
        finally:
            if got == length and response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()
        if fault:
            raise fault

    def _take_chains(self, file: _File, start: int, stop: int) -> list[_Chain]:
        """Return the hashes that a range can feed as it arrives."""
        with self.lock:
            chains = [
                chain
                for chain in file.chains
                if start <= chain.at < min(stop, chain.stop) and not chain.busy
            ]
            for chain in chains:
                chain.busy = True
        return chains

    def _catch_up(self, file: _File) -> None:
        """Hash what arrived ahead of its turn, now that its turn has come."""
        for chain in file.chains:
            while not self.stopped:
                with self.lock:
                    covered = [b for a, b in file.done if a <= chain.at < b]
                    stop = min([chain.stop, *covered]) if covered else chain.at
                    if chain.busy or chain.at >= stop:
                        break
                    chain.busy = True
                try:
                    while chain.at < stop and not self.stopped:
                        length = min(_MIB, stop - chain.at)
                        chunk = _pread(file.descriptor, length, chain.at)
                        chain.feed(chain.at, chunk)
                        if not chunk:
                            raise OSError(errno.EIO, os.strerror(errno.EIO))
                finally:
                    chain.busy = False

    def _record(self, file: _File, start: int, at: int) -> None:
        if at > start:
            with self.lock:
                self.settled += at - start
                file.record(start, at)

    # What goes wrong

    def _retry(
        self,
        file: _File,
        start: int,
        stop: int | None,
        tries: int,
        fault: _Fault,
        address: str,
    ) -> None:
        """Try a range again, later; or decide that its file fails or starts over."""
        again = tries < fault.tries
        wait = min(_FIRST_WAIT * 2 ** (tries - 1), _LONGEST_WAIT)
        wait = max(fault.wait, wait * random.uniform(0.5, 1.5))
        if fault.remedy == "renew" and callable(file.url):
            again, wait = tries < _TRIES and self._renew(file, address), 0.0
        elif fault.remedy in _RESTARTS:
            again = False
        with self.lock:
            if again and not file.verdict:
                file.users += 1
                self._put_off((file, start, stop, tries), wait)
                self._say(3, f"{file.id}: {fault.reason}, again in {wait:.1f} s")
            elif not again:
                if tries > 1:
                    fault.reason += f" ({tries} times)"
                self._doom(file, fault)

    def _renew(self, file: _File, address: str) -> bool:
        """Get a new address in place of one that expired; once for an expiry."""
        with file.url_lock:
            if file.url(False) == address:
                if file.renewed and not file.worked:
                    return False
                file.renewed, file.worked = True, False
                file.url(True)
        return True

    def _local_fault(self, file: _File, error: OSError) -> None:
        """Take note that a file cannot be written."""
        text = os.strerror(error.errno).lower() if error.errno else str(error)
        if error.errno in _FULL:
            free = readable_size(shutil.disk_usage(self.partial_dir).free)
            self._abort(
                DiskSpaceError(
                    error.errno,
                    f"{text}, {free} are free in {self.partial_dir}. What arrived "
                    "stays; make space and call again to go on.",
                )
            )
        with self.lock:
            self._doom(file, _Fault(f"it cannot be written: {text}"))

    def _doom(self, file: _File, fault: _Fault) -> None:
        """Decide that a file fails or starts over; the lock is held."""
        file.verdict = file.verdict or fault
        n = len(self.ready) + len(self.later)
        self.ready = deque(job for job in self.ready if job[0] is not file)
        self.later = [
            entry
            for entry in self.later
            if not (isinstance(entry[2], tuple) and entry[2][0] is file)
        ]
        heapq.heapify(self.later)
        file.users -= n - len(self.ready) - len(self.later)

    # A file: after its ranges

    def _leave(self, file: _File) -> None:
        """Stop working on a file; who leaves last concludes it."""
        with self.lock:
            file.users -= 1
            is_last = file.users == 0
        if is_last and not self.stopped:
            self._conclude(file)

    def _conclude(self, file: _File) -> None:
        fault = file.verdict
        try:
            fault = fault or self._verify(file)
            if not (fault or self.stopped):
                file.publish()
        except FileNotFoundError:
            fault = _Fault("its partial file was removed", remedy="lost")
        except OSError as error:
            self._local_fault(file, error)
            fault = file.verdict
        if self.stopped:
            return
        if not fault:
            seconds = time.monotonic() - file.began
            self._finish(file, f"{readable_size(file.size)} in {seconds:.1f} s")
        elif file.restarts.count(fault.remedy) < _RESTARTS.get(fault.remedy, 0):
            self._start_over(file, fault)
        else:
            self._fail(file, fault)

    def _verify(self, file: _File) -> _Fault | None:
        """Return what is wrong with a file of which all has arrived."""
        self._catch_up(file)
        wrong = _mismatch(file.chains, file.etag, file.sha256)
        if wrong and not file.sha256:
            wrong = check_file(file.part, etag=file.etag)
        return _Fault(wrong, remedy="mismatch") if wrong else None

    def _start_over(self, file: _File, fault: _Fault) -> None:
        self._say(2, f"{file.id}: {fault.reason}; fetching it anew")
        file.close(keep=False)
        with self.lock:
            self.settled -= sum(b - a for a, b in file.done)
            file.restarts.append(fault.remedy)
            if fault.remedy == "changed":
                self.total -= file.size or 0
                file.size = file.etag = None
            file.ignores_ranges |= fault.remedy == "whole"
            file.reset()
            self.pending.appendleft(file)
            self._hire()

    def _finish(self, file: _File, line: str) -> None:
        self._unlock(file)
        self._say(2, f"{file.id}: {line}")
        if "changed" in file.restarts:
            self.notes.append(
                f"{file.id} changed in the bucket since it was listed; its new version "
                "was fetched."
            )
        self._count_down()

    def _fail(self, file: _File, fault: _Fault) -> None:
        file.close(keep=fault.remedy not in ("mismatch", "changed"))
        self._unlock(file)
        self._say(2, f"{file.id}: failed, {fault.reason}")
        with self.lock:
            failure = {"id": file.id, "reason": fault.reason, "status": fault.status}
            self.failures.append(failure)
            self.in_a_row += 1
            if self.in_a_row == self.max_consecutive_fails:
                self._give_up()
            self._count_down()

    def _give_up(self) -> None:
        """Try nothing any more; the lock is held."""
        self.hopeless = _Fault(f"not tried, as {self.in_a_row} files failed in a row")
        for file in self.files:
            if file.users:
                self._doom(file, self.hopeless)
                if not file.users:
                    self._conclude(file)

    def _count_down(self) -> None:
        with self.lock:
            self.unfinished -= 1
            if not self.unfinished:
                self.finished.set()
                self.lock.notify_all()


# --- Progress --------------------------------------------------------------------


class _Progress:
    """One bar for a run; lines every so often where there is no terminal."""

    every = 10.0

    def __init__(self, run: _Run):
        self.run = run
        self.began = self.said = time.monotonic()
        self.bar = None
        if sys.stderr is not None and (
            sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
        ):
            from tqdm.auto import tqdm

            self.bar = tqdm(total=run.total, unit="B", unit_scale=True)

    def update(self) -> None:
        run = self.run
        while run.lines:
            line = run.lines.popleft()
            self.bar.write(line, sys.stderr) if self.bar else tell(line, 1)
        if self.bar is not None:
            self.bar.total = run.total
            self.bar.set_postfix_str(self._files(), refresh=False)
            self.bar.update(run.got() - self.bar.n)
        elif time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            rate = run.got() / (self.said - self.began)
            left = (run.total - run.got()) / rate if rate else float("inf")
            tell(
                f"{self._files()}, {readable_size(run.got())} of "
                f"{readable_size(run.total)}, {readable_size(rate)}/s, "
                f"{left:.0f} s left",
                1,
            )

    def close(self) -> None:
        self.update()
        if self.bar is not None:
            self.bar.refresh()
            self.bar.close()
        else:
            seconds = time.monotonic() - self.began
            size = readable_size(self.run.got())
            tell(f"{self._files()}, {size} in {seconds:.1f} s", 1)

    def _files(self) -> str:
        n = len(self.run.files)
        return f"{n - self.run.unfinished} of {n} files"
