"""The demo: data in the published layout and formats, to which calls go for a while."""

from __future__ import annotations

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image
from scipy.ndimage import binary_erosion

import laion_fmri_fetchers as package
from laion_fmri_fetchers import demo as demo_module
from laion_fmri_fetchers.demo import (
    CONTENT,
    build_bucket,
    content_category,
    serve_bucket,
    serve_demo,
)
from laion_fmri_fetchers.exceptions import AccessRequiredError, InvalidQueryError

SUBJECTS = ("sub-01", "sub-03")
MAIN = ("ses-01", "ses-02", "ses-03", "ses-04")
HELD_OUT = ("ses-31", "ses-32")
PARTICIPANTS = dict(
    zip("sub-01 sub-06 sub-05 sub-03 sub-07".split(), "12345", strict=True)
)
EMBEDDINGS = {"CLIP": 1024, "DINOv2": 1024, "PEcore": 1024, "SigLIP2": 1152}
SMALL = {
    "subjects": ["sub-07"],
    "n_sessions": 1,
    "held_out": (),
    "n_trials": 64,
    "resolution": 16,
}

# Keys as published: SUB and SES stand for names, GLM to LOC for folders and beginnings,
# MAP and IMG for extensions, and braces are expanded as by a shell.
KEYS = """
dataset_description.json participants.{tsv,json} README
stimuli/task-images_{stimuli.h5,metadata.csv,desc-captions.csv}
stimuli/task-images_desc-{segmentations.h5,segmentations_metadata.csv}
{stimuli,archive/embeddings/v1}/task-images_desc-{CLIP,DINOv2}_embeddings.h5
{stimuli,archive/embeddings/v1}/task-images_desc-{PEcore,SigLIP2}_embeddings.h5
GLM/SUB_task-images_desc-GLMsingle_summary.json
GLM/SUB_task-images_space-T1w_stat-rsquare_desc-R2meanMAP
GLM/SUB_task-images_space-T1w_desc-Noiseceiling{4rep,12rep,Allrep}MAP
FUNC_desc-{GLMsingle_summary.json,SingletrialBetas_trials.tsv}
FUNC_desc-SingletrialBetas_trials.json FUNC_space-T1w_desc-GLMsingle_model.{h5,json}
FUNC_space-T1w_stat-effect_desc-SingletrialBetasMAP
FUNC_space-T1w_stat-rsquare_desc-R2MAP FUNC_space-T1w_desc-HRFindex_dsegIMG
FUNC_space-T1w_desc-{Noiseceiling,Fracridge}MAP
ANAT_space-T1w{,_res-1pt8}_{T1w,T2w,desc-brain_mask}.nii.gz
derivatives/freesurfer/SUB/mri/orig.mgz
derivatives/freesurfer/SUB/mri/transforms/talairach.xfm
derivatives/freesurfer/SUB/surf/{lh,rh}.{white,pial,inflated,sphere.reg,sulc}
LOC/ses-31/func/SUB_ses-31_task-oloc_Z-{objectVsScrambled,scrambledVsBaseline}
LOC/ses-31/func/SUB_ses-31_task-oloc_Z-objectVsBaseline
LOC/ses-31/func/SUB_ses-31_task-oloc_run-{01,02}_E-{object,scrambled}
FLOC_Z-{face,body,place,object,character}Vs{Others,Baseline}
FLOC_Z-{faceVsObject,bodyVsObject,placeVsObject,characterVsFace}
FLOC_run-{01,02}_E-{face,body,place,object,character}
MLOC{Loc,Left,Right}_Z-{movingVsStatic,movingVsBaseline,staticVsBaseline}
MLOC{Left,Right}_run-{01,02}_E-{moving,static}
"""
KEYS_OF_RUNS = """
derivatives/tedana/SUB/SES/func/RUN_space-T1w_desc-optcom_boldIMG
SUB/SES/func/RUN_echo-{1,2,3}_part-{mag,phase}_boldIMG SUB/SES/func/RUN_events.tsv
SUB/SES/func/SUB_SES_task-images_run-01_echo-{1,2,3}_part-mag_sbrefIMG
SUB/SES/func/SUB_SES_task-images_run-02_echo-{1,2,3}_sbrefIMG
SUB/SES/fmap/SUB_SES_run-{01,02}_{magnitude1,magnitude2,phasediff}IMG
SUB/SES/anat/SUB_SES_echo-{1,2,3}_part-{mag,phase}_MEGREIMG
"""
WORDS = {
    "MLOC": "LOC/ses-MotionLocBarsSML/func/SUB_ses-MotionLocBarsSML_task-Motion",
    "FLOC": "LOC/ses-4BarScreenfLoc/func/SUB_ses-4BarScreenfLoc_task-floc",
    "LOC/": "derivatives/localizers/SUB/",
    "ANAT": "derivatives/anatomical/SUB/ses-PrismaAnat/anat/SUB_ses-PrismaAnat",
    "FUNC": "GLM/SES/func/SUB_SES_task-images",
    "GLM/": "derivatives/glmsingle-tedana/SUB/",
    "RUN": "SUB_SES_task-images_run-{01,02}",
    "MAP": "_statmapIMG",
    "IMG": ".{nii.gz,json}",
}
ROIS = """
EBA FBA VWFA1 VWFA2 mfswords pSTSwords FFA1 FFA2 OFA pSTSfaces AFP1 AFP2 laionEVC
laiondorsal laiongeneral laionlateral laionventral MST MT lobjects vobjects MPA OPA PPA
SPL IPCS IPS0 LO1 LO2 SPCS TO1 TO2 V1d V1v V2d V2v V3A V3B V3d V3v VO1 VO2 hV4 EVC
"""
# What else there may be: files of any name, masks, and a run that is held out.
OTHERS = re.compile(
    r"derivatives/(freesurfer/sub-0\d/(mri|label|stats)/[^/]+"
    r"|glmsingle-tedana/sub-0\d/ses-\d\d/func/figures/[^/]+\.png"
    r"|rois/(?P<sub>sub-0\d)/[a-z]+/(?P=sub)_(space-T1w_res-1pt[58]|hemi-[LR]_space-"
    r"fsnative)_label-(?P<roi>[A-Za-z0-9-]+)_mask\.(nii\.gz|func\.gii|label)"
    r"|tedana/sub-01/ses-31/func/.*_bold\.nii\.gz)|sub-01/ses-31/func/.*_bold\.nii\.gz"
)


