"""fetch_laion_fmri on the demo bucket: what comes, what is asked for, what is said."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import time
import warnings
from collections import Counter
from datetime import date, datetime, timezone
from pathlib import Path
from urllib.parse import parse_qs

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import unwritable
from nilearn.maskers import NiftiMasker
from policies import set_policy

from laion_fmri_fetchers import (
    Contains,
    GreaterThan,
    IsIn,
    LessThan,
    NotContains,
    NotEqual,
    NotIn,
    NotNull,
    Pattern,
    ResultFilter,
    fetch_laion_fmri,
    fetch_laion_fmri_ids,
    get_rois,
    get_subjects,
    inspect_bucket,
    load_betas,
    verify_cache,
)
from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DiskSpaceError,
    DownloadError,
    HeldOutSessionError,
    InvalidQueryError,
    LicenseNotAcceptedError,
    NotCachedError,
    UnsafeKeyError,
)
from laion_fmri_fetchers.layout.keys import clean_key, record_of
from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS, stimulus_fields
from laion_fmri_fetchers.layout.trees import trials_id
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.remote import retry

ROOT = {"README", "dataset_description.json", "participants.json", "participants.tsv"}
KEYS = {
    "images",
    "images_meta",
    "rois",
    "rois_meta",
    "roi_files",
    "brain_masks",
    "noise_ceilings",
    "trials",
    "sample_masks",
    "subjects_meta",
    "failed",
    "data_dir",
    "query",
    "description",
}
LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<IsTruncated>false</IsTruncated>%s</ListBucketResult>"""


def fetch(*args, **kwargs):
    return fetch_laion_fmri(*args, **{"verbose": 0, **kwargs})


