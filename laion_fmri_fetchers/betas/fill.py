"""The voxel store filled, of model files by ranges and of images in one pass.

::

    missing_voxels ──▶ plan_sources ──▶ SourcePlan ──▶ fill_store
                                                         ├─ _fill_from_models
                                                         └─ fill_from_images
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent import futures
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import joblib
import numpy as np

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.cache.inventory import Inventory, size_on_disk
from laion_fmri_fetchers.cache.obtain import Planned, obtain
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    HeldOutSessionError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.keys import is_held_out
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.remote import retry
from laion_fmri_fetchers.remote.objects import Fault
from laion_fmri_fetchers.remote.progress import Progress
from laion_fmri_fetchers.volumes import read_header

from . import store
from .model import (
    ModelError,
    mapping_file,
    prove,
    read_mapping,
    save_mapping,
)
from .ranges import read_rows
from .session import read_voxels
from .sources import MissingVoxels, SourcePlan, read_version

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.objects import RemoteObject
    from laion_fmri_fetchers.remote.ranges import RangeReader

# Sessions at work at once: each waits for some requests before its rows are known.
_AT_ONCE = 8
_SHOW_EVERY = 0.05
_N_DECODERS = 2

# Versions of a session's files that are tried where they change meanwhile, and
# downloads of an image that other processes remove, which are done with it.
_TRIES = 5

# Images that wait to be extracted, at most, beside the one being downloaded.
_IN_FLIGHT = 2
# How names of images begin that were fetched for their voxels alone. They lie in the
# session's folder of the store, where nothing but this takes them for the user's.
_FETCHED = ".image-"
# Bytes of volumes gathered before they are written: a voxel's trials lie side by side
# in the store, and to write them one by one would be slow.
_GATHERED = 2**26


class FillOptions(NamedTuple):
    """How missing voxels are obtained."""

    source: str
    keep_images: bool
    n_jobs: int | None


def fill_store(plan: SourcePlan, options: FillOptions, inventory: Inventory) -> None:
    """Store the voxels that sessions lack.

    Raises
    ------
    CorruptImageError
        If a model is asked for that is not proved, or an image is damaged.
    BucketError
        If a model is asked for and the server ignores Range.
    HeldOutSessionError
        If the bucket denies a held-out session.
    DownloadError
        If files could not be downloaded.
    """
    settings, from_bucket = inventory.settings, [*plan.from_bucket]
    from_disk = [*plan.from_disk]
    if plan.from_model or plan.from_bucket:
        accept_license(settings.data_dir)
    not_used = _fill_from_models(plan, inventory) if plan.from_model else []
    if not_used and options.source == "model":
        session, error = not_used[0]
        advice = "source='auto' takes the image."
        if isinstance(error.__cause__, Fault):
            raise BucketError(
                f"Ranges of the model file of {session.name} could not be read: "
                f"{error}. {advice}"
            )
        raise CorruptImageError(
            f"The model file of {session.name} is not used: {error}. {advice}"
        )
    if not_used:
        reasons = [f"{s.record['session']}: {reason}" for s, reason in not_used]
        absent = [s.record["size"] or 0 for s, _ in not_used if not s.is_on_disk]
        warn(
            f"{counted(len(not_used), 'model file')} of "
            f"{not_used[0][0].record['subject']} cannot be used, so images are "
            f"read instead ({readable_size(sum(absent))}): {listed(reasons, most=3)}."
        )
        for session, _ in not_used:
            (from_disk if session.is_on_disk else from_bucket).append(session)
    fill_from_images(from_disk, options.n_jobs, settings.verbose)
    if from_bucket:
        size = sum(session.record["size"] or 0 for session in from_bucket)
        removed = "" if options.keep_images else "; each is removed afterwards"
        tell(
            f"Downloading {counted(len(from_bucket), 'beta image')}, "
            f"{readable_size(size)}, for their voxels{removed}",
            settings.verbose,
        )
        how = options.n_jobs, settings.verbose, inventory, options.keep_images
        fill_from_images(from_bucket, *how)
    for session in (*plan.from_model, *from_bucket) if settings.overwrites else ():
        version = store.find_version(
            session.folder, session.record, session.table.version
        )
        if version:
            store.remove_other_versions(session.folder, version)


# --- From model files ----------------------------------------------------------------


def _fill_from_models(
    plan: SourcePlan, inventory: Inventory
) -> list[tuple[MissingVoxels, ModelError]]:
    """Store voxels of several sessions at once; return those whose model is not used.

    A session that fails does not keep others from being stored.
    """
    from laion_fmri_fetchers.remote.ranges import RangeReader

    settings, sessions = inventory.settings, plan.from_model
    n_bytes = sum(size for _, size, _, source in plan.files if source == "model")
    tell(
        f"Reading about {readable_size(n_bytes)} of "
        f"{counted(len(sessions), 'model file')}",
        settings.verbose,
    )
    arrived: deque[int] = deque()
    # Left in the other order: whoever waits for the reader ends first.
    with (
        Progress(len(sessions), n_bytes, settings.verbose, "sessions") as progress,
        ThreadPoolExecutor(_N_DECODERS) as decoders,
        ThreadPoolExecutor(_AT_ONCE) as pool,
        RangeReader(settings.n_connections, settings.timeout, arrived.append) as reader,
    ):
        try:
            shared = plan.brain, reader, decoders
            fillings = [
                pool.submit(_fill_from_model, session, *shared) for session in sessions
            ]
            left = set(fillings)
            while left:
                _, left = futures.wait(left, _SHOW_EVERY, futures.FIRST_COMPLETED)
                progress.show(len(sessions) - len(left), sum([*arrived]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    not_used = []
    for session, filling in zip(sessions, fillings, strict=True):
        try:
            filling.result()
        except ModelError as error:  # noqa: PERF203
            not_used.append((session, error))
    return not_used


def _fill_from_model(
    session: MissingVoxels, brain: np.ndarray, reader: RangeReader, decoders: Executor
) -> None:
    """Store voxels of a session; where a file changes meanwhile, start over.

    Raises
    ------
    ModelError
        If its model is not used; its cause is a Fault if that is the server's.
    DownloadError, HeldOutSessionError
        If files cannot be read.
    """
    image, model, has_changed = session.image, session.model, False
    assert image
    assert model
    for _ in range(_TRIES):
        try:
            if has_changed:
                image, model = reader.look_up(image), reader.look_up(model)
            _copy_rows(session, image, model, brain, reader, decoders)
        except Fault as fault:
            has_changed = fault.remedy == "changed"
            if has_changed:
                continue
            if fault.status == 403 and is_held_out(session.record):
                raise HeldOutSessionError(
                    f"{session.name}: files held out for evaluation, which the bucket "
                    "denies (status 403). Leave such sessions out of sessions."
                ) from None
            may_pass = fault.status is None or fault.status in retry.RETRIED
            if may_pass and not fault.remedy:
                raise DownloadError(
                    f"Voxels of {session.name} could not be read: {fault.reason}. "
                    "Sessions that arrived are kept, and the same call resumes."
                ) from None
            raise ModelError(fault.reason) from fault
        session.record.update(size=image.size, etag=image.etag)
        return
    raise ModelError("its files change again and again")


def _copy_rows(
    session: MissingVoxels,
    image: RemoteObject,
    model: RemoteObject,
    brain: np.ndarray,
    reader: RangeReader,
    decoders: Executor,
) -> None:
    """Read the rows of voxels into a part, and see that they are the image's.

    Voxels without a row are 0, as they are in the image; if it has values at any voxel
    without a row, they cannot be told.
    """
    folder, table, voxels = session.folder, session.table, session.voxels
    file = mapping_file(folder, model, image)
    mapping = read_mapping(file)
    if mapping is None:
        mapping = prove(
            reader,
            model,
            image,
            decoders,
            table.n_trials or 1000,
            brain_mask=brain,
            rsquare=session.rsquare,
        )
        if model.etag and image.etag:
            save_mapping(file, mapping)
    if mapping.shape != session.shape:
        raise ModelError(f"the image is {mapping.shape}, the masks {session.shape}")
    if table.n_trials not in (None, mapping.n_trials):
        raise ModelError(
            f"it has {mapping.n_trials} columns, but the trial table "
            f"{table.n_trials} trials"
        )
    rows = store.find_rows(mapping.voxels, voxels)
    n_without = int(np.count_nonzero(rows < 0))
    if n_without and not mapping.is_complete:
        raise ModelError(
            f"it lacks {counted(n_without, 'voxel')} of those asked for, and the "
            "image has values at voxels that it lacks"
        )
    # In the order of the file; the part has them in that of voxels.
    places = np.argsort(rows, kind="stable")[n_without:]
    rows = rows[places]

    version = read_version(reader, folder, image, table.version)
    store.note_etag(folder, version, image.etag)
    with store.new_part(folder / str(version), voxels, mapping.n_trials) as values:
        read_rows(reader, model, mapping.offset, rows, values, places)
        column = np.array(values[places, 0])
        mapping.check(rows, column)
        # GLMsingle gives NaN to voxels without a fit, of which the image has 0.
        for i in places[np.isnan(column) & (mapping.first[rows] == 0)]:
            if np.isnan(values[i]).all():
                values[i] = 0


# --- From images ---------------------------------------------------------------------


def fill_from_images(
    sessions: list[MissingVoxels],
    n_jobs: int | None,
    verbose: int,
    inventory: Inventory | None = None,
    keep_images: bool = False,
) -> None:
    """Store voxels of images, each read in one pass by a thread.

    Parameters
    ----------
    sessions : list of MissingVoxels
        What is missing.
    n_jobs : int or None
        Threads, counted as joblib does.
    verbose : int
        0: silent.
    inventory : Inventory, optional
        Images are downloaded one after the other, while others are extracted, so that
        the disk never holds more than a few; None: all are on disk.
    keep_images : bool, default=False
        Whether downloaded images stay on disk.

    Raises
    ------
    CorruptImageError
        If an image is damaged, or disagrees with its trial table.
    NotCachedError
        If an image is not on disk.
    """
    if not sessions:  # no line on nothing
        return
    n_threads = max(1, joblib.effective_n_jobs(n_jobs))
    stop = threading.Event()
    waiting: deque[tuple[MissingVoxels, futures.Future[None]]] = deque()
    sizes = [session.record["size"] or 0 for session in sessions]
    # Downloads have a bar of their own.
    shown = verbose if inventory is None else 0
    with (
        Progress(len(sessions), sum(sizes), shown, "sessions") as progress,
        ThreadPoolExecutor(n_threads) as pool,
    ):

        def start(session: MissingVoxels) -> futures.Future[None]:
            is_kept = inventory is None or keep_images or session.is_on_disk
            file = session.record["absolute_path"]
            if inventory is not None:
                file = _download(session, is_kept, inventory)
            return pool.submit(_extract, session, file, is_kept, stop)

        try:
            for n_begun, session in enumerate(sessions, 1):
                waiting.append((session, start(session)))
                is_last = n_begun == len(sessions)
                while len(waiting) > (0 if is_last else max(_IN_FLIGHT, n_threads)):
                    first, future = waiting.popleft()
                    for _ in range(_TRIES - 1):
                        error = future.exception()
                        if inventory is None or not isinstance(error, NotCachedError):
                            break
                        # Another process was done with the image, and removed it.
                        future = start(first)
                    future.result()
                    n_done = n_begun - len(waiting)
                    progress.show(n_done, sum(sizes[:n_done]))
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            remove_fetched(session.folder for session, _ in waiting)


def _download(session: MissingVoxels, is_kept: bool, inventory: Inventory) -> str:
    """Download an image, to its place or for a while into the store."""
    record = dict(session.record)
    if not is_kept:
        name = f"{_FETCHED}{record['etag'] or record['size']}.{record['extension']}"
        record["absolute_path"] = str(session.folder / name)
    # Another process may have it, or a killed one have left it.
    if is_kept or size_on_disk(record) != record["size"]:
        obtain([Planned(record, "voxels")], inventory, is_announced=True)
    session.record.update(size=record["size"], etag=record["etag"])
    return str(record["absolute_path"])


def _extract(
    session: MissingVoxels, file: str, is_kept: bool, stop: threading.Event
) -> None:
    """Store voxels of an image; remove it if it was fetched for them."""
    record, folder, table, voxels, shape, *_ = session
    try:
        version = store.image_version(file, table.version)
        header = read_header(file)
        n_volumes = header.n_volumes
        if header.shape != shape:
            raise CorruptImageError(
                f"The image {file} is {header.shape}, but the masks of "
                f"{record['subject']} are {shape}."
            )
        table.check(n_volumes - 1, header)
        etag = record["etag"] if version.size == record["size"] else None
        store.note_etag(folder, version, etag)
        n_gathered = max(1, min(n_volumes, _GATHERED // (4 * len(voxels))))
        gathered = np.empty((n_gathered, len(voxels)), np.float32)
        indices = range(n_volumes)
        with store.new_part(folder / str(version), voxels, n_volumes) as values:
            for i, picked in enumerate(read_voxels(header, voxels, indices, "float32")):
                if stop.is_set():
                    raise InterruptedError("the work was given up")
                gathered[i % n_gathered] = picked
                n = i % n_gathered + 1
                if n == n_gathered or i + 1 == n_volumes:
                    values[:, i + 1 - n : i + 1] = gathered[:n].T
    except OSError as error:
        # ESTALE: on NFS, another machine removed it while it was read.
        is_lost = isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE
        if not is_lost or os.path.exists(file):
            raise
        raise NotCachedError(f"{file} is not on disk.") from error
    finally:
        if not is_kept:
            with contextlib.suppress(OSError):
                os.unlink(file)


def remove_fetched(folders: Iterable[Path], *, min_age: float = 0.0) -> None:
    """Remove images that were fetched for their voxels, in sessions' folders.

    Those of a minimum age in seconds, as other processes may need younger ones; they
    fetch an image again that was removed.
    """
    for folder in folders:
        for file in folder.glob(f"{_FETCHED}*"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime >= min_age:
                    file.unlink()
