"""The gated archive of stimulus images: downloaded whole, images of it on demand.

It holds encoded images by number alone; the public table, row by row, names them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.gate import (
    Gate,
    published_archive,
    save_archive,
    saved_archive,
)
from laion_fmri_fetchers.cache.files import local_path, make_folder, whole_file
from laion_fmri_fetchers.cache.inventory import Inventory
from laion_fmri_fetchers.cache.obtain import Planned, Source, obtain
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
    StimulusAccessError,
)
from laion_fmri_fetchers.layout.keys import Record, record_of
from laion_fmri_fetchers.layout.trees import ARCHIVE, STIMULUS_IMAGES, stimulus_image
from laion_fmri_fetchers.messages import listed, readable_size, tell, warn
from laion_fmri_fetchers.query.arguments import check_positive, only_its_arguments

from .hdf5 import check_values, open_hdf5

_N_DECODERS = 8
_N_WRITERS = 4
# Seconds to wait for the manifest, which only announces new versions.
_MANIFEST_TIMEOUT = 10.0


# --- The file --------------------------------------------------------------------


def archive_record(inventory: Inventory) -> Record:
    """Return the record of the archive, as the bucket lists it if it does."""
    record = record_of(*inventory.objects.get(ARCHIVE, (ARCHIVE,)))
    path = local_path(inventory.settings.data_dir, ARCHIVE)
    return {**record, "absolute_path": path}


def download_archive(
    gate: Gate, inventory: Inventory, reason: str, table: pd.DataFrame
) -> list[dict[str, Any]]:
    """Download the archive; return it as a failure where it may be missing."""
    settings = inventory.settings
    version = gate.renew().archive
    tell(
        "The stimulus images are one archive (3.2 GB as published, here "
        f"{readable_size(version.size)}), downloaded once whatever is selected: "
        f"{ARCHIVE} to {settings.data_dir}",
        settings.verbose,
    )
    outcome = obtain(
        [Planned({**archive_record(inventory), "size": version.size}, reason)],
        inventory,
        sources={ARCHIVE: Source(gate.url, version.size, version.sha256)},
        is_announced=True,
    )
    if outcome.failed:
        warn(f"{ARCHIVE} could not be downloaded: {outcome.failed[0]['reason']}.")
        return [{"id": rec["id"], "reason": rec["reason"]} for rec in outcome.failed]
    save_archive(settings.data_dir, version._replace(order=_digest_of_names(table)))
    return []


def _digest_of_names(table: pd.DataFrame) -> str:
    return hashlib.sha256("\n".join(table["image_name"]).encode()).hexdigest()


def check_archive(archive: str, table: pd.DataFrame, data_dir: str) -> None:
    """Raise unless the rows of the table are those of the archive on disk.

    Raises
    ------
    CorruptImageError
        If their numbers differ, or if the table names images in another order than the
        one that the archive was downloaded with.
    """
    saved = saved_archive(data_dir)
    if saved and saved.order not in ("", _digest_of_names(table)):
        raise CorruptImageError(
            "The table of stimuli names images in another order than when "
            f"{ARCHIVE} was downloaded, so their rows in the archive are not known. "
            "Fetch both again by fetch_laion_stimuli(mode='overwrite')."
        )
    with open_images(archive) as images:
        if len(images) != len(table):
            raise ValueError(
                f"it holds {len(images)} images, its metadata {len(table)}"
            )


def describe_archive(inventory: Inventory, is_fresh: bool) -> Record:
    """Return the record of the archive on disk; warn where there is a newer one.

    The manifest of the access service tells the current version. Where the service is
    unavailable, the size in the bucket's listing has to do.
    """
    settings, record = inventory.settings, archive_record(inventory)
    listed_size, size = record["size"], os.path.getsize(record["absolute_path"])
    record["size"] = size
    if is_fresh:
        return record
    current = None
    if not inventory.is_cut_off:
        with contextlib.suppress(StimulusAccessError):
            timeout = min(settings.timeout, _MANIFEST_TIMEOUT)
            current = published_archive(timeout, tries=1)
    new_size = current.size if current else listed_size
    is_outdated = new_size not in (None, size)
    saved = saved_archive(settings.data_dir)
    if current and saved and saved.size == size:
        is_outdated = saved.sha256 != current.sha256
    if is_outdated:
        record |= {"etag": None, "last_modified": None, "outdated": True}
        if settings.adds_new:
            warn(
                f"There is a new version of {ARCHIVE}, of {new_size:,} bytes; the "
                f"version on disk has {size:,} bytes and was used. mode='overwrite' "
                "downloads the new one."
            )
    return record


# --- Images in it ----------------------------------------------------------------


@contextlib.contextmanager
def open_images(archive: str) -> Iterator[Any]:
    """Open the dataset of encoded images."""
    import h5py

    with open_hdf5(archive, "archive") as file:
        images = file.get("images")
        if not isinstance(images, h5py.Dataset) or images.ndim != 1:
            raise ValueError("it has no 1-D dataset 'images'")
        yield images


def read_image(images: Any, row: int, name: str) -> bytes:
    """Return an encoded image."""
    try:
        check_values(images, row, row + 1)
        return bytes(images[row])
    except (OSError, ValueError, IndexError) as error:
        if getattr(error, "errno", None):
            raise
        raise CorruptImageError(
            f"The image {name!r} (row {row}) cannot be read from "
            f"{images.file.filename}: {error}. Fetch it again with mode='overwrite'."
        ) from error


def decode_image(
    data: bytes, name: str, shape: tuple[int, int] | None, as_displayed: bool = True
) -> np.ndarray:
    """Return an encoded image as RGB, (height, width, 3) uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if as_displayed and image.has_transparency_data:
                picture = Image.new("RGB", image.size, (128, 128, 128))
                rgba = image.convert("RGBA")
                picture.paste(rgba, mask=rgba)
            else:
                picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptImageError(
            f"The image {name!r} cannot be decoded: {error}. Fetch the archive again "
            "with mode='overwrite'."
        ) from error
    if shape and shape != (picture.height, picture.width):
        picture = picture.resize(shape[::-1], Image.Resampling.LANCZOS)
    return np.array(picture)


