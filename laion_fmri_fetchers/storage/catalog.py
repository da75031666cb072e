"""The files of the dataset: listings of the bucket, fresh or saved, and the disk.

Fetchers and discovery look here. Online the bucket is listed, and what it lists is
kept; offline, or when the bucket does not answer, saved listings are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import BucketError
from laion_fmri_fetchers.layout.keys import clean_key, record_of
from laion_fmri_fetchers.transfer import bucket
from laion_fmri_fetchers.transfer.bucket import Object, UnreachableError

from .files import files_on_disk, local_path
from .listings import save_listing, saved_listings

Wanted = tuple[str, str]
"""A prefix of keys, and the delimiter: "" for all below it, "/" for one level."""


class Catalog(NamedTuple):
    """Files and folders below some prefixes, see `look`."""

    objects: dict[str, Object]
    folders: frozenset[str]
    on_disk: set[str]
    unlisted: list[str]
    error: UnreachableError | None
    is_live: bool


def look(
    wanted: Iterable[Wanted],
    data_dir: str,
    *,
    mode: str = "download_new",
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Catalog:
    """Look at the bucket, or at listings saved earlier, and at the disk.

    Parameters
    ----------
    wanted : iterable of (prefix, delimiter)
        What to list; a prefix ends in ``/`` or is empty.
    data_dir : str
        The data directory.
    mode : str, default="download_new"
        ``"offline"``: use saved listings, and open no socket.
    n_connections : int, default=64
        Requests at once.
    timeout : float, default=30.0
        Seconds without an answer.
    verbose : int, default=1
        Whether a line is printed where the bucket takes long; 0: none.

    Returns
    -------
    Catalog
        ``objects``: id -> `Object`; ``folders``: those found by looking at one
        level, ending in ``/`` (offline, of the disk too);
        ``on_disk``: ids of files on disk; ``unlisted``: prefixes of which no listing
        is known (offline); ``error``: why saved listings were used although the
        bucket was asked; ``is_live``: whether the bucket answered.

    Raises
    ------
    BucketError
        If the bucket denies listing, gives none, or lists two keys for one path.
    UnsafeKeyError
        If a key would leave the data directory.
    """
    wanted = list(wanted)
    error = None
    listings: list[dict[str, Any]] | None = None
    if mode != "offline":
        try:
            listings = bucket.list_many(
                wanted, n_connections=n_connections, timeout=timeout, verbose=verbose
            )
        except UnreachableError as unreachable:
            error = unreachable
    is_live = listings is not None
    on_disk, local_folders = files_on_disk(data_dir, wanted)
    if listings is None:
        listings = _saved(data_dir, wanted, of_this_bucket=error is not None)
        unlisted = [w[0] for w in wanted if not any(_covers(g, w) for g in listings)]
        objects, folders = _merge(listings)
        folders |= local_folders
    else:
        unlisted = []
        objects, folders = _merge(listings)
        for listing in listings:
            save_listing(data_dir, listing)
    return Catalog(objects, frozenset(folders), on_disk, unlisted, error, is_live)


def records(catalog: Catalog, ids: Iterable[str], data_dir: str) -> list[dict]:
    """Return the records of some ids of a catalog, sorted by subject and session."""
    found = []
    for one in ids:
        rec = record_of(*catalog.objects.get(one, (one,)))
        rec["absolute_path"] = local_path(data_dir, one)
        found.append(rec)
    found.sort(key=in_order)
    return found


def in_order(rec: dict[str, Any]) -> tuple[str, str, str]:
    """Return what records are sorted by: subject, session, id."""
    return rec["subject"] or "", rec["session"] or "", rec["id"]


def _saved(
    data_dir: str, wanted: list[Wanted], of_this_bucket: bool
) -> list[dict[str, Any]]:
    """Return saved listings, oldest first.

    Those of another address may stand in for it, as mirrors move, unless the bucket
    that the user names was asked in vain.
    """
    listings = saved_listings(data_dir, wanted)
    if of_this_bucket and os.environ.get("LAION_FMRI_BUCKET_URL"):
        here = bucket.bucket_url()
        listings = [one for one in listings if one.get("bucket", here) == here]
    for listing in listings:
        listing["objects"] = [*map(Object._make, listing["objects"])]
    return listings


def _covers(listing: dict[str, Any], wanted: Wanted) -> bool:
    """Tell whether a listing says all that another would."""
    prefix, delimiter = wanted
    if listing["delimiter"]:
        return bool(delimiter) and listing["prefix"] == prefix
    return prefix.startswith(listing["prefix"])


def _merge(listings: list[dict[str, Any]]) -> tuple[dict[str, Object], set[str]]:
    """Lay listings over each other, oldest first; each replaces what it covers."""
    objects: dict[str, Object] = {}
    levels: dict[str, set[str]] = {}
    for n, listing in enumerate(listings):
        prefix, below = listing["prefix"], set(listing["prefixes"])
        if any(_overlaps(other, prefix) for other in listings[:n]):
            for one in [i for i in objects if i.startswith(prefix)]:
                if not _is_in(below, one, prefix):
                    del objects[one]
        for level in [p for p in levels if p.startswith(prefix)]:
            if not _is_in(below, level, prefix):
                del levels[level]
        if listing["delimiter"]:
            levels[prefix] = below
        objects.update(_by_id(listing["objects"]))
    return objects, set().union(*levels.values())


def _overlaps(listing: dict[str, Any], prefix: str) -> bool:
    """Tell whether a listing may have objects whose ids begin with a prefix."""
    other = listing["prefix"]
    return other.startswith(prefix) or (
        not listing["delimiter"] and prefix.startswith(other)
    )


def _is_in(folders: set[str], path: str, prefix: str) -> bool:
    """Tell whether a path that begins with a prefix lies in one of its folders."""
    folder, slash, _ = path[len(prefix) :].partition("/")
    return bool(slash) and f"{prefix}{folder}/" in folders


def _by_id(objects: list[Object]) -> dict[str, Object]:
    by_id: dict[str, Object] = {}
    for one in objects:
        other = by_id.setdefault(clean_key(one.key), one)
        if other is not one:
            raise BucketError(
                f"The bucket holds two keys for one file, {other.key!r} and "
                f"{one.key!r}. Ask its owner to remove one of them."
            )
    return by_id
