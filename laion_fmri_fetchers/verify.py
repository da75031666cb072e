"""The cache against what was listed and fetched: what is missing, cut or altered."""

from __future__ import annotations

import os
import sys

import pandas as pd
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from . import cache, layout
from .access import access_status
from .bucket import bucket_url
from .calls import fetch_records, prepare
from .catalog import look
from .exceptions import DownloadError, LaionFmriError
from .licenses import accept_license
from .messages import readable_size, tell
from .partials import check_file

_TREES = (("", "/"), ("derivatives/", ""), ("stimuli/", ""))
_COLUMNS = ["id", "status", "size", "reason"]


def verify_cache(
    *,
    data_dir: str | os.PathLike | None = None,
    repair: bool = False,
    n_jobs: int = 2,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> pd.DataFrame:
    """Check the files on disk against what the bucket listed and what was fetched.

    Sizes are compared, then checksums: the MD5 or multi-part ETag of S3. No socket is
    opened unless something is repaired.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.
    repair : bool, default=False
        Fetch again what is missing, truncated or altered.
    n_jobs : int, default=2
        Files read at once.
    n_connections : int, default=64
        HTTP connections at once, for repairs.
    timeout : float, default=30.0
        Seconds without progress after which a connection is given up.
    verbose : int, default=1
        0: silent, 1: summary and progress bar, 2: a line a file.

    Returns
    -------
    pandas.DataFrame
        A row a file, sorted by ``id``: ``status``, ``size`` in bytes on disk (nullable)
        and ``reason``. The status is ``"ok"``, ``"missing"`` (fetched once, but not on
        disk), ``"truncated"``, ``"altered"``, ``"unreadable"``, ``"unknown"`` (nothing
        is known to check it by) or, after a repair, ``"repaired"``.

    Raises
    ------
    DownloadError
        If files could not be repaired.
    LaionFmriError
        If a damaged file is gated; fetch it again by ``fetch_laion_stimuli``.

    Examples
    --------
    >>> import tempfile
    >>> verify_cache(data_dir=tempfile.mkdtemp(), verbose=0).empty
    True
    """
    folder = cache.get_data_dir(data_dir)
    expected = _expected(folder)
    files, _ = cache.scan(folder, _TREES)
    noted = set(cache.fetched(folder))
    names = sorted(files | noted)
    sizes = {one: _size(folder, one) for one in names}
    total = sum(size or 0 for size in sizes.values())
    tell(f"Checking {len(names)} files, {readable_size(total)}, in {folder}", verbose)
    with tqdm(
        total=total, unit="B", unit_scale=True, disable=None if verbose else True
    ) as bar:
        found = Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator")(
            delayed(_check)(folder, one, sizes[one], expected.get(one)) for one in names
        )
        rows = []
        for one, (status, reason) in zip(names, found, strict=True):
            rows.append((one, status, sizes[one], reason))
            bar.update(sizes[one] or 0)
            if verbose >= 2:
                bar.write(f"{status:<10} {one}", sys.stderr)
    report = pd.DataFrame(rows, columns=_COLUMNS)
    report["size"] = report["size"].astype("Int64")
    tell(_summary(report), verbose)
    if repair:
        _repair(folder, report, expected, n_connections, timeout, verbose)
    return report


def status(*, data_dir: str | os.PathLike | None = None) -> None:
    """Print what is configured, accepted and cached; no socket is opened.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`.

    Examples
    --------
    >>> import tempfile
    >>> status(data_dir=tempfile.mkdtemp())  # doctest: +ELLIPSIS
    Data directory   /...
    """
    folder = cache.get_data_dir(data_dir)
    access = access_status(folder)
    accepted = cache.license_marker(folder).exists()
    files, _ = cache.scan(folder, _TREES)
    writable = "" if cache.is_writable(folder) else ", cannot be written"
    rows = {
        "Data directory": f"{folder}{writable}",
        "Bucket": bucket_url(),
        "CC0 terms": "accepted" if accepted else "not accepted yet",
        "Stimulus access": (
            f"{access['status']}, {access['request_id']} from {access['source']}"
            if access["status"]
            else "not requested yet"
        ),
        "On disk": _amount(folder, files),
        "Unfinished": _unfinished(folder),
    }
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    recs = [layout.record(one) for one in sorted(files)]
    subjects = sorted({rec["subject"] for rec in recs if rec["subject"]})
    if subjects:
        print("\nsubject  sessions with betas  ROIs  files       size")
    for subject in subjects:
        own = [rec for rec in recs if rec["subject"] == subject]
        n_betas = sum(rec["image_type"] == "betas" for rec in own)
        n_rois = len({rec["roi"] for rec in own} - {None})
        size = sum(_size(folder, rec["id"]) or 0 for rec in own)
        print(
            f"{subject:<8} {n_betas:>19} {n_rois:>5} {len(own):>6} "
            f"{readable_size(size):>10}"
        )


