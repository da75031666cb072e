"""From a key of the bucket to the record of its file."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from laion_fmri_fetchers.exceptions import UnsafeKeyError

from .trees import (
    ANATOMICAL,
    FREESURFER,
    FUNCTIONAL_GRID,
    HELD_OUT,
    LOCALIZERS,
    RULES,
    STATE_FOLDER,
)

# The metadata of a file: `RECORD_FIELDS`, and their values.
Record = dict[str, Any]

NIFTI_EXTENSIONS = ("nii.gz", "nii")
GIFTI_EXTENSION = "func.gii"

# A hemisphere, by the `hemi` of a record.
HEMISPHERE_OF = {"L": "left", "R": "right"}

_ENTITIES = (
    *("image_type", "task", "run", "echo", "part", "space", "res", "hemi"),
    *("contrast", "stat", "desc", "suffix", "extension", "roi"),
)
RECORD_FIELDS = (
    *("id", "key", "subject", "session", *_ENTITIES, "roi_category"),
    *("size", "etag", "last_modified", "outdated"),
    *("relative_path", "absolute_path"),
)

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_NO_NAMES = frozenset({"", ".", ".."})
_LABEL_VALUE = re.compile(r"((?:^|_)label-)([^_.]+)")
_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
_SESSION = re.compile(r"ses-[A-Za-z0-9]+")
_MAIN_SESSION = re.compile(r"ses-\d+")
_BIDS_NAME = re.compile(r"((?:[A-Za-z0-9]+-[^_.]+_)+)([A-Za-z0-9]+)((?:\.[^./]+)*)")


def clean_key(key: str) -> str:
    """Return the local path of a key: hyphens of each ``label-`` value removed.

    Parameters
    ----------
    key : str
        A key of the bucket, or a relative path.

    Returns
    -------
    str
        The path below the data directory, with ``/`` between folders; it is the
        ``id`` of the file's record.

    Raises
    ------
    UnsafeKeyError
        If the path would leave the data directory, or enter the state folder.

    Examples
    --------
    >>> clean_key("derivatives/rois/sub-01/face/sub-01_label-pSTS-faces_mask.nii.gz")
    'derivatives/rois/sub-01/face/sub-01_label-pSTSfaces_mask.nii.gz'
    """
    folder, slash, name = key.rpartition("/")
    clean = clean_name(name)
    if clean is None or not is_local_folder(folder or name) or key.startswith("/"):
        raise UnsafeKeyError(
            f"The name {key!r} would lead out of the data directory, or has an empty "
            "folder name ('//'), a control character or a backslash; nothing was "
            "written. Check it, and that LAION_FMRI_BUCKET_URL is a bucket you trust."
        )
    return folder + slash + clean


def clean_name(name: str) -> str | None:
    """Return a file name as `clean_key` gives it, None for one that it refuses.

    Examples
    --------
    >>> clean_name("label-FFA1_mask.nii"), clean_name("label-FFA-1_mask.nii")
    ('label-FFA1_mask.nii', 'label-FFA1_mask.nii')
    """
    if _UNSAFE.search(name) or name in _NO_NAMES:
        return None
    if "label-" not in name:  # most names; asking first is quicker
        return name
    return _LABEL_VALUE.sub(lambda match: match[1] + match[2].replace("-", ""), name)


@lru_cache(maxsize=4096)
def is_local_folder(folder: str) -> bool:
    """Return whether files may lie in a folder: "" is the data directory."""
    parts = folder.split("/")
    is_taken = parts[0][1:2] == ":" or parts[0].casefold() == STATE_FOLDER
    is_unsafe = is_taken or _UNSAFE.search(folder) or not _NO_NAMES.isdisjoint(parts)
    return not (folder and is_unsafe)


def record_of(
    key: str,
    size: int | None = None,
    etag: str | None = None,
    last_modified: str | None = None,
) -> Record:
    """Return the record of a key: the metadata in its name and its listing.

    Parameters
    ----------
    key : str
        A key of the bucket, or a relative path on disk.
    size : int, optional
        Size in bytes.
    etag : str, optional
        ETag, without quotes.
    last_modified : str, optional
        Date of the last change, ISO 8601, UTC.

    Returns
    -------
    dict
        All of `RECORD_FIELDS`; fields that the file does not have are None, and so is
        ``absolute_path``, which depends on the data directory. ``run`` and ``echo``
        are int; ``outdated`` is False, as it cannot be known from the name.

    Raises
    ------
    UnsafeKeyError
        If the path would leave the data directory.

    Examples
    --------
    >>> rec = record_of(
    ...     "derivatives/rois/sub-01/face/"
    ...     "sub-01_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz"
    ... )
    >>> rec["roi"], rec["roi_category"], rec["image_type"], rec["space"]
    ('FFA1', 'face', 'roi', 'T1w')
    """
    return record_of_path(clean_key(key), key, size, etag, last_modified)


def record_of_path(
    path: str,
    key: str | None = None,
    size: int | None = None,
    etag: str | None = None,
    last_modified: str | None = None,
) -> Record:
    """Return the record of a file on disk, whose path is as `clean_key` gives it.

    Parameters
    ----------
    path : str
        The path below the data directory.
    key, size, etag, last_modified : optional
        As in `record_of`; without a key, it is the path.
    """
    folder, _, name = path.rpartition("/")
    tree, subject, session, kind = _folder(folder)
    prefix = f"{subject}_" if subject else ""
    if session and name.startswith(f"{prefix}{session}_"):
        prefix += f"{session}_"
    rec = _template(tree, kind, session is not None, name.removeprefix(prefix)).copy()
    rec["id"] = rec["relative_path"] = path
    rec["key"] = path if key is None else key
    rec["subject"], rec["session"] = subject, session
    rec["size"], rec["etag"], rec["last_modified"] = size, etag, last_modified
    return rec


@lru_cache(maxsize=4096)
def _folder(folder: str) -> tuple[str | None, str | None, str | None, str | None]:
    """Return tree, subject, session and kind (figures, func, ROI category, …)."""
    parts = folder.split("/")
    is_subject = [_SUBJECT.fullmatch(part) is not None for part in parts[:3]]
    if True not in is_subject:
        tree = "/".join(parts[: 2 if parts[0] == "derivatives" else 1])
        return f"{tree}/" if tree else None, None, None, None
    depth = is_subject.index(True)
    tree = "".join(f"{part}/" for part in parts[:depth])
    subject, *rest = parts[depth:]
    session = None
    if rest and tree != FREESURFER and _SESSION.fullmatch(rest[0]):
        session = rest.pop(0)
    return tree, subject, session, rest[-1] if rest else None


@lru_cache(maxsize=4096)
def _template(
    tree: str | None, kind: str | None, of_session: bool, tail: str
) -> Record:
    """Return what files of all subjects and sessions share: the rest of their name.

    It is to be copied: that is quicker than to make each record from its parts.
    """
    entities: dict[str, str] = {}
    match = _BIDS_NAME.fullmatch(tail) if tree != FREESURFER else None
    if match:
        entities = dict(pair.split("-", 1) for pair in match[1].rstrip("_").split("_"))
        entities |= {"suffix": match[2], "extension": match[3][1:]}
    elif "." in tail:
        entities["extension"] = tail.rpartition(".")[2]
    values: Record = {field: entities.get(field) or None for field in _ENTITIES}
    is_volume = values["extension"] in NIFTI_EXTENSIONS
    named = (
        *("ses" if of_session else "sub", kind, values["suffix"]),
        *("nii" if is_volume else values["extension"], values["stat"]),
        values["desc"],
    )
    file = " ".join(part or "-" for part in named)
    rules = {**RULES.get(tree, {}), "* json * *": "sidecar"} if tree is not None else {}
    found = next((rules[rule] for rule in rules if fnmatchcase(file, rule)), "other")
    if found == "roi" and "label" in entities:
        values |= {"roi": entities["label"], "roi_category": kind}
    elif found == "roi":
        found = "other"
    values |= {"image_type": found, "outdated": False}
    for name in ("run", "echo"):
        number = values[name] or ""
        values[name] = int(number) if number.isdecimal() else None
    return {field: values.get(field) for field in RECORD_FIELDS}


def place_of(path: str) -> tuple[str | None, str | None]:
    """Return the tree and the subject of a path; None where it has none.

    Examples
    --------
    >>> place_of("derivatives/rois/sub-01/face/sub-01_label-FFA1_mask.nii.gz")
    ('derivatives/rois/', 'sub-01')
    >>> place_of("sub-01/ses-01/func/sub-01_ses-01_bold.nii.gz")
    ('', 'sub-01')
    """
    return _folder(path.rpartition("/")[0])[:2]


def is_nifti(record: Record) -> bool:
    """Return whether a file is a NIfTI image."""
    return record["extension"] in NIFTI_EXTENSIONS


def is_nifti_name(name: str) -> bool:
    """Return whether a file name or path is that of a NIfTI image.

    Examples
    --------
    >>> is_nifti_name("sub-01_T1w.nii.gz"), is_nifti_name("T1.mgz")
    (True, False)
    """
    return name.endswith(tuple(f".{extension}" for extension in NIFTI_EXTENSIONS))


def subject_of_name(name: str) -> str | None:
    """Return the subject that a file name begins with, None where there is none.

    Examples
    --------
    >>> subject_of_name("sub-01_space-T1w_stat-rsquare_statmap.nii.gz")
    'sub-01'
    >>> subject_of_name("mean.nii.gz") is None
    True
    """
    subject, underscore, _ = name.partition("_")
    return subject if underscore and _SUBJECT.fullmatch(subject) else None


def is_of_session(record: Record) -> bool:
    """Return whether a file belongs to one session, and not to the subject.

    Anatomical images have a session in their name, but belong to the subject.
    """
    return record["session"] is not None and not record["id"].startswith(ANATOMICAL)


def is_of_trials(record: Record) -> bool:
    """Return whether a file belongs to a session that has a trial table."""
    return (
        is_of_session(record)
        and _MAIN_SESSION.fullmatch(record["session"]) is not None
        and not record["id"].startswith(LOCALIZERS)
    )


def is_held_out(record: Record) -> bool:
    """Return whether the bucket denies a file: held out, and not of a localizer."""
    return record["session"] in HELD_OUT and not record["id"].startswith(LOCALIZERS)


def is_functional_brain_mask(record: Record) -> bool:
    """Return whether a file is the brain mask on the functional grid."""
    return record["image_type"] == "brain_mask" and record["res"] == FUNCTIONAL_GRID


def on_one_grid(records: list[Record]) -> list[Record]:
    """Return masks of one grid: the functional one, where any of them is on it."""
    functional = [rec for rec in records if rec.get("res") == FUNCTIONAL_GRID]
    return functional or records
