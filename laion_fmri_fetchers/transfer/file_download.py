"""A file on its way: from its lock over its ranges to its name.

::

    WAITING ─▶ LOCKED ─▶ DOWNLOADING ─▶ VERIFYING ─▶ DONE
       open      │ ▲          leave         │ conclude
                 │ └── starts over ─────────┤
                 └──────────────────────────┴─────▶ FAILED
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from laion_fmri_fetchers.messages import readable_size

from . import leftovers, partials, ranges
from .address import Address
from .checksums import bare
from .connections import Fault
from .disks import nearest
from .jobs import Job
from .locks import Claim
from .partials import Partial
from .range_download import RANGE_FIRST, RangeDownload

if TYPE_CHECKING:
    from .transfer import Download, Run

AGAIN_NEXT, OPEN_LAST = RANGE_FIRST + 1, RANGE_FIRST + 2
"""Priorities: ranges of open files first, such that few files are unfinished at a time;
then files that start over, then new ones."""

_RESTARTS = {"changed": 3, "whole": 3, "lost": 2, "mismatch": 1}
"""How often a file starts over, by what went wrong. An object may be written to a few
times in a row; a proxy may ignore Range for a while; a removed file is removed again
by something that will not stop; and bytes that are wrong twice are wrong in the bucket.
"""


class State(enum.Enum):
    """Where a file is on its way."""

    WAITING = "for its turn, or for another process that fetches it"
    LOCKED = "by this process, or not to be waited for any longer"
    DOWNLOADING = "its ranges"
    VERIFYING = "its hash, and giving it its name"
    DONE = "and in its place"
    FAILED = "for good"


_NEXT = {
    State.WAITING: {State.LOCKED, State.FAILED},
    State.LOCKED: {State.DOWNLOADING, State.DONE, State.FAILED},
    State.DOWNLOADING: {State.VERIFYING},
    State.VERIFYING: {State.LOCKED, State.DONE, State.FAILED},
    State.DONE: set(),
    State.FAILED: set(),
}


class ObjectVersion(NamedTuple):
    """Facts about the object: from the listing, then from the server.

    ``is_confirmed`` says that size and ETag are the server's.
    """

    size: int | None
    etag: str | None
    sha256: str | None
    last_modified: str | None = None
    is_confirmed: bool = False

    @property
    def is_certain(self) -> bool:
        """Whether ranges can be planned, and their answers seen to fit."""
        has_name = bool(self.etag or self.sha256 or self.is_confirmed)
        return self.size is not None and has_name


class FileDownload:
    """A file on its way; the run's lock guards what several threads change.

    Attributes
    ----------
    state : State
        Where it is on its way.
    version : ObjectVersion
        What is known of the object.
    verdict : Fault or None
        Why it fails or starts over, once that is decided.
    restarts : list of str
        What made it start over so far.
    failure : dict or None
        Why it failed, for the caller.
    """

    def __init__(self, download: Download, run: Run):
        self.run = run
        self.id, self.path = download.id, os.path.abspath(download.path)
        self.address = Address(download.url)
        etag = bare(download.etag) if download.etag else None
        self.version = ObjectVersion(download.size, etag, download.sha256)
        relative = os.path.relpath(self.path, run.folder)
        self.stem = partials.stem(relative)
        folder_stem = partials.stem(os.path.dirname(relative))
        self.claim = Claim(run.locks, self.stem, folder_stem)
        self.state = State.WAITING
        self.partial: Partial = None  # type: ignore[assignment]
        self.verdict: Fault | None = None
        self.restarts: list[str] = []
        self.failure: dict[str, Any] | None = None
        self._n_users = 0
        self._began = 0.0

    # From the lock to the ranges

    def open(self) -> None:
        """Lock the file, reuse what others left of it, and queue the missing ranges."""
        run, size = self.run, self.version.size
        if run.hopeless:
            self._fail(run.hopeless)
            return
        if self.state is State.WAITING:
            is_small = size is not None and size <= run.small_file
            wait = self.claim.take(is_small, run.timeout)
            if wait:
                run.queue.put_off(Job(self.open, OPEN_LAST), wait)
                return
            self._enter(State.LOCKED)
        is_first = not self.restarts
        if is_first and not run.overwrite and leftovers.is_whole(self.path, size):
            run.progress.arrived(size or 0)
            self._finish("another process fetched it")
            return
        place = nearest(os.path.dirname(self.path))
        if os.path.isdir(place) and not os.access(place, os.W_OK | os.X_OK):
            reason = os.strerror(errno.EACCES).lower()
            self._fail(Fault(f"the folder {place} cannot be written: {reason}"))
            return
        self._began = self._began or time.monotonic()
        self._n_users, self.verdict = 1, None
        self._enter(State.DOWNLOADING)
        try:
            self.partial = Partial(
                run.folder,
                self.path,
                self.version.sha256,
                lambda: run.queue.is_stopped,
            )
            if is_first:
                self._reuse()
            if self.version.is_certain:
                self.settle()
            self.queue_ranges()
        except OSError as error:
            self.note_local_error(error)
        self.leave()

    def _reuse(self) -> None:
        """Copy the finished ranges of unfinished files that others left."""
        run = self.run
        groups = run.leftovers
        if self.claim.n_looks:  # the process that was waited for may have been killed
            groups = leftovers.leftovers(run.folder)
        for leftover in groups.get(self.stem, ()):
            size, etag, sha256 = self.version[:3]
            if leftover.fits(size, etag, sha256):
                header = leftover.header
                self.version = self.version._replace(
                    size=header["size"], etag=header["etag"]
                )
                self.settle()
                # One at a time: a copy is freed before the next one is made.
                with run.copying, contextlib.suppress(FileNotFoundError):
                    n_bytes = self.partial.copy(leftover.part, leftover.done)
                    run.progress.reused(n_bytes)
                    if leftover.is_free and not run.queue.is_stopped:
                        leftover.remove()

    def settle(self) -> None:
        """Tell the partial file what size and ETag it is to have."""
        if self.partial.size != self.version.size:
            self.partial.know(self.version.size or 0, self.version.etag)

    def queue_ranges(self, start: int = 0) -> None:
        """Queue the ranges that are not on disk, from a byte on."""
        size, step = self.version.size, self.run.step
        if not self.version.is_certain:
            missing: list[tuple[int, int | None]] = [(0, None)]
        elif size == 0 or "whole" in self.restarts:
            missing = [(0, size)]
        else:
            # Where parts are hashed, each is fetched whole, and hashed as it arrives.
            chains = self.partial.chains
            part = chains[0].stop if chains else step
            step = step - step % part if part <= step else step
            gaps = ranges.gaps(self.partial.done, start, size or 0)
            missing = [*ranges.cut(gaps, step)]
        with self.run.lock:
            if self.run.hopeless:
                self.doom(self.run.hopeless)
            elif not self.verdict:
                self._n_users += len(missing)
                self.run.queue.put(
                    RangeDownload(self, first, stop).job() for first, stop in missing
                )

    def put_off(self, job: Job, seconds: float) -> None:
        """Let a range of the file be fetched again later; the lock is held."""
        self._n_users += 1
        self.run.queue.put_off(job, seconds)

    # What goes wrong

    def doom(self, fault: Fault) -> None:
        """Decide that the file fails or starts over; the lock is held."""
        self.verdict = self.verdict or fault
        self._n_users -= self.run.queue.withdraw(self)

    def give_up(self, fault: Fault) -> None:
        """Fail, at once if no thread is at work on the file; the lock is held."""
        if self._n_users:
            self.doom(fault)
            if not self._n_users:
                self._conclude()

    def note_local_error(self, error: OSError) -> None:
        """Take note that the file cannot be written; a full disk ends the run."""
        self.run.end_if_full(error)
        text = os.strerror(error.errno) if error.errno else str(error)
        with self.run.lock:
            self.doom(Fault(f"it cannot be written: {text.lower()}"))

    # After the ranges

    def leave(self) -> None:
        """Stop working on the file; the last thread to leave concludes it."""
        with self.run.lock:
            self._n_users -= 1
            is_last = self._n_users == 0
        if is_last and not self.run.queue.is_stopped:
            self._conclude()

    def _conclude(self) -> None:
        self._enter(State.VERIFYING)
        fault = self.verdict
        try:
            fault = fault or self._publish()
        except OSError as error:
            self.note_local_error(error)
            fault = self.verdict
        if self.run.queue.is_stopped:
            return
        if not fault:
            seconds = time.monotonic() - self._began
            size = readable_size(self.version.size or 0)
            self._finish(f"{size} in {seconds:.1f} s")
        elif self.restarts.count(fault.remedy) < _RESTARTS.get(fault.remedy, 0):
            self._start_over(fault)
        else:
            self._fail(fault)

    def _publish(self) -> Fault | None:
        """Verify a file of which all has arrived, and give it its name."""
        wrong = self.partial.mismatch()
        if wrong:
            return Fault(wrong, remedy="mismatch")
        if not self.run.queue.is_stopped:
            try:
                self.partial.publish()
            except FileNotFoundError:
                # A process that takes this one as gone removed the unfinished file,
                # and may have fetched the whole one instead.
                if not self.partial.is_published():
                    return Fault("its unfinished file was removed", remedy="lost")
        return None

    def _start_over(self, fault: Fault) -> None:
        progress = self.run.progress
        progress.say(2, f"{self.id}: {fault.reason}; it is downloaded again")
        self.partial.close(keep=False)
        progress.arrived(-ranges.length(self.partial.done))
        with self.run.lock:
            self.restarts.append(fault.remedy)
            if fault.remedy == "changed":
                progress.resized(-(self.version.size or 0))
                self.version = ObjectVersion(None, None, self.version.sha256)
            self._enter(State.LOCKED)
            self.run.queue.put([Job(self.open, AGAIN_NEXT)])

    def _finish(self, line: str) -> None:
        self.run.progress.say(2, f"{self.id}: {line}")
        self.claim.give_back()
        self._enter(State.DONE)
        self.run.note_end(self)

    def _fail(self, fault: Fault) -> None:
        self.run.progress.say(2, f"{self.id}: failed, {fault.reason}")
        if self.partial:
            self.partial.close(keep=fault.remedy not in ("mismatch", "changed"))
        self.claim.give_back()
        self._enter(State.FAILED)
        reason, status = fault.reason, fault.status
        self.failure = {"id": self.id, "reason": reason, "status": status}
        self.run.note_end(self)

    def abandon(self) -> None:
        """Leave the file as it is, for a later call to go on from."""
        if self.partial:
            self.partial.close(keep=True)
        self.claim.give_back()

    def _enter(self, state: State) -> None:
        assert state in _NEXT[self.state], (self.state, state)
        self.state = state
