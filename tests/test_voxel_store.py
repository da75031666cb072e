"""The voxel store: what was extracted once, on disks that others write to, too."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import shutil
import subprocess
import time
import warnings

import model_buckets as bucket
import nibabel as nib
import numpy as np
import pytest
from checks import fails, no_warnings, warned
from conftest import unwritable
from model_buckets import SESSIONS, fetch, images, put_session, roi, true_betas

from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers import load_betas, pack_betas, status, verify_cache
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo.formats import nifti_bytes
from laion_fmri_fetchers.exceptions import InvalidQueryError, NotCachedError

server, log, face, store = bucket.server, bucket.log, bucket.face, bucket.store
expected = bucket.expected

CONTEXT = multiprocessing.get_context("forkserver")
IMAGE, MODEL, TABLE = (
    key("ses-01") for key in (bucket.image_key, bucket.model_key, bucket.table_key)
)


def files(folder):
    """Return the parts of a session."""
    return sorted(folder.glob("*/[!.]*.npy"))


def states():
    return set(verify_cache(verbose=0)["status"])


# Versions


@pytest.mark.parametrize("source", ["auto", "images"])
def test_a_new_version_in_the_bucket(server, log, betas_folder, face, source):
    old = fetch(source=source)
    new = put_session(server, betas_folder, 2)
    log.clear()
    with pytest.warns(UserWarning, match="another version of 1 beta image") as caught:
        again = fetch(source=source)
    assert len(caught) == 1
    assert np.array_equal(again.data, old.data)
    assert log.n_bytes() == 8  # of what version it is
    both = roi(betas_folder, "body", "EBA") | face
    if source == "auto":  # those of two versions are not mixed
        assert np.array_equal(fetch(["EBA", "FFA1"]).data, new[both].T)
    else:
        betas = fetch(source=source, mode="overwrite")
        assert np.array_equal(betas.data, new[face].T)
    with no_warnings():
        assert np.array_equal(fetch(source=source).data, new[face].T)


def test_packed_without_a_listing(server, log, betas_folder, expected, data_dir):
    """A directory without its hidden folder does not tell the version of its images."""
    images()
    shutil.rmtree(data_dir / ".laion_fmri")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said that no listing is saved
        data = images(mode="offline")
    pack_betas(data, verbose=0)
    os.unlink(data.images[0])
    log.clear()
    assert np.array_equal(fetch().data, expected)
    assert log.n_bytes() == 8
    put_session(server, betas_folder, 2)
    betas = warned("another version of 1 beta image", fetch)
    assert np.array_equal(betas.data, expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of no listing, outdated files
def test_what_changes_on_disk(server, log, data_dir, store, betas_folder, face):
    """Times and other columns of a table change nothing; betas and labels do."""
    images()
    expected = fetch().data
    (before,) = files(store)
    shutil.rmtree(data_dir / ".laion_fmri" / "listings")
    image, table = data_dir / IMAGE, data_dir / TABLE
    first, row, *others = table.read_text().splitlines()
    session, _, index, label = row.split("\t")
    changed = "\t".join([session, "9", index, label])
    table.write_text("\n".join([first, changed, *others, ""]))
    for path in (image, table):
        os.utime(path, (10**9, 10**9))
    for mode in ("offline", "download_new", "download_new"):
        log.clear()
        betas = fetch(mode=mode)
        assert np.array_equal(betas.data, expected)
        assert betas.trials["run"][0] == 9
        assert log.n_bytes() <= 8
        if mode != "offline":
            image.unlink(missing_ok=True)
    assert files(store) == [before]
    # Betas of other labels may be others.
    changed = "\t".join([session, "9", index, label.swapcase()])
    table.write_text("\n".join([first, changed, *others, ""]))
    for is_read in (True, False):
        log.clear()
        betas = fetch(source="model")
        assert (MODEL in log.keys) == is_read
        assert np.array_equal(betas.data, expected)
        assert betas.trials["label"][0] == label.swapcase()
    # So may those of another image.
    values = bucket.read(betas_folder, IMAGE) * np.float32(3)
    affine = nib.load(betas_folder / IMAGE).affine
    image.write_bytes(nifti_bytes(values, affine))
    for betas in (fetch(), load_betas(images(mode="offline"), verbose=0)):
        assert np.array_equal(betas.data, np.nan_to_num(values[face].T))


def test_the_same_image_under_another_etag_is_recognized(server, log, expected):
    """As where a mirror has put its objects together of other parts."""
    fetch()
    image = server.objects[IMAGE]
    server.objects[IMAGE] = image._replace(etag=f"{32 * 'a'}-3")
    log.clear()
    with no_warnings():
        for _ in range(2):
            assert np.array_equal(fetch().data, expected)
    assert log.ranges == [(IMAGE, len(image.value) - 8, len(image.value))]


@pytest.mark.filterwarnings("ignore:.*nother version")
def test_a_model_next_to_an_image_on_disk_of_another_version(server, betas_folder):
    images()
    put_session(server, betas_folder, 2)
    for mode in ("download_new", "overwrite"):
        words = r"ses-01.*another version"
        fails(InvalidQueryError, words, fetch, source="model", mode=mode)


# Files that are damaged, or not the store's own


def in_place(place):
    """Return a damage of a byte that keeps the length of a file."""

    def damage(part, index):
        content = bytearray(part.read_bytes())
        content[place] ^= 0xFF
        part.write_bytes(content)

    return damage


DAMAGES = {
    "a value": in_place(-40),
    "all values": lambda part, index: part.write_bytes(bytes(part.stat().st_size)),
    "values cut": lambda part, index: os.truncate(part, part.stat().st_size - 10),
    "other shape": lambda part, index: np.save(part, np.zeros((2, 80), "f4")),
    "index cut": lambda part, index: os.truncate(index, index.stat().st_size - 10),
    "index empty": lambda part, index: index.write_bytes(b""),
    "index gone": lambda part, index: index.unlink(),
    "index of others": lambda part, index: np.savez(index, voxels=[0, 1, 2]),
    "index of an array": lambda part, index: index.write_bytes(part.read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_parts_are_named_and_fetched_again(server, store, expected, damage):
    fetch()
    (part,) = files(store)
    damage(part, part.with_suffix(".npz"))
    report = verify_cache(verbose=0)
    bad = report[report["status"] == "altered"]
    assert list(bad["id"].str.contains("/voxels/sub-01/ses-01/")) == [True], report
    if damage is DAMAGES["a value"]:
        assert list(bad["reason"]) == ["its checksum differs"]
    assert np.array_equal(fetch().data, expected)
    (part,) = files(store)
    damage(part, part.with_suffix(".npz"))
    data = images(dry_run=True)
    for call in (lambda: load_betas(data, verbose=0), lambda: fetch(mode="offline")):
        fails(NotCachedError, r"ses-01", call)
    assert np.array_equal(fetch().data, expected)
    assert states() == {"ok"}
    (part,) = files(store)
    damage(part, part.with_suffix(".npz"))
    report = verify_cache(verbose=0, repair=True)
    assert list(report["status"]).count("repaired") == 1
    assert states() == {"ok"}
    assert np.array_equal(fetch().data, expected)


def test_rows_beside_a_damaged_one_may_be_read(server, store, betas_folder):
    fetch("brain", source="images")
    (part,) = files(store)
    in_place(-40)(part, None)  # in its last row, of a voxel that is in no region
    mask = roi(betas_folder, "body", "EBA")
    expected = true_betas(betas_folder, mask, ["ses-01"])
    assert np.array_equal(fetch("EBA", mode="offline").data, expected)


def test_a_damaged_mapping_is_proved_again(server, log, store, betas_folder):
    fetch()
    (kept,) = store.glob("mapping-*.npz")
    kept.write_bytes(b"no mapping")
    log.clear()
    mask = roi(betas_folder, "body", "EBA")
    assert np.array_equal(fetch("EBA").data, true_betas(betas_folder, mask, ["ses-01"]))
    assert IMAGE in log.keys
    log.clear()
    assert fetch("MT").data.any()
    assert log.keys == {MODEL}


def test_a_model_is_proved_anew_for_a_new_image(server, betas_folder):
    fetch(source="model")
    model = server.objects[MODEL].value
    put_session(server, betas_folder, 2)
    server.put(MODEL, model)
    words = "its rows are not the voxels"
    fails(errors.CorruptImageError, words, fetch, "EBA", source="model")


# Places


COPIES = {
    "moved": ["mv", "{old}", "{new}"],
    "cp": ["cp", "-r", "{old}", "{new}"],
    "rsync": ["rsync", "-r", "{old}/", "{new}/"],
    "tar": ["sh", "-c", "mkdir {new} && tar -c -C {old} . | tar -x -C {new}"],
}


def test_copied_directories(server, data_dir, betas_folder, face, log, tmp_path):
    images(sessions=2)
    fetch(sessions=[1, 2])
    for path in data_dir.rglob("*"):
        assert path.is_dir() or os.fsencode(data_dir) not in path.read_bytes()
    expected = true_betas(betas_folder, face, ["ses-01", "ses-02"])
    log.clear()
    for tool in [*COPIES][::-1]:
        if shutil.which(COPIES[tool][0]):
            names = {"old": data_dir, "new": tmp_path / tool}
            command = [word.format(**names) for word in COPIES[tool]]
            subprocess.run(command, check=True)
            for mode in ("offline", "download_new"):
                betas = fetch(sessions=[1, 2], data_dir=tmp_path / tool, mode=mode)
                assert np.array_equal(betas.data, expected), tool
    assert not log.ranges


def test_a_read_only_directory_offline(server, data_dir, expected, request):
    fetch()
    with unwritable(data_dir, *data_dir.rglob("*")):
        assert np.array_equal(warned("cannot be written", fetch).data, expected)
        request.getfixturevalue("no_network")
        assert np.array_equal(fetch(mode="offline").data, expected)
        data = images(mode="offline", allow_missing=True)
        fails(InvalidQueryError, "cannot be written", pack_betas, data, verbose=0)


def test_status_shows_the_store(server, capsys):
    status()
    assert "voxel store" not in capsys.readouterr().out
    fetch(sessions=[1, 2])
    status()
    shown = capsys.readouterr().out
    assert shown.splitlines()[-2].split() == "voxel store sessions voxels size".split()
    line = shown.splitlines()[-1].split()
    assert line[:3] == ["sub-01", "2", "4"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, which can be made larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("source", ["model", "images"])
def test_a_disk_that_fills(server, small_disk, betas_folder, expected, source):
    fetch(data_dir=small_disk)
    every = {"sessions": [1, 2, 3], "data_dir": small_disk, "source": source}
    fails(errors.DiskSpaceError, "Make space", fetch, "brain", **every)
    assert not list(small_disk.rglob("*.tmp"))
    assert np.array_equal(fetch(data_dir=small_disk, mode="offline").data, expected)
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    betas = fetch("brain", **every)
    whole = true_betas(betas_folder, bucket.brain(betas_folder))
    assert np.array_equal(betas.data, whole)


# Parts


def test_resampled_images_are_not_of_the_store(server, expected):
    coarse = images(resolution=9, keep_original=False)
    fails(InvalidQueryError, "fetch without resolution", pack_betas, coarse)
    before = load_betas(coarse, rois="brain", verbose=0).data
    fetch("brain")
    assert np.array_equal(load_betas(coarse, rois="brain", verbose=0).data, before)
    os.unlink(coarse.images[0])
    fails(NotCachedError, "not on disk", load_betas, coarse, rois="brain")
    assert np.array_equal(fetch().data, expected)


def test_the_same_voxels_are_one_part(server, store, expected, monkeypatch):
    contents = set()
    for source in ("model", "images", "model", "images"):
        if len(contents) == 1:  # not every system can set space aside
            monkeypatch.delattr(os, "posix_fallocate", raising=False)
        betas = fetch(mode="overwrite", source=source)
        assert np.array_equal(betas.data, expected)
        (part,) = files(store)
        contents.add(part.read_bytes() + part.with_suffix(".npz").read_bytes())
    assert len(contents) == 1


def test_several_parts_are_read_together(server, store, betas_folder):
    regions = list(REGIONS)
    for i in range(1, len(regions) + 1):
        fetch(regions[:i])
    assert len(files(store)) > 2
    ways = ({}, {"standardize": "zscore"}, {"average_repeats": True})
    parts = [fetch(regions, mode="offline", **way).data for way in ways]
    shutil.rmtree(store)
    whole = [fetch(regions, **way).data for way in ways]
    assert len(files(store)) == 1
    assert all(map(np.array_equal, parts, whole))


# pack_betas


def test_packed_images_are_not_read_again(server, data_dir, betas_folder, capsys):
    data = images("all", [1, 2])
    zscored = {"rois": "brain", "standardize": "zscore", "verbose": 0}
    expected = load_betas(data, **zscored).data
    pack_betas(data, n_jobs=2)
    assert "3716 voxels of sub-01 from 2 images" in capsys.readouterr().err
    pack_betas(data, rois="FFA1", verbose=0)
    for path in data.images:
        os.rename(path, f"{path}.away")
    assert np.allclose(load_betas(data, **zscored).data, expected, atol=1e-5)
    lazy = load_betas(data, as_dask=True, **zscored)
    assert np.allclose(lazy.data.compute(), expected, atol=1e-5)
    mask = roi(betas_folder, "body", "EBA")
    expected = true_betas(betas_folder, mask, ["ses-01", "ses-02"])
    assert np.array_equal(load_betas(data, rois="EBA", verbose=0).data, expected)
    assert len(list((data_dir / ".laion_fmri" / "voxels").rglob("*.npy"))) == 2
    os.unlink(f"{data.images[0]}.away")
    shutil.rmtree(data_dir / ".laion_fmri" / "voxels")
    with pytest.raises(NotCachedError):
        pack_betas(data, verbose=0)


def test_removing_packed_images(server, data_dir):
    data = images(sessions=[1, 2])
    expected = load_betas(data, rois="brain", verbose=0).data
    for rois, is_kept in (("FFA1", True), ("brain", False)):
        assert main(["pack-betas", "-q", "--rois", rois, "--remove-images"]) == 0
        assert [os.path.exists(path) for path in data.images] == [is_kept] * 2
    assert states() == {"ok"}
    assert np.array_equal(load_betas(data, rois="brain", verbose=0).data, expected)


# Many processes


REGIONS = {
    "FFA1": ("face", "FFA-1"),
    "OFA": ("face", "OFA"),
    "EBA": ("body", "EBA"),
    "PPA": ("place", "PPA"),
    "MT": ("motion", "MT"),
}


def fill(url, data_dir, regions, locks_work, seed):
    """Run in a process of its own."""
    os.environ |= {"LAION_FMRI_BUCKET_URL": url, "LAION_FMRI_LICENSE": "I AGREE"}
    if not locks_work:
        fcntl.flock = fcntl.lockf = lambda *args: None
    chance = random.Random(seed)
    names = chance.sample(regions, len(regions))
    for i in (2, 4):
        source = chance.choice(["model", "images", "auto"])
        fetch(names[:i], [1, 2], data_dir=data_dir, source=source)


@pytest.mark.parametrize("locks_work", [True, False])
def test_processes_that_are_killed(server, data_dir, betas_folder, locks_work):
    chance, regions = random.Random(0), list(REGIONS)

    def start(seed):
        args = (server.url, str(data_dir), regions, locks_work, seed)
        process = CONTEXT.Process(target=fill, args=args)
        process.start()
        return process

    processes = [start(i) for i in range(6)]
    voxels = data_dir / ".laion_fmri" / "voxels" / "sub-01"
    n_killed = 0
    while n_killed < 4 and any(process.is_alive() for process in processes):
        time.sleep(chance.random() / 4)
        victim = chance.randrange(len(processes))
        if voxels.exists() and processes[victim].is_alive():
            processes[victim].kill()
            processes[victim].join()
            processes[victim] = start(100 + n_killed)
            n_killed += 1
    assert n_killed
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    mask = np.any([roi(betas_folder, *of) for of in REGIONS.values()], axis=0)
    expected = true_betas(betas_folder, mask, SESSIONS[:2])
    assert np.array_equal(fetch(regions, [1, 2]).data, expected)
    assert states() == {"ok"}
    assert not list(voxels.rglob(".image*"))


def test_processes_that_fill_the_same(server, data_dir, betas_folder, face):
    args = (server.url, str(data_dir), ["FFA1"] * 4, False, 0)
    processes = [CONTEXT.Process(target=fill, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    voxels = data_dir / ".laion_fmri" / "voxels" / "sub-01"
    assert [len(files(voxels / session)) for session in SESSIONS[:2]] == [1, 1]
    expected = true_betas(betas_folder, face, SESSIONS[:2])
    assert np.array_equal(fetch(sessions=[1, 2], mode="offline").data, expected)