def image_shape(size: Any) -> tuple[int, int] | None:
    """Return the argument ``size`` as (height, width); None for None."""
    if size is None:
        return None
    both = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(both) != 2:
        raise InvalidQueryError(f"size is {size!r}; give pixels, or (height, width)")
    height, width = (check_positive(pixels, "size", whole=True) for pixels in both)
    return height, width


def existing_archive(stimuli: Bunch) -> str:
    """Return the archive of a Bunch; raise a NotCachedError if it is not on disk."""
    archive = stimuli["archive"]
    if not archive or not os.path.exists(archive):
        raise NotCachedError(
            f"The archive of stimuli, {archive}, is not on disk. Fetch it with "
            "fetch_laion_stimuli."
        )
    return archive


def extract_images(
    archive: str, table: pd.DataFrame, names: list[str], data_dir: str, renew: bool
) -> list[str]:
    """Write images as files, byte for byte; return their paths.

    Those on disk are not written again, except with ``renew``: then all of them are,
    also those that are not among ``names``, as the archive was downloaded again.
    """
    folder = local_path(data_dir, STIMULUS_IMAGES)
    make_folder(folder)
    on_disk = {*os.listdir(folder)}
    chosen = {*names} | on_disk if renew else {*names} - on_disk
    rows = {
        name: row
        for name, row in zip(table["image_name"], table["h5_index"], strict=True)
        if name in chosen
    }

    def extract(name: str) -> None:
        data = read_image(images, rows[name], name)
        with whole_file(local_path(data_dir, stimulus_image(name))) as stream:
            stream.write(data)

    if rows:
        with open_images(archive) as images, ThreadPoolExecutor(_N_WRITERS) as pool:
            for _ in pool.map(extract, rows):  # the first error cancels the others
                pass
    return [local_path(data_dir, stimulus_image(name)) for name in names]


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
    shape = image_shape(size)
    if batch_size is not None:
        batch_size = check_positive(batch_size, "batch_size", whole=True)
    columns = getattr(getattr(stimuli, "metadata", None), "columns", ())
    if (
        not isinstance(stimuli, dict)
        or "archive" not in stimuli
        or ("h5_index" not in columns)
    ):
        given = f"a {type(stimuli).__name__}"
        if isinstance(stimuli, dict):
            given += f" with {listed(list(map(str, stimuli)))}"
        raise InvalidQueryError(
            "load_stimuli takes the Bunch of fetch_laion_stimuli, whose 'archive' and "
            f"'metadata' it reads; {given} was given. The images of trials: "
            "fetch_laion_stimuli(data.trials)"
        )
    rows = [*stimuli["metadata"]["h5_index"].items()]
    batches = _decode_batches(
        existing_archive(stimuli), rows, batch_size, shape, as_displayed
    )
    return next(batches) if batch_size is None else batches


def _decode_batches(
    archive: str,
    rows: list[tuple[str, int]],
    batch_size: int | None,
    shape: tuple[int, int] | None,
    as_displayed: bool,
) -> Iterator[np.ndarray]:
    """Yield images, given as (name, row in the archive); all at once without a size."""
    if not rows and batch_size is None:
        yield np.empty((0, *(shape or (0, 0)), 3), np.uint8)
    step = batch_size or max(len(rows), 1)
    with open_images(archive) as images, ThreadPoolExecutor(_N_DECODERS) as pool:

        def decode(image: tuple[str, int]) -> np.ndarray:
            name, row = image
            return decode_image(
                read_image(images, row, name), name, shape, as_displayed
            )

        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            batch: Any = None
            for i, picture in enumerate(pool.map(decode, chosen)):
                if batch is None:
                    batch = np.empty((len(chosen), *picture.shape), np.uint8)
                if picture.shape != batch.shape[1:]:
                    raise InvalidQueryError(
                        f"The image {chosen[i][0]!r} has {picture.shape[:2]} pixels, "
                        f"others {batch.shape[1:3]}; give a size to resize them to."
                    )
                batch[i] = picture
            yield batch
