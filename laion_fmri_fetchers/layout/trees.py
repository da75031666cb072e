"""Where the files of the dataset are: folders, file names and grids.

Nothing else in the package spells a folder or a file name of the bucket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from laion_fmri_fetchers.exceptions import UnsafeKeyError

STATE_FOLDER = ".laion_fmri"

GLM = "derivatives/glmsingle-tedana/"
ROIS = "derivatives/rois/"
LOCALIZERS = "derivatives/localizers/"
TEDANA = "derivatives/tedana/"
ANATOMICAL = "derivatives/anatomical/"
FREESURFER = "derivatives/freesurfer/"
# Raw BIDS data lie in folders of subjects at the top of the bucket.
RAW = ""

# The trees whose layout is known; a subject's files are below `{tree}{subject}/`.
TREES = (GLM, ROIS, LOCALIZERS, TEDANA, ANATOMICAL, FREESURFER, RAW)
# Trees of time series, hundreds of GB per subject: fetched only when named.
BULK = frozenset({TEDANA, RAW})
# Files that this package made; the bucket has no such folder.
MADE_HERE = "derivatives/laion-fmri-fetchers/"

DERIVATIVES = "derivatives/"
STIMULI = "stimuli/"
ARCHIVED = "archive/"

PARTICIPANTS = "participants.tsv"
# A file at the top of buckets whose data are synthetic; real ones have none.
DEMO = "DEMO"
# Small files at the top of a BIDS dataset; any may be missing.
ROOT_FILES = frozenset(
    f"dataset_description.json {PARTICIPANTS} participants.json README README.md "
    "README.rst README.txt CHANGES LICENSE CITATION.cff".split()
)

ARCHIVE = "stimuli/task-images_stimuli.h5"
GATED = frozenset({ARCHIVE})
STIMULUS_TABLE = "stimuli/task-images_metadata.csv"
STIMULUS_IMAGES = "stimuli/images/"
CAPTIONS = "stimuli/task-images_desc-captions.csv"
SEGMENTATIONS = "stimuli/task-images_desc-segmentations.h5"
SEGMENTATIONS_TABLE = "stimuli/task-images_desc-segmentations_metadata.csv"
EMBEDDING_MODELS = ("CLIP", "DINOv2", "PEcore", "SigLIP2")

HELD_OUT = frozenset(f"ses-{n}" for n in range(31, 35))

# `res-` of images on the grid of the betas, 1.778 mm.
FUNCTIONAL_GRID = "1pt8"

# A hemisphere, as nilearn calls it, and as FreeSurfer does.
HEMISPHERES = {"left": "lh", "right": "rh"}
# FreeSurfer's surfaces of a hemisphere that are read; there are more.
SURFACES = ("white", "pial", "inflated", "sphere.reg")

# Tree -> pattern of a file -> `image_type`; the first pattern that fits holds. It is of
# whose file it is ("ses" or "sub"), the last folder, and suffix, extension, stat and
# desc of the BIDS name ("-": none). "nii" is also nii.gz; `[!j]*` is all but json.
RULES: dict[str | None, dict[str, str]] = {
    GLM: {
        "* figures * * * *": "figure",
        "ses * trials tsv * *": "trials",
        "ses * model h5 * *": "model",
        "ses * summary json * *": "summary",
        "sub * summary json * *": "subject_summary",
        "ses * statmap nii effect SingletrialBetas": "betas",
        "ses * statmap nii - Noiseceiling": "noise_ceiling",
        "ses * statmap nii rsquare R2": "rsquare",
        "ses * dseg nii - HRFindex": "hrf_index",
        "ses * statmap nii - Fracridge": "fracridge",
        "sub * statmap nii rsquare R2mean": "mean_rsquare",
        "sub * statmap nii - Noiseceiling*rep": "subject_noise_ceiling",
    },
    ANATOMICAL: {
        "ses * mask nii - brain": "brain_mask",
        "ses * T[12]w nii - -": "anatomical",
    },
    ROIS: {"* mask [!j]* * *": "roi"},
    FREESURFER: {"*": "freesurfer"},
    LOCALIZERS: {
        "* statmap nii z *": "localizer",
        "* statmap func.gii z *": "localizer",
        "* statmap nii effect *": "localizer_effect",
        "* statmap func.gii effect *": "localizer_effect",
    },
    TEDANA: {"* bold nii * *": "preprocessed_bold"},
    RAW: {
        "* bold nii * *": "raw_bold",
        "* sbref nii * *": "sbref",
        "* events tsv * *": "events",
        "* fmap * nii * *": "fieldmap",
        "* anat * nii * *": "raw_anatomical",
    },
}
# Every `image_type`, and the tree its files lie in (None: in any).
IMAGE_TYPES: dict[str, str | None] = {
    **{image_type: tree for tree in RULES for image_type in RULES[tree].values()},
    "sidecar": None,
    "other": None,
}

_FILE_NAME = re.compile(r"(?!\.{1,2}\Z)(?!.:)[^\x00-\x1f\x7f/\\]+")


def listings_of(subject: str, trees: Iterable[str]) -> list[tuple[str, str]]:
    """Return the ``(prefix, delimiter)`` to list for files of a subject.

    Parameters
    ----------
    subject : str
        Such as ``"sub-01"``.
    trees : iterable of str
        Of `TREES`, or others.

    Examples
    --------
    >>> listings_of("sub-01", [ROIS, RAW])
    [('derivatives/rois/sub-01/', ''), ('sub-01/', '')]
    """
    return [(f"{tree}{subject}/", "") for tree in trees]


def listing_of(path: str) -> tuple[str, str]:
    """Return the ``(prefix, delimiter)`` of the listing that has a file or folder.

    Listings are fixed and disjoint: files directly at the top, in ``derivatives/``, in
    each tree of it and in ``stimuli/``; below these, each folder whole.

    Parameters
    ----------
    path : str
        A relative path; that of a folder ends in ``/``.

    Examples
    --------
    >>> listing_of("participants.tsv"), listing_of("derivatives/rois/")
    (('', '/'), ('derivatives/rois/', '/'))
    >>> listing_of("derivatives/rois/sub-01/face/sub-01_label-FFA1_mask.nii.gz")
    ('derivatives/rois/sub-01/', '')
    """
    folders = path.split("/")[:-1]
    depth = {DERIVATIVES: 3, STIMULI: 2}.get(f"{folders[0]}/", 1) if folders else 1
    prefix = "".join(f"{folder}/" for folder in folders[:depth])
    return prefix, "" if len(folders) >= depth else "/"


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


def surface_name(hemisphere: str, surface: str) -> str:
    """Return where a surface is below the folder that FreeSurfer has for a subject.

    Examples
    --------
    >>> surface_name("left", "sphere.reg")
    'surf/lh.sphere.reg'
    """
    return f"surf/{HEMISPHERES[hemisphere]}.{surface}"


def surface_id(subject: str, hemisphere: str, surface: str) -> str:
    """Return the ``id`` of a surface, one of `SURFACES`.

    Examples
    --------
    >>> surface_id("sub-01", "right", "pial")
    'derivatives/freesurfer/sub-01/surf/rh.pial'
    """
    return f"{FREESURFER}{subject}/{surface_name(hemisphere, surface)}"


def brain_mask_name(subject: str) -> str:
    """Return the file name of a subject's derived brain mask, on the functional grid.

    Examples
    --------
    >>> brain_mask_name("sub-01")
    'sub-01_space-T1w_res-1pt8_desc-brain_mask.nii.gz'
    """
    return f"{subject}_space-T1w_res-{FUNCTIONAL_GRID}_desc-brain_mask.nii.gz"


def embeddings_id(model: str) -> str:
    """Return the ``id`` of the embeddings of a model.

    Examples
    --------
    >>> embeddings_id("CLIP")
    'stimuli/task-images_desc-CLIP_embeddings.h5'
    """
    return f"{STIMULI}task-images_desc-{model}_embeddings.h5"


def archived_key(path: str) -> str | None:
    """Return the key of a file's first version, None where none is kept.

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
            "written. Check the source of the stimulus metadata."
        )
    return STIMULUS_IMAGES + name
