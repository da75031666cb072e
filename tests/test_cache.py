"""The data directory: which one, what is in it, files that appear whole."""

from __future__ import annotations

import json
import os
import stat
import warnings
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import unwritable
from policies import set_policy

from laion_fmri_fetchers import (
    dataset_initialize,
    fetch_laion_fmri,
    get_data_dir,
    get_subjects,
)
from laion_fmri_fetchers.cache.files import files_on_disk, write_atomically
from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError


def test_precedence(tmp_path, monkeypatch, environment):
    home = str(environment)
    assert get_data_dir() == f"{home}/nilearn_data/laion_fmri"
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    assert get_data_dir() == str(tmp_path / "nilearn" / "laion_fmri")
    saved = dataset_initialize(tmp_path / "saved")
    assert get_data_dir() == saved == str(tmp_path / "saved")
    assert Path(saved).is_dir()
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(tmp_path / "variable"))
    assert get_data_dir() == str(tmp_path / "variable")
    assert get_data_dir(tmp_path / "argument") == str(tmp_path / "argument")


def test_initialize_says_what_goes_before_it(tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(tmp_path / "variable"))
    with pytest.warns(UserWarning, match=r"LAION_FMRI_DATA_DIR is set.*/variable"):
        dataset_initialize(tmp_path / "saved")
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(tmp_path / "saved"))
    recwarn.clear()
    dataset_initialize(tmp_path / "saved")
    assert not recwarn


def test_paths_are_absolute_and_may_begin_at_home(tmp_path, monkeypatch, environment):
    monkeypatch.chdir(tmp_path)
    assert get_data_dir("data") == str(tmp_path / "data")
    assert get_data_dir("~/data") == str(environment / "data")


def test_configuration_is_shared_with_the_datasets_own_package(environment, tmp_path):
    file = environment / "config" / "laion_fmri" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"data_dir": str(tmp_path), "other": 1}))
    assert get_data_dir() == str(tmp_path)
    dataset_initialize(tmp_path / "new")
    assert json.loads(file.read_text()) == {
        "data_dir": str(tmp_path / "new"),
        "other": 1,
    }


def test_nilearns_folder_that_has_the_data_or_can_be_written(tmp_path, monkeypatch):
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    monkeypatch.setenv("NILEARN_SHARED_DATA", str(shared))
    monkeypatch.setenv("NILEARN_DATA", str(own))
    monkeypatch.setenv("HOME", str(tmp_path))
    with unwritable(shared, own, tmp_path):
        assert get_data_dir() == str(shared / "laion_fmri")
    with unwritable(shared, tmp_path):
        assert get_data_dir() == str(own / "laion_fmri")
    (shared / "laion_fmri").mkdir()
    with unwritable(shared, tmp_path):
        assert get_data_dir() == str(shared / "laion_fmri")


