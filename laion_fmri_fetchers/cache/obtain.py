"""The one way to get missing files: plan, announce, download.

plan ──▶ obtain ──▶ Outcome: what was downloaded, what failed and why
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from laion_fmri_fetchers.exceptions import (
    BucketError,
    DownloadError,
    HeldOutSessionError,
)
from laion_fmri_fetchers.layout.keys import Record, is_held_out
from laion_fmri_fetchers.messages import counted, listed, readable_size, tell, warn
from laion_fmri_fetchers.remote.bucket import (
    bucket_url,
    iso_date,
    object_url,
    timestamp,
)

from .inventory import Inventory, report_versions
from .listings import correct_listings
from .settings import Settings
from .state import partial_dir

if TYPE_CHECKING:
    from laion_fmri_fetchers.remote.download import Download

_MUCH = 10**9
_LESS = (
    ". For less, narrow subjects, sessions, rois or a filter; a dry run lists the "
    "files."
)


class Planned(NamedTuple):
    """A file to download, and why."""

    record: Record
    reason: str


class Source(NamedTuple):
    """Address, size and checksum of a gated file."""

    url: Callable[[bool], str]
    """Returns the current address; called with True, a new one."""
    size: int
    sha256: str


class Outcome(NamedTuple):
    """The outcome of downloading: ids of files on disk now, and failures."""

    fetched: frozenset[str] = frozenset()
    failed: tuple[Record, ...] = ()
    """Records, each with the ``reason`` and the HTTP ``status``."""

    def __add__(self, other: Outcome) -> Outcome:  # type: ignore[override]
        return Outcome(self.fetched | other.fetched, self.failed + other.failed)


def plan(
    files: Iterable[Record],
    inventory: Inventory,
    *,
    again: Callable[[Record], bool] = lambda _: False,
    done: Container[str] = (),
) -> list[Planned]:
    """Return the files to download, each once, with the reason.

    Parameters
    ----------
    files : iterable of dict
        Records.
    inventory : Inventory
        What is on disk, and what the bucket has.
    again : callable, optional
        In mode ``"overwrite"``, whether a record's file is downloaded again.
    done : container of str, optional
        Ids of files that this call has downloaded already, or tried to.
    """
    planned = {}
    for rec in files:
        path = rec["id"]
        if path in done or path in inventory.absent or path not in inventory.objects:
            continue
        if path not in inventory.on_disk:
            planned[path] = Planned(rec, "missing")
        elif path in inventory.not_whole and not inventory.is_cut_off:
            planned[path] = Planned(rec, "not whole")
        elif inventory.settings.overwrites and again(rec):
            planned[path] = Planned(rec, "overwrite")
    return list(planned.values())


def obtain(
    planned: list[Planned],
    inventory: Inventory,
    *,
    accept: Callable[[str], None] | None = None,
    optional: Container[str] = (),
    sources: Mapping[str, Source] = MappingProxyType({}),
    quiet: bool = False,
    is_announced: bool = False,
) -> Outcome:
    """Download planned files.

    Parameters
    ----------
    planned : list of Planned
        What to download.
    inventory : Inventory
        Whether the bucket answered, and how to work.
    accept : callable, optional
        Called with the data directory before the first byte: the licence.
    optional : container of str, optional
        Ids of files without which the call goes on.
    sources : mapping of str to Source, optional
        Where gated files are, by id; others are in the bucket.
    quiet : bool, default=False
        Whether small files are downloaded without a word.
    is_announced : bool, default=False
        Whether the download was announced already.

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
    settings = inventory.settings
    files = {item.record["id"]: item.record for item in planned}
    needed = [path for path in files if path not in optional]
    if not planned or (inventory.error and not needed):
        return Outcome()
    if inventory.error and not files.keys() <= sources.keys():
        raise _unreachable(inventory, needed)
    if not (quiet or is_announced):
        size = planned_size(planned)
        tell(
            f"Downloading {counted(len(files), 'file')}, {readable_size(size)}, from "
            f"{bucket_url()} to {settings.data_dir}{_LESS if size >= _MUCH else ''}",
            settings.verbose,
        )
    if cut := [item.record["id"] for item in planned if item.reason == "not whole"]:
        tell(
            f"Not whole on disk, and downloaded again: {listed(cut)}", settings.verbose
        )
    if accept:
        accept(settings.data_dir)
    verbose = 0 if quiet and settings.verbose < 2 else settings.verbose
    failures = download(files.values(), settings._replace(verbose=verbose), sources)
    failed = tuple({**files[path], **failures[path]} for path in failures)
    lost = [rec for rec in failed if rec["id"] not in optional]
    if lost and not settings.allow_missing:
        raise _explain_failures(lost, len(files), settings)
    return Outcome(frozenset(files.keys() - failures.keys()), failed)


