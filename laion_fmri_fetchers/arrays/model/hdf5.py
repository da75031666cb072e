"""Where the values of a dataset lie in an HDF5 file that is read by ranges.

HDF5 itself says so: h5py opens the file over `_Blocks`, which holds the few blocks of
it that were fetched. Where h5py needs another block, its attempt fails; the block is
fetched, and h5py tries again::

    read_layout ──▶ _attempts ─┬─ h5py ──▶ _describe ──▶ Layout
                               └─ fetch, outside of h5py's lock

So h5py, which lets one thread at a time into HDF5, never waits for the network. What a
broken or hostile file can make this read is bounded in bytes, requests and time.
"""

from __future__ import annotations

import io
import math
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from laion_fmri_fetchers.messages import readable_size

_BLOCK = 2**15
"""Bytes of a block: h5py reads structures of some hundred bytes, near each other."""

_FIRST = 2**16
"""Bytes fetched before the first attempt: they hold the structure of a small file."""

_MOST_BYTES = 2**24
_MOST_REQUESTS = 64
_MOST_SECONDS = 120.0
"""Bounds for the structure of a file, which is some kB where datasets are contiguous,
and up to a few MB for thousands of chunks."""

_MOST_CHUNKS = 2**17
_LARGEST_CHUNK = 2**26
_LARGEST_LZF_CHUNK = 2**22
"""Bytes of a chunk; of LZF, it cannot be told beforehand how far it grows, but it does
not grow beyond 88 times what is stored."""

_GZIP, _SHUFFLE, _FLETCHER, _LZF = 1, 2, 3, 32000
"""Filters of HDF5 that h5py itself can undo."""

_PIPELINES = {
    (*shuffle, *compressor, *checksum)
    for shuffle in ((), (_SHUFFLE,))
    for compressor in ((), (_GZIP,), (_LZF,))
    for checksum in ((), (_FLETCHER,))
}
"""What may be done to a chunk, in the order that h5py does it. In others, several
compressors or bytes moved after compression, a chunk could grow without a bound."""

Fetch = Callable[[int, int], bytes | bytearray]
"""Returns bytes ``start`` to ``stop`` of a file."""


class LayoutError(Exception):
    """A file of which it cannot be said where the values lie, with the reason."""


class Chunk(NamedTuple):
    """A chunk of a dataset."""

    origin: tuple[int, ...]
    """Where it begins in the dataset, by axis."""
    start: int
    stop: int
    """Its bytes in the file."""


