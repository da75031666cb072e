"""Disks and folders that fail: each error is named, and nothing half-made stays."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import warnings
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
    get_subjects,
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
RESAMPLED = "derivatives/laion-fmri-fetchers"
EXTRACTED = "stimuli/images"


def fetch(*args, **kwargs):
    return fetch_laion_fmri(*args, **{"verbose": 0, **kwargs})


def fetch_stimuli(*args, **kwargs):
    return fetch_laion_stimuli(*args, **{"verbose": 0, **kwargs})


def resample(**query):
    return fetch(**{"sessions": 1, "resolution": 12, "mode": "offline", **query})


def hidden(folder):
    """Return the files below a folder that are hidden, as unfinished ones are."""
    return [path for path in folder.rglob(".*") if path.is_file()]


@pytest.fixture
def with_access(access, monkeypatch, data_dir):
    """Stimuli of a few images on disk; the data directory."""
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    fetch_stimuli(max_images=3)
    return data_dir


@pytest.fixture
def small_disk():
    """A function that mounts a file system of some kind at a folder."""
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


# --- Folders that cannot be written or read --------------------------------------


def test_resampling_where_one_may_not_write(cached, small_disk):
    target = cached / "derivatives"
    with unwritable(target), pytest.raises(DataDirectoryError) as caught:
        resample()
    said = f"The folder {target} cannot be written: permission denied"
    assert said in str(caught.value)
    assert isinstance(caught.value, (LaionFmriError, PermissionError))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    folder = small_disk(cached / RESAMPLED, "ro,size=1m")
    with pytest.raises(DataDirectoryError) as caught:
        resample()
    assert f"{folder} cannot be written: read-only file system" in str(caught.value)
    assert len(fetch(sessions=1, mode="offline").images) == 1


def test_extracting_where_one_may_not_write(with_access, small_disk):
    folder = with_access / EXTRACTED
    folder.touch()
    with pytest.raises(DataDirectoryError, match=f"{folder} is a file"):
        fetch_stimuli(max_images=3, extract=True)
    folder.unlink()
    small_disk(folder, "ro,size=1m")
    with pytest.raises(DataDirectoryError) as caught:
        fetch_stimuli(max_images=3, extract=True)
    assert f"{folder} cannot be written: read-only file system" in str(caught.value)
    assert len(fetch_stimuli(max_images=3, mode="offline").metadata) == 3


def test_directories_that_cannot_be_made(tmp_path, monkeypatch, small_disk):
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    with unwritable(tmp_path), pytest.raises(DataDirectoryError) as caught:
        accept_license(tmp_path / "new" / "data")
    assert f"The folder {tmp_path} cannot be written" in str(caught.value)
    with pytest.raises(DataDirectoryError, match=r"/proc/laion cannot be made"):
        dataset_initialize("/proc/laion")
    with pytest.raises(DataDirectoryError, match=r"/proc/laion/.laion_fmri cannot"):
        accept_license("/proc/laion")
    with pytest.raises(DiskSpaceError, match="inode"):
        accept_license(small_disk(tmp_path / "full", "nr_inodes=1"))


@pytest.mark.parametrize("closed", [".laion_fmri", ".laion_fmri/partial"])
def test_a_state_folder_that_cannot_be_used(cached, server, closed):
    """Calls work offline, with what is on disk."""
    folder = cached / closed
    shutil.rmtree(cached / ".laion_fmri/partial", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    expected = fetch(mode="offline").images
    (cached / "participants.tsv").unlink()
    said = f"The folder {folder}.* cannot be written: wor"
    with unwritable(folder):
        with pytest.warns(UserWarning, match=said):
            assert fetch().images == expected
        with (
            pytest.warns(UserWarning, match=said),
            pytest.raises(NotCachedError, match="not on disk.*name another data_dir"),
        ):
            fetch(image_type="fracridge", sessions=1)
    with unreadable(folder):
        assert fetch(mode="offline").images == expected
        status()
        assert len(verify_cache(verbose=0)) > 0
        with pytest.warns(UserWarning, match=said):
            assert fetch().images == expected
    shutil.rmtree(folder)
    folder.touch()
    for query in ({"image_type": "fracridge"}, {"mode": "overwrite"}):
        with pytest.raises(DataDirectoryError, match=f"{folder} is a file"):
            fetch(**query)
    assert fetch(mode="offline").images == expected
    assert get_subjects() == ["sub-01", "sub-03"]
    status()
    verify_cache(verbose=0)


def test_a_folder_that_may_not_be_read(cached, server):
    folder = cached / "derivatives/rois/sub-01/face"
    expected = f"The folder {folder} cannot be read: permission denied"
    with unreadable(folder):
        with pytest.warns(UserWarning, match=expected):
            data = fetch(rois="PPA", mode="offline")
        assert [meta["roi"] for meta in data.rois_meta] == ["PPA"]
        warnings.simplefilter("ignore")
        with pytest.raises(NotCachedError, match="FFA1"):
            fetch(rois="FFA1", mode="offline")
        with pytest.raises(DownloadError, match=r"face/.*cannot be written: permissi"):
            fetch(rois="FFA1")


def test_a_file_in_the_place_of_a_folder_of_the_state(cached, server):
    expected = fetch(mode="offline").images
    for name in ("listings", "brain_masks"):
        shutil.rmtree(cached / ".laion_fmri" / name, ignore_errors=True)
        (cached / ".laion_fmri" / name).touch()
    assert fetch(mode="offline").images == expected
    assert len(fetch(sessions=1, image_type="fracridge").images) == 1


# --- Disks that are full ---------------------------------------------------------


def test_a_disk_that_fills_while_resampling(cached, small_disk):
    folder = small_disk(cached / RESAMPLED, "size=64k")
    query = {"rois": None, "sessions": [1, 2], "resolution": 9}
    with pytest.raises(DiskSpaceError, match=f"full.*free in {folder}") as caught:
        resample(**query)
    assert caught.value.errno == 28
    assert hidden(folder) == []
    for sidecar in folder.rglob("*_statmap.json"):
        assert sidecar.with_suffix(".nii.gz").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    assert len(resample(**query).images) == 2
    assert len(list(folder.rglob("*Betas_statmap.json"))) == 2


def test_a_disk_without_inodes_while_resampling(cached, small_disk):
    folder = small_disk(cached / RESAMPLED, "nr_inodes=9")
    with pytest.raises(DiskSpaceError, match="inode") as caught:
        resample(sessions="all")
    assert "are free" not in str(caught.value)
    assert hidden(folder) == []


def test_a_disk_that_is_full_of_images(with_access, small_disk):
    folder = small_disk(with_access / EXTRACTED, "size=64k")
    with pytest.raises(DiskSpaceError, match=f"full.*are free in {folder}"):
        fetch_stimuli(extract=True)
    assert hidden(folder) == []
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    images = fetch_stimuli(extract=True).images
    assert len(images) == len(list(folder.iterdir())) > 20


# --- What killed processes leave -------------------------------------------------


@pytest.mark.parametrize("of", ["resampling", "listing"])
def test_what_a_killed_process_left_is_removed(cached, server, of):
    """A week ago, while it wrote a file."""
    if of == "resampling":
        file = Path(resample().images[0])
    else:
        file = cached / ".laion_fmri/listings/x.json"
    code = f"""
