"""Stimulus images and what derives from them: what comes, in which order, unharmed."""

from __future__ import annotations

import contextlib
import datetime as dt
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
from PIL import Image
from sklearn.utils import Bunch

from laion_fmri_fetchers import (
    fetch_laion_captions,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    fetch_laion_segmentations,
    fetch_laion_stimuli,
    fetch_laion_stimulus_metadata,
    load_stimuli,
)
from laion_fmri_fetchers.cache import settings
from laion_fmri_fetchers.demo.server import UPLOADED
from laion_fmri_fetchers.demo.service import MANIFEST
from laion_fmri_fetchers.exceptions import (
    AccessServiceError,
    BucketError,
    CorruptImageError,
    DiskSpaceError,
    DownloadError,
    InvalidQueryError,
    NotCachedError,
    UnsafeKeyError,
)
from laion_fmri_fetchers.layout.labels import stimulus_fields
from laion_fmri_fetchers.layout.trees import (
    ARCHIVE,
    CAPTIONS,
    SEGMENTATIONS,
    SEGMENTATIONS_TABLE,
    STIMULUS_TABLE,
    embeddings_id,
)
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.values import GreaterThan, IsNull

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

SCREENSHOT = "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg"
PNG = "shared_4rep_OOD_shape_blob_round-01.png"
SPECIAL = "shared_4rep_NSD_special1000_4.jpg"
CLIP = embeddings_id("CLIP")


def quiet(function):
    return lambda *args, **kwargs: function(*args, **{"verbose": 0, **kwargs})


fetch = quiet(fetch_laion_stimuli)
metadata = quiet(fetch_laion_stimulus_metadata)
captions = quiet(fetch_laion_captions)
embeddings = quiet(fetch_laion_embeddings)
segmentations = quiet(fetch_laion_segmentations)
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
    table = pd.read_csv(
        bucket_folder / STIMULUS_TABLE, dtype=str, keep_default_na=False
    )
    with h5py.File(bucket_folder / ARCHIVE) as file:
        images = [bytes(data) for data in file["images"][()]]
    return table, dict(zip(table["image_name"], images, strict=True))


@pytest.fixture(params=PUBLIC)
def fetch_public(request):
    """Each of the calls that need no access."""
    return PUBLIC[request.param]


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


