"""Ranges of objects, read by many threads at once, for whoever waits for them.

::

    RangeReader.read ─▶ JobQueue ─▶ _Reading.fetch   request ─▶ chunks ─▶ sink
                     └─ waits until all spans are read, or one has failed

Any number of threads may read at the same time through one reader: their spans share
its connections. Connections, retries and time-outs are those of downloads.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from . import policy
from .connections import Connections, Fault, RangeReply, affordable, misfit
from .jobs import Job, JobQueue
from .spans import RemoteObject, Span

_STARTS_OVER = frozenset({"changed", "whole"})
"""Remedies that concern the whole object, not a range of it."""

_ENDS = _STARTS_OVER | {"renew"}
"""Remedies that a reader has not: addresses in the bucket are not renewed."""

_MEASURED = 64
"""Requests that the measured latency and bandwidth are those of."""

_WORTH_MEASURING = 2**16
"""Bytes from which the time of a body tells of the bandwidth, not of the latency."""


class RangeError(Exception):
    """A span that could not be read, after all retries.

    Attributes
    ----------
    target : RemoteObject
        Of which it was.
    reason : str
        In words for the user.
    status : int or None
        HTTP status.
    remedy : str
        ``"changed"`` where the object is another one now, ``"whole"`` where the server
        does not send ranges; else empty.
    """

    def __init__(self, target: RemoteObject, fault: Fault):
        super().__init__(f"{target.id}: {fault.reason}")
        self.target, self.reason = target, fault.reason
        self.status = fault.status
        self.remedy = fault.remedy if fault.remedy in _STARTS_OVER else ""


class RangeReader:
    """Reads spans of objects over several connections; a context manager.

    Parameters
    ----------
    n_connections : int
        HTTP connections, at most.
    timeout : float
        Seconds without progress after which a connection is given up.
    on_bytes : callable, optional
        Called with the number of bytes of each chunk that arrives, by any thread.
    """

    def __init__(
        self,
        n_connections: int,
        timeout: float,
        on_bytes: Callable[[int], None] = lambda _: None,
    ):
        self.n_connections = affordable(n_connections)
        self._queue = JobQueue(self.n_connections, on_error=self._end)
        self.connections = Connections(timeout)
        self.on_bytes = on_bytes
        self._latencies: deque[float] = deque(maxlen=_MEASURED)
        self._rates: deque[float] = deque(maxlen=_MEASURED)
        self._n_receiving, self._lock = 0, threading.Lock()
        self._error: BaseException | None = None

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all that reads; who waits gets an error."""
        self._queue.stop()
        self.connections.cut()
        self._queue.join(policy.POLICY.join)
        self.connections.close()

    @property
    def worth(self) -> int:
        """Bytes that take as long as a request does without its body.

        Such a request keeps a connection from its share of the bandwidth.
        """
        if not (self._latencies and self._rates):
            return 0
        share = statistics.median([*self._rates]) / self.n_connections
        return int(statistics.median([*self._latencies]) * share)

    def read(self, target: RemoteObject, spans: Iterable[Span]) -> None:
        """Read spans of an object; return once their sinks have had all bytes.

        Raises
        ------
        RangeError
            If a span cannot be read.
        BaseException
            What a sink raises.
        """
        pending = _Reading(target, list(spans), self)
        if not pending.n_left:
            return
        self._queue.put(pending.jobs())
        try:
            while not pending.finished.wait(policy.POLICY.watch_every):
                self.connections.cut_stuck()
                if self._queue.is_stopped:
                    raise self._error or InterruptedError("the reader was stopped")
        finally:
            self._queue.withdraw(pending)
            pending.close()
        if pending.error:
            raise pending.error

    def read_bytes(self, target: RemoteObject, start: int, stop: int) -> bytearray:
        """Return bytes of an object."""
        content = bytearray(stop - start)
        step = max(self.worth, policy.POLICY.smallest_piece)
        edges = [*range(start, stop, step), stop]

        def keep(position: int, chunk: memoryview) -> None:
            content[position - start : position - start + len(chunk)] = chunk

        pairs = itertools.pairwise(edges)
        self.read(target, [Span(a, b, keep) for a, b in pairs])
        return content

    def ask(self, target: RemoteObject, start: int, stop: int) -> RangeReply:
        """Ask for a range, and measure how long the answer takes."""
        began = time.monotonic()
        reply = self.connections.ask(
            target.url,
            start,
            stop,
            size=target.size,
            etag=target.etag,
            at_first=0,
            is_secret=False,
        )
        if fault := misfit(reply, target.size, target.etag):
            self.connections.drop(reply)
            raise fault
        self._latencies.append(time.monotonic() - began)
        return reply

    def chunks(self, reply: RangeReply) -> Iterator[memoryview]:
        """Yield the chunks of a body, count them, and measure the bandwidth."""
        began, n_bytes = time.monotonic(), 0
        self._note_receiving(1)
        try:
            with contextlib.closing(self.connections.chunks(reply)) as chunks:
                for chunk in chunks:
                    yield chunk
                    n_bytes += len(chunk)
                    self.on_bytes(len(chunk))
            if n_bytes >= _WORTH_MEASURING:
                rate = n_bytes / max(time.monotonic() - began, 1e-6)
                self._rates.append(rate * self._n_receiving)
        finally:
            self._note_receiving(-1)

    def _note_receiving(self, n: int) -> None:
        with self._lock:
            self._n_receiving += n

    def put_off(self, job: Job, seconds: float) -> None:
        """Let a job be done after a while."""
        self._queue.put_off(job, seconds)

    def _end(self, error: BaseException) -> None:
        self._error = error
        self._queue.stop()


