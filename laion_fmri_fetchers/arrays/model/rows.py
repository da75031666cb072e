"""Rows of a model's betas, read by ranges: of contiguous values, or of chunks.

::

    rows_of ─▶ ContiguousRows ─▶ runs_of ─▶ RangeReader.read ─▶ _Scatter ─▶ PartWriter
            └▶ ChunkedRows ───▶ hdf5.read_chunks ────────────────▶ PartWriter
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from laion_fmri_fetchers.arrays.disk import write_at
from laion_fmri_fetchers.arrays.voxel_store import PartWriter, bytes_of
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.remote import spans as spans_of
from laion_fmri_fetchers.remote.spans import (
    RemoteObject,
    Sink,
    Span,
)

from .hdf5 import Chunk, Layout, LayoutError, read_chunks

BETAS = "betasmd"
"""The dataset of a model file that holds the betas."""

_MOST_UNUSED = 0.5
"""Bytes between rows that are read with them, as a multiple of the rows': at most,
unless there are many requests to save."""

_MANY = 4
"""Requests per connection that are many: fewer take a moment anyway, and not to read
what nobody asked for is worth more than that."""

_ROUND_TRIPS = 16
"""Time that a line needs for a request at least, in round trips, if rows are many: on a
fast line more connections at once are not faster, but get in each other's way."""

_FEW = 8
"""Requests for many rows, at least."""

_LARGEST_BAND = 2**27
"""Bytes of chunks side by side that are in memory at once, at most."""

_N_BLOCKS = 8
"""Places of the file from which rows are taken for a sample."""

_CONVERTED = 2**24
"""Bytes of values converted at once."""

Put = Callable[[int, memoryview], None]
"""Takes bytes and their position among the rows that are read."""


class Reader(Protocol):
    """What reads ranges, such as a `RangeReader`."""

    @property
    def n_connections(self) -> int:
        """HTTP connections, at most."""

    @property
    def worth(self) -> int:
        """Bytes that take as long as a request without its body."""

    def read(self, target: RemoteObject, spans: Iterable[Span]) -> None:
        """Read spans of an object."""

    def read_bytes(
        self, target: RemoteObject, start: int, stop: int
    ) -> bytes | bytearray:
        """Return bytes of an object."""


def rows_of(
    layout: Layout, target: RemoteObject, reader: Reader
) -> ContiguousRows | ChunkedRows:
    """Return what reads rows of a layout."""
    kind = ChunkedRows if layout.offset is None else ContiguousRows
    return kind(layout, target, reader)


