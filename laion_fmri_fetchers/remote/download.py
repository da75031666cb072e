"""Many files from HTTP to disk: in parallel, resumed, verified.

::

    download_files                      caller's thread: which file is next, progress
        └─▶ fetch_file                  a thread per file: lock ─▶ Partial ─▶ blocks
                └─▶ fetch_block         threads: request ─▶ chunks ─▶ disk, and digest
                another version, no ranges, lost ─▶ start over
                all blocks ─▶ Partial.publish       digests ─▶ rename ─▶ date

Blocks of all files go through one queue, so that a thousand small files and one large
one both fill the line. Any number of processes may share the folders; see `partial`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import os
import queue
import random
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from laion_fmri_fetchers.exceptions import DiskSpaceError
from laion_fmri_fetchers.messages import readable_size, warn

from .client import Client, Fault, RemoteObject, Threads
from .disks import (
    FULL,
    existing_parent,
    folder_error,
    full_disk_error,
    try_lock,
    unlock,
)
from .partial import BLOCK, Partial, lock_name, part_name, remove_left
from .progress import Progress

# Bytes below which a file is fetched without a lock: to take one takes as long.
SMALL = 2**20
# Seconds without a byte after which the holder of a lock is not waited for. Network
# file systems show changes of others with up to 60 s of delay.
PATIENCE = 120.0
# Seconds between looks at what another process fetches.
POLL = 0.5
_SHOW_EVERY = 0.1
# Seconds without a block after which more are fetched at once, unless the process has
# used so much of a core meanwhile.
_IDLE_AFTER, _BUSY = 0.05, 0.7
# Consecutive failures after which the other files are skipped.
MOST_FAILED = 100
# How often a file starts over. An object may be written to a few times in a row, but
# bytes that are wrong twice are wrong in the bucket. Where locks do not work, every
# process that is a step further may be the reason why an unfinished file is gone.
_RESTARTS = {"changed": 3, "lost": 20, "whole": 1, "mismatch": 1}


class Download(NamedTuple):
    """A file to fetch.

    Parameters
    ----------
    id : str
        The name it has in messages and failures.
    url : str or callable
        Its address, or a function ``url(renew)`` that returns the current one, and a
        new one if called with True. Addresses that come from a function are secrets.
    path : Path
        Where it goes.
    size : int, optional
        Bytes.
    etag : str, optional
        The object's ETag.
    sha256 : str, optional
        Its SHA-256, in hexadecimal digits.
    last_modified : float, optional
        When the object was changed, in seconds since the epoch; the file's mtime.
    """

    id: str
    url: str | Callable[[bool], str]
    path: Path
    size: int | None = None
    etag: str | None = None
    sha256: str | None = None
    last_modified: float | None = None


class Failure(NamedTuple):
    """Why a file could not be downloaded; ``status`` is that of HTTP, if any."""

    id: str
    reason: str
    status: int | None


@dataclasses.dataclass(eq=False)
class _File:
    """A file on its way."""

    download: Download  # of the version that the bucket has now
    n_left: int  # blocks that are not finished, as far as is known
    lock: FileLock | None = None
    has_changed: bool = False  # in the bucket, since it was listed
    is_renewed: bool = False  # its address was, and has not worked since


def download_files(
    downloads: Iterable[Download],
    *,
    partial_dir: str | os.PathLike,
    overwrite: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    changed: dict[str, Download] | None = None,
) -> list[Failure]:
    """Download files such that each appears under its name only whole and verified.

    Parameters
    ----------
    downloads : iterable of Download
        What to fetch.
    partial_dir : path
        Folder of unfinished files. It may be shared by any number of processes on any
        number of machines.
    overwrite : bool, default=False
        Fetch also files that are there with the right size; by default these are
        taken as fetched by another process meanwhile.
    n_connections : int, default=64
        HTTP connections, at most.
    timeout : float, default=30.0
        Seconds without a byte after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: progress, 2: also one line per file, 3: also what starts over.
    changed : dict, optional
        Filled with what was downloaded of objects that were no longer what was listed:
        size, ETag and date are those of the new version; by id.

    Returns
    -------
    list of Failure
        The files that failed; empty when all is well.

    Raises
    ------
    DiskSpaceError
        If there is not enough space, before the first byte; or if the disk fills.
    DataDirectoryError
        If the folder of unfinished files cannot be made or written.

    Warns
    -----
    UserWarning
        If an object is no longer what was listed; then its new version is fetched.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> missing = Download("README", "http://localhost:9/README", folder / "README")
    >>> failed = download_files([missing], partial_dir=folder / "partial", verbose=0)
    >>> failed[0].id, failed[0].status
    ('README', None)
    """
    files = [_File(each, 1 + (each.size or 0) // BLOCK) for each in downloads]
    if not files:
        return []
    folder = os.path.abspath(partial_dir)
    try:
        os.makedirs(folder, exist_ok=True)
        _check_access(folder)
    except OSError as error:
        raise folder_error(error, folder) from None
    n_needed = n_bytes = sum(file.download.size or 0 for file in files)
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):  # other processes remove files
            # What lies there already is sparse: blocks are written in any order.
            n_needed -= getattr(entry.stat(), "st_blocks", 0) * 512
    free = shutil.disk_usage(folder).free
    if n_needed > free:
        full = DiskSpaceError(
            f"{readable_size(n_needed)} are needed in {folder}, but "
            f"{readable_size(free)} are free. Make space, use another data directory, "
            "or select less."
        )
        full.errno = errno.ENOSPC
        raise full
    with Progress(len(files), n_bytes, verbose) as progress:
        run = _Run(folder, overwrite, Client(n_connections, timeout), progress)
        run.client.told = functools.partial(progress.say, 3)
        try:
            with run.client, run.block_threads, run.file_threads:
                run.fetch(files)
        finally:
            for file in files:
                run.release(file)
    remove_left(folder)
    for file in files:
        if file.has_changed and file.download.id not in run.failures:
            warn(
                f"{file.download.id} changed in the bucket after it was listed; its "
                "new version was downloaded."
            )
            if changed is not None:
                changed[file.download.id] = file.download
    ids = dict.fromkeys(file.download.id for file in files)
    return [run.failures[name] for name in ids if name in run.failures]


class _Run:
    """The files of a call on their way."""

    def __init__(
        self, folder: str, overwrite: bool, client: Client, progress: Progress
    ):
        self.folder, self.overwrite = folder, overwrite
        self.client, self.progress = client, progress
        self.file_threads = Threads(client.n_connections)
        self.block_threads = Threads(client.n_connections)
        self.active: dict[Future, _File] = {}
        self.failures: dict[str, Failure] = {}
        self.n_consecutive_failures = 0
        # Bytes of chunks that arrived, and of blocks that an earlier call left.
        self.arrived: deque[int] = deque()
        self.address_lock = threading.Lock()

    # --- Caller's thread -------------------------------------------------------------

    def fetch(self, files: list[_File]) -> None:
        """Fetch all files, as far as may be."""
        waiting, n_arrived = deque(files), 0
        results: queue.SimpleQueue[Future] = queue.SimpleQueue()
        while waiting or self.active:
            # A file is begun while connections are idle, so that few are unfinished.
            n, active = self.client.n_connections, self.active.values()
            if waiting and len(active) < n and sum(f.n_left for f in active) < n:
                file = waiting.popleft()
                if self.n_consecutive_failures >= MOST_FAILED:
                    text = f"skipped after {MOST_FAILED} consecutive failures"
                    self.finish(file, Fault(text))
                else:
                    future = self.file_threads.submit(self.fetch_file, file)
                    self.active[future] = file
                    future.add_done_callback(results.put)
                continue
            with contextlib.suppress(queue.Empty):
                future = results.get(timeout=_SHOW_EVERY)
                self.finish(self.active.pop(future), future.exception())
            while self.arrived:
                n_arrived += self.arrived.popleft()
            self.progress.show(len(files) - len(waiting) - len(self.active), n_arrived)

    def finish(self, file: _File, error: BaseException | None) -> None:
        """Take note of what became of a file; a full disk ends the call."""
        name = file.download.id
        if isinstance(error, OSError):
            place = str(error.filename2 or error.filename or self.folder)
            if error.errno in FULL:
                raise full_disk_error(error, os.path.dirname(place))
            words = os.strerror(error.errno).lower() if error.errno else str(error)
            error = Fault(f"{place} cannot be written: {words}")
        if isinstance(error, Fault):
            self.progress.say(2, f"{name}: failed, {error.reason}")
            self.n_consecutive_failures += 1
            self.failures[name] = Failure(name, error.reason, error.status)
        elif error:
            raise error
        else:
            size = readable_size(file.download.size or 0)
            self.progress.say(2, f"{name}: {size} downloaded")
            self.n_consecutive_failures = 0

    # --- A thread per file -----------------------------------------------------------

    def fetch_file(self, file: _File) -> None:
        """Fetch a file, unless another process does; start over where that helps."""
        name, path = file.download.id, file.download.path
        restarts: list[str] = []
        try:
            if file.download.size is None or file.download.size >= SMALL:
                # Seen before a gigabyte is downloaded, rather than when it is renamed.
                _check_access(existing_parent(str(path.parent)))
                self.lock(file)
            while not self.is_there(file):
                try:
                    self.fetch_version(file, is_whole="whole" in restarts)
                    break
                except Fault as fault:
                    remedy = fault.remedy
                    if restarts.count(remedy) >= _RESTARTS.get(remedy, 0):
                        raise
                    text = f"{name}: {fault.reason}; it is downloaded again"
                    self.progress.say(3, text)
                    restarts.append(remedy)
                    if remedy == "changed":
                        file.has_changed = True
                        file.download = file.download._replace(size=None, etag=None)
            else:
                # A process that was killed just when another had finished the file.
                for left in self.unfinished(file):
                    with contextlib.suppress(OSError):
                        os.unlink(left)
        finally:
            self.release(file)

    def is_there(self, file: _File) -> bool:
        """Return whether another process fetched a file, by its size."""
        path = file.download.path
        if self.overwrite or not path.is_file():
            return False
        return path.stat().st_size == file.download.size

    def unfinished(self, file: _File) -> list[str]:
        """Return the paths of an unfinished file: its list of blocks, and itself."""
        path = os.path.join(self.folder, part_name(self.folder, file.download))
        return [f"{path}.blocks", f"{path}.part"]

    def lock(self, file: _File) -> None:
        """Take a file's lock, or wait for the process that holds it.

        Where locks do not work, and where their holder does nothing, go on without.
        """
        began, path = time.time(), file.download.path
        while not self.is_there(file):
            file.lock = try_lock(self.folder, lock_name(self.folder, path))
            if file.lock:
                return
            file.n_left, last = 0, began
            with contextlib.suppress(OSError):
                last = max(began, os.path.getmtime(self.unfinished(file)[1]))
            if time.time() - last > max(PATIENCE, 4 * self.client.timeout):
                return
            if self.client.is_closed.wait(POLL * random.uniform(0.5, 1.5)):
                raise CancelledError

    def release(self, file: _File) -> None:
        """Let other processes have a file."""
        lock, file.lock = file.lock, None
        if lock:
            unlock(lock)

    def fetch_version(self, file: _File, *, is_whole: bool) -> None:
        """Fetch the missing blocks of a file, and give it its name."""
        if file.download.size is None:
            look_up, address = self.client.look_up, self.address(file)
            size, etag, date = self.client.retrying(look_up, address)
            new = file.download._replace(size=size, etag=etag, last_modified=date)
            file.download = new
        partial = Partial(self.folder, file.download, is_whole)
        try:
            file.n_left = len(partial.missing)
            self.arrived.append(partial.n_resumed)
            if file.n_left == 1:
                partial.note(*self.fetch_block(file, partial, *partial.missing[0]))
            else:
                self.fetch_blocks(file, partial)
            partial.publish()
        except Fault as fault:
            if fault.remedy in _RESTARTS:
                partial.remove()
            raise
        finally:
            partial.close()

    def fetch_blocks(self, file: _File, partial: Partial) -> None:
        """Fetch the missing blocks of a file, several at a time."""
        results: queue.SimpleQueue[Future] = queue.SimpleQueue()
        waiting, n_active = deque(partial.missing), 0
        # On a line that keeps the cores busy, more threads than cores only wait for
        # each other: of 256 MiB on the same machine, 32 take 1.4 times as long as 2.
        most, cpu, began = os.cpu_count() or 1, time.process_time(), time.monotonic()
        while file.n_left:
            while waiting and n_active < most:
                task = self.fetch_block, file, partial, *waiting.popleft()
                self.block_threads.submit(*task).add_done_callback(results.put)
                n_active += 1
            try:
                future = results.get(timeout=_IDLE_AFTER if waiting else None)
            except queue.Empty:
                busy = (time.process_time() - cpu) / (time.monotonic() - began)
                if busy < _BUSY:
                    most = len(partial.missing)
                cpu, began = time.process_time(), time.monotonic()
                continue
            partial.note(*future.result())
            file.n_left, n_active = file.n_left - 1, n_active - 1

    def address(self, file: _File, denied: str = "") -> str:
        """Return the current address of a file; one that is denied is renewed once."""
        url = file.download.url
        if isinstance(url, str):
            return url
        with self.address_lock:
            address = url(False)
            if address == denied and not file.is_renewed:
                file.is_renewed = True
                address = url(True)
            return address

    # --- Threads for blocks ----------------------------------------------------------

    def fetch_block(
        self, file: _File, partial: Partial, start: int, stop: int
    ) -> tuple[int, int, bytes | None, float | None]:
        """Fetch a block; return it with its digest and the object's date."""
        name, url, _, size, etag, *_ = partial.download
        renew = None if isinstance(url, str) else functools.partial(self.address, file)
        target = RemoteObject(name, self.address(file), size, etag, renew)
        hasher = hashlib.new(partial.algorithm or "md5")

        def sink(position: int, chunk: bytes) -> None:
            nonlocal hasher
            if partial.is_closed or self.client.is_closed.is_set():
                raise CancelledError
            if position == start:
                stream.seek(start)
                hasher = hashlib.new(hasher.name)
            stream.write(chunk)
            if partial.algorithm:
                hasher.update(chunk)
            self.arrived.append(len(chunk))

        if partial.is_closed:
            raise CancelledError
        with partial.open() as stream:
            read = functools.partial(self.client.read_range, is_whole=partial.is_whole)
            date = read(target, start, stop, sink)
        file.is_renewed = False
        return start, stop, hasher.digest() if partial.algorithm else None, date


def _check_access(folder: str) -> None:
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
