"""Every tree of the bucket: what a default call leaves out, terms and prefixes reach.

What each call should give is written out from the published layout, or taken from the
names of the files in the bucket, not from the package's own rules.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
from calls import fetch, fetch_ids, gets, no_warning

from laion_fmri_fetchers import (
    GreaterThan,
    IsIn,
    NotNull,
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

GLM = "derivatives/glmsingle-tedana/sub-01/"
LOCALIZERS = "derivatives/localizers/sub-01/"
RETINOTOPY = {
    "derivatives/retinotopy/README.md": b"# Retinotopy\n",
    "derivatives/retinotopy/sub-01/ses-prf/sub-01_label-V1-d_angle.func.gii": b"angle",
    "derivatives/retinotopy/sub-01/maps.json": b"{}",
    "derivatives/retinotopy/sub-09/maps.json": b"{}",
}


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


# --- A default call, and terms --------------------------------------------------------


def test_a_default_call_downloads_one_grid_and_the_root_files(
    server, data_dir, bucket_folder
):
    data = fetch()
    session = r"ses-0\d/func/sub-01_ses-0\d_task-images_"
    expected = keys(
        bucket_folder,
        rf"{GLM}{session}(space-T1w_stat-effect_desc-SingletrialBetas_statmap\.nii\.gz"
        r"|desc-SingletrialBetas_trials\.tsv)"
        rf"|{GLM}sub-01_task-images_space-T1w_desc-Noiseceiling\w+_statmap\.nii\.gz"
        r"|derivatives/rois/sub-01/\w+/sub-01_space-T1w_res-1pt8_label-.*_mask\.nii\.gz"
        r"|derivatives/anatomical/.*/sub-01_.*_res-1pt8_desc-brain_mask\.nii\.gz"
        r"|README|dataset_description\.json|participants\.(tsv|json)",
    )
    assert len(expected) > 50
    assert sorted(gets(server)) == sorted(expected)
    grids = {nib.load(path).shape for path in data.rois}
    assert grids == {nib.load(data.images[0]).shape[:3]}


@pytest.mark.parametrize(
    ("roi_filter", "names"),
    [
        ({"res": "1pt5"}, {"FFA1": "res-1pt5"}),
        ({"space": "fsnative"}, {}),  # their extension is another, too
        ({"res": NotNull()}, {"FFA1 1pt5": "res-1pt5", "FFA1 1pt8": "res-1pt8"}),
        (
            {"space": "fsnative", "extension": "func.gii"},
            {"FFA1 L": "hemi-L_space-fsnative", "FFA1 R": "hemi-R_space-fsnative"},
        ),
        (
            {
                "space": NotNull(),
                "res": IsIn("1pt8", None),
                "extension": IsIn("nii.gz", "func.gii"),
            },
            {
                "FFA1 T1w 1pt8 nii.gz": "space-T1w_res-1pt8",
                "FFA1 fsnative L func.gii": "hemi-L",
                "FFA1 fsnative R func.gii": "hemi-R",
            },
        ),
    ],
)
def test_other_masks_of_a_roi_come_by_terms_and_none_is_left_out(
    server, data_dir, roi_filter, names
):
    data = fetch(1, "FFA1", 1, max_images=0, roi_filter=roi_filter)
    files = data.roi_files["sub-01"]
    assert sorted(files) == sorted(names)
    assert sorted(files.values()) == sorted(data.rois)
    assert all(part in files[name] for name, part in names.items())


def test_root_files_that_are_missing_or_denied_stop_nothing(
    bucket_folder, data_dir, monkeypatch
):
    denied = r"participants\.tsv$|^README$"
    with serve_bucket(bucket_folder, denied=denied) as server:
        server.delete("dataset_description.json")
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        with pytest.warns(UserWarning, match=r"participants\.tsv could not be down"):
            data = fetch(sessions=1, rois="FFA1")
    assert (len(data.images), data.failed) == (1, [])
    assert (data_dir / "participants.json").is_file()
    assert not (data_dir / "README").exists()


@pytest.mark.parametrize(
    ("image_type", "pattern"),
    [
        ("rsquare", rf"{GLM}ses-0.*_stat-rsquare_desc-R2_statmap\.nii\.gz"),
        ("model", rf"{GLM}ses-0\d/.*_model\.h5"),
        ("localizer", rf"{LOCALIZERS}.*_stat-z_statmap\.(nii\.gz|func\.gii)"),
        ("localizer_effect", rf"{LOCALIZERS}.*_stat-effect_statmap\.(nii|func).*"),
        ("preprocessed_bold", r"derivatives/tedana/sub-01/ses-0.*_bold\.nii\.gz"),
        ("raw_bold", r"sub-01/ses-0\d/func/.*_bold\.nii\.gz"),
        ("sbref", r"sub-01/ses-0\d/func/.*_sbref\.nii\.gz"),
        ("events", r"sub-01/ses-0\d/func/.*_events\.tsv"),
        ("fieldmap", r"sub-01/ses-0\d/fmap/.*\.nii\.gz"),
        ("raw_anatomical", r"sub-01/ses-0\d/anat/.*\.nii\.gz"),
        ("freesurfer", r"derivatives/freesurfer/sub-01/.*"),
        ("anatomical", r"derivatives/anatomical/sub-01/.*_T[12]w\.nii\.gz"),
        ("brain_mask", r"derivatives/anatomical/sub-01/.*-brain_mask\.nii\.gz"),
    ],
)
def test_each_type_comes_by_its_term(
    server, data_dir, bucket_folder, image_type, pattern
):
    query = {"rois": None, "image_type": image_type}
    data = fetch(**query)
    expected = keys(bucket_folder, pattern)
    assert {meta["key"] for meta in data.images_meta} == expected != set()
    assert expected <= set(gets(server))
    assert not [key for key in gets(server) if key.endswith("trials.tsv")]
    assert {meta["image_type"] for meta in data.images_meta} == {image_type}
    assert data.sample_masks == [None] * len(expected)
    assert data.trials.empty
    server.reset()
    again = fetch(**query, mode="offline")
    assert (again.images, again.images_meta) == (data.images, data.images_meta)
    assert server.requests == []
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


def test_files_of_no_image_viewing_session_come_with_any(server, data_dir):
    query = {"sessions": 1, "rois": None, "dry_run": True}
    data = fetch("all", image_type="anatomical", **query)
    assert {m["session"] for m in data.images_meta} == {"ses-PrismaAnat"}
    assert {m["subject"] for m in data.images_meta} == {"sub-01", "sub-03"}
    assert all("ses-PrismaAnat" not in m["sessions"] for m in data.subjects_meta)
    data = fetch(image_type=NotNull(), extension="json", **query)
    assert {m["session"] for m in data.images_meta} == {"ses-01", None}
    kinds = {m["image_type"] for m in data.images_meta}
    assert {"sidecar", "summary", "subject_summary"} <= kinds


def test_any_type_does_not_reach_time_series(retinotopy, data_dir):
    plan = fetch(rois=None, image_type=NotNull(), dry_run=True)
    trees = "glmsingle-tedana rois localizers anatomical freesurfer retinotopy".split()
    assert {m["id"].split("/")[1] for m in plan.images_meta} == set(trees)
    assert not [query for _, _, query in retinotopy.requests if "prefix=sub" in query]
    for named in ("raw_bold", ["raw_bold", "betas"]):
        data = fetch(rois=None, image_type=named, dry_run=True)
        assert any(meta["image_type"] == "raw_bold" for meta in data.images_meta)


def test_localizers_by_session_contrast_and_run(server, data_dir):
    query = {"rois": None, "dry_run": True, "sessions": "4BarScreenfLoc"}
    terms = {"image_type": "localizer", "contrast": "faceVsOthers", "res": "1pt8"}
    (meta,) = fetch(**query, **terms).images_meta
    assert (meta["task"], meta["stat"], meta["run"]) == ("floc", "z", None)
    filtered = fetch(**query, **terms, trial_filter={"n_reps": 12})
    assert filtered.images_meta == [meta]  # they have no trials
    terms = {"contrast": "face", "space": "fsnative", "hemi": "L", "run": 2}
    query["sessions"] = ["ses-4BarScreenfLoc"]
    (meta,) = fetch(**query, image_type="localizer_effect", **terms).images_meta
    assert (meta["run"], meta["extension"]) == (2, "func.gii")


def test_the_object_localizer_of_a_held_out_session_is_public(server, data_dir):
    query = {"rois": None, "image_type": "localizer", "task": "oloc", "res": "1pt8"}
    data = fetch(**query)
    assert {meta["session"] for meta in data.images_meta} == {"ses-31"}
    assert {meta["contrast"] for meta in data.images_meta} == {
        *("objectVsScrambled", "objectVsBaseline", "scrambledVsBaseline")
    }
    assert fetch(**query, sessions=31).images == data.images
    with pytest.raises(HeldOutSessionError, match="held out"):
        fetch(rois=None, sessions=31)
    assert "ses-31" not in data.subjects_meta[0]["sessions"]


def test_a_dry_run_of_raw_data_says_first_how_much_it_is(server, data_dir, capsys):
    query = {"image_type": "raw_bold", "dry_run": True, "verbose": 1}
    for limit, files in ((None, "12 files"), (1, "1 file")):
        data = fetch(**query, max_images=limit)
        size = sum(meta["size"] for meta in data.images_meta)
        first = capsys.readouterr().err.splitlines()[0]
        words = f"Raw or preprocessed data selected: {size / 1000:.3g} kB in {files}"
        assert first == words


def test_each_subject_that_was_named_is_looked_at(server, data_dir):
    query = {"rois": None, "max_images": 0}
    fetch(1, **query)
    fetch("all", rois=None, image_type="rsquare", dry_run=True)
    with pytest.raises(NotCachedError, match=r"sub-03 is on disk.*allow_missing=True"):
        fetch(["sub-01", "sub-03"], **query, mode="offline")
    with pytest.warns(UserWarning, match="sub-03 is on disk.*left out"):
        data = fetch([1, 3], **query, mode="offline", allow_missing=True)
    assert [meta["subject"] for meta in data.subjects_meta] == ["sub-01"]


def test_a_subject_is_one_that_any_tree_has(own_server, data_dir):
    key = f"{LOCALIZERS}ses-4BarScreenfLoc/func/sub-01_ses-4BarScreenfLoc_task-floc_"
    key += "space-T1w_res-1pt8_contrast-face_stat-z_statmap.nii.gz"
    key = key.replace("sub-01", "sub-07")
    own_server.put(key, b"map")
    own_server.put("sub-08/ses-01/anat/sub-08_ses-01_T1w.nii.gz", b"raw")
    assert get_subjects() == ["sub-01", "sub-03", "sub-07", "sub-08"]
    data = fetch("sub-07", rois=None, image_type="localizer", contrast="face")
    assert [m["key"] for m in data.images_meta] == [key]
    with (
        pytest.warns(UserWarning, match="no files of sub-08"),
        pytest.raises(InvalidQueryError, match="no subject 'sub-99'"),
    ):
        fetch(["sub-01", "sub-08", "sub-99"], rois=None, max_images=0)


# --- Prefixes -------------------------------------------------------------------------


def test_a_prefix_of_a_tree_without_rules(retinotopy, data_dir, capsys):
    assert get_subjects() == ["sub-01", "sub-03", "sub-09"]
    inspect_bucket("derivatives/retinotopy")
    assert "sub-09/" in capsys.readouterr().out
    data = fetch_ids("derivatives/retinotopy/sub-01/")
    assert [m["id"] for m in data.images_meta] == [
        "derivatives/retinotopy/sub-01/maps.json",
        "derivatives/retinotopy/sub-01/ses-prf/sub-01_label-V1d_angle.func.gii",
    ]
    assert data.images_meta[1]["key"].endswith("label-V1-d_angle.func.gii")
    assert [m["subject"] for m in data.images_meta] == ["sub-01"] * 2
    assert data.query == {"image_ids": ["derivatives/retinotopy/sub-01/"]}
    assert Path(data.images[1]).read_bytes() == b"angle"
    fetched = RETINOTOPY.keys() & gets(retinotopy)
    assert fetched == {m["key"] for m in data.images_meta}
    retinotopy.reset()
    again = fetch_ids(**data.query, mode="offline")
    assert retinotopy.requests == []
    assert (again.images, again.images_meta) == (data.images, data.images_meta)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    status()
    assert re.search(r"derivatives/retinotopy/ +2 +7 B", capsys.readouterr().out)


def test_a_prefix_above_subjects(retinotopy, data_dir):
    prefix = "derivatives/retinotopy/"
    with pytest.raises(NotCachedError, match=f"Nothing below {prefix}"):
        fetch_ids(prefix, mode="offline")
    data = fetch_ids(prefix)
    assert {m["key"] for m in data.images_meta} == set(RETINOTOPY)
    assert [m["subject"] for m in data.subjects_meta] == ["sub-01", "sub-09"]
    assert data.subjects_meta[0]["sessions"] == [f"ses-0{n}" for n in range(1, 5)]
    Path(data.images[-1]).unlink()
    with pytest.raises(NotCachedError, match=r"1 file .*sub-09/maps\.json"):
        fetch_ids(prefix, mode="offline")
    with pytest.warns(UserWarning, match="1 of 4 files|1 of 4 images"):
        again = fetch_ids(prefix, mode="offline", allow_missing=True)
    assert len(again.images) == 3


def test_a_prefix_with_betas_brings_what_goes_with_them(server, data_dir):
    data = fetch_ids("derivatives/glmsingle-tedana/sub-03/ses-02/", dry_run=True)
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
    tree = fetch_ids(GLM, dry_run=True)
    assert "ses-31" not in {m["session"] for m in tree.images_meta}
    localizers = fetch_ids(f"{LOCALIZERS}ses-31/", dry_run=True)
    assert {m["task"] for m in localizers.images_meta} == {"oloc"}
    archived = fetch_ids("archive/embeddings/v1/", dry_run=True)
    assert len(archived.images) == 4


@pytest.mark.parametrize(
    ("prefix", "error", "words"),
    [
        ("derivatives/ret/", InvalidQueryError, "nothing below .*inspect_bucket"),
        ("../elsewhere/", UnsafeKeyError, "lead out of the data directory"),
        ("/", UnsafeKeyError, "'/'"),
        (".laion_fmri/", UnsafeKeyError, "laion_fmri"),
        (3, InvalidQueryError, "image_ids is 3"),
    ],
)
def test_prefixes_that_are_wrong(server, data_dir, prefix, error, words):
    with pytest.raises(error, match=words):
        fetch_ids(prefix)


# --- Other versions in the bucket -----------------------------------------------------


def test_a_file_replaced_in_the_bucket_is_noticed(own_server, data_dir):
    query = {"rois": "FFA1", "sessions": 1, "image_type": "rsquare"}
    data = fetch(**query)
    old, content = data.rois_meta[0], Path(data.rois[0]).read_bytes()
    own_server.put(old["key"], content + b"\0" * 8)
    words = r"another version of 1 file.*FFA1.*of 2025-06-01; now.*mode='overwrite'"
    with pytest.warns(UserWarning, match=words):
        again = fetch(**query)
    new = again.rois_meta[0]
    assert new["outdated"]
    assert {**new, "outdated": False, "etag": old["etag"]} == old
    with no_warning():
        assert fetch(**query, mode="offline").rois_meta == again.rois_meta
    report = verify_cache(verbose=0).set_index("id")
    assert report.loc[old["id"], "status"] == "outdated"
    assert Path(data.rois[0]).read_bytes() == content
    own_server.reset()
    updated = fetch_ids(old["id"], mode="overwrite")
    assert set(gets(own_server)) == {old["key"], "participants.tsv"}
    assert Path(updated.images[0]).read_bytes() == content + b"\0" * 8
    with no_warning():
        assert not fetch(**query).rois_meta[0]["outdated"]


@pytest.mark.parametrize("term", ["outdated", "last_modified"])
def test_only_what_has_another_version_is_downloaded_again(own_server, data_dir, term):
    """Images, and tables of sessions of which no image changed."""
    data = fetch(rois="FFA1")
    newest = max(m["last_modified"] for m in [*data.images_meta, *data.rois_meta])
    terms = {"outdated": True}
    if term == "last_modified":
        terms = {term: GreaterThan(newest)}
        own_server.reset()
        with no_warning():
            newer = {"last_modified": GreaterThan("2999"), "mode": "overwrite"}
            nothing = fetch(rois="FFA1", **newer)
        assert (nothing.images, gets(own_server)) == ([], [])
    image = data.images_meta[1]["key"]
    own_server.put(image, own_server.objects[data.images_meta[0]["key"]].value)
    table = re.sub("space.*desc", "desc", data.images_meta[2]["key"])
    table = table.replace("statmap.nii.gz", "trials.tsv")
    header, *rows = own_server.objects[table].value.splitlines(keepends=True)
    changed = b"".join([header, *rows[::-1]])
    time.sleep(1.1)  # dates of a bucket are in seconds
    own_server.put(table, changed)
    with pytest.warns(UserWarning, match=r"version of .*_trials\.tsv.*alone"):
        fetch(rois=None, sessions=3)
    own_server.reset()
    query = {"rois": "FFA1", "mode": "overwrite", **terms}
    plan = fetch(**query, dry_run=True).plan
    assert sorted(plan["id"]) == [image, table]
    plan = fetch(**query, image_filter={"session": "ses-02"}, dry_run=True).plan
    assert list(plan["id"]) == [image]
    updated = fetch(**query)
    assert sorted(gets(own_server)) == [image, table]
    assert updated.images == [data.images[1]]
    assert not updated.images_meta[0]["outdated"]
    assert updated.images_meta[0]["last_modified"] > newest
    assert len(updated.rois) == len(data.rois)
    assert (data_dir / table).read_bytes() == changed
    with no_warning():
        fetch(rois="FFA1")


# --- Repetitions ----------------------------------------------------------------------


def test_repetition_counts_over_all_earlier_sessions(server, data_dir, bucket_folder):
    data = fetch("all", rois=None, sessions=[2, 4], dry_run=True)
    assert str(data.trials["repetition"].dtype) == "Int64"
    for subject in ("sub-01", "sub-03"):
        files = sorted(bucket_folder.glob(f"**/{subject}_ses-0*_trials.tsv"))
        tables = [pd.read_csv(f, sep="\t").assign(session=f.parts[-3]) for f in files]
        table = pd.concat(tables, ignore_index=True)
        counts = table.groupby("label").cumcount() + 1
        expected = counts[table["session"].isin(["ses-02", "ses-04"])]
        trials = data.trials[data.trials["subject"] == subject]
        assert trials["repetition"].tolist() == expected.tolist()
    assert data.trials["repetition"].max() > 1
    assert len({key for key in gets(server) if key.endswith("trials.tsv")}) == 8
    first = fetch(rois=None, trial_filter={"repetition": 1}, sessions=2, dry_run=True)
    assert set(first.trials["repetition"]) == {1}


def test_repetition_is_null_offline_where_an_earlier_table_is_not_on_disk(cached):
    query = {"sessions": [4, 1, 3], "rois": None, "mode": "offline"}
    before = fetch(**query).trials
    assert before["repetition"].notna().all()
    table = min(cached.rglob("sub-01_ses-02*_trials.tsv"))
    content = table.read_text()
    table.unlink()
    trials = fetch(**query).trials
    assert trials["repetition"].notna().equals(trials["session"] == "ses-01")
    columns = trials.columns.drop("repetition")
    pd.testing.assert_frame_equal(trials[columns], before[columns])
    table.write_text(content)
    pd.testing.assert_frame_equal(fetch(**query).trials, before)


# --- Offline --------------------------------------------------------------------------


def test_offline_says_what_is_missing_of_a_category(cached):
    min(cached.rglob("*res-1pt8_label-FFA2_mask.nii.gz")).unlink()
    words = r"1 file .*FFA2_mask.*allow_missing=True"
    with pytest.raises(NotCachedError, match=words):
        fetch(rois="face", mode="offline")
    with pytest.warns(UserWarning, match="left out: FFA2 of sub-01"):
        data = fetch(rois="face", mode="offline", allow_missing=True)
    assert "FFA2" not in {m["roi"] for m in data.rois_meta}
    with pytest.warns(UserWarning, match="1 of .* ROI masks .*FFA2 of sub-01"):
        fetch(mode="offline")


def test_offline_all_sessions_warns_of_those_that_are_missing(cached):
    min(cached.rglob("sub-01_ses-02*Betas_statmap.nii.gz")).unlink()
    query = {"rois": None, "mode": "offline"}
    with pytest.warns(UserWarning, match="1 of 4 images .*ses-02 of sub-01"):
        data = fetch(**query)
    assert [m["session"] for m in data.images_meta] == ["ses-01", "ses-03", "ses-04"]
    with no_warning():
        assert len(fetch(**query, max_images=3).images) == 3
        assert len(fetch(**query, sessions=[1, 2], max_images=1).images) == 1


def test_the_environment_makes_all_calls_offline(on_disk, monkeypatch):
    for value in ("1", '"1"', "TRUE\r"):
        monkeypatch.setenv("LAION_FMRI_OFFLINE", value)
        assert get_subjects() == ["sub-01", "sub-03"]
    assert len(fetch("all").images) == 8
    inspect_bucket("derivatives")
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "of course")
    with pytest.raises(InvalidQueryError, match="LAION_FMRI_OFFLINE is 'of course'"):
        get_subjects()
    with pytest.raises(AssertionError, match="a socket was opened"):
        fetch(rois=None, sessions=1, mode="download_new")  # which was named, and wins
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "0")
    with pytest.raises(AssertionError, match="a socket was opened"):
        get_subjects()
