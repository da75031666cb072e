"""Stimulus images and what derives from them: what comes, in which order, unharmed."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import gate_fixtures
import h5py
import numpy as np
import pandas as pd
import pytest
from checks import fails, no_warnings, warned
from PIL import Image
from sklearn.utils import Bunch

import laion_fmri_fetchers as package
from laion_fmri_fetchers import GreaterThan, IsNull, ResultFilter, load_stimuli
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.demo.server import UPLOADED
from laion_fmri_fetchers.demo.service import MANIFEST
from laion_fmri_fetchers.exceptions import CorruptImageError, InvalidQueryError
from laion_fmri_fetchers.layout.labels import stimulus_fields

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

KEYS = "stimuli.h5", "metadata.csv", "desc-captions.csv", "desc-segmentations.h5"
ARCHIVE, TABLE, CAPTIONS, SEGMENTATIONS = (f"stimuli/task-images_{k}" for k in KEYS)
SEGMENTATIONS_TABLE = "stimuli/task-images_desc-segmentations_metadata.csv"
CLIP = "stimuli/task-images_desc-CLIP_embeddings.h5"
SIGLIP = CLIP.replace("CLIP", "SigLIP2")
SCREENSHOT = "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg"
PNG = "shared_4rep_OOD_shape_blob_round-01.png"
SPECIAL = "shared_4rep_NSD_special1000_4.jpg"


def quiet(function, **options):
    return functools.partial(function, verbose=0, **options)


fetch = quiet(package.fetch_laion_stimuli)
metadata = quiet(package.fetch_laion_stimulus_metadata)
captions = quiet(package.fetch_laion_captions)
embeddings = quiet(package.fetch_laion_embeddings)
segmentations = quiet(package.fetch_laion_segmentations)
PUBLIC = {
    "captions": captions,
    "embeddings": embeddings,
    "segmentations": segmentations,
    "metadata": metadata,
}


@pytest.fixture
def granted(access, data_dir, monkeypatch):
    """Access to the stimuli."""
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    return access


@pytest.fixture(scope="session")
def published(bucket_folder):
    """The table of stimuli as it is in the bucket, and the encoded images by name."""
    table = pd.read_csv(bucket_folder / TABLE, dtype=str, keep_default_na=False)
    with h5py.File(bucket_folder / ARCHIVE) as file:
        images = [bytes(data) for data in file["images"][()]]
    return table, dict(zip(table["image_name"], images, strict=True))


@pytest.fixture
def put(server, bucket_folder):
    """Replace objects of the bucket; at the end they are as they were."""
    keys = []

    def replace(key, data):
        keys.append(key)
        server.put(key, data, last_modified=dt.datetime(2026, 9, 28))

    yield replace
    for key in keys:
        data = (bucket_folder / key).read_bytes()
        server.put(key, data, last_modified=UPLOADED)


def an_hdf5(**content):
    """An HDF5 file; a list is of encoded images."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in content.items():
            if isinstance(values, list):
                kind = h5py.vlen_dtype(np.uint8)
                rows = file.create_dataset(name, (len(values),), dtype=kind)
                for i, value in enumerate(values):
                    rows[i] = np.frombuffer(value, np.uint8)
            else:
                file[name] = values
    return buffer.getvalue()


def write(data_dir, key, content):
    """Put a file into the data directory."""
    file = data_dir / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def plain(table):
    """Return the values of a table, with None for what is null."""
    return table.astype(object).where(table.notna(), None)


# --- What is selected ------------------------------------------------------------


def test_metadata_are_in_order_and_align_with_trials(granted, published):
    data = fetch()
    assert set(data) == {
        *("metadata", "images", "archive", "metadata_file", "files_meta", "failed"),
        *("data_dir", "query", "description"),
    }
    assert list(data.metadata.index) == list(published[0]["image_name"])
    assert data.metadata.index.name == "image_name"
    assert list(data.metadata["h5_index"]) == list(range(len(published[0])))
    assert (data.images, data.failed) == ([], [])
    assert "Data Use Agreement" in data.description
    for name, row in plain(data.metadata).iterrows():
        expected = stimulus_fields(name)
        assert {field: row[field] for field in expected} == expected
    trials = package.fetch_laion_fmri("sub-01", None, [1, 2], verbose=0).trials
    data = fetch(labels=trials["label"])
    assert list(data.metadata.index) == list(dict.fromkeys(trials["label"]))
    fields = ["dataset", "participant", "unique_or_shared", "n_reps", "ood_type"]
    shown = plain(data.metadata.loc[trials["label"], fields])
    assert shown.to_numpy().tolist() == plain(trials[fields]).to_numpy().tolist()
    for same in (fetch(trials), fetch(labels=trials), fetch(data.metadata)):
        pd.testing.assert_frame_equal(same.metadata, data.metadata)
        assert same.query == data.query


