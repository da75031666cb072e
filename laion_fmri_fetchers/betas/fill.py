"""The voxel store filled: what it lacks, from which files, and their voxels into parts.

::

    missing_voxels ──▶ plan_sources ──▶ SourcePlan ──▶ fill_store
                                                         ├─ _fill_from_models
                                                         └─ fill_from_images
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.cache.data_dir import is_writable
from laion_fmri_fetchers.cache.inventory import Inventory, size_on_disk
from laion_fmri_fetchers.cache.obtain import Planned, obtain
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    HeldOutSessionError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.keys import Record, is_held_out, record_of
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.remote import retry
from laion_fmri_fetchers.remote.bucket import object_url
from laion_fmri_fetchers.remote.checksums import check_file
from laion_fmri_fetchers.remote.client import Fault, RemoteObject
from laion_fmri_fetchers.remote.progress import Progress
from laion_fmri_fetchers.remote.ranges import SMALLEST_PIECE, RangeReader, Sink, split
from laion_fmri_fetchers.volumes import iter_volumes, read_header, scaled

from .model import (
    FULL_SAMPLE,
    SMALL_SAMPLE,
    STRUCTURE,
    ModelError,
    VoxelMapping,
    first_bytes,
    mapping_file,
    prove,
    read_mapping,
    sample_rows,
    save_mapping,
)
from .store import (
    Version,
    find_rows,
    find_version,
    image_version,
    known_versions,
    missing_in,
    new_part,
    note_version,
    remove_other_versions,
    session_folder,
)

# Bytes of a model, as a multiple of the image's, up to which the model is read.
_MOST_COST = 1.5

# Sessions at work at once: each waits for some requests before its rows are known.
_AT_ONCE = 8
_SHOW_EVERY = 0.05
_OF_A_SESSION = (DownloadError, HeldOutSessionError)

# Versions of a session's files that are tried where they change meanwhile, and
# downloads of an image that other processes remove, which are done with it.
_TRIES = 5

# Bytes between two rows that are read with them rather than to ask twice: as many as a
# line of 2 MB/s and connection moves in 60 ms. A number that is measured would make
# what was announced wrong.
_WORTH = 2**17
# Bytes between rows, as a share of the rows', that are read anyway; more only where
# there are many requests to save: so many for each connection.
_MOST_UNUSED = 0.1
_MANY = 4
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


class FillOptions(NamedTuple):
    """How missing voxels are obtained."""

    source: str
    keep_images: bool
    n_jobs: int | None


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
    settings = inventory.settings
    with (
        RangeReader(settings.n_connections, settings.timeout) as reader,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):

        def learn(folder: Path, meta: Record) -> None:
            # A bucket that does not say has, as it seems, another version.
            with contextlib.suppress(Fault, OSError):
                found = _read_version(reader, remote_object(meta), "")
                for version in known_versions(folder):
                    if version[:2] == found[:2]:
                        note_version(folder, version, meta["etag"])

        for future in [pool.submit(learn, *each) for each in unknown]:
            future.result()


def _read_version(
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


def plan_sources(
    missing: Sequence[MissingVoxels],
    source: str,
    brain: np.ndarray,
    inventory: Inventory,
) -> SourcePlan:
    """Return from which files the voxels of each session are taken.

    Parameters
    ----------
    missing : sequence of MissingVoxels
        What is missing.
    source : {"auto", "model", "images"}
        What is asked for.
    brain : numpy.ndarray of bool
        The brain mask, flat, the last axis varying fastest.
    inventory : Inventory
        What the bucket has.

    Raises
    ------
    InvalidQueryError
        If the model is asked for, and cannot be taken.
    """
    plan = SourcePlan([], [], [], [], {"model": 0, "images": 0})
    settings, n_sample = inventory.settings, FULL_SAMPLE
    asked = "images" if inventory.is_cut_off else source
    for session in missing:
        record, n_bytes = session.record, 0
        if session.model:
            n_bytes = _estimate_bytes(session, brain, n_sample, settings.n_connections)
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
    session: MissingVoxels, brain: np.ndarray, n_sample: int, n_connections: int
) -> int:
    """Return the bytes to be read for a session's voxels from its model file.

    Its rows are taken to be the voxels of the brain mask. Where nothing was proved yet,
    the structure of the file, the image's first volume and a sample of rows count too.
    """
    model, image, n_trials = session.model, session.image, session.n_trials or 1
    if model is None or image is None:
        return 0
    row_size = 4 * n_trials
    row_of_voxel = np.cumsum(brain) - 1
    rows = np.unique(row_of_voxel[session.voxels])
    n_rows = sum(b - a for a, b in ranges_of_rows(rows, row_size, n_connections))
    n_bytes = n_rows * row_size
    if mapping_file(session.folder, model, image).exists():
        return n_bytes
    n_sample = max(SMALL_SAMPLE, n_sample - len(rows) * (n_sample == FULL_SAMPLE))
    sample = sample_rows(int(row_of_voxel[-1]) + 1, n_sample)
    n_blocks = 1 + np.count_nonzero(np.diff(sample) != 1)
    n_bytes += len(sample) * row_size - n_blocks * (row_size - 4)
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


# --- Filling -------------------------------------------------------------------------


def fill_store(
    plan: SourcePlan, options: FillOptions, brain: np.ndarray, inventory: Inventory
) -> None:
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
        not_used = _fill_from_models(plan, brain, inventory)
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
    plan: SourcePlan, brain: np.ndarray, inventory: Inventory
) -> list[tuple[MissingVoxels, ModelError]]:
    """Store voxels of several sessions at once; return those whose model is not used.

    The first session is proved by a full sample of rows. Others wait for that, and are
    proved by a small one if they have the same mask and order.
    """
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
        ThreadPoolExecutor(_AT_ONCE) as pool,
        RangeReader(settings.n_connections, settings.timeout, arrived.append) as reader,
    ):
        try:
            for session in sessions:
                find_likely = likely if futures else lambda: None
                task = session, reader, brain, find_likely, settings.n_connections
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
    brain: np.ndarray,
    find_likely: Callable[[], VoxelMapping | None],
    n_connections: int,
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
    for _ in range(_TRIES):
        assert session.image
        assert session.model
        try:
            try:
                mapping = _copy_rows(session, reader, brain, find_likely, n_connections)
            except Fault as fault:
                if fault.remedy != "changed":
                    raise
                session = session._replace(
                    image=reader.look_up(session.image),
                    model=reader.look_up(session.model),
                )
                continue
        except Fault as fault:
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
        record.update(size=session.image.size, etag=session.image.etag)
        return mapping
    raise ModelError("its files change again and again")


def _copy_rows(
    session: MissingVoxels,
    reader: RangeReader,
    brain: np.ndarray,
    find_likely: Callable[[], VoxelMapping | None],
    n_connections: int,
) -> VoxelMapping:
    """Read the rows of voxels into a part, and see that they are the image's.

    Voxels without a row are 0, as they are in the image; if it has values at any voxel
    without a row, they cannot be told.
    """
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
            )
            if mapping.shape != session.shape:
                raise ModelError(
                    f"the image is {mapping.shape}, the masks {session.shape}"
                )
            if model.etag and image.etag:
                save_mapping(file, mapping)
        rows = find_rows(mapping.voxels, voxels)
        n_without = np.count_nonzero(rows < 0)
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
            version = _read_version(reader, image, session.trials)
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
    content = memoryview(values).cast("B")

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
