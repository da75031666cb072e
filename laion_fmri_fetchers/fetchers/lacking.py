"""How voxels that the store lacks are obtained, session by session.

::

    jobs_of ─────▶ Job         a session of which voxels are lacking
    choose_ways ─▶ Ways        model or image, on disk or in the bucket; bytes
    fill_store ─┬─ model.fill.fill_from_models
                ├─ _extract_all            images on disk
                └─ _fill_from_bucket ─┬─ obtain, an image at a time
                                      └─ extract.extract, meanwhile, in threads
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import joblib
import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.arrays.extract import extract
from laion_fmri_fetchers.arrays.model.session import Task, size_by_model
from laion_fmri_fetchers.arrays.voxel_store import (
    Origin,
    Part,
    compact,
    find_parts,
    image_version,
    parts_of,
    remove_other_versions,
    session_folder,
    version_of,
)
from laion_fmri_fetchers.betas.rows import TrialTable, trial_tables
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
from laion_fmri_fetchers.remote.bucket import object_url
from laion_fmri_fetchers.remote.checksums import check_file
from laion_fmri_fetchers.remote.progress import Progress
from laion_fmri_fetchers.remote.spans import RemoteObject

if TYPE_CHECKING:
    from laion_fmri_fetchers.arrays.model.fill import Filled

_MOST_COST = 1.5
"""Bytes of a model, as a multiple of the image's, up to which the model is read."""

_IN_FLIGHT = 2
"""Images that wait to be extracted, at most, beside the one being downloaded."""

_FETCHED = ".image-"
"""How names of images begin that were fetched for their voxels alone. They lie in the
session's folder of the store, where nothing but this takes them for the user's."""


_TRIES = 5
"""Downloads of an image that other processes remove, which are done with it."""


class Job(NamedTuple):
    """A session of which voxels are lacking."""

    task: Task
    record: Record
    """Of the beta image."""
    is_on_disk: bool
    """Whether the image is."""


class Ways(NamedTuple):
    """How the voxels of sessions are obtained."""

    from_model: list[Job]
    from_disk: list[Job]
    from_bucket: list[Job]
    """Images to download."""

    def plan(self) -> list[tuple[str, int, str, str]]:
        """Return id, bytes, reason and source of what would be downloaded."""
        rows = [
            (job.task.model.id, size_by_model(job.task), "voxels", "model")
            for job in self.from_model
            if job.task.model
        ]
        return rows + [
            (job.record["id"], job.record["size"] or 0, "voxels", "images")
            for job in self.from_bucket
        ]


class HowToFill(NamedTuple):
    """The arguments of `fetch_laion_betas` on how voxels are obtained."""

    source: str
    keep_images: bool
    n_jobs: int | None


# --- What is lacking -------------------------------------------------------------


def jobs_of(data: Bunch, mask: np.ndarray, inventory: Inventory) -> list[Job]:
    """Return what each session lacks.

    Parameters
    ----------
    data : Bunch
        With ``images_meta`` and ``brain_masks`` of a subject. Where voxels are stored
        of another version of an image than the bucket has now, the record gets the
        version that is stored.
    mask : numpy.ndarray of bool
        The voxels asked for.
    inventory : Inventory
        What the bucket has, and the disk.
    """
    siblings = {
        (rec["session"], rec["image_type"]): rec
        for rec in inventory.records
        if rec["image_type"] in ("model", "rsquare")
    }
    voxels, overwrites = np.flatnonzero(mask), inventory.settings.overwrites
    jobs, outdated = [], []
    for meta, table, parts, has in _stored(data.data_dir, data.images_meta, voxels):
        if has.all() and not overwrites:
            continue
        is_on_disk = os.path.exists(meta["absolute_path"])
        if not (overwrites or is_on_disk) and (
            other := _other_version(parts, meta, table.version, voxels)
        ):
            meta |= {"etag": other.image, "size": other.image_size, "outdated": True}
            outdated.append(meta)
            continue
        in_bucket = inventory.objects.get(meta["id"])
        image = record_of(*in_bucket) if in_bucket and not is_on_disk else meta
        task = _task(data, meta, table, _remote(image), mask)._replace(
            model=_remote(siblings.get((meta["session"], "model"))),
            rsquare=_remote(siblings.get((meta["session"], "rsquare"))),
            voxels=voxels if overwrites else voxels[~has],
        )
        jobs.append(Job(task, meta, is_on_disk))
    if outdated:
        warn(
            f"The bucket has another version of {counted(len(outdated), 'beta image')} "
            f"than the voxel store: {listed([m['id'] for m in outdated])}. What is "
            "stored is used; mode='overwrite' fetches the new version."
        )
    return jobs


