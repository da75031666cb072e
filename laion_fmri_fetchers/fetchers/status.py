"""The state of settings, licence and disk; nobody is asked for anything."""

from __future__ import annotations

import contextlib
import os

import pandas as pd

from laion_fmri_fetchers.access.account import access_status
from laion_fmri_fetchers.access.licence import is_accepted_ahead
from laion_fmri_fetchers.betas.store import describe_store
from laion_fmri_fetchers.cache.data_dir import get_data_dir, is_writable
from laion_fmri_fetchers.cache.files import files_on_disk, local_path
from laion_fmri_fetchers.cache.inventory import size_on_disk
from laion_fmri_fetchers.cache.state import license_marker, partial_dir
from laion_fmri_fetchers.layout.keys import RECORD_FIELDS, place_of, record_of
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
    found, _ = files_on_disk(folder, [("", "")])
    names = {None: "top level", RAW: "raw data"}
    files = pd.DataFrame(
        [
            {
                **record_of(path),
                "folder": names.get(tree := place_of(path)[0], tree),
                "size": size_on_disk({"absolute_path": local_path(folder, file)}) or 0,
            }
            for path, file in found.items()
        ],
        columns=[*RECORD_FIELDS, "folder"],
    )
    show(f"Data directory   {folder}{state}")
    show(f"Bucket           {bucket_url()}")
    show(f"CC0 terms        {terms}")
    show(f"Stimulus access  {request}")
    show(f"On disk          {len(files)} files, {_total(files['size'])}")
    show(f"Unfinished       {_unfinished(folder)}")

    has_betas = files["image_type"] == "betas"
    files["betas"] = files["session"].where(has_betas)
    size = ("size", _total)
    trees = files.groupby("folder").agg(files=("id", "size"), size=size)
    subjects = files.groupby("subject").agg(
        **{"sessions with betas": ("betas", "nunique")},
        ROIs=("roi", "nunique"),
        files=("id", "size"),
        size=size,
    )
    stored = pd.DataFrame(
        describe_store(folder), columns=["subject", "session", "n_voxels", "size"]
    ).rename(columns={"subject": "voxel store"})
    stores = stored.groupby("voxel store").agg(
        sessions=("session", "size"), voxels=("n_voxels", "max"), size=size
    )
    for table in (trees, subjects, stores):
        if len(table):
            table.columns.name, table.index.name = table.index.name, None
            show(f"\n{table.to_string()}")


def _total(sizes: pd.Series) -> str:
    return readable_size(int(sizes.sum()))


def _unfinished(data_dir: str) -> str:
    """Return number, size and place of unfinished downloads."""
    folder, sizes = partial_dir(data_dir), []
    # Path.glob raises where this user may not look.
    for file in folder.glob("*.part") if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):  # it was finished meanwhile
            stat = file.stat()
            # Blocks are written at their places, so the file may be sparse.
            on_disk = 512 * getattr(stat, "st_blocks", stat.st_size)  # not on Windows
            sizes.append(min(on_disk, stat.st_size))
    if not sizes:
        return "nothing"
    number = counted(len(sizes), "download")
    return f"{number}, {readable_size(sum(sizes))}, in {folder.relative_to(data_dir)}"
