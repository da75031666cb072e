"""Train/test splits: what they hold, where they are read, and what is refused."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
from calls import fetch, no_warning, warnings_of
from policies import set_policy
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
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
    ResultFilter,
    fetch_laion_splits,
    fetch_laion_stimulus_metadata,
    load_betas,
)
from laion_fmri_fetchers.demo import serve_bucket, serve_splits
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DownloadError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.splits import StimulusFolds, StimulusSplit

PUBLISHED = Path(
    os.environ.get("LAION_FMRI_TEST_SPLITS")
    or Path(__file__).parents[2] / "shared" / "splits.zip"
)
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_file(), reason="the published splits are not there"
)
TABLE = "stimuli/task-images_metadata.csv"
FAMILIES = {
    name: [f"{name}_{i}" for i in range(5)] for name in ("random", "cluster_k5")
}
FAMILIES["tau"] = ["tau"]
NAMES = [*chain(*FAMILIES.values()), "ood"]
WAYS = ("laion_fmri", "LAION_FMRI_SPLITS", "LAION_FMRI_SPLITS_URL")


def splits(*args, **options):
    return fetch_laion_splits(*args, **{"verbose": 0, **options})


def split_file(name, train, test, **changes):
    """A file of the published form, with some fields changed."""
    variant = {"variant_id": 0, "train_ids": list(train), "test_ids": list(test)}
    content = {"name": name, "pool": "some images", "params": {}, "variants": [variant]}
    return json.dumps(content | changes).encode()


def family_of(family, images, sizes, **params):
    """The files of a family that tests on consecutive parts of images."""
    files, start = {}, 0
    for i, (name, size) in enumerate(zip(FAMILIES[family], sizes, strict=True)):
        test = images[start : start + size]
        train = [*images[:start], *images[start + size :]]
        start += size
        files[name] = split_file(name, train, test, params={**params, "fold": i})
    return files


def tau_of(images, number):
    """A split that can be told by its one test image."""
    return split_file(
        "tau", [*images[:number], *images[number + 1 :]], [images[number]]
    )


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Write files of a pool to a folder, and name it in the environment."""

    def write(files, pool="shared", root=""):
        folder = tmp_path / "named"
        for name, content in files.items():
            path = folder / root / pool / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        monkeypatch.setenv("LAION_FMRI_SPLITS", str(folder))
        return folder

    return write


def kept(data_dir):
    folder = Path(data_dir, ".laion_fmri", "splits")
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.json"))


# --- The published splits -------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """Pool -> name -> content of a file, as plain JSON reads it."""
    pools = {}
    with zipfile.ZipFile(PUBLISHED) as archive:
        for path in archive.namelist():
            if path.endswith(".json"):
                pool, name = path.removesuffix(".json").split("/")[-2:]
                pools.setdefault(pool, {})[name] = json.loads(archive.read(path))
    return pools


def sides(content):
    (variant,) = content["variants"]
    return variant["train_ids"], variant["test_ids"]


def images_of(content):
    return sorted(chain(*sides(content)))


@pytest.fixture(scope="module")
def published_labels(published):
    files = chain(*(pool.values() for pool in published.values()))
    labels = set(chain(*map(images_of, files)))
    assert len(labels) == 25_052
    return sorted(labels, reverse=True)


def fetch_table(folder, labels):
    with serve_bucket() as server, pytest.MonkeyPatch.context() as patch:
        table = pd.DataFrame({"image_name": labels}).to_csv(index=False)
        server.put(TABLE, table.encode())
        patch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        fetch_laion_stimulus_metadata(data_dir=folder, verbose=0)
    return folder


@pytest.fixture(scope="module")
def real_folder(published_labels, tmp_path_factory):
    """A data directory with a table of as many stimuli as were published."""
    folder = tmp_path_factory.mktemp("real") / "laion_fmri"
    return fetch_table(folder, [*published_labels, "no label.jpg"])


@pytest.fixture
def real(real_folder, data_dir, monkeypatch):
    shutil.copytree(real_folder, data_dir)
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(PUBLISHED))
    return data_dir


@needs_published
@pytest.mark.parametrize(
    "pool", ["shared", "sub-01", "sub-03", "sub-05", "sub-06", "sub-07"]
)
def test_published_splits_are_what_plain_json_reads(
    pool, published, real, monkeypatch, no_network
):
    with pytest.warns(UserWarning, match="generation 'a', independent draws, no folds"):
        data = splits(pool=pool)
    assert list(data.splits) == NAMES
    assert len(published[pool]) == 12
    for name, content in published[pool].items():
        split = data.splits[name]
        assert (split.train, split.test) == sides(content)
        assert (split.name, split.pool) == (name, pool)
        assert name == "ood" or split.params == content["params"]
        assert data.generation[name] == ("a" if name.startswith("random") else None)
    assert len(data["ood"].params["ood_types"]) == 9
    assert data.source["tau"] == str(PUBLISHED)
    assert data.source["ood"] == "labels of the stimulus table"
    assert kept(real) == [f"{pool}/{n}.json" for n in ("cluster_k5", "random", "tau")]
    monkeypatch.delenv("LAION_FMRI_SPLITS")
    with pytest.warns(UserWarning, match="independent draws"):
        assert splits(pool=pool) == data


