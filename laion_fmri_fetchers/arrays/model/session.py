"""A session's voxels from its model file: proved, read by ranges, stored.

::

    fill_from_model ─┬─ _prove ─┬─ hdf5.read_layout       where values lie
                     │          ├─ first_volume.read_first_volume
                     │          └─ proof.fitting           which voxel a row is
                     ├─ ContiguousRows.copy or ChunkedRows.copy  rows into a new part
                     └─ _check_rows                              are they the image's?

What was proved is kept beside the parts, with the ETags of both files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from laion_fmri_fetchers.arrays.voxel_store import (
    DAMAGED,
    Origin,
    new_part,
    rows_in,
    session_folder,
)
from laion_fmri_fetchers.cache.files import whole_file
from laion_fmri_fetchers.messages import counted, readable_size
from laion_fmri_fetchers.remote.spans import RemoteObject
from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

from .first_volume import FirstVolume, VolumeError, read_first_volume
from .hdf5 import Chunk, Fetch, Layout, LayoutError, read_layout
from .proof import (
    Candidate,
    NotProvedError,
    Proof,
    candidates,
    fitting,
    make_proof,
)
from .rows import BETAS, ChunkedRows, ContiguousRows, Reader, rows_of, sample

FULL_SAMPLE = 1000
"""Rows spread over a model file that are looked at, with those that are used."""

SMALL_SAMPLE = 128
"""Rows looked at where another session of the subject was proved by a full sample to
have the same mask and order. A thousand rows of each of 30 sessions would be 125 MB,
several times what a region has; and rows that are used are all looked at anyway."""

_LARGEST_MAP = 2**26
"""Bytes of a map, compressed or not: those of the dataset have 12 MB."""

_PROOF = ".proof.npz"
_FORMAT = 2


class Task(NamedTuple):
    """Voxels of a session that the store lacks; may be sent to another process."""

    data_dir: str
    subject: str
    session: str
    image: RemoteObject
    image_file: str
    """Where the image is, or would be, on disk."""
    model: RemoteObject | None
    rsquare: RemoteObject | None
    brain_mask: str | RemoteObject
    """A mask on the functional grid: a file on disk, or in the bucket; ``""``: none."""
    n_trials: int | None
    """Rows of the trial table; None where there is no table."""
    trials: str | None
    """MD5 of the trial table."""
    shape: tuple[int, ...] | None
    """Voxels of the grid, by axis; None: not known yet."""
    voxels: np.ndarray
    """Positions in a flat volume, the last axis varying fastest; increasing."""
    most_bytes: int | None
    """Bytes of the model to read at most; None: any number."""

    @property
    def folder(self) -> Path:
        """Folder of the session in the voxel store."""
        return session_folder(self.data_dir, self.subject, self.session)

    def origin(
        self, n_trials: int, model: str | None, image_time: int | None = None
    ) -> Origin:
        """Return what values of the session are taken from."""
        image = self.image
        size = image.size
        return Origin(
            self.shape or (), n_trials, image.etag, size, image_time, model, self.trials
        )


class ModelError(Exception):
    """A model file that is not used, with the reason."""


Agreed = Callable[[], Candidate | None]
"""Returns what was proved of another session."""


class Means(NamedTuple):
    """What sessions that are filled at once share."""

    reader: Reader
    cores: Executor
    """Few threads, for all that takes memory: of what a thread frees, some stays with
    it, so that many threads would keep several times what they need."""


class Proved(NamedTuple):
    """A model file whose rows are known."""

    layout: Layout
    proof: Proof


def fill_from_model(task: Task, means: Means, agreed: Agreed) -> Candidate:
    """Store voxels of a session, taken from its model file.

    Parameters
    ----------
    task : Task
        What is lacking.
    means : Means
        Reads ranges, and computes.
    agreed : callable
        Returns what was proved by a full sample of another session, once it is known;
        or None.

    Returns
    -------
    Candidate
        What the rows of this model are.

    Raises
    ------
    ModelError
        If the model is not used.
    Fault
        If a range cannot be read.
    """
    if task.model is None:
        raise ModelError("the bucket has no model file of the session")
    try:
        proved = means.cores.submit(_saved, task).result()
        if proved is None:
            proved = prove(task, means, agreed)
            _save(task, proved)
        return _copy(task, task.model, proved, means)
    except (LayoutError, NotProvedError) as error:
        with contextlib.suppress(OSError):
            (task.folder / _PROOF).unlink()
        raise ModelError(str(error)) from None


def size_by_model(task: Task) -> int:
    """Return the bytes to be read for a session's voxels, about.

    The model is taken to be contiguous and float32; where nothing was proved yet, the
    first volume of the image and a sample of rows are counted too.
    """
    n_trials = task.n_trials or 1
    n_rows = len(task.voxels)
    if (task.folder / _PROOF).exists():
        return n_rows * n_trials * 4
    volume = int((task.image.size or 0) / n_trials)
    return (n_rows + SMALL_SAMPLE) * n_trials * 4 + volume


def _copy(task: Task, model: RemoteObject, proved: Proved, means: Means) -> Candidate:
    """Read the rows of voxels into a part, and see that they are the image's.

    Voxels without a row are 0, as they are in the image; where it has values at some of
    them, they are not read here.
    """
    layout, proof = proved
    by_row, rows, voxels = means.cores.submit(_rows_of, proof, task.voxels).result()
    n_without = len(voxels) - len(rows)
    if n_without and not proof.is_complete:
        raise ModelError(
            f"it lacks {counted(n_without, 'voxel')} of those asked for, and the image "
            "has values at voxels that it lacks"
        )
    source = rows_of(layout, model, means.reader)
    _check_cost(source, rows, task)
    origin = task.origin(layout.n_columns, model.etag)
    with new_part(task.folder, voxels, origin) as writer:
        source.copy(rows, writer)
        values = writer.values()[: len(rows)]
        _fill_rows_without_fit(values, proof.is_zero(rows))
        agreement = proof.agreement(rows, np.array(values[:, 0]))
        if n := np.count_nonzero(~agreement):
            raise NotProvedError(
                f"{n} of its {len(rows)} rows lack the value of the image's first "
                "volume"
            )
    return Candidate(proof.mask, proof.order, by_row)


def _rows_of(
    proof: Proof, voxels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the voxel of each row, the rows of some voxels, and these by row.

    Voxels without a row are last.
    """
    by_row = proof.voxels()
    rows, has = rows_in(by_row, voxels)
    rows = np.sort(rows[has])
    return by_row, rows, np.concatenate([by_row[rows], voxels[~has]])


