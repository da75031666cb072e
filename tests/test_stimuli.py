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

from laion_fmri_fetchers import fetch_laion_fmri, fetch_laion_stimulus_metadata
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
from laion_fmri_fetchers.fetchers.stimuli import (
    fetch_laion_captions,
    fetch_laion_embeddings,
    fetch_laion_segmentations,
    fetch_laion_stimuli,
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
from laion_fmri_fetchers.query.values import GreaterThan, IsNull, NotNull, Pattern
from laion_fmri_fetchers.stimuli.archive import load_stimuli

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

SCREENSHOT = "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg"
PNG = "shared_4rep_OOD_shape_blob_round-01.png"


def fetch(*args, **kwargs):
    return fetch_laion_stimuli(*args, **{"verbose": 0, **kwargs})


def metadata(*args, **kwargs):
    return fetch_laion_stimulus_metadata(*args, **{"verbose": 0, **kwargs})


def captions(*args, **kwargs):
    return fetch_laion_captions(*args, **{"verbose": 0, **kwargs})


def embeddings(*args, **kwargs):
    return fetch_laion_embeddings(*args, **{"verbose": 0, **kwargs})


def segmentations(*args, **kwargs):
    return fetch_laion_segmentations(*args, **{"verbose": 0, **kwargs})


FETCHERS = [captions, embeddings, segmentations]


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
        images = {
            name: bytes(data)
            for name, data in zip(table["image_name"], file["images"][()], strict=True)
        }
    return table, images


@pytest.fixture(scope="session")
def labels(bucket_folder):
    """The labels of all trial tables, in order of appearance."""
    tables = sorted(bucket_folder.glob("derivatives/**/*_trials.tsv"))
    return list(
        dict.fromkeys(
            label
            for table in tables
            for label in pd.read_csv(table, sep="\t", dtype=str)["label"]
        )
    )


SOURCES = ResultFilter(source="ai") | {"source": "humans"}
DATASETS = ResultFilter(dataset="NSD") & ~ResultFilter(dataset="LOAIN")
LOCALIZED = ResultFilter(localized=1) | {"localized": "1"}


def put_table(server, table):
    server.put(STIMULUS_TABLE, table.to_csv(index=False).encode())


# ---------------------------------------------------------------- the demo's files


def test_the_demo_has_the_published_files(bucket_folder, published, labels):
    table, images = published
    assert sorted(table["image_name"]) == sorted(labels)
    assert list(table) == [
        "image_name",
        "dataset",
        "participant",
        "unique_or_shared",
        "n_reps",
    ]
    for name, data in images.items():
        with Image.open(io.BytesIO(data)) as image:
            png = name.endswith(".png")
            assert (image.format, image.mode) == (
                ("PNG", "RGBA") if png else ("JPEG", "RGB")
            )
            if png:
                assert image.getextrema()[3][0] == 0
    with h5py.File(bucket_folder / ARCHIVE) as file:
        assert h5py.check_vlen_dtype(file["images"].dtype) == np.uint8
        assert file["images"].shape == (len(table),)
    orders = []
    for model, n in (("CLIP", 1024), ("DINOv2", 1024), ("SigLIP2", 1152)):
        with h5py.File(bucket_folder / embeddings_id(model)) as file:
            assert set(file) == {"embedding", "image_ids", "valid"}
            assert file["embedding"].shape == (len(table), n)
            assert file["embedding"].dtype == np.float16
            assert file["valid"].dtype == bool
            orders.append([name.decode() for name in file["image_ids"][()]])
    assert orders[0] == orders[1] == orders[2]
    found = pd.read_csv(bucket_folder / SEGMENTATIONS_TABLE)
    with h5py.File(bucket_folder / SEGMENTATIONS) as file:
        assert len(file["masks"]) == len(found)
        assert file["masks"].dtype == np.uint8
    shared = {n for n in labels if stimulus_fields(n)["unique_or_shared"] == "shared"}
    assert set(found["image_name"]) == shared
    told = pd.read_csv(bucket_folder / CAPTIONS)
    human = told[told["source"] == "human"].groupby("image_name").size()
    assert set(human[human.index.isin(shared)]) == {5}
    assert set(human[~human.index.isin(shared)]) == {3}
    assert set(told[told["source"] == "ai"]["caption_idx"]) == {0}


# ---------------------------------------------------------------- what is selected


def test_metadata_in_the_order_of_the_archive(granted, published):
    table, _ = published
    data = fetch()

    assert set(data) == {
        "metadata",
        "images",
        "archive",
        "metadata_file",
        "files_meta",
        "failed",
        "data_dir",
        "query",
        "description",
    }
    assert list(data.metadata.index) == list(table["image_name"])
    assert data.metadata.index.name == "image_name"
    assert list(data.metadata["h5_index"]) == list(range(len(table)))
    assert data.images == []
    assert data.failed == []
    assert "Data Use Agreement" in data.description
    for name, row in data.metadata.iterrows():
        told = stimulus_fields(name)
        row = row.astype(object).where(row.notna(), None)
        assert {field: row[field] for field in told} == told


def test_metadata_aligns_with_trials(granted, labels):
    trials = fetch_laion_fmri("sub-01", sessions=[1, 2], rois=None, verbose=0).trials
    data = fetch(labels=trials["label"])

    shown = data.metadata.loc[trials["label"]]
    assert len(shown) == len(trials)
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
        ({"unique_or_shared": "shared"}, lambda t: t["unique_or_shared"] == "shared"),
        ({"n_reps": GreaterThan(4)}, lambda t: t["n_reps"] == 12),
        ({"participant": ["sub-01"]}, lambda t: t["participant"] == "sub-01"),
        ({"ood_type": NotNull()}, lambda t: t["ood_type"] is not None),
        (
            {"image_name": Pattern("unique_.*_p01")},
            lambda t: t["participant"] == "sub-01",
        ),
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
def test_filters(granted, published, asked, passes):
    names = published[0]["image_name"]
    expected = [n for n in names if passes({"name": n, **stimulus_fields(n)})]
    assert 0 < len(expected) < len(names)
    assert list(fetch(**asked).metadata.index) == expected


def test_names_with_filter_and_limit(granted):
    names = [PNG, SCREENSHOT, PNG, "shared_4rep_NSD_special1000_4.jpg"]

    assert list(fetch(names).metadata.index) == [names[0], names[1], names[3]]
    assert list(fetch(names, dataset="OOD").metadata.index) == [PNG, SCREENSHOT]
    assert list(fetch(names, max_images=1).metadata.index) == [PNG]
    assert len(fetch(names, max_images=-1).metadata) == 3
    assert list(fetch(SCREENSHOT).metadata.index) == [SCREENSHOT]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"labels": [PNG[:-4]]}, PNG),
        ({"labels": 3}, "labels"),
        ({"labels": [3]}, "labels"),
        ({"labels": pd.DataFrame({"run": [1]})}, "column 'label'"),
        ({"trials": pd.DataFrame({"label": [PNG]})}, "trials"),
        ({"standardize": "zscore"}, "argument of fetch_laion_betas, load_betas"),
        ({"datset": "OOD"}, "dataset"),
        ({"stimulus_filter": {"rep": 3}}, "n_reps"),
        ({"mode": "onlin"}, "offline"),
        ({"max_images": 1.5}, "max_images"),
        ({"n_connections": 0}, "n_connections"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_what_is_not_valid(granted, asked, said):
    with pytest.raises(InvalidQueryError, match=said):
        fetch(**asked)


def test_unknown_names_may_be_left_out(granted):
    with pytest.warns(UserWarning, match="nowhere"):
        data = fetch(["nowhere.jpg", PNG], allow_missing=True)
    assert list(data.metadata.index) == [PNG]


def test_the_archive_is_fetched_only_for_images(granted, server, data_dir):
    data = fetch(max_images=0)
    assert len(data.metadata) == 0
    assert data.archive is None
    assert not (data_dir / ARCHIVE).exists()
    assert {key for _, key, _ in server.requests} == {"", STIMULUS_TABLE}


def test_dry_run(granted, server, data_dir, bucket_folder):
    size = (bucket_folder / ARCHIVE).stat().st_size
    plan = fetch(dry_run=True, extract=True)

    assert plan.plan.to_dict("records") == [
        {"id": ARCHIVE, "size": size, "reason": "missing"}
    ]
    assert plan.plan_size == size
    assert len(plan.metadata) > 0
    assert not (data_dir / ARCHIVE).exists()
    fetch()
    assert len(fetch(dry_run=True).plan) == 0
    assert fetch(dry_run=True, mode="overwrite").plan["reason"].tolist() == [
        "overwrite"
    ]


def test_a_dry_run_needs_no_id(server, data_dir, bucket_folder):
    """Nor the access service: the bucket lists the archive, though it denies it."""
    size = (bucket_folder / ARCHIVE).stat().st_size
    plan = fetch(dry_run=True, unique_or_shared="shared")

    assert plan.plan.to_dict("records") == [
        {"id": ARCHIVE, "size": size, "reason": "missing"}
    ]
    assert plan.plan_size == size
    assert set(plan.metadata["unique_or_shared"]) == {"shared"}
    assert not (data_dir / ARCHIVE).exists()


def test_a_dry_run_where_the_bucket_does_not_list_the_archive(
    access, server, data_dir, bucket_folder
):
    server.delete(ARCHIVE)
    file = {"name": "task-images_stimuli.h5", "size": 3_200_000_000, "sha256": "0" * 64}
    access.answers[MANIFEST] = (
        200,
        {},
        {"current_terms_version": "2026-05-12", "files": [file]},
    )
    assert fetch(dry_run=True).plan_size == 3_200_000_000
    access.answers[MANIFEST] = (500, {}, b"")
    with pytest.raises(AccessServiceError, match="500"):
        fetch(dry_run=True)


# ---------------------------------------------------------------- the public table


def test_the_table_needs_no_id(server, data_dir, monkeypatch):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    data = metadata()

    assert set(data) == {
        "metadata",
        "metadata_file",
        "files_meta",
        "failed",
        "data_dir",
        "query",
        "description",
    }
    assert data.metadata_file == str(data_dir / STIMULUS_TABLE)
    assert Path(data.metadata_file).is_file()
    assert data.failed == []
    (record,) = data.files_meta
    assert record["id"] == STIMULUS_TABLE
    assert record["size"] == os.path.getsize(data.metadata_file)
    assert record["outdated"] is False
    assert {key for _, key, _ in server.requests} == {"", STIMULUS_TABLE}
    assert not (data_dir / ARCHIVE).exists()


def test_the_table_is_the_same_by_both_fetchers(granted):
    images = fetch(unique_or_shared="shared", max_images=-1)
    table = metadata(unique_or_shared="shared")
    pd.testing.assert_frame_equal(table.metadata, images.metadata)
    assert table.query == {
        "labels": None,
        "stimulus_filter": images.query["stimulus_filter"],
    }
    offline = metadata([PNG, SCREENSHOT], mode="offline")
    assert list(offline.metadata.index) == [PNG, SCREENSHOT]


def test_the_table_offline(data_dir, no_network, monkeypatch):
    with pytest.raises(NotCachedError, match="download_new"):
        metadata(mode="offline")
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    for fetch_one in (metadata, *FETCHERS):
        with pytest.raises(NotCachedError, match="not on disk"):
            fetch_one()


TABLE = """image_name,dataset,participant,unique_or_shared,n_reps
shared_12rep_THINGS+_kmeans_211_bracelet2.jpg,THINGSplus,shared,shared,12rep
shared_4rep_NSD_special1000_100.jpg,NSD,sub-01;sub-03;sub-05,shared,4rep
shared_4rep_OOD_shape_blob_round-01.png,OOD,shared,shared,4rep
unique_LAION_initial_cluster_1122_i1_p05.jpg,LAION,sub-07,unique,4rep
unique_THINGS_air_pump_p03.jpg,THINGS,sub-05,unique,4rep
an image of another name.jpg,THINGSplus,sub-06,unique,4rep
another.jpg,n/a,sub-01;sub-03,shared,12rep
"""
FIELDS = ["dataset", "participant", "unique_or_shared", "n_reps", "ood_type"]
AS_LABELS = [
    ("THINGS+", None, "shared", 12, None),
    ("NSD", None, "shared", 4, None),
    ("OOD", None, "shared", 4, "shape"),
    ("LAION", "sub-07", "unique", 4, None),
    ("THINGS", "sub-05", "unique", 4, None),
    ("THINGS+", "sub-06", "unique", 4, None),
    (None, None, "shared", 12, None),
]


def rows(frame):
    plain = frame[FIELDS].astype(object)
    return list(plain.where(plain.notna(), None).itertuples(index=False, name=None))


def test_the_table_in_the_spelling_of_labels(server, data_dir):
    file = data_dir / STIMULUS_TABLE
    file.parent.mkdir(parents=True)
    file.write_text(TABLE)
    table = metadata(mode="offline").metadata

    assert rows(table) == AS_LABELS
    assert table["n_reps"].dtype == "Int64"
    assert list(table["h5_index"]) == list(range(7))
    for terms, n in (
        ({"n_reps": 12}, 2),
        ({"dataset": "THINGS+"}, 2),
        ({"participant": "sub-05"}, 1),
        ({"participant": IsNull()}, 4),
    ):
        assert len(metadata(mode="offline", **terms).metadata) == n


def test_the_label_has_the_last_word(server, data_dir):
    file = data_dir / STIMULUS_TABLE
    file.parent.mkdir(parents=True)
    file.write_text(
        "image_name,dataset,participant,unique_or_shared,n_reps,colour\n"
        "unique_THINGS_air_pump_p03.jpg,NSD,sub-03,shared,many,red\n"
        "unique_THINGS_air_pump_p99.jpg,THINGS,sub-03,unique,4rep,n/a\n"
    )
    table = metadata(mode="offline").metadata
    assert rows(table) == [
        ("THINGS", "sub-05", "unique", 4, None),
        ("THINGS", None, "unique", 4, None),
    ]
    assert list(table["colour"]) == ["red", None]


def test_an_old_table_of_names_alone(server, data_dir):
    file = data_dir / STIMULUS_TABLE
    file.parent.mkdir(parents=True)
    file.write_text("image_name\nunique_THINGS_air_pump_p03.jpg\nanother.jpg\n")
    assert rows(metadata(mode="offline").metadata) == [
        ("THINGS", "sub-05", "unique", 4, None),
        (None,) * 5,
    ]
    file.write_text("image_name\nanother.jpg\n")
    table = metadata(mode="offline").metadata
    assert rows(table) == [(None,) * 5]
    assert table["n_reps"].dtype == "Int64"


def test_nothing_passes(server, data_dir):
    """The values that exist are named."""
    with pytest.warns(UserWarning, match="dataset is LAION, NSD, OOD") as warned:
        assert len(metadata(dataset="nowhere").metadata) == 0
    assert "Nothing passes stimulus_filter, " in str(warned[0].message)
    with pytest.warns(UserWarning, match="source is ai, human"):
        assert captions(source="people").image_names == []
    with pytest.warns(UserWarning, match="localized is 0, 1"):
        assert segmentations(localized=2).image_names == []


@pytest.mark.parametrize("fetch_one", [metadata, captions, segmentations])
def test_a_bunch_in_the_place_of_labels(server, data_dir, fetch_one):
    given = Bunch(images=["a.nii.gz"], trials=pd.DataFrame({"label": [PNG]}))
    with pytest.raises(InvalidQueryError, match=r"labels is a Bunch .* data\.trials"):
        fetch_one(given)
    with pytest.raises(InvalidQueryError, match=r"labels is a Bunch .* data\.metadata"):
        fetch_one(labels=Bunch(metadata=pd.DataFrame()))
    with pytest.raises(InvalidQueryError, match="labels is a dict with 3; give labels"):
        fetch_one({3: 4})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Bunch(images=["a.nii.gz"], trials=[]), "a Bunch with images, trials"),
        (Bunch(metadata=pd.DataFrame({"x": [1]}), archive="a.h5"), "a Bunch with"),
        ("stimuli.h5", "a str was given"),
        (None, "a NoneType was given"),
    ],
)
def test_load_what_is_not_of_stimuli(given, said):
    with pytest.raises(InvalidQueryError, match=f"fetch_laion_stimuli.*{said}"):
        load_stimuli(given)