@needs_published
@pytest.mark.parametrize(
    ("pool", "family", "sizes"),
    [
        ("shared", "random", [225, 224, 224, 224, 224]),
        ("sub-05", "random", [1167, 1167, 1167, 1166, 1166]),
        ("shared", "cluster_k5", [274, 248, 246, 225, 128]),
        ("shared", "tau", [224]),
        ("pooled", "tau", [4936]),
    ],
)
def test_splits_have_the_published_sizes(
    pool, family, sizes, published, published_labels, real, named
):
    images = [label for label in sorted(published_labels) if "_OOD_" not in label]
    assert len(images) == 24_681
    if pool != "pooled":
        images = images_of(published[pool]["tau"])
    params = {} if pool == "shared" else {"revision": 2}
    others = [*sizes[1:], sizes[0]] if len(sizes) > 1 else [sizes[0] + 1]
    named(family_of(family, images, others, **params), pool)
    words = rf"{family} tests on .* images; published are {re.escape(str((*sizes,)))}"
    with pytest.raises(CorruptImageError, match=words):
        splits(family, pool)
    assert kept(real) == []
    named(family_of(family, images, sizes, **params), pool)
    with no_warning():
        data = splits(family, pool)
    assert [len(data[name].test) for name in FAMILIES[family]] == sizes
    generation = {"shared": "b"}.get(pool, "c") if family == "random" else None
    assert set(data.generation.values()) == {generation}


@needs_published
@pytest.mark.parametrize(
    ("form", "pool"),
    [
        ("shared_4rep_LAION_controversial_{}_i0.jpg", "shared"),
        ("shared_4rep_LAION_controversial_{}_i0.jpg", "sub-03"),
        ("shared_12rep_LAION_cluster_{}_later.jpg", "shared"),
        ("shared_4rep_newsource_{}.jpg", "shared"),
    ],
    ids=["later", "later of a subject", "as published", "unknown"],
)
def test_shared_images_that_are_released_later_join_no_pool(
    form, pool, published, published_labels, data_dir, named, monkeypatch
):
    later = [form.format(i) for i in range(700)]
    fetch_table(data_dir, [*later, *published_labels])
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    train, test = sides(published[pool]["tau"])
    words = f"does not split the {len(train + test):,} images of the pool {pool}"
    for changed in ([*train, later[1]], train[1:]):
        named({"tau": split_file("tau", changed, test)}, pool)
        with pytest.raises(CorruptImageError, match=words):
            splits("tau", pool)
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(PUBLISHED))
    with pytest.warns(UserWarning, match="generation 'a'"):
        data = splits(pool=pool)
    for name, content in published[pool].items():
        assert sorted(data[name].train) == sorted(sides(content)[0])
        assert sorted(data[name].test) == sorted(sides(content)[1])
    (text,) = warnings_of(data["tau"].masks, [*train, *test, later[3]])
    assert text.startswith(f"1 of {len(train + test) + 1:,} rows are in neither set")


# --- On the demo's images -------------------------------------------------------------


@pytest.fixture(scope="module")
def labels(bucket_folder):
    return pd.read_csv(bucket_folder / TABLE)["image_name"].tolist()


@pytest.fixture
def pool(labels):
    """The images of the pool ``shared``."""
    return sorted(n for n in labels if n.startswith("shared_") and "_OOD_" not in n)


@pytest.fixture
def bucket_alone(server, data_dir, monkeypatch):
    """The demo bucket and an empty directory, and nothing that has splits."""
    set_policy(monkeypatch, first_wait=0.01)
    return data_dir


@pytest.fixture
def web(labels, bucket_alone, monkeypatch):
    """A server of splits in force, with the demo bucket and an empty directory."""
    with serve_splits(labels) as running:
        monkeypatch.setenv("LAION_FMRI_SPLITS_URL", running.url)
        yield running


@pytest.fixture(scope="module")
def of_demo(bucket_folder, labels, shared_server, tmp_path_factory):
    """All splits of the pool of sub-01."""
    folder = tmp_path_factory.mktemp("splits")
    with serve_splits(labels) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
        patch.setenv("LAION_FMRI_SPLITS_URL", running.url)
        return splits(pool="sub-01", data_dir=folder)


@pytest.fixture
def tau(of_demo):
    """A split that was not used yet, so that it warned of nothing."""
    return pickle.loads(pickle.dumps(of_demo["tau"]))


def test_pools_follow_from_labels(labels, pool, web):
    assert (len(pool), len(labels) > 100) == (7, True)
    numbers = {"shared": (), "sub-01": ("p01",), "sub-03": ("p04",)}
    numbers["pooled"] = ("p01", "p04")
    for name, ends in numbers.items():
        own = [n for n in labels if n.endswith(tuple(f"_{e}.jpg" for e in ends))]
        assert (len(own) > 0) == (name != "shared")
        data = splits(pool=name)
        assert sorted(data["tau"].train + data["tau"].test) == sorted(pool + own)
        assert list(data.splits) == (NAMES if name != "pooled" else NAMES[5:11])
        if name != "pooled":
            assert data["ood"].train == sorted(pool + own)
            assert len(data["ood"].test) == 9