def jobs_on_disk(data: Bunch, subject: str, mask: np.ndarray) -> list[Job]:
    """Return what sessions lack of voxels, all of whose images are on disk.

    Parameters
    ----------
    data : Bunch
        From a fetcher.
    subject : str
        Such as ``"sub-01"``.
    mask : numpy.ndarray of bool
        The voxels asked for.
    """
    voxels = np.flatnonzero(mask)
    metas = [
        {**meta, "absolute_path": file}
        for file, meta in zip(data.images, data.images_meta, strict=True)
        if meta["image_type"] == "betas" and meta["subject"] == subject
    ]
    jobs = []
    for meta, table, _, has in _stored(data.data_dir, metas, voxels):
        if not has.all():
            image = RemoteObject(
                meta["id"], "", size_on_disk(meta), image_version(meta)
            )
            task = _task(data, meta, table, image, mask)._replace(voxels=voxels[~has])
            jobs.append(Job(task, meta, is_on_disk=True))
    return jobs


def _stored(
    data_dir: str, metas: list[Record], voxels: np.ndarray
) -> Iterator[tuple[Record, TrialTable, list[Part], np.ndarray]]:
    """Yield sessions with their trial tables, parts, and which voxels these have."""
    tables = trial_tables(data_dir, metas)
    for meta in metas:
        table = tables.get(meta["session"], TrialTable(None, None))
        parts = find_parts(session_folder(data_dir, meta["subject"], meta["session"]))
        _, has = parts_of(version_of(meta, table.version), parts, voxels)
        yield meta, table, parts, has


def _task(
    data: Bunch, meta: Record, table: TrialTable, image: RemoteObject, mask: np.ndarray
) -> Task:
    """Return all voxels of a mask as what a session's image is to give."""
    return Task(
        data.data_dir,
        meta["subject"],
        meta["session"],
        image,
        meta["absolute_path"],
        model=None,
        rsquare=None,
        brain_mask=data.brain_masks.get(meta["subject"], ""),
        n_trials=table.n_trials,
        trials=table.version,
        shape=mask.shape,
        voxels=np.flatnonzero(mask),
        most_bytes=None,
    )


@overload
def _remote(rec: Record) -> RemoteObject: ...


@overload
def _remote(rec: None) -> None: ...


def _remote(rec: Record | None) -> RemoteObject | None:
    if rec is None:
        return None
    url, version = object_url(rec["key"]), image_version(rec)
    return RemoteObject(rec["id"], url, rec["size"], version)


def _other_version(
    parts: list[Part], meta: Record, table: str | None, voxels: np.ndarray
) -> Origin | None:
    """Return another version of an image of which voxels are stored."""
    for origin in dict.fromkeys(part.origin for part in parts):
        its = {"etag": origin.image, "size": origin.image_size}
        version = version_of({**meta, **its}, table)
        if origin.image and parts_of(version, parts, voxels)[1].all():
            return origin
    return None


# --- By which way ----------------------------------------------------------------


def choose_ways(jobs: Sequence[Job], source: str, inventory: Inventory) -> Ways:
    """Return how the voxels of each session are obtained.

    Raises
    ------
    InvalidQueryError
        If the model is asked for, and the bucket has none.
    """
    ways = Ways([], [], [])
    large: list[str] = []
    without: list[str] = []
    for job in jobs:
        task = job.task
        if source == "model":
            _check_model(job, inventory)
            ways.from_model.append(job)
            continue
        if source == "auto" and not job.is_on_disk:
            is_cheap = size_by_model(task) <= _MOST_COST * (task.image.size or 0)
            if task.model is not None and is_cheap:
                limit = int(_MOST_COST * (task.image.size or 0))
                task = task._replace(most_bytes=limit)
                ways.from_model.append(job._replace(task=task))
                continue
            (large if task.model else without).append(task.session)
        if inventory.settings.overwrites or not job.is_on_disk:
            ways.from_bucket.append(job)
        elif is_writable(task.folder):  # else the image itself is read
            ways.from_disk.append(job)
    for sessions, reason in (
        (large, "they are smaller than these voxels in the model files"),
        (without, "the bucket has no model files for them"),
    ):
        if sessions:
            text = f"Reading the images of {listed(sessions)}: {reason}"
            tell(text, inventory.settings.verbose)
    return ways


