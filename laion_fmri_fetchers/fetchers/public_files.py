"""Public files of the folder ``stimuli/``: known, downloaded, compared.

know_stimuli ─▶ fetch_public ─▶ records of the files on disk, and what failed
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from laion_fmri_fetchers.exceptions import BucketError, DownloadError, NotCachedError
from laion_fmri_fetchers.layout.trees import STIMULI
from laion_fmri_fetchers.messages import listed, warn
from laion_fmri_fetchers.storage.known import Known, Record, know
from laion_fmri_fetchers.storage.obtain import obtain, plan
from laion_fmri_fetchers.storage.settings import Call
from laion_fmri_fetchers.storage.versions import compare_versions


def know_stimuli(call: Call) -> Known:
    """Return what is known of the folder ``stimuli/``, in the bucket and on disk."""
    return know([(STIMULI, "/")], call, needs_listing=False)


def fetch_public(
    ids: Iterable[str], known: Known, call: Call, *, required: bool = False
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Download public files that are not on disk.

    Parameters
    ----------
    ids : iterable of str
        The files.
    known : Known
        Of `know_stimuli`.
    call : Call
        How to work; with the mode ``"overwrite"``, all of them are downloaded.
    required : bool, default=False
        Raise for files that fail, even if the call allows them to be missing.

    Returns
    -------
    records : list of dict
        One per file on disk, in the order of ``ids``.
    failed : list of dict
        ``id`` and ``reason`` of the others.

    Raises
    ------
    NotCachedError, BucketError, DownloadError
        If a file is not on disk and could not be downloaded.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file on disk, or cannot be reached.
    """
    ids = list(ids)
    call = call._replace(allow_missing=call.allow_missing and not required)
    by_id = {rec["id"]: rec for rec in known.records}
    where = "on disk" if known.offline else "in the bucket"
    missing = [path for path in ids if path not in by_id]
    if known.error and missing:
        raise BucketError(
            f"{known.error} Missing in {call.data_dir}: {listed(missing)}. "
            "mode='offline' returns what is on disk."
        )
    failed = [
        {"id": path, "reason": f"it is not {where}"}
        for path in ids
        if path not in by_id or path in known.absent
    ]
    if failed:
        _raise_or_warn(failed, known, call)
    files = [by_id[path] for path in ids if path in by_id and path not in known.absent]
    outcome = obtain(plan(files, known, call, again=lambda _: True), known, call)
    if known.error:
        warn(f"{known.error} Everything asked for is on disk; continuing offline.")
    if outcome.failed:
        reasons = [{"id": r["id"], "reason": r["reason"]} for r in outcome.failed]
        _raise_or_warn(reasons, known, call)
        failed += reasons
    lost = {failure["id"] for failure in failed}
    files = [rec for rec in files if rec["id"] not in lost]
    compare_versions(files, known, outcome.fetched)
    return files, failed


def _raise_or_warn(failed: list[dict[str, Any]], known: Known, call: Call) -> None:
    text = "; ".join(f"{failure['id']}: {failure['reason']}" for failure in failed)
    if call.allow_missing:
        warn(f"Left out: {text}")
    elif known.offline:
        raise NotCachedError(f"{text}, in {call.data_dir}. {call.how_to_fetch}")
    else:
        raise DownloadError(f"Could not be downloaded: {text}.", failed=failed)
