"""Every tree of the bucket: what a default call leaves out, terms and prefixes reach.

What each call should give is written out from the published layout, or taken from the
names of the files in the bucket, not from the package's own rules.
"""

from __future__ import annotations

import re
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from laion_fmri_fetchers import (
    GreaterThan,
    NotNull,
    fetch_laion_fmri,
    fetch_laion_fmri_ids,
    get_subjects,
    inspect_bucket,
    status,
    verify_cache,
)
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import (
    HeldOutSessionError,
    InvalidQueryError,
    NotCachedError,
    UnsafeKeyError,
)
from laion_fmri_fetchers.layout.trees import trials_id

FIRST = "sub-01"
LOCALIZERS = "derivatives/localizers/sub-01/"
RETINOTOPY = {
    "derivatives/retinotopy/README.md": b"# Retinotopy\n",
    "derivatives/retinotopy/sub-01/ses-prf/sub-01_label-V1-d_angle.func.gii": b"angle",
    "derivatives/retinotopy/sub-01/maps.json": b"{}",
    "derivatives/retinotopy/sub-09/maps.json": b"{}",
}


def fetch(*args, **kwargs):
    return fetch_laion_fmri(*args, **{"verbose": 0, **kwargs})


def fetch_ids(*args, **kwargs):
    return fetch_laion_fmri_ids(*args, **{"verbose": 0, **kwargs})


def gets(server):
    return {key for method, key, _ in server.requests if method == "GET" and key}