def sample(n_rows: int, n_wanted: int) -> np.ndarray:
    """Return rows spread over a file, in blocks, as neighbours come in one range.

    Examples
    --------
    >>> sample(1000, 16).tolist()[:4], sample(5, 16).tolist()
    ([0, 1, 142, 143], [0, 1, 2, 3, 4])
    """
    if n_rows <= n_wanted:
        return np.arange(n_rows)
    in_block = -(-n_wanted // _N_BLOCKS)
    starts = np.linspace(0, n_rows - in_block, _N_BLOCKS).astype(int)
    return np.unique(np.add.outer(starts, np.arange(in_block)))


def runs_of(
    rows: np.ndarray, row_size: int, worth: int = 0, n_connections: int = 1
) -> list[tuple[int, int]]:
    """Return the ranges of rows to read, so that rows are had soonest.

    The bytes between two rows are read with them where that takes no longer than a
    request of their own, the smallest gaps first.

    Parameters
    ----------
    rows : numpy.ndarray of int
        Increasing.
    row_size : int
        Bytes.
    worth : int, default=0
        Bytes that take as long as a request without a body.
    n_connections : int, default=1
        Requests at once.

    Examples
    --------
    >>> runs_of(np.array([0, 1, 3, 90]), 100, worth=1000)
    [(0, 4), (90, 91)]
    >>> runs_of(np.empty(0, int), 100)
    []
    """
    if not len(rows):
        return []
    gaps = np.diff(rows) - 1
    by_size = np.argsort(gaps, kind="stable")
    read_too = np.cumsum(gaps[by_size])
    n_left = np.arange(len(gaps), 0, -1)
    is_much = read_too > _MOST_UNUSED * len(rows)
    fits = ~is_much | (n_left > _MANY * n_connections)
    fits &= gaps[by_size] * row_size <= worth
    is_joined = np.zeros(len(gaps), dtype=bool)
    is_joined[by_size[fits]] = True
    is_joined |= gaps == 0
    edges = np.flatnonzero(~is_joined)
    starts = [0, *(edges + 1).tolist()]
    stops = [*edges.tolist(), len(rows) - 1]
    return [
        (int(rows[a]), int(rows[b]) + 1) for a, b in zip(starts, stops, strict=True)
    ]


class ContiguousRows:
    """Rows that lie one after the other."""

    def __init__(self, layout: Layout, target: RemoteObject, reader: Reader):
        self.layout, self._target, self._reader = layout, target, reader
        self._offset = layout.offset or 0

    def size(self, rows: np.ndarray) -> int:
        """Return the bytes to read for rows."""
        runs = self._runs(rows)
        return sum(stop - start for start, stop in runs) * self.layout.row_size

    def first_column(self, rows: np.ndarray) -> np.ndarray:
        """Return column 0 of rows, float32."""
        layout, column = self.layout, []
        runs = runs_of(rows, layout.row_size)
        contents = {start: bytearray() for start, _ in runs}
        spans = []
        for start, stop in runs:
            # Of the last row, only the first value is needed.
            n_bytes = (stop - start - 1) * layout.row_size + layout.dtype.itemsize
            content = contents[start] = bytearray(n_bytes)
            a = self._offset + start * layout.row_size
            spans.append(Span(a, a + n_bytes, _keep_in(content, a)))
        self._reader.read(self._target, spans)
        for start, stop in runs:
            values = [
                np.frombuffer(contents[start], layout.dtype, 1, i * layout.row_size)
                for i in range(stop - start)
            ]
            column.append(np.concatenate(values))
        return np.concatenate(column).astype(np.float32)

    def copy(self, rows: np.ndarray, writer: PartWriter) -> None:
        """Read rows, which increase, into a part."""
        if self.layout.dtype == np.dtype("<f4"):
            self._read_into(rows, _Scatter(rows, self.layout.row_size, writer.put))
            return
        # In the data directory, as the system's folder of temporary files may be small.
        with tempfile.TemporaryFile(dir=writer.folder) as raw:
            put = _Raw(raw).put
            self._read_into(rows, _Scatter(rows, self.layout.row_size, put))
            _convert(raw, self.layout, writer.values()[: len(rows)])

    def _runs(self, rows: np.ndarray) -> list[tuple[int, int]]:
        reader = self._reader
        return runs_of(rows, self.layout.row_size, reader.worth, reader.n_connections)

    def _read_into(self, rows: np.ndarray, scatter: _Scatter) -> None:
        row_size = self.layout.row_size
        runs = self._runs(rows)
        total = sum(stop - start for start, stop in runs) * row_size
        n, worth = self._reader.n_connections, self._reader.worth
        at_least = min(_ROUND_TRIPS * worth * n, total // _FEW)
        step = max(total // n, at_least, spans_of.SMALLEST_PIECE)
        spans = [
            Span(a, min(a + step, stop), scatter.take(self._offset))
            for start, stop in (
                (self._offset + i * row_size, self._offset + j * row_size)
                for i, j in runs
            )
            for a in range(start, stop, step)
        ]
        self._reader.read(self._target, spans)


def _keep_in(content: bytearray, start: int) -> Sink:
    """Return a sink that keeps bytes from a position on."""

    def keep(position: int, chunk: memoryview) -> None:
        content[position - start : position - start + len(chunk)] = chunk

    return keep


class _Raw(NamedTuple):
    """A file that takes values before they are converted."""

    file: BinaryIO

    def put(self, position: int, content: memoryview | bytes) -> None:
        write_at(self.file.fileno(), content, position)


def _convert(raw: BinaryIO, layout: Layout, values: np.ndarray) -> None:
    """Write values of another type as float32, some at a time."""
    step = max(1, _CONVERTED // layout.row_size)
    raw.seek(0)
    for start in range(0, len(values), step):
        stop = min(start + step, len(values))
        content = raw.read((stop - start) * layout.row_size)
        block = np.frombuffer(content, layout.dtype).reshape(stop - start, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            values[start:stop] = block


class _Scatter:
    """Puts the bytes of rows, wherever they are in a file, one row after the other."""

    def __init__(self, rows: np.ndarray, row_size: int, put: Put):
        self._put = put
        is_next = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        lengths = np.diff(np.append(is_next, len(rows)))
        self._starts = rows[is_next] * row_size
        self._stops = self._starts + lengths * row_size
        self._targets = is_next * row_size

    def take(self, offset: int) -> Sink:
        """Return a sink for bytes of a file in which row 0 begins at an offset."""

        def sink(position: int, chunk: memoryview) -> None:
            a, b = position - offset, position - offset + len(chunk)
            i = int(np.searchsorted(self._stops, a, side="right"))
            while i < len(self._starts) and self._starts[i] < b:
                start = max(a, int(self._starts[i]))
                stop = min(b, int(self._stops[i]))
                target = int(self._targets[i]) + start - int(self._starts[i])
                self._put(target, chunk[start - a : stop - a])
                i += 1

        return sink


class ChunkedRows:
    """Rows that lie in chunks, read by bands: chunks side by side along the rows."""

    def __init__(self, layout: Layout, target: RemoteObject, reader: Reader):
        self.layout, self._target, self._reader = layout, target, reader
        self._height = layout.chunk_shape[0]
        self._inner = math.prod(layout.shape[1:-1])
        self._bands: dict[int, list[Chunk]] = {}
        for chunk in layout.chunks:
            self._bands.setdefault(chunk.origin[0] // self._height, []).append(chunk)
        band = self._height * self._inner * layout.n_columns * layout.dtype.itemsize
        if band > _LARGEST_BAND:
            size = readable_size(band)
            raise LayoutError(f"its chunks lie such that {size} are read at once")

    def size(self, rows: np.ndarray) -> int:
        """Return the bytes to read for rows."""
        return sum(
            chunk.stop - chunk.start
            for band in np.unique(self._band(rows)).tolist()
            for chunk in self._bands[band]
        )

    def first_column(self, rows: np.ndarray) -> np.ndarray:
        """Return column 0 of rows, float32."""
        parts = []
        for band, its_rows in self._by_band(rows):
            chunks = [c for c in self._bands[band] if c.origin[-1] == 0]
            parts.append(self._read(band, chunks)[its_rows, 0])
        return np.concatenate(parts)

    def copy(self, rows: np.ndarray, writer: PartWriter) -> None:
        """Read rows, which increase, into a part."""
        position = 0
        for band, its_rows in self._by_band(rows):
            values = self._read(band, self._bands[band])[its_rows]
            writer.put(position, bytes_of(values))
            position += values.nbytes

    def _band(self, rows: np.ndarray) -> np.ndarray:
        return rows // self._inner // self._height

    def _by_band(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield bands, and the rows to take of each, counted within it."""
        bands = self._band(rows)
        for band in np.unique(bands).tolist():
            yield band, rows[bands == band] - band * self._height * self._inner

    def _read(self, band: int, chunks: list[Chunk]) -> np.ndarray:
        """Return a band, float32 (n_rows, n_columns)."""
        size = self._target.size or 0
        edges = [(chunk.start, chunk.stop) for chunk in chunks]
        contents = {start: bytearray(stop - start) for start, stop in edges}
        self._reader.read(
            self._target,
            [Span(a, b, _keep_in(contents[a], a)) for a, b in edges],
        )

        def fetch(start: int, stop: int) -> bytes | bytearray:
            content = contents.get(start)
            if content is not None and len(content) == stop - start:
                return content
            return self._reader.read_bytes(self._target, start, stop)

        first = band * self._height
        rows = slice(first, min(first + self._height, self.layout.shape[0]))
        values = read_chunks(fetch, size, BETAS, self.layout, chunks, rows)
        return values.reshape(-1, self.layout.n_columns)