def assert_same(one, other):
    assert set(one) == set(other)
    for key in one:
        if key == "trials":
            pd.testing.assert_frame_equal(one[key], other[key])
        elif key == "sample_masks":
            assert len(one[key]) == len(other[key])
            for a, b in zip(one[key], other[key], strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            assert one[key] == other[key], key


def gets(server):
    """The keys of objects that were asked for."""
    return [key for method, key, _ in server.requests if method == "GET" and key]


def listings(server):
    return [query for _, key, query in server.requests if not key]


def tables(folder, subject):
    """The trial tables of the main sessions, read by pandas alone."""
    glm = folder / "derivatives/glmsingle-tedana" / subject
    return {
        file.parts[-3]: pd.read_csv(file, sep="\t")
        for file in sorted(glm.glob("ses-*/func/*_trials.tsv"))
        if file.parts[-3] < "ses-31"
    }


def sessions_with_12rep(folder, subject):
    return [
        session
        for session, table in tables(folder, subject).items()
        if table["label"].str.startswith("shared_12rep").any()
    ]


# ---------------------------------------------------------------- what comes


def test_the_main_job(server, data_dir, bucket_folder):
    data = fetch("all", rois=["face", "PPA"], trial_filter={"n_reps": 12})

    expected = [
        (subject, session)
        for subject in ("sub-01", "sub-03")
        for session in sessions_with_12rep(bucket_folder, subject)
    ]
    n_sessions = sum(len(tables(bucket_folder, s)) for s in ("sub-01", "sub-03"))
    assert 0 < len(expected) < n_sessions
    assert set(data) == KEYS
    assert [(m["subject"], m["session"]) for m in data.images_meta] == expected
    assert {m["image_type"] for m in data.images_meta} == {"betas"}
    for image, mask, (subject, session) in zip(
        data.images, data.sample_masks, expected, strict=True
    ):
        labels = tables(bucket_folder, subject)[session]["label"]
        wanted = np.flatnonzero(labels.str.startswith("shared_12rep"))
        np.testing.assert_array_equal(mask, wanted)
        assert nib.load(image).shape[3] == len(labels)
    rois = {
        path.relative_to(bucket_folder).as_posix().replace("-1_mask", "1_mask")
        for path in (bucket_folder / "derivatives/rois").glob("*/*/*res-1pt8*.nii.gz")
        if path.parent.name == "face" or "label-PPA" in path.name
    }
    assert len(data.rois) == len(rois)
    assert {m["roi"] for m in data.rois_meta if m["roi_category"] != "face"} == {"PPA"}
    assert data.failed == []
    keys = gets(server)
    assert len(keys) == len(set(keys))
    betas = {k for k in keys if k.endswith("desc-SingletrialBetas_statmap.nii.gz")}
    assert betas == {m["key"] for m in data.images_meta}
    for meta in [*data.images_meta, *data.rois_meta]:
        source = bucket_folder / meta["key"]
        assert Path(meta["absolute_path"]).read_bytes() == source.read_bytes()


def test_trials_say_what_the_tables_say(cached, bucket_folder):
    data = fetch("all", rois=None, mode="offline")

    assert tuple(data.trials.columns) == TRIAL_FIELDS
    at = 0
    for i, meta in enumerate(data.images_meta):
        table = tables(bucket_folder, meta["subject"])[meta["session"]]
        rows = data.trials.iloc[at : at + len(table)]
        at += len(table)
        for column in ("run", "beta_index", "label"):
            assert rows[column].tolist() == table[column].tolist()
        assert (rows["image_index"] == i).all()
        assert (rows["subject"] == meta["subject"]).all()
        assert (rows["session"] == meta["session"]).all()
    assert at == len(data.trials)
    for row in data.trials.sample(50, random_state=0).to_dict("records"):
        for name, value in stimulus_fields(row["label"]).items():
            assert row[name] == value or (value is None and pd.isna(row[name]))
    odd = data.trials[data.trials["unique_or_shared"].isna()]
    assert len(odd) == 1
    assert odd["n_reps"].isna().all()
    assert str(data.trials["n_reps"].dtype) == "Int64"


def test_goes_into_a_masker(cached):
    data = fetch("sub-01", trial_filter={"n_reps": 12}, mode="offline")

    for i, image in enumerate(data.images):
        masker = NiftiMasker(mask_img=data.brain_masks["sub-01"]).fit()
        betas = masker.transform(image, sample_mask=data.sample_masks[i])
        assert betas.shape[0] == (data.trials["image_index"] == i).sum() > 0


def test_subject_files(cached):
    data = fetch("all", mode="offline")

    assert list(data.brain_masks) == ["sub-01", "sub-03"]
    for subject, ceilings in data.noise_ceilings.items():
        assert sorted(ceilings) == ["12rep", "4rep", "Allrep"]
        grid = nib.load(data.brain_masks[subject])
        for path in ceilings.values():
            assert nib.load(path).shape == grid.shape
    first, second = data.subjects_meta
    assert first["sessions"] == ["ses-01", "ses-02", "ses-03", "ses-04"]
    assert "FFA1" in first["rois"]
    assert isinstance(first["age"], int)
    assert second["handedness"] is None


@pytest.mark.parametrize(
    "subjects", ["sub-03", "03", 3, np.int64(3), [3], ("sub-03", "3"), {"03"}]
)
def test_forms_of_subjects(cached, subjects):
    assert list(fetch(subjects, mode="offline").brain_masks) == ["sub-03"]


@pytest.mark.parametrize(
    "sessions", [["ses-01", "ses-02"], range(1, 3), "1 2".split(), np.array([1, 2])]
)
def test_forms_of_sessions(cached, sessions):
    data = fetch(sessions=sessions, mode="offline")
    assert [m["session"] for m in data.images_meta] == ["ses-01", "ses-02"]


@pytest.mark.parametrize(
    ("rois", "expected"),
    [
        ("FFA1", {"FFA1"}),
        ("FFA-1", {"FFA1"}),
        (["pSTS-faces", "PPA"], {"pSTSfaces", "PPA"}),
        ("place", {"MPA", "OPA", "PPA"}),
        (["place", "PPA", "MT"], {"MPA", "OPA", "PPA", "MT"}),
        (None, set()),
        ([], set()),
    ],
)
def test_forms_of_rois(cached, rois, expected):
    data = fetch(rois=rois, mode="offline")
    assert {m["roi"] for m in data.rois_meta} == expected
    assert len(data.rois) == len(expected)


def test_names_are_told_once_and_all_in_any_case(cached):
    data = fetch(["sub-01", "01", 1], ["FFA1", "FFA-1"], [1, "ses-01"], mode="offline")
    assert data.query["subjects"] == ["sub-01"]
    assert data.query["rois"] == ["FFA1"]
    assert data.query["sessions"] == ["ses-01"]
    everything = fetch("ALL", "All", "aLL", mode="offline")
    assert_same(everything, fetch("all", "all", "all", mode="offline"))


def test_all_rois(cached):
    data = fetch(mode="offline")
    assert {m["roi"] for m in data.rois_meta} == set(data.subjects_meta[0]["rois"])
    assert {m["space"] for m in data.rois_meta} == {"T1w"}


@pytest.mark.parametrize(
    ("roi_filter", "names"),
    [
        ({"space": "fsnative", "extension": "func.gii"}, ["FFA1 L", "FFA1 R"]),
        ({"res": NotNull()}, ["FFA1 1pt5", "FFA1 1pt8"]),
        (
            {"space": "fsnative", "hemi": "L", "extension": NotNull()},
            ["FFA1 func.gii", "FFA1 label"],
        ),
        (
            {
                "space": NotNull(),
                "res": IsIn("1pt8", None),
                "extension": IsIn("nii.gz", "func.gii"),
            },
            [
                "FFA1 T1w 1pt8 nii.gz",
                "FFA1 fsnative L func.gii",
                "FFA1 fsnative R func.gii",
            ],
        ),
    ],
)
def test_of_several_files_of_a_roi_none_is_left_out(
    server, data_dir, roi_filter, names
):
    data = fetch(1, "FFA1", 1, max_images=0, roi_filter=roi_filter)
    assert sorted(data.roi_files["sub-01"]) == sorted(names)
    assert sorted(data.roi_files["sub-01"].values()) == sorted(data.rois)


# ---------------------------------------------------------------- filters


def test_image_terms_replace_the_default_on_their_field(server, data_dir):
    data = fetch(rois=None, image_type="rsquare")
    assert {m["image_type"] for m in data.images_meta} == {"rsquare"}
    assert data.sample_masks == [None] * 4
    assert data.trials.empty
    assert tuple(data.trials.columns) == TRIAL_FIELDS
    assert not [key for key in gets(server) if key.endswith("trials.tsv")]


@pytest.mark.parametrize("image_type", ["anatomical", "brain_mask"])
def test_files_of_no_image_viewing_session(server, data_dir, image_type):
    data = fetch("all", image_type=image_type, sessions=1, rois=None)
    assert {m["session"] for m in data.images_meta} == {"ses-PrismaAnat"}
    assert {m["subject"] for m in data.images_meta} == {"sub-01", "sub-03"}
    assert all(map(os.path.isfile, data.images))
    assert all("ses-PrismaAnat" not in m["sessions"] for m in data.subjects_meta)


def test_not_null_lifts_the_default(server, data_dir):
    data = fetch(
        rois=None, sessions=1, image_type=NotNull(), extension="json", dry_run=True
    )
    kinds = {m["image_type"] for m in data.images_meta}
    assert {"sidecar", "summary", "subject_summary"} <= kinds
    assert {m["session"] for m in data.images_meta} == {"ses-01", None}


def test_image_filter_takes_dict_filter_and_function(cached):
    by = {"session": IsIn("ses-01", "ses-03")}
    ways = [by, ResultFilter(by), lambda r: r["session"] in ("ses-01", "ses-03")]
    for way in ways:
        data = fetch(image_filter=way, mode="offline")
        assert [m["session"] for m in data.images_meta] == ["ses-01", "ses-03"]
        assert {m["image_type"] for m in data.images_meta} == {"betas"}


def test_roi_filter_replaces_defaults(server, data_dir):
    data = fetch(
        rois="FFA1",
        roi_filter={"space": "fsnative", "extension": "func.gii"},
        sessions=1,
        dry_run=True,
    )
    assert [m["hemi"] for m in data.rois_meta] == ["L", "R"]


def test_subject_filter(server, data_dir):
    data = fetch("all", subject_filter={"age": GreaterThan(25)}, dry_run=True)
    assert [m["subject"] for m in data.subjects_meta] == ["sub-03"]
    assert {m["subject"] for m in data.images_meta} == {"sub-03"}
    by_function = fetch(
        "all", subject_filter=lambda s: "ses-03" in s["sessions"], dry_run=True
    )
    assert len(by_function.subjects_meta) == 2


def test_trial_filter_as_function_sees_plain_dicts(cached):
    seen = []

    def passes(trial):
        seen.append(trial)
        return trial["n_reps"] is None

    data = fetch("sub-01", trial_filter=passes, mode="offline")
    assert len(data.trials) == 1
    assert type(seen[0]) is dict
    assert set(TRIAL_FIELDS) - {"image_index"} <= set(seen[0])


def test_trial_filter_chooses_among_other_files_of_a_session(cached, server):
    data = fetch(rois=None, trial_filter={"n_reps": 12}, image_type="rsquare")
    betas = fetch(rois=None, trial_filter={"n_reps": 12})
    sessions = [m["session"] for m in betas.images_meta]
    assert [m["session"] for m in data.images_meta] == sessions
    assert data.trials.empty


def test_max_images_counts_over_cache_and_bucket(server, data_dir):
    fetch(rois=None, sessions=2)
    data = fetch("all", rois=None, max_images=3)
    expected = ["ses-01", "ses-02", "ses-03"]
    assert [m["session"] for m in data.images_meta] == expected
    assert len(list(data_dir.rglob("*Betas_statmap.nii.gz"))) == 3
    assert fetch(rois=None, max_images=0).images == []
    assert len(fetch(rois=None, max_images=-1, dry_run=True).images) == 4


def test_a_subject_is_listed_by_one_request_per_tree(server, data_dir):
    """The tables of earlier sessions are needed, too, to count repetitions."""
    fetch(sessions=[1, 2], rois=None)
    prefixes = [
        parse_qs(query)["prefix"] for query in listings(server) if "prefix=d" in query
    ]
    assert sorted(prefixes) == [
        ["derivatives/anatomical/sub-01/"],
        ["derivatives/glmsingle-tedana/sub-01/"],
        ["derivatives/rois/sub-01/"],
    ]


# ---------------------------------------------------------------- modes


def test_offline_and_stopped_server_give_the_same(bucket_folder, data_dir, monkeypatch):
    query = {"rois": ["face", "PPA"], "trial_filter": {"n_reps": 12}}
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        first = fetch("all", **query)
        again = fetch("all", **query)
    assert_same(again, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(fetch("all", mode="offline", **query), first)
    with pytest.warns(UserWarning, match="continuing offline") as caught:
        assert_same(fetch("all", **query), first)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.raises(BucketError, match=r"ses-02.*mode='offline'") as error:
        fetch("all", rois=None)
    assert isinstance(error.value, ConnectionError)


def test_a_bucket_that_does_not_answer_is_asked_once(cached, server, monkeypatch):
    set_policy(monkeypatch, first_wait=0.001)
    server.faults[""] = (503, {}, b"")
    with pytest.warns(UserWarning, match="status 503.*continuing offline"):
        fetch("all", sessions=1)
    asked = Counter(
        parse_qs(query).get("prefix", [""])[0] for query in listings(server)
    )
    assert max(asked.values()) == retry.TRIES
    assert not [prefix for prefix in asked if "sub-" in prefix]


def test_without_the_bucket_and_its_listings(cached, data_dir, tmp_path):
    """It cannot be told whether anything is missing, which is an error."""
    shutil.rmtree(cached / ".laion_fmri" / "listings")
    with pytest.raises(BucketError, match=r"No listing of the top level.*mode='offl"):
        fetch(1)
    assert fetch(1, mode="offline").images
    with pytest.raises(BucketError, match="Nothing of it is in .*new, and no listing"):
        fetch(1, data_dir=tmp_path / "new")


def test_offline_opens_no_socket(cached, no_network):
    assert len(fetch("all", mode="OFFLINE").images) == 8


def test_offline_without_listings(cached):
    online = fetch("all", mode="offline")
    shutil.rmtree(cached / ".laion_fmri")
    data = fetch("all", mode="offline")
    assert data.images == online.images
    assert data.rois == online.rois
    assert [m["size"] for m in data.images_meta] == [
        m["size"] for m in online.images_meta
    ]
    assert {m["etag"] for m in data.images_meta} == {None}


def test_offline_all_returns_what_is_there(server, data_dir):
    fetch("sub-01", sessions=[1, 2], rois="FFA1")
    data = fetch("all", mode="offline")
    assert [m["session"] for m in data.images_meta] == ["ses-01", "ses-02"]
    assert [m["roi"] for m in data.rois_meta] == ["FFA1"]
    assert [m["subject"] for m in data.subjects_meta] == ["sub-01"]


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"subjects": "sub-03"}, "sub-03"),
        ({"subjects": ["sub-01", "sub-99"]}, "sub-99"),
        ({"sessions": 3}, "ses-03"),
        ({"sessions": 99}, "ses-99"),
        ({"sessions": 3, "trial_filter": {"n_reps": 12}}, "ses-03"),
        ({"rois": "PPA"}, "PPA"),
        ({"rois": "FA1"}, "FFA1"),
    ],
)
def test_offline_what_was_named_and_is_not_there(server, data_dir, query, name):
    fetch("sub-01", sessions=[1, 2], rois="FFA1")
    with pytest.raises(NotCachedError, match=name) as error:
        fetch(mode="offline", **query)
    assert isinstance(error.value, FileNotFoundError)