def test_ood_needs_no_file_and_may_be_of_some_types(bucket_alone, labels, pool):
    ood = splits("ood")["ood"]
    assert ood.train == pool
    assert ood.test == sorted(n for n in labels if n.startswith("shared_4rep_OOD_"))
    split = splits("ood", ood_types=["shape", "gabor"])["ood"]
    assert split.test == [
        "shared_4rep_OOD_gabor_sf4.0_ori45.png",
        "shared_4rep_OOD_shape_blob_round-01.png",
    ]
    assert split.params["ood_types"] == ["gabor", "shape"]
    assert splits("ood", ood_types="shape")["ood"].test == split.test[1:]
    assert kept(bucket_alone) == []


def test_a_bunch_finds_splits_by_name(of_demo):
    data = of_demo
    assert data["tau"] is data.tau is data.splits["tau"]
    assert list(data.random) == [data[name] for name in FAMILIES["random"]]
    assert data["cluster_k5"][2] is data["cluster_k5_2"]
    assert set(data) == {
        *("splits", "random", "cluster_k5", "pool", "source", "generation"),
        "description",
    }
    assert "five folds" in data.description
    with pytest.raises(KeyError, match="did you mean 'tau'"):
        data["tao"]
    assert not hasattr(data, "tao")


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        ("tau", ["random", "cluster_k5", "random_0", "ood"]),
        (["random_0", "random_1", "random_2", "random_3"], ["random", "random_4"]),
        ("cluster_k5", ["random", "tau"]),
    ],
)
def test_what_was_not_fetched_is_no_key_and_its_access_says_what_to_fetch(
    names, absent, web
):
    data = splits(names, "sub-01")
    copies = [copy.copy(data), copy.deepcopy(data), pickle.loads(pickle.dumps(data))]
    for bunch in (data, *copies):
        assert bunch == data
        for name in absent:
            words = rf"fetch_laion_splits\('{name}', 'sub-01'\)"
            with pytest.raises(AttributeError, match=words):
                getattr(bunch, name)
            with pytest.raises(KeyError, match=words):
                bunch[name]
            assert name not in bunch
            assert getattr(bunch, name, "default") == "default"
            assert name not in dir(bunch)
            assert f"{name} " not in repr(bunch)


def test_names_may_be_families_and_only_these_are_read(web, data_dir):
    data = splits(["tau", "cluster_k5", "cluster_k5_0"], "01")
    assert list(data.splits) == ["tau", *FAMILIES["cluster_k5"]]
    assert len(data.cluster_k5) == 5
    web.requests.clear()
    splits(["tau", "cluster_k5_1"], " SUB-03 ")
    # A family is of one version only if all of it is read at once.
    names = [*FAMILIES["cluster_k5"], "tau"]
    assert sorted(web.requests) == [f"sub-03/{name}.json" for name in names]
    assert kept(data_dir)[2:] == ["sub-03/cluster_k5.json", "sub-03/tau.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": "tao"}, "did you mean 'tau'"),
        ({"names": []}, r"names is \[\]"),
        ({"names": ["tau", 3]}, "names holds 3"),
        ({"names": "ood", "pool": "pooled"}, "no split 'ood' of pool 'pooled'"),
        ({"pool": "share"}, "did you mean 'shared'"),
        ({"pool": "sub-02"}, "There is no pool 'sub-02'"),
        ({"pool": "sub-07"}, "no images of pool 'sub-07'"),
        ({"ood_types": "shapes"}, "did you mean 'shape'"),
        ({"names": "tau", "ood_types": "shape"}, "'ood' is not among names"),
    ],
)
def test_wrong_arguments_are_named(arguments, words, bucket_alone):
    with pytest.raises(InvalidQueryError, match=words):
        splits(**arguments)


# --- Splits and trials ----------------------------------------------------------------


@pytest.fixture
def trials(on_disk):
    return fetch("sub-01", None).trials


def test_masks_are_those_of_pandas(trials, tau, bucket_folder):
    (text,) = warnings_of(tau.masks, trials)
    train, test = tau.masks(trials)
    assert train.dtype == test.dtype == bool
    assert (train == trials["label"].isin(tau.train).to_numpy()).all()
    assert (test == trials["label"].isin(tau.test).to_numpy()).all()
    neither = trials["label"][~train & ~test]
    assert neither.str.contains("_OOD_|fixation").all()
    assert text.startswith(f"{len(neither)} of {len(trials)} rows are in neither set")
    for other in (
        trials["label"],
        list(trials["label"]),
        trials.set_index("label"),
        trials.set_index("label").index,
        trials.rename(columns={"label": "image_name"}),
        trials["label"].astype("category"),
        Bunch(trials=trials),
    ):
        assert (tau.masks(other)[1] == test).all()
    table = pd.read_csv(bucket_folder / TABLE, index_col="image_name")
    assert (tau.masks(table)[1] == table.index.isin(tau.test)).all()
    chosen = trials[train | test]
    assert warnings_of(tau.masks, chosen) == []