def archive_of(images):
    """An archive of encoded images."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        rows = file.create_dataset("images", (len(images),), dtype=kind)
        for i, image in enumerate(images):
            rows[i] = np.frombuffer(image, np.uint8)
    return buffer.getvalue()


def put_table(server, table):
    server.put(STIMULUS_TABLE, table.to_csv(index=False).encode())


def write(data_dir, key, content):
    """Put a file into the data directory."""
    file = data_dir / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- What is selected ------------------------------------------------------------


def test_metadata_are_in_the_order_of_the_archive(granted, published):
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
    for name, row in data.metadata.iterrows():
        expected = stimulus_fields(name)
        row = row.astype(object).where(row.notna(), None)
        assert {field: row[field] for field in expected} == expected


def test_metadata_align_with_trials(granted):
    trials = fetch_laion_fmri("sub-01", sessions=[1, 2], rois=None, verbose=0).trials
    data = fetch(labels=trials["label"])

    shown = data.metadata.loc[trials["label"]]
    assert list(shown.index) == list(trials["label"])
    assert list(data.metadata.index) == list(dict.fromkeys(trials["label"]))
    for field in ("dataset", "participant", "unique_or_shared", "n_reps", "ood_type"):
        theirs = trials[field].astype(object).where(trials[field].notna(), None)
        ours = shown[field].astype(object).where(shown[field].notna(), None)
        assert list(ours) == list(theirs), field
    for same in (fetch(trials), fetch(labels=trials), fetch(data.metadata)):
        pd.testing.assert_frame_equal(same.metadata, data.metadata)
        assert same.query == data.query


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        ({"n_reps": GreaterThan(4)}, lambda t: t["n_reps"] == 12),
        ({"participant": ["sub-01"]}, lambda t: t["participant"] == "sub-01"),
        (
            {"stimulus_filter": ResultFilter(dataset="NSD") | ResultFilter(n_reps=12)},
            lambda t: t["dataset"] == "NSD" or t["n_reps"] == 12,
        ),
        (
            {"stimulus_filter": {"dataset": "OOD"}, "ood_type": "shape"},
            lambda t: t["ood_type"] == "shape",
        ),
        (
            {"stimulus_filter": lambda row: row["image_name"].endswith(".png")},
            lambda t: t["name"].endswith(".png"),
        ),
    ],
)
def test_filters_and_terms_select_images(server, data_dir, published, asked, passes):
    names = published[0]["image_name"]
    expected = [n for n in names if passes({"name": n, **stimulus_fields(n)})]
    assert 0 < len(expected) < len(names)
    assert list(metadata(**asked).metadata.index) == expected


def test_labels_with_a_filter_and_a_limit(granted):
    names = [PNG, SCREENSHOT, PNG, SPECIAL]

    assert list(fetch(names).metadata.index) == [PNG, SCREENSHOT, SPECIAL]
    assert list(fetch(names, dataset="OOD").metadata.index) == [PNG, SCREENSHOT]
    assert list(fetch(names, max_images=1).metadata.index) == [PNG]
    assert len(fetch(names, max_images=-1).metadata) == 3
    assert list(fetch(SCREENSHOT).metadata.index) == [SCREENSHOT]
    with pytest.warns(UserWarning, match="nowhere"):
        data = fetch(["nowhere.jpg", PNG], allow_missing=True)
    assert list(data.metadata.index) == [PNG]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"labels": [PNG[:-4]]}, PNG),
        ({"labels": 3}, "labels"),
        ({"labels": [3]}, "labels"),
        ({"labels": pd.DataFrame({"run": [1]})}, "column 'label'"),
        ({"labels": Bunch(metadata=[])}, r"labels is a Bunch .* data\.metadata"),
        ({"labels": {3: 4}}, "labels is a dict with 3; give labels"),
        ({"trials": pd.DataFrame({"label": [PNG]})}, "trials"),
        ({"standardize": "zscore"}, "argument of fetch_laion_betas, load_betas"),
        ({"datset": "OOD"}, "dataset"),
        ({"stimulus_filter": {"rep": 3}}, "n_reps"),
        ({"mode": "onlin"}, "offline"),
        ({"max_images": 1.5}, "max_images"),
    ],
)
def test_arguments_that_are_not_valid_are_named(granted, asked, words):
    with pytest.raises(InvalidQueryError, match=words):
        fetch(**asked)


@pytest.mark.parametrize("labels", [{SCREENSHOT, PNG}, Bunch(trials=[])])
def test_labels_without_an_order_are_refused(server, data_dir, fetch_public, labels):
    with pytest.raises(InvalidQueryError, match="labels is a (set, whose|Bunch with)"):
        fetch_public(labels=labels)


@pytest.mark.parametrize(
    ("call", "asked", "words"),
    [
        (metadata, {"dataset": "x"}, "Nothing passes.*dataset is LAION, NSD, OOD"),
        (captions, {"source": "people"}, "Nothing passes.*source is ai, human"),
        (segmentations, {"localized": 2}, "Nothing passes.*localized is 0, 1"),
        (
            captions,
            {"caption_filter": ResultFilter(source="ai") | {"source": "humans"}},
            "Nothing fulfils .*, a part of caption_filter.*source is ai, human",
        ),
    ],
)
def test_terms_that_no_row_fulfils_name_the_values_there_are(
    server, data_dir, call, asked, words
):
    with pytest.warns(UserWarning, match=words) as caught:
        call(**asked)
    assert len(caught) == 1


def test_dry_run_needs_no_access_and_downloads_only_the_table(
    server, data_dir, bucket_folder
):
    size = (bucket_folder / ARCHIVE).stat().st_size
    plan = fetch(dry_run=True, unique_or_shared="shared", extract=True)

    expected = [{"id": ARCHIVE, "size": size, "reason": "missing"}]
    assert plan.plan.to_dict("records") == expected
    assert plan.plan_size == size
    assert set(plan.metadata["unique_or_shared"]) == {"shared"}
    assert {key for _, key, _ in server.requests} == {"", STIMULUS_TABLE}


def test_dry_run_where_the_bucket_does_not_list_the_archive(access, server, data_dir):
    server.delete(ARCHIVE)
    file = {"name": "task-images_stimuli.h5", "size": 3_200_000_000, "sha256": "0" * 64}
    manifest = {"current_terms_version": "2026-05-12", "files": [file]}
    access.answers[MANIFEST] = (200, {}, manifest)
    assert fetch(dry_run=True).plan_size == 3_200_000_000
    access.answers[MANIFEST] = (500, {}, b"")
    with pytest.raises(AccessServiceError, match="500"):
        fetch(dry_run=True)


# --- The public table ------------------------------------------------------------


def test_the_table_is_the_same_by_both_fetchers(granted, server, data_dir):
    images = fetch(unique_or_shared="shared", max_images=0)
    assert images.archive is None
    assert not (data_dir / ARCHIVE).exists()  # as no image is selected
    table = metadata(unique_or_shared="shared")
    assert table.query["stimulus_filter"] == images.query["stimulus_filter"]
    images = fetch(unique_or_shared="shared", max_images=-1)
    pd.testing.assert_frame_equal(table.metadata, images.metadata)
    assert len(fetch(dry_run=True).plan) == 0  # all is on disk
    plan = fetch(dry_run=True, mode="overwrite").plan
    assert plan["reason"].tolist() == ["overwrite"]


FIELDS = ["dataset", "participant", "unique_or_shared", "n_reps", "ood_type"]
TABLES = {
    "in other words": (
        """image_name,dataset,participant,unique_or_shared,n_reps
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03;sub-05,shared,4rep
shared_4rep_OOD_shape_blob_round-01.png,OOD,shared,shared,4rep
unique_LAION_initial_cluster_1122_i1_p05.jpg,LAION,sub-07,unique,4rep
an image of another name.jpg,THINGSplus,sub-06,unique,4rep
another.jpg,n/a,sub-01;sub-03,shared,12rep
""",
        [
            ("THINGS+", None, "shared", 12, None),
            ("NSD", None, "shared", 4, None),
            ("OOD", None, "shared", 4, "shape"),
            ("LAION", "sub-07", "unique", 4, None),
            ("THINGS+", "sub-06", "unique", 4, None),
            (None, None, "shared", 12, None),
        ],
    ),
    "the label has the last word": (
        "image_name,dataset,participant,unique_or_shared,n_reps,colour\n"
        "unique_THINGS_air_pump_p03.jpg,NSD,sub-03,shared,many,red\n"
        "unique_THINGS_air_pump_p99.jpg,THINGS,sub-03,unique,4rep,n/a\n",
        [
            ("THINGS", "sub-05", "unique", 4, None),
            ("THINGS", None, "unique", 4, None),
        ],
    ),
    "names alone": (
        "image_name\nunique_THINGS_air_pump_p03.jpg\nanother.jpg\n",
        [("THINGS", "sub-05", "unique", 4, None), (None,) * 5],
    ),
    "unknown names alone": ("image_name\nanother.jpg\n", [(None,) * 5]),
}


@pytest.mark.parametrize(("text", "expected"), TABLES.values(), ids=TABLES)
def test_the_table_has_the_spelling_of_labels(server, data_dir, text, expected):
    write(data_dir, STIMULUS_TABLE, text)
    table = metadata(mode="offline").metadata
    plain = table[FIELDS].astype(object)
    rows = plain.where(plain.notna(), None).itertuples(index=False, name=None)
    assert list(rows) == expected
    assert table["n_reps"].dtype == "Int64"
    assert list(table["h5_index"]) == list(range(len(expected)))
    if "colour" in table:
        assert list(table["colour"]) == ["red", None]
    n_null = sum(participant is None for _, participant, *_ in expected)
    found = metadata(mode="offline", participant=IsNull()).metadata
    assert len(found) == n_null


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.rename(columns={"image_name": "name"}),
        lambda t: t.assign(image_name=t["image_name"].iloc[0]),
    ],
)
def test_a_table_that_does_not_name_each_image_once(granted, server, published, change):
    put_table(server, change(published[0]))
    with pytest.raises(CorruptImageError, match="overwrite"):
        fetch()


@pytest.mark.parametrize(
    "name", ["../escape.jpg", "/etc/x.jpg", "..", "C:x.jpg", "a\\b", "a\nb"]
)
def test_names_that_would_leave_the_folder_are_refused(
    granted, server, published, data_dir, tmp_path, name
):
    table = published[0].copy()
    table.loc[3, "image_name"] = name
    put_table(server, table)
    with pytest.raises(UnsafeKeyError, match="nothing was written"):
        fetch(extract=True)
    assert not (data_dir / "stimuli/images").exists()
    assert not list(tmp_path.rglob("escape.jpg"))


# --- The archive -----------------------------------------------------------------


def test_the_size_of_the_archive_is_said_first(granted, capfd):
    fetch(verbose=1)
    lines = capfd.readouterr().err.splitlines()
    assert "3.2 GB" in next(line for line in lines if ARCHIVE in line)
    fetch(verbose=1)
    assert "3.2 GB" not in capfd.readouterr().err
    fetch(verbose=0, mode="overwrite")
    assert capfd.readouterr().err == ""


def test_extracted_images_are_those_of_the_archive(granted, published, data_dir):
    table, images = published
    data = fetch(extract=True, unique_or_shared="shared")

    folder, rows = data_dir / "stimuli/images", data.metadata
    assert data.images == [str(folder / name) for name in rows.index]
    assert {file.name for file in folder.iterdir()} == set(rows.index)
    assert {SCREENSHOT, "shared_4rep_OOD_gaudy_street+night.jpg"} < {
        *data.metadata.index
    }
    times = [os.stat(path).st_mtime_ns for path in data.images]
    everything = fetch(extract=True)
    assert [os.stat(path).st_mtime_ns for path in data.images] == times
    for path, name in zip(everything.images, table["image_name"], strict=True):
        assert Path(path).read_bytes() == images[name]
    os.unlink(data.images[0])
    fetch(extract=True, mode="offline")
    assert os.path.exists(data.images[0])


def test_overwriting_the_archive_renews_extracted_images(
    granted, server, published, data_dir
):
    _, images = published
    fetch([PNG, SCREENSHOT], extract=True)
    server.put(ARCHIVE, archive_of([image + b"new" for image in images.values()]))
    assert fetch([PNG], mode="overwrite").images == []
    for name in (PNG, SCREENSHOT):
        file = data_dir / "stimuli/images" / name
        assert file.read_bytes() == images[name] + b"new"


def test_a_table_in_another_order_than_the_archive_is_an_error(
    granted, server, published
):
    before = load_stimuli(fetch([PNG]), size=8)
    table, images = published
    put_table(server, table[::-1])
    with pytest.warns(UserWarning, match="another version of 1 file"):
        fetch([PNG])
    metadata(mode="overwrite")
    for mode in ("download_new", "offline"):
        with pytest.raises(CorruptImageError, match="another order.*mode='overwrite'"):
            fetch([PNG], mode=mode)
    server.put(ARCHIVE, archive_of([*images.values()][::-1]))
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
    with pytest.raises(DiskSpaceError, match="full"):
        fetch(extract=True)
    monkeypatch.undo()
    names = [file.name for file in (data_dir / "stimuli/images").iterdir()]
    assert len(names) == 3
    assert not any(name.startswith(".") for name in names)


def an_hdf5(**content):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in content.items():
            file[name] = values
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no HDF5 at all", "overwrite"),
        (an_hdf5(pictures=np.zeros(2)), "no 1-D dataset 'images'"),
        (an_hdf5(images=np.zeros((2, 2))), "no 1-D dataset 'images'"),
        (archive_of([b"an image"]), "it holds 1 images, its metadata"),
    ],
)
def test_an_archive_of_something_else(granted, server, content, words):
    server.put(ARCHIVE, content)
    with pytest.raises(CorruptImageError, match=words):
        fetch()


def test_an_archive_that_fails_may_be_missing(granted):
    granted.objects = lambda environ: (
        (404, {}, b"") if environ["PATH_INFO"].endswith(".h5") else None
    )
    with pytest.raises(DownloadError, match="404") as caught:
        fetch(max_images=2)
    assert [failure["id"] for failure in caught.value.failed] == [ARCHIVE]
    with pytest.warns(UserWarning, match=r"stimuli\.h5 could not be downloaded: .*404"):
        data = fetch(max_images=2, allow_missing=True, extract=True)
    assert (data.archive, data.images, len(data.metadata)) == (None, [], 2)
    assert [failure["id"] for failure in data.failed] == [ARCHIVE]


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
    assert (pictures[1][rgba[..., 3] == 0] == 128).all()
    assert (rgba[..., 3] == 0).any()
    stored = load_stimuli(data, as_displayed=False)
    np.testing.assert_array_equal(stored[1], rgba[..., :3])


def test_images_are_loaded_in_the_order_of_metadata(granted):
    data = fetch()
    everything = load_stimuli(data)
    data.metadata = data.metadata.sample(frac=0.3, random_state=0)
    expected = everything[data.metadata["h5_index"]]
    np.testing.assert_array_equal(load_stimuli(data), expected)


def test_images_are_resized_and_loaded_in_batches(granted):
    data = fetch(max_images=23)
    small = load_stimuli(data, size=(24, 36))
    assert small.shape == (23, 24, 36, 3)
    assert load_stimuli(data, size=24).shape == (23, 24, 24, 3)
    original = Image.fromarray(load_stimuli(data)[4])
    expected = original.resize((36, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(small[4], np.asarray(expected))

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


def test_no_images_are_an_empty_array(granted):
    data = fetch()
    data.metadata = data.metadata[:0]
    assert load_stimuli(data).shape == (0, 0, 0, 3)
    assert load_stimuli(data, size=8).shape == (0, 8, 8, 3)
    assert list(load_stimuli(data, batch_size=8)) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Bunch(images=["a.nii.gz"], trials=[]), "a Bunch with images, trials"),
        (Bunch(metadata=pd.DataFrame({"x": [1]}), archive="a.h5"), "a Bunch with"),
        (Bunch(metadata=pd.DataFrame({"h5_index": [1]})), "archive"),
        ("stimuli.h5", "a str was given"),
    ],
)
def test_only_the_bunch_of_stimuli_is_loaded(given, words):
    with pytest.raises(InvalidQueryError, match=f"fetch_laion_stimuli.*{words}"):
        load_stimuli(given)


@pytest.mark.parametrize(
    "asked", [{"size": 0}, {"size": (1, 2, 3)}, {"size": "big"}, {"batch_size": 0}]
)
def test_sizes_that_are_not_valid_are_named(granted, asked):
    data = fetch(max_images=0)
    with pytest.raises(InvalidQueryError, match=next(iter(asked))):
        load_stimuli(data, **asked)
    with pytest.raises(NotCachedError, match="fetch_laion_stimuli"):
        load_stimuli(data)


def test_images_that_cannot_be_decoded_or_differ_in_size(granted, server, published):
    other = io.BytesIO()
    Image.new("RGB", (10, 20)).save(other, "PNG")
    changed = [*published[1].values()]
    changed[2], changed[5] = b"no image", other.getvalue()
    server.put(ARCHIVE, archive_of(changed))
    data = fetch()
    table = data.metadata
    with pytest.raises(
        CorruptImageError, match=f"{re.escape(table.index[2])}.*decoded"
    ):
        load_stimuli(data)
    data.metadata = table.iloc[4:7]
    with pytest.raises(InvalidQueryError, match="size"):
        load_stimuli(data)
    assert load_stimuli(data, size=8).shape == (3, 8, 8, 3)


# --- Public files ----------------------------------------------------------------


def fetch_clip(**how):
    return embeddings("CLIP", **how)


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (metadata, STIMULUS_TABLE),
        (captions, CAPTIONS),
        (fetch_clip, CLIP),
        (segmentations, SEGMENTATIONS_TABLE),
        (segmentations, SEGMENTATIONS),
    ],
)
@pytest.mark.parametrize("same_size", [False, True])
def test_a_file_that_was_replaced_at_its_key_is_outdated(
    data_dir, put, bucket_folder, call, key, same_size
):
    old = (bucket_folder / key).read_bytes()
    new = old[:-1] + (b"\n" if old[-1:] != b"\n" else b" ") + b"\n" * (not same_size)
    call()
    put(key, new)

    with pytest.warns(UserWarning, match="another version.*mode='overwrite'") as warned:
        data = call()
    (text,) = {str(warning.message) for warning in warned}
    assert key in text
    archived = "archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5"
    assert (f"fetch_laion_fmri_ids('{archived}')" in text) == ("CLIP" in key)
    record = next(rec for rec in data.files_meta if rec["id"] == key)
    assert (record["outdated"], record["size"]) == (True, len(old))
    assert record["etag"] is None
    assert (data_dir / key).read_bytes() == old

    with no_warnings():
        data = call(mode="overwrite")
        assert call().files_meta == data.files_meta
    record = next(rec for rec in data.files_meta if rec["id"] == key)
    assert (record["outdated"], record["size"]) == (False, len(new))
    assert record["etag"] == hashlib.md5(new).hexdigest()
    assert (data_dir / key).read_bytes() == new


def test_a_file_that_others_put_there_is_known_by_its_size(
    server, data_dir, bucket_folder
):
    whole = (bucket_folder / CAPTIONS).read_bytes()
    file = write(data_dir, CAPTIONS, whole)
    with no_warnings():
        assert captions().files_meta[0]["outdated"] is False
    file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with pytest.warns(UserWarning, match="another size.*cut short"):
        captions(mode="offline")
    captions()
    assert file.read_bytes() == whole


def test_public_files_need_neither_access_nor_licence(
    server, data_dir, monkeypatch, fetch_public
):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    data = fetch_public()
    assert {"files_meta", "failed", "data_dir", "query", "description"} < set(data)
    for record in data.files_meta:
        assert record["size"] == os.path.getsize(record["absolute_path"])
        assert record["outdated"] is False
    assert data.failed == []
    server.requests.clear()
    fetch_public()
    assert {key for _, key, _ in server.requests} == {""}


def test_offline_public_files_are_the_same(
    server, data_dir, fetch_public, monkeypatch, request
):
    with pytest.raises(NotCachedError, match="download_new"):
        fetch_public(mode="offline")
    online = fetch_public()
    request.getfixturevalue("no_network")
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    offline = fetch_public()
    assert set(offline) == set(online)
    for key, value in online.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(offline[key], value)
        elif key in ("embeddings", "valid"):
            for model, array in value.items():
                np.testing.assert_array_equal(offline[key][model], array)
        else:
            assert offline[key] == value


def test_public_files_on_disk_serve_when_the_bucket_is_gone(
    server, data_dir, fetch_public, monkeypatch
):
    before = fetch_public()
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/gone")
    with pytest.warns(UserWarning, match="on disk"):
        after = fetch_public()
    assert [rec["id"] for rec in after.files_meta] == [
        rec["id"] for rec in before.files_meta
    ]
    with pytest.raises(BucketError, match="Missing"):
        fetch_public(mode="overwrite")


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (captions, CAPTIONS),
        (embeddings, embeddings_id("PEcore")),
        (segmentations, SEGMENTATIONS_TABLE),
        (segmentations, SEGMENTATIONS),
    ],
)
def test_tables_are_needed_and_other_files_may_be_missing(server, data_dir, call, key):
    server.faults[key] = (404, {}, b"")
    with pytest.raises(DownloadError, match="404") as caught:
        call()
    assert caught.value.failed[0]["id"] == key
    if key.endswith(".csv"):
        with pytest.raises(DownloadError):
            call(allow_missing=True)
        return
    with pytest.warns(UserWarning, match="Left out"):
        data = call(allow_missing=True)
    assert [failure["id"] for failure in data.failed] == [key]
    assert len(data.image_names) > 0


def test_a_file_that_the_bucket_lacks(server, data_dir, put, bucket_folder):
    put(CLIP, (bucket_folder / CLIP).read_bytes())  # as it is at the end
    server.delete(CLIP)
    with pytest.raises(DownloadError, match="not in the bucket"):
        embeddings("CLIP")


def test_a_data_directory_that_cannot_be_written_is_read(
    granted, monkeypatch, data_dir
):
    before, caption = fetch([PNG]), captions([PNG])
    monkeypatch.setattr(settings, "is_writable", lambda folder: False)
    with pytest.warns(UserWarning, match="cannot be written"):
        pd.testing.assert_frame_equal(fetch([PNG]).metadata, before.metadata)
    with pytest.warns(UserWarning, match="cannot be written"):
        pd.testing.assert_frame_equal(captions([PNG]).captions, caption.captions)


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
    for bad in ({"labels": ["nowhere.jpg"]}, {"sourc": "human"}):
        with pytest.raises(InvalidQueryError):
            captions(**bad)


def test_a_caption_is_text_whatever_it_says(server, data_dir):
    text = (
        "image_name,caption_idx,source,caption\n"
        'a.jpg,1,human,1984\na.jpg,2,human,None\n"a, b.jpg",1,human,"say ""n/a"""\n'
    )
    write(data_dir, CAPTIONS, text)
    data = captions(mode="offline")
    assert list(data.captions["caption"]) == ["1984", "None", 'say "n/a"']
    assert data.image_names == ["a.jpg", "a, b.jpg"]