def test_offline_named_sessions_that_some_subjects_lack(server, data_dir):
    fetch("sub-01", sessions=[1, 2], rois=None)
    fetch("sub-03", sessions=[2], rois=None)
    min(data_dir.rglob("sub-03_ses-02*Betas_statmap.nii.gz")).unlink()
    with pytest.raises(NotCachedError, match=r"1 file .*sub-03_ses-02.*Betas_statmap"):
        fetch("all", sessions=2, mode="offline")
    with pytest.warns(UserWarning, match=r"1 of 2 images.*left out: ses-02 of sub-03"):
        data = fetch("all", sessions=2, mode="offline", allow_missing=True)
    assert [m["subject"] for m in data.images_meta] == ["sub-01"]
    min(data_dir.rglob("sub-01_ses-02*_trials.tsv")).unlink()
    with pytest.raises(NotCachedError, match=r"sub-01_ses-02.*_trials\.tsv is not on"):
        fetch(sessions=[1, 2], trial_filter={"n_reps": 4}, mode="offline")


def test_offline_in_an_empty_directory(tmp_path):
    with pytest.raises(NotCachedError, match="sub-01"):
        fetch(mode="offline", data_dir=tmp_path)
    assert fetch("all", mode="offline", data_dir=tmp_path).images == []
    assert list(tmp_path.iterdir()) == []


def test_download_new_keeps_what_is_on_disk(cached, server):
    image = Path(fetch(rois=None, sessions=1).images[0])
    image.write_bytes(b"x" * image.stat().st_size)
    server.reset()
    fetch(rois=None, sessions=1)
    assert gets(server) == []
    assert image.read_bytes().startswith(b"xxx")


def test_a_file_cut_short_is_warned_of(cached):
    image = Path(fetch(rois=None, sessions=1, mode="offline").images[0])
    image.write_bytes(image.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"another size.*ses-01.*call online"):
        fetch(rois=None, sessions=1, mode="offline")