def test_rows_in_neither_set_are_counted_with_their_pool(on_disk, pool, of_demo):
    tau = StimulusSplit(pool[:-1], pool[-1:], "tau", "shared")
    trials = fetch("sub-01", None).trials
    own, ood = (trials["label"].str.contains(x).sum() for x in ("^unique", "_OOD_"))
    (text,) = warnings_of(lambda: [tau.masks(trials) for _ in range(2)])
    assert text == (
        f"{own + ood + 1} of {len(trials)} rows are in neither set of <StimulusSplit "
        f"'tau' of pool 'shared': 6 train, 1 test>, and left out: {own} of images "
        f"unique to sub-01, {ood} of images of OOD, 1 of images of no known source. "
        "Images unique to a subject are in the splits of that subject, as of "
        "fetch_laion_splits(pool='sub-01')."
    )
    others = fetch("sub-03", None).trials
    (text,) = warnings_of(of_demo["cluster_k5_4"].masks, others)
    assert "pool 'sub-01'" in text
    assert "of images unique to sub-03" in text
    assert "fetch_laion_splits(pool='sub-03')" in text


def test_images_of_later_sessions_and_nulls_are_in_neither_set():
    split = StimulusSplit(["a"], ["b"], "mine", "shared")
    later = "shared_4rep_LAION_controversial_3.jpg"
    with pytest.warns(UserWarning, match="1 of 3 rows .* 1 of images of LAION"):
        train, _ = split.masks(["a", "b", later])
    assert train.tolist() == [True, False, False]
    with pytest.warns(UserWarning, match="2 of 4 rows .* of no known source"):
        train, test = split.masks(["a", None, float("nan"), "b"])
    assert train.tolist() == [True, False, False, False]
    assert test.tolist() == [False, False, False, True]


def test_rows_that_any_split_of_a_family_has_are_not_left_out():
    halves = StimulusSplit(["a"], ["b"], "own_0"), StimulusSplit(["b"], ["c"], "own_1")
    with no_warning():
        found = [*StimulusFolds(halves).split("abc", groups=["a", "b", "c"])]
    assert [(*train, *test) for train, test in found] == [(0, 1), (1, 2)]


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
        (["a.jpg", "x"], "None of the 2 rows shows a test image of <StimulusSplit"),
        (["b.jpg"], "None of the 1 row.* shows a train image"),
    ],
    ids="column dict empty none numbers list set test train".split(),
)
def test_what_holds_no_labels_of_a_split_is_named(trials, words):
    with pytest.raises(InvalidQueryError, match=words):
        StimulusSplit(["a.jpg"], ["b.jpg"]).masks(trials)


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((["a", "b"], ["b"]), "'b' is in train or test twice"),
        ((["a"], [1]), "test holds 1"),
        (([], ["b"]), r"train is \[\]"),
        ((["a"], {"b": 1}), "test is {'b': 1}; give names in a list"),
    ],
    ids="twice number empty dict".split(),
)
def test_a_split_is_of_different_labels(sides, words):
    with pytest.raises(InvalidQueryError, match=words):
        StimulusSplit(*sides)


def test_a_split_decides_which_sessions_are_fetched(on_disk):
    """Images shown twelve times are in the odd sessions of sub-01 alone."""
    often = [
        "shared_12rep_LAION_cluster_1003_i0.jpg",
        "shared_12rep_THINGS+_kmeans_17_baby.jpg",
    ]
    split = StimulusSplit(["other.jpg"], often)
    data = fetch("sub-01", None, trial_filter={"label": split.is_test()})
    assert [meta["session"] for meta in data.images_meta] == ["ses-01", "ses-03"]
    assert set(data.trials["label"]) == set(often)
    again = fetch(**json.loads(json.dumps(data.query)))
    assert again.trials.equals(data.trials)


def test_splits_and_their_terms_are_pickled_compared_and_shown():
    given = (["b", "a"], ["c"], "mine", "shared", {"method": {"name": "mine"}})
    split = StimulusSplit(*given)
    assert StimulusSplit(*given) == split == pickle.loads(pickle.dumps(split))
    assert hash(StimulusSplit(*given)) == hash(split)
    for i, other in enumerate([["a", "b"], ["d"], "other", "sub-01", {}]):
        assert split != StimulusSplit(*given[:i], other, *given[i + 1 :])
    assert repr(split) == "<StimulusSplit 'mine' of pool 'shared': 2 train, 1 test>"
    names = [f"image {i}.jpg" for i in range(1000)]
    split = StimulusSplit(names[:-60], frozenset(names[-60:]))
    assert split.test == sorted(names[-60:])
    term = split.is_train()
    assert term == IsIn(*names[:-60]) == pickle.loads(pickle.dumps(term))
    assert (term == "image 7.jpg", term == "image 999.jpg") == (True, False)
    filt = ResultFilter(label=term) & ~ResultFilter(label=split.is_test())
    assert "IsIn('image 0.jpg', 'image 1.jpg', and 938 more)" in repr(filt)
    assert pickle.loads(pickle.dumps(filt)) == filt