def test_embeddings(server, data_dir, bucket_folder):
    with h5py.File(bucket_folder / embeddings_id("SigLIP2")) as file:
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
    downloaded = {key for _, key, _ in server.requests if key}
    assert downloaded == {embeddings_id("SigLIP2"), CLIP}
    models = {"SigLIP2", "CLIP", "PEcore"}  # a set, whose order does not matter
    assert list(embeddings(models, PNG).files) == ["CLIP", "PEcore", "SigLIP2"]
    for bad in ({"models": "CLIPP"}, {"models": []}, {"models": 3}, {"labels": ["x"]}):
        with pytest.raises(InvalidQueryError):
            embeddings(**bad)


def put_embeddings(data_dir, model, names):
    """Write embeddings whose only value is the position in the alphabet."""
    content = an_hdf5(
        embedding=np.array([[ord(name[0]) - 97] for name in names], "f2"),
        image_ids=np.array(names, "S"),
        valid=[name != "d.jpg" for name in names],
    )
    write(data_dir, embeddings_id(model), content)


def test_embeddings_that_a_model_did_not_give_are_a_warning(server, data_dir):
    """Their rows are numbers, as others are."""
    put_embeddings(data_dir, "CLIP", ["a.jpg", "d.jpg"])
    with pytest.warns(UserWarning, match=r"CLIP gave no valid .* 1 image \('d\.jpg'\)"):
        embeddings("CLIP", mode="offline")
    with no_warnings():
        embeddings("CLIP", ["a.jpg"], mode="offline")


