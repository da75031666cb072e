"""The files of the dataset: listings of the bucket, fresh or saved, and the disk.

Fetchers and discovery look here. Online the bucket is listed, and what it lists is
kept; offline, or when the bucket does not answer, saved listings are used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.layout.keys import clean_key, record_of
from laion_fmri_fetchers.layout.trees import DERIVATIVES, STIMULI
from laion_fmri_fetchers.messages import warn
from laion_fmri_fetchers.query.arguments import check_mode
from laion_fmri_fetchers.remote import bucket
from laion_fmri_fetchers.remote.bucket import Object, UnreachableError

from .files import files_on_disk, local_path
from .listings import is_demo, kept_root, save_listing, saved_listings
from .state import state_files, state_path

Wanted = tuple[str, str]
"""A prefix of keys, and the delimiter: "" for all below it, "/" for one level."""

_ROOT: Wanted = ("", "/")

_OF_DATASET = re.compile(f"sub-|{DERIVATIVES[:-1]}$|{STIMULI[:-1]}$")


class Catalog(NamedTuple):
    """Files and folders below some prefixes, see `look`."""

    objects: dict[str, Object]
    folders: frozenset[str]
    on_disk: dict[str, str]
    not_in_bucket: frozenset[str]
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
        ``on_disk``: id -> relative path of files on disk; ``not_in_bucket``: ids of
        those that the listing of their folder does not have; ``unlisted``: prefixes of
        which no listing is known (offline); ``error``: why saved listings were used
        although the bucket was asked; ``is_live``: whether the bucket answered.

    Raises
    ------
    BucketError
        If the bucket denies listing, gives none, or lists two keys for one path.
    InvalidQueryError
        If data of a demo and others would mix in the data directory.
    UnsafeKeyError
        If a key would leave the data directory.

    Warns
    -----
    UserWarning
        Without an answer of the bucket, if the data directory is that of a demo.
    """
    wanted = list(wanted)
    error = None
    listings: list[dict[str, Any]] | None = None
    if mode != "offline":
        root, here = kept_root(data_dir), bucket.bucket_url()
        asked = list(dict.fromkeys([*wanted, _ROOT]))
        if here == bucket.DEFAULT_BUCKET_URL:  # no demo, as is known without asking
            _refuse_mixing(data_dir, None)
            asked = wanted
        elif root and root.get("bucket") == here:
            asked = wanted
        try:
            listings = bucket.list_prefixes(
                asked, n_connections=n_connections, timeout=timeout, verbose=verbose
            )
        except UnreachableError as unreachable:
            error = unreachable
    is_live = listings is not None
    on_disk, local_folders = files_on_disk(data_dir, wanted)
    if listings is None:
        root = kept_root(data_dir)
        if root and is_demo(root) and root.get("bucket") != bucket.bucket_url():
            _warn_of_demo(data_dir)
        listings = _saved(data_dir, wanted, of_this_bucket=error is not None)
        unlisted = [w[0] for w in wanted if not any(_covers(g, w) for g in listings)]
        objects, folders = _merge(listings)
        # Saved listings may hold more than was asked for.
        prefixes = tuple(prefix for prefix, delimiter in wanted if not delimiter)
        levels = {prefix for prefix, delimiter in wanted if delimiter}
        objects = {
            path: one
            for path, one in objects.items()
            if path.startswith(prefixes) or _folder(path) in levels
        }
        folders = {name for name in folders if _folder(name[:-1]) in levels}
        folders |= local_folders
    else:
        unlisted = []
        # The top first: it says whose data are all that is saved after it.
        listings.sort(key=lambda one: (one["prefix"], one["delimiter"]) != _ROOT)
        for listing in listings:
            if (listing["prefix"], listing["delimiter"]) == _ROOT:
                _refuse_mixing(data_dir, listing)
            save_listing(data_dir, listing)
        listings = [g for g in listings if (g["prefix"], g["delimiter"]) in wanted]
        objects, folders = _merge(listings)
    not_in_bucket = {
        path
        for path in on_disk.keys() - objects.keys()
        if any(
            _folder(path) == one["prefix"]
            if one["delimiter"]
            else path.startswith(one["prefix"])
            for one in listings
        )
    }
    return Catalog(
        objects,
        frozenset(folders),
        on_disk,
        frozenset(not_in_bucket),
        unlisted,
        error,
        is_live,
    )


def keep_demo_apart(data_dir: str, timeout: float = 30.0) -> None:
    """Raise if what a call is about to write would mix data of a demo with others.

    `look` does so for whatever it lists. This is for calls that list nothing. Where the
    bucket cannot be listed, nothing is known against it.

    Raises
    ------
    InvalidQueryError
        As `look` does.
    """
    with contextlib.suppress(BucketError):
        look((), data_dir, mode=check_mode(None), timeout=timeout, verbose=0)


def _refuse_mixing(data_dir: str, root: dict[str, Any] | None) -> None:
    """Raise if a directory holds data of a demo and the bucket's are not, or reverse.

    ``root`` is the listing of the bucket's top.
    """
    here = bucket.bucket_url()
    if is_demo(root):
        # Looked at before the mark, as another process saves the mark first.
        state = _names(state_path(data_dir))
        has_data = any(map(_OF_DATASET.match, _names(data_dir))) or bool(
            {*state} - {"listings"} or state_files(data_dir, "listings")
        )
        if has_data and not is_demo(kept_root(data_dir)):
            raise InvalidQueryError(
                f"{here} is a demo, and its synthetic data must not mix with what is "
                f"in the data directory {data_dir}. Name an empty data_dir; for the "
                "dataset itself, stop the demo or unset LAION_FMRI_BUCKET_URL."
            )
    elif is_demo(kept_root(data_dir)):
        raise InvalidQueryError(
            f"The data directory {data_dir} holds synthetic data of a demo, which must "
            f"not mix with those of {here}. Delete that directory, or name another "
            "data_dir."
        )


def _names(folder: str | os.PathLike) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


@functools.cache
def _warn_of_demo(data_dir: str) -> None:
    """Warn, once in a process, that a directory does not hold the dataset."""
    warn(
        f"The data directory {data_dir} holds synthetic data of a demo, not "
        "LAION-fMRI. Name another data_dir for the dataset."
    )


def records(catalog: Catalog, ids: Iterable[str], data_dir: str) -> list[dict]:
    """Return the records of some ids of a catalog, sorted by subject and session."""
    found = []
    for one in ids:
        path = catalog.on_disk.get(one, one)
        rec = record_of(*catalog.objects.get(one, (path,)))
        rec["relative_path"] = path
        rec["absolute_path"] = local_path(data_dir, path)
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


def _folder(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder + slash


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
