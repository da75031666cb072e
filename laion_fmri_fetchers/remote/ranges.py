"""Ranges of objects, read by many threads at once, for whoever waits for them.

Any number of threads may read at the same time through one reader: their spans share
its connections. Retries and time-outs are those of downloads.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, wait

from . import spans
from .client import Client, Fault, Threads
from .spans import RemoteObject, Span

# Requests that the measured worth of a request is the median of.
_MEASURED = 64
# Bytes from which the time of a body tells of the bandwidth, not of the latency.
_WORTH_MEASURING = 2**16


class RangeReader(contextlib.AbstractContextManager["RangeReader"]):
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
        self._client = Client(n_connections, timeout)
        self.n_connections = self._client.n_connections
        self._threads = Threads(self.n_connections)
        self._on_bytes = on_bytes
        # Of the last requests, the bytes that a connection moves in a latency.
        self._worths: deque[float] = deque(maxlen=_MEASURED)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End all that reads; who waits gets a `concurrent.futures.CancelledError`."""
        self._threads.__exit__()
        self._client.__exit__()

    @property
    def worth(self) -> int:
        """Bytes that a connection moves in the time of a request without its body."""
        return int(statistics.median([*self._worths])) if self._worths else 0

    def read(self, target: RemoteObject, spans: Iterable[Span]) -> None:
        """Read spans of an object; return once their sinks have had all bytes.

        Raises
        ------
        Fault
            If a span cannot be read; its reason names the object.
        Exception
            What a sink raises.
        """
        is_over = threading.Event()
        futures = [
            self._threads.submit(self._read_span, target, span, is_over)
            for span in spans
        ]
        try:
            for future in futures:
                future.result()
        except Fault as fault:
            fault.reason = f"{target.id}: {fault.reason}"
            raise
        finally:
            # After that no sink is called, whose array or file may be gone.
            is_over.set()
            running = [future for future in futures if not future.cancel()]
            wait(running, self._client.timeout)

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
        size, etag, _ = self._client.look_up(target.url)
        return target._replace(size=size, etag=etag)

    def _read_span(
        self, target: RemoteObject, span: Span, is_over: threading.Event
    ) -> None:
        """Read a span; by a thread."""

        def sink(position: int, chunk: bytes) -> None:
            if is_over.is_set():
                raise CancelledError
            span.sink(position, memoryview(chunk))
            self._on_bytes(len(chunk))

        began = time.monotonic()
        self._client.read_range(target, span.start, span.stop, sink)
        if span.stop - span.start >= _WORTH_MEASURING:
            latency = self._client.latency
            seconds = max(time.monotonic() - began - latency, 1e-6)
            self._worths.append(latency * (span.stop - span.start) / seconds)