def expand(text, subject, session):
    """Return all keys of a text of patterns."""
    for word, meaning in {**WORDS, "SUB": subject, "SES": session}.items():
        text = text.replace(word, meaning)
    keys = set()
    for pattern in text.split():
        forms = [pattern]
        for kind, stat in (("_Z-", "z"), ("_E-", "effect")):
            if kind in pattern:
                task, contrast = pattern.split(kind)
                end = f"contrast-{contrast}_stat-{stat}_statmap"
                forms = [
                    f"{task}_hemi-{{L,R}}_space-fsnative_{end}.func.gii",
                    f"{task}_space-T1w_res-{{1pt5,1pt8}}_{end}.nii.gz",
                ]
        for form in forms:
            parts = [part.split(",") for part in re.split("[{}]", form)]
            keys |= {"".join(words) for words in itertools.product(*parts)}
    return keys


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_keys_are_those_of_the_dataset(bucket_folder):
    files = contents(bucket_folder)
    expected = expand(KEYS_OF_RUNS, "sub-01", "ses-01")
    for subject, session in itertools.product(SUBJECTS, (*MAIN, *HELD_OUT)):
        expected |= expand(KEYS, subject, session)
    assert expected - files.keys() == set()
    others = {key: OTHERS.fullmatch(key) for key in files.keys() - expected}
    assert [key for key, match in others.items() if not match] == []
    masks = Counter((match["sub"], match["roi"]) for match in others.values())
    del masks[None, None]
    assert {*masks.values()} == {6}, "two grids, and two files a hemisphere"
    for name in "FFA-1 pSTS-faces mfs-words l-objects laion-dorsal".split():
        assert ("sub-01", name) in masks
    assert sum(map(len, files.values())) < 20e6


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A small bucket of the other subjects, of whom sub-06 has two sessions."""
    n_sessions = {"sub-05": 1, "sub-06": 2, "sub-07": 1}
    options = {**SMALL, "subjects": [*n_sessions], "n_sessions": n_sessions}
    return build_bucket(tmp_path_factory.mktemp("others"), **options)


def test_subjects_differ_in_rois_sessions_and_the_number_in_their_labels(
    bucket_folder, others
):
    union, n_rois = set(), {}
    for subject, number in PARTICIPANTS.items():
        folder = bucket_folder if subject in SUBJECTS else others
        masks = [*(folder / "derivatives/rois" / subject).rglob("*1pt8*_mask.nii.gz")]
        assert 4 <= sum(path.parent.name == "face" for path in masks) <= 6
        names = {re.search("label-(.+)_", path.name)[1] for path in masks}
        union |= {name.replace("-", "") for name in names}
        n_rois[subject] = len(names)
        labels = trials(folder, subject, "ses-01")["label"]
        assert set(labels.str.extract(r"_p(\d\d)\.jpg")[0].dropna()) == {f"0{number}"}
    assert union == {*ROIS.split()}
    assert n_rois.pop("sub-01") == 40
    assert {*n_rois.values()} <= {41, 42, 43}
    sessions = others.glob("derivatives/glmsingle-tedana/*/ses-*")
    assert sorted(path.name for path in sessions) == ["ses-01"] * 3 + ["ses-02"]


# --- What the files hold --------------------------------------------------------------


def load(bucket, name):
    (path,) = bucket.rglob(name)
    return nib.load(path)


def values(bucket, name):
    image = load(bucket, name)
    return image.agg_data() if name.endswith("gii") else np.asarray(image.dataobj)


def trials(bucket, subject, session):
    (path,) = bucket.rglob(f"{subject}_{session}_*desc-SingletrialBetas_trials.tsv")
    return pd.read_csv(path, sep="\t")


def betas_of(bucket, subject, session):
    return values(bucket, f"{subject}_{session}_*SingletrialBetas_statmap.nii.gz")


def roi(bucket, subject, label, space="space-T1w_res-1pt8"):
    end = "func.gii" if "fsnative" in space else "nii.gz"
    return values(bucket, f"{subject}_{space}_label-{label}_mask.{end}") > 0


def brain_mask(bucket, subject):
    return load(bucket, f"{subject}_*_res-1pt8_desc-brain_mask.nii.gz")


def test_the_doctor_finds_what_was_published(bucket_folder, monkeypatch, data_dir):
    """Trees, names, columns, trials, grids, model: the same as the library's."""
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        points = {point["point"]: point["state"] for point in package.doctor()}
    assert len(points) > 25
    assert [name for name in points if points[name] == "failed"] == ["access service"]
    notes = {name for name in points if points[name] == "note"}
    notes -= {"splits", "free space", "file locks"}  # of the machine
    # Two of five subjects, four of 34 sessions, and one odd label.
    assert notes == {"subjects", "sessions", "kinds of images"}