def download(
    records: Iterable[Record],
    settings: Settings,
    sources: Mapping[str, Source] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """Download files.

    Parameters
    ----------
    records : iterable of dict
        Records with their paths. Those of files that changed since they were listed
        are brought up to date.
    settings : Settings
        With the mode ``"overwrite"``, files on disk are replaced.
    sources : mapping of str to Source, optional
        Where gated files are, by id.

    Returns
    -------
    dict
        id -> failure (``id``, ``reason``, ``status``) of the files that failed.
    """
    from laion_fmri_fetchers.remote.download import Download, download_files

    by_id = {rec["id"]: rec for rec in records}
    downloads = []
    for path, rec in by_id.items():
        target = Path(rec["absolute_path"])
        if source := sources.get(path):
            url, size, sha256 = source
            downloads.append(Download(path, url, target, size, sha256=sha256))
        else:
            listed_as = rec["size"], rec["etag"], None, timestamp(rec["last_modified"])
            downloads.append(Download(path, object_url(rec["key"]), target, *listed_as))
    changed: dict[str, Download] = {}
    failures = download_files(
        downloads,
        partial_dir=partial_dir(settings.data_dir),
        overwrite=settings.overwrites,
        n_connections=settings.n_connections,
        timeout=settings.timeout,
        verbose=settings.verbose,
        changed=changed,
    )
    for path, new in changed.items():
        by_id[path] |= {"size": new.size, "etag": new.etag}
        by_id[path]["last_modified"] = iso_date(new.last_modified)
    correct_listings(settings.data_dir, [by_id[path] for path in changed])
    return {failure.id: failure._asdict() for failure in failures}


def fetch_public(
    ids: Iterable[str], inventory: Inventory, *, required: bool = False
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Download public files that are not on disk, each by its name.

    Parameters
    ----------
    ids : iterable of str
        The files.
    inventory : Inventory
        What is on disk, and what the bucket has.
    required : bool, default=False
        Raise for files that fail, even if others may be missing.

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
    settings, by_id = inventory.settings, inventory.by_id
    if required:
        settings = settings._replace(allow_missing=None)
        inventory = inventory._replace(settings=settings)
    absent = [path for path in ids if path not in by_id or path in inventory.absent]
    if absent and inventory.error:
        raise _unreachable(inventory, absent)
    where = "on disk" if inventory.is_cut_off else "in the bucket"
    reasons = dict.fromkeys(absent, f"it is not {where}")
    failed = [{"id": path, "reason": reasons[path]} for path in absent]
    if failed and not settings.allow_missing:
        text = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        settings.refuse_offline(f"{text}, in {settings.data_dir}.")
        raise DownloadError(f"Could not be downloaded: {text}.", failed=failed)
    records = [by_id[path] for path in ids if path not in reasons]
    outcome = obtain(plan(records, inventory, again=lambda _: True), inventory)
    if inventory.error:
        warn(f"{inventory.error} Everything asked for is on disk; continuing offline.")
    reasons |= {rec["id"]: rec["reason"] for rec in outcome.failed}
    if reasons:
        texts = [f"{path}: {reason}" for path, reason in reasons.items()]
        warn(f"Left out: {'; '.join(texts)}")
    records = [rec for rec in records if rec["id"] not in reasons]
    report_versions(records, inventory, outcome.fetched)
    return records, [{"id": p, "reason": reason} for p, reason in reasons.items()]


def planned_size(planned: Iterable[Planned]) -> int:
    """Return the bytes of planned files."""
    return sum(item.record["size"] or 0 for item in planned)


def _unreachable(inventory: Inventory, missing: list[str]) -> BucketError:
    return BucketError(
        f"{inventory.error} Missing in {inventory.settings.data_dir}: "
        f"{listed(missing)}. mode='offline' returns what is on disk."
    )


def _explain_failures(
    failed: list[Record], n_files: int, settings: Settings
) -> HeldOutSessionError | DownloadError:
    """Return the error of files that failed, with the reason of each."""
    held_out = dict.fromkeys(
        f"{rec['session']} of {rec['subject']}"
        for rec in sorted(failed, key=lambda rec: rec["id"])
        if rec["status"] == 403 and is_held_out(rec)
    )
    if held_out:
        return HeldOutSessionError(
            f"{listed(list(held_out))}: files held out for evaluation, which the "
            "bucket denies (status 403). Leave these out of sessions."
        )
    reasons = "".join(f"\n  {rec['id']}: {rec['reason']}" for rec in failed)
    can_be_left_out = settings.allow_missing is not None
    advice = "; allow_missing=True leaves the others out" if can_be_left_out else ""
    return DownloadError(
        f"{len(failed)} of {counted(n_files, 'file')} could not be downloaded. Files "
        f"that arrived are kept, and the same call resumes{advice}.{reasons}",
        failed=failed,
    )
