"""The content of the dataset, without downloading any of it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence

from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.files import local_path
from laion_fmri_fetchers.cache.listings import Catalog, Wanted, read_catalog
from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout import trees
from laion_fmri_fetchers.layout.keys import Record, is_of_trials, record_of
from laion_fmri_fetchers.layout.names import subjects_among
from laion_fmri_fetchers.messages import listed, readable_size, show, warn
from laion_fmri_fetchers.query.arguments import (
    check_mode,
    check_timeout,
    only_its_arguments,
)
from laion_fmri_fetchers.query.selection import subject_names
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.remote.bucket import Object, bucket_url, key_of

_DESCRIBED = (trees.GLM, trees.ROIS, trees.ANATOMICAL)


@only_its_arguments
@documented
def get_subjects(
    *, data_dir: str | os.PathLike | None = None, timeout: float = 30.0
) -> list[str]:
    """Return the subjects that the bucket holds.

    Parameters
    ----------
    %(data_dir)s
    %(timeout)s

    Returns
    -------
    list of str
        Such as ``["sub-01", "sub-03"]``, sorted.

    Raises
    ------
    BucketError
        If the bucket cannot be listed and no listing was saved.

    Examples
    --------
    Needs the bucket or a saved listing::

        >>> get_subjects()  # doctest: +SKIP
        ['sub-01', 'sub-03', 'sub-05', 'sub-06', 'sub-07']
    """
    subjects, _ = _subjects(get_data_dir(data_dir), timeout)
    return subjects


@only_its_arguments
@documented
def get_rois(
    subjects: str | int | Sequence[str | int] | None = None,
    category: str | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
    timeout: float = 30.0,
) -> list[str]:
    """Return the names of the ROIs that the bucket holds.

    Parameters
    ----------
    subjects : str, int, or several, optional
        Such as ``"sub-01"``; of several, the ROIs that any of them has. None or
        ``"all"``: those of any subject.
    category : str, optional
        Such as ``"face"``; None: those of any category.
    %(data_dir)s
    %(timeout)s

    Returns
    -------
    list of str
        ROI names without hyphens, sorted.

    Raises
    ------
    InvalidQueryError
        If there is no such subject or category.
    BucketError
        If the bucket cannot be listed and no listing was saved.

    Examples
    --------
    Needs the bucket or a saved listing::

        >>> get_rois("sub-01", "place")  # doctest: +SKIP
        ['MPA', 'OPA', 'PPA']
    """
    folder = get_data_dir(data_dir)
    named = None if subjects is None else subject_names(subjects)
    existing, mode = _subjects(folder, timeout)
    wanted = [
        w for name in named or existing for w in trees.listings_of(name, [trees.ROIS])
    ]
    masks = _records(_look(wanted, folder, timeout, mode))
    without = sorted({*(named or ())} - {rec["subject"] for rec in masks if rec["roi"]})
    if without:
        raise InvalidQueryError(
            f"Unknown subject {without[0]!r}, or one without ROIs; available: "
            f"{listed(existing)}."
        )
    rois = _rois_by_category(masks)
    if category is not None and category not in rois:
        hint = did_you_mean(category, rois)
        raise InvalidQueryError(f"There is no ROI category {category!r}; {hint}")
    return sorted(
        set().union(*(rois.values() if category is None else [rois[category]]))
    )


@only_its_arguments
@documented
def describe(
    *, data_dir: str | os.PathLike | None = None, timeout: float = 30.0
) -> None:
    """Print what the dataset holds: sessions and ROIs of each subject.

    Parameters
    ----------
    %(data_dir)s
    %(timeout)s

    Raises
    ------
    BucketError
        If the bucket cannot be listed and no listing was saved.

    Examples
    --------
    Needs the bucket or a saved listing::

        >>> describe()  # doctest: +SKIP
    """
    folder = get_data_dir(data_dir)
    show(f"LAION-fMRI in {bucket_url()}")
    exists = os.path.isdir(folder)
    show(f"Data directory: {folder}{'' if exists else ', which does not exist yet'}\n")
    subjects, mode = _subjects(folder, timeout)
    wanted = [w for subject in subjects for w in trees.listings_of(subject, _DESCRIBED)]
    found = _look(wanted, folder, timeout, mode)
    recs = _records(found)
    show("subject  sessions  held out    betas      ROIs  on disk")
    for subject in subjects:
        own = [rec for rec in recs if rec["subject"] == subject]
        sessions = {rec["session"] for rec in own if is_of_trials(rec)}
        held_out = sessions & trees.HELD_OUT
        betas = [rec for rec in own if rec["image_type"] == "betas"]
        size = sum(rec["size"] for rec in betas if rec["session"] not in trees.HELD_OUT)
        n_rois = len({rec["roi"] for rec in own} - {None})
        n_disk = sum(rec["id"] in found.on_disk for rec in own)
        show(
            f"{subject:<8} {len(sessions - held_out):>8} {len(held_out):>9}  "
            f"{readable_size(size):>9} {n_rois:>8}  {n_disk} of {len(own)} files"
        )
    show("\nROIs by category")
    for category, names in sorted(_rois_by_category(recs).items()):
        line = f"  {category:<12} {' '.join(sorted(names))}"
        show(textwrap.fill(line, 79, subsequent_indent=" " * 15))


@only_its_arguments
@documented
def inspect_bucket(
    prefix: str = "",
    *,
    data_dir: str | os.PathLike | None = None,
    timeout: float = 30.0,
) -> None:
    """Print the folders and files of one level of the bucket.

    Parameters
    ----------
    prefix : str, default=""
        A folder, such as ``"derivatives/rois/sub-01/"``, or its address.
    %(data_dir)s
    %(timeout)s

    Raises
    ------
    InvalidQueryError
        If no folder has that name.
    BucketError
        If the bucket cannot be listed and no listing was saved.

    Examples
    --------
    Needs the bucket or a saved listing::

        >>> inspect_bucket("derivatives/")  # doctest: +SKIP
    """
    prefix = key_of(prefix)
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    found = _look([trees.listing_of(prefix)], get_data_dir(data_dir), timeout)
    shown: dict[str, str] = {}  # the size of files, in the order of their names
    sizes = {each.key: readable_size(each.size) for each in found.objects.values()}
    for key in sorted({*found.folders, *sizes}):
        name, slash, _ = key.removeprefix(prefix).partition("/")
        if key.startswith(prefix) and key != prefix:
            shown[name + slash] = "folder" if slash else sizes[key]
    if not shown:
        raise InvalidQueryError(
            f"There is nothing in {prefix!r} of {bucket_url()}; begin with "
            "inspect_bucket()."
        )
    show(f"{bucket_url()}/{prefix}")
    for name in sorted(shown, key=lambda name: not name.endswith("/")):
        show(f"  {shown[name]:>10}  {name}")


def _rois_by_category(records: Iterable[Record]) -> dict[str, set[str]]:
    rois: dict[str, set[str]] = {}
    for rec in records:
        if rec["roi"]:
            rois.setdefault(rec["roi_category"], set()).add(rec["roi"])
    return rois


def _records(found: Catalog) -> list[Record]:
    return [record_of(*each) for each in found.objects.values()]


def _subjects(data_dir: str, timeout: float) -> tuple[list[str], str | None]:
    """Return the subjects that any tree has, and the mode in which to look further.

    A bucket that did not answer is not asked, and waited for, again.
    """
    levels = [(tree, "/") for tree in (*trees.TREES, trees.DERIVATIVES)]
    found = _look(levels, data_dir, timeout)
    mode = "offline" if found.error else None
    others = [(tree, "/") for tree in trees.unknown_trees(found.folders)]
    more = _look(others, data_dir, timeout, mode)
    return [*subjects_among(found.folders | more.folders)], mode


def _look(
    wanted: list[Wanted], data_dir: str, timeout: float, mode: str | None = None
) -> Catalog:
    """Look at the bucket; at saved listings and the disk where it does not answer."""
    found = read_catalog(
        wanted, data_dir, mode=check_mode(mode), timeout=check_timeout(timeout)
    )
    if found.error:
        prefixes = tuple(prefix for prefix, _ in wanted)
        below = {f for f in found.folders if f.startswith(prefixes)} - {*prefixes}
        if found.unlisted and not (found.on_disk or below):
            raise BucketError(
                f"{found.error} Nothing of it is in {data_dir}, and no listing was "
                "saved earlier."
            )
        shown = "what is on disk" if found.unlisted else "a listing saved earlier"
        warn(f"{found.error} Showing {shown}.")
    if found.unlisted:
        on_disk = {
            path: Object(file, os.path.getsize(local_path(data_dir, file)))
            for path, file in found.on_disk.items()
        }
        found = found._replace(objects=on_disk | found.objects)
    return found
