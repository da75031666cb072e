"""The dataset's layout: bucket keys to records, stimulus labels to fields.

Every key name and every rule on names has its one home here; nothing here reads
or writes anything. The rules follow the published layout of LAION-fMRI.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from .exceptions import UnsafeKeyError

STATE_FOLDER = ".laion_fmri"

GLM = "derivatives/glmsingle-tedana/"
ROIS = "derivatives/rois/"
ANATOMICAL = "derivatives/anatomical/"
FREESURFER = "derivatives/freesurfer/"
TREES = (GLM, ROIS, ANATOMICAL, FREESURFER)
STIMULI = "stimuli/"
PARTICIPANTS = "participants.tsv"
ARCHIVE = "stimuli/task-images_stimuli.h5"
STIMULUS_TABLE = "stimuli/task-images_metadata.csv"
GATED = frozenset({ARCHIVE, STIMULUS_TABLE})
STIMULUS_IMAGES = "stimuli/images/"
CAPTIONS = "stimuli/task-images_desc-captions.csv"
SEGMENTATIONS = "stimuli/task-images_desc-segmentations.h5"
SEGMENTATIONS_TABLE = "stimuli/task-images_desc-segmentations_metadata.csv"
EMBEDDING_MODELS = ("CLIP", "DINOv2", "PEcore", "SigLIP2")

HELD_OUT = frozenset(f"ses-{n}" for n in range(31, 35))

IMAGE_TYPES = {
    "betas": GLM,
    "trials": GLM,
    "noise_ceiling": GLM,
    "rsquare": GLM,
    "hrf_index": GLM,
    "fracridge": GLM,
    "model": GLM,
    "summary": GLM,
    "figure": GLM,
    "mean_rsquare": GLM,
    "subject_noise_ceiling": GLM,
    "subject_summary": GLM,
    "brain_mask": ANATOMICAL,
    "anatomical": ANATOMICAL,
    "roi": ROIS,
    "freesurfer": FREESURFER,
    "sidecar": None,
    "other": None,
}
"""Every ``image_type``, and the tree its files lie in (None: in any)."""

SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
"""The published participants; what a bucket holds is asked of it."""

ROI_CATEGORIES = {
    "body": ("EBA", "FBA"),
    "character": ("VWFA1", "VWFA2", "mfswords", "pSTSwords"),
    "face": ("FFA1", "FFA2", "OFA", "pSTSfaces"),
    "laion": (
        "laionEVC",
        "laiondorsal",
        "laiongeneral",
        "laionlateral",
        "laionventral",
    ),
    "motion": ("MST", "MT"),
    "object": ("lobjects", "vobjects"),
    "place": ("MPA", "OPA", "PPA"),
    "retinotopy": (
        *("IPCS", "IPS0", "LO1", "LO2", "SPCS", "TO1", "TO2", "V1d", "V1v"),
        *("V2d", "V2v", "V3A", "V3B", "V3d", "V3v", "VO1", "VO2", "hV4"),
    ),
}
"""The published ROI names by category; a subject has most of them."""


def is_published_roi(name: str) -> bool:
    """Tell whether a name is that of a published ROI or of a category."""
    return any(name == c or name in names for c, names in ROI_CATEGORIES.items())


RECORD_FIELDS = (
    *("id", "key", "subject", "session", "image_type"),
    *("task", "space", "res", "hemi", "stat", "desc", "suffix", "extension"),
    *("roi", "roi_category", "size", "etag", "last_modified"),
    *("relative_path", "absolute_path"),
)

TRIAL_FIELDS = (
    *("subject", "session", "run", "beta_index", "label", "image_index"),
    *("unique_or_shared", "n_reps", "dataset", "ood_type", "participant"),
)

LABEL_FIELDS = TRIAL_FIELDS[-5:]

_NULL = re.compile(r"(n/?a|none|null|)", re.IGNORECASE)
_LABEL_VALUE = re.compile(r"(?<=_label-)[^_.]+")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_FILE_NAME = re.compile(r"(?!\.{1,2}\Z)(?!.:)[^\x00-\x1f\x7f/\\]+")
_UNSAFE_FOLDERS = frozenset({"", ".", ".."})
_SUBJECT_FOLDER = re.compile(r"sub-[A-Za-z0-9]+")
_SESSION_FOLDER = re.compile(r"ses-[A-Za-z0-9]+")
_MAIN_SESSION = re.compile(r"ses-\d+")
_BIDS_NAME = re.compile(r"((?:[A-Za-z0-9]+-[^_.]+_)+)([A-Za-z0-9]+)((?:\.[^./]+)*)")
_PARTICIPANT = re.compile(r"[0-9][0-9]")

OOD_TYPES = frozenset(
    (
        *("cropped", "gabor", "gaudy", "illusion-classic", "illusion-natural"),
        *("relations", "selfmade", "shape", "unusual"),
    )
)
_N_REPS = {"12rep": 12, "4rep": 4}
_SHARED_SOURCES = frozenset({"LAION", "NSD", "THINGS+", "OOD"})
_UNIQUE_SOURCES = frozenset({"LAION", "THINGS", "THINGS+"})


@lru_cache(maxsize=2**15)
def clean_key(key: str) -> str:
    """Return the local path of a key: hyphens of an ROI's label value removed.

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
    folders = key.split("/")
    if (
        not _UNSAFE_FOLDERS.isdisjoint(folders)
        or _UNSAFE.search(key)
        or folders[0][1:2] == ":"
        or folders[0].casefold() == STATE_FOLDER
    ):
        raise UnsafeKeyError(
            f"The name {key!r} would lead out of the data directory; nothing was "
            "written. Check that LAION_FMRI_BUCKET_URL names a bucket you trust."
        )
    if key.startswith(ROIS) and "_label-" in folders[-1]:
        folders[-1] = _LABEL_VALUE.sub(_without_hyphens, folders[-1])
        return "/".join(folders)
    return key