class Layout(NamedTuple):
    """Where the values of a dataset lie."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int | None
    """Byte at which the values begin; None where they lie in chunks."""
    chunk_shape: tuple[int, ...]
    """Empty where the values are contiguous."""
    chunks: tuple[Chunk, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows: all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def n_columns(self) -> int:
        """Length of the last axis."""
        return self.shape[-1]

    @property
    def row_size(self) -> int:
        """Bytes of a row."""
        return self.n_columns * self.dtype.itemsize


def read_layout(fetch: Fetch, size: int, name: str) -> Layout:
    """Find out where the values of a dataset lie.

    Parameters
    ----------
    fetch : callable
        Returns bytes of the file.
    size : int
        Bytes of the file.
    name : str
        The dataset, in the root of the file.

    Raises
    ------
    LayoutError
        If it is not an HDF5 file, has no such dataset, or one whose values cannot be
        read by ranges.
    """
    return _attempts(fetch, size, lambda file: _describe(file, name, size))


def read_chunks(
    fetch: Fetch, size: int, name: str, layout: Layout, chunks: list[Chunk], rows: slice
) -> np.ndarray:
    """Read some rows of a dataset that lies in chunks.

    Parameters
    ----------
    fetch, size, name
        As for `read_layout`.
    layout : Layout
        What that returned.
    chunks : list of Chunk
        All chunks that hold values of the rows, or of their first column.
    rows : slice
        Along the first axis.

    Returns
    -------
    numpy.ndarray
        float32, of the dataset's axes; columns of chunks not given are left at 0.
    """
    contents = {chunk.start: fetch(chunk.start, chunk.stop) for chunk in chunks}
    for content in contents.values():
        _check_inflated(content, layout)
    starts = {chunk.origin[-1] for chunk in chunks}
    n_rows = rows.stop - rows.start
    values = np.zeros((n_rows, *layout.shape[1:]), np.float32)

    def read(file: Any) -> np.ndarray:
        for start in starts:
            columns = slice(
                start, min(start + layout.chunk_shape[-1], values.shape[-1])
            )
            values[..., columns] = file[name][rows, ..., columns]
        return values

    return _attempts(fetch, size, read, contents)


def _attempts(
    fetch: Fetch,
    size: int,
    action: Callable[[Any], Any],
    contents: dict[int, bytes | bytearray] | None = None,
) -> Any:
    """Let an action work on an open file, as often as it lacks blocks."""
    import h5py

    blocks = _Blocks(size, contents or {})
    blocks.add(0, fetch(0, min(size, _FIRST)))
    until = time.monotonic() + _MOST_SECONDS
    n_bytes = n_requests = 0
    while True:
        try:
            with h5py.File(blocks, "r") as file:
                result = action(file)
        except LayoutError:
            raise
        except Exception as error:
            # h5py raises errors of many kinds where a file is broken.
            if not blocks.lacking:
                reason = str(error) or type(error).__name__
                raise LayoutError(f"HDF5 cannot read it ({reason[:200]})") from None
        else:
            if not blocks.lacking:
                return result
        for start, stop in blocks.take_lacking():
            n_bytes, n_requests = n_bytes + stop - start, n_requests + 1
            is_late = time.monotonic() > until
            if n_bytes > _MOST_BYTES or n_requests > _MOST_REQUESTS or is_late:
                raise LayoutError(
                    "its structure is scattered over the file: more than "
                    f"{readable_size(n_bytes)} in {n_requests} pieces"
                )
            blocks.add(start, fetch(start, stop))


class _Blocks(io.RawIOBase):
    """A file of which some blocks are held; others are noted where they are read.

    Parameters
    ----------
    size : int
        Bytes of the file.
    contents : dict
        Start -> bytes of longer pieces, such as chunks, which are read as they are.
    """

    def __init__(self, size: int, contents: dict[int, bytes | bytearray]):
        self._size, self._contents = size, contents
        self._blocks: dict[int, bytes] = {}
        self._position = 0
        self.lacking: set[int] = set()

    def add(self, start: int, content: bytes | bytearray) -> None:
        """Hold bytes that begin at a block."""
        for i in range(0, len(content), _BLOCK):
            self._blocks[(start + i) // _BLOCK] = bytes(content[i : i + _BLOCK])

    def take_lacking(self) -> list[tuple[int, int]]:
        """Return the ranges of blocks that were lacking, neighbours together."""
        ranges: list[tuple[int, int]] = []
        for block in sorted(self.lacking):
            start, stop = block * _BLOCK, min((block + 1) * _BLOCK, self._size)
            if ranges and ranges[-1][1] == start:
                ranges[-1] = ranges[-1][0], stop
            else:
                ranges.append((start, stop))
        self.lacking.clear()
        return ranges

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._position
        stop = min(start + len(view), self._size)
        if start < 0 or start >= stop:
            return 0
        content = self._contents.get(start)
        if content is not None and len(content) >= stop - start:
            view[: stop - start] = content[: stop - start]
        else:
            self._copy_blocks(view, start, stop)
        self._position = stop
        return stop - start

    def _copy_blocks(self, view: memoryview, start: int, stop: int) -> None:
        needed = range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
        if len(needed) * _BLOCK > _MOST_BYTES:
            raise OSError("more is read than a structure has")
        self.lacking |= {block for block in needed if block not in self._blocks}
        if self.lacking:
            raise OSError("a block is not fetched yet")
        for block in needed:
            a, b = max(start, block * _BLOCK), min(stop, (block + 1) * _BLOCK)
            piece = self._blocks[block][a - block * _BLOCK : b - block * _BLOCK]
            view[a - start : b - start] = piece


def _describe(file: Any, name: str, size: int) -> Layout:
    """Return the layout of a dataset of an open file."""
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        held = ", ".join(list(file)[:8]) or "nothing"
        raise LayoutError(f"it has no dataset {name!r}, but {held}")
    if not isinstance(link, h5py.HardLink):
        raise LayoutError(f"its {name!r} is a link to elsewhere")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise LayoutError(f"its {name!r} is not a dataset")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (4, 8):
        raise LayoutError(f"its {name!r} is of type {dataset.dtype}")
    if dataset.ndim < 2 or 0 in dataset.shape:
        raise LayoutError(f"its {name!r} has the shape {dataset.shape}")
    if dataset.is_virtual or dataset.external:
        raise LayoutError(f"the values of its {name!r} are in other files")
    shape = tuple(map(int, dataset.shape))
    if dataset.chunks is None:
        return _contiguous(dataset, shape, size)
    return _chunked(dataset, shape, size)


def _contiguous(dataset: Any, shape: tuple[int, ...], size: int) -> Layout:
    offset = dataset.id.get_offset()
    n_bytes = math.prod(shape) * dataset.dtype.itemsize
    if offset is None:
        raise LayoutError("its values are not in one place of the file")
    if offset + n_bytes > size:
        raise LayoutError(f"its values end at byte {offset + n_bytes} of {size}")
    return Layout(shape, dataset.dtype, int(offset), (), ())


def _chunked(dataset: Any, shape: tuple[int, ...], size: int) -> Layout:
    filters = dataset.id.get_create_plist()
    numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    if tuple(numbers) not in _PIPELINES:
        names = ", ".join(map(str, numbers))
        raise LayoutError(f"its values passed filters of HDF5 ({names})")
    raw_size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    expected = math.prod(
        -(-n // step) for n, step in zip(shape, dataset.chunks, strict=True)
    )
    largest = _LARGEST_LZF_CHUNK if _LZF in numbers else _LARGEST_CHUNK
    if expected > _MOST_CHUNKS or raw_size > largest:
        raise LayoutError(f"it has {expected} chunks of {readable_size(raw_size)}")
    chunks: list[Chunk] = []

    def keep(info: Any) -> None:
        start, length = int(info.byte_offset), int(info.size)
        # What a filter cannot shorten it lengthens by little.
        if length > raw_size * 1.1 + 1024 or start + length > size:
            raise LayoutError("it has chunks that lie about their place in the file")
        index = tuple(map(int, info.chunk_offset))
        chunks.append(Chunk(index, start, start + length))

    dataset.id.chunk_iter(keep)
    if len(chunks) != expected:
        raise LayoutError(f"it has {len(chunks)} chunks instead of {expected}")
    return Layout(shape, dataset.dtype, None, dataset.chunks, tuple(sorted(chunks)))


def _check_inflated(content: bytes | bytearray, layout: Layout) -> None:
    """Raise for a chunk that would grow beyond its size when it is decompressed."""
    raw_size = math.prod(layout.chunk_shape) * layout.dtype.itemsize
    inflater = zlib.decompressobj()
    try:
        if len(inflater.decompress(content, raw_size + 1024)) > raw_size + 512:
            raise LayoutError("it has chunks that grow beyond their size")
    except zlib.error:
        return  # Not compressed by zlib; other filters cannot grow without a bound.
