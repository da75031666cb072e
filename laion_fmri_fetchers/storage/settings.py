"""How a call of a fetcher works: its mode, its directory, its way to the bucket."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.query.arguments import (
    check_mode,
    check_positive,
    check_verbose,
)
from laion_fmri_fetchers.transfer.bucket import object_url

from .data_dir import get_data_dir, is_writable
from .notes import note_fetched
from .state import partial_dir

_WIDE = 70


class Result(Bunch):
    """A Bunch that is shown as a line a key, however much it holds.

    Examples
    --------
    >>> Result(images=["a.nii.gz", "b.nii.gz"], data_dir="/data")
    images    list of 2
    data_dir  '/data'
    """

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{k:<{width}}  {_shortly(v)}" for k, v in self.items())


def _shortly(value: Any) -> str:
    """Return a value as text of a line."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of {' x '.join(map(str, value.shape))}"
    if isinstance(value, (list, dict)):
        names = f": {listed(list(map(str, value)))}" if isinstance(value, dict) else ""
        return f"{type(value).__name__} of {len(value)}{names if value else ''}"
    if isinstance(value, str) and "\n" in value:
        return f"text of {value.count(chr(10))} lines"
    text = repr(value)
    return text if len(text) <= _WIDE else f"{text[:_WIDE]}..."


class Call(NamedTuple):
    """How a call works, as against what it selects."""

    mode: str
    data_dir: str
    allow_missing: bool
    n_connections: int
    timeout: float
    verbose: int
    dry_run: bool = False
    is_read_only: bool = False

    @property
    def how_to_fetch(self) -> str:
        """What to do about a file that is not on disk, to end a message with."""
        if self.is_read_only:
            return "That directory cannot be written; name another data_dir."
        if os.environ.get("LAION_FMRI_OFFLINE"):
            return "Download it first: mode='download_new', online."
        return "Download it first, with mode='download_new'."


def prepare(
    mode: str | None,
    data_dir: str | os.PathLike | None,
    *,
    allow_missing: bool,
    n_connections: int,
    timeout: float,
    verbose: int,
    dry_run: bool = False,
) -> Call:
    """Check how to work, and whether the data directory takes files.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid.

    Warns
    -----
    UserWarning
        If the directory cannot be written, so that the call works offline.
    """
    mode = check_mode(mode)
    check_positive(n_connections, "n_connections", whole=True)
    check_positive(timeout, "timeout")
    folder = get_data_dir(data_dir)
    read_only = mode != "offline" and not is_writable(folder)
    if read_only and not os.path.isdir(folder):
        raise InvalidQueryError(
            f"The data directory {folder} cannot be made: you may not write there. "
            "Name another data_dir."
        )
    if read_only:
        warn(
            f"The data directory {folder} cannot be written: working offline with what "
            "is in it. Name another data_dir to download; mode='offline' does without "
            "this warning."
        )
        mode = "offline"
    return Call(
        mode,
        folder,
        bool(allow_missing),
        int(n_connections),
        float(timeout),
        check_verbose(verbose),
        bool(dry_run),
        is_read_only=read_only,
    )


def fetch_records(
    records: Iterable[dict[str, Any]], call: Call, verbose: int | None = None
) -> dict[str, dict[str, Any]]:
    """Fetch files of the bucket, and note which version came.

    Parameters
    ----------
    records : iterable of dict
        Records with their paths.
    call : Call
        How to work; with the mode ``"overwrite"``, files that are there are replaced.
    verbose : int, optional
        Instead of that of the call.

    Returns
    -------
    dict
        id -> failure (``id``, ``reason``, ``status``) of the files that failed.
    """
    from laion_fmri_fetchers.transfer.transfer import Download, download_files

    by_id = {rec["id"]: rec for rec in records}
    changed: dict[str, tuple[int | None, str | None, str | None]] = {}
    failures = download_files(
        [
            Download(
                one,
                object_url(rec["key"]),
                Path(rec["absolute_path"]),
                rec["size"],
                rec["etag"],
            )
            for one, rec in by_id.items()
        ],
        partial_dir=partial_dir(call.data_dir),
        overwrite=call.mode == "overwrite",
        n_connections=call.n_connections,
        timeout=call.timeout,
        verbose=call.verbose if verbose is None else verbose,
        changed=changed,
    )
    failed = {failure["id"]: failure for failure in failures}
    came = [rec for one, rec in by_id.items() if one not in failed]
    for one, (size, etag, last_modified) in changed.items():
        by_id[one].update(size=size, etag=etag, last_modified=last_modified)
    if came:
        note_fetched(call.data_dir, came)
    return failed
