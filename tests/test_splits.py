"""Train/test splits: what they hold, where they are read, and what is refused."""

from __future__ import annotations

import copy
import csv
import inspect
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import unwritable
from policies import set_policy
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    cross_val_score,
    cross_validate,
    permutation_test_score,
)
from sklearn.utils import Bunch

from laion_fmri_fetchers import (
    IsIn,
    Pattern,
    ResultFilter,
    fetch_laion_fmri,
    fetch_laion_splits,
    fetch_laion_stimulus_metadata,
    load_betas,
)
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_bucket, serve_demo, serve_splits
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.splits import StimulusSplit

PUBLISHED = Path(
    os.environ.get("LAION_FMRI_TEST_SPLITS")
    or Path(__file__).parents[2] / "shared" / "splits.zip"
)
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_file(), reason="the published splits are not there"
)
TABLE = "stimuli/task-images_metadata.csv"
RANDOM = [f"random_{i}" for i in range(5)]
CLUSTER = [f"cluster_k5_{i}" for i in range(5)]
NAMES = [*RANDOM, *CLUSTER, "tau", "ood"]
WAYS = ("laion_fmri", "LAION_FMRI_SPLITS", "LAION_FMRI_SPLITS_URL")


def split_file(name, train, test, **changes):
    """A file of the published form, with some fields changed or removed (...)."""
    content = {
        "name": name,
        "pool": "some images",
        "splitter": "test",
        "params": {"method": "by hand"},
        "n_train": len(train),
        "n_test": len(test),
        "variants": [
            {"variant_id": 0, "train_ids": list(train), "test_ids": list(test)}
        ],
        **changes,
    }
    return json.dumps({k: v for k, v in content.items() if v is not ...}).encode()


def folds_of(images, sizes, prefix, **changes):
    """Files of a family whose test images are parts of a pool."""
    files, start = {}, 0
    for i, size in enumerate(sizes):
        test = images[start : start + size]
        train = [image for image in images if image not in set(test)]
        files[f"{prefix}_{i}"] = split_file(f"{prefix}_{i}", train, test, **changes)
        start += size
    assert start == len(images)
    return files


def write_files(folder, pool, files):
    for name, content in files.items():
        path = Path(folder, pool, f"{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def csv_of(labels):
    text = io.StringIO()
    csv.writer(text).writerows([["image_name"], *([label] for label in labels)])
    return text.getvalue().encode()


def kept(data_dir):
    folder = Path(data_dir, ".laion_fmri", "splits")
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.json"))


# --- The published splits ---------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """Pool -> name -> (train, test), as plain JSON reads them."""
    with zipfile.ZipFile(PUBLISHED) as archive:
        files = {
            tuple(name.removesuffix(".json").split("/")[-2:]): json.loads(
                archive.read(name)
            )
            for name in archive.namelist()
            if name.endswith(".json")
        }
    splits = {}
    for (pool, name), content in files.items():
        (variant,) = content["variants"]
        sides = variant["train_ids"], variant["test_ids"]
        splits.setdefault(pool, {})[name] = sides
    return splits


@pytest.fixture(scope="module")
def published_labels(published):
    labels = {
        label
        for splits in published.values()
        for sides in splits.values()
        for side in sides
        for label in side
    }
    assert len(labels) == 25_052
    return sorted(labels, reverse=True)


@pytest.fixture(scope="module")
def real_folder(published_labels, tmp_path_factory):
    """A data directory with a table of as many stimuli as were published."""
    folder = tmp_path_factory.mktemp("real") / "laion_fmri"
    with serve_bucket() as server, pytest.MonkeyPatch.context() as patch:
        server.put(TABLE, csv_of([*published_labels, "no label.jpg"]))
        patch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        fetch_laion_stimulus_metadata(data_dir=folder, verbose=0)
    return folder


@pytest.fixture
def real(real_folder, data_dir, monkeypatch):
    shutil.copytree(real_folder, data_dir)
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    return data_dir


@needs_published
@pytest.mark.parametrize(
    "pool", ["shared", "sub-01", "sub-03", "sub-05", "sub-06", "sub-07"]
)
def test_published_splits_are_what_plain_json_reads(
    pool, published, real, monkeypatch, no_network
):
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(PUBLISHED))
    with pytest.warns(UserWarning, match="generation 'a', independent draws, no folds"):
        data = fetch_laion_splits(pool=pool, verbose=0)
    assert list(data.splits) == NAMES
    assert len(published[pool]) == 12
    for name, (train, test) in published[pool].items():
        split = data.splits[name]
        assert (split.train, split.test) == (train, test)
        assert (split.name, split.pool) == (name, pool)
    assert data.source["tau"] == str(PUBLISHED)
    assert data.source["ood"] == "labels of the stimulus table"
    assert {data.generation[name] for name in RANDOM} == {"a"}
    assert data.generation["tau"] is None
    assert [len(split.test) for split in data.cluster_k5] == [
        len(published[pool][name][1]) for name in CLUSTER
    ]
    assert kept(real) == [f"{pool}/{n}.json" for n in ("cluster_k5", "random", "tau")]
    monkeypatch.delenv("LAION_FMRI_SPLITS")
    with pytest.warns(UserWarning, match="independent draws"):
        again = fetch_laion_splits(pool=pool, verbose=0)
    assert again == data


@needs_published
def test_params_are_those_of_the_file(real, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(PUBLISHED))
    data = fetch_laion_splits(["cluster_k5_3", "ood"], verbose=0)
    method = {"method": "kmeans_clip_k5_holdout", "held_out_cluster": 3}
    assert data["cluster_k5_3"].params == method
    assert data["ood"].params["ood_types"] == [
        *("cropped", "gabor", "gaudy", "illusion-classic", "illusion-natural"),
        *("relations", "selfmade", "shape", "unusual"),
    ]


@needs_published
@pytest.mark.parametrize(
    ("pool", "sizes", "are_right"),
    [
        ("shared", [225, 224, 224, 224, 224], True),
        ("shared", [224, 225, 224, 224, 224], False),
        ("sub-05", [1167, 1167, 1167, 1166, 1166], True),
        ("sub-05", [1166, 1167, 1167, 1167, 1166], False),
    ],
)
def test_five_folds_have_the_sizes_of_the_corrected_ones(
    pool, sizes, are_right, published, real, tmp_path, monkeypatch
):
    images = sorted(chain(*published[pool]["tau"]))
    params = {"method": "shuffled_5fold_cv"}
    if pool != "shared":
        params["revision"] = 2
    files = folds_of(images, sizes, "random", params=params)
    write_files(tmp_path / "mine", pool, files)
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "mine"))
    if not are_right:
        with pytest.raises(CorruptImageError, match=r"random tests on \(\d+, "):
            fetch_laion_splits("random", pool, verbose=0)
        assert kept(real) == []
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = fetch_laion_splits("random", pool, verbose=0)
    assert [len(fold.test) for fold in data.random] == sizes
    assert data.generation["random_0"] == ("b" if pool == "shared" else "c")


@needs_published
@pytest.mark.parametrize(
    ("pool", "name", "n_test", "published_size"),
    [("pooled", "tau", 4935, 4936), ("shared", "tau", 225, 224)],
)
def test_other_sizes_than_published_are_refused(
    pool,
    name,
    n_test,
    published_size,
    published_labels,
    published,
    real,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "mine"))
    images = [label for label in sorted(published_labels) if "_OOD_" not in label]
    if pool == "shared":
        images = sorted(chain(*published[pool]["tau"]))
    file = split_file(name, images[n_test:], images[:n_test])
    write_files(tmp_path / "mine", pool, {name: file})
    words = rf"tau tests on \({n_test},\) images; published are \({published_size},\)"
    with pytest.raises(CorruptImageError, match=words):
        fetch_laion_splits(name, pool, verbose=0)
    file = split_file(name, images[published_size:], images[:published_size])
    write_files(tmp_path / "mine", pool, {name: file})
    split = fetch_laion_splits(name, pool, verbose=0)[name]
    assert split.train == images[published_size:]


