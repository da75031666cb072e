"""Files that are named by id, or by a prefix that they share."""

from __future__ import annotations

import os
from collections.abc import Iterable

from laion_fmri_fetchers.cache.inventory import (
    SUBJECT_TREES,
    Inventory,
    take_inventory,
)
from laion_fmri_fetchers.cache.settings import Settings
from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.keys import Record, clean_key, is_held_out, place_of
from laion_fmri_fetchers.layout.trees import GATED, listing_of, listings_of
from laion_fmri_fetchers.messages import counted, tell
from laion_fmri_fetchers.query.values import in_order
from laion_fmri_fetchers.remote.bucket import key_of


def parse_ids(image_ids: object) -> tuple[list[str], list[str]]:
    """Return ids and prefixes that were named, each once, in their order.

    Raises
    ------
    InvalidQueryError
        If one is not text, or gated.
    UnsafeKeyError
        If one would leave the data directory.
    """
    given = [image_ids] if isinstance(image_ids, str) else image_ids
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise InvalidQueryError(f"image_ids is {image_ids!r}; give ids or keys, as str")
    ids: dict[str, None] = {}
    prefixes: dict[str, None] = {}
    for name in in_order(given):
        if not isinstance(name, str):
            raise InvalidQueryError(
                f"image_ids holds {name!r}; give ids or keys, as str"
            )
        if os.path.isabs(name) and name.strip("/"):
            raise InvalidQueryError(
                f"image_ids holds {name!r}, a path on disk; give the 'id' of its "
                "record, which begins below the data directory: "
                "[meta['id'] for meta in data.images_meta]"
            )
        name = key_of(name)
        if name.strip("/") == "" or not name.endswith("/"):
            ids[clean_key(name)] = None
        else:
            prefixes[f"{clean_key(name.rstrip('/'))}/"] = None
    for gated in GATED & set(ids):
        raise InvalidQueryError(
            f"{gated!r} is gated by a Data Use Agreement; use fetch_laion_stimuli."
        )
    return [*ids], [*prefixes]


def take_inventory_of_named(
    ids: list[str], prefixes: list[str], settings: Settings
) -> tuple[set[str], Inventory]:
    """Return the subjects of named files, and an inventory of all their files."""
    wanted = {("", "/"), *map(listing_of, ids), *map(listing_of, prefixes)}
    places = map(place_of, (*ids, *prefixes))
    of_subjects = {subject for _, subject in places if subject}
    while True:
        for subject in of_subjects:
            wanted |= {*listings_of(subject, SUBJECT_TREES)}
        inventory = take_inventory(wanted, settings)
        below = tuple(prefixes)
        named = [rec for rec in inventory.records if rec["id"].startswith(below)]
        subjects = of_subjects | {r["subject"] for r in named if r["subject"]}
        # A prefix may lie above what is listed whole, such as that of a tree.
        more = {
            listing_of(folder)
            for folder in inventory.folders
            if folder.startswith(below)
        }
        if subjects == of_subjects and more <= wanted:
            return subjects, inventory
        of_subjects, wanted = subjects, wanted | more


def choose_named(
    ids: list[str], prefixes: list[str], inventory: Inventory
) -> list[Record]:
    """Return the records of named files, in the order of their names.

    Files below prefixes come last. A name without a file is an error.
    """
    settings, by_id = inventory.settings, inventory.by_id
    for path in ids:
        if path not in by_id:
            hint = did_you_mean(path, by_id)
            inventory.refuse(
                f"There is no file {path!r} in the bucket; {hint}",
                f"{path} is not on disk in {settings.data_dir}; {hint}",
            )
    chosen = dict.fromkeys(ids)
    for prefix in prefixes:
        below = [rec for rec in inventory.records if rec["id"].startswith(prefix)]
        if not below:
            inventory.refuse(
                f"There is nothing below {prefix!r} in the bucket; inspect_bucket() "
                "shows its folders.",
                f"Nothing below {prefix} is on disk in {settings.data_dir}.",
            )
        free = [
            rec["id"]
            for rec in below
            if not is_held_out(rec) and rec["id"] not in GATED
        ]
        if len(free) < len(below):
            tell(
                f"Below {prefix}, {counted(len(below) - len(free), 'file')} held out "
                "for evaluation or gated by the Data Use Agreement are left out",
                settings.verbose,
            )
        chosen |= dict.fromkeys(free)
    return [by_id[path] for path in chosen]