def _without_hyphens(match: re.Match) -> str:
    return match[0].replace("-", "")


def record(
    key: str,
    size: int | None = None,
    etag: str | None = None,
    last_modified: str | None = None,
) -> dict[str, Any]:
    """Return the record of a key: what its name and its listing tell.

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
        All of `RECORD_FIELDS`; fields that the file lacks are None, and so is
        ``absolute_path``, which depends on the data directory.

    Raises
    ------
    UnsafeKeyError
        If the path would leave the data directory.

    Examples
    --------
    >>> rec = record(
    ...     "derivatives/rois/sub-01/face/"
    ...     "sub-01_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz"
    ... )
    >>> rec["roi"], rec["roi_category"], rec["image_type"], rec["space"]
    ('FFA1', 'face', 'roi', 'T1w')
    """
    path = clean_key(key)
    folder, _, name = path.rpartition("/")
    tree, subject, session, kind = _folder(folder)
    prefix = f"{subject}_" if subject else ""
    if session and name.startswith(f"{prefix}{session}_"):
        prefix += f"{session}_"
    tail = name.removeprefix(prefix)
    entities = _entities(tree, kind, session, tail)
    return {
        "id": path,
        "key": key,
        "subject": subject,
        "session": session,
        **entities,
        "roi_category": kind if entities["roi"] else None,
        "size": size,
        "etag": etag,
        "last_modified": last_modified,
        "relative_path": path,
        "absolute_path": None,
    }


@lru_cache(maxsize=4096)
def _folder(folder: str) -> tuple[str | None, str | None, str | None, str | None]:
    """Return tree, subject, session and kind (figures, ROI category, …)."""
    parts = folder.split("/")
    tree = "/".join(parts[:2]) + "/" if parts[0] == "derivatives" else None
    subject = session = None
    rest = parts[2:]
    if rest and _SUBJECT_FOLDER.fullmatch(rest[0]):
        subject = rest.pop(0)
        if rest and tree != FREESURFER and _SESSION_FOLDER.fullmatch(rest[0]):
            session = rest.pop(0)
    return tree, subject, session, rest[-1] if rest else None


@lru_cache(maxsize=4096)
def _entities(
    tree: str | None, kind: str | None, session: str | None, tail: str
) -> dict[str, str | None]:
    """Return what the rest of a file name tells, behind subject and session."""
    found: dict[str, str] = {}
    match = _BIDS_NAME.fullmatch(tail) if tree != FREESURFER else None
    if match:
        found = dict(e.split("-", 1) for e in match[1].rstrip("_").split("_"))
        found |= {"suffix": match[2], "extension": match[3][1:]}
    elif "." in tail:
        found = {"extension": tail.rpartition(".")[2]}
    found["image_type"] = _image_type(tree, kind, session, found)
    found["roi"] = found.get("label", "") if found["image_type"] == "roi" else ""
    names = ("image_type", "task", "space", "res", "hemi", "stat", "desc")
    return {n: found.get(n) or None for n in (*names, "suffix", "extension", "roi")}


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


