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
LOCALIZERS = "derivatives/localizers/"
TEDANA = "derivatives/tedana/"
ANATOMICAL = "derivatives/anatomical/"
FREESURFER = "derivatives/freesurfer/"
RAW = ""
"""Raw BIDS data lie in folders of subjects at the top of the bucket."""
TREES = (GLM, ROIS, LOCALIZERS, TEDANA, ANATOMICAL, FREESURFER, RAW)
"""The trees whose layout is known; a subject's files are below ``{tree}{subject}/``."""
BULK = frozenset({TEDANA, RAW})
"""Trees of time series, hundreds of GB a subject: never part of what is not named."""
MADE_HERE = "derivatives/laion-fmri-fetchers/"
"""What this package makes of the dataset's files; the bucket holds nothing there."""
DERIVATIVES = "derivatives/"
STIMULI = "stimuli/"
ARCHIVED = "archive/"
PARTICIPANTS = "participants.tsv"
ROOT_FILES = frozenset(
    (
        *("dataset_description.json", PARTICIPANTS, "participants.json", "README"),
        *("README.md", "README.rst", "README.txt", "CHANGES", "LICENSE"),
        "CITATION.cff",
    )
)
"""Small files at the top of a BIDS dataset; any may be missing."""
ARCHIVE = "stimuli/task-images_stimuli.h5"
STIMULUS_TABLE = "stimuli/task-images_metadata.csv"
GATED = frozenset({ARCHIVE})
STIMULUS_IMAGES = "stimuli/images/"
CAPTIONS = "stimuli/task-images_desc-captions.csv"
SEGMENTATIONS = "stimuli/task-images_desc-segmentations.h5"
SEGMENTATIONS_TABLE = "stimuli/task-images_desc-segmentations_metadata.csv"
EMBEDDING_MODELS = ("CLIP", "DINOv2", "PEcore", "SigLIP2")

HELD_OUT = frozenset(f"ses-{n}" for n in range(31, 35))

FUNCTIONAL_GRID = "1pt8"
"""``res-`` of images on the grid of the betas, 1.778 mm."""
LOCALIZER_GRID = "1pt5"
"""``res-`` of images on the 1.5 mm grid of the volumetric localizer fits."""

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
    "localizer": LOCALIZERS,
    "localizer_effect": LOCALIZERS,
    "preprocessed_bold": TEDANA,
    "raw_bold": RAW,
    "sbref": RAW,
    "events": RAW,
    "fieldmap": RAW,
    "raw_anatomical": RAW,
    "sidecar": None,
    "other": None,
}
"""Every ``image_type``, and the tree its files lie in (None: in any)."""

SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")
"""The published participants; what a bucket holds is asked of it."""

ROI_CATEGORIES = {
    "body": ("EBA", "FBA"),
    "character": ("VWFA1", "VWFA2", "mfswords", "pSTSwords"),
    "face": ("AFP1", "AFP2", "FFA1", "FFA2", "OFA", "pSTSfaces"),
    "laion": (
        "laionEVC",
        "laiondorsal",
        "laiongeneral",
        "laionlateral",
        "laionventral",
    ),
    "motion": ("MST", "MT"),
    "object": ("lobjects", "vobjects"),
    "place": ("MPA", "OPA", "PPA", "SPL"),
    "retinotopy": (
        *("EVC", "IPCS", "IPS0", "LO1", "LO2", "SPCS", "TO1", "TO2", "V1d", "V1v"),
        *("V2d", "V2v", "V3A", "V3B", "V3d", "V3v", "VO1", "VO2", "hV4"),
    ),
}
"""The published ROI names by category; a subject has most of them."""


def is_published_roi(name: str) -> bool:
    """Tell whether a name is that of a published ROI or of a category."""
    return any(name == c or name in names for c, names in ROI_CATEGORIES.items())


_ENTITIES = (
    *("image_type", "task", "run", "echo", "part", "space", "res", "hemi"),
    *("contrast", "stat", "desc", "suffix", "extension", "roi"),
)
_NUMBERED = frozenset({"run", "echo"})

RECORD_FIELDS = (
    *("id", "key", "subject", "session", *_ENTITIES, "roi_category"),
    *("size", "etag", "last_modified", "outdated"),
    *("relative_path", "absolute_path"),
)

LABEL_FIELDS = ("unique_or_shared", "n_reps", "dataset", "ood_type", "participant")

TRIAL_FIELDS = (
    *("subject", "session", "run", "beta_index", "label", "image_index"),
    *(*LABEL_FIELDS, "repetition"),
)

_NULL = re.compile(r"(n/?a|none|null|)", re.IGNORECASE)
_LABEL_VALUE = re.compile(r"(?:^|(?<=_))label-[^_.]+")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_FILE_NAME = re.compile(r"(?!\.{1,2}\Z)(?!.:)[^\x00-\x1f\x7f/\\]+")
_UNSAFE_FOLDERS = frozenset({"", ".", ".."})
_SUBJECT_FOLDER = re.compile(r"sub-[A-Za-z0-9]+")
_SESSION_FOLDER = re.compile(r"ses-[A-Za-z0-9]+")
_MAIN_SESSION = re.compile(r"ses-\d+")
_BIDS_NAME = re.compile(r"((?:[A-Za-z0-9]+-[^_.]+_)+)([A-Za-z0-9]+)((?:\.[^./]+)*)")
_NUMBER_OF_REPS = re.compile(r"(\d+)(?:\s*reps?)?", re.IGNORECASE)