@pytest.mark.filterwarnings("ignore:.*no valid embedding")
def test_rows_of_models_correspond_whatever_their_files_order(server, data_dir):
    put_embeddings(data_dir, "CLIP", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    put_embeddings(data_dir, "DINOv2", ["d.jpg", "a.jpg", "c.jpg", "e.jpg"])
    models = ["CLIP", "DINOv2"]
    with pytest.raises(InvalidQueryError, match=r"'e\.jpg' in the embeddings of CLIP"):
        embeddings(models, mode="offline")
    for names, expected in (
        (None, ["a.jpg", "c.jpg", "d.jpg"]),
        (["d.jpg", "b.jpg", "a.jpg"], ["d.jpg", "a.jpg"]),
    ):
        with pytest.warns(UserWarning, match=r"'b\.jpg' in the embeddings of DINOv2"):
            data = embeddings(models, names, mode="offline", allow_missing=True)
        assert data.image_names == expected
        for model in models:
            values = [ord(name[0]) - 97 for name in expected]
            assert data.embeddings[model][:, 0].tolist() == values
            assert data.valid[model].tolist() == [name != "d.jpg" for name in expected]


IDS = np.array(["a.jpg", "b.jpg"], "S")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"none", "overwrite"),
        (an_hdf5(embedding=np.zeros((2, 3))), "overwrite"),
        (
            an_hdf5(embedding=np.zeros((3, 4)), image_ids=IDS, valid=[True, True]),
            "differ in length.*overwrite",
        ),
        (
            an_hdf5(
                embedding=np.zeros((2, 4)), image_ids=IDS[[0, 0]], valid=[True, True]
            ),
            r"names 'a\.jpg' twice",
        ),
    ],
)
def test_broken_embeddings_are_named(server, data_dir, content, words):
    write(data_dir, CLIP, content)
    for names in (None, ["a.jpg"]):
        with pytest.raises(CorruptImageError, match=words):
            embeddings("CLIP", names, mode="offline")


