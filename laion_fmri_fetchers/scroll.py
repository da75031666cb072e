"""What there is of a selection, in the bucket and on disk, and fetching what lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import layout
from .calls import Call, fetch_records
from .catalog import Catalog, Wanted, look, records
from .exceptions import BucketError, DownloadError, HeldOutSessionError
from .filters import admits
from .messages import listed
from .resample import (
    can_be_resampled,
    find_resampled,
    interpolation_for,
    is_resampled,
)
from .selection import Selection

Record = dict[str, Any]


@dataclass
class Known:
    """What is known of some subjects, and what came of fetching."""

    catalog: Catalog
    subjects: list[str]
    ids: dict[tuple[str, str], list[str]]
    records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    failed: list[Record] = field(default_factory=list)


def scroll(selection: Selection, call: Call, beside: Sequence[Wanted] = ()) -> Known:
    """Look at the bucket and the disk, only where the selection may lead."""
    how: Any = {
        "n_connections": call.n_connections,
        "timeout": call.timeout,
        "verbose": call.verbose,
    }
    offline, error = call.mode == "offline", None
    subjects = selection.subjects
    if subjects is None:
        top = look([(layout.GLM, "/")], call.data_dir, offline=offline, **how)
        _refuse_unlisted(top, call)
        subjects = layout.subjects_among(top.folders)
        offline, error = offline or top.error is not None, top.error
    wanted = [("", "/"), *beside]
    for subject in subjects:
        wanted += layout.listings_of(subject, selection.sessions)
        if admits(selection.image_filter, "image_type", "freesurfer"):
            wanted.append((f"{layout.FREESURFER}{subject}/", ""))
    found = look(dict.fromkeys(wanted), call.data_dir, offline=offline, **how)
    found = found._replace(error=error or found.error)
    _refuse_unlisted(found, call)
    known_ids = set(found.objects)
    if call.mode != "overwrite":
        known_ids |= found.on_disk
    ids: dict[tuple[str, str], list[str]] = {}
    for one in known_ids:
        ids.setdefault(layout.place(one), []).append(one)
    return Known(found, sorted(subjects), ids)


def _refuse_unlisted(found: Catalog, call: Call) -> None:
    if found.error and found.unlisted:
        if not found.on_disk:
            raise BucketError(
                f"{found.error} Nothing of it is in {call.data_dir}, and no listing "
                "was saved earlier."
            )
        lacking = [prefix or "the top level" for prefix in found.unlisted]
        raise BucketError(
            f"{found.error} No listing of {listed(lacking)} was saved earlier, so what "
            "is missing cannot be told. mode='offline' returns what is there."
        )


def records_of(call: Call, known: Known, tree: str, subject: str) -> list[Record]:
    """Return the records of a subject's files in a tree, made once."""
    place = (tree, subject)
    if place not in known.records:
        ids, objects = known.ids.get(place, []), known.catalog.objects
        known.records[place] = [
            rec
            for rec in records(known.catalog, ids, call.data_dir)
            if rec["id"] in objects or not is_resampled(rec)
        ]
    return known.records[place]


def is_cached(rec: Record, call: Call, known: Known) -> bool:
    """Tell whether a file, or what was resampled from it, is on disk."""
    if rec["id"] in known.catalog.on_disk:
        return True
    if call.resolution is None or not can_be_resampled(rec):
        return False
    how = interpolation_for(rec, call.interpolation)
    return find_resampled(rec["absolute_path"], call.resolution, how) is not None


def can_come(rec: Record, call: Call, known: Known) -> bool:
    """Tell whether a file is on disk, or the bucket may be asked for it."""
    return call.mode != "offline" or is_cached(rec, call, known)


def find_missing(
    wanted: Iterable[Record],
    selection: Selection,
    call: Call,
    known: Known,
    selected: Iterable[str] = (),
) -> list[tuple[Record, str]]:
    """Return the records that must be fetched, each with the reason.

    In overwrite mode these are the ``selected`` ids; what goes with them is fetched
    again where it, too, fulfils a term on ``last_modified``.
    """
    if call.mode == "offline":
        return []
    missing = {}
    for rec in wanted:
        one = rec["id"]
        if one in known.fetched or one not in known.catalog.objects:
            continue
        if not is_cached(rec, call, known):
            missing[one] = rec, "missing"
        elif call.mode == "overwrite" and (
            one in selected
            or admits(selection.image_filter, "last_modified", rec["last_modified"])
        ):
            missing[one] = rec, "overwrite"
    return list(missing.values())


def download(
    missing: list[tuple[Record, str]], call: Call, known: Known, quiet: bool = True
) -> None:
    """Fetch files; note what came and what failed, or raise."""
    if not missing:
        return
    refuse_without_bucket([rec for rec, _ in missing], call, known)
    by_id = {rec["id"]: rec for rec, _ in missing}
    verbose = 0 if quiet and call.verbose < 2 else call.verbose
    failed = fetch_records(by_id.values(), call, verbose)
    known.fetched |= set(by_id) - set(failed)
    known.catalog.on_disk.update(set(by_id) - set(failed))
    if failed and not call.allow_missing:
        _raise_failed(by_id, failed)
    known.failed += [
        {**by_id[one], "reason": failure["reason"]} for one, failure in failed.items()
    ]


def _raise_failed(by_id: dict[str, Record], failed: dict[str, dict]) -> None:
    held_out = sorted(
        f"{by_id[one]['session']} of {by_id[one]['subject']}"
        for one, failure in failed.items()
        if failure["status"] == 403 and by_id[one]["session"] in layout.HELD_OUT
    )
    if held_out:
        raise HeldOutSessionError(
            f"{listed(list(dict.fromkeys(held_out)))} is held out for evaluation: the "
            "bucket denies it (status 403). Leave it out of sessions."
        )
    reasons = [f"  {one}: {failure['reason']}" for one, failure in failed.items()]
    raise DownloadError(
        f"{len(failed)} of {len(by_id)} files could not be fetched. What arrived "
        "stays, and the same call goes on from there; allow_missing=True does without "
        "the others.\n" + "\n".join(reasons),
        failed=[{**by_id[one], "reason": f["reason"]} for one, f in failed.items()],
    )


def refuse_without_bucket(missing: list[Record], call: Call, known: Known) -> None:
    """Raise where files are missing and the bucket did not answer."""
    if missing and known.catalog.error:
        raise BucketError(
            f"{known.catalog.error} Missing in {call.data_dir}: "
            f"{listed([rec['id'] for rec in missing])}. mode='offline' returns what is "
            "there."
        )
