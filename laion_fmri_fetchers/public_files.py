"""Public files of the folder ``stimuli/``: listed, compared with the disk, downloaded.

    list_stimuli ─▶ Catalog
        └▶ fetch_public ─▶ records of the files on disk, and what failed
              └ describe   the version on disk, and whether it is ``outdated``

The publishers replace files at their keys. The size and ETag that were noted at the
download of a file show whether the bucket has another version now.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable
from typing import Any

from . import cache, layout
from .bucket import bucket_url
from .calls import Call, fetch_records
from .catalog import Catalog, look, records
from .exceptions import BucketError, DownloadError, NotCachedError
from .messages import listed, readable_size, tell, warn

_FIRST_EMBEDDINGS = f"{layout.ARCHIVED}embeddings/v1/"


def list_stimuli(call: Call) -> Catalog:
    """List the files of the folder ``stimuli/``, in the bucket and on disk."""
    return look(
        [(layout.STIMULI, "/")],
        call.data_dir,
        offline=call.mode == "offline",
        n_connections=call.n_connections,
        timeout=call.timeout,
        verbose=call.verbose,
    )


def fetch_public(
    ids: Iterable[str], catalog: Catalog, call: Call, *, required: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Download public files that are not on disk.

    Parameters
    ----------
    ids : iterable of str
        The files.
    catalog : Catalog
        Of `list_stimuli`.
    call : Call
        How to work; with the mode ``"overwrite"``, all of them are downloaded.
    required : bool, default=False
        Raise for files that fail, even if the call allows them to be missing.

    Returns
    -------
    records : list of dict
        One per file on disk, see `describe`.
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
    again = call.mode == "overwrite"
    missing = [file for file in ids if again or file not in catalog.on_disk]
    if catalog.error and missing:
        raise BucketError(
            f"{catalog.error} Missing in {call.data_dir}: {listed(missing)}. "
            "mode='offline' returns what is on disk."
        )
    if catalog.error:
        warn(f"{catalog.error} Everything asked for is on disk; continuing offline.")
    failed = _obtain(missing, catalog, call)
    if failed:
        _raise_or_warn(failed, call, required)
    lacking = {failure["id"] for failure in failed}
    recs = records(
        catalog, [file for file in ids if file not in lacking], call.data_dir
    )
    recs.sort(key=lambda rec: ids.index(rec["id"]))
    noted = cache.fetched(call.data_dir)
    described = [describe(rec, noted.get(rec["id"])) for rec in recs]
    if call.mode == "download_new":
        for rec, on_disk in zip(recs, described, strict=True):
            if on_disk["outdated"]:
                warn(_text_on_version(rec, on_disk))
    return described, failed


def _obtain(ids: list[str], catalog: Catalog, call: Call) -> list[dict[str, Any]]:
    """Download files; return ``id`` and ``reason`` of those that failed."""
    if call.mode == "offline":
        return [{"id": file, "reason": "it is not on disk"} for file in ids]
    absent = [file for file in ids if file not in catalog.objects]
    failed = [{"id": file, "reason": "it is not in the bucket"} for file in absent]
    recs = records(catalog, set(ids) - set(absent), call.data_dir)
    if recs:
        size = readable_size(sum(rec["size"] for rec in recs))
        tell(
            f"Fetching {listed([rec['id'] for rec in recs])}, {size}, from "
            f"{bucket_url()} to {call.data_dir}",
            call.verbose,
        )
        failures = fetch_records(recs, call).values()
        failed += [{"id": one["id"], "reason": one["reason"]} for one in failures]
    return failed


def _raise_or_warn(failed: list[dict[str, Any]], call: Call, required: bool) -> None:
    text = "; ".join(f"{failure['id']}: {failure['reason']}" for failure in failed)
    if call.allow_missing and not required:
        warn(f"Left out: {text}")
    elif call.mode == "offline":
        raise NotCachedError(f"{text}, in {call.data_dir}. {call.how_to_fetch}")
    else:
        raise DownloadError(
            f"Could not be downloaded: {text}. Finished parts stay, and the same call "
            "goes on from there.",
            failed=failed,
        )


# --- Versions --------------------------------------------------------------------


def outdated(record: dict[str, Any], noted: list | None) -> bool:
    """Tell whether the bucket has another version of a file than the one on disk.

    Parameters
    ----------
    record : dict
        The file as the bucket lists it; a ``size`` or ``etag`` of None says nothing.
    noted : list or None
        ``[key, size in bytes, etag]`` of the version on disk, as `cache.fetched` has
        it; a size or ETag of None says nothing, nor does None.

    Examples
    --------
    >>> listed = {"size": 5, "etag": "b"}
    >>> outdated(listed, ["README", 5, "a"]), outdated(listed, ["README", 5, None])
    (True, False)
    """
    if noted is None:
        return False
    pairs = zip((record["size"], record["etag"]), noted[1:], strict=True)
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def describe(record: dict[str, Any], noted: list | None) -> dict[str, Any]:
    """Return the record of the version of a file that is on disk.

    Parameters
    ----------
    record : dict
        The file as the bucket lists it, with its path.
    noted : list or None
        Which version was downloaded here, see `outdated`. A file of another size was
        put there by others: its size alone is known.

    Returns
    -------
    dict
        The record; where ``outdated`` is True, ``size`` and ``etag`` are those on disk,
        and ``last_modified``, which is not noted, is None.
    """
    size = os.path.getsize(record["absolute_path"])
    if noted is None or noted[1] != size:
        noted = [record["key"], size, None]
    if record["size"] is None:
        return {**record, "size": size, "etag": noted[2]}
    if not outdated(record, noted):
        return record
    return {
        **record,
        "size": size,
        "etag": noted[2],
        "last_modified": None,
        "outdated": True,
    }


def _text_on_version(listed: dict[str, Any], on_disk: dict[str, Any]) -> str:
    """Return what to say of a file of which the bucket has another version."""
    seconds = os.path.getmtime(on_disk["absolute_path"])
    downloaded = dt.datetime.fromtimestamp(seconds, dt.timezone.utc)
    modified = (listed["last_modified"] or "an unknown date")[:10]
    text = (
        f"The bucket has another version of {listed['id']}, of {listed['size']:,} "
        f"bytes and {modified}; the version on disk, of {on_disk['size']:,} bytes and "
        f"downloaded on {downloaded:%Y-%m-%d}, was used. mode='overwrite' downloads "
        "the new one."
    )
    if listed["id"] in map(layout.embeddings_id, layout.EMBEDDING_MODELS):
        key = _FIRST_EMBEDDINGS + listed["id"].rpartition("/")[2]
        text += f' The first version is archived: fetch_laion_fmri_ids("{key}").'
    return text
