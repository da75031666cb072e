"""Public files of the folder ``stimuli/``: found, downloaded, compared.

take_inventory_of_stimuli ─▶ fetch_public ─▶ records of files on disk, failures
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from laion_fmri_fetchers.cache.inventory import (
    Inventory,
    report_versions,
    take_inventory,
)
from laion_fmri_fetchers.cache.obtain import obtain, plan
from laion_fmri_fetchers.cache.settings import Settings
from laion_fmri_fetchers.exceptions import BucketError, DownloadError, NotCachedError
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.trees import STIMULI
from laion_fmri_fetchers.messages import listed, warn


def take_inventory_of_stimuli(settings: Settings) -> Inventory:
    """Return the content of the folder ``stimuli/``, in the bucket and on disk."""
    return take_inventory([(STIMULI, "/")], settings, needs_listing=False)


def fetch_public(
    ids: Iterable[str], inventory: Inventory, *, required: bool = False
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Download public files that are not on disk.

    Parameters
    ----------
    ids : iterable of str
        The files.
    inventory : Inventory
        Of `take_inventory_of_stimuli`.
    required : bool, default=False
        Raise for files that fail, even if they are allowed to be missing.

    Returns
    -------
    records : list of dict
        One per file on disk, in the order of ``ids``.
    failed : list of dict
        ``id`` and ``reason`` of the others.

    Raises
    ------
    NotCachedError, BucketError, DownloadError
        If a file is not on disk and could not be downloaded.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file on disk, or cannot be reached.
    """
    settings = inventory.settings
    if required:
        settings = settings._replace(allow_missing=False)
        inventory = inventory._replace(settings=settings)
    records = [inventory.by_id[path] for path in ids if path in inventory.by_id]
    lacking = [p for p in ids if p not in inventory.by_id or p in inventory.absent]
    if lacking and inventory.error:
        raise BucketError(
            f"{inventory.error} Missing in {settings.data_dir}: {listed(lacking)}. "
            "mode='offline' returns what is on disk."
        )
    where = "on disk" if inventory.is_cut_off else "in the bucket"
    failed = [{"id": path, "reason": f"it is not {where}"} for path in lacking]
    _raise_or_warn(failed, inventory)
    records = [rec for rec in records if rec["id"] not in lacking]
    planned = plan(records, inventory, again=lambda _: True)
    with needed() if required else contextlib.nullcontext():
        outcome = obtain(planned, inventory)
    if inventory.error:
        warn(f"{inventory.error} Everything asked for is on disk; continuing offline.")
    lost = [{"id": rec["id"], "reason": rec["reason"]} for rec in outcome.failed]
    _raise_or_warn(lost, inventory)
    ids_lost = {failure["id"] for failure in lost}
    records = [rec for rec in records if rec["id"] not in ids_lost]
    report_versions(records, inventory, outcome.fetched)
    return records, failed + lost


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Let a failed download not advise ``allow_missing`` where that does not help."""
    try:
        yield
    except DownloadError as error:
        text = str(error).replace("; allow_missing=True leaves the others out", "")
        raise DownloadError(text, failed=error.failed) from None


def _raise_or_warn(failed: list[dict[str, Any]], inventory: Inventory) -> None:
    if not failed:
        return
    settings = inventory.settings
    text = "; ".join(f"{failure['id']}: {failure['reason']}" for failure in failed)
    if settings.allow_missing:
        warn(f"Left out: {text}")
    elif inventory.is_cut_off:
        raise NotCachedError(f"{text}, in {settings.data_dir}. {settings.how_to_fetch}")
    else:
        raise DownloadError(f"Could not be downloaded: {text}.", failed=failed)
