"""Many files from HTTP to disk: in parallel, resumed, verified.

::

    download_files ─▶ Run.watch             caller's thread: progress, Ctrl-C
                      JobQueue              threads, one per connection, do jobs:
                        FileDownload.open       lock ─▶ reuse ─▶ cut into ranges
                        RangeDownload.fetch     request ─▶ chunks to disk ─▶ journal
                      and whoever is the last to leave a file
                        FileDownload._conclude  verify ─▶ rename; or start over, or fail

Ranges of all files go through one queue, so that a thousand small files and one large
one both fill the line. `partials` keeps the unfinished files, `connections` asks for
ranges. A file appears under its final name by a rename, once it is whole and verified.

Any number of processes may share the folders. Locks only save them double work: where
locks do not work, two processes fetch a file side by side, and the second rename puts
the same bytes in place of the first.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from laion_fmri_fetchers.messages import readable_size, warn

from . import leftovers, policy, ranges
from .checksums import check_file, part_sizes
from .connections import Connections, Fault, affordable
from .disks import FULL, disk_space_error, folder_error, words_on_full_disk
from .file_download import OPEN_LAST, FileDownload
from .jobs import Job, JobQueue
from .locks import LockTable
from .progress import Progress

__all__ = ["Download", "check_file", "download_files", "part_sizes"]


class Download(NamedTuple):
    """A file to fetch.

    Parameters
    ----------
    id : str
        The name it has in messages and failures.
    url : str or callable
        Its address, or a function ``url(renew)`` that returns the current address.
        After an answer that the address is no longer valid, the function is called
        with True, once per expiry. Addresses that come from a function are secrets.
    path : Path
        Where it goes.
    size : int, optional
        Bytes.
    etag : str, optional
        The object's ETag.
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
    n_connections: int = 64,
    timeout: float = 30.0,
    max_consecutive_fails: int = 100,
    verbose: int = 1,
    changed: dict[str, tuple[int | None, str | None, str | None]] | None = None,
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
    n_connections : int, default=64
        HTTP connections, at most.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    max_consecutive_fails : int, default=100
        Failed files in a row after which the rest is not tried.
    verbose : int, default=1
        0: silent, 1: progress, 2: also one line per file, 3: also retries.
    changed : dict, optional
        Filled with id -> (size in bytes, ETag) of objects that were no longer what was
        listed, and came in their new version.

    Returns
    -------
    list of dict
        One dict per file that failed: its ``id``, the ``reason``, and the HTTP
        ``status`` or None. Empty when all is well.

    Raises
    ------
    DiskSpaceError
        If there is not enough space, before the first byte; or if the disk fills.
    DataDirectoryError
        If the folder of unfinished files cannot be made or written.

    Warns
    -----
    UserWarning
        If an object is no longer what the ETag says; then its new version is fetched.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> missing = Download("README", "http://localhost:9/README", folder / "README")
    >>> failed = download_files([missing], partial_dir=folder / "partial", verbose=0)
    >>> failed[0]["id"], failed[0]["status"]
    ('README', None)
    """
    folder = os.path.abspath(partial_dir)
    wanted = list(downloads)
    if not wanted:
        return []
    _make_folder(folder)
    run = Run(
        wanted,
        folder,
        overwrite=overwrite,
        n_connections=affordable(max(1, n_connections)),
        timeout=timeout,
        max_consecutive_fails=max(1, max_consecutive_fails),
        verbose=verbose,
    )
    run.check_space()
    try:
        run.watch()
    finally:
        run.stop()
    if run.fatal:
        raise run.fatal
    leftovers.clean(folder)
    renewed = [f for f in run.files if "changed" in f.restarts and not f.failure]
    for file in renewed:
        warn(
            f"{file.id} changed in the bucket after it was listed; its new version was "
            "fetched."
        )
    if changed is not None:
        for file in renewed:
            version = file.version
            changed[file.id] = (version.size, version.etag, version.last_modified)
    return [file.failure for file in run.files if file.failure]


def _make_folder(folder: str) -> None:
    """Make the folder of unfinished files, and see that it can be written."""
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise folder_error(error, folder) from None


class Run:
    """All files of a call, and what they share.

    Attributes
    ----------
    lock : threading.RLock
        Guards what several threads change of files and of the run.
    step : int
        Bytes in a request at most.
    small_file : int
        Bytes up to which a file shares the lock of its folder.
    hopeless : Fault or None
        Why no other file is tried.
    fatal : BaseException or None
        What ended the run.
    """

    def __init__(
        self,
        downloads: list[Download],
        folder: str,
        *,
        overwrite: bool,
        n_connections: int,
        timeout: float,
        max_consecutive_fails: int,
        verbose: int,
    ):
        limits = policy.POLICY
        total = sum(download.size or 0 for download in downloads)
        self.folder, self.overwrite, self.timeout = folder, overwrite, timeout
        self.step = limits.range_size
        self.lock = threading.RLock()
        self.copying = threading.Lock()
        are_large = total >= len(downloads) * limits.range_size
        n_at_first = _n_cores() if are_large else n_connections
        self.queue = JobQueue(n_connections, self._end, n_at_first)
        self.connections = Connections(timeout)
        self.locks = LockTable(folder)
        self.files = [FileDownload(download, self) for download in downloads]
        stems = {file.stem for file in self.files}
        leftovers.clean(folder, keep=stems, locks=False)
        self.leftovers = leftovers.leftovers(folder)
        self.progress = Progress(len(self.files), total, verbose)
        self.hopeless: Fault | None = None
        self.fatal: BaseException | None = None
        self._ends = _Ends(len(self.files), max_consecutive_fails)

    @property
    def small_file(self) -> int:
        return min(policy.POLICY.small_file, self.step)

    def check_space(self) -> None:
        """Raise if the disk is too small for the remaining bytes.

        Leftovers are freed once they are copied, a file's at a time.
        """
        need, largest = 0, 0
        for file in self.files:
            saved = 0
            for leftover in self.leftovers.get(file.stem, ()):
                if leftover.is_free and leftover.fits(*file.version[:3]):
                    saved = max(saved, ranges.length(leftover.done))
            need += max(0, (file.version.size or 0) - saved)
            largest = max(largest, saved)
        free = shutil.disk_usage(self.folder).free
        if need + largest > free:
            raise disk_space_error(
                f"{readable_size(need + largest)} are needed in {self.folder}, but "
                f"{readable_size(free)} are free. Make space, use another data "
                "directory, or select less."
            )

    # The caller's thread

    def watch(self) -> None:
        """Start, and show progress until all files have ended."""
        self.queue.put(Job(file.open, OPEN_LAST) for file in self.files)
        limits, load, began = policy.POLICY, _Load(), time.monotonic()
        try:
            while not self._ends.finished.wait(limits.watch_every):
                self.connections.cut_stuck()
                self.progress.show()
                is_late = time.monotonic() - began > limits.busy_for
                if load.share() < limits.busy or is_late:
                    self.queue.widen()
        finally:
            self.progress.close()

    def stop(self) -> None:
        """Stop all threads; unfinished files stay for a later call."""
        self.queue.stop()
        if self._ends.n_left:
            self.connections.cut()
        self.queue.join(policy.POLICY.join)
        self.connections.close()
        for file in self.files:
            file.abandon()

    # What files report

    def note_success(self) -> None:
        """Take note that a range arrived: not all is lost."""
        with self.lock:
            self._ends.n_failed_in_a_row = 0

    def note_end(self, file: FileDownload) -> None:
        """Take note that a file is done or has failed; after the last one, stop."""
        self.progress.ended()
        with self.lock:
            ends = self._ends
            if file.failure:
                ends.n_failed_in_a_row += 1
                if ends.n_failed_in_a_row >= ends.most_failed and not self.hopeless:
                    self._give_up()
            ends.n_left -= 1
            if not ends.n_left:
                ends.finished.set()
                self.queue.stop()

    def _give_up(self) -> None:
        """Fail all files that are not done; the lock is held."""
        n = self._ends.n_failed_in_a_row
        self.hopeless = Fault(f"not tried any more, as {n} files failed in a row")
        for file in self.files:
            file.give_up(self.hopeless)

    def end_if_full(self, error: OSError) -> None:
        """End the run if an error says that a disk is full."""
        if error.errno in FULL:
            folder = os.path.dirname(str(error.filename or "")) or self.folder
            text = words_on_full_disk(error.errno or 0, folder)
            message = (
                f"{text}. Files that arrived stay; make space, then repeat the call to "
                "resume."
            )
            self._end(disk_space_error(message, error.errno or 0))

    def _end(self, error: BaseException) -> None:
        """End the run; the caller's thread raises the error."""
        with self.lock:
            self.fatal = self.fatal or error
        self.queue.stop()
        self._ends.finished.set()


class _Load:
    """How much of the machine's cores this process takes."""

    def __init__(self) -> None:
        self._seconds, self._spent = time.monotonic(), time.process_time()

    def share(self) -> float:
        """Return the share of all cores since the last call."""
        seconds, spent = time.monotonic(), time.process_time()
        passed = max(seconds - self._seconds, 1e-6) * _n_cores()
        share = (spent - self._spent) / passed
        self._seconds, self._spent = seconds, spent
        return share


def _n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # a job of a cluster has some of them
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Ends:
    """How the files of a run end; the run's lock guards it."""

    def __init__(self, n_files: int, most_failed: int):
        self.n_left, self.most_failed = n_files, most_failed
        self.n_failed_in_a_row = 0
        self.finished = threading.Event()
