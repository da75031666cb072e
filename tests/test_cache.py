"""Files of the data directory: scanned, written whole, and listings that are kept."""

from __future__ import annotations

import json
import os
import stat
from multiprocessing import get_context

import pytest
from policies import set_policy

from laion_fmri_fetchers import fetch_laion_fmri, get_subjects
from laion_fmri_fetchers.cache.files import files_on_disk, write_atomically
from laion_fmri_fetchers.cache.listings import read_catalog
from laion_fmri_fetchers.exceptions import BucketError


def test_scan_leaves_out_what_is_none_of_ours(tmp_path):
    face = tmp_path / "derivatives/rois/sub-01/face"
    state = tmp_path / ".laion_fmri"
    face.mkdir(parents=True)
    state.mkdir()
    names = "sub-01_label-FFA1_mask.nii.gz", "sub-01_label-FFA-2_mask.nii.gz"
    for name in (*names, ".hidden", "odd\nname"):
        (face / name).touch()
    (face / "broken.nii.gz").symlink_to(tmp_path / "nowhere")
    (face / "link.nii.gz").symlink_to(face / ".hidden")
    (tmp_path / "README").touch()
    (state / "auth.json").touch()
    files, folders = files_on_disk(str(tmp_path), [("derivatives/", ""), ("", "/")])
    assert {name.removeprefix("derivatives/rois/sub-01/face/") for name in files} == {
        "sub-01_label-FFA1_mask.nii.gz",
        "sub-01_label-FFA2_mask.nii.gz",
        "link.nii.gz",
        "README",
    }
    assert folders == {"derivatives/"}


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "folder" / ("x" * 251 + ".jpg")  # as long as a name can be
    before = os.umask(0o027)
    try:
        write_atomically(file, b"first")
        write_atomically(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600

    def fail(*args):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(file, b"second")
    assert file.read_bytes() == b"first"
    assert list(file.parent.iterdir()) == [file]


def _write(file, number):
    for _ in range(50):
        write_atomically(file, f"{number}".encode() * 20_000)


def test_files_of_many_writers_are_never_torn(tmp_path):
    context, file = get_context("forkserver"), tmp_path / "state" / "file"
    writers = [context.Process(target=_write, args=(file, n)) for n in range(4)]
    for writer in writers:
        writer.start()
    n_seen = 0
    while any(writer.is_alive() for writer in writers):
        if file.exists():
            content = file.read_bytes()
            assert content == content[:1] * 20_000
            n_seen += 1
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert n_seen > 0
    assert [*file.parent.iterdir()] == [file]


KEY, DATE = "a/x", "2026-05-01T10:00:00.000Z"


def keep(data_dir, **changes):
    """Keep a listing of the prefix ``a/``; return it."""
    listing = {
        "prefix": "a/",
        "delimiter": "",
        "bucket": "http://host/bucket",
        "listed_at": 1.5,
        "objects": [[KEY, 1, "etag", DATE]],
        "prefixes": [],
        **changes,
    }
    file = data_dir / ".laion_fmri/listings/a%2F.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(listing))
    return file


def test_a_kept_listing_stands_for_its_prefix_alone(tmp_path):
    keep(tmp_path)
    found = read_catalog([("a/", "")], str(tmp_path), mode="offline")
    assert found.objects == {KEY: (KEY, 1, "etag", DATE)}
    assert (found.unlisted, found.listed_at) == ([], 1.5)
    found = read_catalog([("a/", "/"), ("b/", "")], str(tmp_path), mode="offline")
    assert (found.objects, found.unlisted) == ({}, ["a/", "b/"])
    keep(tmp_path, prefix="b/", objects=[])
    assert read_catalog([("a/", "")], str(tmp_path), mode="offline").unlisted == ["a/"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", "3", "[" * 100_000),
        {"objects": None},
        {"objects": [[KEY]]},
        {"objects": [[KEY, "large", "etag", DATE]]},
        {"prefixes": None},
        {"prefix": None},
        {"listed_at": "yesterday"},
        {"bucket": 3},
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_broken_listing_is_told_and_not_used(tmp_path, content):
    file = keep(tmp_path, **(content if isinstance(content, dict) else {}))
    if isinstance(content, str):
        file.write_text(content)
    with pytest.warns(UserWarning, match=r"saved listing .*a%2F\.json cannot be used"):
        found = read_catalog([("a/", "")], str(tmp_path), mode="offline")
    assert (found.objects, found.unlisted) == ({}, ["a/"])


def test_subjects_that_were_never_listed_are_not_left_out_without_the_bucket(
    server, data_dir, monkeypatch
):
    fetch_laion_fmri("sub-01", rois=None, sessions=1, verbose=0)
    assert get_subjects() == ["sub-01", "sub-03"]
    set_policy(monkeypatch, first_wait=0.001)
    server.faults[""] = (503, {}, b"")
    with pytest.raises(BucketError, match="No listing of .*sub-03.* was saved earlier"):
        fetch_laion_fmri("all", rois=None, verbose=0)
