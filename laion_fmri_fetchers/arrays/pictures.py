"""The stimulus images as arrays: read from their archive, decoded, laid over grey."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.messages import listed
from laion_fmri_fetchers.query.arguments import check_positive, only_its_arguments

from .heaps import check_values

_DECODERS = 8


@only_its_arguments
def load_stimuli(
    stimuli: Bunch,
    *,
    as_displayed: bool = True,
    size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> np.ndarray | Iterator[np.ndarray]:
    """Load the images that `fetch_laion_stimuli` selected.

    Parameters
    ----------
    stimuli : :class:`sklearn.utils.Bunch`
        The Bunch of `fetch_laion_stimuli`. Its ``metadata`` may have been cut or
        reordered; ``h5_index`` says which images to load.
    as_displayed : bool, default=True
        Lay transparent pixels over mid-grey, as in the scanner. Otherwise colours are
        as stored, and transparency is left out.
    size : int or (int, int), optional
        Height and width in pixels to which images are resized; by default they stay
        as they are, 1000 x 1000.
    batch_size : int, optional
        Yield arrays of this many images, for selections larger than the memory: an
        image takes 3 MB.

    Returns
    -------
    numpy.ndarray of uint8, shape (n_images, height, width, 3)
        The images, RGB, in the order of ``stimuli.metadata``; with ``batch_size``, an
        iterator of such arrays.

    Raises
    ------
    InvalidQueryError
        If ``stimuli`` is something else, ``size`` or ``batch_size`` is not valid, or
        images differ in size and no ``size`` is given.
    NotCachedError
        If the archive is not on disk.
    CorruptImageError
        If the archive or an image cannot be read.

    Examples
    --------
    ::

        pictures = load_stimuli(stimuli, size=224)
        for batch in load_stimuli(stimuli, batch_size=64):
            features.append(model(batch))
    """
    shape = None if size is None else image_shape(size)
    if batch_size is not None:
        batch_size = check_positive(batch_size, "batch_size", whole=True)
    _check_stimuli(stimuli)
    if not stimuli.archive or not os.path.exists(stimuli.archive):
        raise NotCachedError(
            f"The archive of stimuli, {stimuli.archive}, is not on disk. Fetch it with "
            "fetch_laion_stimuli."
        )
    names = list(stimuli.metadata.index)
    rows = stimuli.metadata["h5_index"].to_numpy()
    batches = _batches(stimuli.archive, names, rows, batch_size, shape, as_displayed)
    return next(batches) if batch_size is None else batches


def _check_stimuli(stimuli: Any) -> None:
    """Raise InvalidQueryError unless a Bunch is that of `fetch_laion_stimuli`."""
    columns = getattr(getattr(stimuli, "metadata", None), "columns", ())
    if isinstance(stimuli, dict) and "archive" in stimuli and "h5_index" in columns:
        return
    given = f"a {type(stimuli).__name__}"
    if isinstance(stimuli, dict):
        given += f" with {listed(list(map(str, stimuli)))}"
    raise InvalidQueryError(
        "load_stimuli takes the Bunch of fetch_laion_stimuli, whose 'archive' and "
        f"'metadata' it reads; {given} was given. The images of trials: "
        "fetch_laion_stimuli(data.trials)"
    )


def image_shape(size: Any) -> tuple[int, int]:
    """Return (height, width)."""
    both = (size, size) if not isinstance(size, (tuple, list)) else tuple(size)
    if len(both) != 2:
        raise InvalidQueryError(f"size is {size!r}; give pixels, or (height, width)")
    height, width = (check_positive(pixels, "size", whole=True) for pixels in both)
    return height, width


def _batches(
    archive: str,
    names: list[str],
    rows: np.ndarray,
    batch_size: int | None,
    shape: tuple[int, int] | None,
    as_displayed: bool,
) -> Iterator[np.ndarray]:
    """Yield images as arrays; all at once without a batch size."""
    step = batch_size or max(len(names), 1)
    starts = range(0, len(names), step) if batch_size else [0]
    with open_images(archive) as images, ThreadPoolExecutor(_DECODERS) as pool:

        def decode(at: int) -> np.ndarray:
            data = read_image(images, int(rows[at]), names[at])
            return decode_image(data, names[at], shape, as_displayed)

        for start in starts:
            chosen = range(start, min(start + step, len(names)))
            if not chosen:
                yield np.empty((0, *(shape or (0, 0)), 3), np.uint8)
                continue
            first = decode(chosen[0])
            batch = np.empty((len(chosen), *first.shape), np.uint8)
            batch[0] = first

            def place(at: int, batch: np.ndarray = batch, start: int = start) -> None:
                picture = decode(at)
                if picture.shape != batch.shape[1:]:
                    raise InvalidQueryError(
                        f"The image {names[at]!r} has {picture.shape[:2]} pixels, "
                        f"others {batch.shape[1:3]}; give a size to resize them to."
                    )
                batch[at - start] = picture

            tasks = [pool.submit(place, at) for at in chosen[1:]]
            finish(tasks)
            yield batch


def decode_image(
    data: bytes, name: str, shape: tuple[int, int] | None, as_displayed: bool
) -> np.ndarray:
    """Return an encoded image as RGB, (height, width, 3) uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if as_displayed and image.has_transparency_data:
                over_grey = _over_grey(np.asarray(image.convert("RGBA")))
                picture = Image.fromarray(over_grey)
            else:
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptImageError(
            f"The image {name!r} cannot be decoded: {error}. Fetch the archive again "
            "with mode='overwrite'."
        ) from error
    if shape and shape != (picture.height, picture.width):
        picture = picture.resize(shape[::-1], Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _over_grey(rgba: np.ndarray) -> np.ndarray:
    """Return an RGBA picture over mid-grey, 128 in each channel, rounded.

    >>> pixels = [[9, 9, 9, 0], [9, 9, 9, 255], [0, 100, 255, 51]]
    >>> _over_grey(np.array([pixels], np.uint8))[0].tolist()
    [[128, 128, 128], [9, 9, 9], [102, 122, 153]]
    """
    colour, alpha = rgba[..., :3].astype(np.int32), rgba[..., 3:].astype(np.int32)
    return ((colour * alpha + 128 * (255 - alpha) + 127) // 255).astype(np.uint8)


# --- Reading the archive ---


@contextlib.contextmanager
def open_images(archive: str, stream: BinaryIO | None = None) -> Iterator[Any]:
    """Open the images of an archive, by its name or by a stream of it."""
    import h5py

    try:
        file = h5py.File(stream or archive, "r")
    except OSError as error:
        _raise_corrupt(archive, error)
    with file:
        images = file.get("images")
        if not isinstance(images, h5py.Dataset) or images.ndim != 1:
            _raise_corrupt(archive, "it has no 1-D dataset 'images'")
        yield images


def _raise_corrupt(archive: str, why: object) -> None:
    raise CorruptImageError(
        f"The archive {archive} cannot be read ({why}). Fetch it again with "
        "mode='overwrite'."
    )


def check_archive(archive: str, n_rows: int) -> None:
    """Raise unless the archive has as many images as its table has rows."""
    with open_images(archive) as images:
        if len(images) != n_rows:
            _raise_corrupt(
                archive, f"it holds {len(images)} images, its metadata {n_rows}"
            )


def read_image(
    images: Any, row: int, name: str, descriptor: int | None = None
) -> bytes:
    """Return an encoded image; for ``descriptor``, see `check_values`."""
    try:
        check_values(images, row, row + 1, descriptor)
        return bytes(images[row])
    except (OSError, ValueError, IndexError) as error:
        raise CorruptImageError(
            f"The image {name!r} (row {row}) cannot be read from "
            f"{images.file.filename}: {error}. Fetch it again with mode='overwrite'."
        ) from error


def finish(tasks: Iterable[Future]) -> None:
    """Wait for tasks; the first error ends them."""
    tasks = list(tasks)
    try:
        for task in tasks:
            task.result()
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
