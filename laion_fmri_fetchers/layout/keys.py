"""From a key of the bucket to the record of its file."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from laion_fmri_fetchers.exceptions import UnsafeKeyError

from .trees import (
    ANATOMICAL,
    FREESURFER,
    FUNCTIONAL_GRID,
    GLM,
    HELD_OUT,
    LOCALIZERS,
    RAW,
    ROIS,
    STATE_FOLDER,
    TEDANA,
)

Record = dict[str, Any]
"""A file's metadata: `RECORD_FIELDS`, and their values."""

NIFTI_EXTENSIONS = ("nii.gz", "nii")

GIFTI_EXTENSION = "func.gii"

HEMISPHERE_OF = {"L": "left", "R": "right"}
"""A hemisphere, by the ``hemi`` of a record."""

_ENTITIES = (
    *("image_type", "task", "run", "echo", "part", "space", "res", "hemi"),
    *("contrast", "stat", "desc", "suffix", "extension", "roi"),
)

_NUMBERED = ("run", "echo")

RECORD_FIELDS = (
    *("id", "key", "subject", "session", *_ENTITIES, "roi_category"),
    *("size", "etag", "last_modified", "outdated"),
    *("relative_path", "absolute_path"),
)

_LABEL_VALUE = re.compile(r"(?:^|(?<=_))label-[^_.]+")

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")

_UNSAFE_FOLDERS = frozenset({"", ".", ".."})

_SUBJECT_FOLDER = re.compile(r"sub-[A-Za-z0-9]+")

_SESSION_FOLDER = re.compile(r"ses-[A-Za-z0-9]+")

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
    if _UNSAFE.search(key):
        raise UnsafeKeyError(
            f"The name {key!r} has a control character or a backslash, which names of "
            "files may not have here; nothing was written."
        )
    if "//" in key:
        raise UnsafeKeyError(
            f"The name {key!r} has an empty folder name ('//'), which no path on disk "
            "can have; nothing was written."
        )
    if not _is_safe(folder, name) or (slash and not folder):
        raise UnsafeKeyError(
            f"The name {key!r} would lead out of the data directory; nothing was "
            "written. Check that LAION_FMRI_BUCKET_URL names a bucket you trust."
        )
    if "label-" in name:
        return folder + slash + _LABEL_VALUE.sub(_without_hyphens, name)
    return key


def clean_name(name: str) -> str | None:
    """Return a file name as `clean_key` gives it, None for one that it refuses.

    Examples
    --------
    >>> clean_name("label-FFA1_mask.nii"), clean_name("label-FFA-1_mask.nii")
    ('label-FFA1_mask.nii', 'label-FFA1_mask.nii')
    """
    if _UNSAFE.search(name) or name in _UNSAFE_FOLDERS:
        return None
    return _LABEL_VALUE.sub(_without_hyphens, name) if "label-" in name else name


def is_local_folder(folder: str) -> bool:
    """Tell whether files may lie in a folder: "" is the data directory."""
    return not folder or (_is_safe_folder(folder) and not _UNSAFE.search(folder))


def _is_safe(folder: str, name: str) -> bool:
    """Return whether a path stays in the data directory, out of the state folder."""
    if name in _UNSAFE_FOLDERS or (folder and not _is_safe_folder(folder)):
        return False
    return bool(folder) or _is_safe_top(name)


@lru_cache(maxsize=4096)
def _is_safe_folder(folder: str) -> bool:
    folders = folder.split("/")
    return _UNSAFE_FOLDERS.isdisjoint(folders) and _is_safe_top(folders[0])


def _is_safe_top(name: str) -> bool:
    return name[1:2] != ":" and name.casefold() != STATE_FOLDER


def _without_hyphens(match: re.Match) -> str:
    return "label-" + match[0].removeprefix("label-").replace("-", "")


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
    tail = name.removeprefix(prefix)
    rec = _record_but_names(tree, kind, session is not None, tail).copy()
    rec["id"] = rec["relative_path"] = path
    rec["key"] = path if key is None else key
    rec["subject"], rec["session"] = subject, session
    rec["size"], rec["etag"], rec["last_modified"] = size, etag, last_modified
    return rec


@lru_cache(maxsize=4096)
def _folder(folder: str) -> tuple[str | None, str | None, str | None, str | None]:
    """Return tree, subject, session and kind (figures, func, ROI category, …)."""
    parts = folder.split("/")
    depth = next((i for i in range(len(parts[:3])) if _is_subject(parts[i])), None)
    if depth is None:
        depth = 2 if parts[0] == "derivatives" else 1
        return _tree(parts[:depth]) or None, None, None, None
    tree, subject, rest = _tree(parts[:depth]), parts[depth], parts[depth + 1 :]
    session = None
    if rest and tree != FREESURFER and _SESSION_FOLDER.fullmatch(rest[0]):
        session = rest.pop(0)
    return tree, subject, session, rest[-1] if rest else None


def _tree(folders: list[str]) -> str:
    return "".join(f"{folder}/" for folder in folders if folder)


def _is_subject(folder: str) -> bool:
    return _SUBJECT_FOLDER.fullmatch(folder) is not None


