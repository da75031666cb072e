"""Which voxels the store lacks, and from which files they are taken.

missing_voxels ──▶ MissingVoxels, of each session ──▶ plan_sources ──▶ SourcePlan
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from laion_fmri_fetchers.cache.data_dir import is_writable
from laion_fmri_fetchers.cache.inventory import Inventory, size_on_disk
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.keys import Record, record_of
from laion_fmri_fetchers.messages import counted, listed, tell, warn
from laion_fmri_fetchers.remote.bucket import object_url
from laion_fmri_fetchers.remote.objects import Fault, RemoteObject
from laion_fmri_fetchers.volumes import Header, iter_volumes

from .model import (
    FULL_SAMPLE,
    SMALL_SAMPLE,
    STRUCTURE,
    first_bytes,
    mapping_file,
    sample_rows,
)
from .store import (
    Version,
    find_version,
    known_versions,
    missing_in,
    note_version,
    session_folder,
)

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.ranges import RangeReader

# Bytes of a model, as a multiple of the image's, up to which the model is read.
_MOST_COST = 1.5

# Bytes between two rows that are read with them rather than to ask twice: as many as a
# line of 4 MB/s and connection moves in 60 ms. A number that is measured would make
# what was announced wrong.
_WORTH = 2**18
# Bytes between rows, as a share of the rows', that are read anyway; more only where
# there are many requests to save: so many for each connection.
_MOST_UNUSED = 0.1
_MANY = 4
_ASKED_AT_ONCE = 8


class MissingVoxels(NamedTuple):
    """Voxels of a session that the store lacks."""

    record: Record
    """Of the beta image; brought up to date where the bucket has a new version."""
    folder: Path
    """Of the session in the store."""
    n_trials: int | None
    """Rows of the trial table; None where there is no table."""
    trials: str | None
    """Digest of the trial table."""
    voxels: np.ndarray
    """Positions in a flat volume, the last axis varying fastest; increasing."""
    shape: tuple[int, ...]
    """Voxels of the grid, by axis."""
    is_on_disk: bool
    """Whether the image is."""
    image: RemoteObject | None = None
    model: RemoteObject | None = None
    rsquare: RemoteObject | None = None
    """The files in the bucket, where it has them."""


class SourcePlan(NamedTuple):
    """From which files missing voxels are taken."""

    from_model: list[MissingVoxels]
    from_disk: list[MissingVoxels]
    """Of images on disk."""
    from_bucket: list[MissingVoxels]
    """Of images to download."""
    files: list[tuple[str, int, str, str]]
    """Id, bytes, reason and source of what is downloaded."""
    sizes: dict[str, int]
    """Bytes to download by ``"model"`` files alone, and by ``"images"`` alone."""
    brain: np.ndarray
    """The brain mask, flat, the last axis fastest; empty if nothing is missing."""


# --- What is missing ----------------------------------------------------------------


def learn_versions(metas: list[Record], data_dir: str, inventory: Inventory) -> None:
    """Find out whether images are stored under another ETag than the bucket has.

    A mirror may give other ETags to the same images, and images that were packed before
    there was a listing have none: the last bytes of an image tell.
    """
    unknown = []
    for meta in metas:
        folder = session_folder(data_dir, meta["subject"], meta["session"])
        etags = known_versions(folder).values()
        is_known = any(meta["etag"] in known for known in etags)
        if etags and not is_known and not os.path.exists(meta["absolute_path"]):
            unknown.append((folder, meta))
    if not unknown or inventory.is_cut_off:
        return
    from laion_fmri_fetchers.remote.ranges import RangeReader

    settings = inventory.settings
    with (
        RangeReader(settings.n_connections, settings.timeout) as reader,
        ThreadPoolExecutor(_ASKED_AT_ONCE) as pool,
    ):

        def learn(folder: Path, meta: Record) -> None:
            # A bucket that does not say has, as it seems, another version.
            with contextlib.suppress(Fault, OSError):
                found = read_version(reader, remote_object(meta), "")
                for version in known_versions(folder):
                    if version[:2] == found[:2]:
                        note_version(folder, version, meta["etag"])

        for future in [pool.submit(learn, *each) for each in unknown]:
            future.result()


def read_version(
    reader: RangeReader, image: RemoteObject, trials: str | None
) -> Version:
    """Return the version of an image in the bucket."""
    size = image.size or 0
    tail = reader.read_bytes(image, max(0, size - 8), size)
    return Version(size, bytes(tail).hex(), trials or "")


def remote_object(rec: Record) -> RemoteObject:
    """Return a file of the bucket, in the version of its record."""
    return RemoteObject(rec["id"], object_url(rec["key"]), rec["size"], rec["etag"])


def missing_voxels(
    metas: list[Record],
    tables: dict[str, Any],
    mask: np.ndarray,
    data_dir: str,
    inventory: Inventory | None = None,
) -> list[MissingVoxels]:
    """Return what the store lacks, by session.

    Parameters
    ----------
    metas : list of dict
        Records of beta images of a subject. Where voxels are stored of another version
        of an image than the bucket has now, the record gets the version that is stored.
    tables : dict
        Session -> its trial table: ``n_trials``, and its digest as ``version``.
    mask : numpy.ndarray of bool
        The voxels asked for, of the grid's shape.
    data_dir : str
        The data directory.
    inventory : Inventory, optional
        What the bucket has; None: only images on disk matter.

    Warns
    -----
    UserWarning
        If the bucket has another version of what is stored.
    """
    overwrites = inventory is not None and inventory.settings.overwrites
    objects = inventory.objects if inventory else {}
    siblings = {
        (rec["subject"], rec["session"], rec["image_type"]): remote_object(rec)
        for rec in (inventory.records if inventory else ())
        if rec["image_type"] in ("model", "rsquare")
    }
    missing, outdated = [], []
    for meta in metas:
        subject, session = meta["subject"], meta["session"]
        folder = session_folder(data_dir, subject, session)
        table = tables.get(session)
        n_trials, trials = (table.n_trials, table.version) if table else (None, None)
        is_on_disk = os.path.exists(meta["absolute_path"])
        voxels = np.flatnonzero(mask)
        if not overwrites:
            version = find_version(folder, meta, trials)
            left = missing_in(folder, version, voxels) if version else voxels
            if not len(left):
                continue
            others = {} if version or is_on_disk else known_versions(folder)
            whole = [
                (other, etags)
                for other, etags in others.items()
                if trials in (None, other.trials)
                and not len(missing_in(folder, other, voxels))
            ]
            if len(whole) == 1:
                ((other, etags),) = whole
                meta |= {"etag": min(etags, default=None), "size": other.size}
                meta["outdated"] = True
                outdated.append(meta)
                continue
            voxels = left
        key = objects.get(meta["id"])
        missing.append(
            MissingVoxels(
                meta,
                folder,
                n_trials,
                trials,
                voxels,
                mask.shape,
                is_on_disk,
                image=remote_object(record_of(*key)) if key else None,
                model=siblings.get((subject, session, "model")),
                rsquare=siblings.get((subject, session, "rsquare")),
            )
        )
    if outdated:
        warn(
            f"The bucket has another version of {counted(len(outdated), 'beta image')} "
            f"than the voxel store: {listed([m['id'] for m in outdated])}. What is "
            "stored is used; mode='overwrite' fetches the new version."
        )
    return missing


# --- From which files ----------------------------------------------------------------


def plan_sources(  # noqa: C901 - a case of each source
    missing: Sequence[MissingVoxels],
    source: str,
    grid: Header,
    inventory: Inventory,
) -> SourcePlan:
    """Return from which files the voxels of each session are taken.

    Parameters
    ----------
    missing : sequence of MissingVoxels
        What is missing.
    source : {"auto", "model", "images"}
        What is asked for.
    grid : Header
        Of the brain mask.
    inventory : Inventory
        What the bucket has.

    Raises
    ------
    InvalidQueryError
        If the model is asked for, and cannot be taken.
    """
    brain = np.zeros(0, dtype=bool)
    if missing:
        (volume,) = iter_volumes(grid, [0])
        brain = (volume > 0).reshape(grid.shape, order="F").ravel()
    plan = SourcePlan([], [], [], [], {"model": 0, "images": 0}, brain)
    settings, n_sample = inventory.settings, FULL_SAMPLE
    asked = "images" if inventory.is_cut_off else source
    row_of_voxel = np.cumsum(brain, dtype=np.int32) - 1
    for session in missing:
        record, n_bytes = session.record, 0
        if session.model:
            n_bytes = _estimate_bytes(
                session, row_of_voxel, n_sample, settings.n_connections
            )
            n_sample = SMALL_SAMPLE
        image_size = record["size"] or 0
        plan.sizes["model"] += n_bytes
        plan.sizes["images"] += 0 if session.is_on_disk else image_size
        is_cheap = 0 < n_bytes <= _MOST_COST * image_size
        if asked == "model":
            _refuse_other_version(session)
        if asked == "model" or (
            asked == "auto" and is_cheap and not session.is_on_disk
        ):
            plan.from_model.append(session)
            model_id = session.model.id if session.model else ""
            plan.files.append((model_id, n_bytes, "voxels", "model"))
        elif settings.overwrites or not session.is_on_disk:
            plan.from_bucket.append(session)
            plan.files.append((record["id"], image_size, "voxels", "images"))
        elif is_writable(session.folder):  # else the image itself is read
            plan.from_disk.append(session)
    if asked == "auto":
        large = "they are smaller than these voxels in the model files"
        without = "the bucket has no model files for them"
        reasons: dict[str, list[str]] = {}
        for session in (each for each in plan.from_bucket if not each.is_on_disk):
            reason = large if session.model else without
            reasons.setdefault(reason, []).append(session.record["session"])
        for reason, names in reasons.items():
            tell(f"Reading the images of {listed(names)}: {reason}", settings.verbose)
    return plan


def _refuse_other_version(session: MissingVoxels) -> None:
    """Raise where the model, which is asked for, cannot be taken."""
    record = session.record
    name = f"{record['session']} of {record['subject']}"
    if session.model is None or session.image is None:
        raise InvalidQueryError(
            f"The bucket has no model file of {name}; source='auto' takes the image."
        )
    is_same_size = size_on_disk(record) in (None, session.image.size)
    if session.is_on_disk and (record["outdated"] or not is_same_size):
        raise InvalidQueryError(
            f"The image of {name} on disk is another version than the bucket has, and "
            "what is on disk counts. Use source='images' with mode='overwrite', or "
            "remove it."
        )


def _estimate_bytes(
    session: MissingVoxels,
    row_of_voxel: np.ndarray,
    n_sample: int,
    n_connections: int,
) -> int:
    """Return the bytes to be read for a session's voxels from its model file.

    Its rows are taken to be the voxels of the brain mask, ``row_of_voxel``.
    Where nothing was proved yet, the structure of the file, the first volume of the
    image and a sample of rows count too.
    """
    model, image, n_trials = session.model, session.image, session.n_trials or 1
    if model is None or image is None:
        return 0
    row_size = 4 * n_trials
    rows = np.unique(row_of_voxel[session.voxels])
    n_rows = sum(b - a for a, b in ranges_of_rows(rows, row_size, n_connections))
    n_bytes = int(n_rows * row_size)
    if mapping_file(session.folder, model, image).exists():
        return n_bytes
    n_sample = max(SMALL_SAMPLE, n_sample - len(rows) * (n_sample == FULL_SAMPLE))
    sample = sample_rows(int(row_of_voxel[-1]) + 1, n_sample)
    n_blocks = 1 + np.count_nonzero(np.diff(sample) != 1)
    n_bytes += len(sample) * row_size - int(n_blocks) * (row_size - 4)
    n_bytes += min(STRUCTURE, model.size or 0) + 8
    return n_bytes + first_bytes(image.size or 0, n_trials)


def ranges_of_rows(
    rows: np.ndarray, row_size: int, n_connections: int
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
    n_connections : int
        Requests at once.

    Examples
    --------
    >>> ranges_of_rows(np.array([0, 1, 3, *range(90, 99)]), 100, 1)
    [(0, 4), (90, 99)]
    >>> ranges_of_rows(np.empty(0, int), 100, 1)
    []
    """
    if not len(rows):
        return []
    gaps = np.diff(rows) - 1
    by_size = np.argsort(gaps, kind="stable")
    is_little = np.cumsum(gaps[by_size]) <= _MOST_UNUSED * len(rows)
    n_left = np.arange(len(gaps), 0, -1)
    is_read = is_little | (n_left > _MANY * n_connections)
    is_read &= gaps[by_size] * row_size <= _WORTH
    is_joined = gaps == 0
    is_joined[by_size[is_read]] = True
    edges = np.flatnonzero(~is_joined)
    starts, stops = rows[np.append(0, edges + 1)], rows[np.append(edges, -1)] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