def test_dry_run_without_the_bucket(bucket_folder, data_dir, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        plan = fetch(dry_run=True).plan
    with pytest.warns(UserWarning, match="planned"):
        pd.testing.assert_frame_equal(fetch(dry_run=True).plan, plan)


def test_overwrite_fetches_what_is_selected_again(cached, server, bucket_folder):
    image = Path(fetch(rois=None, sessions=1).images[0])
    image.write_bytes(b"damaged")
    data = fetch(rois="FFA1", sessions=1, mode="overwrite")
    source = bucket_folder / data.images_meta[0]["key"]
    assert image.read_bytes() == source.read_bytes()
    assert {data.images_meta[0]["key"], data.rois_meta[0]["key"]} <= set(gets(server))
    assert not [key for key in gets(server) if "ses-02" in key]


def test_overwrite_fetches_a_table_once_though_it_is_read_first(cached, server):
    data = fetch(
        sessions=1,
        rois=None,
        image_type="trials",
        trial_filter={"n_reps": 4},
        mode="overwrite",
    )
    (key,) = [m["key"] for m in data.images_meta]
    assert gets(server).count(key) == 1


def test_overwrite_with_a_date_updates_what_is_newer(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        data = fetch("sub-01")
        newest = max(m["last_modified"] for m in [*data.images_meta, *data.rois_meta])
        changed = data.images_meta[1]
        content = (bucket_folder / data.images_meta[0]["key"]).read_bytes()
        time.sleep(1.1)
        server.put(changed["key"], content)
        server.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nothing = fetch(1, mode="overwrite", last_modified=GreaterThan("2999"))
        assert (nothing.images, gets(server)) == ([], [])
        updated = fetch("sub-01", mode="overwrite", last_modified=GreaterThan(newest))
        assert gets(server) == [changed["key"]]
    assert updated.images == [data.images[1]]
    assert Path(updated.images[0]).read_bytes() == content
    assert updated.images_meta[0]["last_modified"] > newest
    assert len(updated.rois) == len(data.rois)


def test_moved_directory(cached, tmp_path):
    before = fetch("all", mode="offline")
    moved = tmp_path / "elsewhere" / "data"
    moved.parent.mkdir()
    shutil.move(cached, moved)
    after = fetch("all", mode="offline", data_dir=moved)
    assert all(Path(path).is_relative_to(moved) for path in after.images)
    pd.testing.assert_frame_equal(after.trials, before.trials)
    for one, other in zip(before.images_meta, after.images_meta, strict=True):
        assert {**one, "absolute_path": None} == {**other, "absolute_path": None}
    for file in (moved / ".laion_fmri").rglob("*.json"):
        assert str(cached) not in file.read_text()


def test_read_only_directory(cached):
    before = fetch("all", mode="offline")
    with unwritable(cached, *cached.rglob("*")):
        with pytest.warns(UserWarning, match="cannot be written"):
            assert_same(fetch("all"), before)
        assert_same(fetch("all", mode="offline"), before)


def test_a_directory_that_cannot_be_made(tmp_path, server):
    with (
        unwritable(tmp_path),
        pytest.raises(InvalidQueryError, match=r"made \(Permission denied\).*data_dir"),
    ):
        fetch(1, data_dir=tmp_path / "new")
    with (
        unwritable(tmp_path),
        pytest.warns(UserWarning, match="cannot be written"),
        pytest.raises(NotCachedError, match=f"{tmp_path} cannot be written; name"),
    ):
        fetch(1, data_dir=tmp_path)


def test_a_bunch_is_shown_as_a_line_a_key(cached):
    data = fetch("all", mode="offline")
    lines = repr(data).splitlines()
    assert [line.split()[0] for line in lines] == list(data)
    assert max(map(len, lines)) < 100
    assert lines[0].split(maxsplit=1)[1] == f"list of {len(data.images)}"
    assert type(pickle.loads(pickle.dumps(data))) is type(data)


def test_data_of_the_datasets_own_package(cached, bucket_folder):
    """It stores files under the same clean names, and an empty licence marker."""
    shutil.rmtree(cached / ".laion_fmri")
    (cached / ".laion_fmri").mkdir()
    (cached / ".laion_fmri" / "license_accepted").touch()
    aside = cached / "derivatives/rois/sub-01/face"
    shutil.copy(
        aside / "sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz",
        aside / "sub-01_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz",
    )
    data = fetch(rois="face", mode="offline")
    assert [m["roi"] for m in data.rois_meta].count("FFA1") == 1


# ---------------------------------------------------------------- dry run, ids


def test_dry_run(server, data_dir, monkeypatch):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    data = fetch("all", rois="PPA", trial_filter={"n_reps": 12}, dry_run=True)
    assert all(key.endswith("_trials.tsv") for key in gets(server))
    assert set(data) == KEYS | {"plan", "plan_size"}
    assert list(data.plan.columns) == ["id", "size", "reason"]
    assert {m["id"] for m in [*data.images_meta, *data.rois_meta]} <= {*data.plan["id"]}
    assert data.plan_size == data.plan["size"].sum() > 0
    assert set(data.plan["reason"]) == {"missing"}
    assert not list(data_dir.rglob("*.nii.gz"))


def test_dry_run_of_what_is_there(cached, server):
    assert fetch("all", dry_run=True).plan.empty
    data = fetch(sessions=1, rois=None, mode="overwrite", dry_run=True)
    assert set(data.plan["reason"]) == {"overwrite"}
    assert [key for key in gets(server) if not key.endswith("_trials.tsv")] == []


def test_ids_reproduce_a_selection(server, data_dir, tmp_path):
    data = fetch(rois="FFA1", sessions=[1, 3])
    ids = [m["id"] for m in [*data.images_meta, *data.rois_meta]]
    elsewhere = tmp_path / "elsewhere"
    again = fetch_laion_fmri_ids(ids, data_dir=elsewhere, verbose=0)
    assert {m["id"] for m in again.images_meta} == set(ids)
    assert again.rois == []
    assert set(again) == set(data)
    pd.testing.assert_frame_equal(
        again.trials.drop(columns="image_index"),
        data.trials.drop(columns="image_index"),
    )
    assert list(again.brain_masks) == ["sub-01"]
    assert_same(
        fetch_laion_fmri_ids(ids, data_dir=elsewhere, verbose=0, mode="offline"), again
    )


def test_ids_are_in_the_order_given(server, data_dir):
    data = fetch(rois=["PPA", "FFA1"], sessions=[1, 2])
    records = [*reversed(data.images_meta), *data.rois_meta]
    again = fetch_laion_fmri_ids([m["id"] for m in records], verbose=0)
    assert again.images == [m["absolute_path"] for m in records]
    for i, session in enumerate(["ses-02", "ses-01"]):
        trials = again.trials[again.trials["image_index"] == i]
        assert set(trials["session"]) == {session}
        assert list(trials["beta_index"]) == list(again.sample_masks[i])


def test_rois_are_in_the_order_in_which_they_are_named(server, data_dir):
    ppa, ffa1 = fetch(rois=["PPA", "FFA1"], max_images=0).rois
    assert ("PPA" in ppa, "FFA1" in ffa1) == (True, True)
    names = ["V1", "OFA", "face", "FFA1", "EBA"]
    data = fetch("all", rois=names, max_images=0)
    for meta in data.subjects_meta:
        rois = [m["roi"] for m in data.rois_meta if m["subject"] == meta["subject"]]
        others = rois[3:-1]
        assert rois[:3] == ["V1d", "V1v", "OFA"]
        assert rois[-1] == "EBA"
        assert others == sorted(others)
        assert "FFA1" in others
        assert list(data.roi_files[meta["subject"]]) == rois


def test_a_mask_of_another_subject_is_refused(server, data_dir):
    data = fetch("all", rois="FFA1", sessions=1)
    mask = data.roi_files["sub-01"]["FFA1"]
    for mask_img in (mask, nib.load(mask)):
        assert load_betas(data, "sub-01", mask_img=mask_img, verbose=0).data.size
        with pytest.raises(InvalidQueryError, match="a mask of sub-01, and the betas"):
            load_betas(data, "sub-03", mask_img=mask_img, verbose=0)


def test_ids_fetch_exactly_the_named(server, data_dir, bucket_folder):
    rois = bucket_folder / "derivatives/rois/sub-01/face"
    key = min(rois.glob("*res-1pt8_label-FFA-1_mask.nii.gz"))
    key = key.relative_to(bucket_folder).as_posix()
    surface = "derivatives/freesurfer/sub-01/surf/lh.white"
    data = fetch_laion_fmri_ids([key, surface, "README"], verbose=0)
    assert {m["id"] for m in data.images_meta} == {
        record_of(key)["id"],
        surface,
        "README",
    }
    assert set(gets(server)) - ROOT == {key, surface}
    assert data.sample_masks == [None] * 3


@pytest.mark.parametrize(
    "base",
    ["s3://laion-fmri", "https://laion-fmri.s3.us-west-2.amazonaws.com", "the server"],
)
def test_ids_may_be_addresses_of_the_bucket(server, data_dir, capsys, base):
    base = base.replace("the server", server.url)
    folder = "derivatives/rois/sub-01/face/"
    name = "sub-01_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz"
    data = fetch_laion_fmri_ids(f"{base}/{folder}{name}", verbose=0)
    assert [meta["roi"] for meta in data.images_meta] == ["FFA1"]
    below = fetch_laion_fmri_ids(f"{base}/{folder}", verbose=0)
    assert len(below.images) > 1
    inspect_bucket(f"{base}/{folder}")
    assert name in capsys.readouterr().out


def test_an_address_of_another_bucket_is_refused(server, data_dir):
    for address in ("s3://other/README", "https://x.org/README?X-Amz-Signature=1"):
        with pytest.raises(InvalidQueryError, match="not an address in the") as caught:
            fetch_laion_fmri_ids(address)
        assert "Signature" not in f"{caught.value}"


@pytest.mark.parametrize("number", [1.0, np.float32(1), np.int16(1), [1.0]])
def test_whole_numbers_may_be_floats_as_matlab_and_r_send_them(cached, number):
    data = fetch_laion_fmri(
        number,
        "FFA1",
        number,
        max_images=1.0,
        n_connections=8.0,
        verbose=0.0,
        mode="offline",
    )
    assert [meta["session"] for meta in data.images_meta] == ["ses-01"]
    assert get_rois(number) == get_rois("sub-01")
    assert load_betas(data, 1.0, verbose=0.0).data.shape[0] > 0
    with pytest.raises(InvalidQueryError, match=r"sessions holds 1\.5"):
        fetch(sessions=1.5, mode="offline")


def test_ids_that_are_none(server, data_dir):
    roi = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-1pt8_label-FA1_mask.nii.gz"
    with pytest.raises(InvalidQueryError, match="label-FFA1_mask"):
        fetch_laion_fmri_ids(roi, verbose=0)
    with pytest.raises(InvalidQueryError, match="fetch_laion_stimuli"):
        fetch_laion_fmri_ids("stimuli/task-images_stimuli.h5", verbose=0)
    with pytest.raises(InvalidQueryError, match="image_ids"):
        fetch_laion_fmri_ids([3], verbose=0)
    with pytest.raises(UnsafeKeyError, match="lead out of the data directory"):
        fetch_laion_fmri_ids("../etc/passwd", verbose=0)
    with pytest.raises(UnsafeKeyError, match="empty folder name"):
        fetch_laion_fmri_ids("derivatives//file", verbose=0)
    with pytest.raises(InvalidQueryError, match="path on disk; give the 'id'"):
        fetch_laion_fmri_ids([str(data_dir / "participants.tsv")], verbose=0)
    with pytest.raises(NotCachedError):
        fetch_laion_fmri_ids("README", mode="offline", verbose=0)
    assert fetch_laion_fmri_ids([], verbose=0).images == []


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "timeout", [float("inf"), 1e12, 10**400], ids=["inf", "1e12", "1e400"]
)
def test_a_timeout_without_end(server, data_dir, timeout):
    query = {"sessions": 1, "rois": None, "timeout": timeout, "verbose": 0}
    assert len(fetch_laion_fmri(**query).images) == 1
    assert get_subjects(timeout=timeout) == ["sub-01", "sub-03"]


@pytest.mark.parametrize(("field", "value"), [("rois", "FFA9"), ("sessions", "ses-9")])
def test_a_subject_filter_on_lists_that_nothing_passes(cached, field, value):
    with pytest.warns(UserWarning, match="Nothing passes subject_filter"):
        data = fetch(subject_filter={field: Contains(value)}, mode="offline")
    assert data.images == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"subjects": "sub-02"}, "sub-02.*sub-01, sub-03"),
        ({"subjects": "bob"}, "subjects.*bob"),
        ({"subjects": []}, "subjects"),
        ({"subjects": 1.5}, "1.5"),
        ({"subjects": True}, "True"),
        ({"rois": "FA1"}, "FA1.*did you mean 'FFA1'"),
        ({"rois": "fases"}, "did you mean 'face'"),
        ({"rois": "fffa1"}, "did you mean 'FFA1'"),
        ({"rois": 7}, "rois.*7"),
        ({"sessions": 77}, "ses-77"),
        ({"sessions": ["all", 31]}, "sessions holds 'all' beside other names"),
        ({"subjects": ["All", "sub-99"]}, "subjects holds 'all' beside other names"),
        ({"data_dir": "~no-such-user/data"}, "no user 'no-such-user'"),
        ({"data_dir": "a\0b"}, "control characters"),
        ({"data_dir": ""}, "data_dir is empty"),
        ({"sessions": "one"}, "session ses-one; there are ses-01"),
        ({"sessions": "ses 1"}, "sessions holds 'ses 1'"),
        ({"mode": "ofline"}, "did you mean 'offline'"),
        ({"mode": 1}, "mode"),
        ({"image_filter": 3}, "image_filter"),
        ({"trial_filter": "n_reps=12"}, "trial_filter"),
        ({"trial_filter": {"nreps": 12}}, "did you mean 'n_reps'"),
        ({"roi_filter": {"rio": 1}}, "did you mean 'roi'"),
        ({"trial_filter": {"image_index": 0}}, "image_index"),
        ({"n_reps": 12}, r"trial_filter=\{'n_reps': 12\}"),
        ({"subject_filter": {"agee": 1}}, "did you mean 'age'"),
        ({"image_filter": {"sesion": 1}}, "did you mean 'session'"),
        ({"image_typ": "betas"}, "did you mean 'image_type'"),
        ({"trial_filer": {"n_reps": 1}}, "did you mean 'trial_filter'"),
        ({"image_type": "beta"}, "did you mean 'betas'"),
        ({"image_filter": {"image_type": ["beta"]}}, "did you mean 'betas'"),
        ({"subject": "sub-01"}, "subjects="),
        ({"session": "ses-01"}, "sessions="),
        ({"roi": "FFA1"}, "rois="),
        ({"max_images": "3"}, "max_images"),
        ({"n_connections": 0}, "n_connections"),
        ({"timeout": -1}, "timeout"),
        ({"verbose": "loud"}, "verbose is 'loud'"),
        ({"data_dir": 3}, "data_dir"),
    ],
)
def test_bad_arguments(server, data_dir, query, words):
    with pytest.raises(InvalidQueryError, match=words) as error:
        fetch(**query)
    assert isinstance(error.value, ValueError)
    assert not [key for key in gets(server) if not key.endswith(".tsv")]


def test_names_that_some_subjects_lack(server, data_dir):
    with pytest.warns(UserWarning, match="sub-03"):
        data = fetch("all", rois=["FFA1", LACKED_BY_SUB_03], dry_run=True)
    assert [m["subject"] for m in data.rois_meta].count("sub-03") == 1


LACKED_BY_SUB_03 = "VWFA2"


def test_held_out_session(server, data_dir):
    with pytest.raises(HeldOutSessionError, match="held out") as error:
        fetch(sessions=31)
    assert isinstance(error.value, PermissionError)
    assert "ses-31" in str(error.value)
    assert not list((data_dir / "derivatives").rglob("*ses-31_*"))
    with pytest.warns(UserWarning, match="ses-31"):
        data = fetch(sessions=[1, 31], rois=None, allow_missing=True)
    assert [m["session"] for m in data.images_meta] == ["ses-01"]
    assert {f["session"] for f in data.failed} == {"ses-31"}
    assert all("reason" in f and "id" in f for f in data.failed)