def test_load_the_bunch_of_the_table_alone(server, data_dir):
    with pytest.raises(InvalidQueryError, match="archive"):
        load_stimuli(metadata())


def test_the_size_of_the_archive_is_said_first(granted, capfd):
    fetch(verbose=1)
    lines = capfd.readouterr().err.splitlines()
    assert "3.2 GB" in next(line for line in lines if ARCHIVE in line)
    fetch(verbose=1)
    assert "3.2 GB" not in capfd.readouterr().err
    fetch(verbose=0, mode="overwrite")
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- extraction


def test_extracted_images_are_those_of_the_archive(granted, published, data_dir):
    table, images = published
    data = fetch(extract=True, unique_or_shared="shared")

    assert len(data.images) == len(data.metadata) > 0
    for path, name in zip(data.images, data.metadata.index, strict=True):
        assert path == str(data_dir / "stimuli/images" / name)
        assert Path(path).read_bytes() == images[name]
    there = {file.name for file in (data_dir / "stimuli/images").iterdir()}
    assert there == set(data.metadata.index)
    assert SCREENSHOT in there
    assert "shared_4rep_OOD_gaudy_street+night.jpg" in there

    everything = fetch(extract=True)
    assert len(everything.images) == len(images)
    for path, name in zip(everything.images, table["image_name"], strict=True):
        assert Path(path).read_bytes() == images[name]


