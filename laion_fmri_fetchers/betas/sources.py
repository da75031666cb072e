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

from . import store
from .model import SAMPLE, STRUCTURE, first_bytes, mapping_file
from .ranges import ranges_of_rows
from .rows import TrialTable

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.ranges import RangeReader

# Bytes of a model, as a multiple of the image's, up to which the model is read.
_MOST_COST = 1.5
_ASKED_AT_ONCE = 8


class MissingVoxels(NamedTuple):
    """Voxels of a session that the store lacks."""

    record: Record
    """Of the beta image; brought up to date where the bucket has a new version."""
    folder: Path
    """Of the session in the store."""
    table: TrialTable
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

    @property
    def name(self) -> str:
        """Such as ``"ses-01 of sub-01"``, for messages."""
        return f"{self.record['session']} of {self.record['subject']}"


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
    """The brain mask; empty if nothing is missing."""


# --- What is missing ----------------------------------------------------------------


def learn_versions(metas: list[Record], data_dir: str, inventory: Inventory) -> None:
    """Find out whether images are stored under another ETag than the bucket has.

    A mirror may give other ETags to the same images, and images that were packed before
    there was a listing have none: the last bytes of an image tell.
    """
    unknown = []
    for meta in metas:
        folder = store.session_folder(data_dir, meta["subject"], meta["session"])
        versions = store.known_versions(folder)
        is_known = any(meta["etag"] in etags for etags in versions.values())
        if versions and not is_known and not os.path.exists(meta["absolute_path"]):
            unknown.append((folder, remote_object(meta)))
    if not unknown or inventory.is_cut_off:
        return
    from laion_fmri_fetchers.remote.ranges import RangeReader

    settings = inventory.settings
    with (
        RangeReader(settings.n_connections, settings.timeout) as reader,
        ThreadPoolExecutor(_ASKED_AT_ONCE) as pool,
    ):

        def learn(folder: Path, image: RemoteObject) -> None:
            # A bucket that does not say has, as it seems, another version; and a
            # directory that cannot be written is asked for again.
            with contextlib.suppress(Fault, OSError):
                found = read_version(reader, folder, image, "")
                for version in store.known_versions(folder):
                    if version[:2] == found[:2]:
                        store.note_etag(folder, version, image.etag)

        for future in [pool.submit(learn, *each) for each in unknown]:
            future.result()


def read_version(
    reader: RangeReader, folder: Path, image: RemoteObject, trials: str
) -> store.Version:
    """Return the version of an image in the bucket: as it was noted, or by its end."""
    for version, etags in store.known_versions(folder).items():
        if image.etag and image.etag in etags:
            return version._replace(trials=trials)
    size = image.size or 0
    tail = reader.read_bytes(image, max(0, size - 8), size)
    return store.Version(size, bytes(tail).hex(), trials)


def remote_object(rec: Record) -> RemoteObject:
    """Return a file of the bucket, in the version of its record."""
    return RemoteObject(rec["id"], object_url(rec["key"]), rec["size"], rec["etag"])


def missing_voxels(
    metas: list[Record],
    tables: dict[str, TrialTable],
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
        Session -> its trial table.
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
    siblings: dict[Any, RemoteObject] = {
        (rec["subject"], rec["session"], rec["image_type"]): remote_object(rec)
        for rec in (inventory.records if inventory else ())
        if rec["image_type"] in ("model", "rsquare")
    }
    missing, outdated = [], []
    flat = np.flatnonzero(mask)
    for meta in metas:
        subject, session = meta["subject"], meta["session"]
        folder = store.session_folder(data_dir, subject, session)
        table = tables.get(session, TrialTable())
        is_on_disk = os.path.exists(meta["absolute_path"])
        voxels = flat
        if not overwrites:
            version = store.find_version(folder, meta, table.version)
            if version:
                _, voxels = store.locate(folder / str(version), flat)
            elif not is_on_disk:
                others = [
                    (other, etags)
                    for other, etags in store.known_versions(folder).items()
                    if other.trials == table.version
                    and not len(store.locate(folder / str(other), flat)[1])
                ]
                if len(others) == 1:
                    ((other, etags),) = others
                    meta |= {"etag": min(etags, default=None), "size": other.size}
                    meta["outdated"] = True
                    outdated.append(meta)
                    continue
            if not len(voxels):
                continue
        key = objects.get(meta["id"])
        missing.append(
            MissingVoxels(
                meta,
                folder,
                table,
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


def plan_sources(
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
        brain = volume.reshape(grid.shape, order="F") > 0
    plan = SourcePlan([], [], [], [], {"model": 0, "images": 0}, brain)
    settings = inventory.settings
    asked = "images" if inventory.is_cut_off else source
    row_of_voxel = np.cumsum(brain, dtype=np.int32) - 1
    reasons: dict[str, list[str]] = {}
    for session in missing:
        record = session.record
        n_bytes, image_size = (
            _estimate_bytes(session, row_of_voxel),
            record["size"] or 0,
        )
        plan.sizes["model"] += n_bytes
        plan.sizes["images"] += 0 if session.is_on_disk else image_size
        is_cheap = 0 < n_bytes <= _MOST_COST * image_size
        if asked == "model":
            _check_model(session)
        if asked == "model" or (
            asked == "auto" and is_cheap and not session.is_on_disk
        ):
            plan.from_model.append(session)
            model_id = session.model.id if session.model else ""
            plan.files.append((model_id, n_bytes, "voxels", "model"))
        elif settings.overwrites or not session.is_on_disk:
            plan.from_bucket.append(session)
            plan.files.append((record["id"], image_size, "voxels", "images"))
            if asked == "auto" and not session.is_on_disk:
                reason = "the bucket has no model files for them"
                if session.model:
                    reason = "they are smaller than these voxels in the model files"
                reasons.setdefault(reason, []).append(record["session"])
        elif is_writable(session.folder):  # else the image itself is read
            plan.from_disk.append(session)
    for reason, names in reasons.items():
        tell(f"Reading the images of {listed(names)}: {reason}", settings.verbose)
    return plan


def _check_model(session: MissingVoxels) -> None:
    """Raise InvalidQueryError where the model, which is asked for, cannot be taken."""
    if session.model is None or session.image is None:
        raise InvalidQueryError(
            f"The bucket has no model file of {session.name}; source='auto' takes the "
            "image."
        )
    is_same_size = size_on_disk(session.record) in (None, session.image.size)
    if session.is_on_disk and (session.record["outdated"] or not is_same_size):
        raise InvalidQueryError(
            f"The image of {session.name} on disk is another version than the bucket "
            "has, and the file on disk takes precedence. Use source='images' with "
            "mode='overwrite', or remove it."
        )


def _estimate_bytes(session: MissingVoxels, row_of_voxel: np.ndarray) -> int:
    """Return the bytes to be read for a session's voxels from its model file; 0: none.

    Its rows are taken to be the voxels of the brain mask, ``row_of_voxel``.
    Where nothing was proved yet, the structure of the file, the first volume of the
    image and a sample of rows count too.
    """
    model, image, n_trials = session.model, session.image, session.table.n_trials or 1
    if model is None or image is None:
        return 0
    row_size = 4 * n_trials
    rows = np.unique(row_of_voxel[session.voxels])
    n_bytes = row_size * sum(b - a for a, b in ranges_of_rows(rows, row_size))
    if not mapping_file(session.folder, model, image).exists():
        n_bytes += SAMPLE * row_size + min(STRUCTURE, model.size or 0)
        n_bytes += first_bytes(image.size or 0, n_trials)
    return n_bytes