@needs_published
def test_clusters_of_the_shared_pool_have_their_sizes(
    published, real, tmp_path, monkeypatch
):
    images = sorted(chain(*published["shared"]["tau"]))
    files = folds_of(images, [248, 274, 246, 225, 128], "cluster_k5")
    write_files(tmp_path / "mine", "shared", files)
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "mine"))
    with pytest.raises(CorruptImageError, match=r"on \(248, 274, .* are \(274, 248, "):
        fetch_laion_splits("cluster_k5", verbose=0)


@needs_published
def test_a_term_of_many_labels_is_looked_up(published, published_labels):
    train, test = published["sub-01"]["tau"]
    split = StimulusSplit(train, test)
    trials = pd.DataFrame({"label": published_labels})
    expected = trials["label"].isin(train).to_numpy()
    filt = ResultFilter(label=split.is_train())
    assert (filt.mask(trials) == expected).all()
    assert [filt({"label": label}) for label in published_labels] == expected.tolist()


@pytest.fixture
def released(published_labels, data_dir, monkeypatch):
    """A data directory whose table lists images of later sessions, too."""

    def fetch_table(form):
        later = [form.format(i) for i in range(700)]
        with serve_bucket() as server, pytest.MonkeyPatch.context() as patch:
            server.put(TABLE, csv_of([*later, *published_labels]))
            patch.setenv("LAION_FMRI_BUCKET_URL", server.url)
            fetch_laion_stimulus_metadata(data_dir=data_dir, verbose=0)
        monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
        monkeypatch.setenv("LAION_FMRI_SPLITS", str(PUBLISHED))

    return fetch_table


@needs_published
@pytest.mark.parametrize(
    "form",
    [
        "shared_4rep_LAION_controversial_{}_i0.jpg",
        "shared_12rep_LAION_cluster_{}_later.jpg",
        "shared_4rep_newsource_{}.jpg",
    ],
)
@pytest.mark.parametrize("pool", ["shared", "sub-03"])
def test_shared_images_that_are_released_later_join_no_pool(
    form, pool, published, released
):
    released(form)
    with pytest.warns(UserWarning, match="generation 'a'"):
        data = fetch_laion_splits(pool=pool, verbose=0)
    for name, (train, test) in published[pool].items():
        assert sorted(data[name].train) == sorted(train)
        assert sorted(data[name].test) == sorted(test)
    trials = [*chain(*published[pool]["tau"]), form.format(3)]
    (text,) = warned_of(lambda: data["tau"].masks(trials))
    assert text.startswith(f"1 of {len(trials):,} rows are in neither set")


@needs_published
def test_the_pool_of_all_subjects_has_the_published_images(
    published_labels, released, tmp_path, monkeypatch
):
    released("shared_4rep_LAION_controversial_{}_i0.jpg")
    images = [label for label in sorted(published_labels) if "_OOD_" not in label]
    file = split_file("tau", images[4936:], images[:4936])
    write_files(tmp_path / "mine", "pooled", {"tau": file})
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "mine"))
    split = fetch_laion_splits("tau", "pooled", verbose=0)["tau"]
    assert len(split.train) + len(split.test) == 24_681


@needs_published
def test_more_images_than_published_are_refused(
    published, released, tmp_path, monkeypatch
):
    """Though the table lists them in the form of published ones."""
    form = "shared_12rep_LAION_cluster_{}_later.jpg"
    released(form)
    train, test = published["shared"]["tau"]
    for changed, words in (
        (
            [*train, form.format(1)],
            "does not split the 1,121 images of the pool shared",
        ),
        (train[1:], "does not split the 1,121 images of the pool shared"),
    ):
        file = split_file("tau", changed, test)
        write_files(tmp_path / "mine", "shared", {"tau": file})
        monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "mine"))
        with pytest.raises(CorruptImageError, match=words):
            fetch_laion_splits("tau", verbose=0)


# --- On the demo's images ---------------------------------------------------------


@pytest.fixture(scope="module")
def labels(bucket_folder):
    with open(bucket_folder / TABLE, encoding="utf-8", newline="") as stream:
        return [row["image_name"] for row in csv.DictReader(stream)]


@pytest.fixture
def pool(labels):
    """The images of the pool ``shared``."""
    return sorted(n for n in labels if n.startswith("shared_") and "_OOD_" not in n)


@pytest.fixture
def web(labels, server, data_dir, monkeypatch):
    """A server of splits in force, with the demo bucket and an empty directory."""
    with serve_splits(labels) as running:
        monkeypatch.setenv("LAION_FMRI_SPLITS_URL", running.url)
        set_policy(monkeypatch, first_wait=0.01)
        yield running


@pytest.fixture
def bucket_alone(server, data_dir, monkeypatch):
    """The demo bucket and an empty directory, and nothing that has splits."""
    set_policy(monkeypatch, first_wait=0.01)
    return data_dir


def test_pools_follow_from_labels(labels, pool, web):
    assert (len(pool), len(labels)) == (7, 116)
    numbers = {"shared": (), "sub-01": ("p01",), "sub-03": ("p04",)}
    numbers["pooled"] = ("p01", "p04")
    for name, ends in numbers.items():
        own = [n for n in labels if n.endswith(tuple(f"_{e}.jpg" for e in ends))]
        split = fetch_laion_splits("tau", name, verbose=0)["tau"]
        assert sorted(split.train + split.test) == sorted(pool + own)
        assert (len(own) > 0) == (name != "shared")


def test_images_released_later_change_no_split_of_the_demo(web, labels, pool, data_dir):
    later = [f"shared_4rep_LAION_controversial_{i}.jpg" for i in range(9)]
    before = fetch_laion_splits(verbose=0)
    with (
        serve_bucket() as bucket,
        serve_splits([*later, *labels]) as splits,
        pytest.MonkeyPatch.context() as patch,
    ):
        bucket.put(TABLE, csv_of([*later, *labels]))
        patch.setenv("LAION_FMRI_BUCKET_URL", bucket.url)
        for url in (web.url, splits.url):
            patch.setenv("LAION_FMRI_SPLITS_URL", url)
            after = fetch_laion_splits(mode="overwrite", verbose=0)
            assert after.splits == before.splits
            assert after["ood"].train == pool


def test_the_pool_of_a_subject_has_none_of_another(labels, web):
    ood = fetch_laion_splits("ood", "sub-03", verbose=0)["ood"]
    assert {n[-7:-4] for n in ood.train if n.startswith("unique_")} == {"p04"}
    assert len(ood.test) == 9


def test_ood_needs_no_file(bucket_alone, labels, pool):
    ood = fetch_laion_splits("ood", verbose=0)["ood"]
    assert ood.train == pool
    assert ood.test == sorted(n for n in labels if n.startswith("shared_4rep_OOD_"))
    assert kept(bucket_alone) == []


def test_ood_of_some_types(web):
    split = fetch_laion_splits(
        ["tau", "ood"], ood_types=["shape", "gabor"], verbose=0
    ).splits["ood"]
    assert split.test == [
        "shared_4rep_OOD_gabor_sf4.0_ori45.png",
        "shared_4rep_OOD_shape_blob_round-01.png",
    ]
    assert split.params["ood_types"] == ["gabor", "shape"]
    one = fetch_laion_splits("ood", ood_types="shape", verbose=0)["ood"]
    assert len(one.test) == 1


