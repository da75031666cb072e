"""Keys to records, labels to fields; by the facts published on the dataset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laion_fmri_fetchers.exceptions import UnsafeKeyError
from laion_fmri_fetchers.layout.keys import (
    RECORD_FIELDS,
    clean_key,
    is_held_out,
    is_nifti,
    is_nifti_name,
    is_of_session,
    is_of_trials,
    place_of,
    record_of,
)
from laion_fmri_fetchers.layout.labels import (
    LABEL_FIELDS,
    stimulus_fields,
    stimulus_value,
)
from laion_fmri_fetchers.layout.names import (
    ROI_CATEGORIES,
    clean_session,
    clean_subject,
    is_published_roi,
    none_if_null,
    rois_named,
)
from laion_fmri_fetchers.layout.trees import IMAGE_TYPES

GLM = "derivatives/glmsingle-tedana/sub-01/"
FUNC = f"{GLM}ses-02/func/sub-01_ses-02_task-images_"
ANAT = "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/sub-01_ses-PrismaAnat_"
ROI = "derivatives/rois/sub-01/face/sub-01_"
LOC = "derivatives/localizers/sub-01/ses-4BarScreenfLoc/func/sub-01_ses-4BarScreenfLoc_"
Z = "stat-z_statmap.nii.gz"
TEDANA = "derivatives/tedana/sub-01/ses-02/func/sub-01_ses-02_task-images_"
RAW = "sub-01/ses-02/"
BOLD = "part-phase_bold.nii.gz"


@pytest.mark.parametrize(
    ("key", "image_type"),
    [
        (f"{FUNC}space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz", "betas"),
        (f"{FUNC}desc-SingletrialBetas_trials.tsv", "trials"),
        (f"{FUNC}desc-SingletrialBetas_trials.json", "sidecar"),
        (f"{FUNC}space-T1w_desc-Noiseceiling_statmap.nii.gz", "noise_ceiling"),
        (f"{FUNC}space-T1w_desc-Noiseceiling_statmap.json", "sidecar"),
        (f"{FUNC}space-T1w_stat-rsquare_desc-R2_statmap.nii.gz", "rsquare"),
        (f"{FUNC}space-T1w_desc-HRFindex_dseg.nii.gz", "hrf_index"),
        (f"{FUNC}space-T1w_desc-Fracridge_statmap.nii.gz", "fracridge"),
        (f"{FUNC}space-T1w_desc-GLMsingle_model.h5", "model"),
        (f"{FUNC}space-T1w_desc-GLMsingle_model.json", "sidecar"),
        (f"{FUNC}desc-GLMsingle_summary.json", "summary"),
        (f"{GLM}ses-02/func/figures/a plot.png", "figure"),
        (
            f"{GLM}sub-01_task-images_space-T1w_stat-rsquare_desc-R2mean_statmap.nii.gz",
            "mean_rsquare",
        ),
        (
            f"{GLM}sub-01_task-images_space-T1w_desc-Noiseceiling12rep_statmap.nii.gz",
            "subject_noise_ceiling",
        ),
        (
            f"{GLM}sub-01_task-images_space-T1w_desc-Noiseceiling12rep_statmap.json",
            "sidecar",
        ),
        (f"{GLM}sub-01_task-images_desc-GLMsingle_summary.json", "subject_summary"),
        (f"{ANAT}space-T1w_res-1pt8_desc-brain_mask.nii.gz", "brain_mask"),
        (f"{ANAT}space-T1w_desc-brain_mask.nii.gz", "brain_mask"),
        (f"{ANAT}space-T1w_T2w.nii.gz", "anatomical"),
        (f"{ROI}space-T1w_res-1pt8_label-FFA-1_mask.nii.gz", "roi"),
        (f"{ROI}hemi-L_space-fsnative_label-FFA-1_mask.func.gii", "roi"),
        (f"{ROI}hemi-R_space-fsnative_label-FFA-1_mask.label", "roi"),
        (f"{LOC}task-floc_run-02_space-T1w_res-1pt5_contrast-face_{Z}", "localizer"),
        (
            f"{LOC}task-floc_hemi-L_space-fsnative_contrast-face_stat-z_statmap.func.gii",
            "localizer",
        ),
        (
            f"{LOC}task-floc_run-1_contrast-body_stat-effect_statmap.nii.gz",
            "localizer_effect",
        ),
        (f"{LOC}task-floc_run-02_space-T1w_contrast-face_stat-z_x.json", "sidecar"),
        (f"{TEDANA}run-01_space-T1w_desc-optcom_bold.nii.gz", "preprocessed_bold"),
        (f"{TEDANA}run-01_space-T1w_desc-optcom_bold.json", "sidecar"),
        (f"{RAW}func/sub-01_ses-02_task-images_run-01_echo-1_{BOLD}", "raw_bold"),
        (f"{RAW}func/sub-01_ses-02_run-01_echo-3_part-mag_sbref.nii.gz", "sbref"),
        (f"{RAW}func/sub-01_ses-02_run-01_echo-3_part-mag_sbref.json", "sidecar"),
        (f"{RAW}func/sub-01_ses-02_task-images_run-01_events.tsv", "events"),
        (f"{RAW}fmap/sub-01_ses-02_run-01_phasediff.nii.gz", "fieldmap"),
        (f"{RAW}anat/sub-01_ses-02_echo-1_MEGRE.nii.gz", "raw_anatomical"),
        ("sub-01/dwi/sub-01_dwi.nii.gz", "other"),
        ("derivatives/retinotopy/sub-01/sub-01_label-V1_mask.nii.gz", "other"),
        ("archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5", "other"),
        ("derivatives/freesurfer/sub-01/surf/lh.white", "freesurfer"),
        ("derivatives/freesurfer/sub-01/label/lh.label-x_mask.label", "freesurfer"),
        ("derivatives/newpipeline/sub-01/ses-01/func/odd name.bin", "other"),
        ("stimuli/task-images_desc-captions.csv", "other"),
        ("README", "other"),
    ],
)
def test_every_kind_of_key(key, image_type):
    record = record_of(key, 5, "abc", "2026-01-01T00:00:00.000Z")

    assert record["image_type"] == image_type
    assert tuple(record) == RECORD_FIELDS
    assert record["key"] == key
    assert record["size"] == 5
    assert record["etag"] == "abc"
    assert record["last_modified"] == "2026-01-01T00:00:00.000Z"
    assert record["absolute_path"] is None


def test_entities_of_an_image():
    record = record_of(
        f"{FUNC}space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"
    )

    expected = {
        "subject": "sub-01",
        "session": "ses-02",
        "task": "images",
        "space": "T1w",
        "res": None,
        "hemi": None,
        "stat": "effect",
        "desc": "SingletrialBetas",
        "suffix": "statmap",
        "extension": "nii.gz",
        "roi": None,
        "roi_category": None,
        "size": None,
    }
    assert {name: record[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("label", "roi"),
    [
        ("FFA-1", "FFA1"),
        ("pSTS-faces", "pSTSfaces"),
        ("laion-dorsal", "laiondorsal"),
        ("a-b-c", "abc"),
        ("hV4", "hV4"),
    ],
)
def test_hyphens_of_a_label_go_and_nothing_else(label, roi):
    key = f"{ROI}hemi-L_space-fsnative_label-{label}_mask.func.gii"

    record = record_of(key)

    assert record["id"] == f"{ROI}hemi-L_space-fsnative_label-{roi}_mask.func.gii"
    assert record["relative_path"] == record["id"]
    assert record["key"] == key
    assert (record["roi"], record["roi_category"]) == (roi, "face")
    assert (record["hemi"], record["space"]) == ("L", "fsnative")
    assert record["extension"] == "func.gii"


def test_hyphens_go_from_labels_in_every_tree_and_from_nothing_else():
    key = f"{ROI}space-T1w_label-FFA-1_desc-a-b_mask.nii.gz"
    assert clean_key(key) == f"{ROI}space-T1w_label-FFA1_desc-a-b_mask.nii.gz"
    for key, path in (
        (
            "derivatives/x/label-a-b_label-c-d.e-f",
            "derivatives/x/label-ab_label-cd.e-f",
        ),
        ("sub-01/anat/sub-01_label-WM-L_x.nii", "sub-01/anat/sub-01_label-WML_x.nii"),
        ("derivatives/rois/sub-01/my-own/notes.txt", None),
        ("derivatives/freesurfer/sub-01/label-x-y/lh.my-label.label", None),
    ):
        assert clean_key(key) == (path or key)


def test_entities_of_a_localizer():
    record = record_of(f"{LOC}task-floc_run-02_space-T1w_res-1pt5_contrast-face_{Z}")

    expected = {
        "subject": "sub-01",
        "session": "ses-4BarScreenfLoc",
        "task": "floc",
        "run": 2,
        "res": "1pt5",
        "contrast": "face",
        "stat": "z",
        "echo": None,
        "part": None,
    }
    assert {name: record[name] for name in expected} == expected


def test_entities_of_raw_data():
    record = record_of(f"{RAW}func/sub-01_ses-02_task-images_run-11_echo-3_{BOLD}")

    expected = {
        "subject": "sub-01",
        "session": "ses-02",
        "run": 11,
        "echo": 3,
        "part": "phase",
        "suffix": "bold",
    }
    assert {name: record[name] for name in expected} == expected


def test_what_belongs_to_a_session():
    anatomical = "derivatives/anatomical/sub-01/ses-PrismaAnat/anat/sub-01_T1w.nii.gz"
    localizer = f"{LOC}task-floc_contrast-face_{Z}"
    for key, of_session, of_trials in (
        (anatomical, False, False),
        ("participants.tsv", False, False),
        (localizer, True, False),
        (localizer.replace("4BarScreenfLoc", "31"), True, False),
        (f"{FUNC}space-T1w_x.nii.gz", True, True),
        (f"{RAW}func/sub-01_ses-02_task-images_run-01_events.tsv", True, True),
    ):
        record = record_of(key)
        assert is_of_session(record) is of_session, key
        assert is_of_trials(record) is of_trials, key


@pytest.mark.parametrize("session", ["ses-31", "ses-32", "ses-33", "ses-34"])
def test_held_out_but_for_localizers(session):
    for key, held_out in (
        (FUNC, True),
        (TEDANA, True),
        (RAW, True),
        (LOC.replace("ses-4BarScreenfLoc", "ses-02"), False),
    ):
        record = record_of(f"{key.replace('ses-02', session)}x.nii.gz")
        assert record["session"] == session
        assert is_held_out(record) is held_out, key
    assert not is_held_out(record_of(f"{FUNC}x.nii.gz"))


def test_trees_and_subjects_of_paths():
    for key, place in (
        (f"{ROI}x.nii.gz", ("derivatives/rois/", "sub-01")),
        ("sub-07/ses-01/func/x.nii.gz", ("", "sub-07")),
        (
            "derivatives/retinotopy/sub-03/a/b/c.gii",
            ("derivatives/retinotopy/", "sub-03"),
        ),
        ("later/sub-03/c.gii", ("later/", "sub-03")),
        ("derivatives/rois/README", ("derivatives/rois/", None)),
        ("archive/embeddings/v1/x.h5", ("archive/", None)),
        ("README", (None, None)),
    ):
        assert place_of(key) == place


def test_freesurfer_has_fewer_fields():
    record = record_of("derivatives/freesurfer/sub-01/mri/brain.mgz")

    assert (record["subject"], record["extension"]) == ("sub-01", "mgz")
    assert record["session"] is record["suffix"] is record["roi"] is None


@pytest.mark.parametrize(
    "key",
    [
        *("", "/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "a/", "C:/x"),
        *("a\\b", "a\nb", "a\x00b", ".laion_fmri/auth.json", ".LAION_fmri/x", ".."),
    ],
)
def test_unsafe_keys(key):
    with pytest.raises(UnsafeKeyError) as error:
        record_of(key)
    assert repr(key) in str(error.value)


@given(st.text())
def test_any_key_gives_a_record_or_is_unsafe(key):
    try:
        record = record_of(key)
    except UnsafeKeyError:
        return
    assert record["image_type"] in IMAGE_TYPES
    assert ".." not in record["id"].split("/")


OOD = (
    "cropped gabor gaudy illusion-classic illusion-natural relations selfmade shape "
    "unusual"
).split()


@pytest.mark.parametrize(
    ("label", "fields"),
    [
        (
            "shared_12rep_LAION_cluster_1003_i0.jpg",
            ("shared", 12, "LAION", None, None),
        ),
        (
            "shared_12rep_THINGS+_kmeans_211_bracelet2.jpg",
            ("shared", 12, "THINGS+", None, None),
        ),
        ("shared_4rep_NSD_special1000_100.jpg", ("shared", 4, "NSD", None, None)),
        (
            "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg",
            ("shared", 4, "OOD", "unusual", None),
        ),
        (
            "shared_4rep_OOD_shape_blob_round-01.png",
            ("shared", 4, "OOD", "shape", None),
        ),
        *((f"shared_4rep_OOD_{t}_x.png", ("shared", 4, "OOD", t, None)) for t in OOD),
        ("shared_4rep_OOD_novel_x.png", ("shared", 4, "OOD", None, None)),
        *(
            (f"unique_LAION_x_{number}.jpg", ("unique", 4, "LAION", None, subject))
            for number, subject in (
                ("p01", "sub-01"),
                ("p02", "sub-06"),
                ("p03", "sub-05"),
                ("p04", "sub-03"),
                ("p05", "sub-07"),
                ("p06", None),
                ("p00", None),
            )
        ),
        (
            "unique_LAION_initial_cluster_1122_i1_p05.jpg",
            ("unique", 4, "LAION", None, "sub-07"),
        ),
        ("unique_THINGS_air_pump_p03.jpg", ("unique", 4, "THINGS", None, "sub-05")),
        ("unique_THINGS+_a+b_p07.jpg", ("unique", 4, "THINGS+", None, None)),
        ("shared_7rep_LAION_x.jpg", (None,) * 5),
        ("shared_4rep_NSD_.jpg", (None,) * 5),
        ("shared_4rep_NSD.jpg", (None,) * 5),
        ("shared_4rep_LAION_x.gif", (None,) * 5),
        ("unique_THINGS_air_pump_p3.jpg", (None,) * 5),
        ("unique_THINGS_air_pump_p003.jpg", (None,) * 5),
        ("unique_NSD_air_pump_p03.jpg", (None,) * 5),
        ("unique_THINGS_air_pump.jpg", (None,) * 5),
        ("blank", (None,) * 5),
        ("", (None,) * 5),
    ],
)
def test_labels(label, fields):
    assert tuple(stimulus_fields(label).values()) == fields
    assert tuple(stimulus_fields(label)) == LABEL_FIELDS


@pytest.mark.parametrize("value", ["sub-01", "01", "1", 1, 1.0, "sub-1", " 01 "])
def test_forms_of_a_subject(value):
    assert clean_subject(value) == "sub-01"


@pytest.mark.parametrize(
    "value",
    ["sub", "", "bob", None, True, 1.5, float("nan"), float("inf"), -1, "ses-01"],
)
def test_no_subject(value):
    assert clean_subject(value) is None


@pytest.mark.parametrize("text", ["n/a", "N/A", "na", "None", "null", "", "  ", "NULL"])
def test_null_strings(text):
    assert none_if_null(text) is None


@pytest.mark.parametrize("value", ["Nancy", "nullify", 0, 0.0, False, "none of these"])
def test_what_is_no_null_string(value):
    assert none_if_null(value) == value


@pytest.mark.parametrize(
    ("value", "session"),
    [
        ("ses-01", "ses-01"),
        (1, "ses-01"),
        ("4BarScreenfLoc", "ses-4BarScreenfLoc"),
        ("ses-MotionLocBarsSML", "ses-MotionLocBarsSML"),
        ("sub-01", None),
        ("ses-", None),
        ("01234", None),
        ("ses 1", None),
        (None, None),
        (1.0, "ses-01"),
        (1.5, None),
    ],
)
def test_forms_of_a_session(value, session):
    assert clean_session(value) == session


@pytest.mark.parametrize(
    ("field", "cell", "value"),
    [
        ("n_reps", "12rep", 12),
        ("n_reps", "4rep", 4),
        ("n_reps", "4", 4),
        ("n_reps", "several", None),
        ("dataset", "THINGSplus", "THINGS+"),
        ("dataset", "LAION", "LAION"),
        ("participant", "sub-05", "sub-05"),
        ("participant", "shared", None),
        ("participant", "sub-01;sub-03;sub-05", None),
        ("participant", "05", None),
        ("unique_or_shared", "unique", "unique"),
        ("ood_type", "n/a", None),
    ],
)
def test_cells_of_the_stimulus_table(field, cell, value):
    assert stimulus_value(field, cell) == value


def test_published_rois():
    counts = {category: len(names) for category, names in ROI_CATEGORIES.items()}
    assert counts == {
        "body": 2,
        "character": 4,
        "face": 6,
        "laion": 5,
        "motion": 2,
        "object": 2,
        "place": 4,
        "retinotopy": 19,
    }
    for name in ("AFP1", "AFP2", "SPL", "EVC"):
        assert is_published_roi(name)


def test_rois_by_name():
    for category, names in ROI_CATEGORIES.items():
        assert rois_named(category.upper()) == (category,)
        for name in names:
            assert rois_named(name) == rois_named(name.lower()) == (name,)
    assert rois_named("V1") == ("V1d", "V1v")
    assert rois_named("v2") == ("V2d", "V2v")
    assert rois_named("V3") == ("V3d", "V3v")
    assert rois_named("V3a") == ("V3A",)
    assert rois_named(" pSTS-Faces ") == ("pSTSfaces",)
    assert rois_named("of-mine") == ("ofmine",)


@pytest.mark.parametrize(
    ("name", "is_image"),
    [
        ("sub-01_T1w.nii.gz", True),
        ("sub-01_T1w.nii", True),
        ("sub-01_hemi-L_mask.func.gii", False),
        ("sub-01_T1w.json", False),
        ("T1.mgz", False),
    ],
)
def test_nifti_files(name, is_image):
    assert is_nifti_name(name) is is_image
    assert is_nifti(record_of(f"{ANAT}{name}")) is is_image
