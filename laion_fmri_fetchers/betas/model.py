"""Model files: where their betas lie, and the proof of which voxel each row is.

A session's model file has its trials voxel by voxel, but not which voxels. Column 0
must be the first volume of the beta image, voxel by voxel, under one of a few masks and
orders; else the file is not used::

    prove ─┬─ read_layout   h5py, over the few blocks of the file that it needs
           ├─ read_volume   the image's first, from the first bytes of its file
           └─ the one mask and order that fits a sample of rows ──▶ VoxelMapping
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip

from laion_fmri_fetchers.cache.files import whole_file
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.remote.objects import RemoteObject

from .ranges import read_rows
from .store import DAMAGED

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.ranges import RangeReader

_BETAS = "betasmd"

# Rows, in blocks spread over a model file, that tell its mask and order. They need not
# be more: of the rows that are used, each is compared with the image.
SAMPLE, SAMPLE_BLOCKS = 128, 8
# Share of a sample that must tell something: be finite, and not 0.
_LEAST_TELLING = 0.5

# Bytes of a model file that are fetched at once for h5py, at most so often. Files as
# GLMsingle writes them take one or two: the first, and one behind their values.
_BLOCK = 2**15
STRUCTURE = _BLOCK
_MOST_ROUNDS = 32

# Volumes of a session differ in size by some percent, compressed.
_MARGIN = 1.04
_MOST_MARGINS = 8
_LARGEST_VOLUME = 2**28


class ModelError(Exception):
    """A model file that is not used, with the reason."""


class VoxelMapping(NamedTuple):
    """What was proved of a model file: float32, the trials of a row side by side."""

    offset: int
    """Where the first row begins, in bytes."""
    n_trials: int
    mask: str
    """Name of the mask whose voxels the rows are, and their order."""
    shape: tuple[int, ...]
    """Voxels of the grid, by axis."""
    voxels: np.ndarray
    """Of each row, its position in a flat volume, the last axis varying fastest."""
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


def read_layout(reader: RangeReader, model: RemoteObject) -> tuple[int, tuple]:
    """Find out where the betas lie in a model file: their offset, and their shape.

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
    for _ in range(_MOST_ROUNDS):
        blocks.missing = None
        try:
            with h5py.File(blocks, "r") as file:
                return _find_betas(file, size)
        except Exception as error:
            # h5py raises errors of many kinds where a file is broken.
            failure = error
        # What h5py says of a file that it could not read counts for nothing.
        if (start := blocks.missing) is not None:
            stop = min(start + _BLOCK, size)
            blocks.held[start] = bytes(reader.read_bytes(model, start, stop))
        elif isinstance(failure, ModelError):
            raise failure
        else:
            words = (str(failure) or type(failure).__name__)[:200]
            raise ModelError(f"HDF5 cannot read it ({words})")
    raise ModelError("its structure is scattered over the file")


def _find_betas(file: Any, size: int) -> tuple[int, tuple[int, ...]]:
    """Return offset and shape of the betas in an open file of so many bytes."""
    import h5py

    link = file.get(_BETAS, getlink=True)
    if link is None:
        held = ", ".join(list(file)[:8]) or "nothing"
        raise ModelError(f"it has no dataset {_BETAS!r}, but {held}")
    if not isinstance(link, h5py.HardLink):
        raise ModelError(f"its {_BETAS!r} is a link to elsewhere")
    dataset = file[_BETAS]
    if not isinstance(dataset, h5py.Dataset):
        raise ModelError(f"its {_BETAS!r} is not a dataset")
    if dataset.dtype != np.dtype("<f4"):
        raise ModelError(f"its {_BETAS!r} is of type {dataset.dtype}, not float32")
    shape = tuple(map(int, dataset.shape))
    if len(shape) not in (2, 4) or 0 in shape:
        raise ModelError(f"its {_BETAS!r} has the shape {shape}")
    if dataset.is_virtual or dataset.external:
        raise ModelError(f"the values of its {_BETAS!r} are in other files")
    if dataset.chunks is not None:
        how = f", compressed by {dataset.compression}" if dataset.compression else ""
        raise ModelError(f"its {_BETAS!r} lies in chunks of {dataset.chunks}{how}")
    offset = dataset.id.get_offset()
    if offset is None:
        raise ModelError("its values are not in one place of the file")
    stop = offset + 4 * math.prod(shape)
    if stop > size:
        raise ModelError(f"its values end at byte {stop} of {size}")
    return int(offset), shape


class _Blocks(io.RawIOBase):
    """A file of which some blocks are held; the next one that is read is noted."""

    def __init__(self, size: int):
        self._size, self._position = size, 0
        self.held: dict[int, bytes] = {}
        self.missing: int | None = None

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view, n_read = memoryview(buffer).cast("B"), 0
        while n_read < len(view) and self._position < self._size:
            place = self._position % _BLOCK
            block = self.held.get(self._position - place)
            if block is None:
                self.missing = self._position - place
                raise OSError("a block is not fetched yet")
            piece = block[place : place + len(view) - n_read]
            view[n_read : n_read + len(piece)] = piece
            n_read += len(piece)
            self._position += len(piece)
        return n_read


