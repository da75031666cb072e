"""Disks and folders that fail: each error is named, and nothing half-made stays."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import gate_fixtures
import h5py
import numpy as np
import pytest
from conftest import unreadable, unwritable

from laion_fmri_fetchers import (
    LaionFmriError,
    accept_license,
    dataset_initialize,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    fetch_laion_stimuli,
    fetch_laion_stimulus_metadata,
    get_subjects,
    load_betas,
    load_stimuli,
    status,
    verify_cache,
)
from laion_fmri_fetchers.exceptions import (
    DataDirectoryError,
    DiskSpaceError,
    DownloadError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.trees import ARCHIVE

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test


def fetch(*args, **kwargs):
    return fetch_laion_fmri(*args, **{"verbose": 0, **kwargs})


def fetch_stimuli(*args, **kwargs):
    return fetch_laion_stimuli(*args, **{"verbose": 0, **kwargs})


def below(folder):
    """All files below a folder, hidden ones too."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def hidden(folder):
    """The hidden files below a folder, and unfinished ones."""
    return [
        name
        for name in below(folder)
        if os.path.basename(name).startswith(".") or "/partial/" in name
    ]


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of some size at a folder."""
    mounted = []

    def mount(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- Folders that cannot be written ----------------------------------------------


def test_resampling_where_one_may_not_write(cached):
    target = cached / "derivatives"
    with unwritable(target), pytest.raises(DataDirectoryError) as caught:
        fetch(sessions=1, resolution=12, mode="offline")
    assert f"The folder {target} cannot be written: permission denied" in str(
        caught.value
    )
    assert isinstance(caught.value, (LaionFmriError, PermissionError))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_resampling_on_a_read_only_file_system(cached, small_disk):
    folder = small_disk(cached / "derivatives/laion-fmri-fetchers", "ro,size=1m")
    with pytest.raises(DataDirectoryError) as caught:
        fetch(sessions=1, resolution=12, mode="offline")
    assert f"{folder} cannot be written: read-only file system" in str(caught.value)
    assert len(fetch(sessions=1, mode="offline").images) == 1


def test_extracting_where_one_may_not_write(access, monkeypatch, data_dir, small_disk):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    names = list(fetch_stimuli(max_images=3).metadata.index)
    folder = small_disk(data_dir / "stimuli/images", "ro,size=1m")
    with pytest.raises(DataDirectoryError) as caught:
        fetch_stimuli(names, extract=True)
    assert f"{folder} cannot be written: read-only file system" in str(caught.value)
    assert len(fetch_stimuli(names, mode="offline").metadata) == 3


def test_a_file_in_the_place_of_extracted_images(access, monkeypatch, data_dir):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    fetch_stimuli(max_images=3)
    file = data_dir / "stimuli/images"
    file.touch()
    with pytest.raises(DataDirectoryError, match=f"{file} is a file"):
        fetch_stimuli(max_images=3, extract=True)


def test_terms_that_cannot_be_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    with unwritable(tmp_path), pytest.raises(DataDirectoryError) as caught:
        accept_license(tmp_path / "new" / "data")
    assert f"The folder {tmp_path} cannot be written" in str(caught.value)


def test_a_data_directory_that_no_user_can_make(environment):
    with pytest.raises(DataDirectoryError, match=r"/proc/laion cannot be made"):
        dataset_initialize("/proc/laion")
    with pytest.raises(DataDirectoryError, match=r"/proc/laion/.laion_fmri cannot"):
        accept_license_there("/proc/laion")


def accept_license_there(folder):
    os.environ["LAION_FMRI_LICENSE"] = "I AGREE"
    try:
        accept_license(folder)
    finally:
        del os.environ["LAION_FMRI_LICENSE"]


@pytest.mark.parametrize("closed", [".laion_fmri", ".laion_fmri/partial"])
def test_a_state_folder_that_cannot_be_written(cached, server, closed):
    partial = cached / ".laion_fmri/partial"
    shutil.rmtree(partial, ignore_errors=True)
    folder = cached / closed
    folder.mkdir(exist_ok=True)
    before = fetch(mode="offline")
    (cached / "participants.tsv").unlink()
    with (
        unwritable(folder),
        pytest.warns(
            UserWarning, match=f"The folder {folder}.* cannot be written: wor"
        ),
    ):
        data = fetch()
    assert data.images == before.images
    with (
        unwritable(folder),
        pytest.warns(UserWarning, match="cannot be written"),
        pytest.raises(NotCachedError, match="not on disk.*name another data_dir"),
    ):
        fetch(image_type="fracridge", sessions=1)


def test_a_state_folder_that_may_not_be_read(cached, server):
    expected = fetch(mode="offline").images
    with unreadable(cached / ".laion_fmri"):
        assert fetch(mode="offline").images == expected
        status()
        assert len(verify_cache(verbose=0)) > 0
        with pytest.warns(UserWarning, match="cannot be written"):
            assert fetch().images == expected


def test_a_folder_that_may_not_be_read(cached, server):
    folder = cached / "derivatives/rois/sub-01/face"
    expected = f"The folder {folder} cannot be read: permission denied"
    with unreadable(folder):
        with pytest.warns(UserWarning, match=expected):
            data = fetch(rois="PPA", mode="offline")
        assert [meta["roi"] for meta in data.rois_meta] == ["PPA"]
        with (
            pytest.warns(UserWarning, match=expected),
            pytest.raises(NotCachedError, match="FFA1"),
        ):
            fetch(rois="FFA1", mode="offline")
        with (
            pytest.warns(UserWarning, match=expected),
            pytest.raises(DownloadError, match=r"face/.*cannot be written: permission"),
        ):
            fetch(rois="FFA1")


@pytest.mark.parametrize("pattern", ["*ses-02*_trials.tsv", "participants.tsv"])
def test_a_table_that_may_not_be_read(cached, pattern):
    file = min(cached.rglob(pattern))
    with unreadable(file), pytest.raises(DataDirectoryError) as caught:
        fetch(mode="offline")
    assert f"{file} cannot be read: permission denied" in str(caught.value)


def test_an_image_that_may_not_be_read(cached):
    data = fetch(mode="offline", sessions=1)
    for file in (data.brain_masks["sub-01"], data.images[0]):
        with unreadable(Path(file)), pytest.raises(DataDirectoryError) as caught:
            load_betas(data, rois="FFA1")
        assert f"{file} cannot be read: permission denied" in str(caught.value)


def test_a_table_of_stimuli_that_may_not_be_read(cached, server):
    file = Path(fetch_laion_stimulus_metadata(verbose=0).metadata_file)
    with unreadable(file), pytest.raises(DataDirectoryError, match=f"{file} cannot be"):
        fetch_laion_stimulus_metadata(mode="offline", verbose=0)


@pytest.mark.parametrize("name", [".laion_fmri", ".laion_fmri/partial"])
def test_a_file_in_the_place_of_a_state_folder(cached, server, name):
    expected = fetch(mode="offline").images
    shutil.rmtree(cached / name, ignore_errors=True)
    (cached / name).touch()
    for call in (
        lambda: fetch(image_type="fracridge"),
        lambda: fetch(mode="overwrite"),
    ):
        with pytest.raises(DataDirectoryError, match=f"{cached / name} is a file"):
            call()
    assert fetch(mode="offline").images == expected
    assert get_subjects() == ["sub-01", "sub-03"]
    status()
    verify_cache(verbose=0)


@pytest.mark.parametrize("name", ["listings", "brain_masks"])
def test_a_file_in_the_place_of_a_folder_of_the_state(cached, server, name):
    expected = fetch(mode="offline").images
    shutil.rmtree(cached / ".laion_fmri" / name, ignore_errors=True)
    (cached / ".laion_fmri" / name).touch()
    assert fetch(mode="offline").images == expected
    assert len(fetch(sessions=1, image_type="fracridge").images) == 1


# --- Disks that are full ---------------------------------------------------------


def test_a_disk_that_fills_while_resampling(cached, small_disk):
    folder = small_disk(cached / "derivatives/laion-fmri-fetchers", "size=64k")
    query = {"rois": None, "sessions": [1, 2], "resolution": 9, "mode": "offline"}
    with pytest.raises(DiskSpaceError, match=f"full.*free in {folder}") as caught:
        fetch(**query)
    assert caught.value.errno == 28
    assert hidden(folder) == []
    for sidecar in folder.rglob("*_statmap.json"):
        assert sidecar.with_suffix(".nii.gz").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    assert len(fetch(**query).images) == 2
    assert len(list(folder.rglob("*Betas_statmap.json"))) == 2


def test_a_disk_without_inodes_while_resampling(cached, small_disk):
    folder = small_disk(cached / "derivatives/laion-fmri-fetchers", "nr_inodes=9")
    with pytest.raises(DiskSpaceError, match="inode") as caught:
        fetch(resolution=12, mode="offline")
    assert "are free" not in str(caught.value)
    assert hidden(folder) == []


def test_a_disk_that_is_full_of_images(access, monkeypatch, data_dir, small_disk):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    fetch_stimuli(max_images=3)
    folder = small_disk(data_dir / "stimuli/images", "size=64k")
    with pytest.raises(DiskSpaceError, match=f"full.*are free in {folder}"):
        fetch_stimuli(extract=True)
    assert hidden(folder) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    images = fetch_stimuli(extract=True).images
    assert len(images) == len(list(folder.iterdir())) > 20


def test_terms_for_which_the_disk_is_full(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    folder = small_disk(tmp_path / "full", "nr_inodes=1")
    with pytest.raises(DiskSpaceError, match="inode"):
        accept_license(folder)


# --- What killed processes leave -------------------------------------------------


KILLED = """
import os, signal, sys
from laion_fmri_fetchers.cache.files import whole_file
with whole_file(sys.argv[1]) as stream:
    stream.write(b"half of it")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_while_writing(file):
    """Let a process have been killed, a week ago, while it wrote a file."""
    subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    (left,) = [name for name in os.listdir(file.parent) if name.startswith(".")]
    week_ago = time.time() - 7 * 24 * 3600
    os.utime(file.parent / left, (week_ago, week_ago))
    return file.parent / left


