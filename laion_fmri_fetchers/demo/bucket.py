"""A small synthetic LAION-fMRI, written in the real layout and formats.

`build_bucket` joins what a few generators yield, each ``(key, bytes)``:

    _top_level                              the dataset's own files
    per subject   _rois                     masks of volumes and surfaces
                  _anatomical               T1w, T2w, brain masks
                  _freesurfer               a handful of FreeSurfer's files
                  _subject_maps             noise ceilings, mean R2
      per session _session                  trial table, betas, model, maps, figures
    stimuli_files                           images shown, and what derives from them

The T1w space of every subject stands in for MNI space: the brain is that of
nilearn's template, on a coarse grid, and ROIs are small balls at about the
positions published for them. Responses follow the content of the images
(`content_category`), so that decoding and localisers give what one expects.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .stimuli import stimuli_files

PARTICIPANTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")

CONTENT = ("face", "body", "place", "object", "word", "motion")
"""What the images show; see `content_category`."""

CONCEPTS = {
    "face": ("mask", "doll", "clown", "baby", "portrait", "bust"),
    "body": ("dancer", "mannequin", "hand", "gymnast", "glove", "leg"),
    "place": ("barn", "bedroom", "beach", "street", "kitchen", "bridge"),
    "object": ("air_pump", "bracelet", "kettle", "hammer", "lamp", "violin"),
    "word": ("license_plate", "newspaper", "poster", "keyboard", "menu", "book"),
    "motion": ("waterfall", "ceiling_fan", "surfboard", "bicycle", "kite", "train"),
}
"""THINGS-like concept names, by what the images show."""

OOD_LABELS = (
    "shared_4rep_OOD_cropped_portrait_02.jpg",
    "shared_4rep_OOD_gabor_sf4.0_ori45.png",
    "shared_4rep_OOD_gaudy_street+night.jpg",
    "shared_4rep_OOD_illusion-classic_Ebbinghaus v1.2.png",
    "shared_4rep_OOD_illusion-natural_beach-01.jpg",
    "shared_4rep_OOD_relations_dancer_on_book.jpg",
    "shared_4rep_OOD_selfmade_kitchen.jpg",
    "shared_4rep_OOD_shape_blob_round-01.png",
    "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg",
)
"""Out-of-distribution images, one of each type."""

ODD_LABEL = "fixation test (old) v2.final.jpg"
"""A label outside the grammar: one trial of the last main session of sub-01."""


class Roi(NamedTuple):
    """Where a region is and what it prefers."""

    category: str
    label: str  # as the bucket writes it
    centre: tuple[float, float, float]  # mm, right hemisphere
    radius: float  # mm


# Approximate positions in MNI space, rounded to what a coarse grid resolves; the left
# hemisphere mirrors the right one. Bodies, faces, objects and places after the group
# parcels of Julian et al. 2012 (NeuroImage 60:2357) and Peelen & Downing 2007 (Nat Rev
# Neurosci 8:636); the two parts of FFA and VWFA after Weiner & Grill-Spector 2012
# (Trends Cogn Sci 16:251) and Lerma-Usabiaga et al. 2018 (PNAS 115:E9981); motion after
# Dumoulin et al. 2000 (Cereb Cortex 10:454) and Huk et al. 2002 (J Neurosci 22:7195);
# retinotopic maps after Wang et al. 2015 (Cereb Cortex 25:3911), SPCS and IPCS after
# Mackey et al. 2017 (eLife 6:e22974). The laion regions have no published positions:
# they divide visual cortex into early, ventral, lateral and dorsal.
ROIS = {
    "EBA": Roi("body", "EBA", (48, -72, 3), 10),
    "FBA": Roi("body", "FBA", (42, -46, -20), 8),
    "VWFA1": Roi("character", "VWFA-1", (44, -68, -12), 8),
    "VWFA2": Roi("character", "VWFA-2", (44, -56, -14), 8),
    "mfswords": Roi("character", "mfs-words", (38, -44, -18), 7),
    "pSTSwords": Roi("character", "pSTS-words", (56, -40, 6), 8),
    "FFA1": Roi("face", "FFA-1", (40, -60, -17), 8),
    "FFA2": Roi("face", "FFA-2", (40, -48, -19), 8),
    "OFA": Roi("face", "OFA", (40, -78, -12), 8),
    "pSTSfaces": Roi("face", "pSTS-faces", (52, -48, 8), 9),
    "aTLfaces": Roi("face", "aTL-faces", (34, -8, -36), 8),
    "laionEVC": Roi("laion", "laion-EVC", (12, -92, 0), 16),
    "laiondorsal": Roi("laion", "laion-dorsal", (26, -78, 32), 16),
    "laiongeneral": Roi("laion", "laion-general", (30, -76, 4), 34),
    "laionlateral": Roi("laion", "laion-lateral", (46, -72, 4), 16),
    "laionventral": Roi("laion", "laion-ventral", (34, -58, -14), 18),
    "MST": Roi("motion", "MST", (46, -60, 7), 7),
    "MT": Roi("motion", "MT", (46, -68, 2), 8),
    "lobjects": Roi("object", "lobjects", (44, -78, -4), 9),
    "vobjects": Roi("object", "vobjects", (36, -54, -16), 8),
    "MPA": Roi("place", "MPA", (16, -56, 12), 9),
    "OPA": Roi("place", "OPA", (34, -82, 22), 9),
    "PPA": Roi("place", "PPA", (28, -45, -8), 9),
    "IPCS": Roi("retinotopy", "IPCS", (44, 6, 32), 8),
    "IPS0": Roi("retinotopy", "IPS0", (26, -76, 38), 8),
    "LO1": Roi("retinotopy", "LO1", (34, -90, 8), 7),
    "LO2": Roi("retinotopy", "LO2", (40, -84, 4), 7),
    "SPCS": Roi("retinotopy", "SPCS", (28, -4, 54), 8),
    "TO1": Roi("retinotopy", "TO1", (46, -76, 4), 7),
    "TO2": Roi("retinotopy", "TO2", (48, -66, 4), 7),
    "V1d": Roi("retinotopy", "V1d", (10, -94, 5), 8),
    "V1v": Roi("retinotopy", "V1v", (10, -88, -3), 8),
    "V2d": Roi("retinotopy", "V2d", (14, -98, 13), 8),
    "V2v": Roi("retinotopy", "V2v", (14, -80, -9), 8),
    "V3A": Roi("retinotopy", "V3A", (20, -88, 29), 8),
    "V3B": Roi("retinotopy", "V3B", (31, -84, 22), 8),
    "V3d": Roi("retinotopy", "V3d", (23, -95, 18), 8),
    "V3v": Roi("retinotopy", "V3v", (23, -78, -12), 8),
    "VO1": Roi("retinotopy", "VO1", (28, -67, -11), 7),
    "VO2": Roi("retinotopy", "VO2", (27, -58, -9), 7),
    "hV4": Roi("retinotopy", "hV4", (30, -77, -15), 7),
}
"""Every region of the dataset by its clean name, and one that few subjects have."""

LACKING = {
    "sub-01": ("aTLfaces",),
    "sub-03": ("VWFA2",),
    "sub-05": ("aTLfaces", "pSTSfaces"),
    "sub-06": ("MST", "mfswords"),
    "sub-07": (),
}
"""Regions that a subject does not have."""

# What a region of a category responds to: its own content most.
PREFERENCES = {
    "body": {"body": 1.0, "face": 0.3},
    "character": {"word": 1.0, "object": 0.2},
    "face": {"face": 1.0, "body": 0.3},
    "motion": {"motion": 1.0, "body": 0.2},
    "object": {"object": 1.0, "word": 0.3, "body": 0.2},
    "place": {"place": 1.0, "motion": 0.1},
}

SELECTIVITY = 0.6  # response to what a region prefers, in units of the noise
BETA_STEP = 0.25  # of beta values; keeps noise small on disk


class Brain(NamedTuple):
    """The functional grid of a subject and what lies on it."""

    affine: np.ndarray  # (4, 4), mm
    mask: np.ndarray  # (x, y, z) bool
    t1: np.ndarray  # (x, y, z), 0 to 1
    rois: dict[str, np.ndarray]  # clean name -> (x, y, z) bool
    tuning: np.ndarray  # (voxels, contents)
    visual: np.ndarray  # (voxels,), 0 to 1
    edge: np.ndarray  # indices of voxels at the mask's edge


def build_bucket(
    folder: str | Path,
    *,
    subjects: Sequence[str] = ("sub-01", "sub-03", "sub-05"),
    n_sessions: int | Mapping[str, int] = 4,
    held_out: Sequence[str] = ("ses-31", "ses-32"),
    n_trials: int = 64,
    resolution: float = 6.0,
    seed: int = 0,
) -> Path:
    """Write a small synthetic LAION-fMRI.

    The path of a file below the folder is its key in the bucket. The same
    arguments give the same bytes, and the files of a subject and session do not
    depend on which others are built.

    Parameters
    ----------
    folder : path
        Where to write; made if missing, empty otherwise.
    subjects : sequence of str, default=("sub-01", "sub-03", "sub-05")
        Subjects, of the five of the dataset. ``participants.tsv`` lists all five.
    n_sessions : int or dict of str to int, default=4
        Main sessions, from ``ses-01`` on; a dict gives them by subject.
    held_out : sequence of str, default=("ses-31", "ses-32")
        Held-out sessions, written like the others.
    n_trials : int, default=64
        Trials a session, in four runs. From 64 on, labels of every kind appear.
    resolution : float, default=6.0
        Voxel size of the functional grid in mm.
    seed : int, default=0
        Seed of everything random.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        When the folder holds something.
    ValueError
        When a subject is not of the dataset, or a session has no trials.

    Notes
    -----
    Images shown twelve times (``n_reps`` 12) appear only in odd sessions of sub-01,
    sub-05 and sub-07, only in even ones of sub-03 and sub-06, and in none that is
    held out. Shared images shown four times appear once a session. The last main
    session of sub-01 has one trial with a label outside the grammar (`ODD_LABEL`).
    Which regions a subject lacks is in `LACKING`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bucket = build_bucket(folder, subjects=["sub-01"], n_sessions=1)
    ...     sessions = (bucket / "derivatives/glmsingle-tedana/sub-01").glob("ses-*")
    ...     print(sorted(path.name for path in sessions))
    ['ses-01', 'ses-31', 'ses-32']
    """
    folder = Path(folder)
    unknown = [subject for subject in subjects if subject not in PARTICIPANTS]
    if unknown:
        raise ValueError(f"{unknown} not among the subjects {list(PARTICIPANTS)}.")
    if n_trials < 1:
        raise ValueError(f"n_trials={n_trials}: a session takes one trial or more.")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty.")

    _write(folder, _top_level())
    shown: set[str] = set()
    for subject in subjects:
        n_main = n_sessions if isinstance(n_sessions, int) else n_sessions[subject]
        tables = _trial_tables(subject, n_main, held_out, n_trials, seed)
        brain = _brain(subject, resolution, seed)
        _write(folder, _rois(subject, brain))
        _write(folder, _anatomical(subject, brain, resolution))
        _write(folder, _freesurfer(subject, brain))
        _write(folder, _subject_maps(subject, brain, list(tables), seed))
        for session, labels in tables.items():
            _write(folder, _session(subject, session, labels, brain, seed))
            shown.update(labels)
    _write(folder, stimuli_files(sorted(shown), content_category, seed=seed))
    return folder


def content_category(label: str) -> str:
    """Return what an image of the synthetic dataset shows.

    Parameters
    ----------
    label : str
        Stimulus file name, as in the trial tables.

    Returns
    -------
    str
        One of `CONTENT`: by the concept in the name if there is one, else by
        chance, but always the same for a label.

    Examples
    --------
    >>> content_category("unique_THINGS_air_pump_p03.jpg")
    'object'
    >>> content_category("shared_4rep_OOD_selfmade_kitchen.jpg")
    'place'
    """
    found = _concept_pattern().search(label)
    if found:
        return next(c for c in CONTENT if found[1] in CONCEPTS[c])
    return CONTENT[zlib.crc32(label.encode()) % len(CONTENT)]


@functools.cache
def _concept_pattern() -> re.Pattern[str]:
    names = sorted((n for c in CONTENT for n in CONCEPTS[c]), key=len, reverse=True)
    return re.compile(rf"(?:^|[_+ -])({'|'.join(names)})\d*(?=[_+. -]|$)")


def _write(folder: Path, files: Iterator[tuple[str, bytes]]) -> None:
    for key, data in files:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _rng(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


# The dataset's own files


def _top_level() -> Iterator[tuple[str, bytes]]:
    yield (
        "dataset_description.json",
        _json(
            {
                "Name": "LAION-fMRI (synthetic)",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "License": "CC0",
                "GeneratedBy": [{"Name": "laion_fmri_fetchers.demo"}],
            }
        ),
    )
    yield "README", b"A synthetic stand-in for LAION-fMRI; nothing was measured.\n"
    rows = [
        ("participant_id", "age", "sex", "handedness"),
        ("sub-01", "24", "F", "right"),
        ("sub-03", "31", "M", "n/a"),
        ("sub-05", "n/a", "F", "right"),
        ("sub-06", "27.5", "M", "left"),
        ("sub-07", "22", "F", "right"),
    ]
    yield "participants.tsv", _tsv(rows)
    yield (
        "participants.json",
        _json(
            {
                "age": {"Description": "Age at the first session", "Units": "year"},
                "sex": {"Levels": {"F": "female", "M": "male"}},
                "handedness": {"Levels": {"left": "left", "right": "right"}},
            }
        ),
    )


# What is shown


def _trial_tables(
    subject: str, n_main: int, held_out: Sequence[str], n_trials: int, seed: int
) -> dict[str, list[str]]:
    """Return the labels of each session's trials, in order of appearance."""
    parity = PARTICIPANTS.index(subject) % 2
    main = [f"ses-{i:02d}" for i in range(1, n_main + 1)]
    with_12rep = [s for i, s in enumerate(main) if i % 2 == parity]
    shared = {session: list(_shared_4rep()) for session in (*main, *held_out)}
    for i, label in enumerate(_shared_12rep()):
        for repeat in range(12 if with_12rep else 0):
            shared[with_12rep[(i + repeat) % len(with_12rep)]].append(label)
    if subject == "sub-01" and main:
        shared[main[-1]].append(ODD_LABEL)
    tables = {}
    for name, sessions in (("main", main), ("held-out", held_out)):
        n_free = [max(n_trials - len(shared[session]), 0) for session in sessions]
        unique = _unique_labels(subject, name, -(-sum(n_free) // 4))
        rng = _rng(seed, subject, name, "trials")
        shown = list(rng.permutation(np.repeat(unique, 4)))
        for session, n in zip(sessions, n_free, strict=True):
            own = [shown.pop() for _ in range(n)]
            labels = [*shared[session], *map(str, own)][:n_trials]
            tables[session] = [labels[i] for i in rng.permutation(n_trials)]
    return tables


def _shared_12rep() -> tuple[str, ...]:
    return (
        "shared_12rep_LAION_cluster_1003_i0.jpg",
        "shared_12rep_THINGS+_kmeans_211_bracelet2.jpg",
        "shared_12rep_THINGS+_kmeans_17_baby.jpg",
    )


def _shared_4rep() -> tuple[str, ...]:
    nsd = (100, 217, 4, 999)
    return (*(f"shared_4rep_NSD_special1000_{n}.jpg" for n in nsd), *OOD_LABELS)


def _unique_labels(subject: str, purpose: str, n: int) -> list[str]:
    """Return labels unique to a subject, their contents about equally frequent."""
    rng = _rng(0, subject, purpose, "unique")
    number = subject.removeprefix("sub-")
    labels: dict[str, None] = {}
    while len(labels) < n:
        content = CONTENT[len(labels) % len(CONTENT)]
        source = ("LAION", "THINGS", "THINGS+")[len(labels) // len(CONTENT) % 3]
        concept = rng.choice(CONCEPTS[content])
        image = {
            "LAION": f"initial_cluster_{rng.integers(5000)}_i{rng.integers(9)}",
            "THINGS": concept,
            "THINGS+": f"kmeans_{rng.integers(999)}_{concept}",
        }[source]
        label = f"unique_{source}_{image}_p{number}.jpg"
        if label in labels:
            label = f"unique_{source}_{image}{rng.integers(2, 10_000)}_p{number}.jpg"
        if content_category(label) == content:
            labels[label] = None
    return list(labels)


# The brain


@functools.cache
def _template() -> tuple[np.ndarray, np.ndarray]:
    """Return the MNI brain at 3 mm and the inverse of its affine."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=3)
    return image.get_fdata(dtype=np.float32), np.linalg.inv(image.affine)


def _grid(subject: str, resolution: float) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return affine and shape of a grid; its origin differs by subject."""
    shift = 0.75 * PARTICIPANTS.index(subject)
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = -96 + shift, -132 - shift, -78 + shift
    n = int(np.ceil(228 / resolution))
    return affine, (int(np.ceil(192 / resolution)) + 1, n, n - 4)


def _t1(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import affine_transform

    data, to_voxel = _template()
    to_voxel = to_voxel @ affine
    return affine_transform(
        data, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=shape, order=1
    )


def _brain(subject: str, resolution: float, seed: int) -> Brain:
    from scipy.ndimage import binary_erosion, binary_fill_holes

    affine, shape = _grid(subject, resolution)
    t1 = _t1(affine, shape)
    mask = binary_fill_holes(t1 > 0.2)
    lacking = LACKING[subject]
    voxels = np.argwhere(mask) @ affine[:3, :3] + affine[:3, 3]
    rois = {}
    for name, roi in ROIS.items():
        if name not in lacking:
            rois[name] = np.zeros_like(mask)
            rois[name][mask] = _near(voxels, roi, -1) | _near(voxels, roi, 1)
    tuning = np.zeros((mask.sum(), len(CONTENT)))
    visual = np.full(len(tuning), 0.1)
    small = np.zeros_like(mask)
    for name, roi in rois.items():
        inside = roi[mask]
        visual[inside] += 0.3
        category = ROIS[name].category
        for content, weight in PREFERENCES.get(category, {}).items():
            tuning[inside, CONTENT.index(content)] += SELECTIVITY * weight
        if category != "laion":
            small |= roi
    edge = np.flatnonzero((mask & ~binary_erosion(mask) & ~small)[mask])
    rng = _rng(seed, subject, "tuning")
    tuning *= rng.uniform(0.7, 1.3, (len(tuning), 1))
    tuning += rng.normal(0, 0.05, tuning.shape)
    return Brain(affine, mask, t1, rois, tuning, np.minimum(visual, 1), edge)


def _near(points: np.ndarray, roi: Roi, side: int) -> np.ndarray:
    """Return which points lie in a region of one side (-1 left), one or more."""
    distance = np.linalg.norm(points - np.multiply(roi.centre, (side, 1, 1)), axis=1)
    return distance <= max(roi.radius, distance.min())


# Files of a subject


def _rois(subject: str, brain: Brain) -> Iterator[tuple[str, bytes]]:
    for name, voxels in brain.rois.items():
        roi = ROIS[name]
        stem = f"derivatives/rois/{subject}/{roi.category}/{subject}"
        yield (
            f"{stem}_space-T1w_res-1pt8_label-{roi.label}_mask.nii.gz",
            _nifti(voxels.astype(np.uint8), brain.affine),
        )
        for hemisphere, side in (("L", -1), ("R", 1)):
            vertices, _ = _surface(side)
            inside = _near(vertices, roi, side)
            surface = f"{stem}_hemi-{hemisphere}_space-fsnative_label-{roi.label}_mask"
            yield f"{surface}.func.gii", _func_gifti(inside)
            yield f"{surface}.label", _freesurfer_label(subject, vertices, inside)


def _anatomical(
    subject: str, brain: Brain, resolution: float
) -> Iterator[tuple[str, bytes]]:
    stem = (
        f"derivatives/anatomical/{subject}/ses-PrismaAnat/anat/"
        f"{subject}_ses-PrismaAnat_space-T1w"
    )
    fine_affine, fine_shape = _grid(subject, resolution * 2 / 3)
    fine = _t1(fine_affine, fine_shape)
    for space, t1, affine, mask in (
        (stem, fine, fine_affine, fine > 0.2),
        (f"{stem}_res-1pt8", brain.t1, brain.affine, brain.mask),
    ):
        level = np.clip(t1, 0, 1) * 250
        contrast = np.where(mask, 300 - level, 0)
        yield f"{space}_T1w.nii.gz", _nifti(level.astype(np.uint8), affine)
        yield f"{space}_T2w.nii.gz", _nifti(contrast.astype(np.int16), affine)
        yield (
            f"{space}_desc-brain_mask.nii.gz",
            _nifti(mask.astype(np.uint8), affine),
        )


def _freesurfer(subject: str, brain: Brain) -> Iterator[tuple[str, bytes]]:
    stem = f"derivatives/freesurfer/{subject}"
    level = (np.clip(brain.t1, 0, 1) * 110).astype(np.uint8)
    yield f"{stem}/mri/brain.mgz", _mgz(level, brain.affine)
    parcels = np.where(brain.mask, np.where(brain.t1 > 0.7, 2, 1001), 0)
    yield f"{stem}/mri/aparc+aseg.mgz", _mgz(parcels.astype(np.int32), brain.affine)
    for hemisphere, side in (("lh", -1), ("rh", 1)):
        vertices, faces = _surface(side)
        yield f"{stem}/surf/{hemisphere}.white", _freesurfer_surface(vertices, faces)
        pial = vertices + np.sign(vertices) * 1.5
        yield f"{stem}/surf/{hemisphere}.pial", _freesurfer_surface(pial, faces)
        cortex = np.abs(vertices[:, 0]) > 8
        yield (
            f"{stem}/label/{hemisphere}.cortex.label",
            _freesurfer_label(subject, vertices, cortex),
        )
    yield (
        f"{stem}/stats/aseg.stats",
        f"# subjectname {subject}\n# ColHeaders  Index SegId NVoxels\n"
        f"  1   2  {int((parcels == 2).sum())}\n".encode(),
    )


def _subject_maps(
    subject: str, brain: Brain, sessions: list[str], seed: int
) -> Iterator[tuple[str, bytes]]:
    stem = f"derivatives/glmsingle-tedana/{subject}/{subject}_task-images"
    rng = _rng(seed, subject, "maps")
    for reps, gain in (("4rep", 0.8), ("12rep", 1.1), ("Allrep", 1.0)):
        yield from _with_sidecar(
            f"{stem}_space-T1w_desc-Noiseceiling{reps}_statmap",
            _nifti(_in_brain(brain, _percent(brain, rng, 65 * gain)), brain.affine),
            {"Description": f"Noise ceiling, images of {reps}", "Units": "percent"},
        )
    rsquare = [_rsquare(subject, session, brain, seed) for session in sessions]
    yield from _with_sidecar(
        f"{stem}_space-T1w_stat-rsquare_desc-R2mean_statmap",
        _nifti(_in_brain(brain, np.mean(rsquare, axis=0)), brain.affine),
        {"Description": "R2, mean over sessions", "Units": "percent"},
    )
    yield (
        f"{stem}_desc-GLMsingle_summary.json",
        _json({"subject": subject, "n_sessions": len(sessions), "sessions": sessions}),
    )


# Files of a session


def _session(
    subject: str, session: str, labels: list[str], brain: Brain, seed: int
) -> Iterator[tuple[str, bytes]]:
    folder = f"derivatives/glmsingle-tedana/{subject}/{session}/func"
    stem = f"{folder}/{subject}_{session}_task-images"
    rng = _rng(seed, subject, session, "maps")
    n_trials = len(labels)

    rows = [("session", "run", "beta_index", "label")]
    rows += [
        (session, str(1 + 4 * i // n_trials), str(i), label)
        for i, label in enumerate(labels)
    ]
    table = f"{stem}_desc-SingletrialBetas_trials"
    yield f"{table}.tsv", _tsv(rows)
    yield (
        f"{table}.json",
        _json({"beta_index": {"Description": "Volume of the beta image, from 0"}}),
    )

    betas = _betas(subject, session, labels, brain, seed)
    yield from _with_sidecar(
        f"{stem}_space-T1w_stat-effect_desc-SingletrialBetas_statmap",
        _nifti(_in_brain(brain, betas), brain.affine),
        {"Description": "Single-trial response amplitudes", "NumberOfTrials": n_trials},
    )

    rsquare = _rsquare(subject, session, brain, seed)
    hrf_index = rng.integers(1, 21, len(brain.tuning))
    fraction = rng.integers(1, 21, len(brain.tuning)) * 0.05
    for name, values, dtype, description in (
        ("stat-rsquare_desc-R2_statmap", rsquare, "f4", "R2 in percent"),
        ("desc-Noiseceiling_statmap", _percent(brain, rng, 60), "f4", "Noise ceiling"),
        ("desc-HRFindex_dseg", hrf_index, "i2", "Index of the chosen HRF"),
        ("desc-Fracridge_statmap", fraction, "f4", "Fraction of ridge regression"),
    ):
        yield from _with_sidecar(
            f"{stem}_space-T1w_{name}",
            _nifti(_in_brain(brain, values.astype(dtype)), brain.affine),
            {"Description": description},
        )

    model = f"{stem}_space-T1w_desc-GLMsingle_model"
    yield f"{model}.h5", _model(rsquare, hrf_index, fraction)
    yield f"{model}.json", _json({"Description": "GLMsingle model, in-brain voxels"})
    yield (
        f"{stem}_desc-GLMsingle_summary.json",
        _json(
            {
                "subject": subject,
                "session": session,
                "n_runs": 4,
                "n_trials": n_trials,
                "n_images": len(set(labels)),
                "median_rsquare": float(np.median(rsquare)),
            }
        ),
    )
    figure = f"{folder}/figures/{subject}_{session}_task-images"
    slab = _in_brain(brain, rsquare)
    middle = brain.mask.shape[2] // 2
    yield f"{figure}_desc-R2_axial.png", _png(slab[:, :, middle].T[::-1])
    middle = brain.mask.shape[0] // 2
    yield f"{figure}_desc-R2_sagittal.png", _png(slab[middle].T[::-1])


def _betas(
    subject: str, session: str, labels: list[str], brain: Brain, seed: int
) -> np.ndarray:
    """Return single-trial responses, (voxels, trials) float32.

    A response is what the voxel prefers, a pattern of the image itself, and
    noise; scaled and shifted by voxel and session, as ridge regression does.
    """
    rng = _rng(seed, subject, session, "betas")
    n_voxels = len(brain.tuning)
    images = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    patterns = np.empty((n_voxels, len(images)), np.float32)
    for label, i in images.items():
        patterns[:, i] = _rng(seed, subject, label).standard_normal(
            n_voxels, dtype=np.float32
        )
        patterns[:, i] *= 0.6 * brain.visual
        patterns[:, i] += brain.tuning[:, CONTENT.index(content_category(label))]
    betas = patterns[:, [images[label] for label in labels]]
    betas += rng.standard_normal(betas.shape, dtype=np.float32)
    betas += brain.visual[:, None].astype(np.float32)
    gain = rng.uniform(0.5, 1.5, (n_voxels, 1)).astype(np.float32)
    offset = rng.normal(0, 0.3, (n_voxels, 1)).astype(np.float32)
    betas = np.round((betas * gain + offset) / BETA_STEP) * np.float32(BETA_STEP)
    betas[rng.choice(brain.edge, 5, replace=False)] = np.nan
    return betas


def _rsquare(subject: str, session: str, brain: Brain, seed: int) -> np.ndarray:
    return _percent(brain, _rng(seed, subject, session, "R2"), 45)


def _percent(brain: Brain, rng: np.random.Generator, peak: float) -> np.ndarray:
    """Return values over 0 up to 100, highest in visual regions."""
    values = peak * brain.visual * rng.uniform(0.6, 1.2, len(brain.visual))
    return np.clip(np.round(values * 4) / 4, 0.25, 100).astype(np.float32)


def _in_brain(brain: Brain, values: np.ndarray) -> np.ndarray:
    volume = np.zeros(brain.mask.shape + values.shape[1:], values.dtype)
    volume[brain.mask] = values
    return volume


# File formats


def _with_sidecar(
    stem: str, data: bytes, sidecar: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    yield f"{stem}.nii.gz", data
    yield f"{stem}.json", _json(sidecar)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _tsv(rows: Sequence[tuple[str, ...]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=1, mtime=0)


def _nifti(data: np.ndarray, affine: np.ndarray) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    return _gzip(image.to_bytes())


def _mgz(data: np.ndarray, affine: np.ndarray) -> bytes:
    import nibabel

    return _gzip(nibabel.MGHImage(data, affine).to_bytes())


def _func_gifti(inside: np.ndarray) -> bytes:
    import nibabel

    array = nibabel.gifti.GiftiDataArray(
        inside.astype(np.float32), intent="NIFTI_INTENT_SHAPE"
    )
    return nibabel.GiftiImage(darrays=[array]).to_bytes()


def _freesurfer_label(subject: str, vertices: np.ndarray, inside: np.ndarray) -> bytes:
    lines = [f"#!ascii label  , from subject {subject} vox2ras=TkReg"]
    lines.append(str(int(inside.sum())))
    for i in np.flatnonzero(inside):
        x, y, z = vertices[i]
        lines.append(f"{i}  {x:.3f}  {y:.3f}  {z:.3f} 1.0000000000")
    return ("\n".join(lines) + "\n").encode()


def _freesurfer_surface(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Return a FreeSurfer triangle file: its magic number, stamp, sizes, arrays."""
    head = b"\xff\xff\xfecreated by laion_fmri_fetchers.demo\n\n"
    sizes = np.array([len(vertices), len(faces)], ">i4").tobytes()
    return (
        head + sizes + vertices.astype(">f4").tobytes() + faces.astype(">i4").tobytes()
    )


@functools.cache
def _surface(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (mm) and faces of a hemisphere: half an ellipsoid."""
    n_rings, n_around = 20, 30
    polar = np.pi * (np.arange(n_rings) + 0.5) / n_rings
    around = 2 * np.pi * np.arange(n_around) / n_around
    polar, around = (grid.ravel() for grid in np.meshgrid(polar, around, indexing="ij"))
    unit = np.stack(
        [np.sin(polar) * np.cos(around), np.cos(polar), np.sin(polar) * np.sin(around)],
        axis=1,
    )
    vertices = unit * (32, 86, 56) + (side * 35, -18, 12)
    ring, place = np.divmod(np.arange((n_rings - 1) * n_around), n_around)
    a = ring * n_around + place
    b = ring * n_around + (place + 1) % n_around
    lower = np.stack([a, b, a + n_around], axis=1)
    upper = np.stack([b, b + n_around, a + n_around], axis=1)
    return vertices, np.concatenate([lower, upper])


def _model(rsquare: np.ndarray, hrf: np.ndarray, fraction: np.ndarray) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("R2", data=rsquare.astype("f4"), compression=1)
        file.create_dataset("HRFindex", data=hrf.astype("i2"), compression=1)
        file.create_dataset("FRACvalue", data=fraction.astype("f4"), compression=1)
    return buffer.getvalue()


def _png(values: np.ndarray) -> bytes:
    from PIL import Image

    grey = np.clip(values * 2.5, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).resize((4 * grey.shape[1], 4 * grey.shape[0])).save(
        buffer, "PNG"
    )
    return buffer.getvalue()