def is_png(name):
    return ".png" in name


def test_filters_and_terms_select_images(server, data_dir, published):
    names = published[0]["image_name"]
    nsd = ResultFilter(dataset="NSD") | ResultFilter(n_reps=12)
    shapes = {"stimulus_filter": {"dataset": "OOD"}, "ood_type": "shape"}
    for asked, passes in (
        ({"n_reps": GreaterThan(4)}, lambda n: "_12rep_" in n),
        ({"stimulus_filter": nsd}, lambda n: "_NSD_" in n or "_12rep_" in n),
        (shapes, lambda n: "_OOD_shape" in n),
        ({"stimulus_filter": lambda row: ".png" in row["image_name"]}, is_png),
    ):
        expected = [name for name in names if passes(name)]
        assert 0 < len(expected) < len(names)
        assert list(metadata(**asked).metadata.index) == expected


def test_labels_with_a_filter_and_a_limit(server, data_dir):
    names = [PNG, SCREENSHOT, PNG, SPECIAL]
    shown = metadata(names, dataset="OOD").metadata
    assert list(shown.index) == [PNG, SCREENSHOT]
    for limit, expected in ((1, [PNG]), (-1, [PNG, SCREENSHOT, SPECIAL])):
        shown = fetch(names, max_images=limit, dry_run=True).metadata
        assert list(shown.index) == expected
    data = warned("nowhere", metadata, ["nowhere.jpg", PNG], allow_missing=True)
    assert list(data.metadata.index) == [PNG]


def test_arguments_that_are_not_valid_are_named(granted):
    for asked, words in (
        ({"labels": [PNG[:-4]]}, PNG),
        ({"labels": 3}, "labels"),
        ({"labels": pd.DataFrame({"run": [1]})}, "column 'label'"),
        ({"labels": Bunch(metadata=[])}, r"labels is a Bunch .* data\.metadata"),
        ({"labels": {3: 4}}, "labels is a dict with 3; give labels"),
        ({"standardize": "zscore"}, "argument of fetch_laion_betas, load_betas"),
        ({"datset": "OOD"}, "dataset"),
        ({"stimulus_filter": {"rep": 3}}, "n_reps"),
        ({"max_images": 1.5}, "max_images"),
    ):
        fails(InvalidQueryError, words, fetch, **asked)
    for call in PUBLIC.values():
        for labels in ({SCREENSHOT, PNG}, Bunch(trials=[])):
            words = "labels is a (set, whose|Bunch with)"
            fails(InvalidQueryError, words, call, labels=labels)
    humans = {"caption_filter": ResultFilter(source="ai") | {"source": "humans"}}
    for call, asked, words in (
        (metadata, {"dataset": "x"}, "Nothing passes.*dataset is LAION, NSD, OOD"),
        (segmentations, {"localized": 2}, "Nothing passes.*localized is 0, 1"),
        (captions, humans, "a part of caption_filter.*source is ai, human"),
    ):
        warned(words, call, **asked)


def test_dry_run_needs_no_access(access, server, data_dir, bucket_folder):
    size = (bucket_folder / ARCHIVE).stat().st_size
    plan = fetch(dry_run=True, unique_or_shared="shared", extract=True)
    expected = [{"id": ARCHIVE, "size": size, "reason": "missing"}]
    assert plan.plan.to_dict("records") == expected
    assert plan.plan_size == size
    assert set(plan.metadata["unique_or_shared"]) == {"shared"}
    assert {key for _, key, _ in server.requests} == {"", TABLE}
    # Where the bucket does not list the archive, the manifest tells.
    server.delete(ARCHIVE)
    file = {"name": "task-images_stimuli.h5", "size": 3_200_000_000, "sha256": "0" * 64}
    manifest = {"current_terms_version": "2026-05-12", "files": [file]}
    access.answers[MANIFEST] = (200, {}, manifest)
    assert fetch(dry_run=True).plan_size == 3_200_000_000
    access.answers[MANIFEST] = (500, {}, b"")
    fails(errors.AccessServiceError, "500", fetch, dry_run=True)


# --- The public table ------------------------------------------------------------


