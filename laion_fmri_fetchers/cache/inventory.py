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
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.layout.keys import Record, record_of, record_of_path
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
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.remote.bucket import iso_date, timestamp

from .files import hidden_on_disk, local_path
from .listings import Catalog, Wanted, in_order, read_catalog
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


@documented
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
    %(wanted)s
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
    asked = dict.fromkeys(wanted)  # in order, as messages name them
    catalog = _read([*asked], settings, before=top, needs_listing=needs_listing)
    if top:
        asked["", "/"] = None
        catalog = catalog._replace(
            objects={**top.objects, **catalog.objects},
            on_disk=top.on_disk | catalog.on_disk,
            not_in_bucket=top.not_in_bucket | catalog.not_in_bucket,
            error=top.error or catalog.error,
            is_live=top.is_live and catalog.is_live,
        )
    folder = settings.data_dir
    objects = {
        path: each
        for path, each in catalog.objects.items()
        if listing_of(path) in asked
    }
    files = {path: local_path(folder, file) for path, file in catalog.on_disk.items()}
    files |= {p: local_path(folder, p) for p in hidden_on_disk(folder, objects)}
    stand_ins = {p: f for p, f in derived.items() if listing_of(p) in asked}
    on_disk = {**stand_ins, **files}
    ids = objects.keys() | (set() if settings.overwrites else on_disk.keys())
    records, not_whole = [], set()
    for path in ids:
        file = catalog.on_disk.get(path, path)
        if path in objects:
            rec = record_of(*objects[path])
        else:
            rec = record_of_path(path, file)
        rec["relative_path"] = file
        rec["absolute_path"] = local_path(folder, file)
        stat = None
        if path in objects and path in on_disk:
            try:
                stat = os.stat(on_disk[path])
            except FileNotFoundError:  # another process removes originals
                del on_disk[path]
        if stat:
            date = timestamp(rec["last_modified"])
            rec["outdated"] = date is not None and date - stat.st_mtime > SAME_TIME
            if rec["outdated"] and not settings.overwrites:
                size = stat.st_size if path in files else None
                rec |= {"size": size, "etag": None}
                rec["last_modified"] = iso_date(stat.st_mtime)
            elif path in files and stat.st_size != rec["size"]:
                not_whole.add(path)
        records.append(rec)
    return Inventory(
        settings,
        sorted(records, key=in_order),
        frozenset(on_disk),
        frozenset(() if catalog.is_live or catalog.error else ids - on_disk.keys()),
        frozenset(not_whole),
        catalog.not_in_bucket,
        catalog.objects,
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
    levels: list[Wanted] = [(tree, "/") for tree in TREES]
    top = _read([*levels, (DERIVATIVES, "/")], settings)
    folders = set(top.folders)
    others: list[Wanted] = [(tree, "/") for tree in unknown_trees(folders)]
    if others:
        folders |= _read(others, settings, before=top).folders
    return subjects_among(folders), top


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

    A bucket that did not answer ``before`` is not asked, and waited for, again.
    """
    is_down = before is not None and before.error is not None
    found = read_catalog(
        wanted,
        settings.data_dir,
        mode="offline" if is_down else settings.mode,
        n_connections=settings.n_connections,
        timeout=settings.timeout,
        verbose=settings.verbose,
    )
    if needs_listing and settings.mode == "offline":
        _warn_of_unlisted(found, settings.data_dir)
    if not (found.error and found.unlisted and needs_listing):
        return found
    if not found.on_disk:
        raise BucketError(
            f"{found.error} Nothing of it is in {settings.data_dir}, and no listing "
            "was saved earlier."
        )
    lacking = [prefix or "the top level" for prefix in found.unlisted]
    raise BucketError(
        f"{found.error} No listing of {listed(lacking)} was saved earlier, so what "
        "is missing cannot be determined. mode='offline' returns what is on disk."
    )


def _warn_of_unlisted(found: Catalog, data_dir: str) -> None:
    """Warn, offline, of files of which it is not known whether they are all."""
    unlisted = [
        prefix
        for prefix in dict.fromkeys(filter(None, found.unlisted))
        if any(path.startswith(prefix) for path in found.on_disk)
    ]
    if unlisted:
        warn(
            f"No listing of {listed(unlisted)} is saved in {data_dir}, so files that "
            "are missing there are left out unnoticed: 'all' and categories are what "
            "is on disk. Copy the hidden folder .laion_fmri too, without auth.json, or "
            "call once online."
        )


def report_versions(
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
    outdated, not_whole, unknown = [], [], []
    for rec in files:
        if rec["id"] in fetched:
            rec["outdated"] = False
        elif rec["id"] in inventory.not_whole:
            not_whole.append(rec["id"])
        if rec["size"] is None:
            rec["size"] = size_on_disk(rec)
        if rec["outdated"]:
            outdated.append(rec)
        if rec["id"] in inventory.not_in_bucket:
            unknown.append(rec["id"])
    if unknown:
        warn(
            f"{counted(len(unknown), 'selected file')} on disk, but not in the "
            f"bucket's listing: {listed(unknown)}. What is there is used; move it out "
            "of the data directory if it is not of the dataset."
        )
    if outdated and inventory.settings.adds_new:
        _warn_of_outdated(outdated, inventory.objects)
    if not_whole and inventory.is_cut_off:
        warn(
            f"{counted(len(not_whole), 'file')} on disk of another size than in the "
            f"bucket's listing, which may be cut short: {listed(not_whole)}. The same "
            "call online downloads what is not whole again."
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
    size = "unknown size" if rec["size"] is None else f"{rec['size']:,} bytes"
    date = f" of {rec['last_modified'][:10]}" if rec["last_modified"] else ""
    return f"{size}{date}"


def size_on_disk(rec: Record) -> int | None:
    """Return the size in bytes of a record's file, None where it is not on disk."""
    try:
        return os.stat(rec["absolute_path"]).st_size
    except OSError:
        return None