def test_what_is_left_of_a_killed_resampling_is_removed(cached):
    data = fetch(sessions=1, resolution=12, mode="offline")
    left = kill_while_writing(Path(data.images[0]))
    fetch(sessions=1, resolution=12, mode="offline")
    assert not left.exists()


def test_what_killed_processes_left_beside_listings_is_removed(cached, server):
    left = kill_while_writing(cached / ".laion_fmri/listings/x.json")
    code = """
from laion_fmri_fetchers import fetch_laion_fmri
fetch_laion_fmri(verbose=0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not left.exists()


def test_the_scan_of_the_disk_removes_what_is_days_old(cached):
    folder = cached / "derivatives/rois/sub-01/face"
    left = [folder / f".{'a' * 32}.tmp", folder / f".{'b' * 32}.part"]
    kept = [folder / f".{'c' * 32}.tmp", folder / ".notes.tmp", folder / ".DS_Store"]
    for file in (*left, *kept):
        file.write_bytes(b"half")
    week_ago = time.time() - 7 * 24 * 3600
    for file in (*left, *kept[1:]):
        os.utime(file, (week_ago, week_ago))
    fetch(mode="offline")
    assert [file.name for file in left if file.exists()] == []
    assert [file.name for file in kept if not file.exists()] == []


# --- Files with holes ------------------------------------------------------------


def make_hole(file, n_before):
    """Put zeros in the place of a value's header, as a broken copy leaves them."""
    data = bytearray(file.read_bytes())
    at = data.index(b"GCOL") + 16
    for _ in range(n_before):
        (length,) = struct.unpack("<Q", data[at + 8 : at + 16])
        at += 16 + (length + 7) // 8 * 8
    data[at : at + 64] = bytes(64)
    file.write_bytes(data)


