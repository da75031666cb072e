"""Files before anything is downloaded: listings, the disk, earlier versions.

Gathered once, and not changed afterwards::

    find_subjects ─┐
    trees_of ──────┴─▶ take_inventory ─▶ look (bucket or saved listings, disk)
                          └────────────▶ Inventory: a record of each file

The mode is decided in `settings`, and asked where the bucket is listed, in `catalog`.
After that it counts what is known: offline, files that a saved listing has and the disk
has not are in ``Inventory.absent``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, NoReturn

from laion_fmri_fetchers.exceptions import (
    BucketError,
    InvalidQueryError,
)
from laion_fmri_fetchers.layout.keys import Record, record_of, record_of_path
from laion_fmri_fetchers.layout.names import subjects_among
from laion_fmri_fetchers.layout.trees import (
    ANATOMICAL,
    BULK,
    DERIVATIVES,
    FREESURFER,
    FUNCTIONAL_GRID,
    GLM,
    IMAGE_TYPES,
    MADE_HERE,
    ROIS,
    TREES,
    listings_of,
    unknown_trees,
)
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.filters import ResultFilter, admits
from laion_fmri_fetchers.query.selection import Selection

from .catalog import Catalog, Wanted, in_order, look
from .files import files_on_disk, hidden_on_disk, local_path
from .made_here import is_leftover, resampled_originals
from .notes import Note, read_notes
from .settings import Settings

SUBJECT_TREES = (GLM, ROIS, ANATOMICAL)
"""Trees of which every Bunch reports something: sessions, ROIs, brain masks."""

_SAME_TIME = timedelta(seconds=2)
"""Some file systems keep times of change in steps of two seconds."""

_UNHEARD_OF = "a type that no file has"


class Inventory(NamedTuple):
    """Some files, in the bucket and on disk; nothing of it changes afterwards."""

    settings: Settings

    records: list[Record]
    """Of all files, by subject and session; those that changed in the bucket since they
    were downloaded describe the version on disk, but for the mode ``"overwrite"``."""
    on_disk: frozenset[str]
    """Ids of files on disk, or of which a resampled image is."""
    absent: frozenset[str]
    """Ids of files that are unavailable: offline, and not on disk."""
    not_in_bucket: frozenset[str]
    """Ids of files on disk that the listing of their folder does not have."""
    objects: dict[str, Any]
    """id -> object listed by the bucket."""
    error: BucketError | None
    """Why the bucket, though asked, did not answer."""
    is_cut_off: bool
    """Whether nothing can be downloaded: offline, or without an answer."""

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
    resolution: float | None = None,
    interpolation: str = "continuous",
    needs_listing: bool = True,
) -> Inventory:
    """Look at the bucket, or at saved listings, and at the disk.

    Parameters
    ----------
    wanted : iterable of (prefix, delimiter)
        What to list, see `catalog.look`.
    settings : Settings
        How to work.
    top : Catalog, optional
        What was found at the top of the bucket, and whether it answered.
    resolution : float, optional
        In mm; originals of which an image of this resolution is on disk count as on
        disk.
    interpolation : str, default="continuous"
        With which these images must have been made.
    needs_listing : bool, default=True
        Whether the selection depends on what the bucket lists; named files may all be
        on disk.

    Raises
    ------
    BucketError
        If the bucket does not answer and no listing was saved.
    """
    wanted = list(dict.fromkeys(wanted))
    catalog = _look(wanted, settings, before=top, needs_listing=needs_listing)
    if top:
        catalog = catalog._replace(
            objects={**top.objects, **catalog.objects},
            on_disk=top.on_disk | catalog.on_disk,
            not_in_bucket=top.not_in_bucket | catalog.not_in_bucket,
            error=top.error or catalog.error,
            is_live=top.is_live and catalog.is_live,
        )
        wanted.append(("", "/"))
    notes = read_notes(settings.data_dir)
    on_disk = {
        path
        for path, file in catalog.on_disk.items()
        if "_res-" not in path or not _is_leftover(path, file, notes, settings)
    }
    prefixes = tuple(prefix for prefix, delimiter in wanted if not delimiter)
    levels = {prefix for prefix, delimiter in wanted if delimiter}

    def is_wanted(path: str) -> bool:
        return path.startswith(prefixes) or _folder(path) in levels

    if resolution is not None:
        made, _ = files_on_disk(settings.data_dir, [(MADE_HERE, "")])
        on_disk |= resampled_originals(
            settings.data_dir, {*made}, resolution, interpolation, is_wanted
        )
    # Saved listings may hold more than was asked for; the scan of the disk does not.
    ids = set(filter(is_wanted, catalog.objects))
    on_disk |= hidden_on_disk(settings.data_dir, ids - on_disk)
    if not settings.overwrites:
        ids |= on_disk
    files = []
    for path in ids:
        in_bucket = catalog.objects.get(path)
        file = catalog.on_disk.get(path, path)
        rec = record_of(*in_bucket) if in_bucket else record_of_path(path, file)
        rec["relative_path"] = file
        rec["absolute_path"] = local_path(settings.data_dir, file)
        if path in on_disk and in_bucket:
            is_there = path in catalog.on_disk
            was = _version_on_disk(rec, notes.get(path), is_there)
            if was is not None:
                rec["outdated"] = was.is_older_than(rec["last_modified"])
                if not settings.overwrites:
                    rec |= {"size": was.size, "etag": was.etag}
                    rec["last_modified"] = was.last_modified
        files.append(rec)
    return Inventory(
        settings,
        sorted(files, key=in_order),
        frozenset(on_disk),
        frozenset() if catalog.is_live or catalog.error else frozenset(ids - on_disk),
        catalog.not_in_bucket,
        catalog.objects,
        catalog.error,
        not catalog.is_live,
    )


def take_inventory_of_subjects(
    selection: Selection, settings: Settings, **resampled: Any
) -> tuple[list[str], Inventory]:
    """Return the subjects asked for, and an inventory of their files.

    ``resampled`` are resolution and interpolation, see `take_inventory`.
    """
    subjects, top = selection.subjects, None
    if subjects is None:
        subjects, top = find_subjects(settings)
    wanted: list[Wanted] = [] if top else [("", "/")]
    trees = trees_of(selection.image_filter, settings)
    for subject in subjects:
        wanted += listings_of(subject, trees, selection.sessions)
    return sorted(subjects), take_inventory(wanted, settings, top=top, **resampled)


def find_subjects(settings: Settings) -> tuple[tuple[str, ...], Catalog]:
    """Return the subjects that any tree has, and the catalog of the top level."""
    levels: list[Wanted] = [(tree, "/") for tree in TREES]
    top = _look([*levels, (DERIVATIVES, "/")], settings)
    folders = set(top.folders)
    others: list[Wanted] = [(tree, "/") for tree in unknown_trees(folders)]
    if others:
        folders |= _look(others, settings, before=top).folders
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
        found = _look([(DERIVATIVES, "/")], settings)
        trees |= dict.fromkeys(unknown_trees(found.folders))
    return list(trees)


def _look(
    wanted: list[Wanted],
    settings: Settings,
    *,
    before: Catalog | None = None,
    needs_listing: bool = True,
) -> Catalog:
    """Look at the bucket; raise where neither it nor a saved listing answers.

    A bucket that did not answer ``before`` is not asked, and waited for, again.
    """
    is_down = before is not None and before.error is not None
    found = look(
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


def _folder(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder + slash


def _is_leftover(
    path: str, file: str, notes: dict[str, Note], settings: Settings
) -> bool:
    """Tell whether a file on disk was resampled by an earlier version of us."""
    if f"_res-{FUNCTIONAL_GRID}_" in path:
        return False
    if path in notes:
        return False
    return is_leftover(local_path(settings.data_dir, file), record_of(path))


def _version_on_disk(rec: Record, note: Note | None, is_there: bool) -> Note | None:
    """Return the version of a file on disk where it is not the one of the bucket.

    Of a file that other tools copied, nothing but its time is known, and a table or
    mask that was replaced often has the size of the one before.
    """
    if note and note.is_removed and is_there:
        note = None  # it was brought back, by other means
    if note:
        return note if note.differs_from(rec["size"], rec["etag"]) else None
    try:
        stat = os.stat(rec["absolute_path"])
        changed = datetime.fromtimestamp(stat.st_mtime, timezone.utc)
        listed_at = datetime.fromisoformat(rec["last_modified"].replace("Z", "+00:00"))
        is_older = listed_at - changed > _SAME_TIME
    except (OSError, OverflowError, AttributeError, TypeError, ValueError):
        return None
    time = changed.isoformat()
    return Note(rec["key"], stat.st_size, None, time) if is_older else None


def size_on_disk(rec: Record) -> int | None:
    """Return the size in bytes of a record's file, None where it is not on disk."""
    try:
        return os.stat(rec["absolute_path"]).st_size
    except OSError:
        return None
