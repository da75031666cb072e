"""Many files from HTTP to disk: in parallel, resumed, verified.

::

    download_files ─▶ _Run.watch                   caller's thread: progress, Ctrl-C
                      _Run._work, one a connection: takes the next of
                        _open    lock ─▶ reuse what others left ─▶ cut into ranges
                        _fetch   request ─▶ chunks to disk, hashed on the way ─▶ journal
                      and whoever is the last to leave a file
                        _conclude    verify ─▶ rename; or start over, or give up

Ranges of all files go through one queue, so that a thousand small files and one large
one both fill the line. `partials` keeps the unfinished files, `connections` asks for
ranges. A file appears under its final name by a rename, once it is whole and verified.

Any number of processes may share the folders. Locks only save them double work: where
locks do not work, two processes fetch a file side by side, and the second rename puts
the same bytes in place of the first.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import random
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laion_fmri_fetchers.exceptions import DiskSpaceError
from laion_fmri_fetchers.messages import readable_size, tell, warn

from . import leftovers as leftover_files
from . import locks, partials
from . import ranges as spans
from .checksums import Chain, bare, check_file, part_sizes
from .connections import Connections, Fault
from .connections import RangeReply as Answer
from .partials import Partial

if TYPE_CHECKING:
    from filelock import FileLock

__all__ = ["Download", "check_file", "download_files", "part_sizes"]

RANGE = 16 * 2**20
"""Bytes asked for in one request, at most; less where there is little to fetch."""

_SMALL = 2**20
_NOTE_EVERY = 2 * 2**20
_MUCH_PROGRESS = 2**20

_FIRST_WAIT = 0.25
_LONGEST_WAIT = 30.0
_TRIES_RENEWED = 6
_RESTARTS = {"changed": 3, "whole": 3, "lost": 2, "mismatch": 1}

_POLL = 0.05
_LONGEST_POLL = 1.0
_LOCK_PATIENCE = 120.0
_TICK = 0.1
_LINE_EVERY = 10.0
_JOIN = 0.8

_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT")} - {None}


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
        0: silent, 1: progress, 2: also a line a file, 3: also retries.
    changed : dict, optional
        Filled with id -> (size in bytes, ETag) of objects that were no longer what was
        listed, and came in their new version.

    Returns
    -------
    list of dict
        One dict a file that failed: its ``id``, the ``reason``, and the HTTP
        ``status`` or None. Empty when all is well.

    Raises
    ------
    DiskSpaceError
        If there is not enough space, before the first byte; or if the disk fills.
    OSError
        If the folder of unfinished files cannot be used.

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
    files = [_File(download, folder) for download in downloads]
    if not files:
        return []
    os.makedirs(folder, exist_ok=True)
    leftover_files.clean(folder, keep={file.stem for file in files}, locks=False)
    run = _Run(
        files,
        folder,
        overwrite=overwrite,
        n_connections=max(1, n_connections),
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
    leftover_files.clean(folder)
    for note in run.notes:
        warn(note)
    if changed is not None:
        renewed = [f for f in files if "changed" in f.restarts and not f.failure]
        changed.update({f.id: (f.size, f.etag, f.last_modified) for f in renewed})
    return [file.failure for file in files if file.failure]


class _File:
    """A file on its way; the run's lock guards what several threads change."""

    def __init__(self, download: Download, folder: str):
        self.id, self.url = download.id, download.url
        self.path = os.path.abspath(download.path)
        self.size, self.sha256 = download.size, download.sha256
        self.last_modified: str | None = None
        self.etag = bare(download.etag) if download.etag else None
        relative = os.path.relpath(self.path, folder)
        self.stem = partials.stem(relative)
        self.folder_stem = partials.stem(os.path.dirname(relative))
        self.failure: dict[str, Any] | None = None

        self.url_lock = threading.Lock()
        self.is_renewed = self.has_answered = False

        self.locked: str | None = None
        self.polls = 0
        self.signs: object = None
        self.signs_at = 0.0

        self.began = 0.0
        self.restarts: list[str] = []
        self.ignores_ranges = self.is_probed = False
        self.partial: Partial = None  # type: ignore[assignment]
        self.users = 0
        self.verdict: Fault | None = None

    def is_known(self) -> bool:
        """Tell whether ranges can be planned, and their answers seen to fit."""
        is_certain = bool(self.etag or self.sha256 or self.is_probed)
        return self.size is not None and is_certain


_Range = tuple[_File, int, "int | None", int]