# --- Volumes of images in the bucket -------------------------------------------------


def first_bytes(size: int, n_volumes: int) -> int:
    """Return the bytes of an image that are likely to hold its first volume."""
    return min(size, int(size / max(n_volumes, 1) * _MARGIN) + 2**14)


def read_volume(
    reader: RangeReader,
    image: RemoteObject,
    name: str,
    n_axes: int,
    n_volumes: int,
    decoders: Executor,
) -> tuple[np.ndarray, int]:
    """Read the first of about so many volumes, and no more of the file than it takes.

    The image must have so many axes: 4, or 3 of a map.

    Returns
    -------
    volume : numpy.ndarray of float32, 3-D
        As nibabel scales it; C-contiguous.
    n_volumes : int
        1 for a 3-D image.

    Raises
    ------
    ModelError
        If it is not an image of real numbers, or too short.
    Fault
        If it cannot be read.
    """
    size, content = image.size or 0, bytearray()
    wanted = first_bytes(size, n_volumes)
    most = min(size, _MOST_MARGINS * wanted)
    while True:
        content += reader.read_bytes(image, len(content), min(wanted, most))
        try:
            return decoders.submit(_decode, content, n_axes).result()
        except EOFError:
            wanted = int(1.25 * len(content)) + 2**14
            problem = f"its first {readable_size(most)} lack its first volume"
            if most == size:
                problem = "it ends before its first volume does"
        except ModelError as error:
            most, problem = 0, str(error)
        except Exception as error:
            # nibabel and zlib raise errors of many kinds where a file is damaged.
            most, problem = 0, f"it cannot be read ({error})"
        if len(content) >= most:
            raise ModelError(f"of {name}, {problem}")


def _decode(content: bytearray, n_axes: int) -> tuple[np.ndarray, int]:
    """Return the first volume of a ``.nii.gz``; raise EOFError if bytes are too few."""
    with igzip.IGzipFile(fileobj=io.BytesIO(content)) as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        if len(start) < nib.Nifti1Header.sizeof_hdr:
            raise EOFError
        stream.seek(0)
        is_nifti2 = nib.Nifti2Header.may_contain_header(start)
        image: Any = (nib.Nifti2Image if is_nifti2 else nib.Nifti1Image).from_stream(
            stream
        )
        shape, dtype = image.shape, image.get_data_dtype()
        if len(shape) != n_axes or dtype.kind not in "iuf" or min(shape) < 1:
            raise ModelError(f"it is {dtype} of shape {shape}")
        if image.dataobj.offset + math.prod(shape[:3]) * 8 > _LARGEST_VOLUME:
            raise ModelError("its header is not that of betas")
        try:
            volume = image.dataobj[..., 0] if n_axes == 4 else image.dataobj[...]
        except ValueError as error:  # of nibabel, where the stream ends too early
            raise EOFError from error
        return np.ascontiguousarray(volume, np.float32), math.prod(shape[3:])


# --- The proof ----------------------------------------------------------------------


def prove(
    reader: RangeReader,
    model: RemoteObject,
    image: RemoteObject,
    decoders: Executor,
    n_volumes: int = 1000,
    *,
    brain_mask: np.ndarray | RemoteObject | None,
    rsquare: RemoteObject | None,
) -> VoxelMapping:
    """Find out where the betas of a model lie, and which voxel each row is.

    Parameters
    ----------
    reader : RangeReader
        Reads both files.
    model, image : RemoteObject
        Of the same session.
    decoders : concurrent.futures.Executor
        Few threads that decode images, for many sessions: of the memory that a thread
        frees, some stays with it.
    n_volumes : int, default=1000
        Volumes that the image has, as far as is known.
    brain_mask : numpy.ndarray of bool, RemoteObject or None
        On the grid; or in the bucket.
    rsquare : RemoteObject or None
        The session's map of R2, which is fetched only if no other mask may fit.

    Raises
    ------
    ModelError
        If the model is not to be used: no mask and order fits the sample, several that
        differ do, or its values do not tell.
    Fault
        If a file cannot be read.
    """
    # At the same time, as each takes some round trips.
    with ThreadPoolExecutor(1) as pool:
        wanted = reader, image, f"the image {image.id}", 4, n_volumes, decoders
        coming = pool.submit(read_volume, *wanted)
        offset, (*row_shape, n_columns) = read_layout(reader, model)
        first, n_volumes = coming.result()
    if n_columns != n_volumes:
        raise ModelError(
            f"it has {n_columns} columns, but the image {n_volumes} volumes"
        )
    n_rows = math.prod(row_shape)
    support = first != 0
    is_grid = tuple(row_shape) == first.shape
    # Most voxels of the grid are outside of the brain, and tell nothing.
    rows = _spread(np.flatnonzero(support) if is_grid else np.arange(n_rows))
    if not len(rows):
        raise ModelError("the values of its first trial tell nothing")
    sample = np.empty((len(rows), n_columns), "<f4")
    read_rows(reader, model, offset, rows, sample, np.arange(len(rows)))

    masks: dict[str, Any] = {
        "the brain mask": brain_mask,
        "the image's voxels that are not 0": support,
        "the R2 map": None if n_rows == np.count_nonzero(support) else rsquare,
    }
    if is_grid:
        masks = {"the grid": np.ones_like(support)}
    for name, mask in masks.items():
        if isinstance(mask, RemoteObject):
            volume, _ = read_volume(reader, mask, name, 3, 1, decoders)
            masks[name] = mask = (volume != 0) & np.isfinite(volume)
        if mask is not None and mask.shape != first.shape:
            raise ModelError(f"the image is {first.shape}, {name} {mask.shape}")
    proposed = {
        name: mask
        for name, mask in masks.items()
        if mask is not None and np.count_nonzero(mask) == n_rows
    }
    fitting = decoders.submit(_fit, proposed, rows, sample[:, 0], first)
    name, voxels = fitting.result()
    known = first.ravel()[voxels]
    is_complete = np.count_nonzero(known) == np.count_nonzero(support)
    return VoxelMapping(
        offset, n_columns, name, first.shape, voxels, known, is_complete
    )


