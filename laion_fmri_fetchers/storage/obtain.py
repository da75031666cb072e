"""The one way to get files that are missing: plan, say what will come, download.

plan ──▶ obtain ──▶ Outcome: what was downloaded, what failed and why
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from laion_fmri_fetchers.exceptions import (
    BucketError,
    DownloadError,
    HeldOutSessionError,
)
from laion_fmri_fetchers.layout.keys import is_held_out
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell
from laion_fmri_fetchers.transfer.bucket import bucket_url

from .known import Known, Record
from .settings import Call, fetch_records

_MUCH = 10**9
_LESS = (
    ". For less, narrow subjects, sessions, rois or a filter; a dry run lists the "
    "files."
)


class Planned(NamedTuple):
    """A file to download, and why."""

    record: Record
    reason: str


class Outcome(NamedTuple):
    """What came of downloading: ids of what is on disk now, and what failed."""

    fetched: frozenset[str] = frozenset()
    failed: tuple[Record, ...] = ()
    """Records, each with the ``reason`` and the HTTP ``status``."""

    def __add__(self, other: Outcome) -> Outcome:  # type: ignore[override]
        return Outcome(self.fetched | other.fetched, self.failed + other.failed)


def plan(
    files: Iterable[Record],
    known: Known,
    call: Call,
    *,
    again: Callable[[Record], bool] = lambda _: False,
    done: Container[str] = (),
) -> list[Planned]:
    """Return the files to download, each once, with the reason.

    Parameters
    ----------
    files : iterable of dict
        Records.
    known : Known
        What is on disk, and what the bucket has.
    call : Call
        In mode ``"overwrite"``, files on disk are downloaded again.
    again : callable, optional
        Whether a record's file is one to download again in that mode.
    done : container of str, optional
        Ids of files that this call has downloaded already, or tried to.
    """
    planned = {}
    for rec in files:
        path = rec["id"]
        if path in done or path in known.absent or path not in known.objects:
            continue
        if path not in known.on_disk:
            planned[path] = Planned(rec, "missing")
        elif call.mode == "overwrite" and again(rec):
            planned[path] = Planned(rec, "overwrite")
    return list(planned.values())


def obtain(
    planned: list[Planned],
    known: Known,
    call: Call,
    *,
    accept: Callable[[str], None] | None = None,
    optional: Container[str] = (),
    quiet: bool = False,
) -> Outcome:
    """Download planned files.

    Parameters
    ----------
    planned : list of Planned
        What to download.
    known : Known
        Whether the bucket answered.
    call : Call
        How to work.
    accept : callable, optional
        Called with the data directory before the first byte: the licence.
    optional : container of str, optional
        Ids of files without which the call goes on.
    quiet : bool, default=False
        Whether small files are downloaded without a word.

    Returns
    -------
    Outcome

    Raises
    ------
    BucketError
        If the bucket did not answer.
    HeldOutSessionError
        If the bucket denies a file of a held-out session.
    DownloadError
        If files failed otherwise; none of these errors with ``allow_missing``.
    """
    if not planned:
        return Outcome()
    files = {item.record["id"]: item.record for item in planned}
    needed = [path for path in files if path not in optional]
    if known.error and not needed:
        return Outcome()
    if known.error:
        raise BucketError(
            f"{known.error} Missing in {call.data_dir}: {listed(needed)}. "
            "mode='offline' returns what is on disk."
        )
    if not quiet:
        size = planned_size(planned)
        tell(
            f"Downloading {counted(len(files), 'file')}, {readable_size(size)}, from "
            f"{bucket_url()} to {call.data_dir}{_LESS if size >= _MUCH else ''}",
            call.verbose,
        )
    if accept:
        accept(call.data_dir)
    verbose = 0 if quiet and call.verbose < 2 else call.verbose
    failures = fetch_records(files.values(), call, verbose)
    failed = tuple({**files[path], **why} for path, why in failures.items())
    if not call.allow_missing:
        _raise_if_any([rec for rec in failed if rec["id"] not in optional], len(files))
    return Outcome(frozenset(set(files) - set(failures)), failed)


def planned_size(planned: Iterable[Planned]) -> int:
    """Return the bytes of planned files."""
    return sum(item.record["size"] or 0 for item in planned)


def _raise_if_any(failed: list[Record], n_files: int) -> None:
    if not failed:
        return
    held_out = dict.fromkeys(
        f"{rec['session']} of {rec['subject']}"
        for rec in sorted(failed, key=lambda rec: rec["id"])
        if rec["status"] == 403 and is_held_out(rec)
    )
    if held_out:
        raise HeldOutSessionError(
            f"{listed(list(held_out))} is held out for evaluation: the bucket denies "
            "it (status 403). Leave it out of sessions."
        )
    reasons = [f"  {rec['id']}: {rec['reason']}" for rec in failed]
    raise DownloadError(
        f"{len(failed)} of {n_files} files could not be downloaded. Files that arrived "
        "stay, and the same call goes on from there; allow_missing=True leaves the "
        "others out.\n" + "\n".join(reasons),
        failed=failed,
    )
