"""Model files: where their betas lie, and the proof of which voxel each row is.

A session's model file has its trials voxel by voxel, but not which voxels. Column 0
must be the first volume of the beta image, voxel by voxel, under one of a few masks and
orders; else the file is not used::

    prove ─┬─ read_layout         h5py, over the few blocks of the file that it needs
           ├─ read_first_volume   of the image, from the first bytes of its file
           └─ the one mask and order that fits a sample of rows ──▶ VoxelMapping
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib

from laion_fmri_fetchers.cache.files import whole_file
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.remote.objects import RemoteObject

from .store import DAMAGED

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.ranges import RangeReader

BETAS = "betasmd"

# Rows, spread over a model file, whose first values are compared with the image; and
# how many are enough where another session of the subject has the same mask and order.
# A thousand rows of each of 30 sessions would be 125 MB, several times what a region
# has, and rows that are used are all compared anyway.
FULL_SAMPLE, SMALL_SAMPLE = 1000, 128
# A sample is this many blocks of rows, as neighbours come in a single range.
_SAMPLE_BLOCKS = 8
# Share of a sample that must tell something: be finite, and not 0.
_LEAST_TELLING = 0.5

# Bytes of a model file that are fetched first, and of each further block that h5py asks
# for, at most so often. Files as GLMsingle writes them take one, behind their values.
_FIRST = 2**16
_BLOCK = 2**15
STRUCTURE = _FIRST + _BLOCK
_MOST_ROUNDS = 32
# Bytes that h5py reads of a structure at once, at most: a broken file may say anything.
_LARGEST_READ = 2**20

# Volumes of a session differ in size by some percent, compressed.
_MARGIN = 1.04
_MOST_MARGINS = 8
_LARGEST_VOLUME = 2**28
_LARGEST_MAP = 2**26

_UNREADABLE: tuple[Any, ...] = (
    *(OSError, ValueError, zlib.error, isal_zlib.error),
    *(nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError),
)


class ModelError(Exception):
    """A model file that is not used, with the reason."""


class Layout(NamedTuple):
    """Where betas lie in a model file: float32, the trials of a row side by side."""

    offset: int
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return math.prod(self.shape[:-1])

    @property
    def row_size(self) -> int:
        """Bytes of a row."""
        return 4 * self.shape[-1]


class FirstVolume(NamedTuple):
    """The first volume of a beta image."""

    values: np.ndarray
    """float32, flat, in the order of the file: the first axis varies fastest."""
    shape: tuple[int, int, int]
    n_volumes: int

    def support(self) -> np.ndarray:
        """Return where it is not 0, as a flat mask; the last axis varies fastest."""
        return (self.values != 0).reshape(self.shape, order="F").ravel()


class VoxelMapping(NamedTuple):
    """What was proved of a model file."""

    layout: Layout
    mask: str
    """Name of the mask whose voxels the rows are."""
    order: str
    """``"C"``: the last axis varies fastest, as in ``data[mask]``; or ``"F"``."""
    shape: tuple[int, int, int]
    """Voxels of the grid, by axis."""
    voxels: np.ndarray
    """Of each row, its position in a flat volume, the last axis varying fastest."""
    offsets: np.ndarray
    """The same in the order of image files, the first axis varying fastest."""
    first: np.ndarray
    """float32, the image's first volume at each row."""
    is_complete: bool
    """Whether the image's first volume is 0 at all voxels without a row."""

    def check(self, rows: np.ndarray, column: np.ndarray) -> None:
        """Raise ModelError unless rows have the image's values in column 0."""
        if n := np.count_nonzero(~_are_equal(column, self.first[rows])):
            raise ModelError(
                f"{n} of its {len(rows)} rows lack the value of the image's first "
                "volume"
            )