def test_what_is_extracted_stays(granted, data_dir):
    first = fetch([PNG, SCREENSHOT], extract=True)
    stats = [os.stat(path).st_mtime_ns for path in first.images]
    fetch([PNG, SCREENSHOT], extract=True)
    assert [os.stat(path).st_mtime_ns for path in first.images] == stats
    os.unlink(first.images[0])
    fetch([PNG], extract=True, mode="offline")
    assert os.path.exists(first.images[0])


def test_overwriting_the_archive_renews_extracted_images(
    granted, server, published, data_dir
):
    fetch([PNG, SCREENSHOT], extract=True)
    table, images = published
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        rows = file.create_dataset(
            "images", (len(table),), dtype=h5py.vlen_dtype(np.uint8)
        )
        for i, name in enumerate(table["image_name"]):
            rows[i] = np.frombuffer(images[name] + b"new", np.uint8)
    server.put(ARCHIVE, buffer.getvalue())

    data = fetch([PNG], mode="overwrite")
    assert data.images == []
    for name in (PNG, SCREENSHOT):
        file = data_dir / "stimuli/images" / name
        assert file.read_bytes() == images[name] + b"new"


def test_a_table_in_another_order_than_the_archive_on_disk(
    granted, server, published, monkeypatch
):
    before = load_stimuli(fetch([PNG]), size=8)
    table, images = published
    table = table[::-1]
    put_table(server, table)
    with pytest.warns(UserWarning, match="another version of 1 file"):
        fetch([PNG])
    metadata(mode="overwrite")
    for mode in ("download_new", "offline"):
        with pytest.raises(CorruptImageError, match="another order.*mode='overwrite'"):
            fetch([PNG], mode=mode)

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        rows = file.create_dataset(
            "images", (len(table),), dtype=h5py.vlen_dtype(np.uint8)
        )
        for i, name in enumerate(table["image_name"]):
            rows[i] = np.frombuffer(images[name], np.uint8)
    server.put(ARCHIVE, buffer.getvalue())
    fetch([PNG], mode="overwrite")
    assert (load_stimuli(fetch([PNG]), size=8) == before).all()


