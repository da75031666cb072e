"""Objects of the bucket, and pieces of them that are to be read; no HTTP client."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

# Bytes in a request at least where a piece of an object is cut for several
# connections: shorter ones would be mostly latency.
SMALLEST_PIECE = 4 * 2**20

# Takes bytes and their position in the object.
Sink = Callable[[int, memoryview], None]


class RemoteObject(NamedTuple):
    """An object of the bucket, in the version that is meant."""

    id: str
    url: str
    size: int | None
    etag: str | None
    # Given an address that was denied, returns the current one. Addresses of an object
    # that has such a function are secret: they are for their server alone.
    renew: Callable[[str], str] | None = None


class Span(NamedTuple):
    """Bytes ``start`` to ``stop`` of an object, and what takes them."""

    start: int
    stop: int
    sink: Sink
