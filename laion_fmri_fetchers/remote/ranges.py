"""Ranges of objects, read by many threads at once, for whoever waits for them.

Any number of threads may read at the same time through one reader: their spans share
its connections. Retries and time-outs are those of downloads.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from . import retry, spans
from .client import Client, Fault, affordable
from .spans import RemoteObject, Span
from .tasks import Tasks, Threads

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
        self.target, self.reason, self.status = target, fault.reason, fault.status
        self.remedy = fault.remedy if fault.remedy in ("changed", "whole") else ""


class RangeReader:
    """Reads spans of objects over several connections; a context manager.

    Parameters
    ----------
    n_connections : int
        HTTP connections, at most.
    timeout : float
        Seconds without a byte after which a connection is given up.
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
        self._client = Client(self.n_connections, timeout)
        self._threads = Threads(self.n_connections)
        self._on_bytes = on_bytes
        self._latencies: deque[float] = deque(maxlen=_MEASURED)
        self._rates: deque[float] = deque(maxlen=_MEASURED)
        self._n_receiving, self._lock = 0, threading.Lock()

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all that reads; who waits gets an `InterruptedError`."""
        self._threads.__exit__()
        self._client.__exit__()

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
        Exception
            What a sink raises.
        """
        tasks = Tasks(self._threads)
        for span in spans:
            tasks.submit(None, self._read_span, tasks, target, span, [span.start])
        try:
            for _ in tasks.results("", 0):
                pass
        except Fault as fault:
            raise RangeError(target, fault) from None
        finally:
            # After that no sink is called, whose array or file may be gone.
            tasks.stop(self._client.timeout if tasks.n_open else 0.0)

    def read_bytes(self, target: RemoteObject, start: int, stop: int) -> bytearray:
        """Return bytes of an object."""
        content = bytearray(stop - start)
        step = max(self.worth, spans.SMALLEST_PIECE)
        edges = [*range(start, stop, step), stop]

        def keep(position: int, chunk: memoryview) -> None:
            content[position - start : position - start + len(chunk)] = chunk

        pairs = itertools.pairwise(edges)
        self.read(target, [Span(a, b, keep) for a, b in pairs])
        return content

    def look_up(self, target: RemoteObject) -> RemoteObject:
        """Return an object in the version that the server has now.

        Raises
        ------
        Fault
            If it does not say.
        """
        with self._client.range(target.url, 0, 1) as reply:
            return target._replace(size=reply.size, etag=reply.etag)

    def _read_span(
        self, tasks: Tasks, target: RemoteObject, span: Span, place: list[int]
    ) -> None:
        """Read what is missing of a span; by a thread."""
        first, began = place[0], time.monotonic()
        try:
            with self._client.range(
                *(target.url, place[0], span.stop), size=target.size, etag=target.etag
            ) as reply:
                answered = time.monotonic()
                self._latencies.append(answered - began)
                self._note_receiving(1)
                try:
                    for chunk in reply.chunks:
                        if tasks.is_stopped:
                            return
                        span.sink(place[0], memoryview(chunk))
                        place[0] += len(chunk)
                        self._on_bytes(len(chunk))
                    if place[0] - first >= _WORTH_MEASURING:
                        seconds = max(time.monotonic() - answered, 1e-6)
                        rate = (place[0] - first) / seconds
                        self._rates.append(rate * self._n_receiving)
                finally:
                    self._note_receiving(-1)
        except Fault as fault:
            fault.has_progressed = place[0] - first >= retry.PROGRESS
            raise

    def _note_receiving(self, n: int) -> None:
        with self._lock:
            self._n_receiving += n
