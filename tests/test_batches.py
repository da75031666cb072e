"""Stimuli in the order of trials, all at once and one by one, in worker processes."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest
from checks import fails, no_warnings, warned
from PIL import Image
from sklearn.utils import Bunch

import laion_fmri_fetchers as package
from laion_fmri_fetchers import LaionDataset, align, fetch_laion_embeddings, load_betas
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.demo import serve_access
from laion_fmri_fetchers.exceptions import InvalidQueryError

FETCHERS = {
    "stimuli": package.fetch_laion_stimuli,
    "embeddings": lambda **asked: fetch_laion_embeddings("CLIP", **asked),
    "captions": package.fetch_laion_captions,
    "segmentations": package.fetch_laion_segmentations,
    "metadata": package.fetch_laion_stimulus_metadata,
}


@pytest.fixture(scope="module")
def fetched(shared_server, tmp_path_factory):
    """Betas of 40 trials in any order, some of the same image; what is of the images.

    Sources are in another order; what else is fetched of them is on the same disk.
    """
    with pytest.MonkeyPatch.context() as patch, serve_access(shared_server) as access:
        variables = {
            "LAION_FMRI_DATA_DIR": str(tmp_path_factory.mktemp("batches")),
            "LAION_FMRI_LICENSE": "I AGREE",
            "LAION_FMRI_BUCKET_URL": shared_server.url,
            "LAION_FMRI_ACCESS_URL": access.url,
            "LAION_FMRI_REQUEST_ID": access.grant(),
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        data = package.fetch_laion_fmri("sub-01", "FFA1", [1, 2], verbose=0)
        betas = load_betas(data, verbose=0)
        order = np.random.default_rng(0).permutation(len(betas.trials))[:40]
        betas.trials, betas.data = betas.trials.iloc[order], betas.data[order]
        names = sorted(set(betas.trials["label"]))
        sources = {kind: f(labels=names, verbose=0) for kind, f in FETCHERS.items()}
        fetch_laion_embeddings("SigLIP2", verbose=0)
    return data, betas, sources, {**variables, "LAION_FMRI_OFFLINE": "1"}


@pytest.fixture
def betas(fetched, monkeypatch):
    for name, value in fetched[3].items():
        monkeypatch.setenv(name, value)
    return copy.deepcopy(fetched[1])


@pytest.fixture
def sources(fetched):
    return copy.deepcopy(fetched[2])


@pytest.fixture
def dataset(betas, sources):
    kinds = ("stimuli", "embeddings", "captions")
    return LaionDataset(betas, *(sources[kind] for kind in kinds))


def decoded(sources, label):
    """Return an image of the demo, which are opaque or lie over grey."""
    row = sources["metadata"].metadata.loc[label, "h5_index"]
    with h5py.File(sources["stimuli"].archive) as file:
        image = Image.open(io.BytesIO(bytes(file["images"][row]))).convert("RGBA")
    grey = Image.new("RGBA", image.size, (128, 128, 128, 255))
    return np.asarray(Image.alpha_composite(grey, image).convert("RGB")).astype(int)


# --- In the order of trials ------------------------------------------------------


def test_each_source_is_aligned_with_trials(betas, sources):
    labels = list(betas.trials["label"])
    assert labels != sorted(labels)
    assert len(set(labels)) < len(labels)
    aligned = {kind: align(betas.trials, source) for kind, source in sources.items()}
    clip = sources["embeddings"]
    rows = dict(zip(clip.image_names, clip.embeddings["CLIP"], strict=True))
    texts = sources["captions"].captions.set_index("image_name")["caption"]
    masks = sources["segmentations"].segmentations
    for i, label in enumerate(labels):
        assert np.array_equal(aligned["embeddings"][i], rows[label])
        assert abs(aligned["stimuli"][i] - decoded(sources, label)).max() <= 1
        assert aligned["captions"][i] == list(texts[[label]])
        of_image = masks["mask_row"][masks["image_name"] == label]
        assert list(aligned["segmentations"][i]["mask_row"]) == list(of_image)
        assert aligned["metadata"].index[i] == label
    assert {len(values) for values in aligned.values()} == {len(labels)}
    assert any(len(frame) for frame in aligned["segmentations"])
    assert aligned["embeddings"].dtype == np.float16
    assert align(betas.trials, sources["stimuli"], size=20).shape[1:] == (20, 20, 3)
    for given in (betas, labels, betas.trials["label"]):
        assert np.array_equal(align(given, clip), aligned["embeddings"])


@pytest.mark.parametrize("kind", FETCHERS)
def test_images_that_are_asked_for_and_those_that_a_source_lacks(betas, kind):
    of_trials = FETCHERS[kind](labels=betas.trials, verbose=0)
    shown = list(dict.fromkeys(betas.trials["label"]))
    names = of_trials.get("image_names", of_trials.get("metadata", betas.trials).index)
    assert shown == list(names)
    if kind != "segmentations":  # not all images have some
        typo = betas.trials.assign(label=shown[0].replace("_", "-", 1))
        words = f"no image .*{re.escape(shown[0])}"  # the nearest name
        fails(InvalidQueryError, words, FETCHERS[kind], labels=typo, verbose=0)
    first, second, *others = sorted(shown)
    source = FETCHERS[kind](labels=[second, *others], verbose=0)
    words = f"{kind} lack 1 image.*{re.escape(first)}"
    fails(InvalidQueryError, words, align, betas.trials, source)
    if kind in ("stimuli", "embeddings", "captions"):
        fails(InvalidQueryError, words, LaionDataset, betas, **{kind: source})
    fails(InvalidQueryError, "did you mean", align, [second[:-5] + "X.jpg"], source)


def test_of_several_models_one_is_chosen(betas, sources):
    names = sorted(set(betas.trials["label"]))
    source = fetch_laion_embeddings(["CLIP", "SigLIP2"], names, verbose=0)
    assert align(betas.trials, source, model="siglip2").shape[1] == 1152
    for options in ({}, {"model": "SigLIP"}):
        fails(InvalidQueryError, "SigLIP2", align, betas.trials, source, **options)
    fails(InvalidQueryError, "single one", LaionDataset, betas, embeddings=source)
    clip = sources["embeddings"]
    first = betas.trials["label"].iloc[0]
    clip.valid["CLIP"][clip.image_names.index(first)] = False
    for use in (align, lambda trials, source: LaionDataset(betas, embeddings=source)):
        warned("no valid embedding of 1 image", use, betas.trials, clip)
    with no_warnings():
        align(betas.trials[betas.trials["label"] != first], clip)
    clip.image_names = clip.image_names[1:]
    fails(InvalidQueryError, "cut all keys alike", align, clip.image_names, clip)


def test_of_an_image_that_is_named_twice_the_first_row_counts():
    table = pd.DataFrame({"x": [1, 2, 3]}, index=["a.jpg", "b.jpg", "a.jpg"])
    aligned = align(["b.jpg", "a.jpg"], Bunch(metadata=table))
    assert aligned["x"].tolist() == [2, 1]


def test_what_cannot_be_aligned_is_named():
    captions = Bunch(captions=pd.DataFrame({"image_name": []}), image_names=[])
    for trials, source, message in (
        (["a.jpg"], None, "NoneType was given in place of embeddings or"),
        (["a.jpg"], Bunch(images=[]), "Bunch with images"),
        ("a.jpg", captions, "trials is a str"),
        (pd.DataFrame({"x": [1]}), captions, "column 'label'"),
        ([None], captions, "label None"),
    ):
        fails(InvalidQueryError, message, align, trials, source)


# --- One by one ------------------------------------------------------------------


def check_item(item, i, betas, sources):
    """Compare an item with what it should be, looked up by itself."""
    trial = betas.trials.iloc[i]
    label = trial["label"]
    clip, texts = sources["embeddings"], sources["captions"].captions
    human = texts[(texts["image_name"] == label) & (texts["source"] == "human")]
    assert abs(item.pop("image") - decoded(sources, label)).max() <= 1
    embedding = clip.embeddings["CLIP"][clip.image_names.index(label)]
    assert np.array_equal(item.pop("embedding"), embedding)
    assert np.array_equal(item.pop("betas"), betas.data[i])
    assert item == {
        "caption": human.sort_values("caption_idx")["caption"].iloc[0],
        "label": label,
        "subject": "sub-01",
        "session": trial["session"],
        "repetition": trial["repetition"],
    }
    assert type(item["repetition"]) is int


def test_items_are_had_by_index_and_are_the_users_to_change(dataset, betas, sources):
    assert len(dataset) == len(list(LaionDataset(betas))) == 40
    assert "40 trials" in repr(dataset)
    for i in (0, 39, np.int64(7), np.uint8(3), -1, np.int64(-40)):
        item = dataset[i]
        for name in ("betas", "embedding", "image"):
            item[name] += 1
        check_item(dataset[i], int(i), betas, sources)
    for index in (40, -41, np.int64(10**6)):
        with pytest.raises(IndexError, match="40 trials"):
            dataset[index]
    for index in ("0", 1.0, slice(2), None):
        with pytest.raises(TypeError):
            dataset[index]


def test_items_have_what_was_given(betas, sources, fetched):
    plain = {"betas", "label", "subject", "session", "repetition"}
    assert set(LaionDataset(betas)[0]) == plain
    with_captions = LaionDataset(betas, captions=sources["captions"])
    assert set(with_captions[0]) == {*plain, "caption"}
    small = LaionDataset(betas, sources["stimuli"], size=(10, 20))
    assert small[0]["image"].shape == (10, 20, 3)
    changed = LaionDataset(betas, transform=lambda item: item["betas"].mean())
    assert changed[3] == pytest.approx(betas.data[3].mean())
    bare = LaionDataset(Bunch(data=betas.data, trials=betas.trials[["label"]]))[0]
    assert (bare["session"], bare["repetition"]) == ("", -1)
    averaged = load_betas(fetched[0], average_repeats=True, verbose=0)
    several = np.flatnonzero(averaged.trials["session"].isna())
    assert len(several)
    item = LaionDataset(averaged)[several[0]]
    expected = ("sub-01", "", -1)
    assert (item["subject"], item["session"], item["repetition"]) == expected


def test_what_is_no_dataset_is_named(betas, sources, tmp_path):
    captions = package.fetch_laion_captions(betas.trials, source="ai", verbose=0)
    stimuli = sources["stimuli"]
    for given, options, words in (
        (betas, {"captions": captions}, "no human caption"),
        (betas, {"stimuli": sources["embeddings"]}, "in place of stimuli"),
        ({"sub-01": betas}, {}, r"betas\['sub-01'\]"),
        (betas.trials, {}, "without data and trials"),
        (Bunch(data=betas.data[1:], trials=betas.trials), {}, "one row per trial"),
        (betas, {"transform": 3}, "function"),
        (betas, {"stimuli": stimuli, "size": "small"}, "size"),
    ):
        fails(InvalidQueryError, words, LaionDataset, given, **options)
    stimuli.archive = str(tmp_path / "nope.h5")
    fails(errors.NotCachedError, "nope", LaionDataset, betas, stimuli)
    (tmp_path / "nope.h5").write_bytes(b"nothing")
    fails(errors.CorruptImageError, "nope", LaionDataset, betas, stimuli)


# --- In other processes ----------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn", "threads"])
def test_workers_read_items(dataset, betas, sources, method):
    check_item(dataset[0], 0, betas, sources)
    size = len(pickle.dumps(dataset))
    if method not in ("threads", *multiprocessing.get_all_start_methods()):
        pytest.skip("not on this system")
    is_threads = method == "threads"
    context = multiprocessing.get_context(None if is_threads else method)
    with ThreadPoolExecutor(4) if is_threads else context.Pool(2) as workers:
        items = list(workers.map(dataset.__getitem__, range(40)))
    for i, item in enumerate(items):
        check_item(item, i, betas, sources)
    assert len(pickle.dumps(dataset)) == size  # it holds no open file


def test_torch_is_not_imported():
    code = "import sys; from laion_fmri_fetchers import LaionDataset; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def with_mean(item):
    """Be a transform that spawned workers can import."""
    return {**item, "mean": float(item["betas"].mean())}


@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_the_data_loader_of_torch(betas, sources, method):
    data = pytest.importorskip("torch.utils.data")
    given = {kind: sources[kind] for kind in ("stimuli", "embeddings", "captions")}
    dataset = LaionDataset(betas, **given, transform=with_mean, size=32)
    loader = data.DataLoader(
        dataset,
        batch_size=16,
        num_workers=2 if method else 0,
        multiprocessing_context=method,
        persistent_workers=bool(method),
    )
    for _ in range(2):  # epochs
        batches = list(loader)
        assert [len(batch["label"]) for batch in batches] == [16, 16, 8]
        for name in ("betas", "embedding", "image", "repetition", "mean"):
            values = np.concatenate([batch[name].numpy() for batch in batches])
            assert np.array_equal(values, [dataset[i][name] for i in range(40)]), name
        for name in ("label", "caption", "subject", "session"):
            values = [text for batch in batches for text in batch[name]]
            assert values == [dataset[i][name] for i in range(40)]