def _amount(data_dir: str, files: set[str]) -> str:
    size = sum(_size(data_dir, one) or 0 for one in files)
    return f"{len(files)} files, {readable_size(size)}"


def _unfinished(data_dir: str) -> str:
    parts = list(cache.partial_dir(data_dir).glob("*.part"))
    return f"{len(parts)} downloads" if parts else "nothing"


def _expected(data_dir: str) -> dict[str, list]:
    """Return id -> ``[key, size, etag]``: as fetched, else as listed."""
    listed = look([("", "")], data_dir, offline=True).objects
    return {
        **{one: [o.key, o.size, o.etag] for one, o in listed.items()},
        **cache.fetched(data_dir),
    }


def _size(data_dir: str, one: str) -> int | None:
    try:
        return os.stat(cache.local_path(data_dir, one)).st_size
    except OSError:
        return None


def _check(
    data_dir: str, one: str, size: int | None, expected: list | None
) -> tuple[str, str | None]:
    """Return the status of a file and the reason."""
    if size is None:
        return "missing", "it was fetched, but is not on disk"
    if expected is None:
        return "unknown", "no listing tells its size and checksum"
    _, right, etag = expected
    try:
        wrong = check_file(cache.local_path(data_dir, one), size=right, etag=etag)
    except OSError as error:
        return "unreadable", str(error)
    if wrong is None:
        return "ok", None
    return ("truncated" if right and size < right else "altered"), wrong


def _summary(report: pd.DataFrame) -> str:
    counts = report["status"].value_counts()
    lines = [", ".join(f"{n} {status}" for status, n in counts.items()) or "no files"]
    bad = report[~report["status"].isin(["ok", "unknown"])]
    lines += [f"  {row.status:<10} {row.id}: {row.reason}" for row in bad.itertuples()]
    return "\n".join(lines)


def _repair(
    data_dir: str,
    report: pd.DataFrame,
    expected: dict[str, list],
    n_connections: int,
    timeout: float,
    verbose: int,
) -> None:
    """Fetch again what is damaged, and say so in the report."""
    bad = report.index[~report["status"].isin(["ok", "unknown"])]
    ids = report.loc[bad, "id"].tolist()
    if not ids:
        return
    gated = sorted(layout.GATED & set(ids))
    if gated:
        raise LaionFmriError(
            f"{gated[0]} is damaged, and gated: fetch it again with "
            "fetch_laion_stimuli(mode='overwrite')."
        )
    accept_license(data_dir)
    call = prepare(
        "overwrite",
        data_dir,
        allow_missing=False,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    path = cache.local_path
    failed = fetch_records(
        [
            {**layout.record(*expected[one]), "absolute_path": path(data_dir, one)}
            for one in ids
        ],
        call,
    )
    repaired = [i for i in bad if report.at[i, "id"] not in failed]
    report.loc[repaired, ["status", "reason"]] = ["repaired", None]
    for i in repaired:
        report.at[i, "size"] = _size(data_dir, str(report.at[i, "id"]))
    if failed:
        reasons = [f"  {one}: {failure['reason']}" for one, failure in failed.items()]
        raise DownloadError(
            f"{len(failed)} of {len(ids)} files could not be repaired; they are as "
            "they were.\n" + "\n".join(reasons),
            failed=failed.values(),
        )