def test_a_bunch_finds_splits_by_name(web):
    data = fetch_laion_splits(verbose=0)
    assert data["tau"] is data.splits["tau"]
    assert data.tau is data.splits["tau"]
    assert list(data.random) == [data[name] for name in RANDOM]
    assert data["cluster_k5"][2] is data["cluster_k5_2"]
    assert set(data) == {
        *("splits", "random", "cluster_k5", "pool", "source", "generation"),
        "description",
    }
    assert "five folds" in data.description
    with pytest.raises(KeyError, match="did you mean 'tau'"):
        data["tao"]
    assert not hasattr(data, "tao")
    assert pickle.loads(pickle.dumps(data)) == data == copy.deepcopy(data)


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        ("tau", ["random", "cluster_k5", "random_0", "ood"]),
        (["random_0", "random_1", "random_2", "random_3"], ["random", "random_4"]),
        ("cluster_k5", ["random", "tau"]),
    ],
)
def test_what_was_not_fetched_is_no_key_and_its_access_says_what_to_fetch(
    names, lacking, web
):
    data = fetch_laion_splits(names, "sub-01", verbose=0)
    copies = [copy.copy(data), copy.deepcopy(data), pickle.loads(pickle.dumps(data))]
    for bunch in (data, *copies):
        assert bunch == data
        for name in lacking:
            words = rf"fetch_laion_splits\('{name}', 'sub-01'\)"
            with pytest.raises(AttributeError, match=words):
                getattr(bunch, name)
            with pytest.raises(KeyError, match=words):
                bunch[name]
            assert name not in bunch
            assert not hasattr(bunch, name)
            assert getattr(bunch, name, "default") == "default"
            assert name not in dir(bunch)
            assert f"{name} " not in repr(bunch)