def _fill_rows_without_fit(values: np.ndarray, is_zero: np.ndarray) -> None:
    """Let rows be 0 that are all NaN, where the image is 0."""
    for row in np.flatnonzero(is_zero & np.isnan(values[:, 0])):
        if np.isnan(values[row]).all():
            values[row] = 0


def _check_cost(
    source: ContiguousRows | ChunkedRows, rows: np.ndarray, task: Task
) -> None:
    size = source.size(rows)
    if task.most_bytes is not None and size > task.most_bytes:
        raise ModelError(
            f"{readable_size(size)} of it would be read, but of the image "
            f"{readable_size(task.image.size or 0)}"
        )


# --- The proof -------------------------------------------------------------------


def prove(task: Task, means: Means, agreed: Agreed) -> Proved:
    """Find out where values lie and which voxel each row is.

    Parameters
    ----------
    task, means, agreed
        As for `fill_from_model`.

    Raises
    ------
    ModelError
        If it cannot be proved.
    """
    if task.model is None:
        raise ModelError("the bucket has no model file of the session")
    try:
        return _prove(task, task.model, means, agreed)
    except (LayoutError, NotProvedError) as error:
        raise ModelError(str(error)) from None


def _prove(task: Task, model: RemoteObject, means: Means, agreed: Agreed) -> Proved:
    fetch = _fetcher(model, means.reader)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_first_volume, task, means)
        layout = read_layout(fetch, model.size or 0, BETAS)
        first = coming.result()
    if layout.n_columns != first.n_volumes:
        raise NotProvedError(
            f"it has {layout.n_columns} columns, but the image {first.n_volumes} "
            "volumes"
        )
    if task.n_trials is not None and layout.n_columns != task.n_trials:
        raise NotProvedError(
            f"it has {layout.n_columns} columns, but the trial table "
            f"{task.n_trials} trials"
        )
    if task.shape not in (None, first.shape):
        raise NotProvedError(f"the image is {first.shape}, the masks {task.shape}")
    source = rows_of(layout, model, means.reader)
    candidate = _fit(source, task, first, means, agreed)
    return Proved(layout, means.cores.submit(make_proof, candidate, first).result())


