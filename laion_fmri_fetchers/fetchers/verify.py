"""The cache against listings and downloads: missing, cut and altered files."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
from joblib import Parallel, delayed

from laion_fmri_fetchers.access.gate import (
    ArchiveVersion,
    published_archive,
    saved_archive,
)
from laion_fmri_fetchers.access.licence import accept_license
from laion_fmri_fetchers.betas.store import check_session, remove_part, stored_sessions
from laion_fmri_fetchers.cache.data_dir import get_data_dir
from laion_fmri_fetchers.cache.files import files_on_disk, hidden_on_disk, local_path
from laion_fmri_fetchers.cache.inventory import SAME_TIME, size_on_disk
from laion_fmri_fetchers.cache.listings import (
    keep_demo_apart,
    kept_objects,
    read_catalog,
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
from laion_fmri_fetchers.layout import trees
from laion_fmri_fetchers.layout.keys import is_nifti_name, record_of
from laion_fmri_fetchers.messages import (
    can_draw,
    listed,
    progress_bar,
    readable_size,
    tell,
    warn,
)
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.remote.bucket import Object, timestamp
from laion_fmri_fetchers.remote.checksums import check_file
from laion_fmri_fetchers.volumes import iter_volumes, read_header

# Where files are that this package made: resampled, and extracted from the archive.
_MADE = (trees.MADE_HERE, trees.STIMULUS_IMAGES)

# States of files that are repaired.
_BAD = ("missing", "truncated", "altered", "unreadable")


@documented
def verify_cache(  # noqa: C901 - its steps, in order
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

    # What there is, and what it is compared with.
    files, _ = files_on_disk(folder, [("", "")])
    archive = saved_archive(folder)
    how: dict[str, Any] = {
        "n_connections": n_connections,
        "timeout": timeout,
        "verbose": verbose,
    }
    if online:
        wanted = {
            trees.listing_of(path) for path in files if not path.startswith(_MADE)
        }
        found = read_catalog(wanted, folder, **how)
        if found.error:
            raise found.error
        objects = found.objects
    else:
        objects = kept_objects(folder)
    if online and trees.ARCHIVE in files:
        try:
            archive = published_archive(timeout)
        except AccessServiceError as error:
            warn(f"{error} It is compared with the version noted at its download.")
    files |= {path: path for path in hidden_on_disk(folder, objects)}
    images = [rec for rec in map(record_of, files) if rec["image_type"] == "betas"]
    needed = {path for path in map(trees.trials_id, images) if path in objects}
    needed |= {trees.ARCHIVE} if archive else set()
    paths = {
        path: local_path(folder, files.get(path, path))
        for path in sorted(files.keys() | needed)
    }
    sizes = {path: _size(file) for path, file in paths.items()}
    total, stored = sum(filter(None, sizes.values())), stored_sessions(folder)
    tell(f"Checking {len(paths)} files, {readable_size(total)}, in {folder}", verbose)

    # Files, then parts of the voxel store.
    rows: list[tuple[Any, ...]] = []
    is_hidden = verbose != 1 or not can_draw()
    with progress_bar(total=total, unit="B", unit_scale=True, disable=is_hidden) as bar:
        checks = Parallel(n_jobs, "threading", return_as="generator")(
            delayed(_check)(path, file, sizes[path], objects.get(path), archive)
            for path, file in paths.items()
        )
        for path, (status, reason) in zip(paths, checks, strict=True):
            rows.append((path, status, sizes[path], reason))
            bar.update(sizes[path] or 0)
            tell(f"{status:<10} {path}", verbose, 2)
    for session in stored:
        for file, wrong in check_session(session):
            status, reason = "altered" if wrong else "ok", wrong
            if repair and wrong:
                remove_part(file)
            if repair and wrong and not file.exists():
                status = "repaired"
                reason = "it was damaged and is removed; a call stores it again"
            path = file.relative_to(folder).as_posix()
            rows.append((path, status, _size(file), reason))

    report = pd.DataFrame(rows, columns=["id", "status", "size", "reason"])
    report["size"] = report["size"].astype("Int64")
    counts = report["status"].value_counts()
    lines = [", ".join(f"{n} {status}" for status, n in counts.items()) or "no files"]
    bad = report[~report["status"].isin(["ok", "unknown"])]
    lines += [f"  {row.status:<10} {row.id}: {row.reason}" for row in bad.itertuples()]
    if not objects and "unknown" in counts:
        lines.append(
            "No listing of the bucket is saved here, so files that something else "
            "downloaded cannot be judged: 'laion-fmri-fetchers verify --online', or "
            "verify_cache(online=True), asks for one"
        )
    tell("\n".join(lines), verbose)
    if repair:
        _repair(report, paths, objects, {**how, "data_dir": folder})
    return report


def _check(
    path: str,
    file: str,
    size: int | None,
    in_bucket: Object | None,
    archive: ArchiveVersion | None,
) -> tuple[str, str | None]:
    """Return the status of a file and the reason."""
    if size is None:
        return "missing", "something on disk needs it, but it is not there"
    try:
        if path.startswith(_MADE):
            for _ in iter_volumes(read_header(file)) if is_nifti_name(file) else ():
                pass
            return "ok", None
        if path == trees.ARCHIVE and archive:
            right = archive.size
            wrong = check_file(file, size=right, sha256=archive.sha256)
        elif in_bucket is None:
            return "unknown", "no listing has a file of this name"
        else:
            date = timestamp(in_bucket.last_modified) or 0.0
            if date - os.stat(file).st_mtime > SAME_TIME:
                hint = "the bucket has another version; mode='overwrite' downloads it"
                return "outdated", hint
            right = in_bucket.size
            wrong = check_file(file, size=right, etag=in_bucket.etag)
    except CorruptImageError:
        hint = "it cannot be read; delete it, and the same call makes it again"
        return "altered", hint
    except OSError as error:
        return "unreadable", str(error)
    if wrong is not None:
        return ("truncated" if size < right else "altered"), wrong
    return "ok", None


def _size(file: str | os.PathLike) -> int | None:
    return size_on_disk({"absolute_path": file})


def _repair(
    report: pd.DataFrame,
    paths: dict[str, str],
    objects: dict[str, Object],
    how: dict[str, Any],
) -> None:
    """Download damaged files again, and note it in the report.

    ``how`` are the arguments of the call that say how to download.
    """
    data_dir = how["data_dir"]
    made = report["id"].str.startswith(_MADE)
    bad = report[report["status"].isin(_BAD) & ~made]
    for path in trees.GATED & {*bad["id"]}:
        raise LaionFmriError(
            f"{path} is damaged, and gated: fetch it again with "
            "fetch_laion_stimuli(mode='overwrite')."
        )
    is_listed = bad["id"].isin(objects.keys())
    if not is_listed.all():
        warn(
            f"{listed(sorted(bad['id'][~is_listed]))} cannot be repaired, as the "
            "bucket has no such file. Delete it, or let the user do so whose it is."
        )
    bad = bad[is_listed]
    if bad.empty:
        return
    keep_demo_apart(data_dir, how["timeout"])
    accept_license(data_dir)
    settings = make_settings(**how, mode="overwrite")
    if settings.is_read_only:
        raise InvalidQueryError(
            f"The data directory {data_dir} cannot be written, so nothing was repaired."
        )
    records = [
        {**record_of(*objects[path]), "absolute_path": paths[path]}
        for path in bad["id"]
    ]
    failed = download(records, settings)
    for row, path in bad["id"].items():
        if path not in failed:
            report.loc[row, ["status", "reason"]] = ["repaired", None]
            report.at[row, "size"] = _size(paths[path])
    if failed:
        reasons = [f"  {path}: {failed[path]['reason']}" for path in failed]
        raise DownloadError(
            f"{len(failed)} of {len(bad)} files could not be repaired; they are as "
            "they were.\n" + "\n".join(reasons),
            failed=failed.values(),
        )