def test_segmentations(server, data_dir, bucket_folder):
    published = pd.read_csv(bucket_folder / SEGMENTATIONS_TABLE)
    data = segmentations()
    by_row = data.segmentations.sort_values("mask_row").reset_index(drop=True)
    pd.testing.assert_frame_equal(by_row, published, check_dtype=False)
    for name in ("mask_row", "instance_id", "localized"):
        assert data.segmentations[name].dtype == np.int64
    assert data.segmentations["score"].dtype == float
    row = data.segmentations.query("localized == 1").iloc[0]
    with h5py.File(data.masks_file) as file:
        mask = file["masks"][row["mask_row"]]
    box = row[["box_x0", "box_y0", "box_x1", "box_y1"]].astype(int)
    assert mask[box.iloc[1] : box.iloc[3], box.iloc[0] : box.iloc[2]].all()
    assert "noun_counts" not in data

    some = segmentations([PNG, SCREENSHOT], localized=1)
    assert some.image_names == [PNG, SCREENSHOT]
    assert set(some.segmentations["localized"]) <= {1}
    with pytest.raises(InvalidQueryError, match="noun"):
        segmentations(nuon="face")


def test_segmentations_without_masks(server, data_dir):
    assert segmentations(masks=False).masks_file is None
    assert {key for _, key, _ in server.requests if key} == {SEGMENTATIONS_TABLE}