def test_the_table_is_the_same_by_both_fetchers(granted, data_dir, capfd):
    shared = {"unique_or_shared": "shared"}
    assert fetch(max_images=0, **shared).archive is None
    assert not (data_dir / ARCHIVE).exists()  # as no image is selected
    table = metadata(**shared)
    for said in (True, False):  # before 3.2 GB are fetched
        images = package.fetch_laion_stimuli(**shared)
        assert ("3.2 GB" in capfd.readouterr().err) == said
    pd.testing.assert_frame_equal(table.metadata, images.metadata)
    assert table.query["stimulus_filter"] == images.query["stimulus_filter"]
    assert len(fetch(dry_run=True).plan) == 0  # all is on disk
    plan = fetch(dry_run=True, mode="overwrite").plan
    assert plan["reason"].tolist() == ["overwrite"]


FIELDS = ["dataset", "participant", "unique_or_shared", "n_reps", "ood_type"]
ROWS = """image_name,dataset,participant,unique_or_shared,n_reps,colour
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep,red
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03;sub-05,shared,4rep,n/a
shared_4rep_OOD_shape_blob_round-01.png,OOD,shared,shared,4rep,
unique_LAION_initial_cluster_1122_i1_p05.jpg,LAION,sub-07,unique,4rep,
an image of another name.jpg,THINGSplus,sub-06,unique,4rep,
another.jpg,n/a,sub-01;sub-03,shared,12rep,
unique_THINGS_air_pump_p03.jpg,NSD,sub-03,shared,many,
unique_THINGS_air_pump_p99.jpg,THINGS,sub-03,unique,4rep,
"""
SPELLED = [
    ("THINGS+", None, "shared", 12, None),
    ("NSD", None, "shared", 4, None),
    ("OOD", None, "shared", 4, "shape"),
    ("LAION", "sub-07", "unique", 4, None),
    ("THINGS+", "sub-06", "unique", 4, None),
    (None, None, "shared", 12, None),
    ("THINGS", "sub-05", "unique", 4, None),  # the label has the last word
    ("THINGS", None, "unique", 4, None),
]


def test_the_table_has_the_spelling_of_labels(server, data_dir):
    file = write(data_dir, TABLE, ROWS)
    table = metadata(mode="offline").metadata
    rows = plain(table[FIELDS]).itertuples(index=False, name=None)
    assert list(rows) == SPELLED
    assert table["n_reps"].dtype == "Int64"
    assert list(table["h5_index"]) == list(range(len(SPELLED)))
    assert list(table["colour"])[:2] == ["red", None]
    found = metadata(mode="offline", participant=IsNull()).metadata
    assert len(found) == sum(participant is None for _, participant, *_ in SPELLED)
    file.write_text("image_name\nunique_THINGS_air_pump_p03.jpg\nanother.jpg\n")
    rows = plain(metadata(mode="offline").metadata[FIELDS]).to_numpy().tolist()
    assert rows == [["THINGS", "sub-05", "unique", 4, None], [None] * 5]


def test_names_of_no_image(granted, server, published, data_dir, tmp_path):
    unsafe = {"error": errors.UnsafeKeyError, "words": "nothing was written"}
    damaged = {"error": CorruptImageError, "words": "overwrite"}
    for name, expected in (
        *((PNG, damaged), ("../escape.jpg", unsafe), ("C:x.jpg", unsafe)),
        *(("a\nb", unsafe), ("..", unsafe)),
    ):
        table = published[0].copy()
        table.loc[3, "image_name"] = name
        server.put(TABLE, table.to_csv(index=False).encode())
        fails(**expected, call=fetch, extract=True, mode="overwrite")
    server.put(TABLE, table.rename(columns={"image_name": "x"}).to_csv().encode())
    fails(**damaged, call=fetch, extract=True, mode="overwrite")
    assert not (data_dir / "stimuli/images").exists()
    assert not list(tmp_path.rglob("escape.jpg"))


# --- The archive -----------------------------------------------------------------


def test_extracted_images(granted, server, published, data_dir):
    table, images = published
    data = fetch(extract=True, unique_or_shared="shared")
    folder, rows = data_dir / "stimuli/images", data.metadata
    assert data.images == [str(folder / name) for name in rows.index]
    assert {file.name for file in folder.iterdir()} == set(rows.index)
    assert {SCREENSHOT, "shared_4rep_OOD_gaudy_street+night.jpg"} < {*rows.index}
    times = [os.stat(path).st_mtime_ns for path in data.images]
    everything = fetch(extract=True)
    assert [os.stat(path).st_mtime_ns for path in data.images] == times
    for path, name in zip(everything.images, table["image_name"], strict=True):
        assert Path(path).read_bytes() == images[name]
    os.unlink(data.images[0])
    fetch(extract=True, mode="offline")
    assert os.path.exists(data.images[0])
    # A new archive renews what was extracted.
    server.put(ARCHIVE, an_hdf5(images=[image + b"new" for image in images.values()]))
    assert fetch([PNG], mode="overwrite").images == []
    for name in (PNG, SCREENSHOT):
        assert (folder / name).read_bytes() == images[name] + b"new"


