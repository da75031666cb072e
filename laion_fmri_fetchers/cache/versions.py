"""Which version of a file is on disk, compared with the one in the bucket.

The publishers replace files at their keys. A record describes the version on disk, and
says by ``outdated`` that the bucket has another one.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from laion_fmri_fetchers.layout.keys import Record, record_of
from laion_fmri_fetchers.layout.trees import archived_key
from laion_fmri_fetchers.messages import counted, listed, warn

from .inventory import Inventory, size_on_disk


def compare_versions(
    files: list[Record], inventory: Inventory, fetched: Container[str]
) -> None:
    """Complete records from files on disk, and warn of versions that differ.

    Parameters
    ----------
    files : list of dict
        Records of files that were selected.
    inventory : Inventory
        The bucket's versions.
    fetched : container of str
        Ids of files that were downloaded just now.
    """
    outdated, differing = [], []
    for rec in files:
        rec["outdated"] = rec["outdated"] and rec["id"] not in fetched
        size = size_on_disk(rec)
        if rec["size"] is None:
            rec["size"] = size
        if rec["outdated"]:
            outdated.append(rec)
        elif size not in (None, rec["size"]):
            differing.append(rec["id"])
    if beside := [rec["id"] for rec in files if rec["id"] in inventory.not_in_bucket]:
        warn(
            f"{counted(len(beside), 'selected file')} on disk, but not in the bucket's "
            f"listing: {listed(beside)}. What is there is used; move it "
            "out of the data directory if it is not of the dataset."
        )
    if outdated and inventory.settings.adds_new:
        _warn_of_outdated(outdated, inventory.objects)
    if differing:
        warn(
            f"{counted(len(differing), 'file')} on disk differ in size from the "
            f"bucket's listing: {listed(differing)}. They may be cut short or another "
            "version; 'laion-fmri-fetchers verify --repair' or mode='overwrite' "
            "downloads them again."
        )


def _warn_of_outdated(files: list[Record], objects: dict[str, Any]) -> None:
    changes = []
    for rec in files:
        now = record_of(*objects[rec["id"]])
        changes.append(f"{rec['id']} ({_version(rec)}; now {_version(now)})")
    archived = [key for rec in files if (key := archived_key(rec["id"]))]
    hint = ""
    if archived:
        hint = f" The first version is archived: fetch_laion_fmri_ids({archived[0]!r})."
    small = ("trials", "other")
    if tables := [rec["id"] for rec in files if rec["image_type"] in small]:
        hint += (
            " Of this table alone: "
            f"fetch_laion_fmri_ids({tables[0]!r}, mode='overwrite')."
        )
    warn(
        f"The bucket has another version of {counted(len(files), 'file')} than is on "
        f"disk: {listed(changes)}. The version on disk is used; mode='overwrite' "
        f"downloads the new one.{hint}"
    )


def _version(rec: Record) -> str:
    date = f" of {rec['last_modified'][:10]}" if rec["last_modified"] else ""
    return f"{rec['size'] or 0:,} bytes{date}"