@lru_cache(maxsize=4096)
def _record_but_names(
    tree: str | None, kind: str | None, of_session: bool, tail: str
) -> Record:
    """Return what files of all subjects and sessions share: the rest of their name.

    It is to be copied: that is quicker than to make each record from its parts.
    """
    entities = _entities(tree, kind, of_session, tail)
    values = {**entities, "roi_category": kind if entities["roi"] else None}
    return {name: values.get(name) for name in RECORD_FIELDS} | {"outdated": False}


def _entities(
    tree: str | None, kind: str | None, of_session: bool, tail: str
) -> dict[str, str | int | None]:
    """Return the entities in a file name behind subject and session."""
    entities: dict[str, str] = {}
    match = _BIDS_NAME.fullmatch(tail) if tree != FREESURFER else None
    if match:
        entities = dict(pair.split("-", 1) for pair in match[1].rstrip("_").split("_"))
        entities |= {"suffix": match[2], "extension": match[3][1:]}
    elif "." in tail:
        entities = {"extension": tail.rpartition(".")[2]}
    image_type = _image_type(tree, kind, of_session, entities)
    entities["image_type"] = image_type
    entities["roi"] = entities.get("label", "") if image_type == "roi" else ""
    values = {name: entities.get(name) or None for name in _ENTITIES}
    return values | {name: _number(values[name]) for name in _NUMBERED}


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isdecimal() else None


_BY_EXTENSION: dict[tuple, str] = {
    (GLM, True, "trials", "tsv"): "trials",
    (GLM, True, "model", "h5"): "model",
    (GLM, True, "summary", "json"): "summary",
    (GLM, False, "summary", "json"): "subject_summary",
}

_MAPS: dict[tuple, str] = {
    (GLM, True, "statmap", "effect", "SingletrialBetas"): "betas",
    (GLM, True, "statmap", "rsquare", "R2"): "rsquare",
    (GLM, True, "statmap", None, "Noiseceiling"): "noise_ceiling",
    (GLM, True, "statmap", None, "Fracridge"): "fracridge",
    (GLM, True, "dseg", None, "HRFindex"): "hrf_index",
    (GLM, False, "statmap", "rsquare", "R2mean"): "mean_rsquare",
    (GLM, False, "statmap", None, "Noiseceiling4rep"): "subject_noise_ceiling",
    (GLM, False, "statmap", None, "Noiseceiling12rep"): "subject_noise_ceiling",
    (GLM, False, "statmap", None, "NoiseceilingAllrep"): "subject_noise_ceiling",
    (ANATOMICAL, True, "mask", None, "brain"): "brain_mask",
    (ANATOMICAL, True, "T1w", None, None): "anatomical",
    (ANATOMICAL, True, "T2w", None, None): "anatomical",
}

_LOCALIZER_MAPS = {"z": "localizer", "effect": "localizer_effect"}

_RAW_SUFFIXES = {"bold": "raw_bold", "sbref": "sbref"}

_RAW_FOLDERS = {"fmap": "fieldmap", "anat": "raw_anatomical"}


def _image_type(
    tree: str | None, kind: str | None, of_session: bool, entities: dict[str, str]
) -> str:
    """Return the ``image_type`` of a file."""
    if tree == FREESURFER:
        return "freesurfer"
    if tree is None:
        return "other"
    if tree == GLM and kind == "figures":
        return "figure"
    suffix, extension = entities.get("suffix"), entities.get("extension")
    if image_type := _BY_EXTENSION.get((tree, of_session, suffix, extension)):
        return image_type
    if extension == "json":
        return "sidecar"
    if tree == ROIS and suffix == "mask" and "label" in entities:
        return "roi"
    if tree == LOCALIZERS and suffix == "statmap" and extension in _MAP_EXTENSIONS:
        return _LOCALIZER_MAPS.get(entities.get("stat", ""), "other")
    if tree == RAW and suffix == "events" and extension == "tsv":
        return "events"
    return _volume_type(tree, kind, of_session, entities)


def _volume_type(
    tree: str | None, kind: str | None, of_session: bool, entities: dict[str, str]
) -> str:
    """Return the ``image_type`` of a NIfTI file, "other" for any other file."""
    if entities.get("extension") not in NIFTI_EXTENSIONS:
        return "other"
    suffix = entities.get("suffix", "")
    if tree == TEDANA:
        return "preprocessed_bold" if suffix == "bold" else "other"
    if tree == RAW:
        return _RAW_SUFFIXES.get(suffix) or _RAW_FOLDERS.get(kind or "", "other")
    stat, desc = entities.get("stat"), entities.get("desc")
    return _MAPS.get((tree, of_session, suffix, stat, desc), "other")


_MAP_EXTENSIONS = (*NIFTI_EXTENSIONS, GIFTI_EXTENSION)


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
    return subject if underscore and _is_subject(subject) else None


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


def noise_ceiling_name(record: Record) -> str:
    """Return ``"4rep"``, ``"12rep"`` or ``"Allrep"`` of a subject's noise ceiling."""
    return record["desc"].removeprefix("Noiseceiling")