def _fit(
    masks: dict[str, np.ndarray],
    rows: np.ndarray,
    column: np.ndarray,
    first: np.ndarray,
) -> tuple[str, np.ndarray]:
    """Return the one mask and order under which rows have the values of their voxels.

    Raises
    ------
    ModelError
        If none fits, several that differ do, or the values do not tell.
    """
    tried: list[np.ndarray] = []
    fit: dict[str, np.ndarray] = {}
    for name, mask in masks.items():
        if any(np.array_equal(mask, other) for other in tried):
            continue
        tried.append(mask)
        orders: tuple[Literal["C", "F"], ...] = ("C", "F")
        for order in orders:
            places = np.flatnonzero(mask.ravel(order=order))
            axes = np.unravel_index(places[rows], first.shape, order=order)
            if _are_equal(column, first[axes]).all():
                axes = np.unravel_index(places, first.shape, order=order)
                voxels = np.ravel_multi_index(axes, first.shape).astype(np.int32)
                if all((voxels != other).any() for other in fit.values()):
                    fit[f"{name}, in order {order}"] = voxels
    if not masks:
        raise ModelError(
            "it has another number of rows than each known mask has voxels"
        )
    if not fit:
        raise ModelError("its rows are not the voxels of a known mask in a known order")
    if len(fit) > 1:
        raise ModelError(f"its rows may be {' and '.join(fit)}")
    telling = column[np.isfinite(column) & (column != 0)]
    if len(telling) < _LEAST_TELLING * len(rows) or len(np.unique(telling)) < 2:
        raise ModelError("the values of its first trial tell nothing")
    return next(iter(fit.items()))


def _spread(rows: np.ndarray) -> np.ndarray:
    """Return a sample of rows, in blocks, as neighbours come in a single range.

    Examples
    --------
    >>> len(_spread(np.arange(1000))), _spread(np.arange(3)).tolist()
    (128, [0, 1, 2])
    """
    if len(rows) <= SAMPLE:
        return rows
    length = SAMPLE // SAMPLE_BLOCKS
    starts = np.linspace(0, len(rows) - length, SAMPLE_BLOCKS).astype(int)
    return rows[np.unique(np.add.outer(starts, np.arange(length)))]


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
    with ThreadPoolExecutor(1) as pool:
        found = prove(
            reader, model, image, pool, brain_mask=brain_mask, rsquare=rsquare
        )
    shape, size = (len(found.voxels), found.n_trials), readable_size(model.size or 0)
    return f"{_BETAS} {shape} float32, contiguous; {size}", found.mask


# --- What is kept -------------------------------------------------------------------


def mapping_file(folder: Path, model: RemoteObject, image: RemoteObject) -> Path:
    """Return the file of a session in which a mapping is kept, by both files' ETags.

    It spares later calls what takes most bytes of a small region: the first volume.
    """
    versions = json.dumps([[file.etag, file.size] for file in (model, image)])
    name = hashlib.sha256(versions.encode()).hexdigest()[:16]
    return folder / f"mapping-{name}.npz"


def save_mapping(file: Path, mapping: VoxelMapping) -> None:
    """Keep a mapping; where that is not possible, it is proved again."""
    for outdated in file.parent.glob("mapping-*.npz"):
        with contextlib.suppress(OSError):
            outdated.unlink()
    with contextlib.suppress(OSError), whole_file(file) as stream:
        np.savez(stream, **mapping._asdict())


def read_mapping(file: Path) -> VoxelMapping | None:
    """Return a mapping that was kept; None if there is none, or it is damaged."""
    with contextlib.suppress(*DAMAGED), np.load(file, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in VoxelMapping._fields}
        # Numbers, texts and tuples again.
        plain = {
            k: kept[k].tolist() for k in ("offset", "n_trials", "mask", "is_complete")
        }
        return VoxelMapping(**{**kept, **plain, "shape": tuple(kept["shape"].tolist())})
    return None
