"""The gated archive of the stimulus images: its version, its download, images of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from laion_fmri_fetchers.access.gate import (
    ArchiveVersion,
    Gate,
    published_archive,
    save_archive,
    saved_archive,
)
from laion_fmri_fetchers.arrays.pictures import finish, open_images, read_image
from laion_fmri_fetchers.cache.files import local_path, make_folder, whole_file
from laion_fmri_fetchers.cache.inventory import Inventory
from laion_fmri_fetchers.cache.obtain import Planned, Source, obtain
from laion_fmri_fetchers.cache.settings import Settings
from laion_fmri_fetchers.exceptions import CorruptImageError, StimulusAccessError
from laion_fmri_fetchers.layout.keys import Record, record_of
from laion_fmri_fetchers.layout.trees import (
    ARCHIVE,
    STIMULUS_IMAGES,
    stimulus_image,
)
from laion_fmri_fetchers.messages import readable_size, tell, warn

_WRITERS = 4
_LONGEST_LOOK = 10.0
"""Seconds to wait for the manifest, which only announces new versions."""


def reason_to_fetch(inventory: Inventory) -> str:
    """Return why the archive must be downloaded, "" if it need not.

    Raises
    ------
    NotCachedError
        Offline, if it is not on disk.
    """
    settings = inventory.settings
    if ARCHIVE in inventory.on_disk:
        return "overwrite" if settings.overwrites else ""
    settings.refuse_offline(f"{ARCHIVE} is not on disk in {settings.data_dir}.")
    return "missing"


def fetch_archive(
    gate: Gate, inventory: Inventory, reason: str, table: pd.DataFrame
) -> list[dict[str, Any]]:
    """Download the archive; return it if it failed and may be missing."""
    settings = inventory.settings
    about = gate.renew().archive
    tell(
        "The stimulus images are one archive (3.2 GB as published, here "
        f"{readable_size(about.size)}), downloaded once whatever is selected: "
        f"{ARCHIVE} to {settings.data_dir}",
        settings.verbose,
    )
    record = {**_listed_archive(inventory), "size": about.size}
    outcome = obtain(
        [Planned(record, reason)],
        inventory,
        sources={ARCHIVE: Source(gate.url, about.size, about.sha256)},
        is_announced=True,
    )
    if not outcome.failed:
        save_archive(settings.data_dir, about._replace(order=_order_of(table)))
        return []
    failed = [{"id": rec["id"], "reason": rec["reason"]} for rec in outcome.failed]
    warn(f"{ARCHIVE} could not be downloaded: {failed[0]['reason']}.")
    return failed


def _order_of(table: pd.DataFrame) -> str:
    return hashlib.sha256("\n".join(table["image_name"]).encode()).hexdigest()


def check_order(table: pd.DataFrame, file: str, data_dir: str) -> None:
    """Raise unless the rows of a table are those of the archive on disk.

    The archive has no names: only the table that it was downloaded with tells them.

    Raises
    ------
    CorruptImageError
        If the table names images in another order than that one did.
    """
    saved = saved_archive(data_dir)
    if saved and saved.order not in ("", _order_of(table)):
        raise CorruptImageError(
            f"The table {file} names images in another order than when {ARCHIVE} was "
            "downloaded, so their rows in the archive are not known. Fetch both again "
            "by fetch_laion_stimuli(mode='overwrite')."
        )


def describe_archive(inventory: Inventory, is_fresh: bool) -> Record:
    """Return the record of the archive on disk; warn where there is a newer one.

    The manifest says which version is current. Where it is unavailable, the size in
    the bucket's listing has to do.
    """
    settings, record = inventory.settings, _listed_archive(inventory)
    size = os.path.getsize(record["absolute_path"])
    if is_fresh:
        return {**record, "size": size}
    now = None if inventory.is_cut_off else _published_archive(settings)
    new_size = now.size if now else record["size"]
    saved = saved_archive(settings.data_dir)
    is_other = new_size not in (None, size)
    if now and saved and saved.size == size:
        is_other = saved.sha256 != now.sha256
    if not is_other:
        return {**record, "size": size}
    if settings.adds_new:
        warn(
            f"There is a new version of {ARCHIVE}, of {new_size:,} bytes; the version "
            f"on disk has {size:,} bytes and was used. mode='overwrite' downloads the "
            "new one."
        )
    unknown = {"etag": None, "last_modified": None}
    return {**record, **unknown, "size": size, "outdated": True}


def archive_size(inventory: Inventory) -> int:
    """Return the size of the archive in the bucket, else by the manifest."""
    size = _listed_archive(inventory)["size"]
    return int(size or published_archive(inventory.settings.timeout).size)


def _published_archive(settings: Settings) -> ArchiveVersion | None:
    """Return the manifest's entry of the archive; None if it is unavailable."""
    with contextlib.suppress(StimulusAccessError):
        return published_archive(min(settings.timeout, _LONGEST_LOOK), tries=1)
    return None


def _listed_archive(inventory: Inventory) -> Record:
    """Return the record of the archive as the bucket lists it."""
    record = record_of(*inventory.objects.get(ARCHIVE, (ARCHIVE,)))
    path = local_path(inventory.settings.data_dir, record["id"])
    return {**record, "absolute_path": path}


# --- Single images ---------------------------------------------------------------


def extract_images(
    archive: str, table: pd.DataFrame, names: Sequence[str], settings: Settings
) -> list[str]:
    """Write images as files; return their paths.

    When the archive was fetched again, so is all that was extracted before.
    """
    paths = [local_path(settings.data_dir, stimulus_image(name)) for name in names]
    folder = Path(local_path(settings.data_dir, STIMULUS_IMAGES))
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    rows = dict(zip(table["image_name"], table["h5_index"], strict=True))
    todo = set(names) - there
    if settings.overwrites:
        todo = set(names) | (there & set(rows))

    if todo:
        make_folder(str(folder))
        chosen = {name: rows[name] for name in sorted(todo, key=rows.__getitem__)}
        _write_images(archive, chosen, folder)
    return paths


def _write_images(archive: str, rows: dict[str, int], folder: Path) -> None:
    """Write images as files; one thread reads, as HDF5 lets only one, some write."""
    with open_images(archive) as images, ThreadPoolExecutor(_WRITERS) as pool:
        tasks: deque[Future] = deque()
        try:
            for name, row in rows.items():
                data = read_image(images, int(row), name)
                tasks.append(pool.submit(_write, f"{folder}{os.sep}{name}", data))
                if len(tasks) > 4 * _WRITERS:
                    tasks.popleft().result()
            finish(tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write(file: str, data: bytes) -> None:
    with whole_file(file) as stream:
        stream.write(data)
