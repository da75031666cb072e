"""The state of settings, licence and disk; nobody is asked for anything."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.access.account import access_status
from laion_fmri_fetchers.access.licence import is_accepted_ahead
from laion_fmri_fetchers.betas.store import describe_store
from laion_fmri_fetchers.cache.data_dir import get_data_dir, is_writable
from laion_fmri_fetchers.cache.files import files_on_disk, local_path
from laion_fmri_fetchers.cache.state import license_marker, partial_dir
from laion_fmri_fetchers.layout.keys import place_of, record_of
from laion_fmri_fetchers.layout.trees import RAW
from laion_fmri_fetchers.messages import counted, readable_size, show
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.remote.bucket import bucket_url


@documented
def status(*, data_dir: str | os.PathLike | None = None) -> None:
    """Print what is configured, accepted and cached; no socket is opened.

    Parameters
    ----------
    %(data_dir)s

    Examples
    --------
    >>> import tempfile
    >>> status(data_dir=tempfile.mkdtemp())  # doctest: +ELLIPSIS
    Data directory   /...
    """
    folder = get_data_dir(data_dir)
    access = access_status(folder)
    accepted = os.path.exists(license_marker(folder))
    files, _ = files_on_disk(folder, [("", "")])
    rows = {
        "Data directory": f"{folder}{_state(folder)}",
        "Bucket": bucket_url(),
        "CC0 terms": _terms(accepted),
        "Stimulus access": (
            f"{access['status']}, {access['request_id']} from {access['source']}"
            if access["status"]
            else "not requested yet"
        ),
        "On disk": _amount(folder, files.values()),
        "Unfinished": _unfinished(folder),
    }
    for name, value in rows.items():
        show(f"{name:<16} {value}")
    sizes = {path: _size(folder, file) or 0 for path, file in sorted(files.items())}
    _print_trees(sizes)
    _print_subjects([record_of(path, size) for path, size in sizes.items()])
    _print_store(folder)


def _state(folder: str) -> str:
    """Return a note on a data directory."""
    if not os.path.isdir(folder):
        return ", which does not exist yet"
    return "" if is_writable(folder) else ", which cannot be written"


def _terms(accepted: bool) -> str:
    if not accepted and is_accepted_ahead():
        return "accepted by LAION_FMRI_LICENSE"
    return "accepted" if accepted else "not accepted yet"


def _print_trees(sizes: dict[str, int]) -> None:
    trees: dict[str, list[int]] = {}
    for path, size in sizes.items():
        tree = place_of(path)[0]
        name = {None: "top level", RAW: "raw data"}.get(tree, tree)
        trees.setdefault(str(name), []).append(size)
    if trees:
        show(f"\n{'folder':<32} {'files':>6} {'size':>10}")
    for tree, numbers in sorted(trees.items()):
        show(f"{tree:<32} {len(numbers):>6} {readable_size(sum(numbers)):>10}")


def _print_subjects(recs: list[dict[str, Any]]) -> None:
    subjects = sorted({rec["subject"] for rec in recs if rec["subject"]})
    if subjects:
        show("\nsubject  sessions with betas  ROIs  files       size")
    for subject in subjects:
        own = [rec for rec in recs if rec["subject"] == subject]
        n_betas = len({r["session"] for r in own if r["image_type"] == "betas"})
        n_rois = len({rec["roi"] for rec in own} - {None})
        size = sum(rec["size"] for rec in own)
        show(
            f"{subject:<8} {n_betas:>19} {n_rois:>5} {len(own):>6} "
            f"{readable_size(size):>10}"
        )


def _print_store(data_dir: str) -> None:
    stored: dict[str, list[dict[str, Any]]] = {}
    for session in describe_store(data_dir):
        stored.setdefault(session["subject"], []).append(session)
    if stored:
        show("\nvoxel store  sessions  voxels       size")
    for subject, sessions in stored.items():
        n_voxels = max(session["n_voxels"] for session in sessions)
        size = sum(session["size"] for session in sessions)
        show(
            f"{subject:<11} {len(sessions):>9} {n_voxels:>7} {readable_size(size):>10}"
        )


def _amount(data_dir: str, files: Collection[str]) -> str:
    size = sum(_size(data_dir, one) or 0 for one in files)
    return f"{len(files)} files, {readable_size(size)}"


def _unfinished(data_dir: str) -> str:
    """Return number, size and place of unfinished downloads."""
    folder = partial_dir(data_dir)
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    parts = [folder / name for name in names if name.endswith(".part")]
    if not parts:
        return "nothing"
    size = sum(map(_allocated, parts))
    number = counted(len(parts), "download")
    return f"{number}, {readable_size(size)}, in {folder.relative_to(data_dir)}"


def _allocated(file: Path) -> int:
    """Return the bytes that an unfinished file takes; it may be sparse, or gone."""
    try:
        stat = file.stat()
    except OSError:
        return 0
    blocks = getattr(stat, "st_blocks", None)  # not on Windows
    return stat.st_size if blocks is None else min(512 * blocks, stat.st_size)


def _size(data_dir: str, one: str) -> int | None:
    try:
        return os.stat(local_path(data_dir, one)).st_size
    except OSError:
        return None
