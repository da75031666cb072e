"""Objects of the bucket, and pieces of them that are to be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Sink = Callable[[int, memoryview], None]
"""Takes bytes and their position in the object; they are valid until it returns."""


class RemoteObject(NamedTuple):
    """An object of the bucket, in the version that is meant."""

    id: str
    url: str
    size: int | None
    etag: str | None


class Span(NamedTuple):
    """Bytes ``start`` to ``stop`` of an object, and what takes them."""

    start: int
    stop: int
    sink: Sink
