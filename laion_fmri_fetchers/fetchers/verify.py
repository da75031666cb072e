"""The cache against listings and downloads: missing, cut and altered files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from laion_fmri_fetchers.access.gate import (
    ArchiveVersion,
    published_archive,
    saved_archive,
)
from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.arrays.voxel_store import (
    check_session,
    remove_part,
    stored_sessions,
)
from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.files import files_on_disk, hidden_on_disk, local_path
from laion_fmri_fetchers.cache.inventory import SAME_TIME
from laion_fmri_fetchers.cache.listings import (
    keep_demo_apart,
    read_catalog,
    read_whole_catalog,
)
from laion_fmri_fetchers.cache.obtain import download
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.exceptions import (
    AccessServiceError,
    CorruptImageError,
    DownloadError,
    InvalidQueryError,
    LaionFmriError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.keys import is_nifti_name, record_of
from laion_fmri_fetchers.layout.trees import (
    ARCHIVE,
    GATED,
    MADE_HERE,
    STIMULUS_IMAGES,
    listing_of,
    trials_id,
)
from laion_fmri_fetchers.messages import (
    can_draw,
    counted,
    listed,
    progress_bar,
    readable_size,
    tell,
    warn,
)
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.remote.bucket import timestamp
from laion_fmri_fetchers.remote.checksums import check_file
from laion_fmri_fetchers.volumes import iter_volumes, read_header

_MADE = (MADE_HERE, STIMULUS_IMAGES)
"""Where files are that this package made: resampled, and extracted from the archive."""

_COLUMNS = ["id", "status", "size", "reason"]
_Row = tuple[str, str, int | None, str | None]
_NOT_BAD = ("ok", "unknown", "outdated")
"""States of files that nothing is wrong with."""


@documented
def verify_cache(
    *,
    data_dir: str | os.PathLike | None = None,
    repair: bool = False,
    online: bool = False,
    n_jobs: int = 2,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> pd.DataFrame:
    """Check the files on disk against listings of the bucket.

    Sizes are compared, then checksums: the MD5 or multi-part ETag of S3. No socket is
    opened unless ``online``, or something is repaired.

    Parameters
    ----------
    %(data_dir)s
    repair : bool, default=False
        Download files again that are missing, truncated or altered.
    online : bool, default=False
        Ask the bucket for its listings and the access service for its manifest, and
        compare with these. So a directory can be verified that was filled by hand or by
        the dataset's own package.
    n_jobs : int, default=2
        Files read at once.
    %(n_connections)s
    %(timeout)s
    %(verbose)s

    Returns
    -------
    pandas.DataFrame
        One row per file, sorted by ``id``: ``status``, ``size`` in bytes on disk
        (nullable) and ``reason``. The status is ``"ok"``, ``"missing"`` (something on
        disk needs it: the trial table of an image, or the archive of the stimuli that
        was downloaded), ``"truncated"``, ``"altered"``, ``"outdated"`` (older than the
        version that the bucket has), ``"unreadable"``, ``"unknown"`` (not a file of any
        listing, nor made by this package) or, after a repair, ``"repaired"``.

    Raises
    ------
    NotCachedError
        If the data directory does not exist.
    BucketError
        With ``online``, if the bucket cannot be listed.
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
    folder = get_data_dir(data_dir)
    if not os.path.isdir(folder):
        raise NotCachedError(
            f"The data directory {folder} does not exist. Check its name, and whether "
            "its disk is mounted."
        )
    files, _ = files_on_disk(folder, [("", "")])
    objects = _listed(folder, files, online, n_connections, timeout, verbose)
    files |= {path: path for path in hidden_on_disk(folder, objects)}
    archive = _archive_version(folder, online and ARCHIVE in files, timeout)
    images = [rec for rec in map(record_of, files) if rec["image_type"] == "betas"]
    needed = {path for path in map(trials_id, images) if path in objects}
    if archive:
        needed.add(ARCHIVE)
    names = sorted(files.keys() | needed)
    paths = {path: local_path(folder, files.get(path, path)) for path in names}
    sizes = {path: _size(paths[path]) for path in names}
    total = sum(size or 0 for size in sizes.values())
    stored = len(stored_sessions(folder))
    more = f" and {counted(stored, 'session')} of the voxel store" if stored else ""
    size = readable_size(total)
    tell(f"Checking {len(names)} files, {size},{more} in {folder}", verbose)
    is_drawn = verbose and can_draw()
    with progress_bar(
        total=total, unit="B", unit_scale=True, disable=not is_drawn
    ) as bar:
        checks = Parallel(n_jobs, "threading", return_as="generator")(
            delayed(_check)(
                paths[path],
                path,
                sizes[path],
                objects.get(path),
                archive if path == ARCHIVE else None,
            )
            for path in names
        )
        rows: list[_Row] = []
        for path, (state, reason) in zip(names, checks, strict=True):
            rows.append((path, state, sizes[path], reason))
            bar.update(sizes[path] or 0)
            if is_drawn and verbose >= 2:
                bar.write(f"{state:<10} {path}", sys.stderr)
            else:
                tell(f"{state:<10} {path}", verbose, 2)
    rows += _check_store(folder, repair)
    report = pd.DataFrame(rows, columns=_COLUMNS)
    report["size"] = report["size"].astype("Int64")
    tell(_summary(report), verbose)
    if not objects and (report["status"] == "unknown").any():
        tell(
            "No listing of the bucket is saved here, so files that something else "
            "downloaded cannot be judged: 'laion-fmri-fetchers verify --online', or "
            "verify_cache(online=True), asks for one",
            verbose,
        )
    if repair:
        _repair(folder, report, paths, objects, n_connections, timeout, verbose)
    return report