@pytest.mark.parametrize(
    "name",
    ["../escape.jpg", "/etc/x.jpg", "a/b.jpg", "..", "C:x.jpg", "a\\b", "a\nb"],
)
def test_names_that_would_leave_the_folder(
    granted, server, published, data_dir, tmp_path, name
):
    table = published[0].copy()
    table.loc[3, "image_name"] = name
    put_table(server, table)

    with pytest.raises(UnsafeKeyError, match="nothing was written"):
        fetch(extract=True)
    assert not (data_dir / "stimuli/images").exists()
    assert not list(tmp_path.rglob("escape.jpg"))


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
    there = [file.name for file in (data_dir / "stimuli/images").iterdir()]
    assert len(there) == 3
    assert not any(name.startswith(".") for name in there)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="Linux counts reads")
def test_only_selected_rows_are_read(access, monkeypatch, data_dir):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    n, size = 400, 50_000
    names = [f"unique_THINGS_barn{i}_p01.jpg" for i in range(n)]
    (data_dir / "stimuli").mkdir(parents=True)
    pd.DataFrame({"image_name": names}).to_csv(data_dir / STIMULUS_TABLE, index=False)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (n, size), np.uint8)
    with h5py.File(data_dir / ARCHIVE, "w") as file:
        rows = file.create_dataset("images", (n,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(n):
            rows[i] = data[i]
    chosen = names[5:400:20]
    fetch(names[:1], extract=True, mode="offline")

    before = bytes_read()
    found = fetch(chosen, extract=True, mode="offline")
    read = bytes_read() - before
    for path, i in zip(found.images, range(5, 400, 20), strict=True):
        assert Path(path).read_bytes() == data[i].tobytes()
    assert read < 2 * len(chosen) * size < n * size / 5


def bytes_read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])


# ---------------------------------------------------------------- broken files


def test_an_archive_that_is_none(granted, server):
    server.put(ARCHIVE, b"no HDF5 at all")
    with pytest.raises(CorruptImageError, match="overwrite"):
        fetch()


@pytest.mark.parametrize("name", ["pictures", "images"])
def test_an_archive_of_something_else(granted, server, name):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file[name] = np.zeros((2, 2))
    server.put(ARCHIVE, buffer.getvalue())
    with pytest.raises(CorruptImageError, match="no 1-D dataset 'images'"):
        fetch()


def test_an_archive_that_may_be_missing(granted, server, data_dir):
    granted.objects = lambda environ: (
        (404, {}, b"") if environ["PATH_INFO"].endswith(".h5") else None
    )
    with pytest.raises(DownloadError, match="404") as caught:
        fetch(max_images=2)
    assert [one["id"] for one in caught.value.failed] == [ARCHIVE]
    with pytest.warns(UserWarning, match=r"stimuli\.h5 could not be downloaded: .*404"):
        data = fetch(max_images=2, allow_missing=True, extract=True)
    assert data.archive is None
    assert data.images == []
    assert [one["id"] for one in data.failed] == [ARCHIVE]
    assert len(data.metadata) == 2


