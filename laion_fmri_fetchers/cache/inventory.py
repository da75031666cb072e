"""The files of a selection before anything is downloaded, in the bucket and on disk.

Gathered once, and not changed afterwards::

    find_subjects ─┐
    trees_of ──────┴─▶ take_inventory ─▶ read_catalog (bucket or kept listings, disk)
                          └────────────▶ Inventory: a record of each file

A downloaded file has the date of its object as its time of change. It is outdated if
that is older than the date in the listing; if it is not, and its size differs, the file
is not whole. So nothing has to be noted at a download, and a directory that other tools
filled is understood alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.layout.keys import Record
from laion_fmri_fetchers.layout.names import subjects_among
from laion_fmri_fetchers.layout.trees import (
    ANATOMICAL,
    BULK,
    DERIVATIVES,
    FREESURFER,
    GLM,
    IMAGE_TYPES,
    ROIS,
    STIMULI,
    TREES,
    archived_key,
    listing_of,
    listings_of,
    unknown_trees,
)
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, admits
from laion_fmri_fetchers.query.selection import Selection
from laion_fmri_fetchers.remote.bucket import iso_date, timestamp

from .files import hidden_on_disk, local_path
from .listings import Catalog, Wanted, read_catalog
from .settings import Settings

# Trees of which every Bunch reports something: sessions, ROIs, brain masks.
SUBJECT_TREES = (GLM, ROIS, ANATOMICAL)

# Seconds by which a file may be older than its object: some file systems, such as FAT,
# keep times of change in steps of two seconds.
SAME_TIME = 2.0

_UNHEARD_OF = "a type that no file has"


class Inventory(NamedTuple):
    """Some files, in the bucket and on disk; nothing of it changes afterwards."""

    settings: Settings

    # Of all files, by subject and session; outdated ones describe the version on disk,
    # but for the mode "overwrite".
    records: list[Record]
    on_disk: frozenset[str]  # ids of files on disk, or of which a resampled image is
    absent: frozenset[str]  # ids of files that are unavailable: offline, not on disk
    not_whole: frozenset[str]  # ids of files on disk that are cut short
    not_in_bucket: frozenset[str]  # ids of files on disk that their listing lacks
    objects: dict[str, Any]  # id -> object listed by the bucket
    folders: frozenset[str]  # of levels looked at
    error: BucketError | None  # why the bucket, though asked, did not answer
    is_cut_off: bool  # whether nothing can be downloaded

    @property
    def by_id(self) -> dict[str, Record]:
        """The records by ``id``."""
        return {rec["id"]: rec for rec in self.records}

    def refuse(self, query_problem: str, disk_problem: str) -> NoReturn:
        """Raise the error on a name: it does not exist, or offline, is not on disk."""
        self.settings.refuse_offline(disk_problem)
        raise InvalidQueryError(query_problem)


def take_inventory(
    wanted: Iterable[Wanted],
    settings: Settings,
    *,
    top: Catalog | None = None,
    derived: Mapping[str, str] = MappingProxyType({}),
    needs_listing: bool = True,
) -> Inventory:
    """List the bucket, or read kept listings, scan the disk, and compare the two.

    Parameters
    ----------
    wanted : iterable of (prefix, delimiter)
        What to list, as `listing_of` gives it.
    settings : Settings
        How to work.
    top : Catalog, optional
        What was found at the top of the bucket, and whether it answered.
    derived : mapping of str to str, optional
        By the id of an original, the file on disk that stands for it where it was
        deleted: it counts as on disk.
    needs_listing : bool, default=True
        Whether the selection depends on what the bucket lists; named files may all be
        on disk.

    Raises
    ------
    BucketError
        If the bucket does not answer and no listing was kept.
    """
    wanted = dict.fromkeys(wanted)  # in order, as messages name them
    catalog = _read([*wanted], settings, before=top, needs_listing=needs_listing)
    data_dir, objects = settings.data_dir, catalog.objects
    originals = {**catalog.on_disk, **{p: p for p in hidden_on_disk(data_dir, objects)}}
    on_disk = {path: local_path(data_dir, file) for path, file in originals.items()}
    for path, file in derived.items():
        if listing_of(path) in wanted:
            on_disk.setdefault(path, file)
    ids = objects.keys() | (set() if settings.overwrites else on_disk.keys())
    records, not_whole = catalog.records(ids, data_dir), set()
    for rec in records:
        path, date = rec["id"], timestamp(rec["last_modified"])
        if path not in objects or path not in on_disk:
            continue
        try:
            stat = os.stat(on_disk[path])
        except FileNotFoundError:  # another process removes originals
            del on_disk[path]
            continue
        rec["outdated"] = date is not None and date - stat.st_mtime > SAME_TIME
        if rec["outdated"] and not settings.overwrites:
            rec["size"] = stat.st_size if path in originals else None
            rec |= {"etag": None, "last_modified": iso_date(stat.st_mtime)}
        elif path in originals and stat.st_size != rec["size"]:
            not_whole.add(path)
    return Inventory(
        settings,
        records,
        frozenset(on_disk),
        frozenset(() if catalog.is_live or catalog.error else ids - on_disk.keys()),
        frozenset(not_whole),
        catalog.not_in_bucket,
        objects,
        catalog.folders,
        catalog.error,
        not catalog.is_live,
    )


def take_inventory_of_stimuli(settings: Settings) -> Inventory:
    """Return the content of the folder ``stimuli/``, in the bucket and on disk."""
    return take_inventory([(STIMULI, "/")], settings, needs_listing=False)


def take_inventory_of_subjects(
    selection: Selection,
    settings: Settings,
    derived: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[str], Inventory]:
    """Return the subjects asked for, and an inventory of their files.

    ``derived`` is as in `take_inventory`.
    """
    subjects, top = selection.subjects, None
    if subjects is None:
        subjects, top = find_subjects(settings)
    wanted: list[Wanted] = [] if top else [("", "/")]
    trees = trees_of(selection.image_filter, settings)
    for subject in subjects:
        wanted += listings_of(subject, trees)
    return sorted(subjects), take_inventory(wanted, settings, top=top, derived=derived)


def find_subjects(settings: Settings) -> tuple[tuple[str, ...], Catalog]:
    """Return the subjects that any tree has, and the catalog of the top level."""
    levels: list[Wanted] = [(tree, "/") for tree in (*TREES, DERIVATIVES)]
    top = _read(levels, settings)
    if others := unknown_trees(top.folders):
        top = _read([(tree, "/") for tree in others], settings, before=top)
    return subjects_among(top.folders), top


def trees_of(image_filter: ResultFilter, settings: Settings) -> list[str]:
    """Return the trees in which files of the selected image types may lie.

    Time series, hundreds of GB per subject, must be named: a term that any type passes,
    such as ``NotNull()``, does not reach them.
    """

    def passes(image_type: str) -> bool:
        return admits(image_filter, "image_type", image_type)

    anything = passes(_UNHEARD_OF)
    trees = dict.fromkeys(SUBJECT_TREES)
    for image_type, tree in IMAGE_TYPES.items():
        if not passes(image_type):
            continue
        if tree is None:
            trees |= dict.fromkeys({*TREES} - BULK - {FREESURFER})
        elif tree not in BULK or not anything:
            trees[tree] = None
    if passes("other"):
        found = _read([(DERIVATIVES, "/")], settings)
        trees |= dict.fromkeys(unknown_trees(found.folders))
    return list(trees)


def _read(
    wanted: list[Wanted],
    settings: Settings,
    *,
    before: Catalog | None = None,
    needs_listing: bool = True,
) -> Catalog:
    """Return a catalog; raise where neither the bucket nor a kept listing answers.

    It goes on from what was found ``before``: a bucket that did not answer then is not
    asked, and waited for, again.
    """
    found = read_catalog(
        wanted,
        settings.data_dir,
        mode="offline" if before and before.error else settings.mode,
        n_connections=settings.n_connections,
        timeout=settings.timeout,
        verbose=settings.verbose,
    )
    if before:
        found = found._replace(
            objects={**before.objects, **found.objects},
            folders=before.folders | found.folders,
            on_disk=before.on_disk | found.on_disk,
            not_in_bucket=before.not_in_bucket | found.not_in_bucket,
            error=before.error or found.error,
            is_live=before.is_live and found.is_live,
        )
    if not (found.unlisted and needs_listing):
        return found
    prefixes = [*dict.fromkeys(found.unlisted)]
    if found.error and not found.on_disk:
        raise BucketError(
            f"{found.error} Nothing of it is in {settings.data_dir}, and no listing "
            "was saved earlier."
        )
    if found.error:
        names = [prefix or "the top level" for prefix in prefixes]
        raise BucketError(
            f"{found.error} No listing of {listed(names)} was saved earlier, so what "
            "is missing cannot be determined. mode='offline' returns what is on disk."
        )
    unknown = [
        prefix
        for prefix in filter(None, prefixes)
        if any(path.startswith(prefix) for path in found.on_disk)
    ]
    if unknown:
        warn(
            f"No listing of {listed(unknown)} is saved in {settings.data_dir}, so "
            "files that are missing there are left out unnoticed: 'all' and categories "
            "are what is on disk. Copy the hidden folder .laion_fmri too, without "
            "auth.json, or call once online."
        )
    return found


def report_versions(
    files: list[Record], inventory: Inventory, fetched: Set[str]
) -> None:
    """Complete records from files on disk, and warn of versions that differ.

    Parameters
    ----------
    files : list of dict
        Records of files that were selected.
    inventory : Inventory
        The bucket's versions.
    fetched : set of str
        Ids of files that were downloaded just now.
    """
    for rec in files:
        if rec["id"] in fetched:
            rec["outdated"] = False
        if rec["size"] is None:
            rec["size"] = size_on_disk(rec)
    ids = [rec["id"] for rec in files]
    if unknown := [path for path in ids if path in inventory.not_in_bucket]:
        warn(
            f"{counted(len(unknown), 'selected file')} on disk, but not in the "
            f"bucket's listing: {listed(unknown)}. What is there is used; move it out "
            "of the data directory if it is not of the dataset."
        )
    outdated = [rec for rec in files if rec["outdated"]]
    if outdated and inventory.settings.adds_new:
        _warn_of_outdated(outdated, inventory.objects)
    not_whole = [path for path in ids if path in inventory.not_whole - fetched]
    if not_whole and inventory.is_cut_off:
        warn(
            f"{counted(len(not_whole), 'file')} on disk of another size than in the "
            f"bucket's listing, which may be cut short: {listed(not_whole)}. The same "
            "call online downloads what is not whole again."
        )


def _warn_of_outdated(files: list[Record], objects: dict[str, Any]) -> None:
    def version(size: int | None, date: str | None) -> str:
        of_date = f" of {date[:10]}" if date else ""
        return f"{'unknown size' if size is None else f'{size:,} bytes'}{of_date}"

    changes: list[str] = []
    hints: dict[str, str] = {}
    for rec in files:
        path, (_, size, _, date) = rec["id"], objects[rec["id"]]
        old = version(rec["size"], rec["last_modified"])
        changes.append(f"{path} ({old}; now {version(size, date)})")
        if key := archived_key(path):
            text = f" The first version is archived: fetch_laion_fmri_ids({key!r})."
            hints.setdefault("archive", text)
        elif rec["image_type"] in ("trials", "other"):
            call = f"fetch_laion_fmri_ids({path!r}, mode='overwrite')"
            hints.setdefault("table", f" Of this table alone: {call}.")
    warn(
        f"The bucket has another version of {counted(len(files), 'file')} than is on "
        f"disk: {listed(changes)}. The version on disk is used; mode='overwrite' "
        f"downloads the new one.{''.join(hints.values())}"
    )


def size_on_disk(rec: Record) -> int | None:
    """Return the size in bytes of a record's file, None where it is not on disk."""
    try:
        return os.stat(rec["absolute_path"]).st_size
    except OSError:
        return None