def test_initialize_where_one_may_not_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with (
        unwritable(tmp_path),
        pytest.raises(PermissionError, match="name another") as error,
    ):
        dataset_initialize(tmp_path / "data")
    assert error.value.filename == str(tmp_path / "data")
    (tmp_path / "data").mkdir()
    with (
        unwritable(tmp_path),
        pytest.raises(PermissionError, match="LAION_FMRI_DATA_DIR") as error,
    ):
        dataset_initialize(tmp_path / "data")
    assert error.value.filename.endswith("config.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"data_dir": 3}', "\x00"])
def test_broken_configuration(environment, tmp_path, text):
    file = environment / "config" / "laion_fmri" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(InvalidQueryError, match=r"config\.json"):
        get_data_dir()
    assert get_data_dir(tmp_path) == str(tmp_path)


def test_a_relative_directory_that_was_saved(environment, tmp_path, monkeypatch):
    file = environment / "config" / "laion_fmri" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"data_dir": "./laion_fmri_data"}))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="relative") as said:
        assert get_data_dir() == str(tmp_path / "laion_fmri_data")
    message = str(said[0].message)
    assert all(
        text in message
        for text in ("'./laion_fmri_data'", f"{tmp_path}/laion_fmri_data", str(file))
    )
    for given in (str(tmp_path), "~/data"):
        file.write_text(json.dumps({"data_dir": given}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            get_data_dir()
            get_data_dir("elsewhere")
    file.write_text(json.dumps({"data_dir": "./laion_fmri_data"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_data_dir("elsewhere") == str(tmp_path / "elsewhere")


def test_a_file_is_no_data_directory(tmp_path):
    (tmp_path / "file").touch()
    for function in (get_data_dir, dataset_initialize):
        with pytest.raises(InvalidQueryError, match="is a file"):
            function(tmp_path / "file")
    with pytest.raises(InvalidQueryError, match="empty"):
        dataset_initialize("")


def test_scan_leaves_out_what_is_none_of_ours(tmp_path):
    face = tmp_path / "derivatives/rois/sub-01/face"
    face.mkdir(parents=True)
    for name in (
        "sub-01_label-FFA1_mask.nii.gz",
        "sub-01_label-FFA-2_mask.nii.gz",
        ".hidden",
        "odd\nname",
    ):
        (face / name).touch()
    (face / "broken.nii.gz").symlink_to(tmp_path / "nowhere")
    (face / "link.nii.gz").symlink_to(face / ".hidden")
    (tmp_path / "README").touch()
    (tmp_path / ".laion_fmri").mkdir()
    (tmp_path / ".laion_fmri" / "auth.json").touch()

    files, folders = files_on_disk(str(tmp_path), [("derivatives/", ""), ("", "/")])

    assert set(files) == {
        "derivatives/rois/sub-01/face/sub-01_label-FFA1_mask.nii.gz",
        "derivatives/rois/sub-01/face/sub-01_label-FFA2_mask.nii.gz",
        "derivatives/rois/sub-01/face/link.nii.gz",
        "README",
    }
    assert folders == {"derivatives/"}


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "file.json"
    write_atomically(file, b"first")
    assert stat.S_IMODE(file.stat().st_mode) & 0o600 == 0o600

    def fail(*args):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(file, b"second")
    assert file.read_bytes() == b"first"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("n", [249, 255])
def test_names_as_long_as_the_file_system_allows(tmp_path, n):
    write_atomically(tmp_path / ("x" * (n - 4) + ".jpg"), b"image")
    (file,) = tmp_path.iterdir()
    assert len(file.name) == n
    assert file.read_bytes() == b"image"


def test_umask_and_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
        write_atomically(tmp_path / "b", b"", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def _write(file, number):
    for _ in range(50):
        write_atomically(file, f"{number}".encode() * 20_000)


def test_files_of_many_writers_are_never_torn(tmp_path):
    context = get_context("spawn")
    file = tmp_path / "state" / "file"
    writers = [context.Process(target=_write, args=(file, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if file.exists():
            content = file.read_bytes()
            assert content == content[:1] * 20_000
            seen += 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert seen > 0
    assert [*file.parent.iterdir()] == [file]


KEY, DATE = "a/x", "2026-05-01T10:00:00.000Z"


def listing(**changes):
    return {
        "prefix": "a/",
        "delimiter": "",
        "bucket": "http://host/bucket",
        "listed_at": 1.5,
        "objects": [[KEY, 1, "etag", DATE]],
        "prefixes": [],
        **changes,
    }


def keep(data_dir, content):
    file = data_dir / ".laion_fmri/listings/a%2F.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_a_kept_listing_stands_for_its_prefix_alone(tmp_path):
    keep(tmp_path, json.dumps(listing()))
    found = read_catalog([("a/", "")], str(tmp_path), mode="offline")
    assert found.objects == {KEY: (KEY, 1, "etag", DATE)}
    assert (found.unlisted, found.listed_at) == ([], 1.5)
    found = read_catalog([("a/", "/"), ("b/", "")], str(tmp_path), mode="offline")
    assert (found.objects, found.unlisted) == ({}, ["a/", "b/"])


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "3", "[" * 100_000),
        json.dumps(listing())[:-20],
        json.dumps({"listed_at": 1.0}),
        json.dumps(listing(objects=None)),
        json.dumps(listing(objects=[[KEY]])),
        json.dumps(listing(objects=[[KEY, "large", "etag", DATE]])),
        json.dumps(listing(prefixes=None)),
        json.dumps(listing(prefix=None)),
        json.dumps(listing(listed_at="yesterday")),
        json.dumps(listing(bucket=3)),
    ],
)
def test_a_broken_listing_is_told_and_not_used(tmp_path, content):
    keep(tmp_path, content)
    with pytest.warns(UserWarning, match=r"saved listing .*a%2F\.json cannot be used"):
        found = read_catalog([("a/", "")], str(tmp_path), mode="offline")
    assert (found.objects, found.unlisted) == ({}, ["a/"])


def test_a_listing_under_the_name_of_another_is_not_used(tmp_path):
    keep(tmp_path, json.dumps(listing(prefix="b/", objects=[])))
    found = read_catalog([("a/", "")], str(tmp_path), mode="offline")
    assert found.unlisted == ["a/"]


def test_subjects_that_were_never_listed_are_not_left_out_without_the_bucket(
    server, data_dir, monkeypatch
):
    fetch_laion_fmri("sub-01", rois=None, sessions=1, verbose=0)
    assert get_subjects() == ["sub-01", "sub-03"]
    set_policy(monkeypatch, first_wait=0.001)
    server.faults[""] = (503, {}, b"")
    with pytest.raises(BucketError, match="No listing of .*sub-03.* was saved earlier"):
        fetch_laion_fmri("all", rois=None, verbose=0)
