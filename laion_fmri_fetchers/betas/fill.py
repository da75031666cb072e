"""The voxel store filled, of model files by ranges and of images in one pass.

::

    missing_voxels ──▶ plan_sources ──▶ SourcePlan ──▶ fill_store
                                                         ├─ _fill_from_models
                                                         └─ fill_from_images
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import joblib
import numpy as np

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.cache.inventory import Inventory
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
from laion_fmri_fetchers.remote.checksums import check_file
from laion_fmri_fetchers.remote.objects import Fault
from laion_fmri_fetchers.remote.progress import Progress
from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

from .model import (
    ModelError,
    VoxelMapping,
    mapping_file,
    prove,
    read_mapping,
    save_mapping,
)
from .sources import MissingVoxels, SourcePlan, ranges_of_rows, read_version
from .store import (
    find_rows,
    find_version,
    image_version,
    known_versions,
    new_part,
    note_version,
    remove_other_versions,
)

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.ranges import RangeReader, Sink

# Sessions at work at once: each waits for some requests before its rows are known.
_AT_ONCE = 8
_SHOW_EVERY = 0.05
_N_DECODERS = 2
_OF_A_SESSION = (DownloadError, HeldOutSessionError)

# Versions of a session's files that are tried where they change meanwhile, and
# downloads of an image that other processes remove, which are done with it.
_TRIES = 5

# Requests of a session at most where rows lie together: more connections at once are
# not faster on a fast line, but get in each other's way.
_MOST_PIECES = 16

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
    if plan.from_model:
        not_used = _fill_from_models(plan, inventory)
        if not_used and options.source == "model":
            raise _model_refused(*not_used[0])
        if not_used:
            reasons = [f"{s.record['session']}: {reason}" for s, reason in not_used]
            absent = [s.record for s, _ in not_used if not s.is_on_disk]
            size = sum(record["size"] or 0 for record in absent)
            warn(
                f"{counted(len(not_used), 'model file')} of "
                f"{not_used[0][0].record['subject']} cannot be used, so images are "
                f"read instead ({readable_size(size)}): {listed(reasons, most=3)}."
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
        fill_from_images(
            from_bucket,
            options.n_jobs,
            settings.verbose,
            inventory=inventory,
            keep_images=options.keep_images,
        )
    for session in (*plan.from_model, *from_bucket) if settings.overwrites else ():
        version = find_version(session.folder, session.record, session.trials)
        if version:
            remove_other_versions(session.folder, version)


def _model_refused(session: MissingVoxels, error: ModelError) -> Exception:
    """Return the error of a model file that is asked for, and not used."""
    name = f"{session.record['session']} of {session.record['subject']}"
    advice = "source='auto' takes the image."
    if isinstance(error.__cause__, Fault):
        return BucketError(
            f"Ranges of the model file of {name} could not be read: {error}. {advice}"
        )
    return CorruptImageError(f"The model file of {name} is not used: {error}. {advice}")


# --- From model files ----------------------------------------------------------------


def _fill_from_models(
    plan: SourcePlan, inventory: Inventory
) -> list[tuple[MissingVoxels, ModelError]]:
    """Store voxels of several sessions at once; return those whose model is not used.

    The first session is proved by a full sample of rows. Others wait for that, and are
    proved by a small one if they have the same mask and order.
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
    futures: list[Future[VoxelMapping]] = []

    def likely() -> VoxelMapping | None:
        return None if futures[0].exception() else futures[0].result()

    # Left in the other order: whoever waits for the reader ends first.
    with (
        Progress(len(sessions), n_bytes, settings.verbose, "sessions") as progress,
        ThreadPoolExecutor(_N_DECODERS) as decoders,
        ThreadPoolExecutor(_AT_ONCE) as pool,
        RangeReader(settings.n_connections, settings.timeout, arrived.append) as reader,
    ):
        try:
            for session in sessions:
                find_likely = likely if futures else lambda: None
                copy_rows = functools.partial(
                    _copy_rows,
                    reader=reader,
                    brain=plan.brain,
                    find_likely=find_likely,
                    decoders=decoders,
                    n_connections=settings.n_connections,
                )
                task = session, reader, copy_rows
                futures.append(pool.submit(_fill_from_model, *task))
            left = set(futures)
            while left:
                done, left = wait(left, _SHOW_EVERY, FIRST_COMPLETED)
                for future in done:
                    # A session that fails does not keep others from being stored.
                    if not isinstance(future.exception(), (ModelError, *_OF_A_SESSION)):
                        future.result()
                progress.show(len(futures) - len(left), sum([*arrived]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    not_used = []
    for session, future in zip(sessions, futures, strict=True):
        try:
            future.result()
        except ModelError as error:  # noqa: PERF203
            not_used.append((session, error))
    return not_used


def _fill_from_model(
    session: MissingVoxels,
    reader: RangeReader,
    copy_rows: Callable[[MissingVoxels], VoxelMapping],
) -> VoxelMapping:
    """Store voxels of a session; where a file changes meanwhile, start over.

    Raises
    ------
    ModelError
        If its model is not used; its cause is a Fault if that is the server's.
    DownloadError, HeldOutSessionError
        If files cannot be read.
    """
    record = session.record
    name = f"{record['session']} of {record['subject']}"
    image, model, has_changed = session.image, session.model, False
    assert image
    assert model
    for _ in range(_TRIES):
        try:
            if has_changed:
                image, model = reader.look_up(image), reader.look_up(model)
            now = session._replace(image=image, model=model)
            mapping = copy_rows(now)
        except Fault as fault:
            has_changed = fault.remedy == "changed"
            if has_changed:
                continue
            if fault.status == 403 and is_held_out(record):
                raise HeldOutSessionError(
                    f"{name}: files held out for evaluation, which the bucket denies "
                    "(status 403). Leave such sessions out of sessions."
                ) from None
            may_pass = fault.status is None or fault.status in retry.RETRIED
            if may_pass and not fault.remedy:
                raise DownloadError(
                    f"Voxels of {name} could not be read: {fault.reason}. Sessions "
                    "that arrived stay, and the same call goes on from there."
                ) from None
            raise ModelError(fault.reason) from fault
        record.update(size=image.size, etag=image.etag)
        return mapping
    raise ModelError("its files change again and again")


def _copy_rows(
    session: MissingVoxels,
    reader: RangeReader,
    brain: np.ndarray,
    find_likely: Callable[[], VoxelMapping | None],
    decoders: Executor,
    n_connections: int,
) -> VoxelMapping:
    """Read the rows of voxels into a part, and see that they are the image's.

    Voxels without a row are 0, as they are in the image; if it has values at any voxel
    without a row, they cannot be told.
    """
    from laion_fmri_fetchers.remote.ranges import SMALLEST_PIECE, split

    model, image, voxels = session.model, session.image, session.voxels
    assert model
    assert image
    file = mapping_file(session.folder, model, image)
    mapping = read_mapping(file)
    try:
        if mapping is None:
            mapping = prove(
                reader,
                model,
                image,
                brain_mask=brain,
                rsquare=session.rsquare,
                n_trials=session.n_trials,
                n_used=len(voxels),
                find_likely=find_likely,
                decoders=decoders,
            )
            if mapping.shape != session.shape:
                raise ModelError(
                    f"the image is {mapping.shape}, the masks {session.shape}"
                )
            if model.etag and image.etag:
                for outdated in session.folder.glob("mapping-*.npz"):
                    with contextlib.suppress(OSError):
                        outdated.unlink()
                save_mapping(file, mapping)
        rows = find_rows(mapping.voxels, voxels)
        n_without = int(np.count_nonzero(rows < 0))
        if n_without and not mapping.is_complete:
            raise ModelError(
                f"it lacks {counted(n_without, 'voxel')} of those asked for, and the "
                "image has values at voxels that it lacks"
            )
        # In the order of the file; the part has them in that of voxels.
        targets = np.argsort(rows, kind="stable")[n_without:]
        rows = rows[targets]
        layout = mapping.layout
        versions = known_versions(session.folder).items()
        stored = [v for v, etags in versions if image.etag and image.etag in etags]
        if stored:
            version = stored[0]._replace(trials=session.trials or "")
        else:
            version = read_version(reader, image, session.trials)
        note_version(session.folder, version, image.etag)
        folder, n_trials = session.folder / version.name, layout.shape[-1]
        with new_part(folder, voxels, n_trials) as values:
            size = layout.row_size
            runs = [
                (layout.offset + start * size, layout.offset + stop * size)
                for start, stop in ranges_of_rows(rows, size, n_connections)
            ]
            total = sum(stop - start for start, stop in runs)
            step = max(total // _MOST_PIECES, SMALLEST_PIECE)
            pieces = [piece for run in runs for piece in split(*run, step)]
            reader.read(model, pieces, _scatter(rows, targets, layout.offset, values))
            column = np.array(values[targets, 0])
            mapping.check(rows, column)
            # GLMsingle gives NaN to voxels without a fit, of which the image has 0.
            for i in np.flatnonzero(np.isnan(column) & (mapping.first[rows] == 0)):
                if np.isnan(values[targets[i]]).all():
                    values[targets[i]] = 0
    except ModelError:
        with contextlib.suppress(OSError):
            file.unlink()
        raise
    return mapping


def _scatter(
    rows: np.ndarray, targets: np.ndarray, offset: int, values: np.ndarray
) -> Sink:
    """Return a sink that puts the bytes of rows of a file to rows of an array."""
    size = values.strides[0]
    # Rows side by side in both are copied at once.
    is_new = (np.diff(rows) != 1) | (np.diff(targets) != 1)
    firsts = np.append(0, np.flatnonzero(is_new) + 1)[: len(rows)]
    lengths = np.diff(np.append(firsts, len(rows))) * size
    starts = (offset + rows[firsts] * size).tolist()
    stops = (offset + rows[firsts] * size + lengths).tolist()
    places = (targets[firsts] * size).tolist()
    content = values.data.cast("B")

    def sink(position: int, chunk: memoryview) -> None:
        end = position + len(chunk)
        i = bisect.bisect_right(stops, position)
        while i < len(starts) and starts[i] < end:
            a, b = max(position, starts[i]), min(end, stops[i])
            place = places[i] + a - starts[i]
            content[place : place + b - a] = chunk[a - position : b - position]
            i += 1

    return sink


# --- From images ---------------------------------------------------------------------


def fill_from_images(
    sessions: list[MissingVoxels],
    n_jobs: int | None,
    verbose: int,
    *,
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
    if not sessions:
        return
    n_threads = max(1, joblib.effective_n_jobs(n_jobs))
    stop = threading.Event()
    waiting: deque[tuple[MissingVoxels, bool, Future[None]]] = deque()
    sizes = [session.record["size"] or 0 for session in sessions]
    # Downloads have a bar of their own.
    shown = verbose if inventory is None else 0
    with (
        Progress(len(sessions), sum(sizes), shown, "sessions") as progress,
        ThreadPoolExecutor(n_threads) as pool,
    ):

        def conclude() -> None:
            session, is_kept, future = waiting.popleft()
            for n_left in reversed(range(_TRIES)):
                try:
                    future.result()
                    break
                except NotCachedError:
                    # Another process was done with the image, and removed it.
                    if is_kept or inventory is None or not n_left:
                        raise
                file = _download(session, is_kept, inventory)
                future = pool.submit(_extract, session, file, is_kept, stop)
            sizes_done.append(session.record["size"] or 0)
            progress.show(len(sizes_done), sum(sizes_done))

        sizes_done: list[int] = []
        try:
            for session in sessions:
                is_kept = inventory is None or keep_images or session.is_on_disk
                file = session.record["absolute_path"]
                if inventory is not None:
                    file = _download(session, is_kept, inventory)
                future = pool.submit(_extract, session, file, is_kept, stop)
                waiting.append((session, is_kept, future))
                while len(waiting) > max(_IN_FLIGHT, n_threads):
                    conclude()
            while waiting:
                conclude()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            remove_fetched(session.folder for session, *_ in waiting)


def _download(session: MissingVoxels, is_kept: bool, inventory: Inventory) -> str:
    """Download an image, to its place or for a while into the store."""
    record = dict(session.record)
    if not is_kept:
        name = f"{_FETCHED}{record['etag'] or record['size']}.{record['extension']}"
        file = record["absolute_path"] = str(session.folder / name)
        # What a killed process left may be damaged, and nothing else looks at it.
        with contextlib.suppress(OSError):
            if check_file(file, size=record["size"], etag=record["etag"]):
                os.unlink(file)
    if is_kept or not os.path.exists(record["absolute_path"]):
        obtain([Planned(record, "voxels")], inventory, is_announced=True)
    session.record.update(size=record["size"], etag=record["etag"])
    # Another process may be done with the image, and remove it; it is downloaded again.
    with contextlib.suppress(FileNotFoundError):
        version = image_version(record["absolute_path"], session.trials)
        note_version(session.folder, version, record["etag"])
    return str(record["absolute_path"])


def _extract(
    session: MissingVoxels, file: str, is_kept: bool, stop: threading.Event
) -> None:
    """Store voxels of an image; remove it if it was fetched for them."""
    try:
        version = image_version(file, session.trials)
        header = read_header(file)
        if header.shape != session.shape:
            raise CorruptImageError(
                f"The image {file} is {header.shape}, but the masks of "
                f"{session.record['subject']} are {session.shape}."
            )
        n_volumes = header.n_volumes
        if session.n_trials not in (None, n_volumes):
            raise CorruptImageError(
                f"The image {file} has {n_volumes} volumes, but its trial table has "
                f"{session.n_trials} trials. `laion-fmri-fetchers verify --repair` "
                "fetches damaged files again."
            )
        # A file has the first axis varying fastest, a part the last.
        axes = np.unravel_index(session.voxels, session.shape)
        offsets = np.ravel_multi_index(axes, session.shape, order="F")
        n_gathered = max(1, min(n_volumes, _GATHERED // (4 * len(offsets))))
        gathered = np.empty((n_gathered, len(offsets)), np.float32)
        picked = np.empty(len(offsets), dtype=header.dtype)
        note_version(session.folder, version)
        folder = session.folder / version.name
        with new_part(folder, session.voxels, n_volumes) as values:
            for i, volume in enumerate(iter_volumes(header)):
                if stop.is_set():
                    raise InterruptedError("the work was given up")
                # numpy buffers `out` in its default mode; here offsets are in range.
                np.take(volume, offsets, out=picked, mode="clip")
                gathered[i % n_gathered] = scaled(header, picked, "float32")
                n = i % n_gathered + 1
                if n == n_gathered or i + 1 == n_volumes:
                    values[:, i + 1 - n : i + 1] = gathered[:n].T
    except OSError as error:
        # ESTALE: on NFS, another machine removed it while it was read.
        is_lost = isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE
        if not is_lost or os.path.exists(file):
            raise
        raise NotCachedError(f"{file} is not on disk.") from error
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