def test_a_held_out_session_that_is_gone_was_not_denied(server, data_dir):
    table = trials_id({"subject": "sub-01", "session": "ses-31"})
    server.faults[table] = (404, {}, b"")
    with pytest.raises(DownloadError, match="404") as error:
        fetch(sessions=31, rois=None)
    assert "held out" not in str(error.value)


def test_bucket_that_denies_listing(server, data_dir):
    server.deny_listing = True
    with pytest.raises(BucketError, match="denies"):
        fetch()


def test_xml_that_is_no_listing(server, data_dir):
    for body in (b"<html>login</html>", b"not xml", b""):
        server.faults[""] = (200, {"Content-Type": "text/html"}, body)
        with pytest.raises(BucketError, match="not a listing"):
            fetch()


@pytest.mark.parametrize(
    "key", ["derivatives/../../evil", "/etc/evil", "derivatives/rois/sub-01/../../../x"]
)
def test_hostile_key(server, data_dir, tmp_path, key):
    body = LISTING % (
        b"<Contents><Key>%s</Key><Size>3</Size><ETag>x</ETag></Contents>" % key.encode()
    )
    server.faults[""] = (200, {"Content-Type": "application/xml"}, body)
    before = {p for p in tmp_path.rglob("*") if data_dir not in (p, *p.parents)}
    with pytest.raises(UnsafeKeyError, match="evil|x") as error:
        fetch()
    assert isinstance(error.value, BucketError)
    after = {p for p in tmp_path.rglob("*") if data_dir not in (p, *p.parents)}
    assert after == before
    assert gets(server) == []


def test_two_keys_for_one_file(bucket_folder, data_dir, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        rois = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-1pt8"
        server.put(f"{rois}_label-FFA1_mask.nii.gz", b"x")
        with pytest.raises(BucketError, match="FFA-1.*FFA1|FFA1.*FFA-1"):
            fetch()


def test_disk_too_small(server, data_dir, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError) as error:
        fetch(rois=None, sessions=1)
    assert isinstance(error.value, OSError)
    assert not list(data_dir.rglob("*.nii.gz"))
    assert not [key for key in gets(server) if key.endswith(".nii.gz")]


def test_file_that_is_gone(server, data_dir):
    key = fetch(sessions=1, rois=None, dry_run=True).images_meta[0]["key"]
    server.faults[key] = (404, {}, b"")
    with pytest.raises(DownloadError, match="ses-01") as error:
        fetch(sessions=[1, 2], rois=None)
    assert [f["key"] for f in error.value.failed] == [key]
    assert len(list(data_dir.rglob("*Betas_statmap.nii.gz"))) == 1
    with pytest.warns(UserWarning, match="left out"):
        data = fetch(sessions=[1, 2], rois=None, allow_missing=True)
    assert [m["session"] for m in data.images_meta] == ["ses-02"]
    assert (data.trials["image_index"] == 0).all()
    assert (data.trials["session"] == "ses-02").all()
    server.faults.clear()
    assert len(fetch(sessions=[1, 2], rois=None).images) == 2


@pytest.mark.parametrize("trial_filter", [None, {"n_reps": 4}])
def test_betas_whose_trial_table_cannot_be_fetched(server, data_dir, trial_filter):
    """They are of no use without it, and are large: they are not fetched either."""
    query = {"sessions": [1, 2], "rois": None, "trial_filter": trial_filter}
    betas = fetch(**query, dry_run=True).images_meta[0]
    shutil.rmtree(data_dir)
    server.requests.clear()
    server.faults[trials_id(betas)] = (404, {}, b"")
    with pytest.warns(UserWarning, match="left out"):
        data = fetch(**query, allow_missing=True)
    assert [m["session"] for m in data.images_meta] == ["ses-02"]
    failed = {rec["id"]: rec["reason"] for rec in data.failed}
    assert "trial table" in failed[betas["id"]]
    assert betas["key"] not in gets(server)


def test_kept_repetitions_are_null_once_an_earlier_table_is_gone(cached):
    before = fetch(mode="offline").trials
    assert before["repetition"].notna().all()
    table = min(cached.rglob("sub-01_ses-02*_trials.tsv"))
    content = table.read_text()
    table.unlink()
    data = fetch(sessions=[4, 1, 3], mode="offline")
    assert data.trials["repetition"].notna().equals(data.trials["session"] == "ses-01")
    table.write_text(content)
    pd.testing.assert_frame_equal(fetch(mode="offline").trials, before)


def test_trial_tables_in_other_orders(cached):
    """Rows and columns in any order, and more columns, tell the same."""
    before = fetch(mode="offline").trials
    files = [min(cached.rglob(f"sub-01_ses-0{n}*_trials.tsv")) for n in (1, 2, 3)]
    tables = [pd.read_csv(file, sep="\t") for file in files]
    tables[0] = tables[0].iloc[::-1]
    tables[1] = tables[1][["label", "beta_index", "run", "session"]]
    tables[2]["more"] = "x"
    for file, table in zip(files, tables, strict=True):
        table.to_csv(file, sep="\t", index=False)
    pd.testing.assert_frame_equal(fetch(mode="offline").trials, before)


def test_labels_that_look_like_nulls_are_labels(cached):
    table = min(cached.rglob("sub-01_ses-01*_trials.tsv"))
    header, first, *rows = table.read_text().splitlines()
    *cells, _label = first.split("\t")
    table.write_text("\n".join([header, "\t".join([*cells, "NA"]), *rows]))
    data = fetch(sessions=1, mode="offline")
    assert data.trials["label"][0] == "NA"
    assert data.trials["n_reps"].isna()[0]
    assert (data.trials["n_reps"][1:] > 0).all()


def test_a_run_that_is_not_a_number(cached):
    """It is null, and runs of other sessions stay the numbers that they are."""
    expected = fetch(mode="offline").trials
    file = min(cached.rglob("sub-01_ses-02*_trials.tsv"))
    table = pd.read_csv(file, sep="\t", dtype=str)
    table.loc[1, "run"] = "n/a"
    table.loc[2, "run"] = "1b"
    table.to_csv(file, sep="\t", index=False, na_rep="n/a")
    row = (expected["session"] == "ses-02").idxmax() + 1
    of_run = {"trial_filter": {"run": 1}}
    for sessions in ([2], [1], [1, 2], "all", [1, 2]):  # parsed alone, and kept
        trials = fetch(sessions=sessions, mode="offline").trials
        texts = trials["run"].map(lambda run: run if isinstance(run, str) else "")
        assert set(texts) <= {"", "1b"}
        numbers = trials["run"][texts == ""].dropna()
        assert all(isinstance(run, int) for run in numbers)
        n_first = (expected["run"][expected["session"] == "ses-01"] == 1).sum()
        if sessions != [2]:
            shown = fetch(sessions=sessions, mode="offline", **of_run).trials
            assert (shown["session"] == "ses-01").sum() == n_first
    trials = fetch(mode="offline").trials
    assert pd.isna(trials["run"][row])
    assert trials["run"][row + 1] == "1b"
    others = trials.index.difference([row, row + 1])
    assert list(trials["run"][others]) == list(expected["run"][others])


def test_a_trial_table_without_trials(cached):
    file = min(cached.rglob("sub-01_ses-02*_trials.tsv"))
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(CorruptImageError, match="has a header, but no trials"):
        fetch(mode="offline")


PARTICIPANTS = "participant_id\tage\tsex\nsub-01\t24\tF\nsub-03\t31\tM\n"


@pytest.mark.parametrize(
    "table",
    [
        PARTICIPANTS.encode() + "sub-05\tZürich\tF\n".encode("latin-1"),
        PARTICIPANTS.replace("\t24", '\t"24').encode(),
        PARTICIPANTS.replace("age", '"age"').replace("24", '"24"').encode(),
        PARTICIPANTS.replace("_id", "_id ").replace("age", " age").encode(),
        PARTICIPANTS.encode("utf-8-sig"),
        PARTICIPANTS.replace("\n", "\r\n").encode(),
        PARTICIPANTS.replace("\n", "\t\n").encode(),
        (PARTICIPANTS + "sub-01\t24\tF\n\n").encode(),
        PARTICIPANTS.replace("sub-0", "0").encode(),
    ],
)
def test_participants_in_another_spelling_are_read(cached, table):
    (cached / "participants.tsv").write_bytes(table)
    (meta,) = fetch(
        "all", None, mode="offline", subject_filter={"age": 24}
    ).subjects_meta
    assert (meta["subject"], meta["age"], meta["sex"]) == ("sub-01", 24, "F")


@pytest.mark.parametrize(
    ("table", "words", "sex"),
    [
        (b"", r"line 1, column age: .*participant_id", None),
        (b"name\tage\nsub-01\t30\n", r"line 1, column age: .*participant_id", None),
        (PARTICIPANTS + "sub-01\t25\tF\n", r"line 4, column age: sub-01.*line 2", None),
        (
            PARTICIPANTS.replace("\t24\tF", ""),
            "line 2, column age: it ends early",
            None,
        ),
        (PARTICIPANTS.replace("24", "2\0"), "line 2, column age: .*NUL byte", "F"),
        (
            PARTICIPANTS.replace("24\tF", "24\tF\tx"),
            "line 2, column age: .*4 cells",
            None,
        ),
        (PARTICIPANTS.replace("sex", "age"), "line 1, column age: several", None),
    ],
)
def test_flaws_of_participants_stop_only_a_filter_that_needs_them(
    cached, table, words, sex
):
    file = cached / "participants.tsv"
    file.write_bytes(table if isinstance(table, bytes) else table.encode())
    for query in ({}, {"subject_filter": {"subject": "sub-01"}}):
        with pytest.warns(UserWarning, match=r"participants\.tsv is flawed \(line"):
            data = fetch(mode="offline", **query)
        assert len(data.images) == 4
        assert data.subjects_meta[0].get("age") is None
        assert data.subjects_meta[0].get("sex") == sex
    for term in ({"age": 24}, ~ResultFilter(age=24)):
        with pytest.raises(CorruptImageError, match=f"participants\\.tsv.*{words}"):
            fetch(mode="offline", subject_filter=term)
    with pytest.raises(CorruptImageError, match=r"participants\.tsv.*line \d"):
        fetch(mode="offline", subject_filter=lambda meta: meta["age"] == 24)


def test_columns_of_participants_named_as_fields_of_ours(cached):
    table = "participant_id\tsubject\tsessions\trois\nsub-01\tAB\t30\tall\n"
    (cached / "participants.tsv").write_text(table)
    data = fetch(mode="offline", subject_filter={"participants_subject": "AB"})
    assert len(data.images) == 4
    (meta,) = data.subjects_meta
    assert meta["subject"] == "sub-01"
    assert "FFA1" in meta["rois"]
    assert len(meta["sessions"]) == 4
    assert (meta["participants_sessions"], meta["participants_rois"]) == (30, "all")


def change_trial_table(folder, change):
    file = min(folder.rglob("sub-01_ses-02*_trials.tsv"))
    file.write_bytes(change(file.read_text()).encode("latin-1"))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace("\n", "\r\n"),
        lambda t: "\xef\xbb\xbf" + t,
        lambda t: t.replace("label", " label "),
        lambda t: t.replace("\tlabel", '\t"label"').replace("ses-02\t", '"ses-02\t', 1),
        lambda t: t.replace("\n", "\t\n"),
        lambda t: t.replace("session", "subject").replace("ses-02\t", "sub-09\t"),
    ],
)
def test_a_trial_table_in_another_spelling_is_read(cached, change):
    expected = fetch(mode="offline").trials
    change_trial_table(cached, change)
    pd.testing.assert_frame_equal(fetch(mode="offline").trials, expected)