class _Reading:
    """Spans that somebody waits for."""

    def __init__(self, target: RemoteObject, spans: list[Span], reader: RangeReader):
        self.target, self.reader = target, reader
        self.finished = threading.Event()
        self.error: BaseException | None = None
        self.n_left = len(spans)
        self._spans = spans
        self._changed = threading.Condition()
        self._n_taking = 0
        self._is_closed = False

    def jobs(self) -> Iterator[Job]:
        """Yield what threads are to do."""
        for span in self._spans:
            yield self._job(span, 0)

    def _job(self, span: Span, n_tried: int) -> Job:
        return Job(lambda: self._fetch(span, n_tried), 0, self)

    def _fetch(self, span: Span, n_tried: int) -> None:
        """Fetch a span; what lacks in the end is tried again, or fails the reading."""
        place, fault = span.start, None
        try:
            reply = self.reader.ask(self.target, span.start, span.stop)
            for chunk in self.reader.chunks(reply):
                if not self._take(span, place, chunk):
                    return
                place += len(chunk)
        except Fault as error:
            fault = error
        except Exception as error:
            self._fail(error)
            return
        if fault is None:
            self._note_end()
            return
        has_moved = place - span.start >= policy.POLICY.much_progress
        n_tried = 1 if has_moved else n_tried + 1
        if n_tried >= fault.tries or fault.remedy in _ENDS:
            self._fail(RangeError(self.target, fault))
            return
        wait = policy.POLICY.wait(n_tried, fault.wait)
        self.reader.put_off(self._job(span._replace(start=place), n_tried), wait)

    def close(self) -> None:
        """Let no sink be called any more, and wait for those that are."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._n_taking)

    def _take(self, span: Span, place: int, chunk: memoryview) -> bool:
        """Hand a chunk over, unless nobody waits for it any more."""
        with self._changed:
            if self._is_closed:
                return False
            self._n_taking += 1
        try:
            span.sink(place, chunk)
        finally:
            with self._changed:
                self._n_taking -= 1
                self._changed.notify_all()
        return True

    def _note_end(self) -> None:
        with self._changed:
            self.n_left -= 1
            if not self.n_left:
                self.finished.set()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.error = self.error or error
        self.finished.set()