def _listed(
    data_dir: str,
    files: Iterable[str],
    online: bool,
    n_connections: int,
    timeout: float,
    verbose: int,
) -> dict[str, Any]:
    """Return what the bucket lists, by id: of all saved listings, or of new ones."""
    if not online:
        return read_whole_catalog(data_dir).objects
    found = read_catalog(
        {listing_of(path) for path in files if not path.startswith(_MADE)},
        data_dir,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    if found.error:
        raise found.error
    return found.objects


def _archive_version(
    data_dir: str, online: bool, timeout: float
) -> ArchiveVersion | None:
    """Return the version of the archive as it was downloaded, or as published now."""
    if online:
        try:
            return published_archive(timeout)
        except AccessServiceError as error:
            warn(f"{error} It is compared with the version noted at its download.")
    return saved_archive(data_dir)


def _size(file: str | os.PathLike) -> int | None:
    try:
        return os.stat(file).st_size if os.path.isfile(file) else None
    except OSError:
        return None


def _check(
    file: str, path: str, size: int | None, listed: Any, gated: ArchiveVersion | None
) -> tuple[str, str | None]:
    """Return the status of a file and the reason."""
    if size is None:
        return "missing", "something on disk needs it, but it is not there"
    try:
        if path.startswith(_MADE):
            return _check_made(file)
        if gated is not None:
            right = gated.size
            wrong = check_file(file, size=right, sha256=gated.sha256)
        elif listed is None:
            return "unknown", "no listing has a file of this name"
        else:
            date = timestamp(listed.last_modified)
            if date is not None and date - os.stat(file).st_mtime > SAME_TIME:
                return (
                    "outdated",
                    "the bucket has another version; mode='overwrite' downloads it",
                )
            right, wrong = (
                listed.size,
                check_file(file, size=listed.size, etag=listed.etag),
            )
    except OSError as error:
        return "unreadable", str(error)
    if wrong is not None:
        return ("truncated" if size < right else "altered"), wrong
    return "ok", None


def _check_store(data_dir: str, repair: bool) -> list[_Row]:
    """Return a row for each part of the voxel store; a repair removes damaged ones."""
    rows: list[_Row] = []
    for session in stored_sessions(data_dir):
        for file, wrong in check_session(session):
            path = file.relative_to(data_dir).as_posix()
            if not wrong:
                rows.append((path, "ok", _size(file), None))
                continue
            if repair:
                remove_part(file)
            if repair and not file.exists():
                removed = "it was damaged and is removed; a call stores it again"
                rows.append((path, "repaired", None, removed))
            else:
                rows.append((path, "altered", _size(file), wrong))
    return rows


def _check_made(file: str) -> tuple[str, str | None]:
    """Return the status of a file that this package made."""
    try:
        if is_nifti_name(file):
            for _ in iter_volumes(read_header(file)):
                pass
    except CorruptImageError:
        return (
            "altered",
            "it cannot be read; delete it, and the same call makes it again",
        )
    return "ok", None


def _summary(report: pd.DataFrame) -> str:
    counts = report["status"].value_counts()
    lines = [", ".join(f"{n} {status}" for status, n in counts.items()) or "no files"]
    bad = report[~report["status"].isin(["ok", "unknown"])]
    lines += [f"  {row.status:<10} {row.id}: {row.reason}" for row in bad.itertuples()]
    return "\n".join(lines)


def _repair(
    data_dir: str,
    report: pd.DataFrame,
    paths: dict[str, str],
    versions: dict[str, Any],
    n_connections: int,
    timeout: float,
    verbose: int,
) -> None:
    """Download damaged files again, and note it in the report."""
    made = report["id"].str.startswith(_MADE)
    is_bad = ~report["status"].isin((*_NOT_BAD, "repaired"))
    bad = report.index[is_bad & ~made]
    ids = report.loc[bad, "id"].tolist()
    gated = sorted(GATED & set(ids))
    if gated:
        raise LaionFmriError(
            f"{gated[0]} is damaged, and gated: fetch it again with "
            "fetch_laion_stimuli(mode='overwrite')."
        )
    hopeless = sorted({*ids} - {*versions})
    ids = [path for path in ids if path in versions]
    if hopeless:
        warn(
            f"{listed(hopeless)} cannot be repaired, as the bucket has no such file. "
            "Delete it, or let the user do so whose it is."
        )
    if not ids:
        return
    keep_demo_apart(data_dir, timeout)
    accept_license(data_dir)
    settings = make_settings(
        "overwrite",
        data_dir,
        allow_missing=False,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    if settings.is_read_only:
        raise InvalidQueryError(
            f"The data directory {data_dir} cannot be written, so nothing was repaired."
        )
    failed = download(
        [
            {
                **record_of(*versions[path]),
                "relative_path": os.path.relpath(paths[path], data_dir),
                "absolute_path": paths[path],
            }
            for path in ids
        ],
        settings,
    )
    arrived = {*ids} - {*failed}
    repaired = [i for i in bad if report.at[i, "id"] in arrived]
    report.loc[repaired, ["status", "reason"]] = ["repaired", None]
    for i in repaired:
        report.at[i, "size"] = _size(paths[str(report.at[i, "id"])])
    if failed:
        reasons = [f"  {one}: {failure['reason']}" for one, failure in failed.items()]
        raise DownloadError(
            f"{len(failed)} of {len(ids)} files could not be repaired; they are as "
            "they were.\n" + "\n".join(reasons),
            failed=failed.values(),
        )