def run(code):
    """Run code in a process of its own, as HDF5 cannot be interrupted."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stderr


@pytest.mark.parametrize("chunks", [None, (7,)])
def test_an_archive_with_a_hole(access, monkeypatch, data_dir, chunks):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    stimuli = fetch_stimuli(max_images=20)
    whole = load_stimuli(stimuli, size=8)
    archive = data_dir / ARCHIVE
    with h5py.File(archive) as file:
        images = [row.copy() for row in file["images"]]
    small = [image[:64] for image in images]
    with h5py.File(archive, "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        rows = file.create_dataset("images", (len(small),), kind, chunks=chunks)
        for i, image in enumerate(small):
            rows[i] = image
    make_hole(archive, 5)
    error = run(
        """
from laion_fmri_fetchers import fetch_laion_stimuli, load_stimuli
load_stimuli(fetch_laion_stimuli(max_images=20, mode="offline", verbose=0))
"""
    )
    assert "CorruptImageError" in error
    assert "have a hole at byte" in error
    error = run(
        """
import pandas as pd
from laion_fmri_fetchers import LaionDataset, fetch_laion_stimuli
stimuli = fetch_laion_stimuli(max_images=20, mode="offline", verbose=0)
trials = pd.DataFrame({"label": stimuli.metadata.index})
betas = {"data": trials.to_numpy(), "trials": trials}
from sklearn.utils import Bunch
[item for item in LaionDataset(Bunch(**betas), stimuli)]
"""
    )
    assert "CorruptImageError" in error
    assert "have a hole at byte" in error
    with h5py.File(archive, "w") as file:
        kind = h5py.vlen_dtype(np.uint8)
        rows = file.create_dataset("images", (len(images),), kind, chunks=chunks)
        for i, image in enumerate(images):
            rows[i] = image
    np.testing.assert_array_equal(load_stimuli(stimuli, size=8), whole)


def test_embeddings_with_a_hole(server, data_dir):
    file = Path(fetch_laion_embeddings("CLIP", verbose=0).files["CLIP"])
    make_hole(file, 5)
    error = run(
        """