def test_segmentations_in_odd_tables(server, data_dir):
    """Numbers and words in one column are words; a null is no noun."""
    header = "mask_row,image_name,noun,instance_id,score,localized\n"
    rows = "2,a.jpg,cat,0,0.5,1\n1,a.jpg,n/a,1,high,1\n0,b.jpg,dog,0,n/a,yes\n"
    file = write(data_dir, SEGMENTATIONS_TABLE, header + rows)
    query = {"masks": False, "mode": "offline"}
    with pytest.warns(UserWarning, match="line 4: localized is 'yes', not a whole"):
        data = segmentations(["b.jpg", "a.jpg"], vectorize_nouns=True, **query)
    assert list(data.segmentations["mask_row"]) == [0, 1, 2]
    assert list(data.segmentations["score"]) == [None, "high", "0.5"]
    assert data.segmentations["localized"].isna().tolist() == [True, False, False]
    assert data.vocabulary.tolist() == ["cat", "dog"]
    assert data.noun_counts.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(CorruptImageError, match="line 4, column localized"):
        segmentations(**query, localized=1)
    file.write_text(header + rows.replace("2,a", "two,a"))
    with pytest.raises(CorruptImageError, match="mask_row.*overwrite"):
        segmentations(**query)


def test_nouns_are_counted_by_image(server, data_dir, published):
    data = segmentations(vectorize_nouns=True)
    table = pd.crosstab(data.segmentations["image_name"], data.segmentations["noun"])
    assert data.vocabulary.tolist() == sorted(set(data.segmentations["noun"]))
    assert data.noun_counts.dtype == np.int32
    np.testing.assert_array_equal(
        data.noun_counts, table.loc[data.image_names, data.vocabulary]
    )
    assert (data.noun_counts == 2).any()

    unique = [name for name in published[1] if name.startswith("unique")][:2]
    with no_warnings():  # only shared images have masks
        data = segmentations([*unique, PNG], vectorize_nouns=True)
    assert data.image_names == [*unique, PNG]
    assert (data.noun_counts[:2] == 0).all()
    assert data.noun_counts[2].sum() == len(data.segmentations)
    with pytest.warns(UserWarning, match="no masks of 'nowhere"):
        data = segmentations(["nowhere.jpg"], vectorize_nouns=True)
    assert data.noun_counts.shape == (1, 0)
    with pytest.warns(UserWarning, match="Nothing passes"):
        data = segmentations(noun="nothing", vectorize_nouns=True)
    assert data.noun_counts.shape == (0, 0)