# --- scikit-learn ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(cached_folder):
    """Betas of sub-01, trials and averages, which tests must not change."""
    data = fetch("sub-01", ["FFA1"], data_dir=cached_folder, mode="offline")
    return {
        average: load_betas(data, average_repeats=average, verbose=0)
        for average in (False, True)
    }


@pytest.fixture
def betas(loaded):
    """Single trials, a target, and the image of each."""
    x, trials = loaded[False].data, loaded[False].trials
    return x, trials["label"].map(len).to_numpy(float), trials["label"]


def scores_by_hand(betas, *parts):
    x, y, labels = betas
    for split in parts:
        train, test = np.isin(labels, split.train), np.isin(labels, split.test)
        yield Ridge().fit(x[train], y[train]).score(x[test], y[test])


@pytest.mark.parametrize("name", ["tau", *list(FAMILIES)[:2]])
def test_splits_and_families_are_splitters(betas, of_demo, name):
    x, y, labels = betas
    cv = of_demo[name]
    n_splits = 1 if name == "tau" else 5
    by_hand = [*scores_by_hand(betas, *([cv] if name == "tau" else cv))]
    scores = cross_val_score(Ridge(), x, y, groups=labels, cv=cv)
    assert scores == pytest.approx(by_hand)
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 1e6]}, cv=cv)
    search.fit(x, y, groups=labels)
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(np.mean(by_hand))
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cross_val_score(Ridge(), x, y, params={"groups": labels}, cv=cv)
    assert list(routed) == list(scores)
    assert cv.get_n_splits() == cv.get_n_splits(x, y, labels) == n_splits
    copied = pickle.loads(pickle.dumps(cv))
    assert (copied, hash(copied)) == (cv, hash(cv))
    if n_splits == 5:
        assert repr(cv) == f"<StimulusFolds '{name}' of pool 'sub-01': 5 splits>"
        assert cv != list(cv)


@pytest.mark.parametrize("average", [False, True])
def test_groups_of_betas_are_taken(loaded, tau, average, tmp_path):
    betas = loaded[average]
    betas.save(tmp_path / "betas.npz")
    labels = betas.trials["label"]
    for each in (betas, load_betas(tmp_path / "betas.npz")):
        groups = each.groups["label"]
        for given in (groups, list(groups), pd.Categorical(groups)):
            done = cross_validate(
                *(DummyRegressor(), each.data, np.zeros(len(labels))),
                groups=given,
                cv=tau,
                return_indices=True,
            )
            for side in ("train", "test"):
                (rows,) = done["indices"][side]
                wanted = labels.isin(getattr(tau, side))
                assert rows.tolist() == np.flatnonzero(wanted).tolist()
        train, test = next(tau.split(each.data[5:], groups=groups[5:]))
        assert set(groups[5:][test]) <= set(tau.test)
        assert set(groups[5:][train]) <= set(tau.train)


@pytest.mark.parametrize("name", ["tau", "random"])
def test_rows_left_out_are_told_once_for_each_call(betas, of_demo, name):
    """However often a search or a permutation test calls the splitter."""
    x, y, labels = betas
    cv = pickle.loads(pickle.dumps(of_demo[name]))
    search = GridSearchCV(Ridge(), {"alpha": [1.0, 10.0]}, cv=cv)
    given = {"groups": labels}
    outer = {"groups": labels, "params": given, "cv": GroupKFold(3)}
    test = {"groups": labels, "cv": cv, "n_permutations": 4}
    texts = [
        warnings_of(lambda: cross_val_score(Ridge(), x, y, groups=labels, cv=cv)),
        warnings_of(lambda: search.fit(x, y, groups=labels)),
        warnings_of(lambda: permutation_test_score(Ridge(), x, y, **test)),
        warnings_of(lambda: cross_val_score(search, x, y, **outer)),
    ]
    texts[2] = [text for text in texts[2] if "permutation_test" not in text]
    for (text,) in texts:
        assert "rows are in neither set of <Stimulus" in text
        assert f"{name!r} of pool 'sub-01'" in text
    with pytest.warns(UserWarning, match="in neither set") as caught:
        cross_val_score(Ridge(), x, y, groups=labels, cv=cv)
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("name", ["tau", "random"])
def test_permutations_within_images_are_told(name, of_demo, tau):
    """With groups, scikit-learn permutes y only among the repeats of an image."""
    cv = pickle.loads(pickle.dumps(of_demo[name]))
    labels = np.repeat(tau.train + tau.test, 4)
    y = np.repeat(np.random.default_rng(0).normal(size=len(labels) // 4), 4)
    x = y[:, None]  # which tells y without error
    options = {"n_permutations": 19, "random_state": 0}
    with pytest.warns(
        UserWarning, match="permutes y only among rows of the same image"
    ):
        done = permutation_test_score(Ridge(), x, y, groups=labels, cv=cv, **options)
    assert done[2] == 1  # of a perfect model
    x, y, labels = x[::4], y[::4], labels[::4]
    rows = list(cv.split(x, groups=labels))
    with no_warning():
        done = permutation_test_score(Ridge(), x, y, cv=rows, **options)
        assert done[2] == 1 / 20
        # A search within a permutation test is no such test.
        search = GridSearchCV(Ridge(), {"alpha": [1.0, 10.0]}, cv=cv)
        known = inspect.signature(permutation_test_score).parameters
        params = "params" if "params" in known else "fit_params"  # scikit-learn < 1.6
        every = np.arange(len(labels))
        given = {params: {"groups": labels}, "cv": [(every, every)]}
        permutation_test_score(search, x, y, n_permutations=2, **given)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, r"pass groups=trials\['label'\]"),
        (["a", "b"], "X has 3 rows, groups 2 labels"),
        ([0, 1, 2], "groups holds 0, which is not a name"),
        (np.zeros(3, int), r"groups holds (np.int64\()?0"),
        (["b", "b", "c"], "None of the 3 rows shows a train image of <StimulusSplit"),
    ],
)
def test_groups_must_be_the_labels_of_rows(groups, words):
    with pytest.raises(InvalidQueryError, match=words):
        next(StimulusSplit(["a"], ["b"]).split(np.zeros((3, 1)), groups=groups))