def test_names_may_be_families_and_come_in_order(web):
    data = fetch_laion_splits(["tau", "cluster_k5", "cluster_k5_0"], verbose=0)
    assert list(data.splits) == ["tau", *CLUSTER]
    assert "random" not in data
    assert len(data.cluster_k5) == 5
    assert list(fetch_laion_splits(pool="pooled", verbose=0).splits) == [
        *CLUSTER,
        "tau",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": "tao"}, "did you mean 'tau'"),
        ({"names": "randon_0"}, "did you mean 'random_0'"),
        ({"names": []}, r"names is \[\]"),
        ({"names": 3}, "names is 3"),
        ({"names": ["tau", 3]}, "names holds 3"),
        ({"names": {"tau": 1}}, "names is {'tau': 1}"),
        ({"names": "random", "pool": "pooled"}, "no split 'random' of pool 'pooled'"),
        ({"names": "ood", "pool": "pooled"}, "no split 'ood' of pool 'pooled'"),
        ({"pool": "share"}, "did you mean 'shared'"),
        ({"pool": "sub-02"}, "There is no pool 'sub-02'"),
        ({"pool": None}, "There is no pool None"),
        ({"pool": "sub-07"}, "no images of pool 'sub-07'"),
        ({"ood_types": "shapes"}, "did you mean 'shape'"),
        ({"ood_types": []}, r"ood_types is \[\]"),
        ({"names": "tau", "ood_types": "shape"}, "names lacks 'ood'"),
        ({"mode": "sometimes"}, "mode is 'sometimes'"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, web):
    with pytest.raises(InvalidQueryError, match=words):
        fetch_laion_splits(**arguments, verbose=0)


@pytest.mark.parametrize("pool", ["sub-01", "01", 1, " SUB-01 "])
def test_a_subject_may_be_spelled_in_several_ways(pool, web):
    assert fetch_laion_splits("ood", pool, verbose=0).pool == "sub-01"


# --- Splits and trials ------------------------------------------------------------


@pytest.fixture
def tau(web):
    return fetch_laion_splits("tau", "sub-01", verbose=0)["tau"]


@pytest.fixture
def trials(cached):
    data = fetch_laion_fmri("sub-01", verbose=0, mode="offline")
    return data.trials


def test_masks_are_those_of_pandas(cached, web, trials, monkeypatch):
    split = fetch_laion_splits("tau", "sub-01", verbose=0)["tau"]
    train, test = split.masks(trials)
    assert train.dtype == test.dtype == bool
    assert (train == trials["label"].isin(split.train).to_numpy()).all()
    assert (test == trials["label"].isin(split.test).to_numpy()).all()
    assert 0 < test.sum() < train.sum()
    neither = trials["label"][~train & ~test]
    assert neither.str.contains("_OOD_|fixation").all()
    assert len(neither) > 30
    for other in (
        trials["label"],
        list(trials["label"]),
        trials["label"].to_numpy(),
        trials.set_index("label"),
        trials.set_index("label").index,
        trials.rename(columns={"label": "image_name"}),
        trials["label"].astype("category"),
        trials["label"].astype("string"),
    ):
        assert (split.masks(other)[1] == test).all()


def test_metadata_of_stimuli_are_masked_by_their_index(web, tau, labels):
    table = fetch_laion_stimulus_metadata(verbose=0).metadata
    assert (tau.masks(table)[1] == pd.Index(labels).isin(tau.test)).all()


def warned_of(function):
    """Texts of warnings of a call, also of those that are the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


def test_rows_in_neither_set_are_counted_with_their_pool(web, trials):
    tau = fetch_laion_splits("tau", verbose=0)["tau"]
    own, ood = (trials["label"].str.contains(x).sum() for x in ("^unique", "_OOD_"))
    (text,) = warned_of(lambda: tau.masks(trials))
    n_out = own + ood + 1
    assert text == (
        f"{n_out} of {len(trials)} rows are in neither set of <StimulusSplit 'tau' of "
        f"pool 'shared': 6 train, 1 test>, and left out: {own} of images unique to "
        f"sub-01, {ood} of images of OOD, 1 of images of no known source. Images "
        "unique to a subject are in the splits of that subject, as of "
        "fetch_laion_splits(pool='sub-01')."
    )
    assert warned_of(lambda: tau.masks(trials)) == [text]


def test_the_pool_of_another_subject_is_named(cached, web):
    trials = fetch_laion_fmri("sub-03", verbose=0, mode="offline").trials
    regular = trials[~trials["label"].str.contains("_OOD_")]
    folds = fetch_laion_splits("cluster_k5", "sub-01", verbose=0).cluster_k5
    for split in folds:
        try:
            (text,) = warned_of(lambda split=split: split.masks(regular))
        except InvalidQueryError:
            continue
        assert "of images unique to sub-03" in text
        assert "pool 'sub-01'" in text
        assert "fetch_laion_splits(pool='sub-03')" in text


def test_images_of_later_sessions_are_counted_as_shared():
    split = StimulusSplit(["a"], ["b"], "mine", "shared")
    later = "shared_4rep_LAION_controversial_3.jpg"
    with pytest.warns(UserWarning, match="1 of 3 rows .* 1 of images of LAION"):
        train, _ = split.masks(["a", "b", later])
    assert train.tolist() == [True, False, False]


def test_a_split_of_which_every_row_is_in_a_set_does_not_warn(trials, tau):
    chosen = trials[trials["label"].isin(tau.train + tau.test)]
    assert warned_of(lambda: tau.masks(chosen)) == []


@pytest.mark.parametrize(("labels", "side"), [(["a", "x"], "test"), (["b"], "train")])
def test_masks_of_which_one_is_empty_are_refused(labels, side):
    split = StimulusSplit(["a"], ["b"], "mine", "shared")
    with pytest.raises(InvalidQueryError, match=f"{len(labels)} rows shows a {side}"):
        split.masks(labels)


def test_null_labels_belong_to_neither():
    split = StimulusSplit(["a"], ["b"])
    with pytest.warns(UserWarning, match="2 of 4 rows .* of no known source"):
        train, test = split.masks(["a", None, float("nan"), "b"])
    assert train.tolist() == [True, False, False, False]
    assert test.tolist() == [False, False, False, True]


def test_a_bunch_stands_for_its_trials():
    split = StimulusSplit(["a"], ["b"])
    train, test = split.masks(Bunch(trials=pd.DataFrame({"label": ["b", "a"]})))
    assert (train.tolist(), test.tolist()) == ([False, True], [True, False])


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        (pd.DataFrame({"run": [1]}), "no column 'label'; it has index, run"),
        ({"trials": 1}, "trials is {'trials': 1}"),
        ([], r"trials is \[\]"),
        (None, "trials is None"),
        ([1, 2], "trials holds 1"),
        ([["a.jpg"], "b"], r"trials holds \['a.jpg'\]"),
        ({"a.jpg", "b.jpg"}, "is a set, whose order"),
    ],
)
def test_what_holds_no_labels_is_named(trials, words):
    with pytest.raises(InvalidQueryError, match=words):
        StimulusSplit(["a.jpg"], ["b.jpg"]).masks(trials)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (["a", "b"], ["b"], "'b' is in train or test twice"),
        (["a", "a"], ["b"], "'a' is in train or test twice"),
        (["a"], [1], "test holds 1"),
        ([], ["b"], r"train is \[\]"),
        (["a"], None, "test is None"),
        (["a"], {"b": 1}, "test is {'b': 1}; give names in a list"),
    ],
)
def test_a_split_is_of_different_labels(train, test, words):
    with pytest.raises(InvalidQueryError, match=words):
        StimulusSplit(train, test)


def test_labels_of_a_set_are_in_the_order_of_text():
    names = {f"image {i}.jpg" for i in range(9)}
    split = StimulusSplit(names, frozenset({"y", "x"}))
    assert split.train == sorted(names)
    assert split.test == ["x", "y"]


def test_a_split_decides_which_sessions_are_fetched(server, data_dir):
    """Images shown twelve times are in the odd sessions of sub-01 alone."""
    often = [
        "shared_12rep_LAION_cluster_1003_i0.jpg",
        "shared_12rep_THINGS+_kmeans_17_baby.jpg",
    ]
    split = StimulusSplit(["other.jpg"], often)
    data = fetch_laion_fmri(
        "sub-01", None, trial_filter={"label": split.is_test()}, verbose=0
    )
    assert [meta["session"] for meta in data.images_meta] == ["ses-01", "ses-03"]
    assert set(data.trials["label"]) == set(often)
    images = [
        key for _, key, _ in server.requests if key.endswith("Betas_statmap.nii.gz")
    ]
    assert {key.split("/")[3] for key in images} == {"ses-01", "ses-03"}
    # The query can be saved as JSON and asked again.
    query = json.loads(json.dumps(data.query))
    again = fetch_laion_fmri(
        "sub-01", None, trial_filter=query["trial_filter"], mode="offline", verbose=0
    )
    assert again.trials.equals(data.trials)


def test_terms_are_pickled_compared_and_shown_in_short():
    names = [f"image {i}.jpg" for i in range(1000)]
    split = StimulusSplit(names[:-60], names[-60:])
    term = split.is_train()
    assert term == IsIn(*names[:-60])
    assert term == "image 7.jpg"
    assert term != "image 999.jpg"
    assert pickle.loads(pickle.dumps(term)) == term
    assert len(pickle.dumps(term)) < 1.1 * len(pickle.dumps(tuple(names)))
    assert repr(term) == "IsIn('image 0.jpg', 'image 1.jpg', and 938 more)"
    filt = ResultFilter(label=term) & ~ResultFilter(label=split.is_test())
    assert len(repr(filt)) < 200
    assert pickle.loads(pickle.dumps(filt)) == filt


def test_many_values_accept_what_few_do():
    many = IsIn(*(f"x{i}" for i in range(60)), Pattern("a+b"), 1.5)
    assert many == "aab"
    assert many == 1.5
    assert many == "x59"
    assert many != "b"


def test_splits_are_pickled_compared_and_shown():
    params = {"method": {"name": "mine"}}
    split = StimulusSplit(["b", "a"], ["c"], "mine", "shared", params)
    same = StimulusSplit(["b", "a"], ["c"], "mine", "shared", params)
    assert split == same
    assert hash(split) == hash(same)
    assert pickle.loads(pickle.dumps(split)) == copy.deepcopy(split) == split
    others = [
        StimulusSplit(["a", "b"], ["c"], "mine", "shared", params),
        StimulusSplit(["b", "a"], ["d"], "mine", "shared", params),
        StimulusSplit(["b", "a"], ["c"], "other", "shared", params),
        StimulusSplit(["b", "a"], ["c"], "mine", "sub-01", params),
        StimulusSplit(["b", "a"], ["c"], "mine", "shared"),
    ]
    assert split not in others
    assert split != "mine"
    assert repr(split) == "<StimulusSplit 'mine' of pool 'shared': 2 train, 1 test>"
    with pytest.raises(AttributeError):
        split.train = []


# --- scikit-learn -----------------------------------------------------------------


@pytest.fixture
def betas(cached, web):
    """Single trials of sub-01, without OOD images, and a target."""
    data = fetch_laion_fmri("sub-01", ["FFA1"], [1, 2], verbose=0, mode="offline")
    loaded = load_betas(data, verbose=0)
    target = loaded.trials["label"].map(len).to_numpy(float)
    return loaded.data, target, loaded.trials


def scores_by_hand(x, y, labels, split):
    train, test = np.isin(labels, split.train), np.isin(labels, split.test)
    model = Ridge().fit(x[train], y[train])
    return model.score(x[test], y[test])


def test_scores_are_those_of_the_sets(betas, tau):
    x, y, trials = betas
    (score,) = cross_val_score(Ridge(), x, y, groups=trials["label"], cv=tau)
    assert score == pytest.approx(scores_by_hand(x, y, trials["label"], tau))
    assert tau.get_n_splits() == tau.get_n_splits(x, y, trials["label"]) == 1


@pytest.mark.parametrize("family", ["random", "cluster_k5"])
def test_families_are_splitters_of_five_folds(betas, web, family):
    x, y, trials = betas
    folds = fetch_laion_splits(pool="sub-01", verbose=0)[family]
    scores = cross_val_score(Ridge(), x, y, groups=trials["label"], cv=folds)
    by_hand = [scores_by_hand(x, y, trials["label"], fold) for fold in folds]
    assert scores == pytest.approx(by_hand)
    assert folds.get_n_splits() == len(folds) == 5
    assert repr(folds) == f"<StimulusFolds '{family}' of pool 'sub-01': 5 splits>"
    assert pickle.loads(pickle.dumps(folds)) == folds
    assert hash(pickle.loads(pickle.dumps(folds))) == hash(folds)
    assert folds != list(folds)


def test_averages_are_split_by_image(cached, tau):
    data = fetch_laion_fmri("sub-01", ["FFA1"], verbose=0, mode="offline")
    betas = load_betas(data, average_repeats=True, verbose=0)
    labels = betas.trials["label"]
    assert labels.is_unique
    done = cross_validate(
        DummyRegressor(),
        betas.data,
        np.zeros(len(labels)),
        groups=list(labels),
        cv=tau,
        return_indices=True,
    )
    (rows,) = done["indices"]["test"]
    assert set(labels.iloc[rows]) == set(tau.test) & set(labels)


def test_grids_are_searched_on_folds_and_in_processes(betas, web):
    x, y, trials = betas
    folds = fetch_laion_splits("random", "sub-01", verbose=0).random
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 1e6]}, cv=folds, n_jobs=2)
    search.fit(x, y, groups=trials["label"])
    assert search.n_splits_ == 5
    by_hand = np.mean([scores_by_hand(x, y, trials["label"], fold) for fold in folds])
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(by_hand)


@pytest.mark.parametrize("name", ["tau", "random"])
def test_rows_left_out_are_told_once_for_each_call(cached, web, name):
    """However often a search or a permutation test calls the splitter."""
    data = fetch_laion_fmri("sub-01", ["FFA1"], verbose=0, mode="offline")
    betas = load_betas(data, verbose=0)
    x, labels = betas.data, betas.trials["label"]
    y, given = x[:, 0], {"groups": labels}
    cv = fetch_laion_splits(pool="sub-01", verbose=0)[name]
    grid = {"alpha": [1.0, 10.0]}
    texts = [
        warned_of(lambda: cross_val_score(Ridge(), x, y, groups=labels, cv=cv)),
        warned_of(lambda: GridSearchCV(Ridge(), grid, cv=cv).fit(x, y, groups=labels)),
        warned_of(
            lambda: permutation_test_score(
                Ridge(), x, y, groups=labels, cv=cv, n_permutations=4
            )
        ),
        warned_of(
            lambda: cross_val_score(
                GridSearchCV(Ridge(), grid, cv=cv),
                *(x, y),
                groups=labels,
                params=given,
                cv=GroupKFold(3),
            )
        ),
    ]
    texts[2] = [text for text in texts[2] if "permutation_test" not in text]
    for each in texts:
        (text,) = each
        assert "rows are in neither set of <Stimulus" in text
        assert f"{name!r} of pool 'sub-01'" in text


@pytest.mark.parametrize("name", ["tau", "random"])
def test_permutations_within_images_are_told(name, web, data_dir):
    """With groups, scikit-learn permutes y only among the repeats of an image."""
    splits = fetch_laion_splits(pool="sub-01", verbose=0)
    cv, tau = splits[name], splits["tau"]
    labels = np.repeat(tau.train + tau.test, 4)
    y = np.repeat(np.random.default_rng(0).normal(size=len(labels) // 4), 4)
    x = y[:, None]  # which tells y without error
    options = {"n_permutations": 19, "random_state": 0}
    done = []

    def test(**given):
        done.append(permutation_test_score(Ridge(), x, y, **given, **options))

    (text,) = warned_of(lambda: test(groups=labels, cv=cv))
    assert "permutes y only among rows of the same image" in text
    assert done[-1][2] == 1  # of a perfect model
    once = np.arange(0, len(labels), 4)
    x, y, labels = x[once], y[once], labels[once]
    rows = list(cv.split(x, groups=labels))
    assert warned_of(lambda: test(cv=rows)) == []
    assert done[-1][2] == 1 / 20


def test_a_search_within_a_permutation_test_is_no_such_test(web, data_dir):
    tau = fetch_laion_splits("tau", "sub-01", verbose=0)["tau"]
    labels = tau.train + tau.test
    x = np.arange(len(labels), dtype=float)[:, None]
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 10.0]}, cv=tau)
    rows = np.arange(len(labels))
    known = inspect.signature(permutation_test_score).parameters
    name = "params" if "params" in known else "fit_params"  # before scikit-learn 1.6

    def test():
        permutation_test_score(
            *(search, x, x[:, 0]),
            cv=[(rows, rows)],
            n_permutations=2,
            **{name: {"groups": labels}},
        )

    assert warned_of(test) == []


def test_rows_of_another_kind_are_told_in_the_same_line():
    split = StimulusSplit(["a"], ["b"], "mine", "shared")
    texts = []
    for more in ("x", "unique_THINGS_a_p01.jpg", "unique_THINGS_a_p04.jpg", "x"):
        rows = ["a", "b", more]
        texts.append(warned_of(lambda rows=rows: list(split.split(rows, groups=rows))))
    assert [len(text) for text in texts] == [1, 1, 1, 0]
    assert "unique to sub-03" in texts[2][0]


def test_the_line_of_a_warning_is_that_of_the_user(betas, tau):
    x, y, trials = betas
    with pytest.warns(UserWarning, match="in neither set") as caught:
        cross_val_score(Ridge(), x, y, groups=trials["label"], cv=tau)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("average_repeats", [False, True])
def test_groups_of_betas_are_taken(cached, tau, average_repeats, tmp_path):
    data = fetch_laion_fmri("sub-01", ["FFA1"], [1, 2], verbose=0, mode="offline")
    betas = load_betas(data, average_repeats=average_repeats, verbose=0)
    betas.save(tmp_path / "betas.npz")
    y = betas.trials["label"].map(len).to_numpy(float)
    expected = cross_val_score(
        Ridge(), betas.data, y, groups=betas.trials["label"], cv=tau
    )
    for loaded in (betas, load_betas(tmp_path / "betas.npz")):
        groups = loaded.groups["label"]
        for given in (groups, list(groups), pd.Categorical(groups)):
            scores = cross_val_score(Ridge(), loaded.data, y, groups=given, cv=tau)
            assert (scores == expected).all()
        wanted = y > np.median(y)
        train, test = next(tau.split(y[wanted], groups=groups[wanted]))
        assert set(groups[wanted][test]) <= set(tau.test)
        assert set(groups[wanted][train]) <= set(tau.train)


def test_metadata_routing_passes_labels_on(betas, tau):
    x, y, trials = betas
    with sklearn.config_context(enable_metadata_routing=True):
        scores = cross_val_score(
            LinearRegression(), x, y, params={"groups": trials["label"]}, cv=tau
        )
    assert len(scores) == 1


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, r"pass groups=trials\['label'\]"),
        (["a", "b"], "X has 3 rows, groups 2 labels"),
        ([0, 1, 2], "groups holds 0, which is no name"),
        (np.zeros(3, int), r"groups holds (np.int64\()?0"),
        (["0", "1", "1"], "None of the 3 rows shows a train image"),
        (["b", "b", "c"], "None of the 3 rows shows a train image of <StimulusSplit"),
        (["a", "a", "c"], "None of the 3 rows shows a test image"),
    ],
)
def test_groups_must_be_the_labels_of_rows(groups, words):
    split = StimulusSplit(["a"], ["b"])
    with pytest.raises(InvalidQueryError, match=words):
        cross_val_score(
            DummyRegressor(), np.zeros((3, 1)), np.zeros(3), groups=groups, cv=split
        ) if groups is None or len(groups) == 3 else next(
            split.split(np.zeros((3, 1)), groups=groups)
        )


# --- Where splits are read ---------------------------------------------------------


def test_files_are_read_over_http_once(web, no_network_later):
    first = fetch_laion_splits(verbose=0)
    assert sorted(web.requests) == sorted(
        f"shared/{name}.json" for name in NAMES if name != "ood"
    )
    assert first.source["tau"] == web.url
    assert first.generation["random_2"] == "b"
    file = json.loads(web.files["shared/tau.json"])
    assert first["tau"].test == file["variants"][0]["test_ids"]
    web.requests.clear()
    assert fetch_laion_splits(verbose=0) == first
    assert web.requests == []
    no_network_later()
    assert fetch_laion_splits(verbose=0, mode="offline") == first


@pytest.fixture
def no_network_later(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    def close():
        import socket

        monkeypatch.setattr(socket, "socket", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return close


def test_what_is_read_offline_imports_no_http_client(web, data_dir):
    fetch_laion_splits(verbose=0)
    code = (
        "import sys; from laion_fmri_fetchers import fetch_laion_splits; "
        "print(len(fetch_laion_splits(verbose=0).splits)); "
        "print([m for m in ('requests', 'urllib3') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LAION_FMRI_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["12", "[]"]


def test_many_processes_may_read_at_once(web, data_dir):
    fetch_laion_stimulus_metadata(verbose=0)
    code = (
        "from laion_fmri_fetchers import fetch_laion_splits; "
        "print(hash(str(sorted(fetch_laion_splits(verbose=0)['tau'].test))))"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(4)
    ]
    results = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(results) == 1
    folder = data_dir / ".laion_fmri" / "splits" / "shared"
    names = {"cluster_k5.json", "random.json", "tau.json"}
    assert {path.name for path in folder.iterdir()} == names


def test_only_what_is_named_is_read(web, data_dir):
    fetch_laion_splits(["tau", "cluster_k5_1"], verbose=0)
    # A family is of one version only if all of it is read at once.
    assert sorted(web.requests) == [f"shared/{n}.json" for n in [*CLUSTER, "tau"]]
    assert kept(data_dir) == ["shared/cluster_k5.json", "shared/tau.json"]


def test_overwrite_reads_again(web):
    fetch_laion_splits("tau", verbose=0)
    file = json.loads(web.files["shared/tau.json"])
    (variant,) = file["variants"]
    changed = split_file("tau", variant["test_ids"], variant["train_ids"])
    web.files["shared/tau.json"] = changed
    assert fetch_laion_splits("tau", verbose=0)["tau"].test == variant["test_ids"]
    for mode in ("overwrite", "offline"):
        split = fetch_laion_splits("tau", mode=mode, verbose=0)["tau"]
        assert split.test == variant["train_ids"]


def test_the_sources_are_told(web, capsys):
    fetch_laion_splits(["tau", "random", "ood"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        f"7 splits of pool 'shared', 7 images, from {web.url}, labels of the stimulus "
        "table"
    )
    fetch_laion_splits("tau", verbose=0)
    assert capsys.readouterr().err == ""


@pytest.fixture
def package(tmp_path, monkeypatch, pool):
    """A folder of splits in an installed package that must not be imported."""
    folder = tmp_path / "site" / "laion_fmri"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(folder.parent)
    return folder / "splits" / "data"


def tau_of(images, number):
    """A split that can be told by its one test image."""
    test = [images[number]]
    return split_file("tau", [i for i in images if i not in test], test)


def test_sources_are_asked_in_their_order(web, package, pool, tmp_path, monkeypatch):
    write_files(package, "shared", {"tau": tau_of(pool, 0)})
    write_files(tmp_path / "named", "shared", {"tau": tau_of(pool, 1)})
    web.files["shared/tau.json"] = tau_of(pool, 2)
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "named"))

    def read(mode="overwrite"):
        data = fetch_laion_splits("tau", mode=mode, verbose=0)
        return data["tau"].test, data.source["tau"]

    assert read() == ([pool[0]], str(package))
    assert "laion_fmri" not in sys.modules
    shutil.rmtree(package)
    assert read("download_new") == ([pool[0]], str(package))
    assert read() == ([pool[1]], str(tmp_path / "named"))
    monkeypatch.delenv("LAION_FMRI_SPLITS")
    assert web.requests == []
    assert read() == ([pool[2]], web.url)
    assert read("offline") == ([pool[2]], web.url)


def test_what_a_source_lacks_is_read_from_the_next(web, package, pool):
    write_files(package, "shared", {"tau": tau_of(pool, 0)})
    data = fetch_laion_splits(["tau", "cluster_k5"], verbose=0)
    assert data["tau"].test == [pool[0]]
    assert data.source["cluster_k5_4"] == web.url
    assert len(web.requests) == 5


def test_an_installed_package_of_other_images_is_passed_over(web, package, pool):
    write_files(package, "shared", {"tau": split_file("tau", ["a.jpg"], ["b.jpg"])})
    data = fetch_laion_splits("tau", verbose=0)
    assert data.source["tau"] == web.url


@needs_published
def test_a_damaged_package_is_an_error_with_the_real_images(real, package):
    write_files(package, "shared", {"tau": split_file("tau", ["a.jpg"], ["b.jpg"])})
    with pytest.raises(CorruptImageError, match=f"{package} are not valid"):
        fetch_laion_splits("tau", verbose=0)


@pytest.mark.parametrize("root", ["", "data", "splits/data", "laion_fmri/splits/data"])
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_folder_or_archive_may_be_any_part_of_the_repository(
    kind, root, bucket_alone, pool, tmp_path, monkeypatch
):
    folder = tmp_path / "named"
    write_files(folder / root, "shared", {"tau": tau_of(pool, 3)})
    place = folder
    if kind == "archive":
        place = Path(shutil.make_archive(str(tmp_path / "named"), "zip", folder))
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(place))
    assert fetch_laion_splits("tau", verbose=0)["tau"].test == [pool[3]]


def test_an_archive_of_the_repository_has_a_folder_at_its_top(
    bucket_alone, pool, tmp_path, monkeypatch
):
    archive = tmp_path / "repository.zip"
    with zipfile.ZipFile(archive, "w") as target:
        top = "LAION-fMRI-cf82765"
        target.writestr(
            f"{top}/laion_fmri/splits/data/shared/tau.json", tau_of(pool, 1)
        )
        target.writestr(f"{top}/archive/shared/tau.json", tau_of(pool, 2))
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(archive))
    assert fetch_laion_splits("tau", verbose=0)["tau"].test == [pool[1]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no folder or zip archive"),
        (lambda path: path.write_bytes(b"no archive"), "no folder or zip archive"),
    ],
)
def test_a_place_that_has_no_splits_is_named(
    make, words, bucket_alone, tmp_path, monkeypatch
):
    make(tmp_path / "place")
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "place"))
    with pytest.raises(InvalidQueryError, match=words):
        fetch_laion_splits("tau", verbose=0)


@pytest.mark.parametrize(
    "url",
    ["splits.example.org", "ftp://example.org", "https://", "https://x.org/?token=1"],
)
def test_an_address_must_be_one(url, bucket_alone, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_SPLITS_URL", url)
    with pytest.raises(InvalidQueryError, match="must be an http") as caught:
        fetch_laion_splits("tau", verbose=0)
    assert "token" not in str(caught.value)


# --- No source ---------------------------------------------------------------------


def test_without_a_network_every_way_is_named(bucket_alone):
    with pytest.raises(DownloadError) as caught:
        fetch_laion_splits(verbose=0)
    text = str(caught.value)
    for word in (*WAYS, "splits random of", "127.0.0.1:9", "refused"):
        assert word in text
    assert [failure["id"] for failure in caught.value.failed] == ["random"]
    assert kept(bucket_alone) == []


def test_offline_every_way_is_named(bucket_alone, no_network_later, monkeypatch):
    fetch_laion_splits("ood", verbose=0)
    monkeypatch.delenv("LAION_FMRI_SPLITS_URL")
    no_network_later()
    with pytest.raises(NotCachedError) as caught:
        fetch_laion_splits("random", verbose=0, mode="offline")
    for word in (*WAYS, "mode='download_new'", "https://raw.githubusercontent.com/"):
        assert word in str(caught.value)


def test_offline_without_the_table_there_are_no_pools(data_dir, no_network):
    data_dir.mkdir()
    with pytest.raises(NotCachedError, match="metadata.csv"):
        fetch_laion_splits("ood", mode="offline")


def test_without_bucket_and_table_it_is_the_bucket_that_is_missed(
    data_dir, monkeypatch
):
    set_policy(monkeypatch, first_wait=0.01)
    with pytest.raises(BucketError, match="metadata.csv"):
        fetch_laion_splits("tau", verbose=0)


def test_a_password_in_an_address_is_refused_and_not_shown(bucket_alone, monkeypatch):
    url = "http://ada:secret@127.0.0.1:9/splits"
    monkeypatch.setenv("LAION_FMRI_SPLITS_URL", url)
    with pytest.raises(InvalidQueryError, match="without a login") as caught:
        fetch_laion_splits("tau", verbose=0)
    assert "secret" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="needs permissions")
def test_a_directory_that_cannot_be_written_takes_splits_from_a_folder(
    bucket_alone, pool, monkeypatch, tmp_path
):
    folder = tmp_path / "laion_fmri"
    fetch_laion_stimulus_metadata(data_dir=folder, verbose=0)
    write_files(tmp_path / "named", "shared", {"tau": tau_of(pool, 1)})
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "named"))
    with (
        unwritable(tmp_path, *tmp_path.rglob("*")),
        pytest.warns(UserWarning, match="cannot be written"),
    ):
        data = fetch_laion_splits("tau", data_dir=folder, verbose=0)
    assert data["tau"].test == [pool[1]]


# --- Servers -----------------------------------------------------------------------


def after(*answers):
    """Answers in turn; None is the file itself."""
    each = iter(answers)
    return lambda: next(each, None)


@pytest.mark.parametrize(
    "answer", [(503, {"Retry-After": "0"}, b""), (429, {}, b""), (500, {}, b"")]
)
def test_a_busy_server_is_asked_again(answer, web):
    web.answers["shared/tau.json"] = after(answer, answer)
    fetch_laion_splits("tau", verbose=0)
    assert web.requests == ["shared/tau.json"] * 3


def test_a_body_that_ends_early_is_asked_for_again(web):
    file = web.files["shared/tau.json"]
    length = {"Content-Length": str(len(file)), "Connection": "close"}
    web.answers["shared/tau.json"] = after((200, length, file[:-20]))
    assert fetch_laion_splits("tau", verbose=0)["tau"].pool == "shared"
    assert len(web.requests) == 2


def test_redirects_are_followed(web):
    web.files["elsewhere/tau.json"] = web.files["shared/tau.json"]
    target = {"Location": f"{web.url}/elsewhere/tau.json"}
    web.answers["shared/tau.json"] = (302, target, b"")
    fetch_laion_splits("tau", verbose=0)
    assert web.requests == ["shared/tau.json", "elsewhere/tau.json"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, {}, b""), "status 403"),
        ((503, {}, b""), "status 503"),
        ((404, {}, b""), "does not have them"),
        ((302, {"Location": "/splits/shared/tau.json"}, b""), "redirects in a circle"),
        ((200, {"Content-Encoding": "gzip"}, b"not gzip"), "cannot be unpacked"),
    ],
)
def test_what_a_server_refuses_is_an_error(answer, words, web, data_dir):
    web.answers["shared/tau.json"] = answer
    with pytest.raises(DownloadError, match=words) as caught:
        fetch_laion_splits("tau", verbose=0)
    assert all(way in str(caught.value) for way in WAYS)
    assert kept(data_dir) == []


def test_an_http_server_other_than_the_demos(labels, server, data_dir, tmp_path):
    """Any server of files will do, as one started on a shell."""
    with serve_splits(labels) as made:
        for path, content in made.files.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(content)
    code = (
        "import http.server, functools; "
        "handler = functools.partial(http.server.SimpleHTTPRequestHandler, "
        f"directory={str(tmp_path)!r}); "
        "running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler); "
        "print(running.server_port, flush=True); running.serve_forever()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        try:
            url = f"http://127.0.0.1:{process.stdout.readline().strip()}/"
            patch.setenv("LAION_FMRI_SPLITS_URL", url)
            data = fetch_laion_splits(verbose=0)
        finally:
            process.kill()
    assert data.source["tau"] == url.rstrip("/")
    assert len(data.splits) == 12


# --- Files that are not what they should be ----------------------------------------


def deep(levels):
    return b'{"name":"tau","params":' + b"[" * levels + b"]" * levels + b"}"


BAD_FILES = {
    "empty": (lambda train, test: b"", "it is not JSON"),
    "cut": (lambda train, test: split_file("tau", train, test)[:-9], "it is not JSON"),
    "of bytes": (lambda train, test: b"\xff\xfe\x00\xd8", "it is not JSON"),
    "deep": (lambda train, test: deep(100_000), "it is not JSON"),
    "of long numbers": (lambda train, test: b"9" * 10_000, "it is not JSON"),
    "a list": (lambda train, test: b"[1, 2]", "no single variant of"),
    "of another name": (
        lambda train, test: split_file("random_0", train, test),
        "it is named 'random_0'",
    ),
    "without variants": (
        lambda train, test: split_file("tau", train, test, variants=...),
        "no single variant of",
    ),
    "of two variants": (
        lambda train, test: split_file("tau", train, test, variants=[{}, {}]),
        "no single variant of",
    ),
    "of a wrong variant": (
        lambda train, test: split_file("tau", train, test, variants=["train_ids"]),
        "no single variant of",
    ),
    "of text for labels": (
        lambda train, test: split_file(
            "tau", "abc", test, variants=[{"train_ids": "a", "test_ids": test}]
        ),
        "images of the pool shared; 'a' differs",
    ),
    "of numbers": (lambda train, test: split_file("tau", [*train, 1], test), "holds 1"),
    "of lists": (
        lambda train, test: split_file("tau", [*train, ["a"]], test),
        r"holds \['a'\]",
    ),
    "without test": (
        lambda train, test: split_file("tau", train + test, []),
        r"test is \[\]",
    ),
    "overlapping": (
        lambda train, test: split_file("tau", train + test, test),
        "is in train or test twice",
    ),
    "with repeats": (
        lambda train, test: split_file("tau", train + train[:1], test),
        "is in train or test twice",
    ),
    "partial": (
        lambda train, test: split_file("tau", train[1:], test),
        "does not split the 7 images of the pool shared; 'shared_12rep.* differs",
    ),
    "with OOD": (
        lambda train, test: split_file(
            "tau", [*train, "shared_4rep_OOD_selfmade_kitchen.jpg"], test
        ),
        "the pool shared; '.*selfmade_kitchen.jpg' differs",
    ),
    "of another subject": (
        lambda train, test: split_file(
            "tau", [*train, "unique_THINGS_air_pump_p04.jpg"], test
        ),
        "the pool shared; '.*air_pump_p04.jpg' differs",
    ),
    "of unsafe labels": (
        lambda train, test: split_file("tau", [*train, "../../../etc/\x1b[2J"], test),
        r"etc/\\x1b\[2J' differs",
    ),
}


@pytest.mark.parametrize(
    ("case", "kind"),
    [*((case, "folder") for case in BAD_FILES), ("cut", "web"), ("cut", "archive")],
)
def test_a_bad_file_is_an_error_and_nothing_is_kept(
    case, kind, web, pool, data_dir, tmp_path, monkeypatch
):
    make, words = BAD_FILES[case]
    content = make(pool[:-1], pool[-1:])
    if kind == "web":
        web.files["shared/tau.json"] = content
    else:
        write_files(tmp_path / "named", "shared", {"tau": content})
        place = tmp_path / "named"
        if kind == "archive":
            place = shutil.make_archive(str(place), "zip", place)
        monkeypatch.setenv("LAION_FMRI_SPLITS", str(place))
    with pytest.raises(CorruptImageError, match=words) as caught:
        fetch_laion_splits("tau", verbose=0)
    assert len(str(caught.value)) < 900
    assert caught.value.__suppress_context__  # of the error of another library
    assert kept(data_dir) == []


def test_a_family_must_be_whole(web, data_dir):
    del web.files["shared/random_3.json"]
    with pytest.raises(CorruptImageError, match=r"random_3.json: it is missing"):
        fetch_laion_splits("random_0", verbose=0)
    assert kept(data_dir) == []


def test_clusters_must_be_a_partition(web, data_dir):
    file = json.loads(web.files["shared/cluster_k5_0.json"])
    web.files["shared/cluster_k5_1.json"] = json.dumps(
        {**file, "name": "cluster_k5_1"}
    ).encode()
    with pytest.raises(CorruptImageError, match="tested on twice, or never"):
        fetch_laion_splits("cluster_k5", verbose=0)
    assert kept(data_dir) == []


def draws_of(images):
    """Files of five random draws that are no folds."""
    return {
        f"random_{i}": split_file(
            f"random_{i}",
            [image for image in images if image != images[max(i, 1)]],
            [images[max(i, 1)]],
            params={"method": "uniform_random", "seed": i},
        )
        for i in range(5)
    }


def folds_of_generation(images, revision=None):
    """Files of five folds, with the parameters that the published ones have."""
    params = {"method": "shuffled_5fold_cv", "k": 5, "seed": 42}
    if revision:
        params["revision"] = revision
    sizes = [len(images) // 5 + (i < len(images) % 5) for i in range(5)]
    files = folds_of(images, sizes, "random")
    for i, (name, file) in enumerate(files.items()):
        content = {**json.loads(file), "params": {**params, "fold": i}}
        files[name] = json.dumps(content).encode()
    return files


def put(web, pool, files):
    web.files.update({f"{pool}/{name}.json": file for name, file in files.items()})


@pytest.mark.parametrize(
    ("pool_name", "make", "generation", "words"),
    [
        ("shared", draws_of, "a", "no folds: some images are tested on often"),
        ("sub-01", draws_of, "a", "no folds: some images are tested on often"),
        ("shared", folds_of_generation, "b", None),
        ("sub-01", folds_of_generation, "b", "known duplicates leak"),
        ("sub-01", lambda images: folds_of_generation(images, 2), "c", None),
        (
            "shared",
            lambda images: folds_of_generation(images, 2),
            "revision 2",
            "does not know",
        ),
        (
            "sub-01",
            lambda images: folds_of_generation(images, 3),
            "revision 3",
            "does not know",
        ),
    ],
)
def test_generations_of_random_splits_are_told_and_former_ones_warn(
    pool_name, make, generation, words, web, labels, pool
):
    own = [n for n in labels if n.endswith("_p01.jpg")] if pool_name != "shared" else []
    put(web, pool_name, make(sorted(pool + own)))
    for mode in ("download_new", "overwrite", "offline"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = fetch_laion_splits("random", pool_name, mode=mode, verbose=0)
        texts = [str(warning.message) for warning in caught]
        assert len(texts) == (words is not None)
        if words:
            assert words in texts[0]
            assert f"pool {pool_name!r} from {web.url}" in texts[0]
        assert set(data.generation.values()) == {generation}
        assert data["random_1"].generation == data.random[0].generation == generation
    copied = pickle.loads(pickle.dumps(data["random_1"]))
    assert copied == data["random_1"]
    assert copied.generation == generation


def test_a_warning_of_a_former_generation_says_how_to_get_the_current_one(
    web, pool, tmp_path, monkeypatch
):
    """What is kept stays until it is overwritten from a source that was updated."""
    write_files(tmp_path / "old", "shared", draws_of(pool))
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "old"))
    advice = "unset LAION_FMRI_SPLITS if it names it, and use mode='overwrite'"
    with pytest.warns(UserWarning, match=advice):
        old = fetch_laion_splits("random", verbose=0)
    monkeypatch.delenv("LAION_FMRI_SPLITS")
    with pytest.warns(UserWarning, match=f"'b' is current.* {advice}"):
        assert fetch_laion_splits("random", verbose=0) == old
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = fetch_laion_splits("random", mode="overwrite", verbose=0)
        assert fetch_laion_splits("random", verbose=0) == new
        fetch_laion_splits(["tau", "cluster_k5"], verbose=0)
    assert new.generation["random_0"] == "b"


@pytest.mark.parametrize("revisions", [(None, 2), (2, None)])
def test_random_splits_of_several_generations_are_refused(
    revisions, web, labels, pool, data_dir
):
    images = sorted(pool + [n for n in labels if n.endswith("_p01.jpg")])
    first, others = (folds_of_generation(images, revision) for revision in revisions)
    put(web, "sub-01", {**others, "random_0": first["random_0"]})
    with pytest.raises(CorruptImageError, match="not of one generation"):
        fetch_laion_splits("random", "sub-01", verbose=0)
    assert kept(data_dir) == []


def test_folds_that_are_no_partition_are_refused(web, pool, data_dir):
    """Files that say that they are folds are not taken for the draws of May 2026."""
    files = folds_of_generation(pool)
    test = json.loads(files["random_1"])["variants"][0]["test_ids"]
    files["random_0"] = split_file(
        "random_0",
        [image for image in pool if image not in test],
        test,
        params={"method": "shuffled_5fold_cv", "fold": 0},
    )
    put(web, "shared", files)
    with pytest.raises(CorruptImageError, match="tested on twice, or never"):
        fetch_laion_splits("random", verbose=0)
    assert kept(data_dir) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"{"),
        lambda file: file.write_bytes(b"[" * 100_000),
        lambda file: file.write_bytes(b'"text"'),
        lambda file: file.write_bytes(b'{"source": 1, "files": {}}'),
        lambda file: file.write_bytes(b'{"source": "x", "files": {"tau": 3}}'),
        lambda file: file.write_bytes(file.read_bytes().replace(b"shared_12", b"x")),
        lambda file: os.truncate(file, 2**27),
    ],
)
def test_a_damaged_file_of_the_cache_is_read_anew(damage, web, data_dir):
    first = fetch_laion_splits("tau", verbose=0)
    file = data_dir / ".laion_fmri" / "splits" / "shared" / "tau.json"
    damage(file)
    with (
        pytest.warns(UserWarning, match=r"tau.json cannot be used"),
        pytest.raises(NotCachedError),
    ):
        fetch_laion_splits("tau", mode="offline", verbose=0)
    with pytest.warns(UserWarning, match=r"tau.json cannot be used"):
        assert fetch_laion_splits("tau", verbose=0) == first
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch_laion_splits("tau", mode="offline", verbose=0) == first


def archive_with(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def damaged(content):
    """Flip bits of what is packed, between the first name and the directory."""
    at = content.index(b"tau.json") + 40
    return (
        content[:at]
        + bytes(b ^ 255 for b in content[at : at + 20])
        + content[at + 20 :]
    )


def locked(content):
    """Say in both headers that a password is needed."""
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(mark) + offset
        content = content[:at] + b"\x01" + content[at + 1 :]
    return content


def of_a_strange_method(content):
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = content.index(mark) + offset
        content = content[:at] + b"\x63" + content[at + 1 :]
    return content


@pytest.mark.parametrize("change", [damaged, locked, of_a_strange_method])
def test_an_archive_that_cannot_be_unpacked_is_named(
    change, bucket_alone, pool, tmp_path, monkeypatch
):
    archive = tmp_path / "splits.zip"
    archive_with(archive, [("shared/tau.json", tau_of(pool, 0))])
    archive.write_bytes(change(archive.read_bytes()))
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(archive))
    with pytest.raises(CorruptImageError, match="cannot be read"):
        fetch_laion_splits("tau", verbose=0)


# --- Command line, demo --------------------------------------------------------------


def test_the_command_lists_splits(web, capsys):
    assert (
        main(["fetch-splits", "--pool", "sub-01", "--names", "tau", "ood", "-q"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=3) for line in lines] == [
        ["split", "train", "test", "source"],
        ["tau", "45", "11", web.url],
        ["ood", "56", "9", "labels of the stimulus table"],
    ]


def test_the_command_prints_json(web, capsys):
    main(["fetch-splits", "--json", "-q"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == NAMES
    split = fetch_laion_splits("tau", verbose=0)["tau"]
    assert {"name": "tau", "train": split.train, "test": split.test} == {
        key: rows[10][key] for key in ("name", "train", "test")
    }
    assert rows[0]["generation"] == "b"


def test_the_command_names_what_is_wrong(web, capsys):
    assert main(["fetch-splits", "--names", "tao"]) == 2
    assert "did you mean 'tau'" in capsys.readouterr().err
    assert main(["fetch-splits", "--names", "tau", "--ood-types", "shape"]) == 2
    assert "--ood-types is given" in capsys.readouterr().err
    assert main(["fetch-splits", "--ood-types", "shape", "--names", "ood", "-q"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2] == "1"


def test_a_demo_has_splits_of_its_images(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_SPLITS", "/of/the/user")
    with serve_demo(subjects=["sub-06"], n_sessions=4) as demo:
        assert os.environ["LAION_FMRI_SPLITS_URL"] == demo.splits.url
        for pool in ("shared", "sub-06"):
            data = fetch_laion_splits(pool=pool, verbose=0)
            assert list(data.splits) == NAMES
            tests = sorted(label for fold in data.cluster_k5 for label in fold.test)
            assert tests == data["ood"].train
        assert len({len(fold.test) for fold in data.cluster_k5}) == 5
        assert "shared/tau.json" in demo.splits.requests
        published = json.loads(demo.splits.files["sub-06/ood.json"])["variants"][0]
        assert data["ood"].test == published["test_ids"]
    assert os.environ["LAION_FMRI_SPLITS"] == "/of/the/user"