def test_a_trial_table_that_is_not_utf8_is_read(cached):
    change_trial_table(cached, lambda t: t.replace("shared_4rep_OOD_", "sh\xe4red_"))
    assert fetch(mode="offline").trials["label"].str.startswith("sh\xe4red_").any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[2].rpartition("\t")[0], "line 3, column label"),
        (lambda rows: rows[2].replace("_", "\0"), "line 3, column label"),
        (lambda rows: rows[2] + "\tx", "line 3: .*more cells"),
        (
            lambda rows: rows[2].replace("\t1\t1\t", "\t1\tone\t"),
            "line 3, .*beta_index: 'one'",
        ),
        (lambda rows: rows[1], "line 3, column beta_index: 0 is in line 2"),
    ],
)
def test_a_damaged_trial_table_is_named_with_line_and_column(cached, change, words):
    def damage(text):
        rows = text.splitlines()
        return "\n".join([*rows[:2], change(rows), *rows[3:]])

    change_trial_table(cached, damage)
    with pytest.raises(CorruptImageError, match=f"sub-01_ses-02.*{words}"):
        fetch(mode="offline")


def test_trial_table_that_is_missing(cached):
    min(cached.rglob("sub-01_ses-02*_trials.tsv")).unlink()
    with pytest.warns(UserWarning, match=r"no trial table.*ses-02.*without trials"):
        data = fetch(mode="offline")
    assert data.sample_masks[1] is None
    assert 1 not in set(data.trials["image_index"])
    with pytest.warns(UserWarning, match=r"no trial table.*ses-02.*left out"):
        data = fetch(mode="offline", trial_filter={"n_reps": 4})
    assert "ses-02" not in [m["session"] for m in data.images_meta]


def test_brain_mask_is_derived_where_the_bucket_has_none(
    bucket_folder, data_dir, monkeypatch
):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        anatomy = bucket_folder / "derivatives/anatomical/sub-01"
        for mask in anatomy.rglob("*res-1pt8_desc-brain_mask.nii.gz"):
            server.delete(mask.relative_to(bucket_folder).as_posix())
        planned = fetch(rois=None, sessions=1, dry_run=True).brain_masks
        assert not Path(planned["sub-01"]).exists()
        with pytest.warns(UserWarning, match="derived"):
            data = fetch(rois=None, sessions=1)
    mask = nib.load(data.brain_masks["sub-01"])
    (r2,) = data_dir.rglob("*desc-R2mean_statmap.nii.gz")
    np.testing.assert_array_equal(mask.get_fdata() > 0, nib.load(r2).get_fdata() > 0)
    assert ".laion_fmri" in data.brain_masks["sub-01"]
    assert planned == data.brain_masks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(fetch(rois=None, sessions=1, mode="offline"), data)


def test_one_brain_mask_of_several(bucket_folder, data_dir, monkeypatch):
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        folder = "derivatives/anatomical/sub-01/ses-Other/anat/"
        name = "sub-01_ses-Other_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
        server.put(folder + name, b"another")
        data = fetch(rois=None, sessions=1)
        masks = [key for key in gets(server) if key.endswith("brain_mask.nii.gz")]
    assert len(masks) == 1
    assert data.brain_masks == {"sub-01": str(data_dir / masks[0])}


def test_license_is_asked_for_data_only(server, data_dir, monkeypatch):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    with pytest.raises(LicenseNotAcceptedError, match="LAION_FMRI_LICENSE"):
        fetch(sessions=1)
    assert all(key.endswith(".tsv") for key in gets(server))
    table = trials_id({"subject": "sub-03", "session": "ses-01"})
    assert fetch_laion_fmri_ids(table, verbose=0).images == [str(data_dir / table)]
    (data_dir / ".laion_fmri").mkdir(exist_ok=True)
    (data_dir / ".laion_fmri" / "license_accepted").touch()
    assert len(fetch(sessions=1, rois=None).images) == 1


@pytest.mark.parametrize("limit", [0, 1])
def test_offline_a_limit_gives_what_it_gave_online(server, data_dir, limit):
    """Sessions that were named and not fetched, as the limit left them out."""
    query = {"sessions": [1, 2], "rois": None, "max_images": limit}
    data = fetch(**query)
    assert_same(fetch(**query, mode="offline"), data)
    assert_same(fetch(**query), data)


def test_hidden_files_of_the_dataset_are_files(bucket_folder, data_dir, monkeypatch):
    hidden = "derivatives/freesurfer/sub-01/surf/.xdebug_mris_calc"
    query = {"image_type": "freesurfer", "rois": None}
    with serve_bucket(bucket_folder) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        server.put(hidden, b"written by FreeSurfer")
        data = fetch(**query)
        assert str(data_dir / hidden) in data.images
        (data_dir / hidden).with_name(".DS_Store").touch()
        assert fetch(**query, dry_run=True).plan_size == 0
        assert_same(fetch(**query, mode="offline"), data)
        server.reset()
        fetch(**query)
        assert gets(server) == []
    with pytest.warns(UserWarning, match="continuing offline"):
        assert_same(fetch(**query), data)
    report = verify_cache(verbose=0).set_index("id")
    assert report.loc[hidden, "status"] == "ok"
    assert set(report["status"]) == {"ok"}


# ---------------------------------------------------------------- what is said


def test_what_is_said(server, data_dir, capsys):
    fetch(sessions=1, rois="FFA1", verbose=1)
    said = capsys.readouterr()
    assert said.out == ""
    assert "Downloading" in said.err
    assert str(data_dir) in said.err
    assert "MB" in said.err or "kB" in said.err
    fetch(sessions=1, rois="FFA1", verbose=0)
    assert capsys.readouterr() == ("", "")


def test_named_sessions_without_a_trial_that_passes_are_told(cached, capsys):
    query = {"rois": None, "mode": "offline", "verbose": 1}
    label = fetch(sessions=1, mode="offline").trials["label"][0]
    once = fetch(trial_filter={"label": label}, mode="offline").images_meta
    left = {meta["session"] for meta in once}
    without = [f"ses-0{n}" for n in range(1, 5) if f"ses-0{n}" not in left]
    assert without
    fetch(sessions=[1, 2, 3, 4], trial_filter={"label": label}, **query)
    said = capsys.readouterr().err
    names = ", ".join(f"{session} of sub-01" for session in without)
    assert re.search(f"^{names} ha(s|ve) no trial that passes$", said, re.MULTILINE)
    fetch(sessions="all", trial_filter={"label": label}, **query)
    assert "no trial that passes" not in capsys.readouterr().err