# --- Where splits are read ------------------------------------------------------------


def test_files_are_read_over_http_once(web, capsys, request):
    first = fetch_laion_splits()
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"12 splits of pool 'shared', 7 images, from {web.url}, labels of the stimulus "
        "table"
    )
    names = [f"shared/{name}.json" for name in NAMES if name != "ood"]
    assert sorted(web.requests) == sorted(names)
    assert set(first.source.values()) == {web.url, "labels of the stimulus table"}
    assert first.generation["random_2"] == "b"
    file = json.loads(web.files["shared/tau.json"])
    assert (first["tau"].train, first["tau"].test) == sides(file)
    web.requests.clear()
    assert splits() == first
    assert web.requests == []
    web.files["shared/tau.json"] = split_file("tau", *reversed(sides(file)))
    assert splits("tau")["tau"] == first["tau"]
    changed = splits("tau", mode="overwrite")["tau"]
    assert changed.test == first["tau"].train
    request.getfixturevalue("no_network")
    assert splits("tau", mode="offline")["tau"] == changed
    assert capsys.readouterr().err == ""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder of splits in an installed package that must not be imported."""
    folder = tmp_path / "site" / "laion_fmri"
    (folder / "splits" / "data" / "shared").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(folder.parent)
    return folder / "splits" / "data"


def test_sources_are_asked_in_their_order(web, package, pool, named, monkeypatch):
    (package / "shared" / "tau.json").write_bytes(tau_of(pool, 0))
    folder = named({"tau": tau_of(pool, 1)})
    web.files["shared/tau.json"] = tau_of(pool, 2)

    def read(mode="overwrite"):
        data = splits("tau", mode=mode)
        return data["tau"].test, data.source["tau"]

    assert read() == ([pool[0]], str(package))
    assert "laion_fmri" not in sys.modules
    shutil.rmtree(package)
    assert read("download_new") == ([pool[0]], str(package))
    assert read() == ([pool[1]], str(folder))
    assert web.requests == []
    assert splits("cluster_k5").source["cluster_k5_4"] == web.url  # which it lacks
    monkeypatch.delenv("LAION_FMRI_SPLITS")
    assert read() == ([pool[2]], web.url)
    assert read("offline") == ([pool[2]], web.url)


def test_an_installed_package_of_other_images_is_passed_over(web, package, request):
    of_others = split_file("tau", ["a.jpg"], ["b.jpg"])
    (package / "shared" / "tau.json").write_bytes(of_others)
    assert splits("tau").source["tau"] == web.url


@needs_published
def test_a_damaged_package_is_an_error_with_the_real_images(real, package):
    of_others = split_file("tau", ["a.jpg"], ["b.jpg"])
    (package / "shared" / "tau.json").write_bytes(of_others)
    with pytest.raises(CorruptImageError, match=f"{package} are not valid"):
        splits("tau")


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("root", ["", "data", "splits/data", "laion_fmri/splits/data"])
def test_a_folder_or_archive_may_be_any_part_of_the_repository(
    kind, root, bucket_alone, pool, named, monkeypatch
):
    folder = named({"tau": tau_of(pool, 3)}, root=root)
    if kind == "archive":
        # GitHub has a repository in a folder; others may lie beside its splits.
        if "laion_fmri" in root:
            named({"tau": tau_of(pool, 2)}, root="archive")
            (folder / "LAION-fMRI-cf82765").mkdir()
            for each in ("laion_fmri", "archive"):
                (folder / each).rename(folder / "LAION-fMRI-cf82765" / each)
        place = shutil.make_archive(str(folder), "zip", folder)
        monkeypatch.setenv("LAION_FMRI_SPLITS", place)
    assert splits("tau")["tau"].test == [pool[3]]


@pytest.mark.parametrize("content", [None, b"no archive"])
def test_a_place_that_has_no_splits_is_named(
    content, bucket_alone, tmp_path, monkeypatch
):
    if content:
        (tmp_path / "place").write_bytes(content)
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(tmp_path / "place"))
    with pytest.raises(InvalidQueryError, match="place.*neither a folder nor"):
        splits("tau")


@pytest.mark.parametrize(
    "url",
    [
        *("splits.example.org", "ftp://example.org", "https://"),
        *("https://x.org/?token=1", "http://ada:secret@127.0.0.1:9/splits"),
    ],
)
def test_an_address_must_be_one_without_a_login(url, bucket_alone, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_SPLITS_URL", url)
    with pytest.raises(InvalidQueryError, match="must be an http.*login") as caught:
        splits("tau")
    assert not re.search("token|secret", str(caught.value))


def test_where_nothing_has_splits_every_way_is_named(
    bucket_alone, monkeypatch, request
):
    with pytest.raises(DownloadError) as caught:
        splits()
    for word in (*WAYS, "splits random of", "127.0.0.1:9", "refused"):
        assert word in str(caught.value)
    assert [failure["id"] for failure in caught.value.failed] == ["random"]
    assert kept(bucket_alone) == []
    monkeypatch.delenv("LAION_FMRI_SPLITS_URL")
    request.getfixturevalue("no_network")
    with pytest.raises(NotCachedError) as caught:
        splits("random", mode="offline")
    for word in (*WAYS, "mode='download_new'", "https://raw.githubusercontent.com/"):
        assert word in str(caught.value)


def test_without_the_table_of_stimuli_there_are_no_pools(server, data_dir, monkeypatch):
    set_policy(monkeypatch, first_wait=0.01)
    server.faults[TABLE] = (404, {}, b"")
    with pytest.raises(DownloadError, match="same call resumes") as error:
        splits()
    assert "allow_missing" not in str(error.value)  # which this call lacks
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    with pytest.raises(NotCachedError, match="metadata.csv"):
        splits("ood", mode="offline")
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/no-bucket")
    with pytest.raises(BucketError, match="metadata.csv"):
        splits("tau")


# --- Servers --------------------------------------------------------------------------


def test_a_server_may_be_busy_break_off_or_redirect(web):
    file = web.files["elsewhere/tau.json"] = web.files["shared/tau.json"]
    length = {"Content-Length": str(len(file)), "Connection": "close"}
    answers = iter(
        [
            (503, {"Retry-After": "0"}, b""),
            (429, {}, b""),
            (500, {}, b""),
            (200, length, file[:-20]),
            (302, {"Location": f"{web.url}/elsewhere/tau.json"}, b""),
        ]
    )
    web.answers["shared/tau.json"] = lambda: next(answers)
    assert splits("tau")["tau"].pool == "shared"
    assert web.requests == ["shared/tau.json"] * 5 + ["elsewhere/tau.json"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, {}, b""), "status 403"),
        ((503, {}, b""), "status 503"),
        ((404, {}, b""), "does not have them"),
        ((302, {"Location": "tau.json"}, b""), "redirects in a circle"),
        ((200, {"Content-Encoding": "gzip"}, b"not gzip"), "cannot be unpacked"),
    ],
)
def test_what_a_server_refuses_is_an_error(answer, words, web, data_dir):
    web.answers["shared/tau.json"] = answer
    with pytest.raises(DownloadError, match=words) as caught:
        splits("tau")
    assert all(way in str(caught.value) for way in WAYS)
    assert kept(data_dir) == []


# --- Files that are not what they should be -------------------------------------------


KITCHEN = "shared_4rep_OOD_selfmade_kitchen.jpg"
PUMP = "unique_THINGS_air_pump_p04.jpg"
IS_TWICE = "is in train or test twice"
BAD_FILES = {
    "cut": (lambda train, test: split_file("tau", train, test)[:-9], "it is not JSON"),
    "bytes": (lambda train, test: b"\xff\xfe\x00\xd8", "it is not JSON"),
    "deep": (lambda train, test: b"[" * 100_000, "it is not JSON"),
    "list": (lambda train, test: b"[1, 2]", "no single variant of"),
    "name": (lambda *both: split_file("random_0", *both), "it is named 'random_0'"),
    "variants": (
        lambda *both: split_file("tau", *both, variants=[{}, {}]),
        "no single",
    ),
    "number": (lambda train, test: split_file("tau", [*train, 1], test), "holds 1"),
    "no test": (lambda train, test: split_file("tau", train, []), r"test is \[\]"),
    "overlap": (lambda train, test: split_file("tau", train + test, test), IS_TWICE),
    "partial": (
        lambda train, test: split_file("tau", train[1:], test),
        "does not split the 7 images of the pool shared; 'shared_12rep.* differs",
    ),
    "OOD": (
        lambda train, test: split_file("tau", [*train, KITCHEN], test),
        f"the pool shared; '{KITCHEN}' differs",
    ),
    "other subject": (
        lambda train, test: split_file("tau", [*train, PUMP], test),
        f"the pool shared; '{PUMP}' differs",
    ),
    "unsafe": (
        lambda train, test: split_file("tau", [*train, "../../../etc/\x1b[2J"], test),
        r"etc/\\x1b\[2J' differs",
    ),
}


@pytest.mark.parametrize("case", [*BAD_FILES, "web", "archive"])
def test_a_bad_file_is_an_error_and_nothing_is_kept(
    case, web, pool, named, monkeypatch, data_dir
):
    make, words = BAD_FILES.get(case, BAD_FILES["cut"])
    content = make(pool[:-1], pool[-1:])
    if case == "web":
        web.files["shared/tau.json"] = content
    else:
        folder = named({"tau": content})
    if case == "archive":
        place = shutil.make_archive(str(folder), "zip", folder)
        monkeypatch.setenv("LAION_FMRI_SPLITS", place)
    with pytest.raises(CorruptImageError, match=words) as caught:
        splits("tau")
    assert len(str(caught.value)) < 900
    assert caught.value.__suppress_context__  # of the error of another library
    assert kept(data_dir) == []


def draws_of(images, family="random", **changes):
    """Files of five random draws that are no folds."""
    return {
        name: split_file(name, [*images[:i], *images[i + 1 :]], [images[i]], **changes)
        for name, i in zip(FAMILIES[family], (1, 1, 2, 3, 4), strict=True)
    }


def folds_of(images, **params):
    """Files of five folds, with the parameters that the published ones have."""
    sizes = [len(images) // 5 + (i < len(images) % 5) for i in range(5)]
    return family_of("random", images, sizes, method="shuffled_5fold_cv", **params)


NEW = {"revision": 2}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda im: {**draws_of(im), "random_4": b"1"}, "random_4.json: it has no"),
        (lambda im: dict([*draws_of(im).items()][:4]), "random_4.json: it is missing"),
        (lambda im: draws_of(im, params={"fold": 0}), "tested on twice, or never"),
        (lambda im: {**folds_of(im), **one_of(folds_of(im, **NEW))}, "one generation"),
        (lambda im: {**folds_of(im, **NEW), **one_of(folds_of(im))}, "one generation"),
        (lambda im: draws_of(im, family="cluster_k5"), "tested on twice, or never"),
    ],
    ids="broken missing folds new old clusters".split(),
)
def test_families_that_are_not_whole_are_refused(
    make, words, bucket_alone, pool, named
):
    files = make(pool)
    named(files)
    with pytest.raises(CorruptImageError, match=words):
        splits(next(iter(files)))
    assert kept(bucket_alone) == []


def one_of(files):
    return {"random_0": files["random_0"]}


@pytest.mark.parametrize(
    ("pool_name", "make", "generation", "words"),
    [
        ("shared", draws_of, "a", "no folds: some images are tested on often"),
        ("sub-01", draws_of, "a", "no folds: some images are tested on often"),
        ("shared", folds_of, "b", None),
        ("sub-01", folds_of, "b", "known duplicates leak"),
        ("sub-01", lambda images: folds_of(images, **NEW), "c", None),
        ("shared", lambda images: folds_of(images, **NEW), "revision 2", "not know"),
        ("sub-01", lambda im: folds_of(im, revision=3), "revision 3", "not know"),
    ],
    ids="a-shared a b-shared b c c-shared later".split(),
)
def test_generations_of_random_splits_are_told_and_former_ones_warn(
    pool_name, make, generation, words, bucket_alone, labels, pool, named
):
    own = [n for n in labels if n.endswith("_p01.jpg")] if pool_name != "shared" else []
    folder = named(make(sorted(pool + own)), pool_name)
    for mode in ("download_new", "overwrite", "offline"):
        texts = warnings_of(splits, "random", pool_name, mode=mode)
        if words is None:
            assert texts == []
        else:
            (text,) = texts
            assert words in text
            assert f"pool {pool_name!r} from {folder} are of" in text
            advice = "unset LAION_FMRI_SPLITS if it names it, and use mode='overwrite'"
            assert advice in text
    data = splits("random", pool_name)
    assert set(data.generation.values()) == {generation}
    copied = pickle.loads(pickle.dumps(data["random_1"]))
    assert copied == data["random_1"]
    assert copied.generation == data.random[0].generation == generation


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'"text"', b'{"source": "x", "files": {"tau": 3}}', None],
    ids="deep text number large".split(),
)
def test_a_damaged_file_of_the_cache_is_read_anew(content, web, data_dir):
    first = splits("tau")
    file = data_dir / ".laion_fmri" / "splits" / "shared" / "tau.json"
    if content:
        file.write_bytes(content)
    else:
        os.truncate(file, 2**27)
    with (
        pytest.warns(UserWarning, match=r"tau.json cannot be used"),
        pytest.raises(NotCachedError),
    ):
        splits("tau", mode="offline")
    with pytest.warns(UserWarning, match=r"tau.json cannot be used"):
        assert splits("tau") == first
    with no_warning():
        assert splits("tau", mode="offline") == first


@pytest.mark.parametrize(
    ("offset", "value"), [(6, 1), (8, 99), (70, 255)], ids="locked method data".split()
)
def test_an_archive_that_cannot_be_unpacked_is_named(
    offset, value, bucket_alone, pool, tmp_path, monkeypatch
):
    archive = tmp_path / "splits.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("shared/tau.json", tau_of(pool, 0))
    content = bytearray(archive.read_bytes())
    content[offset] = value
    if offset < 70:  # in the directory too
        content[content.index(b"PK\x01\x02") + offset + 2] = value
    archive.write_bytes(content)
    monkeypatch.setenv("LAION_FMRI_SPLITS", str(archive))
    with pytest.raises(CorruptImageError, match="cannot be read"):
        splits("tau")
