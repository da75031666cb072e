"""A range of a file on its way: from the request over chunks on disk to the journal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from . import policy
from .checksums import Chain
from .connections import Fault, RangeReply, misfit
from .jobs import Job

if TYPE_CHECKING:
    from .file_download import FileDownload

RANGE_FIRST = 0
"""Priority of ranges among the jobs of a run."""

_STARTS_OVER = frozenset({"changed", "whole"})
"""Remedies that concern the whole file, not a range of it."""


class RangeDownload(NamedTuple):
    """A range to fetch; where ``stop`` is None, the server says how far it goes."""

    file: FileDownload
    start: int
    stop: int | None
    n_tried: int = 0

    def job(self) -> Job:
        """Return the job of a thread, which is withdrawn with the file."""
        return Job(self.fetch, RANGE_FIRST, self.file)

    def fetch(self) -> None:
        """Fetch the range; the missing end is tried again, or the file fails."""
        file, run = self.file, self.file.run
        place = noted = self.start
        stop, fault = self.stop, None
        chains: list[Chain] = []
        address = file.address.current()
        try:
            reply = self._ask(address)
            stop = reply.stop
            run.progress.say(3, f"{file.id}: bytes {self.start} to {stop}")
            chains = file.partial.take_chains(self.start, stop)
            with contextlib.closing(run.connections.chunks(reply)) as chunks:
                for chunk in chunks:
                    if run.queue.is_stopped or file.verdict:
                        break
                    file.partial.put(place, chunk, chains)
                    place += len(chunk)
                    run.progress.arrived(len(chunk))
                    # Without hashes each note waits for the disk: then one will do.
                    is_due = place - noted >= policy.POLICY.note_every
                    if is_due and file.partial.chains:
                        file.partial.record(noted, place)
                        noted = place
        except Fault as error:
            fault = error
        except OSError as error:
            file.note_local_error(error)
        if place == stop:
            run.note_success()
        try:
            file.partial.record(noted, place)
            file.partial.release(chains)
        except OSError as error:
            file.note_local_error(error)
        if fault and not run.queue.is_stopped:
            has_moved = place - self.start >= policy.POLICY.much_progress
            n_tried = 1 if has_moved else self.n_tried + 1
            rest = RangeDownload(file, place, stop, n_tried)
            rest._retry(fault, address)
        file.leave()

    def _ask(self, address: str) -> RangeReply:
        """Ask for the range, and see that the answer is of the same object."""
        file, run = self.file, self.file.run
        reply = run.connections.ask(
            address,
            self.start,
            self.stop,
            size=file.version.size,
            etag=file.version.etag,
            at_first=run.step,
            is_secret=file.address.is_secret,
        )
        with run.lock:
            fault = misfit(reply, *file.version[:2])
            if not fault:
                self._note(reply)
        if fault:
            run.connections.drop(reply)
            raise fault
        return reply

    def _note(self, reply: RangeReply) -> None:
        """Take note of an answer's facts about the object; the lock is held."""
        file = self.file
        file.address.note_answer()
        version = file.version._replace(
            etag=file.version.etag or reply.etag, last_modified=reply.last_modified
        )
        if self.stop is not None:
            file.version = version
            return
        file.run.progress.resized(reply.size - (version.size or 0))
        file.version = version._replace(size=reply.size, is_confirmed=True)
        file.settle()
        if reply.stop < reply.size:
            file.queue_ranges(reply.stop)

    def _retry(self, fault: Fault, address: str) -> None:
        """Put the range off; or decide that its file fails or starts over."""
        file, run, limits = self.file, self.file.run, policy.POLICY
        wait = limits.wait(self.n_tried, fault.wait)
        is_hopeful = self.n_tried < fault.tries and fault.remedy not in _STARTS_OVER
        if fault.remedy == "renew" and file.address.is_secret:
            is_hopeful = self.n_tried < limits.tries_renewed
            is_hopeful = is_hopeful and file.address.renew(address)
            wait = 0.0
        with run.lock:
            if not is_hopeful:
                if self.n_tried > 1:
                    fault.reason += f" ({self.n_tried} times)"
                file.doom(fault)
            elif not file.verdict:
                again = f"{fault.reason}, again in {wait:.1f} s"
                run.progress.say(3, f"{file.id}: {again}")
                file.put_off(self.job(), wait)