# --- Tables with flaws -----------------------------------------------------------


CALLS = {
    "captions": (captions, CAPTIONS, {"caption_idx": 1}),
    "segmentations": (
        lambda **query: segmentations(masks=False, **query),
        SEGMENTATIONS_TABLE,
        {"instance_id": 0},
    ),
    "metadata": (metadata, STIMULUS_TABLE, {"n_reps": 12}),
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


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("image_name", " image_name "),
        lambda text: text.replace("\n", ",\n"),
        lambda text: text + "\n\n",
    ],
)
def test_a_table_in_another_spelling_is_read(flawed, change):
    call, file, _, expected = flawed
    file.write_bytes(change(file.read_text()).encode())
    pd.testing.assert_frame_equal(call(), expected)


def test_a_table_with_more_columns_that_is_not_utf8_is_read(flawed):
    """Columns named as ours do not replace them."""
    call, file, _, expected = flawed
    first, *rows = file.read_text().splitlines()
    rows = [f"{first},label,h5_index", *(f"{row},é,7" for row in rows)]
    file.write_bytes("\n".join(rows).encode("latin-1"))
    changed = call()
    pd.testing.assert_frame_equal(changed[list(expected)], expected)
    assert (changed["table_label"] == "é").all()
    assert (changed["table_h5_index"].astype(int) == 7).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row + ",x", "line 4: it has .* cells for"),
        (lambda row: row + "\0", "line 4: .*NUL"),
        (lambda row: row.replace(",", ',"', 1), "line .*(end of data|expected after)"),
        (lambda row: re.sub(r"[^,]*\.(jpg|png)(?=,)", "", row), "line 4: .*image_name"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(flawed, change, words):
    call, file, _, _ = flawed
    rows = file.read_text().splitlines()
    rows[3] = change(rows[3])
    file.write_text("\n".join(rows))
    with pytest.raises(CorruptImageError, match=f"{file.name} is broken.*{words}"):
        call()


def test_flaws_of_a_table_stop_only_a_filter_that_needs_them(flawed):
    call, file, term, expected = flawed
    rows = file.read_text().splitlines()
    (name,) = term
    place = rows[0].split(",").index(name)
    at = next(i for i in range(3, len(rows)) if '"' not in rows[i])
    rows[at] = ",".join(rows[at].split(",")[:place])
    file.write_text("\n".join(rows))
    with pytest.warns(UserWarning, match=f"flawed .line {at + 1}: it ends early"):
        assert len(call()) == len(expected)
    with pytest.raises(CorruptImageError, match=f"line {at + 1}, column {name}"):
        call(**term)


# --- Files that others hold, and what is no damage -------------------------------


def test_files_are_read_though_others_hold_locks(granted, monkeypatch):
    """As HDF5 finds them where others hold them, or where locks do not work."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    chosen, clip = fetch(max_images=3), embeddings("CLIP")
    with (
        open(chosen.archive, "r+b") as archive,
        open(clip.files["CLIP"], "r+b") as file,
    ):
        fcntl.flock(archive, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(load_stimuli(chosen, size=8)) == 3
        again = embeddings("CLIP", mode="offline")
    assert np.array_equal(again.embeddings["CLIP"], clip.embeddings["CLIP"])


def test_files_that_the_user_has_open_are_read(granted):
    """Within a process, HDF5 wants a file to be opened with locks or without."""
    chosen, clip = fetch(max_images=3), embeddings("CLIP")
    with h5py.File(chosen.archive) as archive, h5py.File(clip.files["CLIP"]) as file:
        assert len(load_stimuli(chosen, size=8)) == len(archive["images"][:3])
        again = embeddings("CLIP").embeddings["CLIP"]
        assert np.array_equal(again, file["embedding"])


WRITER = """
import h5py, sys
with h5py.File(sys.argv[1], "r+", libver="latest") as file:
    file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_file_that_another_program_writes_to_is_not_called_damaged(granted):
    chosen = fetch(max_images=3)
    with h5py.File(chosen.archive) as file:
        images = file["images"][()]
    with h5py.File(chosen.archive, "w", libver="latest") as file:
        file.create_dataset("images", data=images, dtype=h5py.vlen_dtype(np.uint8))
    command = [sys.executable, "-c", WRITER, chosen.archive]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(OSError, match="open for write") as error:
            load_stimuli(chosen, size=8)
        writer.communicate("")
    assert not isinstance(error.value, CorruptImageError)
    assert "overwrite" not in str(error.value)
    assert len(load_stimuli(chosen, size=8)) == 3