def _check_model(job: Job, inventory: Inventory) -> None:
    """Raise where the model, which is asked for, cannot be taken."""
    task = job.task
    if task.model is None:
        raise InvalidQueryError(
            f"The bucket has no model file of {task.session} of {task.subject}; "
            "source='auto' takes the image."
        )
    if _is_other_on_disk(job, inventory):
        raise InvalidQueryError(
            f"The image of {task.session} of {task.subject} on disk is another "
            "version than the bucket has, and what is on disk counts. Use "
            "source='images' with mode='overwrite', or remove it."
        )


def _is_other_on_disk(job: Job, inventory: Inventory) -> bool:
    """Tell whether an image on disk is not the one that the bucket has now."""
    in_bucket = inventory.objects.get(job.record["id"])
    if not (job.is_on_disk and in_bucket):
        return False
    return job.record["outdated"] or size_on_disk(job.record) != in_bucket.size


def sizes_by_way(jobs: Sequence[Job]) -> dict[str, int]:
    """Return the bytes to download, by model files and by images."""
    return {
        "model": sum(size_by_model(job.task) for job in jobs if job.task.model),
        "images": sum(j.record["size"] or 0 for j in jobs if not j.is_on_disk),
    }


def fill_store(ways: Ways, how: HowToFill, inventory: Inventory) -> None:
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
    settings = inventory.settings
    if ways.from_model or ways.from_bucket:
        accept_license(settings.data_dir)
    not_used: list[Job] = []
    if ways.from_model:
        from laion_fmri_fetchers.arrays.model.fill import fill_from_models

        n_bytes = sum(size_by_model(job.task) for job in ways.from_model)
        tell(
            f"Reading about {readable_size(n_bytes)} of "
            f"{counted(len(ways.from_model), 'model file')}",
            settings.verbose,
        )
        filled = fill_from_models(
            [job.task for job in ways.from_model],
            n_connections=settings.n_connections,
            timeout=settings.timeout,
            n_jobs=how.n_jobs,
            verbose=settings.verbose,
        )
        not_used = _take_results(ways.from_model, filled, how.source)
    on_disk = [job for job in not_used if job.is_on_disk]
    not_on_disk = [job for job in not_used if not job.is_on_disk]
    extract_all([*ways.from_disk, *on_disk], how.n_jobs, settings.verbose)
    _fill_from_bucket([*ways.from_bucket, *not_on_disk], how, inventory)
    for job in [*ways.from_model, *ways.from_bucket]:
        if settings.overwrites:
            remove_other_versions(job.task.folder, job.record["etag"])
        compact(job.task.folder)


def _take_results(jobs: list[Job], filled: list[Filled], source: str) -> list[Job]:
    """Return the sessions whose models were not used, after a warning.

    Raises
    ------
    Exception
        As of `fill_store`, if the model was asked for or the network failed.
    """
    not_used = []
    for job, session in zip(jobs, filled, strict=True):
        image = session.task.image
        if not session.reason:
            job.record.update(size=image.size, etag=image.etag)
            continue
        name = f"{session.task.session} of {session.task.subject}"
        if session.status == 403 and is_held_out(job.record):
            raise HeldOutSessionError(
                f"{name}: files held out for evaluation, which the bucket denies "
                "(status 403). Leave such sessions out of sessions."
            )
        if session.remedy == "network":
            raise DownloadError(
                f"Voxels of {name} could not be read: {session.reason}. Sessions that "
                "arrived stay, and the same call goes on from there."
            )
        if source == "model":
            advice = "source='auto' takes the image."
            if session.remedy == "server":
                raise BucketError(
                    f"Ranges of the model file of {name} could not be read: "
                    f"{session.reason}. {advice}"
                )
            raise CorruptImageError(
                f"The model file of {name} is not used: {session.reason}. {advice}"
            )
        not_used.append((job, session.reason))
    if not_used:
        reasons = [f"{job.task.session}: {reason}" for job, reason in not_used]
        size = sum(j.record["size"] or 0 for j, _ in not_used if not j.is_on_disk)
        warn(
            f"{counted(len(not_used), 'model file')} of {jobs[0].task.subject} cannot "
            f"be used, so images are read instead ({readable_size(size)}): "
            f"{listed(reasons, most=3)}."
        )
    return [job for job, _ in not_used]