def _image_type(
    tree: str | None, kind: str | None, session: str | None, entities: dict[str, str]
) -> str:
    """Return the ``image_type`` of a file."""
    if tree == FREESURFER:
        return "freesurfer"
    if tree == GLM and kind == "figures":
        return "figure"
    of_session, suffix = session is not None, entities.get("suffix")
    extension = entities.get("extension")
    if found := _BY_EXTENSION.get((tree, of_session, suffix, extension)):
        return found
    if extension == "json":
        return "sidecar"
    if tree == ROIS and suffix == "mask" and "label" in entities:
        return "roi"
    stat, desc = entities.get("stat"), entities.get("desc")
    if extension in ("nii.gz", "nii"):
        return _MAPS.get((tree, of_session, suffix, stat, desc), "other")
    return "other"


def place(path: str) -> tuple[str, str]:
    """Return the tree and the subject that a path lies under; "" for none.

    Examples
    --------
    >>> place("derivatives/rois/sub-01/face/sub-01_label-FFA1_mask.nii.gz")
    ('derivatives/rois/', 'sub-01')
    """
    top, _, rest = path.partition("/")
    tree, _, rest = rest.partition("/")
    return (f"{top}/{tree}/", rest.partition("/")[0]) if rest else ("", "")


def listings_of(
    subject: str, sessions: Iterable[str] | None = None
) -> list[tuple[str, str]]:
    """Return the ``(prefix, delimiter)`` to list for files of a subject.

    Parameters
    ----------
    subject : str
        Such as ``"sub-01"``.
    sessions : iterable of str, optional
        Only these sessions are listed; None: all.

    Examples
    --------
    >>> listings_of("sub-01", ["ses-02"])[:2]  # doctest: +NORMALIZE_WHITESPACE
    [('derivatives/glmsingle-tedana/sub-01/', '/'),
     ('derivatives/glmsingle-tedana/sub-01/ses-02/', '')]
    """
    glm = f"{GLM}{subject}/"
    if sessions is None:
        wanted = [(glm, "")]
    else:
        wanted = [(glm, "/"), *((f"{glm}{session}/", "") for session in sessions)]
    return [*wanted, (f"{ROIS}{subject}/", ""), (f"{ANATOMICAL}{subject}/", "")]


def subjects_among(folders: Iterable[str]) -> tuple[str, ...]:
    """Return the subjects that have a folder of betas and maps.

    Examples
    --------
    >>> subjects_among(["derivatives/glmsingle-tedana/sub-03/", "derivatives/x/"])
    ('sub-03',)
    """
    names = {f[len(GLM) : -1] for f in folders if f.startswith(GLM)}
    return tuple(sorted(name for name in names if clean_subject(name) == name))


def is_of_session(record: dict[str, Any]) -> bool:
    """Tell whether a record's file belongs to an image-viewing session."""
    session = record["session"]
    return session is not None and _MAIN_SESSION.fullmatch(session) is not None


def is_functional_brain_mask(record: dict[str, Any]) -> bool:
    """Tell whether a record is the brain mask on the functional grid."""
    return record["image_type"] == "brain_mask" and record["res"] == "1pt8"


def clean_subject(value: object) -> str | None:
    """Return ``"sub-01"`` for ``"sub-01"``, ``"01"`` or 1; None for anything else.

    Examples
    --------
    >>> clean_subject("sub-01"), clean_subject("1"), clean_subject(1)
    ('sub-01', 'sub-01', 'sub-01')
    >>> clean_subject("subject one") is None
    True
    """
    return _clean_label("sub", value)


def clean_session(value: object) -> str | None:
    """Return ``"ses-01"`` for ``"ses-01"``, ``"01"`` or 1; None for anything else.

    Examples
    --------
    >>> clean_session("ses-01"), clean_session(31)
    ('ses-01', 'ses-31')
    """
    return _clean_label("ses", value)


def _clean_label(entity: str, value: object) -> str | None:
    if not (isinstance(value, str) or _is_integer(value)):
        return None
    match = re.fullmatch(rf"(?:{entity}-)?(\d{{1,4}})", str(value).strip())
    return f"{entity}-{int(match[1]):02d}" if match else None


def _is_integer(value: object) -> bool:
    return hasattr(value, "__index__")


def clean_roi(name: str) -> str:
    """Return an ROI name without hyphens.

    Examples
    --------
    >>> clean_roi("pSTS-faces")
    'pSTSfaces'
    """
    return name.replace("-", "")


def noise_ceiling_name(record: dict[str, Any]) -> str:
    """Return ``"4rep"``, ``"12rep"`` or ``"Allrep"`` of a subject's noise ceiling."""
    return record["desc"].removeprefix("Noiseceiling")