def test_an_archive_and_metadata_that_disagree(granted, server, published):
    put_table(server, published[0].iloc[:-1])
    with pytest.raises(CorruptImageError, match="images, its metadata"):
        fetch()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.rename(columns={"image_name": "name"}),
        lambda t: t.assign(image_name=t["image_name"].iloc[0]),
    ],
)
def test_a_broken_table(granted, server, published, change):
    put_table(server, change(published[0]))
    with pytest.raises(CorruptImageError, match="overwrite"):
        fetch()


def test_a_table_in_other_words(granted, server, published):
    """Participants as numbers, and columns that are missing or more."""
    table = published[0]
    table = table.assign(
        participant=table["participant"].str.removeprefix("sub-"), colour="n/a"
    ).drop(columns="n_reps")
    before = fetch(max_images=0, mode="overwrite").metadata
    plain = fetch().metadata
    put_table(server, table)

    changed = fetch(mode="overwrite").metadata
    assert changed["colour"].isna().all()
    pd.testing.assert_frame_equal(
        changed[list(before)].sort_index(axis=1), plain.sort_index(axis=1)
    )


# ---------------------------------------------------------------- pictures


def test_load_as_displayed(granted, published):
    _, images = published
    data = fetch([SCREENSHOT, PNG])
    pictures = load_stimuli(data)

    assert pictures.dtype == np.uint8
    assert pictures.shape == (2, 160, 160, 3)
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


def test_load_in_the_order_of_metadata(granted, published):
    data = fetch()
    everything = load_stimuli(data)
    data.metadata = data.metadata.sample(frac=0.3, random_state=0)
    np.testing.assert_array_equal(
        load_stimuli(data), everything[data.metadata["h5_index"]]
    )


def test_load_resized_and_in_batches(granted):
    data = fetch(max_images=23)
    small = load_stimuli(data, size=(24, 36))
    assert small.shape == (23, 24, 36, 3)
    assert load_stimuli(data, size=24).shape == (23, 24, 24, 3)
    original = load_stimuli(data)
    expected = Image.fromarray(original[4]).resize((36, 24), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(small[4], np.asarray(expected))

    batches = load_stimuli(data, size=(24, 36), batch_size=10)
    assert next(batches).shape == (10, 24, 36, 3)
    batches = list(load_stimuli(data, size=(24, 36), batch_size=10))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(batches), small)


def test_batches_that_are_left_close_the_archive(granted):
    data = fetch(max_images=9)
    n_threads = threading.active_count()
    batches = load_stimuli(data, batch_size=3)
    next(batches)
    batches.close()
    assert threading.active_count() <= n_threads
    with h5py.File(data.archive, "r+"):
        pass


def test_load_nothing(granted):
    fetch()
    data = fetch(dataset="nowhere")
    assert load_stimuli(data).shape[0] == 0
    assert load_stimuli(data, size=8).shape == (0, 8, 8, 3)
    assert list(load_stimuli(data, batch_size=8)) == []


@pytest.mark.parametrize(
    "asked",
    [{"size": 0}, {"size": (1, 2, 3)}, {"size": "big"}, {"batch_size": 0}],
)
def test_load_what_is_not_valid(granted, asked):
    with pytest.raises(InvalidQueryError, match=next(iter(asked))):
        load_stimuli(fetch(max_images=2), **asked)


def test_load_without_the_archive(granted):
    data = fetch(max_images=0)
    with pytest.raises(NotCachedError):
        load_stimuli(data)


def test_load_images_that_cannot_be_decoded_or_differ(granted, server, published):
    table, images = published
    other = io.BytesIO()
    Image.new("RGB", (10, 20)).save(other, "PNG")
    changed = list(images.values())
    changed[2], changed[5] = b"no image", other.getvalue()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        rows = file.create_dataset(
            "images", (len(table),), dtype=h5py.vlen_dtype(np.uint8)
        )
        for i, image in enumerate(changed):
            rows[i] = np.frombuffer(image, np.uint8)
    server.put(ARCHIVE, buffer.getvalue())
    data = fetch()
    metadata = data.metadata

    with pytest.raises(CorruptImageError, match="decoded") as caught:
        load_stimuli(data)
    assert metadata.index[2] in str(caught.value)
    data.metadata = metadata.iloc[4:7]
    with pytest.raises(InvalidQueryError, match="size"):
        load_stimuli(data)
    assert load_stimuli(data, size=8).shape == (3, 8, 8, 3)


# ---------------------------------------------------------------- public derivatives


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


@pytest.mark.parametrize(
    ("fetch_one", "key"),
    [
        (metadata, STIMULUS_TABLE),
        (captions, CAPTIONS),
        (lambda **how: embeddings("CLIP", **how), embeddings_id("CLIP")),
        (segmentations, SEGMENTATIONS_TABLE),
        (segmentations, SEGMENTATIONS),
    ],
)
@pytest.mark.parametrize("same_size", [False, True])
def test_a_file_that_was_replaced_at_its_key(
    data_dir, put, bucket_folder, fetch_one, key, same_size
):
    old = (bucket_folder / key).read_bytes()
    new = old[:-1] + (b"\n" if old[-1:] != b"\n" else b" ") + b"\n" * (not same_size)
    fetch_one()
    put(key, new)

    with pytest.warns(UserWarning, match="another version") as warned:
        data = fetch_one()
    (text,) = {str(warning.message) for warning in warned}
    for said in (key, f"{len(old):,} bytes", f"{len(new):,} bytes", "2026-09-28"):
        assert said in text
    assert "mode='overwrite'" in text
    archived = (
        "fetch_laion_fmri_ids"
        "('archive/embeddings/v1/task-images_desc-CLIP_embeddings.h5')"
    )
    assert (archived in text) == ("CLIP" in key)
    record = next(rec for rec in data.files_meta if rec["id"] == key)
    assert record["outdated"] is True
    assert record["size"] == len(old)
    assert record["last_modified"].startswith("2025-06-01")
    assert record["etag"] is None
    assert (data_dir / key).read_bytes() == old

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        offline = fetch_one(mode="offline")
        data = fetch_one(mode="overwrite")
        assert fetch_one().files_meta == data.files_meta
    assert offline.files_meta[-1]["outdated"] is (offline.files_meta[-1]["id"] == key)
    record = next(rec for rec in data.files_meta if rec["id"] == key)
    assert record["outdated"] is False
    assert (record["size"], record["etag"]) == (len(new), hashlib.md5(new).hexdigest())
    assert record["last_modified"].startswith("2026-09-28")
    assert (data_dir / key).read_bytes() == new