def test_what_a_dry_run_announces_is_what_comes(server, data_dir, capsys):
    query = {"rois": "PPA", "sessions": [1, 2], "trial_filter": {"n_reps": 12}}
    planned = fetch(**query, dry_run=True)
    server.requests.clear()
    fetch(**query)
    assert {*map(clean_key, gets(server))} == {*planned.plan["id"]}
    sizes = [(data_dir / path).stat().st_size for path in planned.plan["id"]]
    assert sum(sizes) == planned.plan_size


def test_bulk_data_are_announced_as_far_as_they_are_selected(server, data_dir, capsys):
    query = {"image_type": "raw_bold", "rois": None, "dry_run": True, "verbose": 1}
    assert len(fetch(**query).images) > 1
    capsys.readouterr()
    data = fetch(**query, max_images=1)
    said = capsys.readouterr().err
    size = readable_size(data.images_meta[0]["size"])
    assert f"Raw or preprocessed data selected: {size} in 1 file\n" in said


def test_query_is_readable_and_without_settings(cached):
    data = fetch([1], sessions=range(1, 3), rois="FFA-1", mode="offline")
    assert data.query == {
        "subjects": ["sub-01"],
        "sessions": ["ses-01", "ses-02"],
        "rois": ["FFA1"],
        "subject_filter": None,
        "image_filter": {"image_type": "betas"},
        "roi_filter": {"space": "T1w", "res": "1pt8", "extension": "nii.gz"},
        "trial_filter": None,
        "max_images": None,
    }


@pytest.mark.parametrize(
    "query",
    [
        {"rois": ["face", "PPA"], "trial_filter": {"n_reps": 12}, "max_images": 2},
        {"subjects": "all", "sessions": [1, 2], "rois": None},
        {
            "image_type": "rsquare",
            "trial_filter": ResultFilter(n_reps=4) | {"dataset": "LAION"},
        },
    ],
)
def test_a_query_can_be_asked_again(cached, query):
    data = fetch(**query, mode="offline")
    again = fetch(**json.loads(json.dumps(data.query)), mode="offline")
    assert_same(data, again)


def test_a_query_with_functions_tells_their_names(cached):
    data = fetch(1, trial_filter=lambda trial: trial["n_reps"] == 4, mode="offline")
    assert data.query["trial_filter"] == {"callable_filter": "<lambda>"}
    assert pickle.loads(pickle.dumps(data)).query == data.query


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            {"trial_filter": {"n_reps": "12"}},
            r"trial_filter.*n_reps is 12, 4 \(numbers, not text\)",
        ),
        ({"trial_filter": {"beta_index": "3"}}, r"beta_index.* \(numbers, not text\)"),
        ({"subject_filter": {"rois": "FFA1"}}, r"rois.* \(lists, not text\)"),
        ({"trial_filter": {"label": Pattern("illusion")}}, "start.*or use Contains"),
        ({"trial_filter": {"label": "none such"}}, "none such'\\).$"),
        ({"space": "MNI152"}, "images.*space is T1w"),
        ({"roi_filter": {"space": "MNI"}}, "ROI masks.*space is T1w, fsnative"),
        ({"subject_filter": {"subject": "1"}}, "subject_filter.*subject is sub-01"),
        ({"last_modified": "2999-12-31"}, r"images.*last_modified is \d{4}-\d\d-\d\dT"),
        (
            {"trial_filter": ResultFilter(n_reps=12) & {"n_reps": 4}},
            r"trial_filter, ResultFilter\(n_reps=12\) & ResultFilter\(n_reps=4\)\.$",
        ),
        (
            {"image_filter": {"desc": "x", "last_modified": GreaterThan("2000-01-01")}},
            "the terms on images.*desc is ",
        ),
        (
            {
                "image_filter": ResultFilter(
                    stat="rsquare", last_modified=LessThan("2999")
                )
            },
            "the terms on images",
        ),
        (
            {"image_filter": ResultFilter(outdated=True) & (lambda record: False)},
            "the terms on images",
        ),
    ],
)
def test_a_filter_that_nothing_passes_is_warned_of(server, data_dir, query, words):
    with pytest.warns(UserWarning, match=f"Nothing passes .*{words}"):
        fetch(**query, dry_run=True)


def messages_of(call, *args, **query):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **query)
    return [str(one.message) for one in caught]


LABEL = "shared_12rep_THINGS+_kmeans_211_bracelet2.jpg"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            {"trial_filter": ResultFilter(n_reps=12) | {"label": Pattern("illusion")}},
            r"label=Pattern.* a part of trial_filter.*not at the start.*Contains",
        ),
        (
            {"trial_filter": ResultFilter(n_reps=12) & ~ResultFilter(dataset="LOAIN")},
            r"dataset='LOAIN'\), a part of trial_filter.*dataset is LAION, NSD",
        ),
        (
            {"trial_filter": ResultFilter(n_reps=12) ^ {"run": "1"}},
            r"run='1'.*\(numbers, not text\)",
        ),
        (
            {
                "trial_filter": ResultFilter(n_reps=12)
                | (ResultFilter(n_reps=4) & (ResultFilter(run=1) | {"run": 99}))
            },
            r"run=99\), a part",
        ),
        ({"image_filter": ResultFilter(size=NotNull()) | {"desc": "x"}}, "desc='x'"),
        (
            {"roi_filter": ResultFilter(hemi="X") | {"roi": "FFA1"}},
            "hemi='X'.*ROI masks",
        ),
        (
            {"subject_filter": ResultFilter(subject="sub-01") | {"age": 200}},
            "age=200.*a part of subject_filter.*age is 24",
        ),
    ],
)
def test_each_term_that_nothing_fulfils_is_warned_of_once(
    server, data_dir, query, words
):
    (text,) = messages_of(fetch, **query, dry_run=True)
    assert re.match(f"Nothing fulfils ResultFilter\\(.*{words}", text)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"trial_filter": ResultFilter(n_reps=12) | {"label": Contains("illusion")}},
        {"trial_filter": lambda trial: trial["n_reps"] == 12},
        {"trial_filter": {"label": LABEL}},
        {"trial_filter": {"run": range(1, 13)}},
        {"trial_filter": ResultFilter(ood_type=None)},
        {"last_modified": GreaterThan("2099-01-01")},
        {"image_filter": ResultFilter(size=NotNull()) | {"outdated": True}},
        {"rois": None, "roi_filter": {"hemi": "X"}},
    ],
)
def test_filters_without_a_fault_are_not_warned_of(server, data_dir, query):
    assert messages_of(fetch, **query, dry_run=True) == []


def test_values_of_a_list_that_nothing_has_are_named(server, data_dir):
    def labelled(*labels):
        return messages_of(fetch, trial_filter={"label": labels}, dry_run=True)

    (text,) = labelled(LABEL, LABEL.replace("211", "212"))
    assert text.startswith("1 of 2 values of label in trial_filter match nothing: 'sha")
    assert text.endswith(f"Among the candidates, {LABEL!r} is nearest.")
    others = [f"shared_4rep_NSD_special{i}.jpg" for i in range(1000)]
    assert labelled(LABEL, *others) == []
    (text,) = labelled(LABEL, *others, "shared_4rep_NSD_special7", "shared_4rep")
    assert text.startswith("2 of 1,003 values of label in trial_filter match nothing: ")
    assert "'shared_4rep_NSD_special7', 'shared_4rep'." in text
    (text,) = messages_of(fetch, trial_filter={"n_reps": [12, 13]}, dry_run=True)
    assert "1 of 2 values of n_reps in trial_filter match nothing: 13." in text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"trial_filter": {"dataset": NotEqual("ood")}}, "'ood'.*THINGS"),
        ({"trial_filter": {"n_reps": NotEqual("12")}}, "'12'.*numbers, not text"),
        ({"trial_filter": {"run": NotIn(1, "2")}}, "'2'."),
        ({"trial_filter": {"label": NotContains("Illusion")}}, "'Illusion'"),
        ({"image_filter": {"session": NotEqual(1)}}, "1.*ses-01.*text, not numbers"),
        ({"subject_filter": {"rois": NotContains("FFA-1")}}, "'FFA-1'.*FFA1"),
    ],
)
def test_values_to_leave_out_that_nothing_has_are_named(server, data_dir, query, words):
    (text,) = messages_of(fetch, **query, dry_run=True)
    assert re.match(f"1 of [12] values? of .* match nothing: {words}", text)


@pytest.mark.parametrize(
    "trial_filter",
    [
        {"dataset": NotEqual("OOD")},
        {"n_reps": NotIn(12)},
        {"label": NotContains("illusion")},
        {"label": NotIn("shared_4rep_NSD_special7.jpg")},  # not in these sessions
        {"ood_type": NotEqual(None)},
    ],
)
def test_values_that_are_left_out_are_not_warned_of(server, data_dir, trial_filter):
    assert messages_of(fetch, trial_filter=trial_filter, dry_run=True) == []


