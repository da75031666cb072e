"""Many files from HTTP to disk: in parallel, resumed, verified.

::

    download_files                                 caller's thread, which decides all
        for each file: lock ─▶ Partial ─▶ its missing blocks
        hand blocks to threads:    fetch_block     request ─▶ chunks ─▶ disk, and digest
        take a result:  done ─▶ noted;  another version, no ranges, lost ─▶ start over;
                        address expired ─▶ renewed;  else the file fails
        a file with all its blocks: Partial.publish     digests ─▶ date ─▶ rename

Blocks of all files go through one queue, so that a thousand small files and one large
one both fill the line. Any number of processes may share the folders; see `partial`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from laion_fmri_fetchers.messages import readable_size, warn

from . import retry
from .client import Client, Fault, affordable
from .disks import (
    FULL,
    check_space,
    existing_parent,
    folder_error,
    full_disk_error,
)
from .locks import try_lock, unlock
from .partial import Block, Partial, Version, is_other, part_name, remove_left
from .progress import Progress
from .tasks import Outcome, Tasks, Threads

SMALL = 2**20
"""Bytes below which a file is fetched without a lock: to take one takes as long."""
PATIENCE = 120.0
"""Seconds without a byte after which the holder of a lock is not waited for. Network
file systems show changes of others with up to 60 s of delay."""
POLL = 0.5
"""Seconds between looks at what another process fetches."""
_SHOW_EVERY = 0.1
MOST_FAILED = 100
"""Consecutive failures after which the other files are skipped."""
_RESTARTS = {"changed": 3, "whole": 1, "lost": 3, "mismatch": 1}
"""How often a file starts over, by what went wrong. An object may be written to a few
times in a row; a file that is removed is removed again by something that will not stop;
and bytes that are wrong twice are wrong in the bucket."""


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


class _File:
    """A file on its way, as the caller's thread knows it."""

    def __init__(self, download: Download):
        self.download, self.version = download, Version(*download[3:])
        self.partial: Partial | None = None
        self.n_left = 0
        """Blocks that are not finished."""
        self.lock: FileLock | None = None
        self.restarts: list[str] = []
        self.is_whole = False
        """Whether it is fetched in one request, as the server ignores Range."""
        self.address = ""
        """The current one, which threads read when they begin with a block."""
        self.is_renewed = False
        """Whether the address was renewed, and has not worked since."""
        self.began = time.monotonic()
        self.due, self.seen, self.seen_at = 0.0, (0, 0), time.monotonic()
        """Of a file that another process fetches: when to look again, and what was seen
        of its unfinished file, since when."""

    def look_up(self, *, renew: bool = False) -> str:
        """Take note of the current address, and return it."""
        url = self.download.url
        self.address = url if isinstance(url, str) else url(renew)
        return self.address

    def n_arrived(self) -> int:
        if not self.partial:
            return 0
        blocks = self.partial.missing
        return self.partial.n_resumed + sum(b.place - b.start for b in blocks)