def test_a_file_that_others_put_there(server, data_dir, bucket_folder):
    """Its version is not known, only its size."""
    file = data_dir / CAPTIONS
    file.parent.mkdir(parents=True)
    whole = (bucket_folder / CAPTIONS).read_bytes()
    file.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert captions().files_meta[0]["outdated"] is False
    file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with pytest.warns(UserWarning, match="another size.*cut short"):
        captions(mode="offline")
    captions()
    assert file.read_bytes() == whole


def put_embeddings(data_dir, model, names):
    """Write embeddings whose only value is the position in the alphabet."""
    file = data_dir / embeddings_id(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        content["embedding"] = np.array([[ord(name[0]) - 97] for name in names], "f2")
        content["image_ids"] = np.array(names, "S")
        content["valid"] = [name != "d.jpg" for name in names]


def test_embeddings_that_a_model_did_not_give_are_a_warning(server, data_dir):
    """Their rows are numbers, as others are."""
    put_embeddings(data_dir, "CLIP", ["a.jpg", "d.jpg"])
    with pytest.warns(UserWarning, match=r"CLIP gave no valid .* 1 image \('d\.jpg'\)"):
        embeddings("CLIP", mode="offline")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embeddings("CLIP", ["a.jpg"], mode="offline")


def test_embeddings_of_different_images(server, data_dir):
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


def test_embeddings_that_name_an_image_twice(server, data_dir):
    put_embeddings(data_dir, "CLIP", ["a.jpg", "b.jpg", "a.jpg"])
    for names in (None, ["a.jpg"]):
        with pytest.raises(CorruptImageError, match=r"names 'a\.jpg' twice"):
            embeddings("CLIP", names, mode="offline")


@pytest.mark.parametrize("fetch_one", FETCHERS)
def test_public_files_need_neither_id_nor_licence(
    server, data_dir, monkeypatch, fetch_one
):
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    assert len(fetch_one().image_names) > 0
    server.requests.clear()
    fetch_one()
    assert {key for _, key, _ in server.requests} == {""}


@pytest.mark.parametrize("fetch_one", FETCHERS)
def test_public_files_offline(server, data_dir, fetch_one, request):
    with pytest.raises(NotCachedError, match="download_new"):
        fetch_one(mode="offline")
    online = fetch_one()
    request.getfixturevalue("no_network")
    offline = fetch_one(mode="offline")
    assert set(offline) == set(online)
    for key, value in online.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(offline[key], value)
        elif key in ("embeddings", "valid"):
            for model, array in value.items():
                np.testing.assert_array_equal(offline[key][model], array)
        else:
            assert offline[key] == value


@pytest.mark.parametrize("fetch_one", FETCHERS)
def test_public_files_when_the_bucket_is_gone(server, data_dir, fetch_one, monkeypatch):
    before = fetch_one()
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/gone")
    with pytest.warns(UserWarning, match="on disk"):
        assert fetch_one().image_names == before.image_names
    with pytest.raises(BucketError, match="Missing"):
        fetch_one(mode="overwrite")


@pytest.mark.parametrize(
    ("fetch_one", "key"),
    [
        (captions, CAPTIONS),
        (embeddings, embeddings_id("PEcore")),
        (segmentations, SEGMENTATIONS_TABLE),
        (segmentations, SEGMENTATIONS),
    ],
)
def test_public_files_that_fail(server, data_dir, fetch_one, key):
    server.faults[key] = (404, {}, b"")
    with pytest.raises(DownloadError, match="404") as caught:
        fetch_one()
    assert caught.value.failed[0]["id"] == key
    if key.endswith(".csv"):
        with pytest.raises(DownloadError):
            fetch_one(allow_missing=True)
        return
    with pytest.warns(UserWarning, match="Left out"):
        data = fetch_one(allow_missing=True)
    assert [one["id"] for one in data.failed] == [key]
    assert len(data.image_names) > 0


def test_a_file_that_the_bucket_lacks(server, data_dir, bucket_folder):
    key = embeddings_id("CLIP")
    server.delete(key)
    try:
        with pytest.raises(DownloadError, match="not in the bucket"):
            embeddings("CLIP")
    finally:
        server.put(key, (bucket_folder / key).read_bytes(), last_modified=UPLOADED)


def test_captions(server, data_dir, bucket_folder):
    published = pd.read_csv(bucket_folder / CAPTIONS, keep_default_na=False, dtype=str)
    data = captions()
    assert list(data.captions) == list(published)
    assert list(data.captions["caption"]) == list(published["caption"])
    assert data.captions["caption_idx"].dtype == np.int64
    assert data.captions["ai_model"].isna().sum() == (published["ai_model"] == "").sum()

    names = [SCREENSHOT, PNG, "shared_4rep_NSD_special1000_4.jpg"]
    some = captions(names, source="human")
    assert some.image_names == names
    assert list(some.captions["image_name"]) == [n for n in names for _ in range(5)]
    assert list(some.captions["caption_idx"]) == [1, 2, 3, 4, 5] * 3
    ai = captions(names, caption_filter={"source": "ai"})
    assert ai.image_names == names
    assert set(ai.captions["image_name"]) == {names[2]}
    for bad in ({"labels": ["nowhere.jpg"]}, {"sourc": "human"}):
        with pytest.raises(InvalidQueryError):
            captions(**bad)


def test_a_caption_is_text_whatever_it_says(server, data_dir, bucket_folder):
    text = (
        "image_name,caption_idx,source,caption\n"
        'a.jpg,1,human,1984\na.jpg,2,human,None\n"a, b.jpg",1,human,"say ""n/a"""\n'
    )
    server.put(CAPTIONS, text.encode())
    try:
        data = captions()
    finally:
        server.put(
            CAPTIONS, (bucket_folder / CAPTIONS).read_bytes(), last_modified=UPLOADED
        )
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

    wanted = [names[i] for i in (30, 2, 77, 30, 5)]
    some = embeddings("SigLIP2", wanted)
    assert some.image_names == list(dict.fromkeys(wanted))
    np.testing.assert_array_equal(some.embeddings["SigLIP2"], values[[30, 2, 77, 5]])
    assert some.embeddings["SigLIP2"].dtype == np.float16
    assert some.valid["SigLIP2"].tolist() == [True] * 4
    downloaded = {key for _, key, _ in server.requests if key}
    assert downloaded == {embeddings_id("SigLIP2"), embeddings_id("CLIP")}
    for bad in ({"models": "CLIPP"}, {"models": []}, {"labels": ["x.jpg"]}):
        with pytest.raises(InvalidQueryError):
            embeddings(**bad)


def test_embeddings_in_different_orders(server, data_dir, tmp_path, bucket_folder):
    names = ["a.jpg", "b.jpg", "c.jpg"]
    for model, order in (("CLIP", [0, 1, 2]), ("DINOv2", [2, 0, 1])):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["embedding"] = np.array(order, np.float16)[:, None] * np.ones(4)
            file["image_ids"] = np.array([names[i] for i in order], "S")
            file["valid"] = np.array(order) != 1
        (data_dir / "stimuli").mkdir(parents=True, exist_ok=True)
        (data_dir / embeddings_id(model)).write_bytes(buffer.getvalue())

    data = embeddings(["CLIP", "DINOv2"], mode="offline")
    assert data.image_names == names
    for model in ("CLIP", "DINOv2"):
        assert data.embeddings[model][:, 0].tolist() == [0, 1, 2]
        assert data.valid[model].tolist() == [True, False, True]


def test_embeddings_that_disagree(server, data_dir):
    file = data_dir / embeddings_id("CLIP")
    file.parent.mkdir(parents=True)
    with h5py.File(file, "w") as broken:
        broken["embedding"] = np.zeros((3, 4))
        broken["image_ids"] = [b"a.jpg", b"b.jpg"]
        broken["valid"] = [True, True]
    with pytest.raises(CorruptImageError, match="differ in length.*overwrite"):
        embeddings("CLIP", mode="offline")


@pytest.mark.parametrize("content", [b"none", None])
def test_broken_embeddings(server, data_dir, content):
    file = data_dir / embeddings_id("CLIP")
    file.parent.mkdir(parents=True)
    file.write_bytes(content or b"")
    if content is None:
        with h5py.File(file, "w") as broken:
            broken["embedding"] = np.zeros((2, 3))
    with pytest.raises(CorruptImageError, match="overwrite"):
        embeddings("CLIP", mode="offline")


def test_segmentations(server, data_dir, bucket_folder, labels):
    published = pd.read_csv(bucket_folder / SEGMENTATIONS_TABLE)
    data = segmentations()
    pd.testing.assert_frame_equal(
        data.segmentations.sort_values("mask_row").reset_index(drop=True),
        published,
        check_dtype=False,
    )
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


def test_segmentations_in_odd_tables(server, data_dir):
    """Numbers and words in one column are words; a null is no noun."""
    file = data_dir / SEGMENTATIONS_TABLE
    file.parent.mkdir(parents=True)
    header = "mask_row,image_name,noun,instance_id,score,localized\n"
    rows = "2,a.jpg,cat,0,0.5,1\n1,a.jpg,n/a,1,high,1\n0,b.jpg,dog,0,n/a,0\n"
    file.write_text(header + rows)
    query = {"masks": False, "mode": "offline"}
    data = segmentations(["b.jpg", "a.jpg"], vectorize_nouns=True, **query)
    assert list(data.segmentations["mask_row"]) == [0, 1, 2]
    assert list(data.segmentations["score"]) == [None, "high", "0.5"]
    assert data.vocabulary.tolist() == ["cat", "dog"]
    assert data.noun_counts.tolist() == [[0, 1], [1, 0]]
    file.write_text(header + rows.replace("2,a", "two,a"))
    with pytest.raises(CorruptImageError, match="mask_row.*overwrite"):
        segmentations(**query)


def test_segmentations_without_masks(server, data_dir):
    data = segmentations(masks=False)
    assert data.masks_file is None
    assert {key for _, key, _ in server.requests if key} == {SEGMENTATIONS_TABLE}


def test_images_without_masks(server, data_dir, labels):
    unique = [name for name in labels if name.startswith("unique")][:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = segmentations([*unique, PNG], vectorize_nouns=True)
    assert data.image_names == [*unique, PNG]
    assert (data.noun_counts[:2] == 0).all()
    assert data.noun_counts[2].sum() == len(data.segmentations)
    with pytest.warns(UserWarning, match="nowhere"):
        data = segmentations(["nowhere.jpg"], vectorize_nouns=True)
    assert data.noun_counts.shape == (1, 0)


def test_vectorized_nouns(server, data_dir):
    data = segmentations(vectorize_nouns=True)
    table = pd.crosstab(data.segmentations["image_name"], data.segmentations["noun"])
    assert data.vocabulary.tolist() == sorted(set(data.segmentations["noun"]))
    np.testing.assert_array_equal(
        data.noun_counts, table.loc[data.image_names, data.vocabulary]
    )
    assert (data.noun_counts == 2).any()
    assert segmentations(noun="nothing", vectorize_nouns=True).noun_counts.shape == (
        0,
        0,
    )


def test_a_data_directory_that_cannot_be_written(granted, monkeypatch, data_dir):

    before = fetch([PNG])
    caption = captions([PNG])
    monkeypatch.setattr(settings, "is_writable", lambda folder: False)
    with pytest.warns(UserWarning, match="cannot be written"):
        pd.testing.assert_frame_equal(fetch([PNG]).metadata, before.metadata)
    with pytest.warns(UserWarning, match="cannot be written"):
        pd.testing.assert_frame_equal(captions([PNG]).captions, caption.captions)


# ---------------------------------------------------------------- tables with flaws


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
    return lambda **query: call(mode="offline", **query)[request.param], (
        data_dir / path,
        term,
        call()[request.param],
    )


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
    call, (file, _, expected) = flawed
    file.write_bytes(change(file.read_text()).encode())
    pd.testing.assert_frame_equal(call(), expected)


def test_a_table_that_is_not_utf8_is_read(flawed):
    call, (file, _, expected) = flawed
    first, rest = file.read_text().split("\n", 1)
    file.write_bytes(
        f"{first},note\n{rest.replace(chr(10), ',é' + chr(10))}".encode("latin-1")
    )
    changed = call()
    assert (changed["note"] == "é").all()
    pd.testing.assert_frame_equal(changed[list(expected)], expected)


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
    call, (file, _, _) = flawed
    rows = file.read_text().splitlines()
    rows[3] = change(rows[3])
    file.write_text("\n".join(rows))
    with pytest.raises(CorruptImageError, match=f"{file.name} is broken.*{words}"):
        call()


def test_flaws_of_a_table_stop_only_a_filter_that_needs_them(flawed):
    call, (file, term, expected) = flawed
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


def test_a_cell_that_is_not_a_number_is_null(server, data_dir):
    n_masks = len(segmentations(masks=False).segmentations)
    file = data_dir / SEGMENTATIONS_TABLE
    table = pd.read_csv(file, dtype=str)
    table.loc[2, "localized"] = "yes"
    table.to_csv(file, index=False)
    with pytest.warns(UserWarning, match="line 4: localized is 'yes', not a whole"):
        rows = segmentations(masks=False, mode="offline").segmentations
    assert len(rows) == n_masks
    assert rows["localized"].isna().sum() == 1
    with pytest.raises(CorruptImageError, match="line 4, column localized"):
        segmentations(masks=False, mode="offline", localized=1)


def test_columns_named_as_fields_of_ours_do_not_replace_them(flawed):
    call, (file, _, expected) = flawed
    first, *rows = file.read_text().splitlines()
    rows = [f"{first},label,h5_index", *(f"{row},dog,7" for row in rows)]
    file.write_text("\n".join(rows))
    changed = call()
    pd.testing.assert_frame_equal(changed[list(expected)], expected)
    assert (changed["table_label"] == "dog").all()
    assert (changed["table_h5_index"].astype(int) == 7).all()
    assert metadata(changed, allow_missing=True).metadata.index[0] in set(
        expected.get("image_name", expected.index)
    )


# ---------------------------------------------------------------- names and terms


@pytest.mark.parametrize("call", [fetch, metadata, captions, embeddings, segmentations])
@pytest.mark.parametrize("labels", [{SCREENSHOT, PNG}, frozenset({PNG})])
def test_a_set_of_labels_is_refused(granted, server, call, labels):
    with pytest.raises(
        InvalidQueryError, match="labels is a (frozen)?set, whose order"
    ):
        call(labels=labels)


def test_views_of_a_dict_have_an_order(server, data_dir):
    labels = dict.fromkeys([SCREENSHOT, PNG])
    assert list(metadata(labels.keys()).metadata.index) == [SCREENSHOT, PNG]


def test_models_may_be_a_set_whose_order_does_not_matter(server, data_dir):
    models = {"SigLIP2", "CLIP", "PEcore"}
    assert list(embeddings(models, PNG).files) == ["CLIP", "PEcore", "SigLIP2"]


@pytest.mark.parametrize(
    ("call", "query", "words"),
    [
        (captions, {"caption_filter": SOURCES}, "source is ai, human"),
        (metadata, {"stimulus_filter": DATASETS}, "dataset is LAION, NSD"),
        (
            segmentations,
            {"segmentation_filter": LOCALIZED, "masks": False},
            "localized is",
        ),
    ],
)
def test_a_term_that_no_row_fulfils_is_warned_of(server, data_dir, call, query, words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(**query)
    (text,) = [str(one.message) for one in caught]
    (name, *_) = query
    assert re.match(f"Nothing fulfils .*, a part of {name}.*{words}", text)


# Files that others hold, and what is no damage


@pytest.fixture
def locked(monkeypatch):
    """Lock files as HDF5 finds them where others hold them, or locks do not work."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    with contextlib.ExitStack() as held:

        def lock(file):
            stream = held.enter_context(open(file, "r+b"))
            fcntl.flock(stream, fcntl.LOCK_EX)

        yield lock


def test_files_are_read_though_others_hold_locks(granted, locked, data_dir):
    chosen = fetch(max_images=3)
    clip = embeddings("CLIP")
    locked(chosen.archive)
    locked(clip.files["CLIP"])
    assert len(load_stimuli(chosen, size=8)) == 3
    assert len(fetch(max_images=2).metadata) == 2
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


def test_too_few_open_files_are_no_damage(granted):
    resource = pytest.importorskip("resource")
    chosen = fetch(max_images=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    load_stimuli(chosen, size=8)
    with contextlib.ExitStack() as held:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.suppress(OSError):
            while True:
                held.enter_context(open(os.devnull))
        with pytest.raises(OSError, match=r"(?i)too many open files") as error:
            load_stimuli(chosen, size=8)
    assert "overwrite" not in str(error.value)
