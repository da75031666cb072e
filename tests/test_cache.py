"""The data directory: which one, what is in it, files that appear whole."""

from __future__ import annotations

import json
import os
import stat
import warnings
import zlib
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unwritable

from laion_fmri_fetchers import dataset_initialize, fetch_laion_fmri, get_data_dir
from laion_fmri_fetchers.cache.files import files_on_disk, write_atomically
from laion_fmri_fetchers.cache.listings import save_listing, saved_listings
from laion_fmri_fetchers.cache.state import save_arrays, saved_arrays
from laion_fmri_fetchers.exceptions import InvalidQueryError


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


def test_parsed_tables_with_any_damage_are_parsed_again(cached):
    before = fetch_laion_fmri(mode="offline", verbose=0).trials
    folder = cached / ".laion_fmri" / "trials"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    rng = np.random.default_rng(0)
    for file in files:
        content = file.read_bytes()
        damaged = [content[: int(n)] for n in rng.integers(0, len(content), 8)]
        ends = np.r_[:64, len(content) - 64 : len(content)]
        for at in [*ends, *rng.integers(0, len(content), 40)]:
            flipped = bytearray(content)
            flipped[at] ^= 1 << int(rng.integers(8))
            damaged.append(bytes(flipped))
        for data in damaged:
            file.write_bytes(data)
            trials = fetch_laion_fmri(mode="offline", verbose=0).trials
            pd.testing.assert_frame_equal(trials, before)


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


def _write_listings(folder, number):
    for i in range(50):
        listing = {
            "prefix": "derivatives/",
            "delimiter": "",
            "listed_at": float(i),
            "objects": [[f"{number}", 1, None, None]] * 200,
            "prefixes": [],
        }
        save_listing(folder, listing)


def test_listings_of_many_writers_are_never_torn(tmp_path):
    context = get_context("spawn")
    writers = [
        context.Process(target=_write_listings, args=(str(tmp_path), n))
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        for file in (tmp_path / ".laion_fmri" / "listings").glob("*.json"):
            listing = json.loads(file.read_bytes())
            assert len({key for key, *_ in listing["objects"]}) == 1
            seen += 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert seen > 0
    assert len(list((tmp_path / ".laion_fmri" / "listings").iterdir())) == 1


def test_saved_listings_are_those_around_and_below(tmp_path):
    for at, prefix in enumerate(["a/b/", "a/", "a/b/c/", "x/", ""]):
        save_listing(str(tmp_path), listing(prefix, listed_at=-at))
    (tmp_path / ".laion_fmri/listings/a%2Fbroken.json").write_text("{")
    found = saved_listings(str(tmp_path), [("", "/")])
    assert [listing["prefix"] for listing in found] == [""]
    found = saved_listings(str(tmp_path), [("a/b/", "")])
    assert [listing["prefix"] for listing in found] == ["", "a/b/c/", "a/", "a/b/"]


def listing(prefix="a/", **changes):
    return {
        "prefix": prefix,
        "delimiter": "",
        "bucket": "http://host/bucket",
        "listed_at": 1.5,
        "objects": [["a/x", 1, "etag", "2026-05-01T10:00:00.000Z"]],
        "prefixes": [],
        **changes,
    }


@pytest.mark.parametrize("n", [0, 1, 999, 1000, 1001, 3500])
def test_listings_come_back_as_they_were(tmp_path, n):
    objects = [[f"a/{i}\n\u00e9", i, None, None] for i in range(n)]
    saved = listing(objects=objects)
    save_listing(str(tmp_path), saved)
    assert saved_listings(str(tmp_path), [("a/", "")]) == [saved]
    (file,) = (tmp_path / ".laion_fmri/listings").iterdir()
    assert json.loads(file.read_text()) == saved


def test_listings_in_one_line_as_once_written(tmp_path):
    file = tmp_path / ".laion_fmri/listings/a%2F.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(listing()))
    assert saved_listings(str(tmp_path), [("a/", "")]) == [listing()]


KEY, DATE = "a/x", "2026-05-01T10:00:00.000Z"


@pytest.mark.parametrize(
    "content",
    [
        {"listed_at": 1.0},
        [],
        None,
        3,
        listing(objects=None),
        listing(objects={"a": 1}),
        listing(objects=[None]),
        listing(objects=[[KEY]]),
        listing(objects=[[KEY, 1, "etag"]]),
        listing(objects=[[KEY, "1", "etag", DATE]]),
        listing(objects=[[KEY, 1.5, "etag", DATE]]),
        listing(objects=[[KEY, True, "etag", DATE]]),
        listing(objects=[[KEY, -1, "etag", DATE]]),
        listing(objects=[[None, 1, "etag", DATE]]),
        listing(objects=[[KEY, 1, 7, DATE]]),
        listing(objects=[[KEY, 1, "etag", ["2026"]]]),
        listing(objects=["abcd"]),
        listing(prefixes=[1]),
        listing(prefixes="a/b/"),
        listing(prefix=None),
        listing(prefix="other/"),
        listing(delimiter=None),
        listing(delimiter=":"),
        listing(listed_at="yesterday"),
        listing(listed_at=None),
        listing(listed_at=float("nan")),
        listing(bucket=3),
    ],
)
def test_a_broken_listing_is_ignored(tmp_path, content):
    folder = tmp_path / ".laion_fmri/listings"
    folder.mkdir(parents=True)
    (folder / "a%2F.json").write_text(json.dumps(content))
    assert saved_listings(str(tmp_path), [("a/", "")]) == []


def test_a_damaged_listing_is_ignored(tmp_path):
    objects = [[f"a/{i}", i, None, None] for i in range(2500)]
    save_listing(str(tmp_path), listing(objects=objects))
    (file,) = (tmp_path / ".laion_fmri/listings").iterdir()
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"".join(lines[:-1]),
        lines[0],
        b"[" * 100_000,
        whole.replace(b"a/7", b"a/\xff"),
    ):
        file.write_bytes(content)
        assert saved_listings(str(tmp_path), [("a/", "")]) == []


def test_arrays_kept_and_damaged(tmp_path):
    arrays = {
        "a": np.arange(3),
        "b": np.zeros((2, 2)),
        "none": np.empty(0, dtype=np.uint8),
        "c": np.array([7, 255], dtype=np.uint8),
    }
    save_arrays(str(tmp_path), "trials/x", arrays)
    again = saved_arrays(str(tmp_path), "trials/x")
    assert set(again) == {*arrays}
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    file = tmp_path / ".laion_fmri/trials/x"
    whole = file.read_bytes()
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        for at in range(len(whole))
    ]
    cut = [whole[:n] for n in range(len(whole))]
    for content in (*flipped, *cut, whole + b"x", b"\n", b"PK\x03\x04 no zip"):
        file.write_bytes(content)
        assert saved_arrays(str(tmp_path), "trials/x") == {}
    assert saved_arrays(str(tmp_path), "none") == {}


@pytest.mark.parametrize(
    "head",
    [
        *("[]", "3", "{", '{"a": 3}', '{"a": []}', '{"a": ["|O", 1]}'),
        *('{"a": ["<i8", 9]}', '{"a": ["<i8", "x"]}'),
        *('{"a": ["V0", 1]}', '{"a": ["<i8", 1, 7]}', '{"a": [[7], 1]}'),
    ],
)
def test_arrays_of_another_form_are_ignored(tmp_path, head):
    """Another version may have written them; their checksum is right."""
    body = head.encode() + b"\n" + bytes(8)
    file = tmp_path / ".laion_fmri/x"
    file.parent.mkdir()
    file.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
    assert saved_arrays(str(tmp_path), "x") == {}
