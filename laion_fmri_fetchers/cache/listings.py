"""What the bucket holds, by a new listing or the last one kept, and what is on disk.

Prefixes that are listed are fixed and disjoint (`layout.trees.listing_of`), so each has
one kept listing, a JSON file of its own, and nothing is laid over anything else.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.layout.keys import Record, clean_key, record_of_path
from laion_fmri_fetchers.layout.trees import DEMO, DERIVATIVES, STIMULI, listing_of
from laion_fmri_fetchers.messages import warn
from laion_fmri_fetchers.query.arguments import check_mode
from laion_fmri_fetchers.remote import bucket
from laion_fmri_fetchers.remote.bucket import Object, UnreachableError, timestamp

from .files import files_on_disk, local_path, read_file, write_atomically
from .state import state_path

# A prefix of keys, and the delimiter: "" for all below it, "/" for one level.
Wanted = tuple[str, str]

_ROOT: Wanted = ("", "/")

_OF_DATASET = re.compile(f"sub-|{DERIVATIVES[:-1]}$|{STIMULI[:-1]}$")


class Catalog(NamedTuple):
    """Files and folders below some prefixes."""

    objects: dict[str, Object]  # by id, as the bucket lists them
    folders: frozenset[str]  # of levels, ending in "/"; offline, those on disk, too
    on_disk: dict[str, str]  # id -> relative path
    not_in_bucket: frozenset[str]  # ids of files on disk that their listing lacks
    unlisted: list[str]  # prefixes of which no listing is known, offline
    listed_at: float | None  # seconds since 1970 of the newest listing; None for none
    error: UnreachableError | None  # why kept listings are used though it was asked
    is_live: bool  # whether the bucket answered

    def records(self, ids: Iterable[str], data_dir: str) -> list[Record]:
        """Return the records of some ids, sorted by subject and session."""
        found = []
        for path in ids:
            file = self.on_disk.get(path, path)
            rec = record_of_path(path, *self.objects.get(path, (file,)))
            rec["relative_path"] = file
            rec["absolute_path"] = local_path(data_dir, file)
            found.append(rec)
        return sorted(
            found,
            key=lambda rec: (rec["subject"] or "", rec["session"] or "", rec["id"]),
        )


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Let Python not look for cycles, of which objects of listings have none.

    Otherwise it walks half a million of them again and again, which takes as long as to
    parse them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_gc_paused()
def read_catalog(
    wanted: Iterable[Wanted],
    data_dir: str,
    *,
    mode: str = "download_new",
    **options: Any,
) -> Catalog:
    """List the bucket, or read listings kept earlier, and scan the disk.

    Parameters
    ----------
    wanted : iterable of (prefix, delimiter)
        What to list, as `listing_of` gives it.
    data_dir : str
        The data directory.
    mode : str, default="download_new"
        ``"offline"``: read kept listings, and open no socket.
    **options
        Of `list_prefixes`: ``n_connections``, ``timeout`` and ``verbose``.

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
    wanted, error = list(dict.fromkeys(wanted)), None
    listings: dict[Wanted, dict[str, Any]] = {}
    if mode != "offline":
        try:
            listings = _list(wanted, data_dir, options)
        except UnreachableError as unreachable:
            error = unreachable
    is_live = mode != "offline" and error is None
    on_disk, folders = files_on_disk(data_dir, wanted)
    if is_live:
        folders = set()
    else:
        here, root = bucket.bucket_url(), kept_root(data_dir)
        if root and is_demo(root) and root["bucket"] != here:
            _warn_of_demo(data_dir)
        # Kept listings of another address may stand in for it, as mirrors move, unless
        # the bucket that the user names did not answer.
        is_bound = error is not None and bool(os.environ.get("LAION_FMRI_BUCKET_URL"))
        for each in wanted:
            kept = kept_listing(data_dir, each)
            if kept and not (is_bound and kept["bucket"] != here):
                listings[each] = kept
    objects = _by_id(each for kept in listings.values() for each in kept["objects"])
    strange = on_disk.keys() - objects.keys()
    return Catalog(
        objects,
        frozenset(folders.union(*(kept["prefixes"] for kept in listings.values()))),
        on_disk,
        frozenset(path for path in strange if listing_of(path) in listings),
        [each[0] for each in wanted if each not in listings],
        max((kept["listed_at"] for kept in listings.values()), default=None),
        error,
        is_live,
    )


@_gc_paused()
def kept_objects(data_dir: str) -> dict[str, Object]:
    """Return all objects of kept listings, by id; no socket is opened."""
    folder = state_path(data_dir, "listings")
    files = [folder / name for name in sorted(_names(folder)) if name.endswith(".json")]
    listings = filter(None, map(_read_listing, files))
    return _by_id(each for listing in listings for each in listing["objects"])


def _by_id(objects: Iterable[Object]) -> dict[str, Object]:
    """Return objects by the id of their files; two of one file are an error."""
    found: dict[str, Object] = {}
    for each in objects:
        path = clean_key(each.key)
        if path in found and found[path].key != each.key:
            raise BucketError(
                f"The bucket holds two keys for one file, {found[path].key!r} and "
                f"{each.key!r}. Ask its owner to remove one of them."
            )
        found[path] = each
    return found


def keep_demo_apart(data_dir: str, timeout: float = 30.0) -> None:
    """Raise if what a call is about to write would mix data of a demo with others.

    `read_catalog` does so for whatever it lists. This is for calls that list nothing.
    Where the bucket cannot be listed, nothing is known against it.

    Raises
    ------
    InvalidQueryError
        As `read_catalog` does.
    """
    with contextlib.suppress(BucketError):
        read_catalog((), data_dir, mode=check_mode(None), timeout=timeout, verbose=0)