def trials_id(record: dict[str, Any]) -> str:
    """Return the ``id`` of the trial table of a record's session.

    Examples
    --------
    >>> trials_id({"subject": "sub-01", "session": "ses-02"}).rpartition("/")[2]
    'sub-01_ses-02_task-images_desc-SingletrialBetas_trials.tsv'
    """
    subject, session = record["subject"], record["session"]
    return (
        f"{GLM}{subject}/{session}/func/"
        f"{subject}_{session}_task-images_desc-SingletrialBetas_trials.tsv"
    )


def none_if_null(value: Any) -> Any:
    """Return None for the strings that stand for a null in the dataset's tables.

    Examples
    --------
    >>> none_if_null("n/a") is None, none_if_null("None") is None, none_if_null("LAION")
    (True, True, 'LAION')
    """
    if isinstance(value, str) and _NULL.fullmatch(value.strip()):
        return None
    return value


def stimulus_fields(label: str) -> dict[str, Any]:
    """Return what a stimulus label tells.

    Parameters
    ----------
    label : str
        File name of the stimulus image, as in the trial tables.

    Returns
    -------
    dict
        ``unique_or_shared`` ("unique" or "shared"), ``n_reps`` (int: times the image
        is shown to a participant over the main sessions; 4 for a unique one),
        ``dataset`` (the label's SOURCE), ``ood_type`` and ``participant`` ("sub-05").
        What a label does not tell is None; of an unknown label, all is.

    Examples
    --------
    >>> stimulus_fields("shared_12rep_THINGS+_kmeans_211_bracelet2.jpg")["dataset"]
    'THINGS+'
    >>> stimulus_fields("unique_THINGS_air_pump_p03.jpg")["participant"]
    'sub-03'
    """
    return dict(zip(LABEL_FIELDS, label_values(label), strict=True))


def label_values(label: str) -> tuple[str | int | None, ...]:
    """Return the values of `stimulus_fields` alone, in the order of `LABEL_FIELDS`."""
    kind, _, rest = label.partition("_")
    stem, _, extension = rest.rpartition(".")
    first, _, rest = stem.partition("_")
    if kind == "shared" and extension in ("jpg", "png"):
        source, _, name = rest.partition("_")
        if first in _N_REPS and source in _SHARED_SOURCES and name:
            ood_type, _, name = name.partition("_")
            is_ood = source == "OOD" and ood_type in OOD_TYPES and name
            return kind, _N_REPS[first], source, ood_type if is_ood else None, None
    elif kind == "unique" and extension == "jpg":
        name, _, number = rest.rpartition("_p")
        if first in _UNIQUE_SOURCES and name and _PARTICIPANT.fullmatch(number):
            return kind, 4, first, None, f"sub-{number}"
    return (None,) * len(LABEL_FIELDS)


def embeddings_id(model: str) -> str:
    """Return the ``id`` of the embeddings of a model.

    Examples
    --------
    >>> embeddings_id("CLIP")
    'stimuli/task-images_desc-CLIP_embeddings.h5'
    """
    return f"{STIMULI}task-images_desc-{model}_embeddings.h5"


def stimulus_image(name: str) -> str:
    """Return the path, below the data directory, of an extracted stimulus image.

    Parameters
    ----------
    name : str
        ``image_name``, the label of trial tables.

    Returns
    -------
    str
        The path; spaces, ``+`` and dots of the name are kept.

    Raises
    ------
    UnsafeKeyError
        If the name would leave the folder of images.

    Examples
    --------
    >>> stimulus_image("shared_4rep_OOD_unusual_Screenshot 2024.jpg")
    'stimuli/images/shared_4rep_OOD_unusual_Screenshot 2024.jpg'
    """
    if not _FILE_NAME.fullmatch(name):
        raise UnsafeKeyError(
            f"The image name {name!r} would lead out of {STIMULUS_IMAGES}; nothing was "
            "written. Check where the stimulus metadata come from."
        )
    return STIMULUS_IMAGES + name


def stimulus_participant(value: object) -> str | None:
    """Return ``"sub-05"`` for a participant of the stimulus table, None for "shared".

    Examples
    --------
    >>> stimulus_participant("05"), stimulus_participant("p05"), clean_subject("sub-05")
    ('sub-05', 'sub-05', 'sub-05')
    >>> stimulus_participant("shared") is None, stimulus_participant("someone")
    (True, 'someone')
    """
    if none_if_null(value) is None or value == "shared":
        return None
    text = str(value).strip()
    return clean_subject(text.removeprefix("p")) or text