# --- From images -----------------------------------------------------------------


def extract_all(jobs: list[Job], n_jobs: int | None, verbose: int) -> None:
    """Store voxels of images that are on disk, several at once."""
    if not jobs:
        return
    sizes = [job.record["size"] or 0 for job in jobs]
    parallel = joblib.Parallel(n_jobs, require="sharedmem", return_as="generator")
    with Progress(len(jobs), sum(sizes), verbose, "sessions") as progress:
        done = parallel(joblib.delayed(extract)(job.task) for job in jobs)
        for n_done, _ in enumerate(done, 1):
            progress.show(n_done, sum(sizes[:n_done]))
    for job in jobs:
        compact(job.task.folder)


def _fill_from_bucket(jobs: list[Job], how: HowToFill, inventory: Inventory) -> None:
    """Download images one after the other, and extract each during the next.

    So the disk never holds more than a few that were not there before.
    """
    if not jobs:
        return
    size = sum(job.record["size"] or 0 for job in jobs)
    settings = inventory.settings
    tell(
        f"Downloading {counted(len(jobs), 'beta image')}, {readable_size(size)}, for "
        f"their voxels{'' if how.keep_images else '; each is removed afterwards'}",
        settings.verbose,
    )
    stop = threading.Event()
    waiting: deque[tuple[Job, Future[None]]] = deque()
    pool = ThreadPoolExecutor(max(1, how.n_jobs or 1))
    try:
        for job in jobs:
            is_kept = how.keep_images or job.is_on_disk
            task = _downloaded(job, is_kept, inventory)
            future = pool.submit(_extract, task, is_kept, stop)
            waiting.append((job, future))
            while len(waiting) > _IN_FLIGHT:
                _conclude(*waiting.popleft(), inventory)
        while waiting:
            _conclude(*waiting.popleft(), inventory)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        remove_fetched(job.task.folder for job, _ in waiting)


def _downloaded(job: Job, is_kept: bool, inventory: Inventory) -> Task:
    """Download an image: to its place, or for a while into the store."""
    record, file = dict(job.record), job.record["absolute_path"]
    if not is_kept:
        name = f"{_FETCHED}{record['etag'] or record['size']}.{record['extension']}"
        file = record["absolute_path"] = str(job.task.folder / name)
        # What a killed process left may be damaged, and nothing else looks at it.
        with contextlib.suppress(OSError):
            if check_file(file, size=record["size"], etag=record["etag"]):
                os.unlink(file)
    if is_kept or not os.path.exists(file):
        obtain([Planned(record, "voxels")], inventory, is_announced=True)
    job.record.update(size=record["size"], etag=record["etag"])
    image = job.task.image._replace(size=record["size"], etag=record["etag"])
    return job.task._replace(image=image, image_file=file)


def _extract(task: Task, is_kept: bool, stop: threading.Event) -> None:
    """Store voxels of an image, and remove it if it was fetched for them."""
    extract(task, is_kept=is_kept, stop=stop)
    if not is_kept:
        with contextlib.suppress(OSError):
            os.unlink(task.image_file)


def _conclude(job: Job, future: Future[None], inventory: Inventory) -> None:
    """Wait for the voxels of an image."""
    try:
        future.result()
    except NotCachedError:
        _extract_again(job, inventory)


def _extract_again(job: Job, inventory: Inventory) -> None:
    """Extract an image that another process removed, which was done with it."""
    for n_left in reversed(range(_TRIES)):
        task = _downloaded(job, False, inventory)
        try:
            _extract(task, False, threading.Event())
            return
        except NotCachedError:
            if not n_left:
                raise


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