OOD_TYPES = (
    "cropped|gabor|gaudy|illusion-classic|illusion-natural|relations|selfmade|shape|"
    "unusual"
)
# Labels -> how often an image is shown; one was shown once less than planned, and the
# last of the unique ones runs out of trials.
LABELS = {
    r"shared_12rep_(LAION|THINGS\+)_.+\.(?:jpg|png)": {12},
    r"shared_4rep_(NSD)_.+\.(?:jpg|png)": {3, 4},
    rf"shared_4rep_OOD_({OOD_TYPES})_.+\.(?:jpg|png)": {4},
    r"unique_(LAION|THINGS|THINGS\+)_.+_p0[14]\.jpg": {1, 2, 3, 4},
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_labels_follow_the_grammar(bucket_folder, subject):
    tables = {name: trials(bucket_folder, subject, name) for name in MAIN}
    shown, known = pd.concat(tables)["label"].value_counts(), set()
    for pattern, counts in LABELS.items():
        found = [m for label in shown.index if (m := re.fullmatch(pattern, label))]
        sources = re.search(r"\(([^?]+?)\)", pattern)[1].replace("\\", "")
        assert {match[1] for match in found} == {*sources.split("|")}
        assert max(counts) in {shown[match[0]] for match in found} <= counts
        known |= {match[0] for match in found}
    # An unknown label must break nothing, so there is one.
    assert len({*shown.index} - known) == (subject == "sub-01")
    planned = shown[shown.index.str.startswith("shared_4rep_")]
    assert sorted(planned) == [3] + [4] * (len(planned) - 1)
    assert {content_category(label) for label in shown.index} == set(CONTENT)
    with_12rep = [x for x in MAIN if tables[x]["label"].str.contains("_12rep_").any()]
    assert with_12rep == [*MAIN[SUBJECTS.index(subject) :: 2]]
    for odd in (r"\w \w", r"\+", r"\w\.\w+\.\w"):
        assert re.search(odd, "\n".join(shown.index))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_volumes_lie_in_the_brain(bucket_folder, subject):
    brain = np.asarray(brain_mask(bucket_folder, subject).dataobj) > 0
    inner = binary_erosion(brain)
    fitted = values(bucket_folder, f"{subject}_ses-01_*_desc-R2_statmap.nii.gz") != 0
    assert 0 < (brain & ~fitted).sum() < 0.01 * brain.sum()
    assert not ((inner & ~fitted) | (fitted & ~brain)).any()
    for path in bucket_folder.rglob(f"{subject}*space-T1w*.nii.gz"):
        data, name = np.asarray(nib.load(path).dataobj), path.name
        if "_res-1pt8_label-" in name:
            assert not (data.astype(bool) & ~brain).any(), name
            assert 0 < data[: len(data) // 2].sum() < data.sum(), "on both sides"
        elif "SingletrialBetas" in name:
            nan = np.isnan(data).all(axis=3)
            assert data.dtype == np.float32
            assert (data[~fitted] == 0).all()
            assert nan.any()
            assert not (nan & inner).any()
            assert np.isfinite(data[fitted & ~nan]).all()
        elif "Noiseceiling" in name or "R2" in name:
            assert np.array_equal(data > 0, fitted), name
            assert 10 < data.max() <= 100, "a percentage"
        elif "res-1pt8" in name:  # of voxels, NaN where nothing was fitted
            assert data.shape == brain.shape


def test_noise_ceilings_follow_from_each_other(bucket_folder):
    """NC = 100 ncsnr² / (ncsnr² + mean(1/n)), n the repeats as planned."""
    name = "sub-01_task-images_space-T1w_desc-Noiseceiling{}_statmap.nii.gz"
    ceiling = values(bucket_folder, name.format("4rep")) / 100
    ncsnr2 = ceiling / (1 - ceiling) / 4
    for repeats, inverse in (("12rep", 1 / 12), ("Allrep", 0.2263)):
        given = values(bucket_folder, name.format(repeats))
        expected = 100 * ncsnr2 / (ncsnr2 + inverse)
        np.testing.assert_allclose(given, expected, rtol=1e-3)


def test_rois_prefer_their_content_and_are_found_by_localizers(bucket_folder):
    betas = np.concatenate(
        [betas_of(bucket_folder, "sub-01", session) for session in MAIN], axis=3
    )
    shown = pd.concat([trials(bucket_folder, "sub-01", session) for session in MAIN])
    content = shown["label"].map(content_category).to_numpy()
    floc, motion = "ses-4BarScreenfLoc_task-floc", "ses-MotionLocBarsSML_task-MotionLoc"
    for label, preferred, task, contrast in (
        ("FFA-1", "face", floc, "faceVsOthers"),
        ("PPA", "place", floc, "placeVsOthers"),
        ("l-objects", "object", "ses-31_task-oloc", "objectVsScrambled"),
        ("MT", "motion", motion, "movingVsStatic"),
    ):
        responses = betas[roi(bucket_folder, "sub-01", label)].mean(axis=0)
        is_preferred = content == preferred
        assert responses[is_preferred].mean() > responses[~is_preferred].mean() + 0.2
        for space, end in (
            ("space-T1w_res-1pt5", "nii.gz"),
            ("space-T1w_res-1pt8", "nii.gz"),
            ("hemi-L_space-fsnative", "func.gii"),
        ):
            name = f"sub-01_{task}_{space}_contrast-{contrast}_stat-z_statmap.{end}"
            z = values(bucket_folder, name)
            inside = roi(bucket_folder, "sub-01", label, space)
            assert np.isnan(z).any() == ("1pt8" in space), "where nothing was fitted"
            assert abs(np.nanmean(z[~inside])) < 1
            assert np.nanmean(z[inside]) > 2 or "1pt8" in space


def test_runs_are_those_of_the_trials(bucket_folder):
    stem = "sub-01_ses-01_task-images_run-01"
    clean, *raw = (
        load(bucket_folder, f"{stem}_{name}_bold.nii.gz")
        for name in ("space-T1w_desc-optcom", "echo-1_part-mag", "echo-3_part-phase")
    )
    assert clean.header.get_zooms()[3] == 1.0
    assert {image.header.get_zooms()[3] for image in raw} == {np.float32(1.9)}
    assert abs(raw[0].shape[3] * 1.9 - clean.shape[3]) < 1.9
    assert load(bucket_folder, f"{stem}_echo-1_part-mag_sbref.nii.gz").ndim == 3
    (file,) = bucket_folder.rglob(f"{stem}_events.tsv")
    events = pd.read_csv(file, sep="\t")
    table = trials(bucket_folder, "sub-01", "ses-01")
    assert (events["onset"] + events["duration"]).max() < raw[0].shape[3] * 1.9
    shown = table.loc[table["run"] == 1, "label"][: len(events)]
    assert list(events["stim_file"]) == [f"images/{label}" for label in shown]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_cortex_lies_in_freesurfers_coordinates(bucket_folder, subject):
    folder = bucket_folder / "derivatives/freesurfer" / subject
    mask = brain_mask(bucket_folder, subject)
    centre = nib.load(folder / "mri/orig.mgz").header["Pxyz_c"]
    assert np.abs(centre).min() > 1
    for hemi, letter, sign in (("lh", "L", -1), ("rh", "R", 1)):
        white, pial, sphere = (
            nib.freesurfer.read_geometry(folder / f"surf/{hemi}.{name}", True)
            for name in ("white", "pial", "sphere.reg")
        )
        np.testing.assert_allclose(white[2]["cras"], centre, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(sphere[0], axis=1), 100, rtol=1e-5)
        assert np.array_equal(white[1], sphere[1])
        sulc = nib.freesurfer.read_morph_data(folder / f"surf/{hemi}.sulc")
        assert sulc.shape == (len(white[0]),)
        # The regions of the surface are those of the volume, but for large voxels.
        middle = (white[0] + pial[0]) / 2 + centre
        assert middle[:, 0].mean() * sign > 20
        voxels = nib.affines.apply_affine(np.linalg.inv(mask.affine), middle)
        voxels = tuple(voxels.round().astype(int).T)
        assert np.asarray(mask.dataobj)[voxels].mean() > 0.95
        space = f"hemi-{letter}_space-fsnative"
        inside = roi(bucket_folder, subject, "laion-ventral", space)
        in_volume = roi(bucket_folder, subject, "laion-ventral")[voxels]
        assert in_volume[inside].mean() > 0.5
        assert in_volume[~inside].mean() < 0.02
        (file,) = bucket_folder.rglob(f"{subject}_{space}_label-laion-ventral_*.label")
        vertices = nib.freesurfer.read_label(file)
        assert np.array_equal(np.flatnonzero(inside), np.ravel(vertices))


def test_tables_of_stimuli(bucket_folder):
    table = pd.read_csv(bucket_folder / "stimuli/task-images_metadata.csv", index_col=0)
    known = table.dropna()
    assert len(table) == len(known) + 1, "nothing is known of the odd label"
    assert {*known["dataset"]} == {"LAION", "NSD", "OOD", "THINGS", "THINGSplus"}
    for label, row in known.iterrows():
        kind, *_, number = re.split(r"[_.]", label)[:-1]
        source = row["dataset"].replace("plus", "+")
        is_shared, reps = kind == "shared", f"_{row['n_reps']}" * (kind == "shared")
        assert label.startswith(f"{row['unique_or_shared']}{reps}_{source}_")
        assert is_shared or PARTICIPANTS[row["participant"]] == number[-1]
    shared = known.loc[known["unique_or_shared"] == "shared", "participant"]
    assert {*shared} == {"shared", ";".join(sorted(PARTICIPANTS))}
    captions = pd.read_csv(bucket_folder / "stimuli/task-images_desc-captions.csv")
    for (label, source), rows in captions.groupby(["image_name", "source"]):
        is_shared = label.startswith("shared_")
        by_humans = [*range(1, 6 if is_shared else 4)]
        assert list(rows["caption_idx"]) == (by_humans if source == "human" else [0])
        assert source == "human" or (is_shared and "_OOD_" not in label)


def test_masks_of_stimuli(bucket_folder):
    stem = "stimuli/task-images_desc-segmentations"
    table = pd.read_csv(bucket_folder / f"{stem}_metadata.csv")
    assert " ".join(table) == (
        "mask_row image_name noun instance_id score box_x0 box_y0 box_x1 box_y1 "
        "localized mask_file"
    )
    assert table["image_name"].str.startswith("shared_").all()
    with h5py.File(bucket_folder / f"{stem}.h5") as file:
        masks = file["masks"][()]
    assert (masks.dtype, len(masks)) == (np.uint8, len(table))
    row = table[table["localized"] == 1].iloc[1]
    x0, y0, x1, y1 = (int(row[f"box_{corner}"]) for corner in ("x0", "y0", "x1", "y1"))
    mask = masks[row["mask_row"]]
    assert mask[y0:y1, x0:x1].all()
    assert mask.sum() == (y1 - y0) * (x1 - x0)


def test_first_embeddings_differ_where_images_are_transparent(bucket_folder):
    with h5py.File(bucket_folder / "stimuli/task-images_stimuli.h5") as file:
        images = [Image.open(io.BytesIO(bytes(row))) for row in file["images"]]
    assert {(im.format, im.mode) for im in images} == {("JPEG", "RGB"), ("PNG", "RGBA")}
    transparent = [image.mode == "RGBA" for image in images]
    table = pd.read_csv(bucket_folder / "stimuli/task-images_metadata.csv")
    assert {*table.loc[transparent, "dataset"]} == {"OOD"}
    for model, length in EMBEDDINGS.items():
        name, read, sizes = f"task-images_desc-{model}_embeddings.h5", [], set()
        for folder in ("archive/embeddings/v1", "stimuli"):
            sizes.add((bucket_folder / folder / name).stat().st_size)
            with h5py.File(bucket_folder / folder / name) as file:
                labels = [x.decode() for x in file["image_ids"]]
                assert labels == list(table["image_name"])
                assert file["valid"].dtype == bool
                read.append(file["embedding"][()])
        assert len(sizes) == 2
        assert (read[0].dtype, read[0].shape[1]) == (np.float16, length)
        assert list((read[0] != read[1]).any(axis=1)) == transparent


# --- How it is built ------------------------------------------------------------------


def test_same_arguments_same_bytes(others, tmp_path):
    again = contents(build_bucket(tmp_path, **SMALL))
    compressed = {key for key in again if key.endswith((".gz", ".mgz"))}
    assert {again[key][4:8] for key in compressed} == {bytes(4)}, "a time of writing"
    for key, content in contents(others).items():
        if key.startswith("derivatives/") and "sub-07" in key and "/tedana/" not in key:
            assert again[key] == content, key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subjects": ["sub-02"]}, "sub-02.*not among the subjects"),
        ({"held_out": ["ses-30"]}, "ses-30"),
        ({"n_trials": 0}, "n_trials=0"),
    ],
)
def test_a_demo_that_cannot_be_built_leaves_nothing(
    options, words, monkeypatch, tmp_path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(os.environ)
    with pytest.raises(ValueError, match=words):
        serve_demo(**options)
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        build_bucket(tmp_path)


def test_facts_are_not_those_of_the_library():
    """A demo that took its facts from the library would agree with every mistake."""
    for path in Path(demo_module.__file__).parent.glob("*.py"):
        if path.name in ("walkthrough.py", "environment.py"):  # they call the library
            continue
        imports = re.findall(
            r"(?m)^ *from (\.\.\S*|laion_fmri_fetchers\S*) import (.+)",
            re.sub(r'(?s)""".*?"""', "", path.read_text()),
        )
        assert {names for _, names in imports} <= {"user_path"}, path


# --- Calls go to it -------------------------------------------------------------------


def test_every_fetcher_works_until_the_demo_stops(
    server, cached, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", "lfm_of_somebody")
    before = dict(os.environ)
    demo = serve_demo(subjects=["sub-01"], n_sessions=1, held_out=())
    assert repr(demo) == f"<Demo {demo.bucket.url}, data in {demo.data_dir}>"
    with pytest.raises(AccessRequiredError):
        package.fetch_laion_stimuli(verbose=0)
    assert demo.access.requests == [], "the user's request_id is not for the demo"
    data = package.fetch_laion_fmri(verbose=0)
    assert data.data_dir == demo.data_dir == package.get_data_dir()
    assert data.images_meta[0]["key"] in {key for _, key, _ in demo.bucket.requests}
    package.request_stimulus_access(
        name="Ada Example",
        email="ada@university.example",
        institution="University of Examples",
        research_purpose="Encoding models of natural images",
        accept_terms_version=package.current_terms_version(),
        acknowledge_privacy=True,
        verbose=0,
    )
    given = {"fetch_laion_fmri_ids": [data.images_meta[0]["id"]]}
    given |= dict.fromkeys(["fetch_laion_betas", "fetch_laion_surfaces"], "sub-01")
    fetchers = [name for name in package.__all__ if name.startswith("fetch_laion_")]
    assert len(fetchers) == 10
    for name in fetchers:
        fetch = getattr(package, name)
        arguments = [given[name]] if name in given else []
        assert fetch(*arguments, verbose=0).description, name
    assert package.get_subjects() == ["sub-01"]
    # Demo data and others never mix.
    package.fetch_laion_fmri(data_dir=tmp_path / "demo", verbose=0)
    with pytest.raises(InvalidQueryError, match="must not mix"):
        package.fetch_laion_fmri(data_dir=cached, verbose=0)
    assert capsys.readouterr() == ("", "")
    demo.stop()
    assert dict(os.environ) == before
    assert not os.path.exists(demo.data_dir)
    with pytest.raises(InvalidQueryError, match="holds synthetic data of a demo"):
        package.fetch_laion_fmri(data_dir=tmp_path / "demo", verbose=0)
    for url in (demo.bucket.url, demo.access.url, demo.splits.url):
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=10)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGTERM")
def test_a_served_demo_removes_its_folder_when_it_is_ended(tmp_path):
    options = ["--subjects", "sub-01", "--n-sessions", "1", "--n-trials", "8"]
    with subprocess.Popen(
        [sys.executable, "-m", "laion_fmri_fetchers", "demo", "--serve", *options],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = [*itertools.takewhile(lambda x: "Ctrl-C" not in x, process.stderr)]
        lines = [process.stdout.readline() for _ in range(7)]
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        rest, messages = process.communicate(timeout=240)
    assert process.returncode == 0, messages
    assert said[0].startswith("Building")
    assert (rest, messages, list(tmp_path.iterdir())) == ("", "", [])
    assert [re.fullmatch(r"export LAION_FMRI_(\w+)=.*\n", x)[1] for x in lines] == (
        "ACCESS_URL BUCKET_URL DATA_DIR LICENSE REQUEST_ID SPLITS SPLITS_URL".split()
    )