def download_files(
    downloads: Iterable[Download],
    *,
    partial_dir: str | os.PathLike,
    overwrite: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    changed: dict[str, Version] | None = None,
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
        Filled with the versions of objects that were no longer what was listed, and
        came in their new version, by id.

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
    files = [_File(download) for download in downloads]
    if not files:
        return []
    folder = os.path.abspath(partial_dir)
    n_connections = affordable(max(1, n_connections))
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise folder_error(error, folder) from None
    n_bytes = sum(file.version.size or 0 for file in files)
    saved = sum(_bytes_on_disk(folder, file) for file in files)
    check_space(folder, n_bytes - saved)
    with (
        Progress(len(files), n_bytes, verbose) as progress,
        Client(n_connections, timeout) as client,
        Threads(n_connections) as threads,
    ):
        tasks = Tasks(threads, progress.say_retry)
        run = _Run(folder, overwrite, client, tasks, progress)
        try:
            run.fetch(files)
        finally:
            tasks.is_stopped = True
            for file in files:
                run.release(file)
    remove_left(folder)
    for file in run.done:
        if "changed" in file.restarts:
            warn(
                f"{file.download.id} changed in the bucket after it was listed; its "
                "new version was downloaded."
            )
            if changed is not None:
                changed[file.download.id] = file.version
    reasons = {failure.id: failure for failure in run.failures}
    return [reasons[f.download.id] for f in files if f.download.id in reasons]


class _Run:
    """The files of a call on their way; all of it belongs to the caller's thread."""

    def __init__(
        self,
        folder: str,
        overwrite: bool,
        client: Client,
        tasks: Tasks,
        progress: Progress,
    ):
        self.folder, self.overwrite = folder, overwrite
        self.client, self.tasks, self.progress = client, tasks, progress
        self.open: set[_File] = set()
        self.done: list[_File] = []
        self.failures: list[Failure] = []
        self.n_consecutive_failures = 0

    def fetch(self, files: list[_File]) -> None:
        """Fetch all files, as far as may be."""
        waiting = deque(files)
        while waiting or self.tasks.n_open:
            # A file is opened when a thread is free, so that few are unfinished at a
            # time. Those that other processes fetch are looked at now and then.
            for _ in range(len(waiting)):
                if self.tasks.n_open >= self.client.n_connections:
                    break
                file = waiting.popleft()
                if self.n_consecutive_failures >= MOST_FAILED:
                    text = f"skipped after {MOST_FAILED} consecutive failures"
                    self.fail(file, Fault(text))
                elif time.monotonic() < file.due or not self.start(file):
                    waiting.append(file)
            if outcome := self.tasks.next(_SHOW_EVERY):
                file, partial, _ = outcome.key
                # Not of a file that failed or started over meanwhile.
                if file in self.open and file.partial is partial:
                    try:
                        self.take(outcome)
                    except OSError as error:
                        self.fail_locally(file, error)
            self.progress.show(
                len(self.done) + len(self.failures),
                sum(file.n_arrived() for file in [*self.done, *self.open]),
            )

    def start(self, file: _File) -> bool:
        """Begin with a file, unless another process fetches it."""
        path, size = file.download.path, file.version.size
        try:
            # Seen before a gigabyte is downloaded, rather than when it gets its name.
            folder = existing_parent(str(path.parent))
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
            is_small = size is not None and size < SMALL
            if not is_small and not self.is_there(file) and not self.try_lock(file):
                return False
            self.open.add(file)
            if self.is_there(file):
                self.finish(file)
            else:
                self.begin(file)
        except OSError as error:
            self.fail_locally(file, error)
        return True

    def is_there(self, file: _File) -> bool:
        """Return whether another process fetched a file, by its size."""
        path = file.download.path
        return (
            not self.overwrite
            and path.is_file()
            and path.stat().st_size == file.version.size
        )

    def try_lock(self, file: _File) -> bool:
        """Take a file's lock, or leave it to the process that holds it for a while.

        Where locks do not work, and where their holder does nothing, go on without.
        """
        name = part_name(self.folder, file.download.path)
        file.lock = try_lock(self.folder, name)
        if file.lock:
            return True
        now, seen = time.monotonic(), (0, 0)
        name = part_name(self.folder, file.download.path, file.version)
        with contextlib.suppress(OSError):
            stat = os.stat(os.path.join(self.folder, f"{name}.part"))
            seen = stat.st_mtime_ns, stat.st_size
        if seen != file.seen:
            file.seen, file.seen_at = seen, now
        file.due = now + POLL * random.uniform(0.5, 1.5)
        return now - file.seen_at > max(PATIENCE, 4 * self.client.timeout)

    def begin(self, file: _File) -> None:
        """Hand the missing blocks of a file to threads."""
        file.look_up()
        if file.version.size is None:
            self.tasks.submit((file, None, None), _probe, self.client, file)
            return
        partial = Partial(self.folder, file.download.path, file.version, file.is_whole)
        file.partial, file.n_left = partial, len(partial.missing)
        self.progress.resumed(partial.n_resumed)
        for block in partial.missing:
            self.submit(file, block)
        if not file.n_left:
            self.tasks.submit((file, partial, None), partial.publish)

    def submit(self, file: _File, block: Block) -> None:
        """Hand a block to a thread."""
        key = file, file.partial, block
        self.tasks.submit(key, fetch_block, self.client, file, block, self.tasks)

    def take(self, outcome: Outcome) -> None:
        """Decide what follows from the outcome of a task."""
        (file, partial, block), result, error = outcome
        if isinstance(error, Fault):
            self.mend(file, block, error)
        elif error:
            raise error
        elif isinstance(result, Version):
            self.progress.total += result.size or 0
            file.version = result
            self.begin(file)
        elif block:
            partial.note(block)
            self.n_consecutive_failures, file.is_renewed = 0, False
            file.n_left -= 1
            if not file.n_left:
                self.tasks.submit((file, partial, None), partial.publish)
        else:
            self.finish(file)

    def mend(self, file: _File, block: Block | None, fault: Fault) -> None:
        """Renew an address or start a file over, as far as that may help."""
        remedy = fault.remedy
        if remedy == "renew" and callable(file.download.url):
            used = block.address if block else file.address
            is_current = used == file.look_up()
            if not (is_current and file.is_renewed):
                if is_current:
                    file.look_up(renew=True)
                    file.is_renewed = True
                self.submit(file, block) if block else self.begin(file)
                return
        if remedy == "lost" and not is_other(file.download.path, file.version):
            if file.partial:
                file.partial.remove()
            self.finish(file)  # another process did
            return
        if file.restarts.count(remedy) >= _RESTARTS.get(remedy, 0):
            self.fail(file, fault)
            return
        name = file.download.id
        self.progress.say(3, f"{name}: {fault.reason}; it is downloaded again")
        file.restarts.append(remedy)
        if file.partial:
            file.partial.remove()
        file.partial = None
        if remedy == "changed":
            self.progress.total -= file.version.size or 0
            file.version = Version(None, sha256=file.version.sha256)
        file.is_whole = file.is_whole or remedy == "whole"
        self.begin(file)

    def finish(self, file: _File) -> None:
        """Take note that a file is whole and in its place."""
        seconds = time.monotonic() - file.began
        size = readable_size(file.version.size or 0)
        self.progress.say(2, f"{file.download.id}: {size} in {seconds:.1f} s")
        self.n_consecutive_failures = 0
        self.done.append(file)
        self.release(file)

    def fail(self, file: _File, fault: Fault) -> None:
        """Give a file up; what is right of it stays for a later call."""
        self.progress.say(2, f"{file.download.id}: failed, {fault.reason}")
        self.n_consecutive_failures += 1
        self.failures.append(Failure(file.download.id, fault.reason, fault.status))
        if file.partial and fault.remedy in ("mismatch", "changed"):
            file.partial.remove()
        self.release(file)

    def fail_locally(self, file: _File, error: OSError) -> None:
        """Give a file up for an error of the disk; a full one ends the call."""
        place = str(error.filename2 or error.filename or self.folder)
        if error.errno in FULL:
            raise full_disk_error(error, os.path.dirname(place))
        words = os.strerror(error.errno).lower() if error.errno else str(error)
        self.fail(file, Fault(f"{place} cannot be written: {words}"))

    def release(self, file: _File) -> None:
        """Let other processes have a file, and threads know that it is left."""
        self.open.discard(file)
        if file.partial:
            file.partial.close()
        if file.lock:
            unlock(file.lock)
            file.lock = None


def fetch_block(client: Client, file: _File, block: Block, tasks: Tasks) -> None:
    """Fetch a block, or what is missing of it; by a thread.

    Raises
    ------
    Fault
        If it is not whole after that.
    OSError
        Of the disk.
    """
    partial = file.partial
    if partial is None or partial.is_closed:
        return  # the file failed or started over meanwhile
    size, etag = partial.version[:2]
    block.address, is_secret = file.address, callable(file.download.url)
    if partial.is_whole:
        block.rewind()
    first = block.place
    try:
        with (
            partial.open(block) as stream,
            client.range(
                *(block.address, block.place, block.stop),
                size=size,
                etag=etag,
                is_secret=is_secret,
            ) as reply,
        ):
            partial.note_date(reply.last_modified)
            for chunk in reply.chunks:
                if tasks.is_stopped or partial.is_closed:
                    return
                stream.write(chunk)
                if block.hasher:
                    block.hasher.update(chunk)
                block.place += len(chunk)
    except Fault as fault:
        fault.has_progressed = block.place - first >= retry.PROGRESS
        raise


def _probe(client: Client, file: _File) -> Version:
    """Return the version that an object has now; by a thread."""
    is_secret = callable(file.download.url)
    _, etag, sha256, _ = file.version
    with client.range(file.address, 0, None, etag=etag, is_secret=is_secret) as reply:
        if reply.size is None:
            raise Fault("the server does not say its size")
        return Version(reply.size, reply.etag, sha256, reply.last_modified)


def _bytes_on_disk(folder: str, file: _File) -> int:
    """Return the bytes that an unfinished file takes already."""
    path = os.path.join(folder, part_name(folder, file.download.path, file.version))
    try:
        return os.stat(f"{path}.part").st_blocks * 512
    except (OSError, AttributeError):
        return 0