def test_a_table_in_another_order_is_an_error(granted, server, published):
    before = load_stimuli(fetch([PNG]), size=8)
    table, images = published
    server.put(TABLE, table[::-1].to_csv(index=False).encode())
    warned("another version of 1 file", fetch, [PNG])
    metadata(mode="overwrite")
    words = "another order.*mode='overwrite'"
    for mode in ("download_new", "offline"):
        fails(CorruptImageError, words, fetch, [PNG], mode=mode)
    server.put(ARCHIVE, an_hdf5(images=[*images.values()][::-1]))
    fetch([PNG], mode="overwrite")
    assert (load_stimuli(fetch([PNG]), size=8) == before).all()


def test_a_disk_that_fills_while_extracting(granted, monkeypatch, data_dir):
    fetch()
    replace, left = os.replace, [3]

    def until_full(source, target):
        left[0] -= "stimuli/images/" in str(target)
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", until_full)
    fails(errors.DiskSpaceError, "full", fetch, extract=True)
    assert len(os.listdir(data_dir / "stimuli/images")) == 3


def test_an_archive_that_fails_or_is_something_else(granted, server):
    objects = granted.objects
    granted.objects = lambda environ: (404, {}, b"")
    error = fails(errors.DownloadError, "404", fetch, max_images=2)
    assert [failure["id"] for failure in error.failed] == [ARCHIVE]
    words = r"stimuli\.h5 could not be downloaded: .*404"
    data = warned(words, fetch, max_images=2, allow_missing=True, extract=True)
    assert (data.archive, data.images, len(data.metadata)) == (None, [], 2)
    assert [failure["id"] for failure in data.failed] == [ARCHIVE]
    granted.objects = objects
    for content, words in (
        (b"no HDF5 at all", "overwrite"),
        (an_hdf5(images=np.zeros((2, 2))), "no 1-D dataset 'images'"),
        (an_hdf5(images=[b"an image"]), "it holds 1 images, its metadata"),
    ):
        server.put(ARCHIVE, content)
        fails(CorruptImageError, words, fetch, mode="overwrite")


# --- Images as arrays ------------------------------------------------------------


def test_images_are_loaded_as_displayed(granted, published):
    _, images = published
    data = fetch([SCREENSHOT, PNG])
    pictures = load_stimuli(data)
    assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 160, 160, 3))
    jpeg = np.asarray(Image.open(io.BytesIO(images[SCREENSHOT])))
    np.testing.assert_array_equal(pictures[0], jpeg)
    rgba = np.asarray(Image.open(io.BytesIO(images[PNG]))).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 128 * (1 - alpha)
    assert np.abs(pictures[1] - expected).max() <= 0.5 + 1e-9
    assert (alpha == 0).any()
    assert (pictures[1][rgba[..., 3] == 0] == 128).all()
    stored = load_stimuli(data, as_displayed=False)
    np.testing.assert_array_equal(stored[1], rgba[..., :3])


