"""Keys to records, labels to fields; by the facts published on the dataset."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_fmri_fetchers.exceptions import UnsafeKeyError
from laion_fmri_fetchers.layout import keys, labels, names, trees

GLM = "derivatives/glmsingle-tedana/sub-01/"
FUNC = f"{GLM}ses-02/func/sub-01_ses-02_task-images_"
MEAN = f"{GLM}sub-01_task-images_"
ANAT = "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/sub-01_ses-PrismaAnat_"
ROI = "derivatives/rois/sub-01/face/sub-01_"
LOC = "derivatives/localizers/sub-01/ses-4BarScreenfLoc/func/sub-01_ses-4BarScreenfLoc_"
TEDANA = "derivatives/tedana/sub-01/ses-02/func/sub-01_ses-02_task-images_"
RAW = "sub-01/ses-02/func/sub-01_ses-02_"
BETAS = f"{FUNC}space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
FLOC = f"{LOC}task-floc_run-02_space-T1w_res-1pt5_contrast-face_stat-z_statmap.nii.gz"
PHASE = f"{RAW}task-images_run-11_echo-3_part-phase_bold.nii.gz"

KINDS = f"""
betas                  {BETAS}
trials                 {FUNC}desc-SingletrialBetas_trials.tsv
noise_ceiling          {FUNC}space-T1w_desc-Noiseceiling_statmap.nii.gz
rsquare                {FUNC}space-T1w_stat-rsquare_desc-R2_statmap.nii.gz
hrf_index              {FUNC}space-T1w_desc-HRFindex_dseg.nii.gz
fracridge              {FUNC}space-T1w_desc-Fracridge_statmap.nii.gz
model                  {FUNC}space-T1w_desc-GLMsingle_model.h5
summary                {FUNC}desc-GLMsingle_summary.json
figure                 {GLM}ses-02/func/figures/a plot.png
mean_rsquare           {MEAN}space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz
subject_noise_ceiling  {MEAN}space-T1w_desc-Noiseceiling12rep_statmap.nii.gz
subject_noise_ceiling  {MEAN}space-T1w_desc-NoiseceilingAllrep_statmap.nii.gz
subject_summary        {MEAN}desc-GLMsingle_summary.json
brain_mask             {ANAT}space-T1w_res-1pt8_desc-brain_mask.nii.gz
brain_mask             {ANAT}space-T1w_desc-brain_mask.nii.gz
anatomical             {ANAT}space-T1w_T2w.nii.gz
roi                    {ROI}space-T1w_res-1pt8_label-FFA-1_mask.nii.gz
roi                    {ROI}hemi-L_space-fsnative_label-FFA-1_mask.func.gii
roi                    {ROI}hemi-R_space-fsnative_label-FFA-1_mask.label
localizer              {FLOC}
localizer              {LOC}task-floc_hemi-L_contrast-face_stat-z_statmap.func.gii
localizer_effect       {LOC}task-floc_run-1_contrast-body_stat-effect_statmap.nii.gz
preprocessed_bold      {TEDANA}run-01_space-T1w_desc-optcom_bold.nii.gz
raw_bold               {PHASE}
sbref                  {RAW}run-01_echo-3_part-mag_sbref.nii.gz
events                 {RAW}task-images_run-01_events.tsv
fieldmap               sub-01/ses-02/fmap/sub-01_ses-02_run-01_phasediff.nii.gz
raw_anatomical         sub-01/ses-02/anat/sub-01_ses-02_echo-1_MEGRE.nii.gz
freesurfer             derivatives/freesurfer/sub-01/surf/lh.white
freesurfer             derivatives/freesurfer/sub-01/label/lh.label-x_mask.label
sidecar                {FUNC}desc-SingletrialBetas_trials.json
sidecar                {FUNC}space-T1w_desc-GLMsingle_model.json
sidecar                {MEAN}space-T1w_desc-Noiseceiling12rep_statmap.json
sidecar                {LOC}task-floc_run-02_contrast-face_stat-z_x.json
sidecar                {TEDANA}run-01_space-T1w_desc-optcom_bold.json
sidecar                {RAW}run-01_echo-3_part-mag_sbref.json
other                  sub-01/dwi/sub-01_dwi.nii.gz
other                  derivatives/retinotopy/sub-01/sub-01_label-V1_mask.nii.gz
other                  archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5
other                  derivatives/newpipeline/sub-01/ses-01/func/odd name.bin
other                  stimuli/task-images_desc-captions.csv
other                  README
"""


def test_every_kind_of_key():
    rows = [line.split(maxsplit=1) for line in KINDS.strip().splitlines()]
    assert {kind for kind, _ in rows} == set(trees.IMAGE_TYPES)
    for kind, key in rows:
        listed = {"size": 5, "etag": "abc", "last_modified": "2026-01-01T00:00:00.000Z"}
        record = keys.record_of(key, **listed)
        assert record["image_type"] == kind, key
        assert tuple(record) == keys.RECORD_FIELDS
        listed |= {"key": key, "absolute_path": None}
        assert {name: record[name] for name in listed} == listed


ENTITIES = {
    BETAS: "subject=sub-01 session=ses-02 task=images space=T1w stat=effect "
    "desc=SingletrialBetas suffix=statmap extension=nii.gz",
    FLOC: "subject=sub-01 session=ses-4BarScreenfLoc task=floc run=2 space=T1w "
    "res=1pt5 contrast=face stat=z suffix=statmap extension=nii.gz",
    PHASE: "subject=sub-01 session=ses-02 task=images run=11 echo=3 part=phase "
    "suffix=bold extension=nii.gz",
    f"{ROI}hemi-L_space-fsnative_label-FFA-1_mask.func.gii": "subject=sub-01 "
    "space=fsnative hemi=L suffix=mask extension=func.gii roi=FFA1 roi_category=face",
    "derivatives/freesurfer/sub-01/mri/brain.mgz": "subject=sub-01 extension=mgz",
}


def test_entities():
    others = {"id", "key", "relative_path", "image_type", "outdated"}
    for key, entities in ENTITIES.items():
        record = {k: v for k, v in keys.record_of(key).items() if v is not None}
        found = [f"{name}={record[name]}" for name in record if name not in others]
        assert " ".join(found) == entities
    assert [type(keys.record_of(PHASE)[name]) for name in ("run", "echo")] == [int, int]


def test_hyphens_go_from_labels_in_every_tree_and_from_nothing_else():
    mask = f"{ROI}hemi-L_space-fsnative_label-%s_desc-a-b_mask.func.gii"
    for key, path in {
        mask % "FFA-1": mask % "FFA1",
        mask % "a-b-c": mask % "abc",
        mask % "hV4": mask % "hV4",
        "derivatives/x/label-a-b_label-c-d.e-f": "derivatives/x/label-ab_label-cd.e-f",
        "sub-01/anat/sub-01_label-WM-L_x.nii": "sub-01/anat/sub-01_label-WML_x.nii",
        "derivatives/rois/my-own/a.txt": "derivatives/rois/my-own/a.txt",
        "a/label-x-y/my-label.label": "a/label-x-y/my-label.label",
    }.items():
        record = keys.record_of(key)
        assert keys.clean_key(key) == path
        assert (record["id"], record["key"]) == (path, key)
        assert record["relative_path"] == path
    assert keys.record_of(mask % "pSTS-faces")["roi"] == "pSTSfaces"


def test_what_belongs_to_a_session_and_what_is_held_out():
    anatomical = f"{ANAT}space-T1w_T1w.nii.gz"
    for key, of_session, of_trials in (
        (anatomical, False, False),
        ("participants.tsv", False, False),
        (FLOC, True, False),
        (FLOC.replace("4BarScreenfLoc", "31"), True, False),
        (BETAS, True, True),
        (f"{RAW}task-images_run-01_events.tsv", True, True),
    ):
        record = keys.record_of(key)
        assert keys.is_of_session(record) is of_session, key
        assert keys.is_of_trials(record) is of_trials, key
    for session in ("ses-30", "ses-31", "ses-32", "ses-33", "ses-34", "ses-35"):
        is_denied = session not in ("ses-30", "ses-35")
        for key in (BETAS, TEDANA, RAW):
            record = keys.record_of(key.replace("ses-02", session) + "x.nii.gz")
            assert keys.is_held_out(record) is is_denied, key
        localizer = keys.record_of(FLOC.replace("ses-4BarScreenfLoc", session))
        assert not keys.is_held_out(localizer)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a/", "C:/x"),
        *("a\\b", "a\nb", "a\x00b", ".laion_fmri/auth.json", ".LAION_fmri/x", ".."),
    ],
)
def test_unsafe_keys(key):
    with pytest.raises(UnsafeKeyError) as error:
        keys.record_of(key)
    assert repr(key) in str(error.value)


@given(st.text())
def test_any_key_gives_a_record_or_is_unsafe(key):
    try:
        record = keys.record_of(key)
    except UnsafeKeyError:
        return
    assert record["image_type"] in trees.IMAGE_TYPES
    assert ".." not in record["id"].split("/")


LABELS = """
shared_12rep_LAION_cluster_1003_i0.jpg         shared 12 LAION None None
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg  shared 12 THINGS+ None None
shared_4rep_NSD_special1000_100.jpg            shared 4 NSD None None
shared_4rep_LAION_controversial_17_i2.jpg      shared 4 LAION None None
shared_4rep_OOD_unusual_Screen 5-06 at 14.45.09.jpg  shared 4 OOD unusual None
shared_4rep_OOD_shape_blob_round-01.png        shared 4 OOD shape None
shared_4rep_OOD_novel_x.png                    shared 4 OOD None None
unique_LAION_initial_cluster_1122_i1_p05.jpg   unique 4 LAION None sub-07
unique_THINGS_air_pump_p03.jpg                 unique 4 THINGS None sub-05
unique_THINGS+_a+b_p04.jpg                     unique 4 THINGS+ None sub-03
unique_LAION_x_p02.jpg                         unique 4 LAION None sub-06
unique_LAION_x_p01.jpg                         unique 4 LAION None sub-01
unique_LAION_x_p06.jpg                         unique 4 LAION None None
unique_LAION_x_p00.jpg                         unique 4 LAION None None
"""
OOD_TYPES = (
    "cropped gabor gaudy illusion-classic illusion-natural relations selfmade shape "
    "unusual"
)
FIELDS = "unique_or_shared n_reps dataset ood_type participant"
UNKNOWN = (
    *("shared_7rep_LAION_x.jpg", "shared_4rep_NSD_.jpg", "shared_4rep_NSD.jpg", ""),
    *("shared_4rep_LAION_x.gif", "unique_NSD_x_p03.jpg", "unique_THINGS_x.jpg", "x"),
    *("unique_THINGS_x_p3.jpg", "unique_THINGS_x_p003.jpg"),
)


def test_labels():
    expected = dict(re.split("  +", line) for line in LABELS.strip().splitlines())
    for ood_type in OOD_TYPES.split():
        expected[f"shared_4rep_OOD_{ood_type}_x.png"] = f"shared 4 OOD {ood_type} None"
    expected |= dict.fromkeys(UNKNOWN, "None None None None None")
    for label, values in expected.items():
        fields = labels.stimulus_fields(label)
        assert " ".join(fields) == FIELDS
        assert " ".join(map(str, fields.values())) == values, label


@pytest.mark.parametrize(
    ("clean", "forms", "name"),
    [
        (names.clean_subject, ["sub-01", "01", "1", 1, 1.0, "sub-1", " 01 "], "sub-01"),
        (names.clean_subject, ["sub", "", "bob", None, True, 1.5, -1, "ses-01"], None),
        (names.clean_subject, [float("nan"), float("inf")], None),
        (names.clean_session, ["ses-01", 1, 1.0, "01"], "ses-01"),
        (names.clean_session, ["4Bar", "ses-4Bar"], "ses-4Bar"),
        (names.clean_session, ["sub-01", "ses-", "01234", "ses 1", None, 1.5], None),
        (
            names.none_if_null,
            ["n/a", "N/A", "na", "None", "null", "", "  ", "NULL"],
            None,
        ),
        *((names.none_if_null, [x], x) for x in ("Nancy", "nullify", 0, False)),
    ],
)
def test_forms_of_names(clean, forms, name):
    for form in forms:
        assert clean(form) == name, form


@pytest.mark.parametrize(
    ("field", "cells"),
    [
        ("n_reps", {"12rep": 12, "4rep": 4, "4": 4, "several": None}),
        ("dataset", {"THINGSplus": "THINGS+", "LAION": "LAION"}),
        ("participant", {"sub-05": "sub-05", "05": None}),
        ("participant", {"shared": None, "sub-01;sub-03;sub-05": None}),
        ("unique_or_shared", {"unique": "unique"}),
        ("ood_type", {"n/a": None}),
    ],
)
def test_cells_of_the_stimulus_table(field, cells):
    assert {cell: labels.stimulus_value(field, cell) for cell in cells} == cells


def test_rois_by_name():
    for name, meant in (
        *(("V1", "V1d V1v"), ("v2", "V2d V2v"), ("V3", "V3d V3v"), ("V3a", "V3A")),
        *((" pSTS-Faces ", "pSTSfaces"), ("of-mine", "ofmine"), ("FACE", "face")),
        *(("EVC", "EVC"), ("ffa-1", "FFA1")),
    ):
        assert names.rois_named(name) == tuple(meant.split())