def test_numbers_that_are_compared_as_text_are_warned_of(server, data_dir):
    query = {"trial_filter": {"n_reps": GreaterThan("1")}}
    (text,) = messages_of(fetch, **query, dry_run=True)
    assert "compares numbers as text" in text


@pytest.mark.parametrize(
    "bound",
    [
        datetime(2020, 1, 1),
        datetime(2020, 1, 1, tzinfo=timezone.utc),
        date(2020, 1, 1),
        pd.Timestamp("2020-01-01"),
        pd.Timestamp("2020-01-01", tz="Europe/Berlin"),
        "2020-01-01",
        "2020-01-01 00:00",
    ],
)
def test_files_are_chosen_by_date(server, data_dir, bound):
    assert len(fetch(last_modified=GreaterThan(bound), dry_run=True).images) == 4
    assert fetch(last_modified=LessThan(bound), dry_run=True).images == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"last_modified": GreaterThan(2020)}, "last_modified cannot.*str.*is int"),
        ({"size": GreaterThan(date(2020, 1, 1))}, "size cannot.*int.*is date"),
        ({"trial_filter": {"label": GreaterThan(4)}}, "label cannot.*str.*is int"),
        ({"roi_filter": {"roi": LessThan(4)}}, "roi cannot.*str.*is int"),
        ({"subject_filter": {"rois": LessThan(4)}}, "rois cannot.*list.*is int"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(server, data_dir, query, words):
    with pytest.raises(InvalidQueryError, match=words):
        fetch(**query, dry_run=True)


# ---------------------------------------------------------------- another grid


def test_resolution(server, data_dir):
    query = {"rois": "FFA1", "sessions": [1, 2], "resolution": 12}
    data = fetch(**query)
    original = fetch(rois="FFA1", sessions=[1, 2])
    assert all("_res-12_" in path for path in [*data.images, *data.rois])
    assert [m["res"] for m in data.images_meta] == ["12", "12"]
    assert original.images_meta[0]["res"] is None
    assert len(original.images) == 2
    image, mask = nib.load(data.images[0]), nib.load(data.brain_masks["sub-01"])
    np.testing.assert_allclose(image.header.get_zooms()[:3], 12)
    assert image.shape[:3] == mask.shape == nib.load(data.rois[0]).shape
    assert image.shape[3] == nib.load(original.images[0]).shape[3]
    ceiling = nib.load(data.noise_ceilings["sub-01"]["Allrep"])
    np.testing.assert_allclose(ceiling.affine, mask.affine)
    pd.testing.assert_frame_equal(data.trials, original.trials)
    before = Path(data.images[0]).stat().st_mtime_ns
    server.reset()
    assert_same(fetch(**query), data)
    assert_same(fetch(mode="offline", **query), data)
    assert gets(server) == []
    assert Path(data.images[0]).stat().st_mtime_ns == before


def test_rois_that_vanish_on_a_coarse_grid_are_named(cached, no_network):
    query = {"sessions": 1, "resolution": 25}
    for _ in range(2):  # resampled, and found on disk
        with pytest.warns(UserWarning, match="No voxel of 25 mm is in ") as seen:
            data = fetch(**query, rois="retinotopy", mode="offline")
        empty = [
            meta["roi"]
            for file, meta in zip(data.rois, data.rois_meta, strict=True)
            if not nib.load(file).get_fdata().any()
        ]
        assert 0 < len(empty) < len(data.rois)
        assert f"is in {empty[0]} of sub-01" in str(seen[0].message)
        assert len(seen) == 1


def test_resolution_without_originals(server, data_dir):
    query = {"rois": "FFA1", "sessions": 1, "resolution": 12, "keep_original": False}
    data = fetch(**query)
    assert [p.name for p in data_dir.rglob("*Betas_statmap.nii.gz")] == [
        Path(data.images[0]).name
    ]
    server.reset()
    assert_same(fetch(**query), data)
    assert_same(fetch(mode="offline", **query), data)
    assert gets(server) == []
    with pytest.raises(NotCachedError, match="ses-01"):
        fetch(sessions=1, mode="offline")
    assert len(fetch(sessions=1, rois=None).images) == 1


@pytest.mark.parametrize(
    "setting", [{"keep_original": False}, {"interpolation": "nearest"}]
)
def test_settings_of_resampling_without_a_resolution(setting, no_network):
    (name,) = setting
    with pytest.raises(InvalidQueryError, match=f"{name} is .*give resolution"):
        fetch(**setting)
    with pytest.raises(InvalidQueryError, match="'linear'"):
        fetch(interpolation="linearr")


@pytest.mark.parametrize(
    "query",
    [
        {"image_type": "subject_noise_ceiling"},
        {"image_type": "roi", "roi": "FFA1", "res": "1pt8", "extension": "nii.gz"},
    ],
)
def test_originals_that_are_asked_for_twice_are_resampled_once(server, data_dir, query):
    """Noise ceilings and masks are images here, and go with images, too."""
    roi = query.pop("roi", None)
    if roi:
        query["image_filter"] = {"roi": roi}
    data = fetch(**query, resolution=12, keep_original=False)
    assert data.images
    assert all(Path(path).exists() for path in data.images)
    assert all("_res-12_" in path for path in data.images)
    assert not any((data_dir / meta["id"]).exists() for meta in data.images_meta)


def test_images_that_another_interpolation_replaces_are_named(server, data_dir):
    query = {"sessions": 1, "image_type": "rsquare", "rois": None, "resolution": 12}
    first = fetch(**query)
    with pytest.warns(UserWarning, match="another interpolation .* replaced, such as"):
        second = fetch(**query, interpolation="nearest")
    assert second.images == first.images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch(**query, interpolation="nearest")


def test_ids_in_a_set_come_in_the_order_of_text(server, data_dir):
    ids = [m["id"] for m in fetch(sessions=[1, 2], rois=None).images_meta]
    again = fetch_laion_fmri_ids({*reversed(ids)}, verbose=0)
    assert [m["id"] for m in again.images_meta] == sorted(ids)


def test_removed_originals_are_fetched_for_another_interpolation(server, data_dir):
    query = {"sessions": 1, "rois": None, "resolution": 12, "keep_original": False}
    first = fetch(**query)
    before = Path(first.images[0]).read_bytes()
    plan = fetch(**query, interpolation="linear", dry_run=True).plan
    assert first.images_meta[0]["id"] in set(plan["id"])
    with pytest.warns(UserWarning, match="not on disk"):
        assert (
            fetch(
                **query, interpolation="linear", mode="offline", allow_missing=True
            ).images
            == []
        )
    second = fetch(**query, interpolation="linear")
    assert Path(second.images[0]).read_bytes() != before


def test_a_new_version_of_a_removed_original_is_noticed(
    bucket_folder, data_dir, monkeypatch
):
    query = {"sessions": 1, "rois": None, "resolution": 12, "keep_original": False}
    with serve_bucket(bucket_folder) as bucket:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", bucket.url)
        (old,) = fetch(**query).images_meta
        assert set(verify_cache(verbose=0)["status"]) == {"ok"}
        content = (bucket_folder / old["key"]).read_bytes()
        bucket.put(old["key"], content + b"\0" * 8)
        with pytest.warns(UserWarning, match="version of 1 file.*unknown size"):
            (again,) = fetch(**query).images_meta
        assert again["outdated"]
        assert again["etag"] is None
        (new,) = fetch(**query, mode="overwrite", outdated=True).images_meta
        assert not new["outdated"]
        assert new["etag"] != old["etag"]


def test_a_removed_original_that_came_back_is_judged_by_the_bucket(
    bucket_folder, data_dir, monkeypatch
):
    query = {"sessions": 1, "rois": None}
    with serve_bucket(bucket_folder) as bucket:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", bucket.url)
        (old,) = fetch(**query, resolution=12, keep_original=False).images_meta
        content = (bucket_folder / old["key"]).read_bytes() + b"\0" * 8
        bucket.put(old["key"], content)
        (data_dir / old["id"]).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (meta,) = fetch(**query).images_meta
        assert (meta["outdated"], meta["size"]) == (False, len(content))
        assert set(verify_cache(verbose=0)["status"]) == {"ok"}


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_resampling_in_workers_of_any_kind(cached, backend):
    with joblib.parallel_config(backend, n_jobs=2):
        data = fetch(sessions=[1, 2], rois=None, resolution=12, mode="offline")
    assert all(nib.load(path).shape[3] > 1 for path in data.images)


def test_a_directory_copied_without_its_hidden_folder(cached, no_network):
    shutil.rmtree(cached / ".laion_fmri")
    (mask,) = (cached / "derivatives/rois/sub-01/face").glob("*1pt8_label-FFA2_*")
    mask.unlink()
    with pytest.warns(UserWarning, match="No listing of derivatives/.*laion_fmri too"):
        data = fetch("sub-01", "face", 1, mode="offline")
    assert "FFA2" not in data.roi_files["sub-01"]