def _are_equal(column: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which rows have the values of an image; NaN stands for 0, too.

    GLMsingle gives NaN to voxels without a fit, of which the image has 0.
    """
    is_missing = np.isnan(column) & (np.isnan(values) | (values == 0))
    return (column == values) | is_missing


# --- Where the values lie ----------------------------------------------------------


def read_layout(reader: RangeReader, model: RemoteObject) -> Layout:
    """Find out where the betas lie in a model file.

    h5py opens the file over the blocks of it that are here. If it needs another one,
    its attempt fails, the block is fetched, and it tries again: h5py lets one thread at
    a time into HDF5, which must not wait for the network there.

    Raises
    ------
    ModelError
        If they cannot be read by ranges.
    Fault
        If the file cannot be read.
    """
    import h5py

    size = model.size or 0
    blocks = _Blocks(size)
    blocks.add(0, reader.read_bytes(model, 0, min(size, _FIRST)))
    for _ in range(_MOST_ROUNDS):
        try:
            with h5py.File(blocks, "r") as file:
                layout = _describe(file, size)
            failure = None
        except ModelError as error:
            failure = error
        except Exception as error:
            # h5py raises errors of many kinds where a file is broken.
            words = (str(error) or type(error).__name__)[:200]
            failure = ModelError(f"HDF5 cannot read it ({words})")
        # What h5py says of a file that it could not read counts for nothing.
        if not blocks.missing:
            if failure:
                raise failure from None
            return layout
        for start in sorted(blocks.missing):
            stop = min(start + _BLOCK, size)
            blocks.add(start, reader.read_bytes(model, start, stop))
        blocks.missing.clear()
    raise ModelError("its structure is scattered over the file")


def _describe(file: Any, size: int) -> Layout:
    """Return the layout of the betas in an open file of so many bytes."""
    import h5py

    link = file.get(BETAS, getlink=True)
    if link is None:
        held = ", ".join(list(file)[:8]) or "nothing"
        raise ModelError(f"it has no dataset {BETAS!r}, but {held}")
    if not isinstance(link, h5py.HardLink):
        raise ModelError(f"its {BETAS!r} is a link to elsewhere")
    dataset = file[BETAS]
    if not isinstance(dataset, h5py.Dataset):
        raise ModelError(f"its {BETAS!r} is not a dataset")
    if dataset.dtype != np.dtype("<f4"):
        raise ModelError(f"its {BETAS!r} is of type {dataset.dtype}, not float32")
    shape = tuple(map(int, dataset.shape))
    if len(shape) not in (2, 4) or 0 in shape:
        raise ModelError(f"its {BETAS!r} has the shape {shape}")
    if dataset.is_virtual or dataset.external:
        raise ModelError(f"the values of its {BETAS!r} are in other files")
    if dataset.chunks is not None:
        how = f", compressed by {dataset.compression}" if dataset.compression else ""
        raise ModelError(f"its {BETAS!r} lies in chunks of {dataset.chunks}{how}")
    offset = dataset.id.get_offset()
    if offset is None:
        raise ModelError("its values are not in one place of the file")
    stop = offset + 4 * math.prod(shape)
    if stop > size:
        raise ModelError(f"its values end at byte {stop} of {size}")
    return Layout(int(offset), shape)


class _Blocks(io.RawIOBase):
    """A file of which some blocks are held; others are noted where they are read."""

    def __init__(self, size: int):
        self._size, self._position = size, 0
        self._blocks: dict[int, bytes] = {}
        self.missing: set[int] = set()

    def add(self, start: int, content: bytes | bytearray) -> None:
        """Hold bytes that begin at a block."""
        for i in range(0, len(content), _BLOCK):
            self._blocks[start + i] = bytes(content[i : i + _BLOCK])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, min(self._position + len(view), self._size)
        if start < 0 or start >= stop:
            return 0
        if stop - start > _LARGEST_READ:
            raise OSError("more is read than a structure has")
        first = start // _BLOCK * _BLOCK
        needed = range(first, stop, _BLOCK)
        if missing := {block for block in needed if block not in self._blocks}:
            self.missing |= missing
            raise OSError("a block is not fetched yet")
        content = b"".join(self._blocks[block] for block in needed)
        view[: stop - start] = content[start - first : stop - first]
        self._position = stop
        return stop - start


# --- The first volume of the image --------------------------------------------------


def first_bytes(size: int, n_volumes: int) -> int:
    """Return the bytes of an image that are likely to hold its first volume."""
    return min(size, int(size / max(n_volumes, 1) * _MARGIN) + 2**14)


def read_first_volume(
    reader: RangeReader,
    image: RemoteObject,
    n_volumes: int,
    decoders: Executor | None = None,
) -> FirstVolume:
    """Read the first volume of an image, of so many, from the first bytes of its file.

    Raises
    ------
    ModelError
        If it is not a 4-D image of real numbers, or too short.
    Fault
        If it cannot be read.
    """
    size, content = image.size or 0, bytearray()
    wanted = first_bytes(size, n_volumes)
    most = min(size, _MOST_MARGINS * wanted)
    while True:
        content += reader.read_bytes(image, len(content), min(wanted, most))
        try:
            task = content, image.id.endswith(".gz")
            if decoders:
                return decoders.submit(_decode_first_volume, *task).result()
            return _decode_first_volume(*task)
        except EOFError:
            if len(content) < most:
                wanted = int(1.25 * len(content)) + 2**14
                continue
            problem = f"its first {readable_size(most)} lack its first volume"
            if most == size:
                problem = "it ends before its first volume does"
        except ModelError as error:
            problem = str(error)
        except _UNREADABLE as error:
            problem = f"it cannot be read ({error})"
        raise ModelError(f"of the image {image.id}, {problem}")


def _decode_first_volume(content: bytearray, is_compressed: bool) -> FirstVolume:
    """Return the volume; raise EOFError where the bytes are too few."""
    raw = io.BytesIO(content)
    stream: Any = igzip.IGzipFile(fileobj=raw) if is_compressed else raw

    def take(n_bytes: int) -> bytes:
        pieces = []
        while n_bytes:
            # By small pieces: what came before the end of the stream is lost else.
            piece = stream.read(min(n_bytes, 2**20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            n_bytes -= len(piece)
        return b"".join(pieces)

    # Not by `from_fileobj`, which reads extensions too: they may be cut off here.
    start = take(nib.Nifti1Header.sizeof_hdr)
    longer = nib.Nifti2Header.sizeof_hdr
    if nib.Nifti2Header.may_contain_header(start.ljust(longer)):
        start += take(longer - len(start))
    header = (nib.Nifti1Header if len(start) < longer else nib.Nifti2Header)(start)
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if len(shape) != 4 or dtype.kind not in "iuf" or min(shape) < 1:
        raise ModelError(f"it is {dtype} of shape {shape}")
    offset, n_bytes = int(header.get_data_offset()), math.prod(shape[:3])
    n_bytes *= dtype.itemsize
    if not len(start) < offset or offset + n_bytes > _LARGEST_VOLUME:
        raise ModelError("its header is not that of betas")
    take(offset - len(start))
    values = np.frombuffer(take(n_bytes), dtype)
    slope, inter = header.get_slope_inter()
    if slope not in (None, 1.0) or inter not in (None, 0.0):
        values = values.astype(float) * (slope or 1.0) + (inter or 0.0)
    x, y, z, n_volumes = map(int, shape)
    return FirstVolume(values.astype(np.float32, copy=False), (x, y, z), n_volumes)


# --- The proof ----------------------------------------------------------------------


def sample_rows(n_rows: int, n_wanted: int) -> np.ndarray:
    """Return rows spread over a file, in blocks.

    Examples
    --------
    >>> sample_rows(1000, 16).tolist()[:4], sample_rows(5, 16).tolist()
    ([0, 1, 142, 143], [0, 1, 2, 3, 4])
    """
    if n_rows <= n_wanted:
        return np.arange(n_rows)
    in_block = -(-n_wanted // _SAMPLE_BLOCKS)
    starts = np.linspace(0, n_rows - in_block, _SAMPLE_BLOCKS).astype(int)
    return np.unique(np.add.outer(starts, np.arange(in_block)))


def prove(
    reader: RangeReader,
    model: RemoteObject,
    image: RemoteObject,
    *,
    brain_mask: np.ndarray | RemoteObject | None,
    rsquare: RemoteObject | None,
    n_trials: int | None = None,
    n_used: int = 0,
    find_likely: Callable[[], VoxelMapping | None] = lambda: None,
    decoders: Executor | None = None,
) -> VoxelMapping:
    """Find out where the betas of a model lie, and which voxel each row is.

    Parameters
    ----------
    reader : RangeReader
        Reads both files.
    model, image : RemoteObject
        Of the same session.
    brain_mask : numpy.ndarray of bool, RemoteObject or None
        Flat, the last axis varying fastest; or in the bucket.
    rsquare : RemoteObject or None
        The session's map of R2, which is fetched only if no other mask may fit.
    n_trials : int, optional
        Rows of the trial table, if there is one.
    n_used : int, default=0
        Rows that will be compared anyway.
    find_likely : callable, optional
        Returns what was proved of another session of the subject, or None.
    decoders : concurrent.futures.Executor, optional
        Few threads that decode images, for many sessions: of the memory that a thread
        frees, some stays with it.

    Raises
    ------
    ModelError
        If the model is not to be used.
    Fault
        If a file cannot be read.
    """
    with ThreadPoolExecutor(1) as pool:
        volume = reader, image, n_trials or 1000, decoders
        coming = pool.submit(read_first_volume, *volume)
        layout = read_layout(reader, model)
        first = coming.result()
    n_columns = layout.shape[-1]
    if n_columns != first.n_volumes:
        raise ModelError(
            f"it has {n_columns} columns, but the image {first.n_volumes} volumes"
        )
    if n_trials not in (None, n_columns):
        raise ModelError(
            f"it has {n_columns} columns, but the trial table {n_trials} trials"
        )
    likely = find_likely()
    if likely and (likely.layout.shape[:-1], likely.shape) == (
        layout.shape[:-1],
        first.shape,
    ):
        rows = _sample(layout, first, SMALL_SAMPLE)
        column = _read_first_column(reader, model, layout, rows)
        proposed = [(likely.mask, likely.order, likely.voxels, likely.offsets)]
        with contextlib.suppress(ModelError):
            return _choose(proposed, rows, column, layout, first)
    n_wanted = max(SMALL_SAMPLE, FULL_SAMPLE - n_used)
    rows = _sample(layout, first, n_wanted)
    column = _read_first_column(reader, model, layout, rows)
    proposed = []
    for name, mask in _masks(reader, layout, first, brain_mask, rsquare):
        if np.count_nonzero(mask) == layout.n_rows:
            for order in ("C", "F"):
                places = _voxels_of(mask, first.shape, order)
                proposed.append((name, order, *places))
    return _choose(proposed, rows, column, layout, first)


def _sample(layout: Layout, first: FirstVolume, n_rows: int) -> np.ndarray:
    """Return rows to look at."""
    rows = sample_rows(layout.n_rows, n_rows)
    if layout.shape[:-1] == first.shape:
        # Most voxels of the grid are outside of the brain, and tell nothing.
        voxels = np.flatnonzero(first.support())
        rows = voxels[sample_rows(len(voxels), n_rows)]
    if not len(rows):
        raise ModelError("the values of its first trial tell nothing")
    return rows


def _read_first_column(
    reader: RangeReader, model: RemoteObject, layout: Layout, rows: np.ndarray
) -> np.ndarray:
    """Return column 0 of rows, float32."""
    size = layout.row_size
    blocks = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    contents = []
    for block in blocks:
        # Of the last row, only the first value is needed.
        start = layout.offset + int(block[0]) * size
        contents.append((start, bytearray((len(block) - 1) * size + 4)))
    starts = [start for start, _ in contents]

    def keep(position: int, chunk: memoryview) -> None:
        start, content = contents[np.searchsorted(starts, position, "right") - 1]
        content[position - start : position - start + len(chunk)] = chunk

    ranges = [(start, start + len(content)) for start, content in contents]
    reader.read(model, ranges, keep)
    values = [np.frombuffer(content, "<f4")[:: size // 4] for _, content in contents]
    return np.concatenate(values)


def _masks(
    reader: RangeReader,
    layout: Layout,
    first: FirstVolume,
    brain_mask: np.ndarray | RemoteObject | None,
    rsquare: RemoteObject | None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield flat masks whose voxels the rows may be, those at hand first."""
    everywhere = np.ones(math.prod(first.shape), dtype=bool)
    if layout.shape[:-1] == first.shape:
        yield "the grid", everywhere
        return
    support = first.support()
    yield "the image's voxels that are not 0", support
    if isinstance(brain_mask, RemoteObject):
        brain_mask = _remote_map(reader, brain_mask, "the brain mask", first.shape) > 0
    if brain_mask is not None:
        if brain_mask.size != everywhere.size:
            raise ModelError(f"the image is {first.shape}, unlike the brain mask")
        yield "the brain mask", brain_mask
    if rsquare is not None and layout.n_rows != np.count_nonzero(support):
        values = _remote_map(reader, rsquare, "the R2 map", first.shape)
        is_fitted = (values != 0) & np.isfinite(values)
        yield "the R2 map's voxels that are not 0", is_fitted


def _remote_map(
    reader: RangeReader, target: RemoteObject, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Read a 3-D image of the bucket, without a file, flat."""
    size = target.size or 0
    if size > _LARGEST_MAP:
        raise ModelError(f"{name} has {readable_size(size)}")
    content = bytes(reader.read_bytes(target, 0, size))
    try:
        if target.id.endswith(".gz"):
            with igzip.IGzipFile(fileobj=io.BytesIO(content)) as stream:
                content = stream.read(_LARGEST_MAP)
        is_nifti2 = nib.Nifti2Header.may_contain_header(content)
        kind: Any = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
        image = kind.from_bytes(content)
        if image.shape == shape:
            return np.asarray(image.dataobj, np.float32).ravel()
    except Exception as error:
        # nibabel raises errors of many kinds where a file is damaged.
        raise ModelError(f"{name} cannot be read ({error})") from None
    raise ModelError(f"{name} is {image.shape}, the image {shape}")


def _voxels_of(
    mask: np.ndarray, shape: tuple[int, ...], order: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of a flat mask in an order, as `VoxelMapping` has them.

    Examples
    --------
    >>> mask = np.array([True, True, True, False])
    >>> [[*map(int, places)] for places in _voxels_of(mask, (2, 2), "C")]
    [[0, 1, 2], [0, 2, 1]]
    """
    voxels = np.flatnonzero(mask)
    offsets = np.ravel_multi_index(np.unravel_index(voxels, shape), shape, order="F")
    if order == "F":
        by_offset = np.argsort(offsets)
        voxels, offsets = voxels[by_offset], offsets[by_offset]
    return voxels.astype(np.int32), offsets.astype(np.int32)


def _choose(
    proposed: list[tuple[str, str, np.ndarray, np.ndarray]],
    rows: np.ndarray,
    column: np.ndarray,
    layout: Layout,
    first: FirstVolume,
) -> VoxelMapping:
    """Return the one mask and order under which rows have the values of their voxels.

    Raises
    ------
    ModelError
        If none fits, several that differ fit, or the values do not tell.
    """
    fit: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    for candidate in proposed:
        voxels, offsets = candidate[2:]
        is_new = all((voxels != other[2]).any() for other in fit)
        if is_new and _are_equal(column, first.values[offsets[rows]]).all():
            fit.append(candidate)
    if not proposed:
        raise ModelError(
            "it has another number of rows than each known mask has voxels"
        )
    if not fit:
        raise ModelError("its rows are not the voxels of a known mask in a known order")
    if len(fit) > 1:
        names = " and ".join(f"{name} in order {order}" for name, order, *_ in fit)
        raise ModelError(f"its rows may be {names}")
    telling = np.isfinite(column) & (column != 0)
    if telling.mean() < _LEAST_TELLING or len(np.unique(column[telling])) < 2:
        raise ModelError("the values of its first trial tell nothing")
    ((name, order, voxels, offsets),) = fit
    values = first.values[offsets]
    n_nonzero = int(np.count_nonzero(values))
    is_complete = n_nonzero == int(np.count_nonzero(first.values))
    return VoxelMapping(
        layout, name, order, first.shape, voxels, offsets, values, is_complete
    )


def describe_model(
    reader: RangeReader,
    model: RemoteObject,
    image: RemoteObject,
    *,
    brain_mask: RemoteObject | None,
    rsquare: RemoteObject | None,
) -> tuple[str, str]:
    """Return where the betas of a model file lie, and what its rows were proved to be.

    Raises
    ------
    ModelError
        If the model is not to be used, with the reason.
    Fault
        If a file cannot be read.
    """
    found = prove(reader, model, image, brain_mask=brain_mask, rsquare=rsquare)
    size = readable_size(model.size or 0)
    layout = f"{BETAS} {found.layout.shape} float32, contiguous; {size}"
    return layout, f"{found.mask}, in order {found.order}"


# --- What is kept -------------------------------------------------------------------


def mapping_file(folder: Path, model: RemoteObject, image: RemoteObject) -> Path:
    """Return the file of a session in which a mapping is kept, by both files' ETags."""
    versions = json.dumps([[file.etag, file.size] for file in (model, image)])
    name = hashlib.sha256(versions.encode()).hexdigest()[:16]
    return folder / f"mapping-{name}.npz"


def save_mapping(file: Path, mapping: VoxelMapping) -> None:
    """Keep a mapping; where that is not possible, it is proved again."""
    mask = np.zeros(math.prod(mapping.shape), dtype=bool)
    mask[mapping.voxels] = True
    about = mapping._asdict() | dict.fromkeys(("voxels", "offsets", "first"))
    with contextlib.suppress(OSError), whole_file(file) as stream:
        mask = np.packbits(mask)
        np.savez(stream, about=json.dumps(about), mask=mask, first=mapping.first)


def read_mapping(file: Path) -> VoxelMapping | None:
    """Return a mapping that was kept; None if there is none, or it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            bits, first = arrays["mask"], arrays["first"]
        offset, shape = about["layout"]
        about["layout"] = layout = Layout(offset, tuple(shape))
        about["shape"] = tuple(about["shape"])
        mask = np.unpackbits(bits, count=math.prod(about["shape"])).astype(bool)
        voxels, offsets = _voxels_of(mask, about["shape"], about["order"])
        if not len(voxels) == len(first) == layout.n_rows:
            return None
        about |= {"voxels": voxels, "offsets": offsets, "first": first}
        return VoxelMapping(**about)
    except DAMAGED:
        return None