def test_images_are_loaded_in_order_resized_and_in_batches(granted):
    data = fetch()
    everything = load_stimuli(data)
    data.metadata = data.metadata.sample(23, random_state=0)
    pictures = load_stimuli(data)
    np.testing.assert_array_equal(pictures, everything[data.metadata["h5_index"]])
    small = load_stimuli(data, size=(24, 36))
    assert load_stimuli(data, size=24).shape == (23, 24, 24, 3)
    for shown, resized in zip(pictures, small, strict=True):
        expected = Image.fromarray(shown).resize((36, 24), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(resized, np.asarray(expected))
    batches = list(load_stimuli(data, size=(24, 36), batch_size=10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(batches), small)
    n_threads = threading.active_count()
    unfinished = load_stimuli(data, batch_size=3)
    next(unfinished)
    unfinished.close()
    assert threading.active_count() <= n_threads
    with h5py.File(data.archive, "r+"):  # it is closed
        pass
    data.metadata = data.metadata[:0]
    assert load_stimuli(data).shape == (0, 0, 0, 3)
    assert load_stimuli(data, size=8).shape == (0, 8, 8, 3)
    assert list(load_stimuli(data, batch_size=8)) == []


def test_images_that_cannot_be_loaded(granted, server, published):
    for given, words in (
        (Bunch(images=["a.nii.gz"], trials=[]), "a Bunch with images, trials"),
        (Bunch(metadata=pd.DataFrame({"x": [1]}), archive="a.h5"), "a Bunch with"),
        (Bunch(metadata=pd.DataFrame({"h5_index": [1]})), "archive"),
        ("stimuli.h5", "a str was given"),
    ):
        words = f"fetch_laion_stimuli.*{words}"
        fails(InvalidQueryError, words, load_stimuli, given)
    none = fetch(max_images=0)
    fails(errors.NotCachedError, "fetch_laion_stimuli", load_stimuli, none)
    for wrong in ({"size": 0}, {"size": (1, 2, 3)}, {"size": "b"}, {"batch_size": 0}):
        fails(InvalidQueryError, next(iter(wrong)), load_stimuli, none, **wrong)
    other = io.BytesIO()
    Image.new("RGB", (10, 20)).save(other, "PNG")
    changed = [*published[1].values()]
    changed[2], changed[5] = b"no image", other.getvalue()
    server.put(ARCHIVE, an_hdf5(images=changed))
    data = fetch()
    table = data.metadata
    words = f"{re.escape(table.index[2])}.*decoded"
    fails(CorruptImageError, words, load_stimuli, data)
    data.metadata = table.iloc[4:7]
    fails(InvalidQueryError, "size", load_stimuli, data)
    assert load_stimuli(data, size=8).shape == (3, 8, 8, 3)


# --- Public files ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "key", "same_size"),
    [
        (metadata, TABLE, False),
        (captions, CAPTIONS, True),
        (quiet(package.fetch_laion_embeddings, models="CLIP"), CLIP, False),
        (segmentations, SEGMENTATIONS_TABLE, False),
        (segmentations, SEGMENTATIONS, True),
    ],
)
def test_outdated_files(data_dir, put, bucket_folder, call, key, same_size):
    old = (bucket_folder / key).read_bytes()
    new = old[:-1] + (b"\n" if old[-1:] != b"\n" else b" ") + b"\n" * (not same_size)
    call()
    put(key, new)
    with pytest.warns(UserWarning, match="another version.*mode='overwrite'") as caught:
        outdated = call()
    (text,) = {str(warning.message) for warning in caught}
    assert key in text
    archived = "archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5"
    assert (f"fetch_laion_fmri_ids('{archived}')" in text) == ("CLIP" in key)
    assert (data_dir / key).read_bytes() == old
    with no_warnings():
        renewed = call(mode="overwrite")
        assert call().files_meta == renewed.files_meta
    assert (data_dir / key).read_bytes() == new
    for data, expected in (
        (outdated, (True, len(old), None)),
        (renewed, (False, len(new), hashlib.md5(new).hexdigest())),
    ):
        (record,) = (rec for rec in data.files_meta if rec["id"] == key)
        assert (record["outdated"], record["size"], record["etag"]) == expected


def test_a_file_that_others_put_there(server, data_dir, bucket_folder):
    whole = (bucket_folder / CAPTIONS).read_bytes()
    file = write(data_dir, CAPTIONS, whole)
    with no_warnings():
        assert captions().files_meta[0]["outdated"] is False
    file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    warned("another size.*cut short", captions, mode="offline")
    captions()
    assert file.read_bytes() == whole


@pytest.mark.parametrize("call", PUBLIC.values(), ids=PUBLIC)
def test_public_files_need_no_access(server, data_dir, monkeypatch, call, request):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    fails(errors.NotCachedError, "download_new", call, mode="offline")
    online = call()
    assert {"files_meta", "failed", "data_dir", "query", "description"} < set(online)
    for record in online.files_meta:
        assert record["size"] == os.path.getsize(record["absolute_path"])
        assert record["outdated"] is False
    assert online.failed == []
    server.requests.clear()
    call()
    assert {key for _, key, _ in server.requests} == {""}
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/gone")
    gone = warned("on disk", call)
    fails(errors.BucketError, "Missing", call, mode="overwrite")
    request.getfixturevalue("no_network")
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    for again in (gone, call()):
        assert set(again) == set(online)
        for key, value in online.items():
            if isinstance(value, pd.DataFrame):
                pd.testing.assert_frame_equal(again[key], value)
            elif key != "files_meta":
                np.testing.assert_equal(again[key], value)
    assert again.files_meta == online.files_meta


def test_tables_are_needed_and_other_files_may_be_missing(server, data_dir):
    for call, key in (
        *((captions, CAPTIONS), (segmentations, SEGMENTATIONS_TABLE)),
        *((embeddings, SIGLIP), (segmentations, SEGMENTATIONS)),
    ):
        server.faults[key] = (404, {}, b"")
        error = fails(errors.DownloadError, "404", call)
        assert error.failed[0]["id"] == key
        if key.endswith(".csv"):
            fails(errors.DownloadError, "404", call, allow_missing=True)
        else:
            data = warned("Left out", call, allow_missing=True)
            assert [failure["id"] for failure in data.failed] == [key]
            assert len(data.image_names) > 0
        server.faults.clear()


def test_captions(server, data_dir, bucket_folder):
    published = pd.read_csv(bucket_folder / CAPTIONS, keep_default_na=False, dtype=str)
    data = captions()
    assert list(data.captions) == list(published)
    assert list(data.captions["caption"]) == list(published["caption"])
    assert data.captions["caption_idx"].dtype == np.int64
    assert data.captions["ai_model"].isna().sum() == (published["ai_model"] == "").sum()
    names = [SCREENSHOT, PNG, SPECIAL]
    some = captions(names, source="human")
    assert some.image_names == names
    assert list(some.captions["image_name"]) == [n for n in names for _ in range(5)]
    assert list(some.captions["caption_idx"]) == [1, 2, 3, 4, 5] * 3
    ai = captions(names, caption_filter={"source": "ai"})
    assert ai.image_names == names
    assert set(ai.captions["image_name"]) == {SPECIAL}
    fails(InvalidQueryError, "nowhere", captions, ["nowhere.jpg"])
    fails(InvalidQueryError, "did you mean", captions, sourc="human")
    # A caption is text, whatever it says.
    text = 'a.jpg,1,human,1984\na.jpg,2,human,None\n"a, b.jpg",1,human,"say ""n/a"""\n'
    write(data_dir, CAPTIONS, "image_name,caption_idx,source,caption\n" + text)
    data = warned("another size", captions, mode="offline")
    assert list(data.captions["caption"]) == ["1984", "None", 'say "n/a"']
    assert data.image_names == ["a.jpg", "a, b.jpg"]


def test_embeddings(server, data_dir, bucket_folder):
    with h5py.File(bucket_folder / SIGLIP) as file:
        names = [name.decode() for name in file["image_ids"][()]]
        values = file["embedding"][()]
    everything = embeddings(["siglip2", "CLIP"])
    assert list(everything.embeddings) == ["SigLIP2", "CLIP"]
    assert everything.image_names == names
    np.testing.assert_array_equal(everything.embeddings["SigLIP2"], values)
    assert everything.embeddings["CLIP"].shape == (len(names), 1024)
    some = embeddings("SigLIP2", [names[i] for i in (30, 2, 77, 30, 5)])
    assert some.image_names == [names[i] for i in (30, 2, 77, 5)]
    np.testing.assert_array_equal(some.embeddings["SigLIP2"], values[[30, 2, 77, 5]])
    assert some.embeddings["SigLIP2"].dtype == np.float16
    assert some.valid["SigLIP2"].tolist() == [True] * 4
    assert {key for _, key, _ in server.requests if key} == {SIGLIP, CLIP}
    models = {"SigLIP2", "CLIP", "PEcore"}  # a set, whose order does not matter
    assert list(embeddings(models, PNG).files) == ["CLIP", "PEcore", "SigLIP2"]
    for models, words in (("CLIPP", "did you mean"), ([], "empty"), (3, "models is 3")):
        fails(InvalidQueryError, words, embeddings, models)
    server.delete(key := CLIP.replace("CLIP", "DINOv2"))
    fails(errors.DownloadError, "not in the bucket", embeddings, "DINOv2")
    server.put(key, (bucket_folder / key).read_bytes(), last_modified=UPLOADED)


def put_embeddings(data_dir, model, names):
    """Write embeddings whose only value is the position in the alphabet."""
    content = an_hdf5(
        embedding=np.array([[ord(name[0]) - 97] for name in names], "f2"),
        image_ids=np.array(names, "S"),
        valid=np.array([name != "d.jpg" for name in names]),
    )
    write(data_dir, CLIP.replace("CLIP", model), content)


def test_rows_of_models_correspond_whatever_their_files_order(server, data_dir):
    put_embeddings(data_dir, "CLIP", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    put_embeddings(data_dir, "DINOv2", ["d.jpg", "a.jpg", "c.jpg", "e.jpg"])
    offline = functools.partial(embeddings, mode="offline")
    # Rows that a model did not give are numbers, as others are.
    warned(r"CLIP gave no valid .* 1 image \('d\.jpg'\)", offline, "CLIP")
    with no_warnings():
        offline("CLIP", ["a.jpg"])
    models = ["CLIP", "DINOv2"]
    words = r"'e\.jpg' in the embeddings of CLIP"
    fails(InvalidQueryError, words, offline, models)
    for names, expected in (
        (None, ["a.jpg", "c.jpg", "d.jpg"]),
        (["d.jpg", "b.jpg", "a.jpg"], ["d.jpg", "a.jpg"]),
    ):
        words = r"'b\.jpg' in the embeddings of DINOv2"
        data = warned(words, offline, models, names, allow_missing=True)
        assert data.image_names == expected
        for model in models:
            values = [ord(name[0]) - 97 for name in expected]
            assert data.embeddings[model][:, 0].tolist() == values
            assert data.valid[model].tolist() == [name != "d.jpg" for name in expected]

    ids, valid = np.array(["a.jpg", "b.jpg"], "S"), np.array([True, True])
    for content, words in (
        (b"none", "overwrite"),
        (an_hdf5(embedding=np.eye(2)), "overwrite"),
        (an_hdf5(embedding=np.eye(3), image_ids=ids, valid=valid), "differ in length"),
        (an_hdf5(embedding=np.eye(2), image_ids=ids[[0, 0]], valid=valid), "twice"),
    ):
        write(data_dir, CLIP, content)
        fails(CorruptImageError, words, offline, "CLIP", ["a.jpg"])


def test_segmentations_and_counts_of_nouns(server, data_dir, bucket_folder, published):
    assert segmentations(masks=False).masks_file is None
    assert {key for _, key, _ in server.requests if key} == {SEGMENTATIONS_TABLE}
    count = functools.partial(segmentations, vectorize_nouns=True)
    data = count()
    table = data.segmentations
    by_row = table.sort_values("mask_row").reset_index(drop=True)
    expected = pd.read_csv(bucket_folder / SEGMENTATIONS_TABLE)
    pd.testing.assert_frame_equal(by_row, expected, check_dtype=False)
    whole = ["mask_row", "instance_id", "localized"]
    assert {*table[whole].dtypes} == {np.dtype(np.int64)}
    row = table.query("localized == 1").iloc[0]
    with h5py.File(data.masks_file) as file:
        mask = file["masks"][row["mask_row"]]
    left, top, right, bottom = row[["box_x0", "box_y0", "box_x1", "box_y1"]].astype(int)
    assert mask[top:bottom, left:right].all()
    counts = pd.crosstab(table["image_name"], table["noun"])
    assert data.vocabulary.tolist() == sorted(set(table["noun"]))
    assert data.noun_counts.dtype == np.int32
    expected = counts.loc[data.image_names, data.vocabulary]
    np.testing.assert_array_equal(data.noun_counts, expected)
    some = segmentations([PNG, SCREENSHOT], localized=1)
    assert some.image_names == [PNG, SCREENSHOT]
    assert set(some.segmentations["localized"]) <= {1}
    fails(InvalidQueryError, "noun", segmentations, nuon="face")
    unique = [name for name in published[1] if name.startswith("unique")][:2]
    with no_warnings():  # only shared images have masks
        data = count([*unique, PNG])
    assert data.image_names == [*unique, PNG]
    assert (data.noun_counts[:2] == 0).all()
    assert data.noun_counts[2].sum() == len(data.segmentations)
    nowhere = warned("no masks of 'nowhere", count, ["nowhere.jpg"])
    assert nowhere.noun_counts.shape == (1, 0)


def test_segmentations_in_odd_tables(server, data_dir):
    """Numbers and words in one column are words; a null is no noun."""
    header = "mask_row,image_name,noun,instance_id,score,localized\n"
    rows = "2,a.jpg,cat,0,0.5,1\n1,a.jpg,n/a,1,high,1\n0,b.jpg,dog,0,n/a,yes\n"
    file = write(data_dir, SEGMENTATIONS_TABLE, header + rows)
    call = functools.partial(segmentations, masks=False, mode="offline")
    words = "line 4: localized is 'yes', not a whole"
    data = warned(words, call, ["b.jpg", "a.jpg"], vectorize_nouns=True)
    table = data.segmentations
    assert list(table["mask_row"]) == [0, 1, 2]
    assert list(table["score"]) == [None, "high", "0.5"]
    assert table["localized"].isna().tolist() == [True, False, False]
    assert data.noun_counts.tolist() == [[0, 1], [1, 0]]
    fails(CorruptImageError, "line 4, column localized", call, localized=1)
    file.write_text(header + rows.replace("2,a", "two,a"))
    fails(CorruptImageError, "mask_row.*overwrite", call)


# --- Tables with flaws -----------------------------------------------------------


CALLS = {
    "captions": (captions, CAPTIONS, {"caption_idx": 1}),
    "segmentations": (
        quiet(package.fetch_laion_segmentations, masks=False),
        *(SEGMENTATIONS_TABLE, {"instance_id": 0}),
    ),
    "metadata": (metadata, TABLE, {"n_reps": 12}),
}


@pytest.fixture(params=CALLS)
def flawed(request, server, data_dir):
    """A call, its table on disk, a term on one of its columns, and what it returned."""
    call, path, term = CALLS[request.param]

    def offline(**query):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*of another size than in the bucket")
            return call(mode="offline", **query)[request.param]

    return offline, data_dir / path, term, call()[request.param]


def test_a_table_in_another_spelling_is_read(flawed):
    call, file, _, expected = flawed
    text = file.read_text()
    for changed in (
        "\ufeff" + text.replace("image_name", " image_name "),
        text.replace("\n", "\r\n"),
        text.replace("\n", ",\n") + "\n\n",
    ):
        file.write_bytes(changed.encode())
        pd.testing.assert_frame_equal(call(), expected)
    # Columns named as ours do not replace them; nor need it be UTF-8.
    first, *rows = text.splitlines()
    rows = [f"{first},label,h5_index", *(f"{row},é,7" for row in rows)]
    file.write_bytes("\n".join(rows).encode("latin-1"))
    changed = call()
    pd.testing.assert_frame_equal(changed[list(expected)], expected)
    assert (changed["table_label"] == "é").all()
    assert (changed["table_h5_index"].astype(int) == 7).all()


def test_flaws_of_a_table_are_named_and_stop_what_needs_them(flawed):
    call, file, term, expected = flawed
    rows = file.read_text().splitlines()
    for change, words in (
        (lambda row: row + ",x", "line 4: it has .* cells for"),
        (lambda row: row + "\0", "line 4: .*NUL"),
        (lambda row: row.replace(",", ',"', 1), "line .*(end of data|expected after)"),
        (lambda row: re.sub(r"[^,]*\.(jpg|png)(?=,)", "", row), "line 4: .*image_name"),
    ):
        broken = [*rows[:3], change(rows[3]), *rows[4:]]
        file.write_text("\n".join(broken))
        fails(CorruptImageError, f"{file.name} is broken.*{words}", call)
    (name,) = term
    place = rows[0].split(",").index(name)
    at = next(i for i in range(3, len(rows)) if '"' not in rows[i])
    rows[at] = ",".join(rows[at].split(",")[:place])
    file.write_text("\n".join(rows))
    found = warned(f"flawed .line {at + 1}: it ends early", call)
    assert len(found) == len(expected)
    fails(CorruptImageError, f"line {at + 1}, column {name}", call, **term)


# --- Files that others hold, and what is no damage -------------------------------


WRITER = """
import h5py, sys
with h5py.File(sys.argv[1], "r+", libver="latest") as file:
    file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


def test_files_that_are_open_elsewhere_are_not_called_damaged(granted, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    chosen, clip = fetch(max_images=3), embeddings("CLIP")
    expected, file = load_stimuli(chosen, size=8), clip.files["CLIP"]

    def check():
        assert np.array_equal(load_stimuli(chosen, size=8), expected)
        again = embeddings("CLIP", mode="offline").embeddings["CLIP"]
        assert np.array_equal(again, clip.embeddings["CLIP"])

    # As HDF5 finds them where others hold locks, or where these do not work.
    with open(chosen.archive, "r+b") as first, open(file, "r+b") as second:
        for stream in (first, second):
            fcntl.flock(stream, fcntl.LOCK_EX)
        check()
    # Within a process, HDF5 wants a file to be opened with locks or without.
    with h5py.File(chosen.archive) as archive, h5py.File(file):
        images = archive["images"][()]
        check()
    with h5py.File(chosen.archive, "w", libver="latest") as archive:
        archive.create_dataset("images", data=images, dtype=h5py.vlen_dtype(np.uint8))
    command, pipe = [sys.executable, "-c", WRITER, chosen.archive], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        error = fails(OSError, "open for write", load_stimuli, chosen, size=8)
        writer.communicate("")
    assert not isinstance(error, CorruptImageError)
    assert "overwrite" not in str(error)
    check()
