"""Stimuli in the order of trials, all at once and one by one, in worker processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import gate_fixtures
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.utils import Bunch

from laion_fmri_fetchers import (
    LaionDataset,
    align,
    fetch_laion_captions,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    fetch_laion_segmentations,
    fetch_laion_stimuli,
    fetch_laion_stimulus_metadata,
    load_betas,
)
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
)

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

QUIET = {"verbose": 0}
FETCHERS = {
    "stimuli": fetch_laion_stimuli,
    "embeddings": lambda **asked: fetch_laion_embeddings("CLIP", **asked),
    "captions": fetch_laion_captions,
    "segmentations": fetch_laion_segmentations,
    "metadata": fetch_laion_stimulus_metadata,
}


@pytest.fixture
def betas(access, data_dir, monkeypatch):
    """Betas of 40 trials in any order, some of them of the same image."""
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    data = fetch_laion_fmri("sub-01", rois="FFA1", sessions=[1, 2], **QUIET)
    loaded = load_betas(data, **QUIET)
    order = np.random.default_rng(0).permutation(len(loaded.trials))[:40]
    loaded.trials = loaded.trials.iloc[order]
    loaded.data = loaded.data[order]
    return loaded


@pytest.fixture
def sources(betas):
    """What each fetcher has of the images of the trials, in another order."""
    names = sorted(set(betas.trials["label"]))
    return {kind: fetch(labels=names, **QUIET) for kind, fetch in FETCHERS.items()}


@pytest.fixture
def dataset(betas, sources):
    return LaionDataset(
        betas, sources["stimuli"], sources["embeddings"], sources["captions"]
    )


def decoded(sources, label):
    """Return an image of the demo, which are opaque or lie over grey."""
    row = sources["metadata"].metadata.loc[label, "h5_index"]
    with h5py.File(sources["stimuli"].archive) as file:
        image = Image.open(io.BytesIO(bytes(file["images"][row]))).convert("RGBA")
    grey = Image.new("RGBA", image.size, (128, 128, 128, 255))
    return np.asarray(Image.alpha_composite(grey, image).convert("RGB"))


# --- In the order of trials ------------------------------------------------------


def test_each_source_is_aligned_with_trials(betas, sources):
    labels = list(betas.trials["label"])
    assert labels != sorted(labels)
    assert len(set(labels)) < len(labels)
    aligned = {kind: align(betas.trials, source) for kind, source in sources.items()}
    assert {len(values) for values in aligned.values()} == {len(labels)}
    clip = sources["embeddings"]
    rows = dict(zip(clip.image_names, clip.embeddings["CLIP"], strict=True))
    texts = sources["captions"].captions
    masks = sources["segmentations"].segmentations
    for i, label in enumerate(labels):
        assert np.array_equal(aligned["embeddings"][i], rows[label])
        difference = aligned["stimuli"][i].astype(int) - decoded(sources, label)
        assert abs(difference).max() <= 1
        expected = texts["caption"][texts["image_name"] == label]
        assert aligned["captions"][i] == list(expected)
        rows_of_masks = masks["mask_row"][masks["image_name"] == label]
        assert list(aligned["segmentations"][i]["mask_row"]) == list(rows_of_masks)
        assert aligned["metadata"].index[i] == label
    assert any(len(frame) for frame in aligned["segmentations"])
    assert aligned["embeddings"].shape == (len(labels), 1024)
    assert aligned["embeddings"].dtype == np.float16
    assert align(betas.trials, sources["stimuli"], size=20).shape[1:] == (20, 20, 3)
    for given in (betas, labels, betas.trials["label"]):
        assert np.array_equal(align(given, clip), aligned["embeddings"])


@pytest.mark.parametrize("kind", FETCHERS)
def test_an_image_that_a_source_lacks_is_an_error(betas, sources, kind):
    first, second, *others = sorted(set(betas.trials["label"]))
    source = FETCHERS[kind](labels=[second, *others], **QUIET)
    uses = [lambda: align(betas.trials, source)]
    if kind in ("stimuli", "embeddings", "captions"):
        uses.append(lambda: LaionDataset(betas, **{kind: source}))
    for use in uses:
        with pytest.raises(InvalidQueryError, match=f"{kind} lack 1 image") as error:
            use()
        assert repr(first) in str(error.value)
    with pytest.raises(InvalidQueryError, match="did you mean"):
        align([second[:-5] + "X.jpg"], source)


@pytest.mark.parametrize("kind", FETCHERS)
def test_fetchers_take_trials(betas, sources, kind):
    source = FETCHERS[kind](labels=betas.trials, **QUIET)
    shown = list(dict.fromkeys(betas.trials["label"]))
    has_names = "image_names" in source
    assert shown == list(source.image_names if has_names else source.metadata.index)
    typo = betas.trials.assign(label=shown[0].replace("_", "-", 1))
    if kind != "segmentations":  # not all images have some
        with pytest.raises(InvalidQueryError, match="no image") as error:
            FETCHERS[kind](labels=typo, **QUIET)
        assert repr(shown[0]) in str(error.value)  # the nearest name


def test_of_several_models_one_is_chosen(betas, sources):
    names = sorted(set(betas.trials["label"]))
    source = fetch_laion_embeddings(["CLIP", "SigLIP2"], names, **QUIET)
    assert align(betas.trials, source, model="siglip2").shape[1] == 1152
    for options in ({}, {"model": "SigLIP"}):
        with pytest.raises(InvalidQueryError, match="SigLIP2"):
            align(betas.trials, source, **options)
    with pytest.raises(InvalidQueryError, match="single one"):
        LaionDataset(betas, embeddings=source)
    clip = sources["embeddings"]
    clip.valid["CLIP"][clip.image_names.index(betas.trials["label"].iloc[0])] = False
    for use in (align, lambda trials, source: LaionDataset(betas, embeddings=source)):
        with pytest.warns(UserWarning, match="no valid embedding of 1 image"):
            use(betas.trials, clip)
    clip.image_names = clip.image_names[1:]
    with pytest.raises(InvalidQueryError, match="cut all keys alike"):
        align(clip.image_names, clip)


CAPTIONS = Bunch(captions=pd.DataFrame({"image_name": []}), image_names=[])


@pytest.mark.parametrize(
    ("trials", "source", "message"),
    [
        (["a.jpg"], None, "NoneType was given in place of embeddings or"),
        (["a.jpg"], Bunch(images=[]), "Bunch with images"),
        ("a.jpg", CAPTIONS, "trials is a str"),
        (pd.DataFrame({"x": [1]}), CAPTIONS, "column 'label'"),
        ([None], CAPTIONS, "label None"),
        ({"a.jpg", "b.jpg"}, CAPTIONS, "trials is a set"),
    ],
    ids=str,
)
def test_what_cannot_be_aligned_is_named(trials, source, message):
    with pytest.raises(InvalidQueryError, match=message):
        align(trials, source)


# --- One by one ------------------------------------------------------------------


def check_item(item, i, betas, sources):
    """Compare an item with what it should be, looked up by itself."""
    trial = betas.trials.iloc[i]
    clip, texts = sources["embeddings"], sources["captions"].captions
    row = clip.image_names.index(trial["label"])
    human = texts[
        (texts["image_name"] == trial["label"]) & (texts["source"] == "human")
    ]
    assert np.array_equal(item["betas"], betas.data[i])
    assert np.array_equal(item["embedding"], clip.embeddings["CLIP"][row])
    assert abs(item["image"].astype(int) - decoded(sources, trial["label"])).max() <= 1
    assert item["caption"] == human.sort_values("caption_idx")["caption"].iloc[0]
    assert item["label"] == trial["label"]
    assert (item["subject"], item["session"]) == ("sub-01", trial["session"])
    assert item["repetition"] == trial["repetition"]
    kinds = {name: type(value) for name, value in item.items()}
    assert kinds == {
        **dict.fromkeys(("betas", "image", "embedding"), np.ndarray),
        **dict.fromkeys(("caption", "label", "subject", "session"), str),
        "repetition": int,
    }


def test_items_are_had_by_index_and_are_the_users_to_change(dataset, betas, sources):
    assert len(dataset) == 40
    assert "40 trials" in repr(dataset)
    for i in (0, 39, np.int64(7), np.uint8(3)):
        item = dataset[i]
        for name in ("betas", "embedding", "image"):
            item[name] += 1
        check_item(dataset[i], int(i), betas, sources)
    check_item(dataset[-1], 39, betas, sources)
    check_item(dataset[np.int64(-40)], 0, betas, sources)
    for i in (40, -41, np.int64(10**6)):
        with pytest.raises(IndexError, match="40 trials"):
            dataset[i]
    assert len(list(LaionDataset(betas))) == 40  # by index until an IndexError
    for index in ("0", 1.0, slice(2), None):
        with pytest.raises(TypeError):
            dataset[index]


def test_items_have_what_was_given(betas, sources):
    plain = {"betas", "label", "subject", "session", "repetition"}
    assert set(LaionDataset(betas)[0]) == plain
    with_captions = LaionDataset(betas, captions=sources["captions"])
    assert set(with_captions[0]) == {*plain, "caption"}
    small = LaionDataset(betas, sources["stimuli"], size=(10, 20))
    assert small[0]["image"].shape == (10, 20, 3)
    changed = LaionDataset(betas, transform=lambda item: item["betas"].mean())
    assert changed[3] == pytest.approx(betas.data[3].mean())
    bare = betas.trials[["label"]]
    item = LaionDataset(Bunch(data=betas.data, trials=bare))[0]
    assert (item["session"], item["repetition"]) == ("", -1)


def test_averages_have_no_session_or_repetition(betas):
    data = fetch_laion_fmri("sub-01", rois="FFA1", sessions=[1, 2], **QUIET)
    averaged = load_betas(data, average_repeats=True, **QUIET)
    dataset = LaionDataset(averaged)
    several = np.flatnonzero(averaged.trials["session"].isna())
    assert len(several)
    for i in several:
        item = dataset[i]
        expected = ("sub-01", "", -1)
        assert (item["subject"], item["session"], item["repetition"]) == expected


def test_what_is_no_dataset_is_named(betas, sources, tmp_path):
    of_models = fetch_laion_captions(betas.trials, source="ai", **QUIET)
    with pytest.raises(InvalidQueryError, match="none by a person"):
        LaionDataset(betas, captions=of_models)
    with pytest.raises(InvalidQueryError, match="in place of stimuli"):
        LaionDataset(betas, sources["embeddings"])
    with pytest.raises(InvalidQueryError, match=r"betas\['sub-01'\]"):
        LaionDataset({"sub-01": betas})
    with pytest.raises(InvalidQueryError, match="without data and trials"):
        LaionDataset(betas.trials)
    with pytest.raises(InvalidQueryError, match="one row per trial"):
        LaionDataset(Bunch(data=betas.data[1:], trials=betas.trials))
    with pytest.raises(InvalidQueryError, match="function"):
        LaionDataset(betas, transform=3)
    with pytest.raises(InvalidQueryError, match="size"):
        LaionDataset(betas, sources["stimuli"], size="small")
    stimuli = sources["stimuli"]
    stimuli.archive = str(tmp_path / "nope.h5")
    with pytest.raises(NotCachedError, match="nope"):
        LaionDataset(betas, stimuli)
    (tmp_path / "nope.h5").write_bytes(b"nothing")
    with pytest.raises(CorruptImageError, match="nope"):
        LaionDataset(betas, stimuli)


# --- In other processes ----------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_items(dataset, betas, sources, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("not on this system")
    check_item(dataset[0], 0, betas, sources)
    with multiprocessing.get_context(method).Pool(2) as workers:
        for i, item in enumerate(workers.map(dataset.__getitem__, range(40))):
            check_item(item, i, betas, sources)


def test_threads_share_a_dataset_that_holds_no_open_file(dataset, betas, sources):
    size = len(pickle.dumps(dataset))
    with ThreadPoolExecutor(4) as threads:
        items = list(threads.map(dataset.__getitem__, range(40)))
    for i, item in enumerate(items):
        check_item(item, i, betas, sources)
    assert len(pickle.dumps(dataset)) == size
    os.unlink(sources["stimuli"].archive)
    with pytest.raises(FileNotFoundError):
        dataset[0]


def test_torch_is_not_imported():
    code = (
        "import sys; from laion_fmri_fetchers import LaionDataset; "
        "print([name for name in sys.modules if name.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


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