def _fit(
    source: ContiguousRows | ChunkedRows,
    task: Task,
    first: FirstVolume,
    means: Means,
    agreed: Agreed,
) -> Candidate:
    """Return the candidate that fits a sample of rows.

    A small sample will do for what was agreed on; if it does not fit, all are tried.
    """
    layout, likely = source.layout, agreed()
    if likely and len(likely.voxels) == layout.n_rows:
        rows = _sample(layout, first, SMALL_SAMPLE)
        with contextlib.suppress(NotProvedError):
            return fitting([likely], rows, source.first_column(rows), first)
    n_wanted = max(SMALL_SAMPLE, FULL_SAMPLE - len(task.voxels))
    rows = _sample(layout, first, n_wanted)
    column = source.first_column(rows)

    def choose() -> Candidate:
        masks = _masks(task, first, layout, means.reader)
        proposed = list(candidates(layout.n_rows, masks, first.shape))
        return fitting(proposed, rows, column, first)

    return means.cores.submit(choose).result()


def _sample(layout: Layout, first: FirstVolume, n_rows: int) -> np.ndarray:
    """Return rows to look at."""
    if _is_grid(layout, first):
        # Most voxels of the grid are outside of the brain, and tell nothing.
        rows = first.voxels[sample(len(first.voxels), n_rows)]
    else:
        rows = sample(layout.n_rows, n_rows)
    if not len(rows):
        raise NotProvedError("the values of its first trial tell nothing")
    return rows


def _is_grid(layout: Layout, first: FirstVolume) -> bool:
    """Tell whether a model has a row for each voxel of the grid."""
    return layout.shape[:-1] == first.shape


def _fetcher(target: RemoteObject, reader: Reader) -> Fetch:
    return lambda start, stop: reader.read_bytes(target, start, stop)


def _first_volume(task: Task, means: Means) -> FirstVolume:
    image = task.image
    try:
        return read_first_volume(
            _fetcher(image, means.reader),
            image.size or 0,
            task.n_trials or 1000,
            image.id.endswith(".gz"),
            means.cores,
        )
    except VolumeError as error:
        raise NotProvedError(f"of the image {image.id}, {error}") from None


