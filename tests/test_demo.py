"""The demo bucket follows the published facts of the dataset."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.stats import ttest_ind

from laion_fmri_fetchers import (
    current_terms_version,
    fetch_laion_fmri,
    fetch_laion_stimuli,
    get_data_dir,
)
from laion_fmri_fetchers.demo import (
    CONTENT,
    build_bucket,
    content_category,
    serve_demo,
)
from laion_fmri_fetchers.demo import facts as demo_facts
from laion_fmri_fetchers.demo.labels import ODD_LABEL
from laion_fmri_fetchers.exceptions import AccessRequiredError

SUBJECTS = ("sub-01", "sub-03", "sub-05")
MAIN = ("ses-01", "ses-02", "ses-03", "ses-04")
HELD_OUT = ("ses-31", "ses-32")

ROI_NAMES = {
    "body": "EBA FBA",
    "character": "VWFA1 VWFA2 mfswords pSTSwords",
    "face": "FFA1 FFA2 OFA pSTSfaces AFP1 AFP2",
    "laion": "laionEVC laiondorsal laiongeneral laionlateral laionventral",
    "motion": "MST MT",
    "object": "lobjects vobjects",
    "place": "MPA OPA PPA SPL",
    "retinotopy": "IPCS IPS0 LO1 LO2 SPCS TO1 TO2 V1d V1v V2d V2v V3A V3B V3d V3v "
    "VO1 VO2 hV4 EVC",
}
ALL_ROIS = {f"{c}/{name}" for c, names in ROI_NAMES.items() for name in names.split()}

LABEL_NUMBERS = {
    "sub-01": "01",
    "sub-06": "02",
    "sub-05": "03",
    "sub-03": "04",
    "sub-07": "05",
}

OOD_TYPES = {
    "cropped",
    "gabor",
    "gaudy",
    "illusion-classic",
    "illusion-natural",
    "relations",
    "selfmade",
    "shape",
    "unusual",
}
LABELS = {
    "12rep": r"shared_12rep_(?P<source>LAION|THINGS\+)_.+\.(jpg|png)",
    "NSD": r"shared_4rep_(?P<source>NSD)_.+\.(jpg|png)",
    "OOD": rf"shared_4rep_(?P<source>OOD)_({'|'.join(OOD_TYPES)})_.+\.(jpg|png)",
    "unique": r"unique_(?P<source>LAION|THINGS|THINGS\+)_.+_p(?P<number>\d\d)\.jpg",
}

_SUB = r"(?P<sub>sub-0[13567])"
_SES = r"(?P<ses>ses-\d\d)"
_GLM = rf"derivatives/glmsingle-tedana/{_SUB}"
_FUNC = rf"{_GLM}/{_SES}/func/(?P=sub)_(?P=ses)_task-images"
_ANAT = (
    rf"derivatives/anatomical/{_SUB}/ses-PrismaAnat/anat/"
    r"(?P=sub)_ses-PrismaAnat_space-T1w(?P<res>_res-1pt8)?"
)
_MAP = r"_statmap\.(nii\.gz|json)"
_ROI = rf"derivatives/rois/{_SUB}/(?P<category>[a-z]+)/(?P=sub)"
_LABEL = r"label-(?P<roi>[A-Za-z0-9-]+)_mask"
_LOCALIZED = (
    rf"derivatives/localizers/{_SUB}/(?P<ses>ses-31|ses-4BarScreenfLoc|"
    r"ses-MotionLocBarsSML)/func/(?P=sub)_(?P=ses)_task-(?P<task>[A-Za-z]+)"
)
_SPACE = (
    r"(?P<space>hemi-[LR]_space-fsnative|space-T1w_res-1pt[58])"
    r"_contrast-(?P<contrast>[A-Za-z]+)"
)
_TEDANA = rf"derivatives/tedana/{_SUB}/{_SES}/func/(?P=sub)_(?P=ses)_task-images"
_RAW = rf"{_SUB}/{_SES}"
_RAW_FUNC = rf"{_RAW}/func/(?P=sub)_(?P=ses)_task-images_run-0[12]"
_IMAGE = r"\.(nii\.gz|json)"
MODELS = ("CLIP", "DINOv2", "PEcore", "SigLIP2")
TOP_KEYS = {
    "dataset_description.json",
    "participants.tsv",
    "participants.json",
    "DEMO",
    "README",
    "stimuli/task-images_stimuli.h5",
    "stimuli/task-images_metadata.csv",
    *(f"stimuli/task-images_desc-{model}_embeddings.h5" for model in MODELS),
    *(
        f"archive/embeddings/v1/task-images_desc-{model}_embeddings.h5"
        for model in MODELS
    ),
    "stimuli/task-images_desc-segmentations.h5",
    "stimuli/task-images_desc-segmentations_metadata.csv",
    "stimuli/task-images_desc-captions.csv",
}
SUBJECT_KEYS = {
    "summary": rf"{_GLM}/(?P=sub)_task-images_desc-GLMsingle_summary\.json",
    "mean_rsquare": rf"{_GLM}/(?P=sub)_task-images_space-T1w_stat-rsquare"
    rf"_desc-R2mean{_MAP}",
    **{
        reps: rf"{_GLM}/(?P=sub)_task-images_space-T1w_desc-Noiseceiling{reps}{_MAP}"
        for reps in ("4rep", "12rep", "Allrep")
    },
    "anatomical": rf"{_ANAT}_T[12]w\.nii\.gz",
    "brain_mask": rf"{_ANAT}_desc-brain_mask\.nii\.gz",
    "roi": rf"{_ROI}_space-T1w_res-1pt8_{_LABEL}\.nii\.gz",
    "roi_fine": rf"{_ROI}_space-T1w_res-1pt5_{_LABEL}\.nii\.gz",
    "roi_surface": rf"{_ROI}_hemi-[LR]_space-fsnative_{_LABEL}\.func\.gii",
    "roi_label": rf"{_ROI}_hemi-[LR]_space-fsnative_{_LABEL}\.label",
    "freesurfer": rf"derivatives/freesurfer/{_SUB}/(mri|surf|label|stats)/[^/]+",
    "talairach": rf"derivatives/freesurfer/{_SUB}/mri/transforms/talairach\.(lta|xfm)",
    "localizer": rf"{_LOCALIZED}_{_SPACE}_stat-z_statmap\.(func\.gii|nii\.gz)",
    "localizer_effect": rf"{_LOCALIZED}_run-0[12]_{_SPACE}_stat-effect_statmap"
    r"\.(func\.gii|nii\.gz)",
}
RUN_KEYS = {
    "preprocessed": rf"{_TEDANA}_run-0[12]_space-T1w_desc-optcom_bold{_IMAGE}",
    "bold": rf"{_RAW_FUNC}_echo-[123]_part-(mag|phase)_bold{_IMAGE}",
    "sbref": rf"{_RAW_FUNC}_echo-[123](_part-mag)?_sbref{_IMAGE}",
    "events": rf"{_RAW_FUNC}_events\.tsv",
    "fmap": rf"{_RAW}/fmap/(?P=sub)_(?P=ses)_run-0[12]"
    rf"_(magnitude1|magnitude2|phasediff){_IMAGE}",
    "anat": rf"{_RAW}/anat/(?P=sub)_(?P=ses)_echo-[123]_part-(mag|phase)_MEGRE{_IMAGE}",
}
SESSION_KEYS = {
    "summary": rf"{_FUNC}_desc-GLMsingle_summary\.json",
    "trials": rf"{_FUNC}_desc-SingletrialBetas_trials\.(tsv|json)",
    "model": rf"{_FUNC}_space-T1w_desc-GLMsingle_model\.(h5|json)",
    "betas": rf"{_FUNC}_space-T1w_stat-effect_desc-SingletrialBetas{_MAP}",
    "rsquare": rf"{_FUNC}_space-T1w_stat-rsquare_desc-R2{_MAP}",
    "ceiling": rf"{_FUNC}_space-T1w_desc-Noiseceiling{_MAP}",
    "hrf_index": rf"{_FUNC}_space-T1w_desc-HRFindex_dseg\.(nii\.gz|json)",
    "fracridge": rf"{_FUNC}_space-T1w_desc-Fracridge{_MAP}",
    "figure": rf"{_GLM}/{_SES}/func/figures/.+\.png",
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    return build_bucket(tmp_path_factory.mktemp("demo") / "bucket")


@pytest.fixture(scope="module")
def keys(bucket):
    return sorted(_files(bucket))


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _func(bucket, subject, session, rest):
    folder = bucket / "derivatives/glmsingle-tedana" / subject / session / "func"
    return folder / f"{subject}_{session}_task-images_{rest}"


def _trials(bucket, subject, session):
    path = _func(bucket, subject, session, "desc-SingletrialBetas_trials.tsv")
    return pd.read_csv(path, sep="\t")


def _values(path):
    return np.asarray(nibabel.load(path).dataobj)


def _betas(bucket, subject, session):
    name = "space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
    return _values(_func(bucket, subject, session, name))


def _brain_mask(bucket, subject):
    name = f"{subject}_ses-PrismaAnat_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
    folder = bucket / "derivatives/anatomical" / subject / "ses-PrismaAnat/anat"
    return nibabel.load(folder / name)


def _fitted(bucket, subject, session):
    name = "space-T1w_stat-rsquare_desc-R2_statmap.nii.gz"
    return _values(_func(bucket, subject, session, name)) != 0


def _roi(bucket, subject, category, label, space="space-T1w_res-1pt8"):
    extension = "func.gii" if "fsnative" in space else "nii.gz"
    name = f"{subject}_{space}_label-{label}_mask.{extension}"
    image = nibabel.load(bucket / "derivatives/rois" / subject / category / name)
    return (image.agg_data() if "fsnative" in space else image.get_fdata()) > 0


# Keys


def test_every_key_is_of_one_published_kind(keys):
    patterns = [*SUBJECT_KEYS.values(), *SESSION_KEYS.values(), *RUN_KEYS.values()]
    for key in keys:
        kinds = [p for p in patterns if re.fullmatch(p, key)]
        assert len(kinds) == (0 if key in TOP_KEYS else 1), key
        stem = re.fullmatch(r"(.*glmsingle-tedana.*)\.(nii\.gz|tsv|h5)", key)
        assert stem is None or f"{stem[1]}.json" in keys
    assert set(keys) >= TOP_KEYS


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_kind_is_there(keys, subject):
    for pattern in SUBJECT_KEYS.values():
        matches = [re.fullmatch(pattern, key) for key in keys]
        assert subject in {match["sub"] for match in matches if match}, pattern
    for pattern in SESSION_KEYS.values():
        matches = [re.fullmatch(pattern, key) for key in keys]
        sessions = {m["ses"] for m in matches if m and m["sub"] == subject}
        assert sessions == {*MAIN, *HELD_OUT}, pattern


def test_runs_are_of_one_session_of_the_first_subject(keys):
    n_expected = {
        "preprocessed": 2 * 2,
        "bold": 2 * 2 * 3 * 2,
        "sbref": 2 * 2 * 3,
        "events": 2,
        "fmap": 2 * 2 * 3,
        "anat": 2 * 3 * 2,
    }
    for kind, pattern in RUN_KEYS.items():
        found = [m for key in keys if (m := re.fullmatch(pattern, key))]
        assert {m["sub"] for m in found} == {"sub-01"}
        sessions = [m["ses"] for m in found]
        assert sessions.count("ses-01") == n_expected[kind]
        assert sessions.count("ses-31") == (kind in ("preprocessed", "bold"))


def test_rois_are_those_of_the_dataset(keys):
    found = {subject: set() for subject in SUBJECTS}
    labels = set()
    for key in keys:
        if match := re.fullmatch(SUBJECT_KEYS["roi"], key):
            labels.add(match["roi"])
            name = match["roi"].replace("-", "")
            found[match["sub"]].add(f"{match['category']}/{name}")
            assert key.replace("1pt8", "1pt5") in keys
            for hemi in "LR":
                surface = key.replace(
                    "space-T1w_res-1pt8", f"hemi-{hemi}_space-fsnative"
                )
                stem = surface.removesuffix(".nii.gz")
                assert {f"{stem}.func.gii", f"{stem}.label"} <= set(keys)
    assert set.union(*found.values()) == ALL_ROIS
    published = {"FFA-1", "pSTS-faces", "mfs-words", "l-objects", "laion-dorsal"}
    assert {"EBA", *published} <= labels
    assert len({frozenset(names) for names in found.values()}) == len(SUBJECTS)
    for subject, names in found.items():
        assert len(names) in ([40] if subject == "sub-01" else [41, 42, 43])
        assert 4 <= sum(name.startswith("face/") for name in names) <= 6


CATEGORIES = ("face", "body", "place", "object", "character")
CONTRASTS = {
    ("ses-4BarScreenfLoc", "floc"): {
        *(f"{name}VsOthers" for name in CATEGORIES),
        *(f"{name}VsBaseline" for name in CATEGORIES),
        *("faceVsObject", "bodyVsObject", "placeVsObject", "characterVsFace"),
    },
    ("ses-31", "oloc"): {
        *("objectVsScrambled", "objectVsBaseline", "scrambledVsBaseline"),
    },
    **{
        ("ses-MotionLocBarsSML", task): {
            *("movingVsStatic", "movingVsBaseline", "staticVsBaseline"),
        }
        for task in ("MotionLoc", "MotionLeft", "MotionRight")
    },
}
CONDITIONS = {
    ("ses-4BarScreenfLoc", "floc"): set(CATEGORIES),
    ("ses-31", "oloc"): {"object", "scrambled"},
    ("ses-MotionLocBarsSML", "MotionLeft"): {"moving", "static"},
    ("ses-MotionLocBarsSML", "MotionRight"): {"moving", "static"},
}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize(
    ("kind", "expected"), [("localizer", CONTRASTS), ("localizer_effect", CONDITIONS)]
)
def test_localizers_have_all_contrasts(keys, subject, kind, expected):
    found = {}
    for key in keys:
        match = re.fullmatch(SUBJECT_KEYS[kind], key)
        if match and match["sub"] == subject:
            task = found.setdefault((match["ses"], match["task"]), {})
            task.setdefault(match["space"], set()).add(match["contrast"])
            assert key.endswith(
                ".func.gii" if "fsnative" in match["space"] else ".nii.gz"
            )
    assert {task: set().union(*spaces.values()) for task, spaces in found.items()} == (
        expected
    )
    for spaces in found.values():
        assert set(spaces) == {
            *("hemi-L_space-fsnative", "hemi-R_space-fsnative"),
            *("space-T1w_res-1pt5", "space-T1w_res-1pt8"),
        }
        assert len({frozenset(names) for names in spaces.values()}) == 1


# How it is built


def test_same_arguments_same_bytes(tmp_path):
    def build(name, subjects, **more):
        return _files(
            build_bucket(
                tmp_path / name, subjects=subjects, n_sessions=1, held_out=(), **more
            )
        )

    first = build("first", ["sub-01"])
    both = build("both", ["sub-03", "sub-01"])
    assert build("again", ["sub-01"]) == first
    own = {
        key: data
        for key, data in first.items()
        if key.startswith("derivatives/") and "/tedana/" not in key
    }
    assert {key: both[key] for key in own} == own
    other = build("other", ["sub-01"], seed=1)
    assert sorted(other) == sorted(first)
    assert {key for key in first if other[key] != first[key]} >= {
        key for key in first if "SingletrialBetas_statmap.nii" in key
    }


def test_no_time_of_writing(bucket, keys):
    compressed = [key for key in keys if key.endswith((".gz", ".mgz"))]
    assert compressed
    for key in compressed:
        with open(bucket / key, "rb") as file:
            assert file.read(8)[4:] == bytes(4), key
    size = sum((bucket / key).stat().st_size for key in keys)
    assert size < 30e6


def test_sessions_can_differ_by_subject(tmp_path):
    folder = build_bucket(
        tmp_path,
        subjects=["sub-06", "sub-07"],
        n_sessions={"sub-06": 2, "sub-07": 1},
        held_out=(),
        n_trials=8,
        resolution=12,
    )
    found = {(path.parent.name, path.name) for path in folder.rglob("ses-0*")}
    assert found == {("sub-06", "ses-01"), ("sub-06", "ses-02"), ("sub-07", "ses-01")}


def test_what_cannot_be_built_is_refused(tmp_path):
    for options, words in (
        ({"subjects": ["sub-02"]}, "sub-02"),
        ({"held_out": ["ses-30"]}, "ses-30"),
        ({"n_trials": 0}, "n_trials=0"),
    ):
        with pytest.raises(ValueError, match=words):
            build_bucket(tmp_path / words, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        build_bucket(tmp_path)


# Tables


def test_tables_of_the_dataset(bucket):
    table = pd.read_csv(bucket / "participants.tsv", sep="\t")
    participants = ["sub-01", "sub-03", "sub-05", "sub-06", "sub-07"]
    assert list(table["participant_id"]) == participants
    assert table["age"].isna().any()
    fields = json.loads((bucket / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion", "License"} <= set(fields)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_trial_tables(bucket, subject):
    for session in (*MAIN, *HELD_OUT):
        trials = _trials(bucket, subject, session)
        assert list(trials) == ["session", "run", "beta_index", "label"]
        assert list(trials["beta_index"]) == list(range(len(trials)))
        assert len(trials) == _betas(bucket, subject, session).shape[3]
        assert trials["run"].is_monotonic_increasing
        assert trials["run"].nunique() > 1
        assert set(trials["session"]) == {session}
        has_12rep = trials["label"].str.contains("_12rep_").any()
        odd_sessions = subject != "sub-03"
        assert has_12rep == (session in (MAIN[::2] if odd_sessions else MAIN[1::2]))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_labels_follow_the_grammar(bucket, subject):
    tables = {session: _trials(bucket, subject, session) for session in MAIN}
    labels = pd.concat(tables.values())["label"]
    shown = labels.value_counts()
    odd = [
        x for x in shown.index if not any(re.fullmatch(p, x) for p in LABELS.values())
    ]
    assert odd == ([ODD_LABEL] if subject == "sub-01" else [])
    for kind, sources in {
        "12rep": {"LAION", "THINGS+"},
        "NSD": {"NSD"},
        "OOD": {"OOD"},
        "unique": {"LAION", "THINGS", "THINGS+"},
    }.items():
        matches = [m for m in (re.fullmatch(LABELS[kind], x) for x in shown.index) if m]
        assert {match["source"] for match in matches} == sources
        counts = {shown[match[0]] for match in matches}
        # The last of the unique images runs out of trials.
        assert max(counts) == (12 if kind == "12rep" else 4)
        assert kind != "12rep" or len(counts) == 1
        if kind == "unique":
            numbers = {match["number"] for match in matches}
            assert numbers == {LABEL_NUMBERS[subject]}
    planned = shown[shown.index.str.startswith("shared_4rep_")]
    assert sorted(planned) == [3] + [4] * (len(planned) - 1)
    assert {x.split("_")[3] for x in shown.index if "_OOD_" in x} == OOD_TYPES
    assert {content_category(label) for label in shown.index} == set(CONTENT)
    names = "".join(shown.index)
    assert " " in names
    assert "+" in names
    assert re.search(r"\w\.\w+\.\w", names)


# Volumes


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_functional_grid_is_one_per_subject(bucket, subject):
    mask = _brain_mask(bucket, subject)
    functional = [
        path
        for path in bucket.rglob(f"{subject}*space-T1w*.nii.gz")
        if "res-1pt8" in path.name or {"glmsingle-tedana", "tedana"} & {*path.parts}
    ]
    assert len(functional) > 100
    for path in functional:
        image = nibabel.load(path)
        assert image.shape[:3] == mask.shape, path
        assert np.array_equal(image.affine, mask.affine), path
    affines = {_brain_mask(bucket, each).affine.tobytes() for each in SUBJECTS}
    assert len(affines) == len(SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_rois_lie_in_the_brain_on_both_sides(bucket, subject):
    brain = _brain_mask(bucket, subject).get_fdata() > 0
    for path in (bucket / "derivatives/rois" / subject).rglob("*1pt8*.nii.gz"):
        roi = _values(path) > 0
        assert not (roi & ~brain).any(), path
        assert 0 < roi[: roi.shape[0] // 2].sum() < roi.sum(), path
    if subject == "sub-03":
        for space in ("space-T1w_res-1pt8", "space-T1w_res-1pt5"):
            parts = [
                _roi(bucket, subject, "retinotopy", f"V{n}{part}", space)
                for n in (1, 2, 3)
                for part in "dv"
            ]
            union = _roi(bucket, subject, "retinotopy", "EVC", space)
            assert np.array_equal(union, np.any(parts, axis=0))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_betas_are_zero_outside_and_nan_only_at_the_edge(bucket, subject):
    brain = _brain_mask(bucket, subject).get_fdata() > 0
    inner = binary_erosion(brain)
    fitted = _fitted(bucket, subject, "ses-01")
    assert 0 < (brain & ~fitted).sum() < 0.01 * brain.sum()
    assert not (fitted & ~brain).any()
    assert not (inner & ~fitted).any()
    for session in (*MAIN, *HELD_OUT):
        betas = _betas(bucket, subject, session)
        assert betas.dtype == np.float32
        assert (betas[~fitted] == 0).all()
        nan = np.isnan(betas).all(axis=3)
        assert nan.any()
        assert not (nan & inner).any()
        assert np.isfinite(betas[fitted & ~nan]).all()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_maps(bucket, subject):
    fitted = _fitted(bucket, subject, "ses-01")
    visual = _roi(bucket, subject, "laion", "laion-general")
    folder = bucket / "derivatives/glmsingle-tedana" / subject
    for pattern in (
        "*Noiseceiling*",
        "*R2mean*",
        "**/*desc-R2_*",
        "**/*Noiseceiling_*",
    ):
        paths = list(folder.glob(f"{pattern}.nii.gz"))
        assert paths
        for path in paths:
            values = nibabel.load(path).get_fdata()
            assert values.min() == 0
            assert values.max() <= 100
            assert np.array_equal(values > 0, fitted)
            assert values[visual].mean() > 2 * values[fitted & ~visual].mean()


def _ceiling(bucket, subject, repeats):
    folder = bucket / "derivatives/glmsingle-tedana" / subject
    stem = f"{subject}_task-images_space-T1w_desc-Noiseceiling"
    return nibabel.load(folder / f"{stem}{repeats}_statmap.nii.gz").get_fdata()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_noise_ceilings_follow_from_each_other(bucket, subject):
    fitted = _fitted(bucket, subject, "ses-01")
    ceiling = _ceiling(bucket, subject, "4rep")[fitted] / 100
    ncsnr2 = ceiling / (1 - ceiling) / 4
    assert np.ptp(np.sqrt(ncsnr2)) > 0.3
    for repeats, inverse in [("12rep", 1 / 12), ("Allrep", 0.2263)]:
        expected = 100 * ncsnr2 / (ncsnr2 + inverse)
        given = _ceiling(bucket, subject, repeats)[fitted]
        np.testing.assert_allclose(given, expected, rtol=1e-3)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_noise_ceilings_are_those_of_the_betas(bucket, subject):
    visual = _roi(bucket, subject, "laion", "laion-general")
    given = _ceiling(bucket, subject, "4rep")[visual]
    pooled, labels = [], []
    for session in MAIN:
        betas = _betas(bucket, subject, session)[visual]
        centred = betas - betas.mean(axis=1, keepdims=True)
        pooled.append(centred / betas.std(axis=1, keepdims=True))
        labels.extend(_trials(bucket, subject, session)["label"])
    pooled = pd.DataFrame(np.concatenate(pooled, axis=1).T)
    images = pooled.groupby(np.array(labels))
    of_four = images.size() == 4
    noise = images.var().loc[of_four].mean().to_numpy()
    total = pooled.var().to_numpy()
    ncsnr2 = (total - noise).clip(0) / noise
    estimated = 100 * ncsnr2 / (ncsnr2 + 1 / 4)
    known = np.isfinite(estimated)
    assert known.mean() > 0.95
    assert abs(np.mean(estimated[known] - given[known])) < 5
    assert np.corrcoef(estimated[known], given[known])[0, 1] > 0.7


@pytest.mark.parametrize("subject", SUBJECTS)
def test_rois_prefer_their_content(bucket, subject):
    sessions = []
    for session in MAIN:
        betas = _betas(bucket, subject, session)
        shown = _trials(bucket, subject, session)["label"].map(content_category)
        sessions.append((betas, shown))
    for category, label, content in [
        ("face", "FFA-1", "face"),
        ("body", "EBA", "body"),
        ("place", "PPA", "place"),
        ("object", "l-objects", "object"),
        ("character", "VWFA-1", "word"),
        ("motion", "MT", "motion"),
    ]:
        roi = _roi(bucket, subject, category, label)
        preferred, rest = [], []
        for betas, shown in sessions:
            inside = betas[roi] - betas[roi].mean(axis=1, keepdims=True)
            response = (inside / inside.std(axis=1, keepdims=True)).mean(axis=0)
            preferred.extend(response[shown == content])
            rest.extend(response[shown != content])
        test = ttest_ind(preferred, rest, alternative="greater")
        assert test.pvalue < 1e-3, label


def _localizer(bucket, subject, session, task, rest):
    folder = bucket / "derivatives/localizers" / subject / session / "func"
    return nibabel.load(folder / f"{subject}_{session}_task-{task}_{rest}")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_localizers_find_their_regions(bucket, subject):
    for session, task, contrast, category, label in [
        ("ses-4BarScreenfLoc", "floc", "faceVsOthers", "face", "FFA-1"),
        ("ses-4BarScreenfLoc", "floc", "placeVsOthers", "place", "PPA"),
        ("ses-31", "oloc", "objectVsScrambled", "object", "l-objects"),
        ("ses-MotionLocBarsSML", "MotionLoc", "movingVsStatic", "motion", "MT"),
    ]:
        for space, extension in (
            ("space-T1w_res-1pt5", "nii.gz"),
            ("hemi-L_space-fsnative", "func.gii"),
        ):
            name = f"{space}_contrast-{contrast}_stat-z_statmap.{extension}"
            image = _localizer(bucket, subject, session, task, name)
            z = image.agg_data() if "fsnative" in space else image.get_fdata()
            inside = _roi(bucket, subject, category, label, space)
            assert z[inside].mean() > 2
            assert abs(z[~inside].mean()) < 1


def test_localizers_on_the_grid_of_betas_are_nan_where_nothing_was_fitted(bucket):
    name = "space-T1w_res-{}_contrast-faceVsObject_stat-z_statmap.nii.gz"
    fit, resampled = (
        _localizer(bucket, "sub-01", "ses-4BarScreenfLoc", "floc", name.format(res))
        for res in ("1pt5", "1pt8")
    )
    ratio = fit.header.get_zooms()[0] / resampled.header.get_zooms()[0]
    assert ratio == pytest.approx(1.5 / 1.778, rel=1e-4)
    values = resampled.get_fdata().ravel()
    to_fit = np.linalg.inv(fit.affine) @ resampled.affine
    voxels = np.indices(resampled.shape).reshape(3, -1).T
    at = nibabel.affines.apply_affine(to_fit, voxels)
    last = np.array(fit.shape) - 1
    outside = ((at < -0.5) | (at > last + 0.5)).any(axis=1)
    within = ((at >= 0) & (at <= last)).all(axis=1)
    assert np.isnan(values[outside]).all()
    nearest = tuple(np.round(at[within]).astype(int).T)
    assert (values[within] == fit.get_fdata()[nearest]).mean() > 0.99


def test_runs_are_those_of_the_trials(bucket):
    stem = "sub-01_ses-01_task-images_run-01"
    folder = bucket / "derivatives/tedana/sub-01/ses-01/func"
    clean = nibabel.load(folder / f"{stem}_space-T1w_desc-optcom_bold.nii.gz")
    assert clean.header.get_zooms()[3] == 1.0
    func = bucket / "sub-01/ses-01/func"
    shapes = set()
    for echo in "123":
        for part in ("mag", "phase"):
            bold = nibabel.load(func / f"{stem}_echo-{echo}_part-{part}_bold.nii.gz")
            shapes.add(bold.shape)
            assert bold.header.get_zooms()[3] == np.float32(1.9)
    (shape,) = shapes
    assert nibabel.load(func / f"{stem}_echo-1_part-mag_sbref.nii.gz").ndim == 3
    fields = json.loads((func / f"{stem}_echo-1_part-mag_bold.json").read_text())
    assert fields["RepetitionTime"] == 1.9
    assert abs(shape[3] * 1.9 - clean.shape[3] * 1.0) < 1.9
    events = pd.read_csv(func / f"{stem}_events.tsv", sep="\t")
    assert (events["onset"] + events["duration"]).max() < shape[3] * 1.9
    trials = _trials(bucket, "sub-01", "ses-01")
    shown = trials.loc[trials["run"] == 1, "label"][: len(events)]
    assert list(events["stim_file"]) == [f"images/{label}" for label in shown]


# Surfaces


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_cortex_is_one_reconstruction_in_freesurfers_coordinates(bucket, subject):
    folder = bucket / "derivatives/freesurfer" / subject
    orig = nibabel.load(folder / "mri/orig.mgz")
    centre = orig.header["Pxyz_c"]
    assert nibabel.aff2axcodes(orig.affine) == ("L", "I", "A")
    assert np.abs(centre).min() > 1
    mask = _brain_mask(bucket, subject)
    brain = np.asarray(mask.dataobj) > 0
    for hemi, sign in (("lh", -1), ("rh", 1)):
        read = {}
        for name in ("white", "pial", "inflated", "sphere.reg"):
            file = folder / f"surf/{hemi}.{name}"
            vertices, faces, volume = nibabel.freesurfer.read_geometry(
                file, read_metadata=True
            )
            read[name] = vertices
            assert volume["valid"].split()[0] == "1"
            assert np.array_equal(volume["volume"], orig.shape)
            np.testing.assert_allclose(volume["cras"], centre, atol=1e-4)
            axes = [volume[f"{axis}ras"] for axis in "xyz"]
            assert np.array_equal(axes, [[-1, 0, 0], [0, 0, -1], [0, 1, 0]])
            # Closed, with triangles that are counted as of a sphere, all facing out.
            edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
            unique, counts = np.unique(edges, axis=0, return_counts=True)
            assert (counts == 2).all()
            assert len(vertices) - len(unique) + len(faces) == 2
        sphere = read["sphere.reg"]
        np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), 100, rtol=1e-5)
        a, b, c = (sphere[faces[:, i]] for i in range(3))
        assert (np.sum(np.cross(b - a, c - a) * a, axis=1) > 0).all()
        thickness = np.linalg.norm(read["pial"] - read["white"], axis=1)
        assert 1.5 < np.median(thickness) < 5
        white = read["white"] + centre
        assert white[:, 0].mean() * sign > 20
        sulc = nibabel.freesurfer.read_morph_data(folder / f"surf/{hemi}.sulc")
        assert sulc.shape == (len(white),)
        assert sulc.min() < 0 < sulc.max()
        to_voxel = np.linalg.inv(mask.affine)
        voxels = np.round(nibabel.affines.apply_affine(to_voxel, white)).astype(int)
        assert brain[tuple(voxels.T)].mean() > 0.95


@pytest.mark.parametrize("subject", SUBJECTS)
def test_regions_of_surfaces_are_those_of_the_volume(bucket, subject):
    folder = bucket / "derivatives/freesurfer" / subject
    centre = nibabel.load(folder / "mri/orig.mgz").header["Pxyz_c"]
    to_voxel = np.linalg.inv(_brain_mask(bucket, subject).affine)
    for hemi, letter in (("lh", "L"), ("rh", "R")):
        white, pial = (
            nibabel.freesurfer.read_geometry(folder / f"surf/{hemi}.{name}")[0]
            for name in ("white", "pial")
        )
        middle = (white + pial) / 2 + centre
        voxels = nibabel.affines.apply_affine(to_voxel, middle).round().astype(int)
        for category, name in (("place", "PPA"), ("laion", "laion-ventral")):
            in_volume = _roi(bucket, subject, category, name)[tuple(voxels.T)]
            space = f"hemi-{letter}_space-fsnative"
            inside = _roi(bucket, subject, category, name, space)
            # Voxels of 8 mm tell vertices at the edge of a region otherwise.
            assert in_volume[inside].mean() > 0.5
            assert in_volume[~inside].mean() < 0.02
            stem = f"{subject}_{space}_label-{name}_mask.label"
            label = bucket / "derivatives/rois" / subject / category / stem
            vertices = nibabel.freesurfer.read_label(label)
            assert np.array_equal(np.flatnonzero(inside), np.ravel(vertices))


# The model file


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_model_has_the_betas_and_maps_of_the_images(bucket, subject):
    for session in MAIN:
        fitted = _fitted(bucket, subject, session)
        name = "space-T1w_desc-GLMsingle_model.h5"
        with h5py.File(_func(bucket, subject, session, name)) as file:
            matrix = file["betasmd"]
            assert matrix.dtype == np.float32
            assert matrix.id.get_offset() is not None
            np.testing.assert_array_equal(
                matrix, _betas(bucket, subject, session)[fitted]
            )
            for field, map_name in (
                ("R2", "stat-rsquare_desc-R2_statmap"),
                ("HRFindex", "desc-HRFindex_dseg"),
                ("FRACvalue", "desc-Fracridge_statmap"),
            ):
                path = _func(bucket, subject, session, f"space-T1w_{map_name}.nii.gz")
                np.testing.assert_array_equal(file[field], _values(path)[fitted])
            assert file["meanvol"].shape == (fitted.sum(),)


# Stimuli


def test_stimulus_table(bucket):
    table = pd.read_csv(bucket / "stimuli/task-images_metadata.csv", index_col=0)
    assert list(table) == ["dataset", "participant", "unique_or_shared", "n_reps"]
    known = table.drop(index=ODD_LABEL)
    assert table.loc[ODD_LABEL].isna().all()
    assert set(known["dataset"]) == {"LAION", "NSD", "OOD", "THINGS", "THINGSplus"}
    assert set(known["n_reps"]) == {"12rep", "4rep"}
    assert "THINGSplus" in set(known.filter(regex=r"^\w+_THINGS\+", axis=0)["dataset"])
    shared = known[known["unique_or_shared"] == "shared"]
    assert set(shared["participant"]) == {
        "shared",
        "sub-01;sub-03;sub-05;sub-06;sub-07",
    }
    assert (shared.index.str.extract(r"_(\d+rep)_")[0] == shared["n_reps"].values).all()
    unique = known[known["unique_or_shared"] == "unique"]
    assert set(unique["participant"]) == set(SUBJECTS)
    numbers = unique.index.str.extract(r"_p(\d\d)\.jpg")[0]
    assert list(numbers) == [LABEL_NUMBERS[s] for s in unique["participant"]]


def test_segmentations_are_of_shared_images(bucket):
    stem = "stimuli/task-images_desc-segmentations"
    table = pd.read_csv(bucket / f"{stem}_metadata.csv")
    assert list(table) == [
        *("mask_row", "image_name", "noun", "instance_id", "score"),
        *("box_x0", "box_y0", "box_x1", "box_y1", "localized", "mask_file"),
    ]
    assert table["image_name"].str.startswith("shared_").all()
    assert table["mask_file"].is_unique
    with h5py.File(bucket / f"{stem}.h5") as file:
        masks = file["masks"][()]
    assert list(table["mask_row"]) == list(range(len(masks)))
    row = table[table["localized"] == 1].iloc[0]
    x, y = int(row["box_x0"]), int(row["box_y0"])
    inside = masks[row["mask_row"], y : int(row["box_y1"]), x : int(row["box_x1"])]
    assert inside.all()
    assert inside.sum() == masks[row["mask_row"]].sum()


@pytest.mark.parametrize(
    ("model", "length"),
    [("CLIP", 1024), ("DINOv2", 1024), ("PEcore", 1024), ("SigLIP2", 1152)],
)
def test_first_embeddings_differ_where_images_are_transparent(bucket, model, length):
    name = f"task-images_desc-{model}_embeddings.h5"
    first, current = bucket / "archive/embeddings/v1" / name, bucket / "stimuli" / name
    assert first.stat().st_size != current.stat().st_size
    with h5py.File(first) as before, h5py.File(current) as after:
        names = [x.decode() for x in after["image_ids"]]
        assert [x.decode() for x in before["image_ids"]] == names
        assert after["embedding"].shape == (len(names), length)
        assert before["embedding"].dtype == after["embedding"].dtype == np.float16
        differs = (before["embedding"][()] != after["embedding"][()]).any(axis=1)
    with h5py.File(bucket / "stimuli/task-images_stimuli.h5") as file:
        images = [Image.open(io.BytesIO(bytes(row))) for row in file["images"]]
    table = pd.read_csv(bucket / "stimuli/task-images_metadata.csv")
    assert list(table["image_name"]) == names
    transparent = [image.mode == "RGBA" for image in images]
    assert list(differs) == transparent
    assert any(transparent)
    assert set(table.loc[transparent, "dataset"]) == {"OOD"}


# All of it in one call


def test_facts_are_not_those_of_the_library():
    """A demo that took its facts from the library would agree with every mistake."""
    for path in Path(demo_facts.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            if path.name in ("walkthrough.py", "environment.py"):
                continue
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1)
            if module.startswith("laion_fmri_fetchers"):
                assert [name.name for name in node.names] == ["user_path"]


def test_calls_go_to_the_demo_until_it_stops():
    before = dict(os.environ)
    demo = serve_demo(subjects=["sub-01"], n_sessions=1, held_out=())
    data = fetch_laion_fmri(rois="FFA1", verbose=0)
    assert data.data_dir == demo.data_dir == get_data_dir()
    assert len(data.images) == 1
    assert repr(demo) == f"<Demo {demo.bucket.url}, data in {demo.data_dir}>"
    assert data.images_meta[0]["key"] in {key for _, key, _ in demo.bucket.requests}
    assert current_terms_version() == demo.access.terms_version
    demo.stop()
    assert dict(os.environ) == before
    assert not os.path.exists(demo.data_dir)
    for url in (demo.bucket.url, demo.access.url):
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=10)


def test_a_request_id_of_the_user_is_not_sent_to_the_demo(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", "lfm_of_somebody")
    with serve_demo(subjects=["sub-01"], n_sessions=1) as demo:
        with pytest.raises(AccessRequiredError):
            fetch_laion_stimuli(verbose=0)
        assert demo.access.requests == []
    assert os.environ["LAION_FMRI_REQUEST_ID"] == "lfm_of_somebody"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_served_demo_removes_its_folder_when_it_is_ended(tmp_path, number):
    command = [sys.executable, "-m", "laion_fmri_fetchers", "demo", "--serve"]
    with subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = [process.stdout.readline() for _ in range(7)]
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        rest, messages = process.communicate(timeout=240)
    assert process.returncode == 0, messages
    assert rest == ""
    assert "Traceback" not in messages
    assert list(tmp_path.iterdir()) == []
    names = [re.fullmatch(r"export (\w+)=.*\n", line)[1] for line in lines]
    assert sorted(names) == [
        "LAION_FMRI_ACCESS_URL",
        "LAION_FMRI_BUCKET_URL",
        "LAION_FMRI_DATA_DIR",
        "LAION_FMRI_LICENSE",
        "LAION_FMRI_REQUEST_ID",
        "LAION_FMRI_SPLITS",
        "LAION_FMRI_SPLITS_URL",
    ]


def test_a_demo_that_cannot_be_built_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    with pytest.raises(ValueError, match="not among the subjects"):
        serve_demo(subjects=["sub-02"])
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