PARTICIPANT_OF_NUMBER = {
    "01": "sub-01",
    "02": "sub-06",
    "03": "sub-05",
    "04": "sub-03",
    "05": "sub-07",
}
"""``p<NN>`` of a label, the number of an acquisition, to the BIDS subject."""

OOD_TYPES = frozenset(
    (
        *("cropped", "gabor", "gaudy", "illusion-classic", "illusion-natural"),
        *("relations", "selfmade", "shape", "unusual"),
    )
)
_N_REPS = {"12rep": 12, "4rep": 4}
_SHARED_SOURCES = frozenset({"LAION", "NSD", "THINGS+", "OOD"})
_UNIQUE_SOURCES = frozenset({"LAION", "THINGS", "THINGS+"})


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
    if not _is_safe(folder, name) or (slash and not folder):
        raise UnsafeKeyError(
            f"The name {key!r} would lead out of the data directory; nothing was "
            "written. Check that LAION_FMRI_BUCKET_URL names a bucket you trust."
        )
    if "label-" in name:
        return folder + slash + _LABEL_VALUE.sub(_without_hyphens, name)
    return key


def _is_safe(folder: str, name: str) -> bool:
    """Tell whether a path stays in the data directory, and out of the state folder."""
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
        ``absolute_path``, which depends on the data directory. ``run`` and ``echo``
        are int; ``outdated`` is False, as the name tells nothing of it.

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
        "outdated": False,
        "relative_path": path,
        "absolute_path": None,
    }


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
def _entities(
    tree: str | None, kind: str | None, session: str | None, tail: str
) -> dict[str, str | int | None]:
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
    return {
        name: _number(found.get(name)) if name in _NUMBERED else found.get(name) or None
        for name in _ENTITIES
    }


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
_VOLUMES = frozenset({"nii.gz", "nii"})


def _image_type(
    tree: str | None, kind: str | None, session: str | None, entities: dict[str, str]
) -> str:
    """Return the ``image_type`` of a file."""
    if tree == FREESURFER:
        return "freesurfer"
    if tree is None:
        return "other"
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
    if tree == LOCALIZERS and suffix == "statmap" and extension in _MAP_EXTENSIONS:
        return _LOCALIZER_MAPS.get(entities.get("stat", ""), "other")
    if tree == RAW and suffix == "events" and extension == "tsv":
        return "events"
    return _volume_type(tree, kind, of_session, entities)


def _volume_type(
    tree: str | None, kind: str | None, of_session: bool, entities: dict[str, str]
) -> str:
    """Return the ``image_type`` of a NIfTI file, "other" for any other file."""
    if entities.get("extension") not in _VOLUMES:
        return "other"
    suffix = entities.get("suffix", "")
    if tree == TEDANA:
        return "preprocessed_bold" if suffix == "bold" else "other"
    if tree == RAW:
        return _RAW_SUFFIXES.get(suffix) or _RAW_FOLDERS.get(kind or "", "other")
    stat, desc = entities.get("stat"), entities.get("desc")
    return _MAPS.get((tree, of_session, suffix, stat, desc), "other")


_MAP_EXTENSIONS = _VOLUMES | {"func.gii"}


def place(path: str) -> tuple[str | None, str | None]:
    """Return the tree and the subject that a path lies under; None for none.

    Examples
    --------
    >>> place("derivatives/rois/sub-01/face/sub-01_label-FFA1_mask.nii.gz")
    ('derivatives/rois/', 'sub-01')
    >>> place("sub-01/ses-01/func/sub-01_ses-01_bold.nii.gz")
    ('', 'sub-01')
    """
    return _folder(path.rpartition("/")[0])[:2]


def listings_of(
    subject: str, trees: Iterable[str], sessions: Iterable[str] | None = None
) -> list[tuple[str, str]]:
    """Return the ``(prefix, delimiter)`` to list for files of a subject.

    Sessions become prefixes of their own where a subject has hundreds of thousands of
    files. Elsewhere a request more would cost more than the keys it saves.

    Parameters
    ----------
    subject : str
        Such as ``"sub-01"``.
    trees : iterable of str
        Of `TREES`, or others.
    sessions : iterable of str, optional
        Only these sessions are needed; None: all.

    Examples
    --------
    >>> listings_of("sub-01", [ROIS, RAW], ["ses-02"])  # doctest: +NORMALIZE_WHITESPACE
    [('derivatives/rois/sub-01/', ''), ('sub-01/', '/'), ('sub-01/ses-02/', '')]
    """
    sessions = None if sessions is None else list(sessions)
    wanted = []
    for tree in trees:
        top = f"{tree}{subject}/"
        if sessions is None or tree not in BULK:
            wanted.append((top, ""))
        else:
            wanted += [(top, "/"), *((f"{top}{session}/", "") for session in sessions)]
    return wanted


