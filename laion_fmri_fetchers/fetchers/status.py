"""The state of settings, licence and disk; nobody is asked for anything."""

from __future__ import annotations

import os
from typing import Any

from laion_fmri_fetchers.access.account import access_status
from laion_fmri_fetchers.access.licence import is_accepted_ahead
from laion_fmri_fetchers.betas.store import describe_store
from laion_fmri_fetchers.cache.data_dir import get_data_dir, is_writable
from laion_fmri_fetchers.cache.files import files_on_disk, local_path
from laion_fmri_fetchers.cache.inventory import size_on_disk
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
    files, _ = files_on_disk(folder, [("", "")])
    recs = []
    for path, file in sorted(files.items()):
        size = size_on_disk({"absolute_path": local_path(folder, file)})
        recs.append(record_of(path, size or 0))
    state = ""
    if not os.path.isdir(folder):
        state = ", which does not exist yet"
    elif not is_writable(folder):
        state = ", which cannot be written"
    terms = "accepted" if os.path.exists(license_marker(folder)) else "not accepted yet"
    if terms != "accepted" and is_accepted_ahead():
        terms = "accepted by LAION_FMRI_LICENSE"
    access = access_status(folder)
    request = "not requested yet"
    if access["status"]:
        request = f"{access['status']}, {access['request_id']} from {access['source']}"
    show(f"Data directory   {folder}{state}")
    show(f"Bucket           {bucket_url()}")
    show(f"CC0 terms        {terms}")
    show(f"Stimulus access  {request}")
    show(f"On disk          {len(recs)} files, {_total(recs)}")
    show(f"Unfinished       {_unfinished(folder)}")

    _show_files(recs)
    stored: dict[str, list[dict[str, Any]]] = {}
    for session in describe_store(folder):
        stored.setdefault(session["subject"], []).append(session)
    if stored:
        show("\nvoxel store  sessions  voxels       size")
    for subject, sessions in stored.items():
        n_voxels = max(session["n_voxels"] for session in sessions)
        show(f"{subject:<11} {len(sessions):>9} {n_voxels:>7} {_total(sessions):>10}")


def _show_files(recs: list[dict[str, Any]]) -> None:
    """Show tables of files by folder and by subject."""
    trees: dict[str, list[dict[str, Any]]] = {}
    for rec in recs:
        tree = place_of(rec["id"])[0]
        name = {None: "top level", RAW: "raw data"}.get(tree, tree)
        trees.setdefault(str(name), []).append(rec)
    if trees:
        show(f"\n{'folder':<32} {'files':>6} {'size':>10}")
    for tree, of_tree in sorted(trees.items()):
        show(f"{tree:<32} {len(of_tree):>6} {_total(of_tree):>10}")

    subjects = sorted({rec["subject"] for rec in recs if rec["subject"]})
    if subjects:
        show("\nsubject  sessions with betas  ROIs  files       size")
    for subject in subjects:
        files_of = [rec for rec in recs if rec["subject"] == subject]
        n_betas = len({r["session"] for r in files_of if r["image_type"] == "betas"})
        n_rois = len({rec["roi"] for rec in files_of} - {None})
        show(
            f"{subject:<8} {n_betas:>19} {n_rois:>5} {len(files_of):>6} "
            f"{_total(files_of):>10}"
        )


def _total(files: list[dict[str, Any]]) -> str:
    return readable_size(sum(each["size"] for each in files))


def _unfinished(data_dir: str) -> str:
    """Return number, size and place of unfinished downloads."""
    folder, n_files, size = partial_dir(data_dir), 0, 0
    names = os.listdir(folder) if os.access(folder, os.R_OK | os.X_OK) else []
    for name in names:
        if not name.endswith(".part"):
            continue
        try:
            stat = os.stat(folder / name)
        except OSError:  # it was finished meanwhile
            continue
        # Blocks are written at their places, so the file may be sparse.
        blocks = getattr(stat, "st_blocks", None)  # not on Windows
        size += stat.st_size if blocks is None else min(512 * blocks, stat.st_size)
        n_files += 1
    if not n_files:
        return "nothing"
    number = counted(n_files, "download")
    return f"{number}, {readable_size(size)}, in {folder.relative_to(data_dir)}"
