"""Ranges of objects, read by many threads at once, for whoever waits for them.

Any number of threads may read at the same time through one reader: their ranges share
its connections. Retries and time-outs are those of downloads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, wait

from .client import Client, Fault, RemoteObject, Threads

# Bytes of a request, at least, where a longer range is split over connections: shorter
# ones would be mostly latency.
SMALLEST_PIECE = 4 * 2**20

# Takes bytes and their position in the object; called by any thread.
Sink = Callable[[int, memoryview], None]


class RangeReader(contextlib.AbstractContextManager["RangeReader"]):
    """Reads ranges of objects over several connections; a context manager.

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
        self._threads = Threads(self._client.n_connections)
        self._on_bytes = on_bytes

    def __exit__(self, *_: object) -> None:
        """End all that reads; who waits gets a `concurrent.futures.CancelledError`."""
        self._threads.__exit__()
        self._client.__exit__()

    def read(
        self, target: RemoteObject, ranges: Iterable[tuple[int, int]], sink: Sink
    ) -> None:
        """Read ranges of an object; return once the sink has had all bytes.

        Raises
        ------
        Fault
            If a range cannot be read; its reason names the object.
        Exception
            What the sink raises.
        """
        is_over = threading.Event()

        def take(position: int, chunk: bytes) -> None:
            if is_over.is_set():
                raise CancelledError
            sink(position, memoryview(chunk))
            self._on_bytes(len(chunk))

        futures = [
            self._threads.submit(self._client.read_range, target, start, stop, take)
            for start, stop in ranges
        ]
        try:
            for future in futures:
                future.result()
        except Fault as fault:
            fault.reason = f"{target.id}: {fault.reason}"
            raise
        finally:
            # After that the sink is not called, whose array or file may be gone.
            is_over.set()
            running = [future for future in futures if not future.cancel()]
            wait(running, self._client.timeout)

    def read_bytes(self, target: RemoteObject, start: int, stop: int) -> bytearray:
        """Return bytes of an object."""
        content = bytearray(stop - start)

        def keep(position: int, chunk: memoryview) -> None:
            content[position - start : position - start + len(chunk)] = chunk

        self.read(target, split(start, stop, SMALLEST_PIECE), keep)
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


def split(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """Return a range in pieces.

    >>> split(0, 10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    return [(place, min(place + step, stop)) for place in range(start, stop, step)]