def keys(folder, pattern):
    """The keys of a bucket that a regular expression matches as a whole."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {path for path in paths if re.fullmatch(pattern, path)}


@pytest.fixture
def retinotopy(server):
    """A tree that the package has no rule for, in the demo bucket."""
    for key, data in RETINOTOPY.items():
        server.put(key, data)
    yield server
    for key in RETINOTOPY:
        server.delete(key)


# ---------------------------------------------------------------- a default call


def test_a_default_call_downloads_one_grid_and_the_root_files(
    server, data_dir, bucket_folder
):
    data = fetch(FIRST)

    glm = "derivatives/glmsingle-tedana/sub-01/"
    main = r"ses-0\d/func/sub-01_ses-0\d_task-images_"
    expected = keys(
        bucket_folder,
        rf"{glm}{main}(space-T1w_stat-effect_desc-SingletrialBetas_statmap\.nii\.gz"
        r"|desc-SingletrialBetas_trials\.tsv)"
        rf"|{glm}sub-01_task-images_space-T1w_desc-Noiseceiling\w+_statmap\.nii\.gz"
        r"|derivatives/rois/sub-01/\w+/sub-01_space-T1w_res-1pt8_label-.*_mask\.nii\.gz"
        r"|derivatives/anatomical/.*/sub-01_.*_res-1pt8_desc-brain_mask\.nii\.gz"
        r"|README|dataset_description\.json|participants\.(tsv|json)",
    )
    assert len(expected) > 50
    assert gets(server) == expected
    assert {meta["res"] for meta in data.rois_meta} == {"1pt8"}
    grids = {nib.load(path).shape for path in data.rois}
    assert grids == {nib.load(data.images[0]).shape[:3]}


def test_the_other_grid_comes_by_a_term(server, data_dir):
    fine = fetch(rois="FFA1", max_images=0, roi_filter={"res": "1pt5"})
    both = fetch(rois="FFA1", max_images=0, roi_filter={"res": NotNull()})
    surfaces = fetch(rois="FFA1", max_images=0, roi_filter={"space": "fsnative"})
    masks = fetch(rois="FFA1", max_images=0, roi_filter={"space": "T1w"})

    assert [meta["res"] for meta in fine.rois_meta] == ["1pt5"]
    assert [meta["res"] for meta in both.rois_meta] == ["1pt5", "1pt8"]
    assert surfaces.rois == []  # their extension is another, too
    assert [meta["res"] for meta in masks.rois_meta] == ["1pt8"]


def test_root_files_that_are_missing_or_denied_stop_nothing(bucket_folder, data_dir):
    with (
        pytest.MonkeyPatch.context() as patch,
        serve_bucket(bucket_folder, denied=r"participants\.tsv$|^README$") as server,
    ):
        server.delete("dataset_description.json")
        patch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        with pytest.warns(UserWarning, match=r"participants\.tsv could not be down"):
            data = fetch(sessions=1, rois="FFA1")
    assert len(data.images) == 1
    assert data.failed == []
    assert (data_dir / "participants.json").is_file()
    assert not (data_dir / "README").exists()


# ---------------------------------------------------------------- image types


@pytest.mark.parametrize(
    ("image_type", "pattern"),
    [
        ("localizer", rf"{LOCALIZERS}.*_stat-z_statmap\.(nii\.gz|func\.gii)"),
        ("localizer_effect", rf"{LOCALIZERS}.*_stat-effect_statmap\.(nii|func).*"),
        ("preprocessed_bold", r"derivatives/tedana/sub-01/ses-0.*_bold\.nii\.gz"),
        ("raw_bold", r"sub-01/ses-0\d/func/.*_bold\.nii\.gz"),
        ("sbref", r"sub-01/ses-0\d/func/.*_sbref\.nii\.gz"),
        ("events", r"sub-01/ses-0\d/func/.*_events\.tsv"),
        ("fieldmap", r"sub-01/ses-0\d/fmap/.*\.nii\.gz"),
        ("raw_anatomical", r"sub-01/ses-0\d/anat/.*\.nii\.gz"),
        ("freesurfer", r"derivatives/freesurfer/sub-01/.*"),
        ("model", r"derivatives/glmsingle-tedana/sub-01/ses-0\d/.*_model\.h5"),
    ],
)
def test_each_type_comes_by_its_term(
    server, data_dir, bucket_folder, image_type, pattern
):
    data = fetch(FIRST, rois=None, image_type=image_type)

    expected = keys(bucket_folder, pattern)
    assert expected
    assert {meta["key"] for meta in data.images_meta} == expected
    assert expected <= gets(server)
    assert {meta["image_type"] for meta in data.images_meta} == {image_type}
    server.reset()
    again = fetch(FIRST, rois=None, image_type=image_type, mode="offline")
    assert again.images == data.images
    assert again.images_meta == data.images_meta
    assert server.requests == []
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_any_type_does_not_reach_time_series(retinotopy, data_dir):
    plan = fetch(FIRST, rois=None, image_type=NotNull(), dry_run=True)

    trees = Counter("/".join(m["id"].split("/")[:2]) for m in plan.images_meta)
    assert set(trees) == {
        "derivatives/glmsingle-tedana",
        "derivatives/rois",
        "derivatives/localizers",
        "derivatives/anatomical",
        "derivatives/freesurfer",
        "derivatives/retinotopy",
    }
    assert not [query for _, _, query in retinotopy.requests if "prefix=sub" in query]
    for named in ("raw_bold", ["raw_bold", "betas"]):
        data = fetch(FIRST, rois=None, image_type=named, dry_run=True)
        assert any(meta["image_type"] == "raw_bold" for meta in data.images_meta)


def test_localizers_by_session_contrast_and_run(server, data_dir):
    by_name = fetch(
        FIRST,
        rois=None,
        sessions="4BarScreenfLoc",
        image_type="localizer",
        contrast="faceVsOthers",
        res="1pt8",
    )
    assert [(m["task"], m["stat"], m["run"]) for m in by_name.images_meta] == [
        ("floc", "z", None)
    ]
    assert by_name.trials.empty
    effects = fetch(
        FIRST,
        rois=None,
        sessions=["ses-4BarScreenfLoc"],
        image_type="localizer_effect",
        contrast="face",
        space="fsnative",
        hemi="L",
        run=2,
    )
    assert [(m["run"], m["extension"]) for m in effects.images_meta] == [
        (2, "func.gii")
    ]


def test_the_object_localizer_of_a_held_out_session_is_public(server, data_dir):
    data = fetch(FIRST, rois=None, image_type="localizer", task="oloc", res="1pt8")
    assert {meta["session"] for meta in data.images_meta} == {"ses-31"}
    assert {meta["contrast"] for meta in data.images_meta} == {
        "objectVsScrambled",
        "objectVsBaseline",
        "scrambledVsBaseline",
    }
    named = fetch(
        FIRST, rois=None, image_type="localizer", sessions=31, res="1pt8", task="oloc"
    )
    assert named.images == data.images
    with pytest.raises(HeldOutSessionError, match="held out"):
        fetch(FIRST, rois=None, sessions=31)
    assert "ses-31" not in data.subjects_meta[0]["sessions"]


def test_a_trial_filter_leaves_localizers_as_they_are(server, data_dir):
    query = {"image_type": "localizer", "res": "1pt8", "task": "floc"}
    data = fetch(FIRST, rois=None, trial_filter={"n_reps": 12}, **query, dry_run=True)
    assert data.images == fetch(FIRST, rois=None, **query, dry_run=True).images


def test_a_dry_run_of_raw_data_says_first_how_much_it_is(server, data_dir, capsys):
    data = fetch(FIRST, image_type="raw_bold", dry_run=True, verbose=1)
    size = sum(meta["size"] for meta in data.images_meta)
    first = capsys.readouterr().err.splitlines()[0]
    assert (
        first == f"Raw or preprocessed data selected: {size / 1000:.3g} kB in 12 files"
    )


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"image_type": "localiser"}, "did you mean 'localizer'"),
        ({"image_type": "raw"}, "raw_bold.*raw_anatomical|raw_anatomical.*raw_bold"),
        ({"contrasts": "face"}, "did you mean 'contrast'"),
        ({"sessions": "4BarScreenFLoc", "image_type": "localizer"}, "4BarScreenfLoc"),
        ({"image_type": "localizer", "ech": 1}, "did you mean 'echo'"),
    ],
)
def test_mistyped(server, data_dir, query, words):
    with pytest.raises(InvalidQueryError, match=words):
        fetch(FIRST, **query)


def test_each_subject_that_was_named_is_looked_at(server, data_dir, bucket_folder):
    fetch(1, rois=None, max_images=0)
    fetch("all", rois=None, image_type="rsquare", dry_run=True)
    with pytest.raises(NotCachedError, match=r"sub-03 is on disk.*allow_missing=True"):
        fetch(["sub-01", "sub-03"], rois=None, max_images=0, mode="offline")
    with pytest.warns(UserWarning, match="sub-03 is on disk.*left out"):
        data = fetch(
            [1, 3], rois=None, max_images=0, mode="offline", allow_missing=True
        )
    assert [meta["subject"] for meta in data.subjects_meta] == ["sub-01"]
    server.put("sub-08/ses-01/anat/sub-08_ses-01_T1w.nii.gz", b"raw")
    try:
        with (
            pytest.warns(UserWarning, match="no files of sub-08"),
            pytest.raises(InvalidQueryError, match="no subject 'sub-99'"),
        ):
            fetch(["sub-01", "sub-08", "sub-99"], rois=None, max_images=0)
    finally:
        server.delete("sub-08/ses-01/anat/sub-08_ses-01_T1w.nii.gz")


def test_a_subject_is_one_that_any_tree_has(server, data_dir):
    key = "derivatives/localizers/sub-07/ses-4BarScreenfLoc/func/sub-07_ses-4Bar"
    key += "ScreenfLoc_task-floc_space-T1w_res-1pt8_contrast-face_stat-z_statmap.nii.gz"
    server.put(key, b"map")
    try:
        assert get_subjects() == ["sub-01", "sub-03", "sub-07"]
        data = fetch("all", rois=None, image_type="localizer", contrast="face")
        assert [m["key"] for m in data.images_meta if m["subject"] == "sub-07"] == [key]
        assert len(fetch("sub-07", rois=None, image_type="localizer").images) == 1
        with pytest.warns(UserWarning, match="no files of sub-07"):
            fetch("sub-07", rois=None)
    finally:
        server.delete(key)


# ---------------------------------------------------------------- prefixes


def test_a_prefix_of_a_tree_without_rules(retinotopy, data_dir, capsys):
    data = fetch_ids("derivatives/retinotopy/sub-01/")

    assert [m["id"] for m in data.images_meta] == [
        "derivatives/retinotopy/sub-01/maps.json",
        "derivatives/retinotopy/sub-01/ses-prf/sub-01_label-V1d_angle.func.gii",
    ]
    assert data.images_meta[1]["key"].endswith("label-V1-d_angle.func.gii")
    assert [m["subject"] for m in data.images_meta] == ["sub-01"] * 2
    assert data.query == {"image_ids": ["derivatives/retinotopy/sub-01/"]}
    assert Path(data.images[1]).read_bytes() == b"angle"
    assert gets(retinotopy) & RETINOTOPY.keys() == {m["key"] for m in data.images_meta}
    retinotopy.reset()
    again = fetch_ids(**data.query, mode="offline")
    assert retinotopy.requests == []
    assert (again.images, again.images_meta) == (data.images, data.images_meta)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    capsys.readouterr()
    status()
    assert re.search(r"derivatives/retinotopy/ +2 +7 B", capsys.readouterr().out)


def test_a_prefix_above_subjects(retinotopy, data_dir):
    data = fetch_ids("derivatives/retinotopy/")
    assert {m["key"] for m in data.images_meta} == set(RETINOTOPY)
    assert [m["subject"] for m in data.subjects_meta] == ["sub-01", "sub-09"]
    assert data.subjects_meta[0]["sessions"] == [f"ses-0{n}" for n in range(1, 5)]


def test_a_prefix_with_betas_brings_what_goes_with_them(server, data_dir):
    data = fetch_ids("derivatives/glmsingle-tedana/sub-03/ses-02/")
    betas = [m for m in data.images_meta if m["image_type"] == "betas"]
    assert [m["session"] for m in betas] == ["ses-02"]
    assert len(data.trials) > 0
    assert list(data.brain_masks) == ["sub-03"]
    assert list(data.noise_ceilings["sub-03"]) == ["12rep", "4rep", "Allrep"]


def test_a_prefix_leaves_out_what_is_held_out_or_gated(server, data_dir, capsys):
    stimuli = fetch_ids("stimuli/", dry_run=True, verbose=1)
    said = capsys.readouterr().err
    assert "stimuli/task-images_stimuli.h5" not in set(stimuli.plan["id"])
    assert "stimuli/task-images_metadata.csv" in set(stimuli.plan["id"])
    assert "Below stimuli/, 1 file held out for evaluation or gated" in said
    tree = fetch_ids("derivatives/glmsingle-tedana/sub-01/", dry_run=True)
    assert "ses-31" not in {m["session"] for m in tree.images_meta}
    localizers = fetch_ids(f"{LOCALIZERS}ses-31/", dry_run=True)
    assert {m["task"] for m in localizers.images_meta} == {"oloc"}


def test_archived_files_come_by_their_prefix(server, data_dir, bucket_folder):
    data = fetch_ids("archive/embeddings/v1/")
    assert len(data.images) == 4
    for path, meta in zip(data.images, data.images_meta, strict=True):
        assert Path(path).read_bytes() == (bucket_folder / meta["key"]).read_bytes()


@pytest.mark.parametrize(
    ("prefix", "error", "words"),
    [
        (
            "derivatives/retinotopi/",
            InvalidQueryError,
            "nothing below .*inspect_bucket",
        ),
        ("../elsewhere/", UnsafeKeyError, "lead out of the data directory"),
        ("/", UnsafeKeyError, "'/'"),
        (".laion_fmri/", UnsafeKeyError, "laion_fmri"),
        (3, InvalidQueryError, "image_ids is 3"),
    ],
)
def test_prefixes_that_are_wrong(server, data_dir, prefix, error, words):
    with pytest.raises(error, match=words):
        fetch_ids(prefix)


def test_a_prefix_offline_names_the_files_that_are_not_on_disk(retinotopy, data_dir):
    with pytest.raises(NotCachedError, match="Nothing below derivatives/retinotopy/"):
        fetch_ids("derivatives/retinotopy/", mode="offline")
    data = fetch_ids("derivatives/retinotopy/")
    Path(data.images[-1]).unlink()
    with pytest.raises(NotCachedError, match=r"1 file .*sub-09/maps\.json"):
        fetch_ids("derivatives/retinotopy/", mode="offline")
    with pytest.warns(UserWarning, match="1 of 4 files|1 of 4 images"):
        again = fetch_ids("derivatives/retinotopy/", mode="offline", allow_missing=True)
    assert len(again.images) == 3


def test_unknown_trees_show_in_discovery(retinotopy, data_dir, capsys):
    assert get_subjects() == ["sub-01", "sub-03", "sub-09"]
    inspect_bucket("derivatives/retinotopy")
    assert "sub-09/" in capsys.readouterr().out


# ---------------------------------------------------------------- other versions


def test_a_trial_table_replaced_in_the_bucket_is_noticed(
    bucket_folder, data_dir, monkeypatch
):
    key = (
        "derivatives/glmsingle-tedana/sub-01/ses-01/func/"
        "sub-01_ses-01_task-images_desc-SingletrialBetas_trials.tsv"
    )
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        old = fetch(rois=None, sessions=1)
        shown = list(dict.fromkeys(old.trials["label"]))
        text = (bucket_folder / key).read_text()
        text = text.replace(shown[0], "@").replace(shown[1], shown[0])
        server.put(key, text.replace("@", shown[1]).encode() + b"\n")
        with pytest.warns(UserWarning, match=r"version of 1 file.*_trials\.tsv.*alone"):
            again = fetch(rois=None, sessions=1)
        assert list(again.trials["label"]) == list(old.trials["label"])
        fetch_ids(key, mode="overwrite")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            new = fetch(rois=None, sessions=1)
        assert set(new.trials["label"]) == set(old.trials["label"])
        assert list(new.trials["label"]) != list(old.trials["label"])


def test_a_trial_table_that_was_cut_short_is_noticed(server, data_dir):
    data = fetch(rois=None, sessions=1)
    (table,) = Path(data.images[0]).parent.glob("*_trials.tsv")
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:9]))
    with pytest.warns(
        UserWarning, match=r"1 file on disk of another size.*_trials\.tsv"
    ):
        fetch(rois=None, sessions=1, mode="offline")
    again = fetch(rois=None, sessions=1)
    assert table.read_text() == "".join(lines)
    pd.testing.assert_frame_equal(again.trials, data.trials)


def test_a_file_replaced_in_the_bucket_is_noticed(bucket_folder, data_dir, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        data = fetch(rois="FFA1", sessions=1)
        old = data.rois_meta[0]
        before = Path(data.rois[0]).read_bytes()
        server.put(old["key"], before + b"\0" * 8)
        with pytest.warns(
            UserWarning, match=r"another version of 1 file.*FFA1"
        ) as seen:
            again = fetch(rois="FFA1", sessions=1)
        text = str(seen[0].message)
        assert "of 2025-06-01; now" in text
        assert "mode='overwrite'" in text
        new = again.rois_meta[0]
        assert new["outdated"]
        assert {**new, "outdated": False, "etag": old["etag"]} == old
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            offline = fetch(rois="FFA1", sessions=1, mode="offline")
        assert offline.rois_meta == again.rois_meta
        report = verify_cache(verbose=0).set_index("id")
        assert report.loc[old["id"], "status"] == "outdated"
        assert Path(data.rois[0]).read_bytes() == before

        server.reset()
        updated = fetch_ids(old["id"], mode="overwrite")
        assert gets(server) == {old["key"], "participants.tsv"}
        assert Path(updated.images[0]).read_bytes() == before + b"\0" * 8
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not fetch(rois="FFA1", sessions=1).rois_meta[0]["outdated"]


def test_only_outdated_images_are_downloaded_again(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        data = fetch(rois=None)
        key = data.images_meta[2]["key"]
        server.put(key, (bucket_folder / data.images_meta[0]["key"]).read_bytes())
        server.reset()
        updated = fetch(rois=None, mode="overwrite", outdated=True)
        assert updated.images == [data.images[2]]
        assert not updated.images_meta[0]["outdated"]
        betas = [k for k in gets(server) if k.endswith("Betas_statmap.nii.gz")]
        assert betas == [key]


@pytest.mark.parametrize("term", ["outdated", "last_modified"])
def test_tables_alone_that_are_outdated_are_downloaded_again(
    bucket_folder, data_dir, monkeypatch, term
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        data = fetch(rois="FFA1")
        newest = max(m["last_modified"] for m in [*data.images_meta, *data.rois_meta])
        key = trials_id(data.images_meta[2])
        lines = (bucket_folder / key).read_text().splitlines()
        changed = "\n".join([lines[0], *lines[:0:-1]]) + "\n"
        time.sleep(1.1)
        server.put(key, changed.encode())
        server.reset()
        terms = {"outdated": True}
        if term == "last_modified":
            terms = {term: GreaterThan(newest)}
        plan = fetch(rois="FFA1", mode="overwrite", dry_run=True, **terms).plan
        assert list(plan["id"]) == [key]
        fetch(rois="FFA1", mode="overwrite", **terms)
        assert gets(server) == {key}
        assert (data_dir / key).read_text() == changed
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fetch(rois="FFA1")


# ---------------------------------------------------------------- repetitions


def repetitions(folder, subject):
    """How often each image was shown before, by pandas alone."""
    files = sorted(folder.glob(f"**/{subject}_ses-0*_trials.tsv"))
    tables = [pd.read_csv(f, sep="\t").assign(session=f.parts[-3]) for f in files]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(repetition=table.groupby("label").cumcount() + 1)


def test_repetition_counts_over_all_earlier_sessions(server, data_dir, bucket_folder):
    data = fetch("all", rois=None, sessions=[2, 4])
    assert str(data.trials["repetition"].dtype) == "Int64"
    for subject in ("sub-01", "sub-03"):
        expected = repetitions(bucket_folder, subject)
        expected = expected[expected["session"].isin(["ses-02", "ses-04"])]
        trials = data.trials[data.trials["subject"] == subject]
        assert trials["repetition"].tolist() == expected["repetition"].tolist()
    assert data.trials["repetition"].max() > 1
    tables = {key for key in gets(server) if key.endswith("trials.tsv")}
    assert len(tables) == 8
    first = fetch(rois=None, trial_filter={"repetition": 1}, sessions=[2])
    assert set(first.trials["repetition"]) == {1}


def test_repetition_is_null_offline_where_an_earlier_table_is_not_on_disk(
    server, data_dir
):
    data = fetch(rois=None, sessions=[1, 3])
    min(data_dir.rglob("sub-01_ses-02_*_trials.tsv")).unlink()
    offline = fetch(rois=None, sessions=[1, 3], mode="offline")
    known = offline.trials["repetition"].notna()
    assert set(offline.trials["session"][known]) == {"ses-01"}
    assert set(offline.trials["session"][~known]) == {"ses-03"}
    columns = offline.trials.columns.drop("repetition")
    pd.testing.assert_frame_equal(offline.trials[columns], data.trials[columns])


def test_participants_of_unique_images_are_their_viewers(server, data_dir):
    """The number in a label is that of an acquisition: p04 is sub-03."""
    data = fetch("all", rois=None, max_images=8)
    unique = data.trials[data.trials["unique_or_shared"] == "unique"]
    assert len(unique) > 50
    assert (unique["participant"] == unique["subject"]).all()
    of_sub_03 = unique[unique["subject"] == "sub-03"]
    assert of_sub_03["label"].str.contains(r"_p04\.jpg$").all()


# ---------------------------------------------------------------- offline


def test_offline_says_what_is_missing_of_a_category(cached):
    mask = min(cached.rglob("*res-1pt8_label-FFA2_mask.nii.gz"))
    mask.unlink()
    with pytest.raises(NotCachedError, match=r"1 file .*FFA2_mask") as error:
        fetch(rois="face", mode="offline")
    assert "allow_missing=True" in str(error.value)
    with pytest.warns(UserWarning, match="left out: FFA2 of sub-01"):
        data = fetch(rois="face", mode="offline", allow_missing=True)
    assert "FFA2" not in {m["roi"] for m in data.rois_meta}
    with pytest.warns(UserWarning, match="1 of .* ROI masks .*FFA2 of sub-01"):
        fetch(mode="offline")


def test_offline_all_sessions_warns_of_those_that_are_missing(cached):
    min(cached.rglob("sub-01_ses-02*Betas_statmap.nii.gz")).unlink()
    with pytest.warns(UserWarning, match="1 of 4 images .*ses-02 of sub-01"):
        data = fetch(rois=None, mode="offline")
    assert [m["session"] for m in data.images_meta] == ["ses-01", "ses-03", "ses-04"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fetch(rois=None, mode="offline", max_images=3).images) == 3
        named = fetch(rois=None, sessions=[1, 2], max_images=1, mode="offline")
    assert len(named.images) == 1


def test_the_environment_makes_all_calls_offline(cached, monkeypatch, no_network):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    assert len(fetch("all").images) == 8
    assert get_subjects() == ["sub-01", "sub-03"]
    inspect_bucket("derivatives")
    for value in ('"1"', "TRUE\r"):
        monkeypatch.setenv("LAION_FMRI_OFFLINE", value)
        assert get_subjects() == ["sub-01", "sub-03"]
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "of course")
    with pytest.raises(InvalidQueryError, match="LAION_FMRI_OFFLINE is 'of course'"):
        get_subjects()
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "0")
    with pytest.raises(AssertionError, match="a socket was opened"):
        get_subjects()


def test_a_mode_that_is_named_wins_over_the_environment(cached, server, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    fetch(rois=None, sessions=1, mode="download_new")
    assert server.requests


# ---------------------------------------------------------------- resampled images


def test_resampling_to_the_other_grid_leaves_published_masks_alone(
    server, data_dir, bucket_folder
):
    published = fetch(rois="FFA1", max_images=0, roi_filter={"res": "1pt5"})
    resampled = fetch(rois="FFA1", sessions=1, resolution=1.5, interpolation="nearest")

    ours = data_dir / "derivatives/laion-fmri-fetchers"
    for path in (*resampled.images, *resampled.rois, *resampled.brain_masks.values()):
        assert Path(path).is_relative_to(ours)
    source = bucket_folder / published.rois_meta[0]["key"]
    assert Path(published.rois[0]).read_bytes() == source.read_bytes()
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    elsewhere = fetch_ids([m["id"] for m in resampled.rois_meta], data_dir=data_dir)
    assert [m["res"] for m in elsewhere.images_meta] == ["1pt8"]


def test_two_grids_of_one_image_are_not_resampled_to_one_file(server, data_dir):
    with pytest.raises(InvalidQueryError, match="one image on two grids.*res='1pt8'"):
        fetch(rois="FFA1", sessions=1, resolution=3, roi_filter={"res": NotNull()})


def test_maps_of_the_surface_that_keep_their_grid_are_named(server, data_dir):
    query = {"image_type": "localizer", "rois": None, "resolution": 12}
    where = {"space": "fsnative", "contrast": "faceVsOthers"}
    with pytest.warns(UserWarning, match="volumes.*returned as published: .*hemi-L"):
        data = fetch(**query, image_filter=where)
    assert [meta["res"] for meta in data.images_meta] == [None, None]
    where = {"res": "1pt8", "contrast": "faceVsOthers"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = fetch(**query, image_filter=where)
    assert [meta["res"] for meta in data.images_meta] == ["12"]


def test_an_updated_mask_is_resampled_anew(bucket_folder, data_dir, monkeypatch):
    """Also where the file keeps its size, as a mask that moved often does."""
    query = {"rois": "FFA1", "sessions": 1, "resolution": 12}
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        before = nib.load(fetch(**query).rois[0]).get_fdata()
        source = fetch(rois="FFA1", max_images=0)
        image = nib.load(source.rois[0])
        moved = np.roll(np.asanyarray(image.dataobj), 4, axis=0)
        nib.save(nib.Nifti1Image(moved, image.affine), data_dir / "moved.nii.gz")
        server.put(source.rois_meta[0]["key"], (data_dir / "moved.nii.gz").read_bytes())
        (data_dir / "moved.nii.gz").unlink()
        fetch(rois="FFA1", sessions=1, mode="overwrite")
        after = nib.load(fetch(**query).rois[0]).get_fdata()
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("at_once", [True, False])
def test_an_updated_brain_mask_is_resampled_anew(
    bucket_folder, data_dir, monkeypatch, at_once
):
    query = {"rois": None, "sessions": 1, "resolution": 12}
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        before = nib.load(fetch(**query).brain_masks["sub-01"]).get_fdata()
        (key,) = keys(bucket_folder, r".*/sub-01_.*res-1pt8_desc-brain_mask.nii.gz")
        image = nib.load(bucket_folder / key)
        moved = np.roll(np.asanyarray(image.dataobj), 4, axis=0)
        nib.save(nib.Nifti1Image(moved, image.affine), data_dir / "moved.nii.gz")
        server.put(key, (data_dir / "moved.nii.gz").read_bytes())
        (data_dir / "moved.nii.gz").unlink()
        if not at_once:
            fetch(rois=None, sessions=1, mode="overwrite")
        mode = "overwrite" if at_once else "offline"
        after = nib.load(fetch(**query, mode=mode).brain_masks["sub-01"]).get_fdata()
    assert before.any()
    assert not np.array_equal(before, after)


def test_a_derived_brain_mask_is_derived_again_when_its_source_changes(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        (mask,) = keys(bucket_folder, r".*/sub-01_.*res-1pt8_desc-brain_mask.nii.gz")
        (mean,) = keys(bucket_folder, r".*/sub-01_.*R2mean_statmap.nii.gz")
        server.delete(mask)
        with pytest.warns(UserWarning, match="no brain mask"):
            data = fetch(max_images=0, rois=None)
        before = nib.load(data.brain_masks["sub-01"]).get_fdata()
        image = nib.load(bucket_folder / mean)
        smaller = image.get_fdata()
        smaller[smaller < np.median(smaller[smaller > 0])] = 0
        nib.save(nib.Nifti1Image(smaller, image.affine), data_dir / "new.nii.gz")
        server.put(mean, (data_dir / "new.nii.gz").read_bytes())
        (data_dir / "new.nii.gz").unlink()
        with pytest.warns(UserWarning, match="no brain mask"):
            data = fetch(max_images=0, rois=None, mode="overwrite")
    after = nib.load(data.brain_masks["sub-01"]).get_fdata()
    np.testing.assert_array_equal(after, smaller > 0)
    assert 0 < after.sum() < before.sum()


def test_originals_removed_on_purpose_are_not_missing(server, data_dir):
    query = {"rois": None, "sessions": 1, "resolution": 12, "keep_original": False}
    data = fetch(**query)
    report = verify_cache(verbose=0)
    assert set(report["status"]) == {"ok"}
    assert data.images_meta[0]["id"] not in set(report["id"])
    ceilings = fetch(
        rois=None,
        image_type="subject_noise_ceiling",
        resolution=12,
        keep_original=False,
    )
    assert len(ceilings.images) == 3
    assert set(ceilings.noise_ceilings["sub-01"].values()) == set(ceilings.images)


def test_resampled_images_vouch_for_their_originals(server, data_dir):
    query = {"rois": None, "sessions": 1, "resolution": 12, "keep_original": False}
    data = fetch(**query)
    shutil.rmtree(data_dir / ".laion_fmri")
    again = fetch(**query, mode="offline")
    assert again.images == data.images
    assert len(again.trials) == len(data.trials)


def test_bids_tools_take_the_directory(server, data_dir):
    bids = pytest.importorskip("bids")
    fetch(rois="FFA1", sessions=1, resolution=12)
    layout = bids.BIDSLayout(
        data_dir, derivatives=[data_dir / "derivatives/laion-fmri-fetchers"]
    )
    assert layout.description["Name"].startswith("LAION-fMRI")
    ours = layout.derivatives["laion_fmri_fetchers"]
    assert ours.get(suffix="mask", extension=".nii.gz")