class _Run:
    """All files of a call, and the threads that fetch them."""

    def __init__(
        self,
        files: list[_File],
        folder: str,
        *,
        overwrite: bool,
        n_connections: int,
        timeout: float,
        max_consecutive_fails: int,
        verbose: int,
    ):
        self.files, self.folder, self.overwrite = files, folder, overwrite
        self.n_connections, self.timeout = n_connections, timeout
        self.max_consecutive_fails, self.verbose = max_consecutive_fails, verbose
        self.connections = Connections(timeout)
        self.leftovers = leftover_files.leftovers(folder)
        self.total = sum(file.size or 0 for file in files)
        self.step = min(RANGE, max(self.total // n_connections, RANGE // 4))
        self.notes: list[str] = []
        self.lines: deque[str] = deque()
        self.fatal: BaseException | None = None

        self.lock = threading.Condition()
        self.finished = threading.Event()
        self.stopped = False
        self.ready: deque[_Range] = deque()
        self.pending: deque[_File] = deque(files)
        self.later: list[tuple[float, int, _Range | _File]] = []
        self.n_put_off = 0
        self.unfinished = len(files)
        self.fails_in_a_row = 0
        self.hopeless: Fault | None = None
        self.workers: list[threading.Thread] = []
        self.idle = 0
        self.settled = self.kept = 0
        self.live: dict[int, int] = {}
        self.copying = threading.Lock()
        self.held: dict[str, tuple[FileLock, set[_File]]] = {}

    def check_space(self) -> None:
        """Raise if the disk is too small for what is left to fetch.

        Leftovers are freed once they are copied, a file's at a time.
        """
        need, largest = 0, 0
        for file in self.files:
            saved = 0
            for leftover in self.leftovers.get(file.stem, ()):
                if leftover.is_free and leftover.fits(
                    file.size, file.etag, file.sha256
                ):
                    saved = max(saved, spans.length(leftover.done))
            need += max(0, (file.size or 0) - saved)
            largest = max(largest, saved)
        free = shutil.disk_usage(self.folder).free
        if need + largest > free:
            raise _disk_error(
                f"{readable_size(need + largest)} are needed in {self.folder}, but "
                f"{readable_size(free)} are free. Make space, use another data "
                "directory, or select less."
            )

    # The caller's thread

    def watch(self) -> None:
        """Start, and show progress until all files are finished."""
        progress = _Progress(self) if self.verbose else None
        with self.lock:
            self._hire()
        try:
            while not self.finished.wait(_TICK):
                self.connections.cut_stuck()
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
        deadline = time.monotonic() + _JOIN
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self.connections.close()
        for file in self.files:
            if file.partial:
                file.partial.close(keep=True)
            self._unlock(file)

    def got(self) -> int:
        """Return the number of bytes that are there."""
        return self.settled + sum([*self.live.values()])

    # Workers and their queue

    def _hire(self) -> None:
        """Start or wake threads for what waits; the lock is held."""
        work = len(self.ready) + len(self.pending)
        free = self.n_connections - len(self.workers)
        for _ in range(0 if self.stopped else min(work - self.idle, free)):
            worker = threading.Thread(target=self._work, daemon=True)
            try:
                worker.start()
            except RuntimeError:
                if not self.workers:
                    raise
                break
            self.workers.append(worker)
        self.lock.notify(work)

    def _work(self) -> None:
        try:
            while job := self._next():
                if isinstance(job, tuple):
                    self._fetch(*job)
                else:
                    self._open(job)
        except BaseException as error:
            self._abort(error)

    def _next(self) -> _Range | _File | None:
        """Return the next range, or file to open; wait for it if need be."""
        with self.lock:
            while self.unfinished and not self.stopped:
                now = time.monotonic()
                while self.later and self.later[0][0] <= now:
                    job = heapq.heappop(self.later)[2]
                    if isinstance(job, tuple):
                        self.ready.append(job)
                    else:
                        self.pending.append(job)
                if self.ready:
                    return self.ready.popleft()
                if self.pending:
                    return self.pending.popleft()
                self.idle += 1
                self.lock.wait(self.later[0][0] - now if self.later else None)
                self.idle -= 1
        return None

    def _put_off(self, job: _Range | _File, seconds: float) -> None:
        with self.lock:
            self.n_put_off += 1
            due = time.monotonic() + seconds
            heapq.heappush(self.later, (due, self.n_put_off, job))
            self.lock.notify()

    def _abort(self, error: BaseException) -> None:
        """End the run; the caller's thread raises the error."""
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
        """Lock a file, reuse what others left of it, and queue the ranges that lack."""
        if self.hopeless:
            self._fail(file, self.hopeless)
            return
        if not (file.locked or self._lock(file)):
            return
        is_first = not file.restarts
        if (
            is_first
            and not self.overwrite
            and leftover_files.is_whole(file.path, file.size)
        ):
            with self.lock:
                self.settled += file.size or 0
            self._finish(file, "another process fetched it")
            return
        file.began = file.began or time.monotonic()
        file.users, file.verdict = 1, None
        try:
            file.partial = Partial(
                self.folder, file.path, file.sha256, lambda: self.stopped
            )
            if is_first:
                self._reuse(file)
            if file.is_known():
                self._know(file)
            self._queue(file)
        except OSError as error:
            self._local_fault(file, error)
        self._leave(file)

    def _lock(self, file: _File) -> bool:
        """Take a file's lock; else come back later, for its holder is fetching it.

        A holder that shows no sign of life for long is not waited for.
        """
        is_small = file.size is not None and file.size <= min(_SMALL, self.step)
        name = file.folder_stem if is_small else file.stem
        with self.lock:
            lock, users = self.held.get(name, (None, set()))
            if not lock:
                lock = locks.try_lock(self.folder, name)
            if lock and (is_small or not users):
                self.held[name] = (lock, users | {file})
                file.locked = name
                return True
        now, signs = time.monotonic(), locks.signs_of_life(self.folder, file.stem)
        if signs != file.signs or not file.polls:
            file.signs, file.signs_at = signs, now
        elif now - file.signs_at > max(_LOCK_PATIENCE, 4 * self.timeout):
            file.locked = "in vain"
            return True
        wait = min(_POLL * 1.5**file.polls, _LONGEST_POLL)
        file.polls += 1
        self._put_off(file, wait * random.uniform(0.5, 1.5))
        return False

    def _unlock(self, file: _File) -> None:
        with self.lock:
            name, file.locked = file.locked, None
            if name in self.held:
                lock, users = self.held.pop(name)
                if users - {file}:
                    self.held[name] = (lock, users - {file})
                else:
                    locks.unlock(lock)

    def _reuse(self, file: _File) -> None:
        """Copy the finished ranges of unfinished files that others left."""
        found = self.leftovers
        if file.polls:
            found = leftover_files.leftovers(self.folder)
        for leftover in found.get(file.stem, ()):
            if leftover.fits(file.size, file.etag, file.sha256):
                file.size, file.etag = leftover.header["size"], leftover.header["etag"]
                self._know(file)
                with self.copying, contextlib.suppress(FileNotFoundError):
                    n_bytes = file.partial.copy(leftover.part, leftover.done)
                    with self.lock:
                        self.settled += n_bytes
                        self.kept += n_bytes
                    if leftover.is_free and not self.stopped:
                        leftover.remove()

    def _know(self, file: _File) -> None:
        if file.partial.size != file.size:
            file.partial.know(file.size or 0, file.etag)

    def _queue(self, file: _File, start: int = 0) -> None:
        """Queue the ranges of a file that are not on disk, from a byte on."""
        if not file.is_known():
            ranges: list[tuple[int, int | None]] = [(0, None)]
        elif file.size == 0 or file.ignores_ranges:
            ranges = [(0, file.size)]
        else:
            chains = file.partial.chains
            part = chains[0].stop if chains else self.step
            step = self.step - self.step % part if part <= self.step else self.step
            missing = spans.gaps(file.partial.done, start, file.size or 0)
            ranges = [*spans.cut(missing, step)]
        with self.lock:
            if self.hopeless:
                self._doom(file, self.hopeless)
            elif not file.verdict:
                self.ready.extend((file, start, stop, 0) for start, stop in ranges)
                file.users += len(ranges)
                self._hire()

    # A range: from the request to the journal

    def _fetch(self, file: _File, start: int, stop: int | None, tries: int) -> None:
        """Fetch a range of a file; how far it goes is the server's if stop is None."""
        me, at, noted, fault = threading.get_ident(), start, start, None
        chains: list[Chain] = []
        address = self._address(file)
        try:
            answer = self._ask(file, address, start, stop)
            stop = answer.stop
            self._say(3, f"{file.id}: bytes {start} to {stop}")
            chains = file.partial.take_chains(start, stop)
            with contextlib.closing(self.connections.chunks(answer)) as chunks:
                for chunk in chunks:
                    if self.stopped or file.verdict:
                        break
                    file.partial.put(at, chunk, chains)
                    at += len(chunk)
                    self.live[me] = at - start
                    if at - noted >= _NOTE_EVERY and file.partial.chains:
                        file.partial.record(noted, at)
                        noted = at
        except Fault as error:
            fault = error
        except OSError as error:
            self._local_fault(file, error)
        with self.lock:
            self.live[me] = 0
            self.settled += at - start
            if at == stop:
                self.fails_in_a_row = 0
        try:
            file.partial.record(noted, at)
            file.partial.release(chains)
        except OSError as error:
            self._local_fault(file, error)
        if fault and not self.stopped:
            tries = 0 if at - start >= _MUCH_PROGRESS else tries
            self._retry((file, at, stop, tries + 1), fault, address)
        self._leave(file)

    def _address(self, file: _File) -> str:
        if isinstance(file.url, str):
            return file.url
        with file.url_lock:
            return file.url(False)

    def _ask(self, file: _File, address: str, start: int, stop: int | None) -> Answer:
        """Ask for a range, and see that the answer is of the same object."""
        answer = self.connections.ask(
            address,
            start,
            stop,
            size=file.size,
            etag=file.etag,
            at_first=self.step,
            is_secret=callable(file.url),
        )
        fault = None
        with self.lock:
            if answer.etag and file.etag and answer.etag != file.etag:
                fault = Fault("it changed in the bucket", remedy="changed")
            elif file.size is not None and answer.size != file.size:
                n, sent = file.size, answer.size
                fault = Fault(f"the server has {sent} bytes of it instead of {n}")
            else:
                file.etag = file.etag or answer.etag
                file.last_modified = answer.last_modified
                file.has_answered = True
                if stop is None:
                    self.total += answer.size - (file.size or 0)
                    file.size, file.is_probed = answer.size, True
                    self._know(file)
                    if answer.stop < answer.size:
                        self._queue(file, answer.stop)
        if fault:
            self.connections.drop(answer)
            raise fault
        return answer

    # What goes wrong

    def _retry(self, job: _Range, fault: Fault, address: str) -> None:
        """Put a range off; or decide that its file fails or starts over."""
        file, _, _, tries = job
        wait = min(_FIRST_WAIT * 2 ** (tries - 1), _LONGEST_WAIT)
        wait = max(fault.wait, wait * random.uniform(0.5, 1.5))
        is_hopeful = tries < fault.tries and fault.remedy not in _RESTARTS
        if fault.remedy == "renew" and callable(file.url):
            is_hopeful = tries < _TRIES_RENEWED and self._renew(file, file.url, address)
            wait = 0.0
        with self.lock:
            if not is_hopeful:
                if tries > 1:
                    fault.reason += f" ({tries} times)"
                self._doom(file, fault)
            elif not file.verdict:
                self._say(3, f"{file.id}: {fault.reason}, again in {wait:.1f} s")
                file.users += 1
                self._put_off(job, wait)

    def _renew(self, file: _File, url: Callable[[bool], str], address: str) -> bool:
        """Get a new address in place of one that expired; once for an expiry."""
        with file.url_lock:
            if url(False) == address:
                if file.is_renewed and not file.has_answered:
                    return False
                file.is_renewed, file.has_answered = True, False
                url(True)
        return True

    def _local_fault(self, file: _File, error: OSError) -> None:
        """Note that a file cannot be written; a full disk ends the run."""
        text = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            free = readable_size(shutil.disk_usage(self.folder).free)
            message = (
                f"{text}: {free} are free in {self.folder}. What arrived stays; make "
                "space and call again to go on."
            )
            self._abort(_disk_error(message, error.errno or 0))
        with self.lock:
            self._doom(file, Fault(f"it cannot be written: {text.lower()}"))

    def _doom(self, file: _File, fault: Fault) -> None:
        """Decide that a file fails or starts over; the lock is held."""
        file.verdict = file.verdict or fault
        n_before = len(self.ready) + len(self.later)
        self.ready = deque(job for job in self.ready if job[0] is not file)
        self.later = [
            entry
            for entry in self.later
            if not (isinstance(entry[2], tuple) and entry[2][0] is file)
        ]
        heapq.heapify(self.later)
        file.users -= n_before - len(self.ready) - len(self.later)

    # A file: after its ranges

    def _leave(self, file: _File) -> None:
        """Stop working on a file; the last to leave concludes it."""
        with self.lock:
            file.users -= 1
            is_last = file.users == 0
        if is_last and not self.stopped:
            self._conclude(file)

    def _conclude(self, file: _File) -> None:
        fault = file.verdict
        try:
            fault = fault or self._publish(file)
        except OSError as error:
            self._local_fault(file, error)
            fault = file.verdict
        if self.stopped:
            return
        if not fault:
            seconds = time.monotonic() - file.began
            self._finish(file, f"{readable_size(file.size or 0)} in {seconds:.1f} s")
        elif file.restarts.count(fault.remedy) < _RESTARTS.get(fault.remedy, 0):
            self._start_over(file, fault)
        else:
            self._fail(file, fault)

    def _publish(self, file: _File) -> Fault | None:
        """Verify a file of which all has arrived, and give it its name."""
        wrong = file.partial.mismatch()
        if wrong:
            return Fault(wrong, remedy="mismatch")
        if not self.stopped:
            try:
                file.partial.publish()
            except FileNotFoundError:
                return Fault("its unfinished file was removed", remedy="lost")
        return None

    def _start_over(self, file: _File, fault: Fault) -> None:
        self._say(2, f"{file.id}: {fault.reason}; it is fetched anew")
        file.partial.close(keep=False)
        with self.lock:
            self.settled -= spans.length(file.partial.done)
            file.restarts.append(fault.remedy)
            if fault.remedy == "changed":
                self.total -= file.size or 0
                file.size, file.etag, file.is_probed = None, None, False
            file.ignores_ranges |= fault.remedy == "whole"
            self.pending.appendleft(file)
            self._hire()

    def _finish(self, file: _File, line: str) -> None:
        self._say(2, f"{file.id}: {line}")
        self._unlock(file)
        with self.lock:
            if "changed" in file.restarts:
                self.notes.append(
                    f"{file.id} changed in the bucket after it was listed; its new "
                    "version was fetched."
                )
            self._count_down()

    def _fail(self, file: _File, fault: Fault) -> None:
        self._say(2, f"{file.id}: failed, {fault.reason}")
        if file.partial:
            file.partial.close(keep=fault.remedy not in ("mismatch", "changed"))
        self._unlock(file)
        with self.lock:
            reason, status = fault.reason, fault.status
            file.failure = {"id": file.id, "reason": reason, "status": status}
            self.fails_in_a_row += 1
            if self.fails_in_a_row >= self.max_consecutive_fails and not self.hopeless:
                self._give_up()
            self._count_down()

    def _give_up(self) -> None:
        """Fail all that is unfinished; the lock is held."""
        n = self.fails_in_a_row
        self.hopeless = Fault(f"not tried any more, as {n} files failed in a row")
        for file in self.files:
            if file.users:
                self._doom(file, self.hopeless)
                if not file.users:
                    self._conclude(file)

    def _count_down(self) -> None:
        self.unfinished -= 1
        if not self.unfinished:
            self.finished.set()
            self.lock.notify_all()


def _disk_error(message: str, number: int = errno.ENOSPC) -> DiskSpaceError:
    error = DiskSpaceError(message)
    error.errno = number
    return error


class _Progress:
    """One bar for a run; now and then a line where there is no terminal."""

    def __init__(self, run: _Run):
        self.run = run
        self.began = self.said_at = time.monotonic()
        self.bar: Any = None
        if _can_draw():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=run.total, unit="B", unit_scale=True, miniters=1)

    def update(self) -> None:
        """Show how far the run is."""
        run = self.run
        while run.lines:
            line = run.lines.popleft()
            if self.bar is None:
                tell(line, 1)
            else:
                self.bar.write(line, sys.stderr)
        now = time.monotonic()
        if self.bar is not None:
            self.bar.total = run.total
            self.bar.set_postfix_str(self._files(), refresh=False)
            self._count_kept()
            self.bar.update(run.got() - self.bar.n)
        elif now - self.said_at >= _LINE_EVERY:
            self.said_at, got = now, run.got()
            rate = got / (now - self.began)
            left = f"{(run.total - got) / rate:.0f} s left" if rate else "stalled"
            size = f"{readable_size(got)} of {readable_size(run.total)}"
            tell(f"{self._files()}, {size}, {readable_size(rate)}/s, {left}", 1)

    def _count_kept(self) -> None:
        """Move the bar by what earlier calls left, without a change of its rate."""
        kept = self.run.kept - self.bar.initial
        self.bar.initial += kept
        self.bar.n += kept
        self.bar.last_print_n += kept

    def close(self) -> None:
        """Show the end of the run."""
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


def _can_draw() -> bool:
    stream = sys.stderr
    is_notebook = type(stream).__module__.startswith("ipykernel")
    return stream is not None and (is_notebook or stream.isatty())