from laion_fmri_fetchers import fetch_laion_embeddings
fetch_laion_embeddings("CLIP", mode="offline", verbose=0)
"""
    )
    assert "CorruptImageError" in error
    assert "have a hole at byte" in error


# --- A machine without semaphores ------------------------------------------------


def test_no_semaphores_of_the_system_are_needed(server, data_dir):
    """Hardened containers lack them: there is no shared memory to write to."""
    code = """
import _multiprocessing, errno
class SemLock(_multiprocessing.SemLock):
    def __new__(cls, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")
_multiprocessing.SemLock = SemLock
from laion_fmri_fetchers import fetch_laion_fmri, load_betas, verify_cache
data = fetch_laion_fmri(sessions=[1, 2], rois="FFA1", resolution=12)
data = fetch_laion_fmri(sessions=[1, 2], rois="FFA1")
print(len(load_betas(data, n_jobs=2).trials), set(verify_cache()["status"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "128 {'ok'}\n", done.stderr


# --- Links -----------------------------------------------------------------------


def test_links_that_lead_nowhere_or_back(cached):
    expected = fetch("all", mode="offline")
    checked = list(verify_cache(verbose=0)["id"])
    face = cached / "derivatives/rois/sub-01/face"
    (face / "itself").symlink_to(face / "itself")
    (face / "up").symlink_to(cached / "derivatives/rois")
    (face / "top").symlink_to(cached)
    for name, other in ("ab", "ba"):
        (cached / "odd" / name).mkdir(parents=True)
        (cached / "odd" / name / "to").symlink_to(cached / "odd" / other)
        (cached / "odd" / name / "file").touch()
    data = fetch("all", mode="offline")
    assert data.images == expected.images
    assert data.rois == expected.rois
    added = {"odd/a/file", "odd/b/file", "odd/a/to/file", "odd/b/to/file"}
    assert set(verify_cache(verbose=0)["id"]) == {*checked, *added}
    status()
