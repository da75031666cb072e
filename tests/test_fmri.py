"""fetch_laion_fmri on the demo bucket: what comes, what is asked for, what is said."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from datetime import date
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from calls import fetch, fetch_ids, gets, no_warning, warnings_of
from conftest import unwritable

import laion_fmri_fetchers as package
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
    inspect_bucket,
    load_betas,
    verify_cache,
)
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    HeldOutSessionError,
    InvalidQueryError,
    LicenseNotAcceptedError,
    NotCachedError,
    UnsafeKeyError,
)
from laion_fmri_fetchers.query import basic_image_terms

COLUMNS = (
    "subject session run beta_index label image_index unique_or_shared n_reps dataset "
    "ood_type participant repetition"
).split()
KEYS = {
    *("images", "images_meta", "rois", "rois_meta", "roi_files", "brain_masks"),
    *("noise_ceilings", "trials", "sample_masks", "subjects_meta", "failed"),
    *("data_dir", "query", "description"),
}
ROOT = {"README", "dataset_description.json", "participants.json", "participants.tsv"}
FFA1 = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-1pt8_label-FFA-1_mask.nii.gz"
OFTEN = {"trial_filter": {"n_reps": 12}}
MAPS = "subject_noise_ceiling"


def table_of(session, subject="sub-01"):
    """Return the id of a trial table."""
    folder = f"derivatives/glmsingle-tedana/{subject}/{session}/func/"
    name = f"{subject}_{session}_task-images_desc-SingletrialBetas_trials.tsv"
    return folder + name


def sessions_of(data):
    return [meta["session"] for meta in data.images_meta]


def same(one, other):
    """Assert that two Bunches hold the same."""
    assert set(one) == set(other)
    pd.testing.assert_frame_equal(one.trials, other.trials)
    for key in one.keys() - {"trials", "sample_masks"}:
        assert one[key] == other[key], key
    for a, b in zip(one.sample_masks, other.sample_masks, strict=True):
        np.testing.assert_array_equal(a, b)


def bucket_tables(folder, subject):
    """The trial tables of the main sessions, read by pandas alone."""
    files = sorted((folder / "derivatives/glmsingle-tedana").rglob(f"{subject}*s.tsv"))
    return {
        file.parts[-3]: pd.read_csv(file, sep="\t")
        for file in files
        if file.parts[-3] < "ses-31"
    }


@pytest.fixture(scope="module")
def plans_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans") / "laion_fmri"


@pytest.fixture
def plan(server, plans_folder, monkeypatch):
    """A dry run, in a directory that has listings and tables of other dry runs."""
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(plans_folder))
    return partial(fetch, dry_run=True)


@pytest.fixture(scope="module")
def part_folder(shared_server, tmp_path_factory):
    """A data directory with two sessions and an ROI of a subject."""
    folder = tmp_path_factory.mktemp("part") / "laion_fmri"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
        patch.setenv("LAION_FMRI_LICENSE", "I AGREE")
        fetch("sub-01", sessions=[1, 2], rois="FFA1", data_dir=folder)
    return folder


# --- What comes -----------------------------------------------------------------------


def test_the_main_job(server, data_dir, bucket_folder):
    data = fetch("all", rois=["face", "PPA"], **OFTEN)
    tables = {
        (subject, session): np.flatnonzero(table["label"].str.startswith("shared_12"))
        for subject in ("sub-01", "sub-03")
        for session, table in bucket_tables(bucket_folder, subject).items()
    }
    expected = {key: rows for key, rows in tables.items() if len(rows)}
    assert 0 < len(expected) < len(tables) == 8
    assert set(data) == KEYS
    assert [(m["subject"], m["session"]) for m in data.images_meta] == [*expected]
    assert {m["image_type"] for m in data.images_meta} == {"betas"}
    for volumes, rows in zip(data.sample_masks, expected.values(), strict=True):
        np.testing.assert_array_equal(volumes, rows)
    rois = [
        path
        for path in (bucket_folder / "derivatives/rois").glob("*/*/*res-1pt8*.nii.gz")
        if path.parent.name == "face" or "label-PPA" in path.name
    ]
    assert sorted(m["key"].rpartition("/")[2] for m in data.rois_meta) == sorted(
        path.name for path in rois
    )
    assert {m["roi"] for m in data.rois_meta if m["roi_category"] != "face"} == {"PPA"}
    assert data.failed == []
    keys = gets(server)
    assert len(keys) == len(set(keys))
    betas = {key for key in keys if key.endswith("Betas_statmap.nii.gz")}
    assert betas == {meta["key"] for meta in data.images_meta}
    for meta in [*data.images_meta, *data.rois_meta]:
        source = bucket_folder / meta["key"]
        assert Path(meta["absolute_path"]).read_bytes() == source.read_bytes()


def test_trials_say_what_the_tables_say(on_disk, bucket_folder):
    data = fetch("all", rois=None)
    expected = pd.concat(
        bucket_tables(bucket_folder, meta["subject"])[meta["session"]].assign(
            image_index=i, subject=meta["subject"]
        )
        for i, meta in enumerate(data.images_meta)
    ).reset_index(drop=True)
    trials = data.trials
    assert list(trials.columns) == COLUMNS
    pd.testing.assert_frame_equal(trials[[*expected]], expected, check_dtype=False)
    assert str(trials["n_reps"].dtype) == "Int64"
    unique = trials[trials["unique_or_shared"] == "unique"]
    assert (unique["participant"] == unique["subject"]).all()
    of_sub_03 = unique["label"][unique["subject"] == "sub-03"]
    assert of_sub_03.str.contains(r"_p04\.jpg$").all()  # of the acquisition
    odd = trials[trials["unique_or_shared"].isna()]
    assert len(odd) == 1
    assert odd["n_reps"].isna().all()


def test_subject_files(on_disk):
    data = fetch("all")
    assert list(data.brain_masks) == ["sub-01", "sub-03"]
    for subject, ceilings in data.noise_ceilings.items():
        assert sorted(ceilings) == ["12rep", "4rep", "Allrep"]
        grid = nib.load(data.brain_masks[subject])
        assert {nib.load(path).shape for path in ceilings.values()} == {grid.shape}
    first, second = data.subjects_meta
    assert first["sessions"] == ["ses-01", "ses-02", "ses-03", "ses-04"]
    of_first = {m["roi"] for m in data.rois_meta if m["subject"] == "sub-01"}
    assert of_first == set(first["rois"]) > {"FFA1"}
    assert isinstance(first["age"], int)
    assert second["handedness"] is None


@pytest.mark.parametrize(
    ("argument", "value", "names"),
    [
        *(
            ("subjects", value, ["sub-03"])
            for value in ("sub-03", "03", 3, np.int64(3), 3.0, ("sub-03", "3"), {"03"})
        ),
        *(
            ("sessions", value, ["ses-01", "ses-02"])
            for value in ([1, "ses-02", 1], range(1, 3), "1 2".split(), np.arange(1, 3))
        ),
        ("sessions", np.float32(2), ["ses-02"]),
        ("sessions", "aLL", "all"),
        ("rois", "FFA-1", ["FFA1"]),
        ("rois", ["ffa1", "FFA1"], ["FFA1"]),
        ("rois", (name for name in ("pSTS-faces", "PPA")), ["pSTSfaces", "PPA"]),
        ("rois", "Place", ["place"]),
        ("rois", ["place", "PPA", "MT"], ["place", "PPA", "MT"]),
        ("rois", "V1", ["V1d", "V1v"]),
        *(("rois", value, []) for value in (None, "none", (), [])),
    ],
)
def test_names_in_any_form_are_told_once(on_disk, argument, value, names):
    data = fetch(**{"rois": None, "max_images": None, argument: value})
    assert data.query[argument] == names
    members = {"place": {"MPA", "OPA", "PPA"}}
    wanted = set().union(*(members.get(name, {name}) for name in names))
    if argument == "rois":
        assert {m["roi"] for m in data.rois_meta} == wanted
        assert len(data.rois) == len(wanted)
    elif names != "all":
        assert {m[argument[:-1]] for m in data.images_meta} == wanted


def test_rois_are_in_the_order_in_which_they_are_named(on_disk):
    data = fetch("all", rois=["V1", "OFA", "face", "FFA1", "EBA"], max_images=0)
    for subject, files in data.roi_files.items():
        rois = [m["roi"] for m in data.rois_meta if m["subject"] == subject]
        assert list(files) == rois
        assert rois[:3] == ["V1d", "V1v", "OFA"]
        assert rois[3:] == [*sorted(rois[3:-1]), "EBA"]
        assert "FFA1" in rois[3:-1]


def test_a_mask_of_another_subject_is_refused(on_disk):
    data = fetch("all", rois="FFA1", sessions=1)
    mask = data.roi_files["sub-01"]["FFA1"]
    for mask_img in (mask, nib.load(mask)):
        assert load_betas(data, "sub-01", mask_img=mask_img, verbose=0).data.size
        with pytest.raises(InvalidQueryError, match="a mask of sub-01, and the betas"):
            load_betas(data, "sub-03", mask_img=mask_img, verbose=0)


def test_a_bunch_is_shown_as_a_line_a_key(on_disk):
    data = fetch("all")
    lines = repr(data).splitlines()
    assert [line.split()[0] for line in lines] == list(data)
    assert max(map(len, lines)) < 100
    assert lines[0].split(maxsplit=1)[1] == f"list of {len(data.images)}"
    assert type(pickle.loads(pickle.dumps(data))) is type(data)


# --- Filters --------------------------------------------------------------------------

LATE = IsIn("ses-03", "ses-04")
IS_BETAS = ResultFilter(image_type="betas")


@pytest.mark.parametrize(
    "image_filter",
    [
        {"session": LATE, "image_type": ["betas", "trials"]},
        IS_BETAS & (lambda record: record["session"] == "ses-01"),
        IS_BETAS | {"image_type": "rsquare", "session": LATE},
        ~ResultFilter(image_type=["betas", "roi", "freesurfer"])
        & {"session": "ses-01"},
        IS_BETAS ^ ResultFilter(session=LATE),
        ResultFilter(image_type=Contains("square")) | {"image_type": None},
        ResultFilter(image_type=NotEqual("betas")) & {"session": GreaterThan("ses-03")},
    ],
)
def test_a_filter_chooses_what_it_passes_of_all_files(plan, image_filter):
    every = plan(image_type=NotNull(), rois=None).images_meta
    passes = ResultFilter() & image_filter
    expected = [meta["id"] for meta in every if passes(meta)]
    data = plan(image_filter=image_filter, rois=None)
    assert [meta["id"] for meta in data.images_meta] == expected != []


@pytest.mark.parametrize(
    ("terms", "types"),
    [
        ({"image_type": MAPS}, {MAPS}),
        ({"image_terms": {"image_type": MAPS}}, {MAPS}),
        ({"image_terms": basic_image_terms(), "stat": "effect"}, {"betas"}),
        ({"image_type": (name for name in (MAPS, "betas"))}, {MAPS, "betas"}),
        ({"image_type": dict.fromkeys("a", MAPS).values()}, {MAPS}),
        ({"image_filter": lambda meta: meta["session"]}, {"betas"}),
        ({"image_filter": {"image_type": MAPS, "session": None}}, {MAPS}),
    ],
    ids="keyword dict basic iterator values function filter".split(),
)
def test_terms_on_images_replace_the_default_on_their_field(on_disk, terms, types):
    assert {m["image_type"] for m in fetch(rois=None, **terms).images_meta} == types


def test_subject_filter(on_disk):
    data = fetch("all", subject_filter={"age": GreaterThan(25)})
    assert [m["subject"] for m in data.subjects_meta] == ["sub-03"]
    assert {m["subject"] for m in data.images_meta} == {"sub-03"}
    has_third = fetch("all", subject_filter=lambda s: "ses-03" in s["sessions"])
    assert len(has_third.subjects_meta) == 2


def test_trial_filter_chooses_among_other_files_of_a_session(plan):
    data = plan(rois=None, image_type="rsquare", **OFTEN)
    assert sessions_of(data) == sessions_of(plan(rois=None, **OFTEN))
    assert data.trials.empty


def test_functions_see_the_default_type_alone_and_the_warning_says_so(on_disk):
    query = {"rois": None, "image_filter": lambda meta: meta["image_type"] == MAPS}
    with pytest.warns(UserWarning, match=r"'betas' alone.*image_type=NotNull\(\)"):
        assert fetch(**query).images == []
    assert len(fetch(**query, image_type=NotNull()).images) == 3


def test_max_images_counts_over_cache_and_bucket(server, data_dir):
    fetch(rois=None, sessions=2)
    data = fetch("all", rois=None, max_images=3)
    assert sessions_of(data) == ["ses-01", "ses-02", "ses-03"]
    assert len(list(data_dir.rglob("*Betas_statmap.nii.gz"))) == 3
    assert len(fetch(rois=None, max_images=-1, dry_run=True).images) == 4
    for limit in (0, 1):  # sessions that were named, and left out by the limit
        query = {"sessions": [1, 4], "rois": None, "max_images": limit}
        online = fetch(**query)
        assert sessions_of(online) == ["ses-01"][:limit]
        same(fetch(**query, mode="offline"), online)


# --- Modes ----------------------------------------------------------------------------


def test_offline_and_stopped_server_give_the_same(own_server, data_dir):
    query = {"subjects": "all", "rois": ["face", "PPA"], **OFTEN}
    first = fetch(**query)
    same(fetch(**query), first)
    planned = fetch(rois=None, dry_run=True).plan
    own_server.stop()
    with no_warning():
        same(fetch(**query, mode="OFFLINE"), first)
    with pytest.warns(UserWarning, match="continuing offline") as caught:
        same(fetch_laion_fmri(**query, verbose=0), first)
    assert [one.filename for one in caught] == [__file__]
    with pytest.warns(UserWarning, match="planned"):
        again = fetch(rois=None, dry_run=True)
    pd.testing.assert_frame_equal(again.plan, planned)
    with pytest.raises(BucketError, match=r"ses-02.*mode='offline'") as error:
        fetch("all", rois=None)
    assert isinstance(error.value, ConnectionError)


def test_without_the_bucket_and_its_listings(cached, tmp_path):
    """It cannot be told whether anything is missing, which is an error."""
    before = fetch("all", mode="offline")
    shutil.rmtree(cached / ".laion_fmri" / "listings")
    with pytest.raises(BucketError, match=r"No listing of the top level.*mode='offl"):
        fetch(1)
    with pytest.raises(BucketError, match="Nothing of it is in .*new, and no listing"):
        fetch(1, data_dir=tmp_path / "new")
    data = fetch("all", mode="offline")
    assert (data.images, data.rois) == (before.images, before.rois)
    sizes = [[m["size"] for m in each.images_meta] for each in (data, before)]
    assert sizes[0] == sizes[1]
    assert {m["etag"] for m in data.images_meta} == {None}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"subjects": "sub-03"}, "sub-03"),
        ({"subjects": ["sub-01", "sub-99"]}, "sub-99"),
        ({"sessions": 3}, "ses-03"),
        ({"sessions": 99}, "ses-99"),
        ({"sessions": 3, **OFTEN}, "ses-03"),
        ({"rois": "PPA"}, "PPA"),
        ({"rois": "FA1"}, "FFA1"),
    ],
)
def test_offline_what_was_named_and_is_not_there(part_folder, query, name):
    options = {"mode": "offline", "data_dir": part_folder}
    with pytest.raises(NotCachedError, match=name) as error:
        fetch(**query, **options)
    assert isinstance(error.value, FileNotFoundError)
    data = fetch("all", **options)
    assert sessions_of(data) == ["ses-01", "ses-02"]
    assert list(data.roi_files.items()) == [("sub-01", {"FFA1": data.rois[0]})]


def test_offline_named_sessions_that_some_subjects_lack(cached):
    query = {"sessions": 2, "rois": None, "mode": "offline"}
    min(cached.rglob("sub-03_ses-02*Betas_statmap.nii.gz")).unlink()
    with pytest.raises(NotCachedError, match=r"1 file .*sub-03_ses-02.*Betas_statmap"):
        fetch("all", **query)
    with pytest.warns(UserWarning, match=r"1 of 2 images.*left out: ses-02 of sub-03"):
        data = fetch("all", **query, allow_missing=True)
    assert [m["subject"] for m in data.images_meta] == ["sub-01"]
    (cached / table_of("ses-02")).unlink()
    with pytest.raises(NotCachedError, match=r"sub-01_ses-02.*_trials\.tsv is not on"):
        fetch(**query, trial_filter={"n_reps": 4})


def test_offline_in_an_empty_directory(tmp_path):
    with pytest.raises(NotCachedError, match="sub-01"):
        fetch(mode="offline", data_dir=tmp_path)
    assert fetch("all", mode="offline", data_dir=tmp_path).images == []
    assert list(tmp_path.iterdir()) == []


def test_only_overwrite_fetches_what_is_selected_again(cached, server, bucket_folder):
    query = {"sessions": 1, "rois": "FFA1"}
    image = Path(fetch(**query).images[0])
    damaged = b"x" * image.stat().st_size
    image.write_bytes(damaged)
    server.reset()
    fetch(**query)
    assert gets(server) == []
    assert image.read_bytes() == damaged
    planned = fetch(**query, mode="overwrite", dry_run=True)
    assert set(planned.plan["reason"]) == {"overwrite"}
    data = fetch(**query, mode="overwrite")
    key = data.images_meta[0]["key"]
    assert image.read_bytes() == (bucket_folder / key).read_bytes()
    assert {key, data.rois_meta[0]["key"]} <= set(gets(server))
    assert not [key for key in gets(server) if "ses-02" in key]
    server.reset()
    tables = {"image_type": "trials", "trial_filter": {"n_reps": 4}}
    (meta,) = fetch(**query, **tables, mode="overwrite").images_meta
    assert gets(server).count(meta["key"]) == 1  # though it is read first


def test_moved_directory(cached, tmp_path):
    before = fetch("all", mode="offline")
    moved = shutil.move(cached, tmp_path / "moved")
    after = fetch("all", mode="offline", data_dir=moved)
    assert all(Path(path).is_relative_to(moved) for path in after.images)
    pd.testing.assert_frame_equal(after.trials, before.trials)
    for one, other in zip(before.images_meta, after.images_meta, strict=True):
        assert {**one, "absolute_path": None} == {**other, "absolute_path": None}


def test_directories_that_cannot_be_written(cached, server, tmp_path):
    before = fetch("all", mode="offline")
    with unwritable(cached, *cached.rglob("*")):
        with pytest.warns(UserWarning, match="cannot be written"):
            same(fetch("all"), before)
        same(fetch("all", mode="offline"), before)
    (tmp_path / "empty").mkdir()
    words = r"made \(Permission denied\).*data_dir"
    with (
        unwritable(tmp_path / "empty"),
        pytest.raises(InvalidQueryError, match=words),
    ):
        fetch(1, data_dir=tmp_path / "empty" / "new")


# --- Dry runs and ids -----------------------------------------------------------------


def test_what_a_dry_run_plans_is_what_comes(server, data_dir, monkeypatch):
    query = {"rois": "PPA", "sessions": [1, 2], **OFTEN}
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    planned = fetch(**query, dry_run=True)
    assert set(planned) == KEYS | {"plan", "plan_size"}
    assert list(planned.plan.columns) == ["id", "size", "reason"]
    assert set(planned.plan["reason"]) == {"missing"}
    assert all(key.endswith("_trials.tsv") for key in gets(server))
    assert not list(data_dir.rglob("*.nii.gz"))
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    server.requests.clear()
    data = fetch(**query)
    assert len(gets(server)) == len(planned.plan)
    assert {m["id"] for m in data.images_meta + data.rois_meta} <= {*planned.plan["id"]}
    sizes = [(data_dir / path).stat().st_size for path in planned.plan["id"]]
    assert sum(sizes) == planned.plan_size == planned.plan["size"].sum() > 0
    assert fetch(**query, dry_run=True).plan.empty


def test_ids_reproduce_a_selection_in_the_order_given(server, data_dir, tmp_path):
    data = fetch(rois="FFA1", sessions=[1, 3])
    ids = [m["id"] for m in [*reversed(data.images_meta), *data.rois_meta]]
    elsewhere = tmp_path / "elsewhere"
    again = fetch_ids(ids, data_dir=elsewhere)
    assert [m["id"] for m in again.images_meta] == ids
    assert (again.rois, set(again)) == ([], set(data))
    assert list(again.brain_masks) == ["sub-01"]
    for i, session in enumerate(["ses-03", "ses-01"]):
        trials = again.trials[again.trials["image_index"] == i]
        of_session = data.trials[data.trials["session"] == session]
        columns = trials.columns.drop("image_index")
        pd.testing.assert_frame_equal(
            trials[columns].reset_index(drop=True),
            of_session[columns].reset_index(drop=True),
        )
        assert list(trials["beta_index"]) == list(again.sample_masks[i])
    same(fetch_ids(ids, data_dir=elsewhere, mode="offline"), again)
    in_order = fetch_ids({*ids}, mode="offline")
    assert [m["id"] for m in in_order.images_meta] == sorted(ids)


def test_ids_fetch_exactly_the_named(server, data_dir):
    surface = "derivatives/freesurfer/sub-01/surf/lh.white"
    data = fetch_ids([FFA1, surface, "README"])
    ids = [FFA1.replace("FFA-1", "FFA1"), surface, "README"]
    assert [m["id"] for m in data.images_meta] == ids
    assert set(gets(server)) - ROOT == {FFA1, surface}
    assert data.sample_masks == [None] * 3
    assert fetch_ids([]).images == []


@pytest.mark.parametrize(
    "base", ["s3://laion-fmri", "https://laion-fmri.s3.us-west-2.amazonaws.com", None]
)
def test_ids_may_be_addresses_of_the_bucket(server, data_dir, capsys, base):
    folder, _, name = FFA1.rpartition("/")
    folder = f"{base or server.url}/{folder}/"
    data = fetch_ids(folder + name)
    assert [meta["roi"] for meta in data.images_meta] == ["FFA1"]
    assert len(fetch_ids(folder, dry_run=True).images) > 1
    inspect_bucket(folder)
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (FFA1.replace("FFA-1", "FA1"), InvalidQueryError, "label-FFA1_mask"),
        ("stimuli/task-images_stimuli.h5", InvalidQueryError, "fetch_laion_stimuli"),
        ([3], InvalidQueryError, "image_ids holds 3"),
        ("s3://other/README", InvalidQueryError, "not an address in the"),
        ("https://x.org/README?X-Amz-S=1", InvalidQueryError, "not an address in the"),
        ("/data/participants.tsv", InvalidQueryError, "path on disk; give the 'id'"),
        ("../etc/passwd", UnsafeKeyError, "lead out of the data directory"),
        ("derivatives//file", UnsafeKeyError, "empty folder name"),
    ],
)
def test_ids_that_are_none(plan, given, error, words):
    with pytest.raises(error, match=words) as caught:
        fetch_ids(given)
    assert "X-Amz" not in str(caught.value)


# --- Bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"subjects": "sub-02"}, "sub-02.*sub-01, sub-03"),
        ({"subjects": []}, "subjects is empty"),
        ({"sessions": 1.5}, r"sessions holds 1\.5"),
        ({"rois": "FA1"}, "FA1.*did you mean 'FFA1'"),
        ({"rois": 7}, "rois.*7"),
        ({"sessions": ["all", 31]}, "sessions holds 'all' beside other names"),
        ({"sessions": "one"}, "session ses-one; there are ses-01"),
        ({"sessions": "ses 1"}, "sessions holds 'ses 1'"),
        ({"sessions": "4BarScreenFLoc", "image_type": "localizer"}, "4BarScreenfLoc"),
        ({"mode": "ofline"}, "did you mean 'offline'"),
        ({"data_dir": 3}, "data_dir is 3"),
        ({"max_images": "3"}, "max_images is '3'"),
        ({"n_connections": 0}, "n_connections is 0"),
        ({"timeout": -1}, "timeout is -1"),
        ({"verbose": "loud"}, "verbose is 'loud'"),
        ({"image_filter": 3}, "image_filter must be a dict"),
        ({"trial_filter": "n_reps=12"}, "trial_filter must be a dict"),
        ({"trial_filter": {"nreps": 12}}, "did you mean 'n_reps'"),
        ({"subject_filter": {"agee": 1}}, "did you mean 'age'"),
        ({"image_filter": {"sesion": 1}}, "did you mean 'session'"),
        ({"image_filter": {"n_reps": 12}}, "'n_reps'.*use trial_filter"),
        ({"image_filter": {"image_type": ["beta"]}}, "did you mean 'betas'"),
        ({"image_type": "beta"}, "did you mean 'betas'"),
        ({"image_type": (name for name in ["beta"])}, "did you mean 'betas'"),
        ({"contrasts": "face"}, "did you mean 'contrast'"),
        ({"trial_filer": {"n_reps": 1}}, "did you mean 'trial_filter'"),
        ({"n_reps": 12}, r"n_reps.* field of trials: trial_filter=\{'n_reps': 12\}$"),
        ({"subject": "sub-01"}, "use subjects="),
        ({"n_jobs": 4}, "argument of fetch_laion_betas, load_betas, pack_betas"),
        ({"image_terms": {"image_typ": "betas"}}, "did you mean 'image_type'"),
        ({"image_terms": ResultFilter()}, "dict of terms.*image_filter="),
        ({"trial_filter": {"callable_filter": "bool"}}, "trial_filter.*bool alone"),
        ({"trial_filter": {"label": GreaterThan(4)}}, "label cannot.*str.*is int"),
        ({"last_modified": GreaterThan(2020)}, "last_modified cannot.*str.*is int"),
        ({"subject_filter": {"rois": LessThan(4)}}, "rois cannot.*list.*is int"),
    ],
)
def test_bad_arguments(plan, server, query, words):
    with pytest.raises(InvalidQueryError, match=words) as error:
        fetch(**query)
    assert isinstance(error.value, ValueError)
    assert not [key for key in gets(server) if not key.endswith(".tsv")]


@pytest.mark.parametrize(
    ("call", "argument", "hint"),
    [
        ("fetch_laion_betas", {"image_filter": {}}, "argument of fetch_laion_fmri$"),
        ("fetch_laion_betas", {"n_reps": 12}, r"trial_filter=\{'n_reps': 12\}$"),
        ("fetch_laion_embeddings", {"model": "CLIP"}, "use models="),
        ("fetch_laion_fmri_ids", {"rois": ["a"]}, "argument of .*fetch_laion_fmri"),
        ("fetch_laion_splits", {"split": "tau"}, "has no argument 'split'"),
        ("get_subjects", {"mode": "offline"}, "argument of .*fetch_laion_betas"),
        ("load_betas", {"n_reps": 12}, r"\{'n_reps': 12\} of fetch_laion_fmri$"),
    ],
)
def test_an_argument_of_another_call_is_named(call, argument, hint, no_network):
    (name,) = argument
    with pytest.raises(InvalidQueryError, match=hint) as error:
        getattr(package, call)(**argument)
    assert f"{call} has no argument {name!r}" in str(error.value)


def test_names_that_some_subjects_lack(plan):
    with pytest.warns(UserWarning, match="sub-03"):
        data = plan("all", rois=["FFA1", "VWFA2"])
    assert [m["subject"] for m in data.rois_meta].count("sub-03") == 1


def test_held_out_session(server, data_dir):
    with pytest.raises(HeldOutSessionError, match="ses-31.* held out") as error:
        fetch(sessions=31)
    assert isinstance(error.value, PermissionError)
    with pytest.warns(UserWarning, match="ses-31"):
        data = fetch(sessions=[1, 31], rois=None, allow_missing=True)
    assert sessions_of(data) == ["ses-01"]
    assert {f["session"] for f in data.failed} == {"ses-31"}
    assert all("reason" in f and "id" in f for f in data.failed)
    server.faults[table_of("ses-31")] = (404, {}, b"")  # gone, and not denied
    with pytest.raises(DownloadError, match="404") as error:
        fetch(sessions=31, rois=None)
    assert "held out" not in str(error.value)


def test_listings_that_are_denied_or_hostile(own_server, data_dir, tmp_path):
    own_server.deny_listing = True
    with pytest.raises(BucketError, match="denies"):
        fetch()
    own_server.deny_listing = False
    own_server.put("derivatives/rois/sub-01/../../../evil", b"x")
    with pytest.raises(UnsafeKeyError, match="evil") as error:
        fetch()
    assert isinstance(error.value, BucketError)
    assert {*tmp_path.iterdir()} <= {data_dir}
    assert not [key for key in gets(own_server) if "evil" in key]


def test_two_keys_for_one_file(own_server, data_dir):
    own_server.put(FFA1.replace("FFA-1", "FFA1"), b"x")
    with pytest.raises(BucketError, match="FFA-1.*FFA1|FFA1.*FFA-1"):
        fetch()


def test_file_that_is_gone(server, data_dir):
    query = {"sessions": [1, 2], "rois": None}
    key = fetch(**query, dry_run=True).images_meta[0]["key"]
    server.faults[key] = (404, {}, b"")
    with pytest.raises(DownloadError, match="ses-01") as error:
        fetch(**query)
    assert [f["key"] for f in error.value.failed] == [key]
    assert len(list(data_dir.rglob("*Betas_statmap.nii.gz"))) == 1
    with pytest.warns(UserWarning, match="left out"):
        data = fetch(**query, allow_missing=True)
    assert sessions_of(data) == ["ses-02"]
    assert set(data.trials["session"]) == {"ses-02"}
    assert (data.trials["image_index"] == 0).all()
    server.faults.clear()
    assert len(fetch(**query).images) == 2


@pytest.mark.parametrize("trial_filter", [None, {"n_reps": 4}])
def test_betas_whose_trial_table_cannot_be_fetched(server, data_dir, trial_filter):
    """They are of no use without it, and are large: they are not fetched either."""
    query = {"sessions": [1, 2], "rois": None, "trial_filter": trial_filter}
    server.faults[table_of("ses-01")] = (404, {}, b"")
    with pytest.warns(UserWarning, match="left out"):
        data = fetch(**query, allow_missing=True)
    assert sessions_of(data) == ["ses-02"]
    (reason,) = [f["reason"] for f in data.failed if f["image_type"] == "betas"]
    assert "trial table" in reason
    betas = [key for key in gets(server) if key.endswith("Betas_statmap.nii.gz")]
    assert betas == [data.images_meta[0]["key"]]


def test_license_is_asked_for_data_only(server, data_dir, monkeypatch):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    with pytest.raises(LicenseNotAcceptedError, match="LAION_FMRI_LICENSE"):
        fetch(sessions=1)
    assert all(key.endswith(".tsv") for key in gets(server))
    table = table_of("ses-01", "sub-03")
    assert fetch_ids(table).images == [str(data_dir / table)]
    (data_dir / ".laion_fmri").mkdir(exist_ok=True)
    (data_dir / ".laion_fmri" / "license_accepted").touch()
    assert len(fetch(sessions=1, rois=None).images) == 1


def test_hidden_files_of_the_dataset_are_files(own_server, data_dir):
    hidden = "derivatives/freesurfer/sub-01/surf/.xdebug_mris_calc"
    query = {"image_type": "freesurfer", "rois": None}
    own_server.put(hidden, b"written by FreeSurfer")
    data = fetch(**query)
    assert str(data_dir / hidden) in data.images
    (data_dir / hidden).with_name(".DS_Store").touch()
    same(fetch(**query, mode="offline"), data)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}


# --- Tables with flaws ----------------------------------------------------------------

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
    ids="latin-1 quote quotes blanks mark crlf tabs twice numbers".split(),
)
def test_participants_in_another_spelling_are_read(cached, table):
    (cached / "participants.tsv").write_bytes(table)
    data = fetch("all", None, mode="offline", subject_filter={"age": 24})
    (meta,) = data.subjects_meta
    assert (meta["subject"], meta["age"], meta["sex"]) == ("sub-01", 24, "F")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "line 1, column age: .*participant_id"),
        ("name\tage\nsub-01\t30\n", "line 1, column age: .*participant_id"),
        (PARTICIPANTS + "sub-01\t25\tF\n", "line 4, column age: sub-01.*line 2"),
        (PARTICIPANTS.replace("\t24\tF", ""), "line 2, column age: it ends early"),
        (PARTICIPANTS.replace("24", "2\0"), "line 2, column age: .*NUL byte"),
        (PARTICIPANTS.replace("24", "24\tx"), "line 2, column age: .*4 cells"),
        (PARTICIPANTS.replace("sex", "age"), "line 1, column age: several"),
    ],
    ids="empty header twice short NUL long columns".split(),
)
def test_flaws_of_participants_stop_only_a_filter_that_needs_them(cached, table, words):
    (cached / "participants.tsv").write_text(table)
    for query in ({}, {"subject_filter": {"subject": "sub-01"}}):
        with pytest.warns(UserWarning, match=r"participants\.tsv is flawed \(line"):
            data = fetch(mode="offline", **query)
        assert len(data.images) == 4
        (meta,) = data.subjects_meta
        assert meta.get("age") is None
        assert meta.get("sex") == ("F" if "NUL" in words else None)
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


@pytest.fixture
def change_table(cached):
    """Change the lines of the trial table of session 2, which is in Latin-1."""

    def change(function):
        file = cached / table_of("ses-02")
        lines = function(file.read_text().splitlines())
        file.write_bytes("\n".join([*lines, ""]).encode("latin-1"))

    return change


def on_each(function):
    return lambda lines: [*map(function, lines)]


@pytest.mark.parametrize(
    "change",
    [
        on_each(lambda line: f"{line}\r"),
        lambda lines: ["\xef\xbb\xbf" + lines[0], *lines[1:]],
        on_each(lambda line: line.replace("label", " label ")),
        on_each(lambda line: re.sub("^(.*)\t", r'"\1"\t', line)),
        on_each(lambda line: f"{line}\t"),
        on_each(lambda line: re.sub("session|ses-02", "sub-09", line)),
        on_each(lambda line: line.replace("session", "subject")),
        lambda lines: [lines[0], *lines[:0:-1]],
        on_each(lambda line: "\t".join(line.split("\t")[::-1])),
        on_each(lambda line: f"more\t{line}"),
    ],
    ids="crlf mark blanks quotes tabs subject no-session rows columns more".split(),
)
def test_a_trial_table_in_another_spelling_is_read(change_table, change):
    expected = fetch(mode="offline").trials
    change_table(change)
    pd.testing.assert_frame_equal(fetch(mode="offline").trials, expected)


def with_cells(column, *cells):
    """Return a change of a column in the first rows; None removes the cell."""

    def change(lines):
        rows = [line.split("\t") for line in lines]
        for row, cell in zip(rows[1:], cells, strict=False):
            row[column : column + 1] = [] if cell is None else [cell]
        return map("\t".join, rows)

    return change


def test_labels_may_be_in_latin_1_or_look_like_nulls(change_table):
    change_table(with_cells(3, "sh\xe4red", "NA"))
    trials = fetch(sessions=2, mode="offline").trials
    assert trials["label"].tolist()[:2] == ["sh\xe4red", "NA"]
    assert trials["n_reps"].isna()[:2].all()


def test_a_run_that_is_not_a_number(change_table):
    """It is null or text, and other runs stay the numbers that they are."""
    expected = fetch(mode="offline").trials["run"].tolist()
    rows = [i for i, run in enumerate(expected) if run == 1]
    change_table(with_cells(1, "n/a", "1b"))
    for sessions in ([2], [1, 2], "all"):  # parsed alone, and with others
        runs = fetch(sessions=sessions, mode="offline").trials["run"]
        assert [run for run in runs if isinstance(run, str)] == ["1b"]
        assert runs.isna().sum() == 1
    differ = [a != b for a, b in zip(runs, expected, strict=True)]
    assert sum(differ) == 2
    ones = fetch(trial_filter={"run": 1}, mode="offline").trials
    assert len(ones) == len(rows) - 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_cells(3, "a", None), "line 3, column label"),
        (with_cells(3, "a", "b\0"), "line 3, column label"),
        (with_cells(3, "a", "b\tx"), "line 3: .*more cells"),
        (with_cells(2, "0", "one"), "line 3, .*beta_index: 'one'"),
        (with_cells(2, "0", "0"), "line 3, column beta_index: 0 is in line 2"),
    ],
    ids="short NUL long text twice".split(),
)
def test_a_damaged_trial_table_is_named_with_line_and_column(
    change_table, change, words
):
    change_table(change)
    with pytest.raises(CorruptImageError, match=f"sub-01_ses-02.*{words}"):
        fetch(mode="offline")


def test_trial_tables_that_are_missing_or_empty(cached, change_table):
    change_table(lambda lines: lines[:1])
    with pytest.raises(CorruptImageError, match="has a header, but no trials"):
        fetch(mode="offline")
    (cached / table_of("ses-02")).unlink()
    with pytest.warns(UserWarning, match=r"no trial table.*ses-02.*without trials"):
        data = fetch(mode="offline")
    assert data.sample_masks[1] is None
    assert 1 not in set(data.trials["image_index"])
    with pytest.warns(UserWarning, match=r"no trial table.*ses-02.*left out"):
        data = fetch(mode="offline", trial_filter={"n_reps": 4})
    assert "ses-02" not in sessions_of(data)


# --- What is said ---------------------------------------------------------------------


def test_what_is_said(server, data_dir, capsys):
    fetch(sessions=1, rois="FFA1", verbose=1)
    said = capsys.readouterr()
    assert said.out == ""
    assert "Downloading" in said.err
    assert str(data_dir) in said.err
    assert re.search(r"\d [kM]B", said.err)
    fetch(sessions=1, rois="FFA1", verbose=0)
    assert capsys.readouterr() == ("", "")


def test_named_sessions_without_a_trial_that_passes_are_told(on_disk, capsys):
    label = fetch(sessions=1).trials["label"][0]
    query = {"rois": None, "trial_filter": {"label": label}, "verbose": 1}
    left = sessions_of(fetch(**query))
    assert "no trial that passes" not in capsys.readouterr().err
    others = [f"ses-0{n} of sub-01" for n in range(1, 5) if f"ses-0{n}" not in left]
    assert others
    fetch(sessions=[1, 2, 3, 4], **query)
    said = capsys.readouterr().err
    words = f"^{', '.join(others)} ha(s|ve) no trial that passes$"
    assert re.search(words, said, re.MULTILINE)


def test_query_is_readable_and_without_settings(on_disk):
    asked = ResultFilter(n_reps=GreaterThan(4))
    data = fetch([1], sessions=range(1, 4), rois="FFA-1", trial_filter=asked)
    asked["n_reps"] = 4  # which changes nothing that was asked
    assert data.query == {
        "subjects": ["sub-01"],
        "sessions": ["ses-01", "ses-02", "ses-03"],
        "rois": ["FFA1"],
        "subject_filter": None,
        "image_filter": {"image_type": "betas"},
        "roi_filter": {"space": "T1w", "res": "1pt8", "extension": "nii.gz"},
        "trial_filter": {"n_reps": {"GreaterThan": [4]}},
        "max_images": None,
    }
    either = ResultFilter(n_reps=4) | {"run": 2}
    for again in (
        data,
        fetch(rois=["face", "PPA"], max_images=2, **OFTEN),
        fetch("all", None, image_type=MAPS, trial_filter=either),
    ):
        same(fetch(**json.loads(json.dumps(again.query))), again)


def test_a_query_with_functions_tells_their_names_and_is_refused(on_disk):
    data = pickle.loads(pickle.dumps(fetch(1, trial_filter=bool)))
    assert data.query["trial_filter"] == {"callable_filter": "bool"}
    with pytest.raises(InvalidQueryError, match=r"trial_filter.*function bool alone"):
        fetch(**data.query)


FEW = ResultFilter(n_reps=4)
MANY = ResultFilter(n_reps=12)
LABEL = "shared_12rep_THINGS+_kmeans_211_bracelet2.jpg"
RECENT = {"last_modified": GreaterThan("2000-01-01")}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"trial_filter": {"n_reps": "12"}}, r"n_reps is 12, 4 \(numbers, not text\)"),
        ({"trial_filter": {"label": Pattern("illusion")}}, "start.*or use Contains"),
        ({"trial_filter": {"label": "none such"}}, "none such'\\).$"),
        ({"trial_filter": MANY & {"n_reps": 4}}, rf"{re.escape(f'{MANY & FEW}')}\.$"),
        ({"subject_filter": {"rois": "FFA1"}}, r"rois.* \(lists, not text\)"),
        ({"subject_filter": {"subject": "1"}}, "subject_filter.*subject is sub-01"),
        ({"space": "MNI152"}, "the terms on images.*space is T1w"),
        ({"roi_filter": {"space": "MNI"}}, "ROI masks.*space is T1w, fsnative"),
        ({"last_modified": "2999-12-31"}, r"images.*last_modified is \d{4}-\d\d-\d\dT"),
        ({"image_filter": {"desc": "x", **RECENT}}, "the terms on images.*desc is "),
        ({"image_filter": bool, "outdated": True, "stat": "x"}, "the terms on images"),
    ],
)
def test_a_filter_that_nothing_passes_is_warned_of(plan, query, words):
    with pytest.warns(UserWarning, match=f"Nothing passes .*{words}"):
        data = plan(**query)
    assert (data.rois if "roi_filter" in query else data.images) == []


NEAREST = f"Among the candidates, {LABEL!r} is nearest"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            {"trial_filter": MANY | {"label": Pattern("illusion")}},
            "Nothing fulfils .*label=Pattern.* a part of trial_filter.*start.*Contains",
        ),
        (
            {"trial_filter": MANY & ~ResultFilter(dataset="LOAIN")},
            r"Nothing fulfils .*dataset='LOAIN'\), a part of trial.* is LAION, NSD",
        ),
        ({"trial_filter": MANY ^ {"run": "1"}}, r".*run='1'.*\(numbers, not text\)"),
        (
            {"trial_filter": MANY | (FEW & (ResultFilter(run=1) | {"run": 99}))},
            r"Nothing fulfils ResultFilter\(run=99\), a part",
        ),
        ({"roi_filter": ResultFilter(hemi="X") | {"roi": "PPA"}}, ".*'X'.*ROI mask"),
        (
            {"subject_filter": ResultFilter(subject="sub-01") | {"age": 200}},
            "Nothing fulfils .*age=200.*a part of subject_filter.*age is 24",
        ),
        ({"trial_filter": {"n_reps": GreaterThan("1")}}, ".*compares numbers as text"),
        ({"trial_filter": {"dataset": NotEqual("ood")}}, "1 of 1 value .*'ood'.*THING"),
        ({"trial_filter": {"n_reps": NotEqual("12")}}, "1 .*'12'.*numbers, not text"),
        ({"trial_filter": {"run": NotIn(1, "2")}}, "1 of 2 values .*nothing: '2'."),
        ({"trial_filter": {"n_reps": [12, 13]}}, "1 of 2 values of n_reps .*: 13."),
        ({"image_filter": {"session": NotEqual(1)}}, "1 .*: 1.*text, not numbers"),
        ({"subject_filter": {"rois": NotContains("FFA-1")}}, "1 .*'FFA-1'.*FFA1"),
        (
            {"trial_filter": {"label": [LABEL, LABEL.replace("211", "212")]}},
            f"1 of 2 values of label in trial_filter.*: 'sha.*{re.escape(NEAREST)}",
        ),
        (
            {"trial_filter": {"label": [LABEL, *(f"a{i}" for i in range(999))]}},
            "999 of 1,000 values of label in trial_filter match nothing: 'a0', 'a1'",
        ),
    ],
)
def test_each_part_of_a_filter_that_nothing_has_is_warned_of_once(plan, query, words):
    (text,) = warnings_of(plan, **query)
    assert re.match(words, text)


NOT_SHOWN = [f"shared_4rep_NSD_special{i}.jpg" for i in range(50)]


@pytest.mark.parametrize(
    "query",
    [
        *(
            {"trial_filter": trial_filter}
            for trial_filter in (
                *(None, MANY | {"label": Contains("illusion")}, {"label": LABEL}),
                *({"label": [LABEL, *NOT_SHOWN]}, {"label": NotIn(NOT_SHOWN[7])}),
                *({"run": range(1, 13)}, {"ood_type": None}, {"n_reps": NotIn(12)}),
                *({"dataset": NotEqual("OOD")}, {"ood_type": NotEqual(None)}),
                *({"label": NotContains("illusion")}, lambda trial: trial["run"] == 1),
            )
        ),
        {"last_modified": GreaterThan("2099-01-01")},
        {"image_filter": ResultFilter(size=NotNull()) | {"outdated": True}},
        {"rois": None, "roi_filter": {"hemi": "X"}},
    ],
)
def test_filters_without_a_fault_are_not_warned_of(plan, query):
    assert warnings_of(plan, **query) == []


def test_files_are_chosen_by_date(on_disk):
    for bound in (date(2020, 1, 1), pd.Timestamp(0, tz="Europe/Berlin"), "2020-01-01"):
        assert len(fetch(last_modified=GreaterThan(bound)).images) == 4
        assert fetch(last_modified=LessThan(bound)).images == []