def _masks(
    task: Task, first: FirstVolume, layout: Layout, reader: Reader
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the masks whose voxels the rows may be, those at hand first."""
    if _is_grid(layout, first):
        yield "the grid", np.ones(math.prod(first.shape), dtype=bool)
        return
    yield "the image's voxels that are not 0", first.mask()
    if isinstance(task.brain_mask, RemoteObject):
        mask = _remote_map(task.brain_mask, "the brain mask", first.shape, reader)
        yield "the brain mask", mask > 0
    elif task.brain_mask:
        yield "the brain mask", _flat_map(task.brain_mask) > 0
    if task.rsquare is not None and layout.n_rows != len(first.voxels):
        rsquare = _remote_map(task.rsquare, "the R2 map", first.shape, reader)
        is_fitted = (rsquare != 0) & np.isfinite(rsquare)
        yield "the R2 map's voxels that are not 0", is_fitted


def _flat_map(file: str) -> np.ndarray:
    """Read a 3-D image, flat, the last axis varying fastest."""
    header = read_header(file)
    (volume,) = iter_volumes(header, [0])
    values = scaled(header, volume, "float32")
    return values.reshape(header.shape, order="F").ravel()


def _remote_map(
    target: RemoteObject, name: str, shape: tuple[int, int, int], reader: Reader
) -> np.ndarray:
    """Read a 3-D image out of the bucket, without a file, as `_flat_map` does."""
    import nibabel as nib
    from isal import igzip

    size = target.size or 0
    if size > _LARGEST_MAP:
        raise NotProvedError(f"{name} has {readable_size(size)}")
    content = bytes(reader.read_bytes(target, 0, size))
    try:
        if target.id.endswith(".gz"):
            with igzip.IGzipFile(fileobj=io.BytesIO(content)) as stream:
                content = stream.read(_LARGEST_MAP)
        is_nifti2 = nib.Nifti2Header.may_contain_header(content)
        kind: Any = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
        image = kind.from_bytes(content)
        is_on_grid = image.shape == shape
        values = np.asarray(image.dataobj, np.float32) if is_on_grid else np.empty(0)
    except Exception as error:
        # nibabel raises errors of many kinds where a file is damaged.
        raise NotProvedError(f"{name} cannot be read ({error})") from None
    if not is_on_grid:
        raise NotProvedError(f"{name} is {image.shape}, the image {shape}")
    return values.ravel()


# --- What is kept ----------------------------------------------------------------


def _versions(task: Task) -> str:
    assert task.model is not None
    files = task.image, task.model
    text = json.dumps([[f.etag, f.size] for f in files] + [task.n_trials])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _save(task: Task, proved: Proved) -> None:
    """Keep what was proved; where that is not possible, it is proved again."""
    layout, proof = proved
    about = {
        "format": _FORMAT,
        "versions": _versions(task),
        "shape": layout.shape,
        "dtype": layout.dtype.str,
        "offset": layout.offset,
        "chunk_shape": layout.chunk_shape,
        "mask": proof.mask,
        "order": proof.order,
        "grid": proof.shape,
        "is_complete": proof.is_complete,
    }
    chunks = [[*chunk.origin, chunk.start, chunk.stop] for chunk in layout.chunks]
    with contextlib.suppress(OSError), whole_file(task.folder / _PROOF) as stream:
        np.savez_compressed(
            stream,
            about=json.dumps(about),
            packed=np.frombuffer(proof.packed, np.uint8),
            digests=proof.digests,
            chunks=np.array(chunks, np.int64),
        )


def _saved(task: Task) -> Proved | None:
    """Return what was proved of these versions of both files."""
    try:
        with open(task.folder / _PROOF, "rb") as stream:
            arrays = dict(np.load(stream, allow_pickle=False))
        about = json.loads(str(arrays["about"]))
        if (about["format"], about["versions"]) != (_FORMAT, _versions(task)):
            return None
        chunks = tuple(
            Chunk(tuple(row[:-2]), row[-2], row[-1])
            for row in arrays["chunks"].tolist()
        )
        layout = Layout(
            tuple(about["shape"]),
            np.dtype(about["dtype"]),
            about["offset"],
            tuple(about["chunk_shape"]),
            chunks,
        )
        proof = Proof(
            about["mask"],
            about["order"],
            tuple(about["grid"]),
            arrays["packed"].tobytes(),
            arrays["digests"],
            about["is_complete"],
        )
        is_sound = len(proof.voxels()) == len(proof.digests) == layout.n_rows
    except DAMAGED:
        return None
    return Proved(layout, proof) if is_sound else None