def correct_listings(data_dir: str, records: Iterable[Record]) -> None:
    """Let kept listings have the versions of files that changed after these were made.

    Else these files would look damaged until the bucket is listed again.
    """
    for rec in records:
        if kept := kept_listing(data_dir, listing_of(rec["id"])):
            fields = "key", "size", "etag", "last_modified"
            new = Object(*(rec[field] for field in fields))
            objects = [new if o.key == new.key else o for o in kept["objects"]]
            _keep(data_dir, kept | {"objects": objects})


def is_demo(root: dict[str, Any] | None) -> bool:
    """Return whether a listing of the top is that of a demo, with synthetic data."""
    return root is not None and any(each.key == DEMO for each in root["objects"])


def kept_root(data_dir: str) -> dict[str, Any] | None:
    """Return the kept listing of the top of the bucket; None where there is none."""
    return kept_listing(data_dir, _ROOT)


def kept_listing(data_dir: str, wanted: Wanted) -> dict[str, Any] | None:
    """Return the listing of a prefix that was kept last; None where there is none.

    Its ``objects`` are of type `Object`.
    """
    kept = _read_listing(_listing_file(data_dir, *wanted))
    return kept if kept and (kept["prefix"], kept["delimiter"]) == wanted else None


def _list(
    wanted: list[Wanted], data_dir: str, options: dict[str, Any]
) -> dict[Wanted, dict[str, Any]]:
    """List the bucket, and keep the listings."""
    here, kept = bucket.bucket_url(), kept_root(data_dir)
    asked = list(wanted)
    if here == bucket.DEFAULT_BUCKET_URL:  # no demo, as is known without asking
        _refuse_mixing(data_dir, None)
    elif _ROOT not in asked and not (kept and kept["bucket"] == here):
        asked.append(_ROOT)
    found = bucket.list_prefixes(asked, **options)
    listings = {(each["prefix"], each["delimiter"]): each for each in found}
    # The top first: it says whose data are all that is kept after it.
    for each in sorted(listings, key=lambda each: each != _ROOT):
        if each == _ROOT:
            _refuse_mixing(data_dir, listings[each])
        _date_as_before(listings[each]["objects"], kept_listing(data_dir, each))
        _keep(data_dir, listings[each])
    return {each: listings[each] for each in wanted}


def _date_as_before(objects: list[Object], kept: dict[str, Any] | None) -> None:
    """Let objects with the ETag and size of the listing before keep its earlier date.

    So a mirror, which dates its copies later, makes no file look outdated.
    """
    earlier = {each.key: each for each in kept["objects"]} if kept else {}
    for number, each in enumerate(objects):
        other = earlier.get(each.key)
        if other and other != each and each.etag and other[:3] == each[:3]:
            then, now = timestamp(other.last_modified), timestamp(each.last_modified)
            if then is not None and now is not None and then < now:
                objects[number] = other


def _keep(data_dir: str, listing: dict[str, Any]) -> None:
    """Keep a listing; where that is not possible, do without."""
    file = _listing_file(data_dir, listing["prefix"], listing["delimiter"])
    with contextlib.suppress(OSError):
        write_atomically(file, json.dumps(listing).encode())


def _read_listing(file: Path) -> dict[str, Any] | None:
    try:
        listing = json.loads(read_file(file))
        listing["objects"] = [
            Object(str(key), int(size), etag, last_modified)
            for key, size, etag, last_modified in listing["objects"]
        ]
        names = "prefix", "delimiter", "bucket"
        if not all(isinstance(listing[name], str) for name in names):
            raise ValueError("it is not as it was written")
        return listing | {
            "prefixes": [str(prefix) for prefix in listing["prefixes"]],
            "listed_at": float(listing["listed_at"]),
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        warn(
            f"The saved listing {file} cannot be used: {error}. Offline, what "
            "the bucket holds there is unknown; a call online saves it anew."
        )
        return None


def _listing_file(data_dir: str, prefix: str, delimiter: str) -> Path:
    name = quote(prefix, safe="") or "top"
    return state_path(data_dir, "listings", f"{name}{'.level' * bool(delimiter)}.json")


def _refuse_mixing(data_dir: str, root: dict[str, Any] | None) -> None:
    """Raise if a directory holds data of a demo and the bucket's are not, or reverse.

    ``root`` is the listing of the bucket's top.
    """
    here = bucket.bucket_url()
    if not is_demo(root):
        if is_demo(kept_root(data_dir)):
            raise InvalidQueryError(
                f"The data directory {data_dir} holds synthetic data of a demo, which "
                f"must not mix with those of {here}. Delete that directory, or name "
                "another data_dir."
            )
        return
    # Looked at before the mark, as another process saves the mark first.
    has_data = any(map(_OF_DATASET.match, _names(Path(data_dir)))) or any(
        name != "listings" or _names(state_path(data_dir, name))
        for name in _names(state_path(data_dir))
    )
    if has_data and not is_demo(kept_root(data_dir)):
        raise InvalidQueryError(
            f"{here} is a demo, and its synthetic data must not mix with what is "
            f"in the data directory {data_dir}. Name an empty data_dir; for the "
            "dataset itself, stop the demo or unset LAION_FMRI_BUCKET_URL."
        )


def _names(folder: Path) -> list[str]:
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