def subjects_among(folders: Iterable[str]) -> tuple[str, ...]:
    """Return the subjects that have a folder among some, in whichever tree.

    Examples
    --------
    >>> subjects_among(["derivatives/rois/sub-03/", "sub-01/", "derivatives/x/"])
    ('sub-01', 'sub-03')
    """
    names = {folder[:-1].rpartition("/")[2] for folder in folders}
    return tuple(sorted(name for name in names if clean_subject(name) == name))


def unknown_trees(folders: Iterable[str]) -> list[str]:
    """Return the trees among folders whose layout is not known.

    Examples
    --------
    >>> unknown_trees(["derivatives/rois/", "derivatives/retinotopy/", "stimuli/"])
    ['derivatives/retinotopy/']
    """
    return sorted(
        folder
        for folder in folders
        if re.fullmatch(rf"{DERIVATIVES}[^/]+/", folder)
        and folder not in (*TREES, MADE_HERE)
    )


def is_of_session(record: dict[str, Any]) -> bool:
    """Tell whether a record's file belongs to one session, and not to the subject.

    Anatomy has a session in its name, but is that of the subject.
    """
    return record["session"] is not None and not record["id"].startswith(ANATOMICAL)


def is_of_trials(record: dict[str, Any]) -> bool:
    """Tell whether a record's file belongs to a session that has a trial table."""
    return (
        is_of_session(record)
        and _MAIN_SESSION.fullmatch(record["session"]) is not None
        and not record["id"].startswith(LOCALIZERS)
    )


def is_held_out(record: dict[str, Any]) -> bool:
    """Tell whether the bucket denies a record's file: held-out, but for localizers."""
    return record["session"] in HELD_OUT and not record["id"].startswith(LOCALIZERS)


def is_functional_brain_mask(record: dict[str, Any]) -> bool:
    """Tell whether a record is the brain mask on the functional grid."""
    return record["image_type"] == "brain_mask" and record["res"] == FUNCTIONAL_GRID


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
    """Return ``"ses-01"`` for ``"ses-01"``, ``"01"`` or 1; names are kept.

    None for anything that cannot be the name of a session.

    Examples
    --------
    >>> clean_session("ses-01"), clean_session(31), clean_session("4BarScreenfLoc")
    ('ses-01', 'ses-31', 'ses-4BarScreenfLoc')
    >>> clean_session("ses 1") is None
    True
    """
    number = _clean_label("ses", value)
    if number or not isinstance(value, str):
        return number
    name = re.fullmatch(r"(?:ses-)?([A-Za-z0-9]+)", value.strip())
    return f"ses-{name[1]}" if name and not name[1].isdecimal() else None


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
    'sub-05'
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
        if first in _UNIQUE_SOURCES and name and re.fullmatch("[0-9][0-9]", number):
            return kind, 4, first, None, PARTICIPANT_OF_NUMBER.get(number)
    return (None,) * len(LABEL_FIELDS)


def embeddings_id(model: str) -> str:
    """Return the ``id`` of the embeddings of a model.

    Examples
    --------
    >>> embeddings_id("CLIP")
    'stimuli/task-images_desc-CLIP_embeddings.h5'
    """
    return f"{STIMULI}task-images_desc-{model}_embeddings.h5"


def archived_key(path: str) -> str | None:
    """Return where the publishers keep the first version of a file, None for nowhere.

    Examples
    --------
    >>> archived_key("stimuli/task-images_desc-CLIP_embeddings.h5")
    'archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5'
    """
    if path not in map(embeddings_id, EMBEDDING_MODELS):
        return None
    return f"{ARCHIVED}embeddings/v1/{path.removeprefix(STIMULI)}"


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


def stimulus_value(field: str, value: object) -> str | int | None:
    """Return a cell of the stimulus table as a label would say it.

    Parameters
    ----------
    field : str
        The column, one of `LABEL_FIELDS`; cells of others come as they are.
    value : object
        The cell: ``"12rep"``, ``"THINGSplus"``, or a list of participants.

    Examples
    --------
    >>> stimulus_value("n_reps", "12rep"), stimulus_value("dataset", "THINGSplus")
    (12, 'THINGS+')
    >>> stimulus_value("participant", "sub-05")
    'sub-05'
    >>> stimulus_value("participant", "sub-01;sub-03") is None
    True
    """
    value = none_if_null(value)
    if value is None:
        return None
    text = str(value).strip()
    if field == "n_reps":
        number = _NUMBER_OF_REPS.fullmatch(text)
        return int(number[1]) if number else None
    if field == "dataset":
        return _SOURCE_OF_DATASET.get(text, text)
    if field == "participant":
        return text if clean_subject(text) == text else None
    return text


_SOURCE_OF_DATASET = {"THINGSplus": "THINGS+"}