import os, signal
from laion_fmri_fetchers.cache.files import whole_file
with whole_file({str(file)!r}) as stream:
    stream.write(b"half of it")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (left,) = hidden(file.parent)
    os.utime(left, (time.time() - 7 * 24 * 3600,) * 2)
    if of == "resampling":
        resample()
    else:  # another process, as each looks at a folder once
        code = "from laion_fmri_fetchers import *; fetch_laion_fmri(verbose=0)"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert not left.exists()


def test_the_scan_of_the_disk_removes_what_is_days_old(cached):
    folder = cached / "derivatives/rois/sub-01/face"
    left = [folder / f".{'a' * 32}.tmp", folder / f".{'b' * 32}.part"]
    kept = [folder / f".{'c' * 32}.tmp", folder / ".notes.tmp", folder / ".DS_Store"]
    for file in (*left, *kept):
        file.write_bytes(b"half")
    for file in (*left, *kept[1:]):
        os.utime(file, (time.time() - 7 * 24 * 3600,) * 2)
    fetch(mode="offline")
    assert sorted(hidden(folder)) == sorted(kept)


# --- Files with holes ------------------------------------------------------------


def make_hole(file, n_before=5):
    """Put zeros in the place of a value's header, as a broken copy leaves them."""
    data = bytearray(file.read_bytes())
    at = data.index(b"GCOL") + 16
    for _ in range(n_before):
        (length,) = struct.unpack("<Q", data[at + 8 : at + 16])
        at += 16 + (length + 7) // 8 * 8
    data[at : at + 64] = bytes(64)
    file.write_bytes(data)


def assert_hole_is_told(*calls, setup=""):
    """Make calls in a process of its own, as HDF5 cannot be interrupted."""
    code = f"from laion_fmri_fetchers import *\n{setup}\n"
    for call in calls:
        code += f"try: {call}\nexcept ValueError as error: print(repr(error))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == len(calls), done.stderr
    for line in said:
        assert line.startswith("CorruptImageError")
        assert "have a hole at byte" in line


@pytest.mark.parametrize("chunks", [None, (7,)])
def test_an_archive_with_a_hole(with_access, chunks):
    def write(images):
        with h5py.File(archive, "w") as file:
            kind = h5py.vlen_dtype(np.uint8)
            rows = file.create_dataset("images", (len(images),), kind, chunks=chunks)
            for i, image in enumerate(images):
                rows[i] = image

    stimuli = fetch_stimuli(max_images=20)
    whole, archive = load_stimuli(stimuli, size=8), with_access / ARCHIVE
    with h5py.File(archive) as file:
        images = [row.copy() for row in file["images"]]
    write([image[:64] for image in images])
    make_hole(archive)
    assert_hole_is_told(
        "load_stimuli(stimuli)",
        "list(LaionDataset(betas, stimuli))",
        setup="""
from sklearn.utils import Bunch
stimuli = fetch_laion_stimuli(max_images=20, mode="offline", verbose=0)
trials = stimuli.metadata.rename_axis("label").reset_index()
betas = Bunch(data=trials.to_numpy(), trials=trials)
""",
    )
    write(images)
    np.testing.assert_array_equal(load_stimuli(stimuli, size=8), whole)


def test_embeddings_with_a_hole(server, data_dir):
    make_hole(Path(fetch_laion_embeddings("CLIP", verbose=0).files["CLIP"]))
    assert_hole_is_told("fetch_laion_embeddings('CLIP', mode='offline', verbose=0)")


# --- Odd machines and folders ----------------------------------------------------


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "128 {'ok'}\n", done.stderr


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
