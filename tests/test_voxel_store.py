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
import zipfile

import nibabel as nib
import numpy as np
import pytest
from conftest import unwritable
from model_buckets import (
    SESSIONS,
    Log,
    brain,
    image_key,
    model_key,
    model_of,
    read,
    roi,
    table_key,
    true_betas,
)

from laion_fmri_fetchers import (
    fetch_laion_betas,
    fetch_laion_fmri,
    load_betas,
    pack_betas,
    status,
    verify_cache,
)
from laion_fmri_fetchers.betas import store as store_room
from laion_fmri_fetchers.demo.formats import nifti_bytes
from laion_fmri_fetchers.exceptions import (
    DiskSpaceError,
    InvalidQueryError,
    NotCachedError,
)
from laion_fmri_fetchers.fetchers.betas import remove_packed_images

pytestmark = pytest.mark.usefixtures("data_dir")

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture
def server(betas_server):
    return betas_server


@pytest.fixture
def log(server):
    return Log(server, [f(s) for f in (model_key, image_key) for s in SESSIONS])


@pytest.fixture
def face(betas_folder):
    """The voxels of FFA-1."""
    return roi(betas_folder, "face", "FFA-1")


@pytest.fixture
def store(data_dir):
    """The folder of the first session."""
    return data_dir / ".laion_fmri" / "voxels" / "sub-01" / "ses-01"


def fetch(rois="FFA1", **options):
    return fetch_laion_betas(1, rois, **{"verbose": 0, "sessions": 1, **options})


def files(folder):
    """Return the names of the parts of a session, without those that are hidden."""
    return sorted(p.name for p in folder.glob("*/[!.]*.np[yz]"))


def put_session(server, folder, factor, session="ses-01"):
    """Put a new version of a session's betas into the bucket; return them."""
    values = read(folder, image_key(session)) * np.float32(factor)
    affine = nib.load(folder / image_key(session)).affine
    server.put(image_key(session), nifti_bytes(values, affine))
    server.put(model_key(session), model_of(folder, session, betas=values))
    return np.nan_to_num(values)


# Versions


@pytest.mark.parametrize("source", ["auto", "images"])
def test_a_new_version_in_the_bucket(server, log, betas_folder, face, source):
    old = fetch(source=source)
    new = put_session(server, betas_folder, 2)[face].T
    log.clear()
    with pytest.warns(UserWarning, match="another version of 1 beta image") as caught:
        again = fetch(source=source)
    assert len(caught) == 1
    assert np.array_equal(again.data, old.data)
    assert sum(stop - start for _, start, stop in log.ranges) == 8  # of what version
    assert np.array_equal(fetch(source=source, mode="overwrite").data, new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(fetch(source=source).data, new)


def test_voxels_packed_where_no_listing_is_known(
    server, log, betas_folder, face, data_dir
):
    """A directory without its hidden folder does not tell the version of its images."""
    data = fetch_laion_fmri(1, "FFA1", 1, verbose=0)
    shutil.rmtree(data_dir / ".laion_fmri")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said that no listing is saved
        data = fetch_laion_fmri(1, "FFA1", 1, mode="offline", verbose=0)
    pack_betas(data, verbose=0)
    os.unlink(data.images[0])
    log.clear()
    assert (fetch().data == true_betas(betas_folder, face, ["ses-01"])).all()

    assert sum(stop - start for _, start, stop in log.ranges) == 8
    put_session(server, betas_folder, 2)
    with pytest.warns(UserWarning, match="another version of 1 beta image"):
        again = fetch().data
    assert (again == true_betas(betas_folder, face, ["ses-01"])).all()


def test_voxels_of_two_versions_are_not_mixed(server, betas_folder, face):
    fetch()
    new = put_session(server, betas_folder, 2)
    both = roi(betas_folder, "body", "EBA") | face
    betas = fetch(["EBA", "FFA1"])
    assert np.array_equal(betas.data, new[both].T)
    assert np.array_equal(fetch().data, new[face].T)


def test_an_image_on_disk_that_changed_makes_parts_void(
    server, data_dir, betas_folder, face
):
    fetch_laion_fmri(1, sessions=1, verbose=0)
    fetch()
    image = data_dir / image_key("ses-01")
    values = read(betas_folder, image_key("ses-01")) * np.float32(3)
    image.write_bytes(nifti_bytes(values, nib.load(image).affine))
    assert np.array_equal(fetch().data, np.nan_to_num(values[face].T))
    data = fetch_laion_fmri(1, rois="FFA1", sessions=1, mode="offline", verbose=0)
    betas = load_betas(data, verbose=0)
    assert np.array_equal(betas.data, np.nan_to_num(values[face].T))


def test_times_that_change_and_listings_that_appear_discard_nothing(
    server, log, data_dir, store, betas_folder, face
):
    fetch_laion_fmri(1, sessions=1, verbose=0)
    fetch()
    before = files(store)
    shutil.rmtree(data_dir / ".laion_fmri" / "listings")
    for path in [data_dir / image_key("ses-01"), data_dir / table_key("ses-01")]:
        os.utime(path, (10**9, 10**9))
    expected = true_betas(betas_folder, face, ["ses-01"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no listing; then, that files are outdated
        assert np.array_equal(fetch(mode="offline").data, expected)
        log.clear()
        assert np.array_equal(fetch().data, expected)
    os.unlink(data_dir / image_key("ses-01"))
    assert np.array_equal(fetch().data, expected)
    assert sum(stop - start for _, start, stop in log.ranges) <= 8
    assert files(store) == before


def test_the_same_image_under_another_etag_is_recognized(
    server, log, store, betas_folder, face
):
    """As where a mirror has put its objects together of other parts."""
    fetch()
    key = image_key("ses-01")
    image = server.objects[key]
    server.objects[key] = image._replace(etag=f"{32 * 'a'}-3")
    log.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            betas = fetch()
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    size = len(image.value)
    assert log.ranges == [(key, size - 8, size)]


def test_a_column_of_a_trial_table_that_is_not_of_betas_discards_nothing(
    server, log, data_dir
):
    fetch()
    table = data_dir / table_key("ses-01")
    lines = table.read_text().splitlines()
    name = lines[0].split("\t").index("run")
    cells = lines[1].split("\t")
    cells[name] = "9"
    table.write_text("\n".join([lines[0], "\t".join(cells), *lines[2:]]) + "\n")
    log.clear()
    assert fetch(mode="offline").trials["run"][0] == 9
    assert fetch().trials["run"][0] == 9
    assert not log.ranges


def test_a_trial_table_of_other_labels_makes_parts_void(
    server, log, data_dir, betas_folder, face
):
    fetch()
    table = data_dir / table_key("ses-01")
    lines = table.read_text().splitlines()
    cells, _, label = lines[1].rpartition("\t")
    lines[1] = f"{cells}\t{label.swapcase()}"
    table.write_text("\n".join(lines) + "\n")
    log.clear()
    betas = fetch()
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    assert betas.trials["label"][0] == label.swapcase()
    assert model_key("ses-01") in log.keys
    log.clear()
    fetch()
    assert not log.ranges


def test_a_model_next_to_an_image_on_disk_of_another_version(
    server, data_dir, betas_folder
):
    fetch_laion_fmri(1, sessions=1, verbose=0)
    put_session(server, betas_folder, 2)
    for mode in ("download_new", "overwrite"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(InvalidQueryError, match=r"ses-01.*another version"):
                fetch(source="model", mode=mode)


# Files that are damaged, or not the store's own


def cut_values(part, index):
    part.write_bytes(part.read_bytes()[:-10])


def cut_index(part, index):
    index.write_bytes(index.read_bytes()[:-10])


def empty_index(part, index):
    index.write_bytes(b"")


def foreign_index(part, index):
    np.savez(index, voxels=np.arange(3), about="[1]")


def index_of_array(part, index):
    with open(index, "wb") as stream:
        np.save(stream, np.arange(3))


def no_index(part, index):
    index.unlink()


def foreign_values(part, index):
    size = part.stat().st_size
    part.write_bytes(bytes(size))


def other_shape(part, index):
    values = np.load(part)
    np.save(part, values.reshape(-1, 10))


def altered_header(part, index):
    with zipfile.ZipFile(index) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(index, "w") as archive:
        for name, array in content.items():
            archive.writestr(name, array.replace(b"'descr'", b"'descr "))


DAMAGES = [
    *(
        cut_values,
        cut_index,
        empty_index,
        foreign_index,
        index_of_array,
        altered_header,
    ),
    *(no_index, foreign_values, other_shape),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_parts_are_named_removed_and_fetched_again(
    server, store, betas_folder, face, damage
):
    fetch()
    (part,) = store.glob("*/*.npy")
    damage(part, part.with_suffix(".npz"))
    report = verify_cache(verbose=0)
    bad = report[report["status"] == "altered"]
    assert list(bad["id"].str.contains("/voxels/sub-01/ses-01/")) == [True], report
    betas = fetch()
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    damage(part, part.with_suffix(".npz"))
    report = verify_cache(verbose=0, repair=True)
    assert list(report["status"]).count("repaired") == 1
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    assert np.array_equal(fetch().data, betas.data)
    assert len(files(store)) == 2


def altered(part):
    """Change a value in the midst of a part, which keeps its length."""
    content = bytearray(part.read_bytes())
    content[-40] ^= 0xFF
    part.write_bytes(content)


@pytest.mark.parametrize("rois", ["FFA1", ["FFA1", "OFA"]])
def test_a_damaged_row_is_never_returned(
    server, data_dir, store, betas_folder, rois, request
):
    mask = roi(betas_folder, "face", "FFA-1")
    fetch()
    (part,) = store.glob("*/*.npy")
    altered(part)
    report = verify_cache(verbose=0).set_index("id")
    row = report.loc[part.relative_to(data_dir).as_posix()]
    assert (row["status"], row["reason"]) == ("altered", "its checksum differs")
    if rois != "FFA1":
        mask |= roi(betas_folder, "face", "OFA")
    expected = true_betas(betas_folder, mask, ["ses-01"])
    assert np.array_equal(fetch(rois).data, expected)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}

    for part in store.glob("*/*.npy"):
        altered(part)
    data = fetch_laion_fmri(1, rois=rois, sessions=1, dry_run=True, verbose=0)
    with pytest.raises(NotCachedError, match=r"damaged: .*ses-01.*fetch_laion_betas"):
        load_betas(data, rois=rois, verbose=0)
    with pytest.raises(NotCachedError):
        fetch(rois, mode="offline")
    assert np.array_equal(fetch(rois).data, expected)


def test_rows_beside_a_damaged_one_may_be_read(server, store, betas_folder):
    fetch("brain", source="images")
    (part,) = store.glob("*/*.npy")
    altered(part)  # in its last row, of a voxel that is in no region
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
    assert image_key("ses-01") in log.keys
    log.clear()
    assert fetch("MT").data.any()
    assert log.keys == {model_key("ses-01")}


# Places


COPIES = {
    "moved": ["mv", "{old}", "{new}"],
    "cp": ["cp", "-r", "{old}", "{new}"],
    "rsync": ["rsync", "-r", "{old}/", "{new}/"],
    "tar": ["sh", "-c", "mkdir {new} && tar -c -C {old} . | tar -x -C {new}"],
}


@pytest.mark.parametrize("tool", COPIES)
def test_a_copied_directory(server, data_dir, betas_folder, face, log, tmp_path, tool):
    if not shutil.which(COPIES[tool][0]):
        pytest.skip(f"{tool} is not installed")
    fetch_laion_fmri(1, rois="FFA1", sessions=2, verbose=0)
    fetch(sessions=[1, 2])
    for path in data_dir.rglob("*"):
        assert path.is_dir() or os.fsencode(data_dir) not in path.read_bytes()
    new = tmp_path / "copied"
    names = {"old": data_dir, "new": new}
    subprocess.run([word.format(**names) for word in COPIES[tool]], check=True)
    log.clear()
    expected = true_betas(betas_folder, face, ["ses-01", "ses-02"])
    for mode in ("offline", "download_new"):
        betas = fetch(sessions=[1, 2], data_dir=new, mode=mode)
        assert np.array_equal(betas.data, expected)
    assert not log.ranges


def test_a_read_only_directory(server, data_dir, betas_folder, face):
    fetch()
    expected = true_betas(betas_folder, face, ["ses-01"])
    with unwritable(data_dir, *data_dir.rglob("*")):
        with pytest.warns(UserWarning, match="cannot be written"):
            assert np.array_equal(fetch().data, expected)
        assert np.array_equal(fetch(mode="offline").data, expected)
        data = fetch_laion_fmri(
            1,
            rois="FFA1",
            sessions=1,
            mode="offline",
            verbose=0,
            allow_missing=True,
        )
        with pytest.raises(InvalidQueryError, match="cannot be written"):
            pack_betas(data, verbose=0)


def test_offline_opens_no_socket(server, betas_folder, face, request):
    fetch()
    request.getfixturevalue("no_network")
    expected = true_betas(betas_folder, face, ["ses-01"])
    assert np.array_equal(fetch(mode="offline").data, expected)


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
def test_a_disk_that_fills(server, small_disk, betas_folder, face, source):
    fetch(data_dir=small_disk)
    with pytest.raises(DiskSpaceError):
        fetch("brain", sessions=[1, 2, 3], data_dir=small_disk, source=source)
    assert not list(small_disk.rglob("*.tmp"))
    for session in SESSIONS:
        folder = small_disk / ".laion_fmri" / "voxels" / "sub-01" / session
        values = [name for name in files(folder) if name.endswith(".npy")]
        parts = [p for path in folder.glob("*/") for p in store_room.find_parts(path)]
        assert sorted(part.file.name for part in parts) == values
    betas = fetch(data_dir=small_disk, mode="offline")
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    betas = fetch("brain", sessions=[1, 2, 3], data_dir=small_disk, source=source)
    expected = true_betas(betas_folder, brain(betas_folder))
    assert np.array_equal(betas.data, expected)


# Parts


def test_resampled_images_are_not_of_the_store(server, store, betas_folder, face):
    coarse = fetch_laion_fmri(
        1, rois="FFA1", sessions=1, resolution=9, keep_original=False, verbose=0
    )
    with pytest.raises(InvalidQueryError, match="fetch without resolution"):
        pack_betas(coarse)
    before = load_betas(coarse, rois="brain", verbose=0).data
    fetch("brain")
    assert np.array_equal(load_betas(coarse, rois="brain", verbose=0).data, before)
    os.unlink(coarse.images[0])
    with pytest.raises(NotCachedError):
        load_betas(coarse, rois="brain", verbose=0)
    expected = true_betas(betas_folder, face, ["ses-01"])
    assert np.array_equal(fetch().data, expected)


def test_a_link_that_leads_nowhere_is_passed_over(server, store, betas_folder, face):
    fetch()
    (part,) = store.glob("*/*.npy")
    (part.parent / "dropped.npy").symlink_to(store / "nowhere")
    expected = true_betas(betas_folder, face, ["ses-01"])
    assert np.array_equal(fetch(mode="offline").data, expected)


def test_the_same_voxels_of_models_and_images_are_one_part(
    server, store, betas_folder, face
):
    contents = set()
    for source in ("model", "images", "model"):
        betas = fetch(mode="overwrite", source=source)
        (part,) = store.glob("*/*.npy")
        contents.add(part.read_bytes() + part.with_suffix(".npz").read_bytes())
    assert len(contents) == 1
    assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))


def test_several_parts_are_read_together(server, store, betas_folder):
    names = ["FFA1", "OFA", "EBA", "PPA", "MT"]
    for i in range(1, len(names) + 1):
        betas = fetch(names[:i])
    assert len(list(store.glob("*/*.npy"))) > 2
    for options in ({}, {"standardize": "zscore"}, {"average_repeats": True}):
        parts = fetch(names, mode="offline", **options)
        shutil.copytree(store, store.with_name("kept"))
        shutil.rmtree(store)
        whole = fetch(names, **options)
        assert len(list(store.glob("*/*.npy"))) == 1
        assert np.array_equal(parts.data, whole.data)
        shutil.rmtree(store)
        store.with_name("kept").rename(store)
    assert betas.data.shape[1] == whole.data.shape[1]


def test_no_voxel_without_an_image_or_a_part(server, data_dir, store):
    fetch()
    data = fetch_laion_fmri(1, rois="FFA1", sessions=1, dry_run=True, verbose=0)
    shutil.rmtree(store)
    with pytest.raises(NotCachedError):
        load_betas(data, rois="FFA1", verbose=0)


# pack_betas


def test_packed_images_are_not_read_again(server, data_dir, betas_folder, capsys):
    data = fetch_laion_fmri(1, rois="all", sessions=[1, 2], verbose=0)
    expected = load_betas(data, rois="brain", standardize="zscore", verbose=0)
    pack_betas(data, n_jobs=2)
    assert "3716 voxels of sub-01 from 2 images" in capsys.readouterr().err
    pack_betas(data, rois="FFA1", verbose=0)
    for path in data.images:
        os.rename(path, f"{path}.away")
    betas = load_betas(data, rois="brain", standardize="zscore", verbose=0)
    assert np.allclose(betas.data, expected.data, atol=1e-5)
    mask = roi(betas_folder, "body", "EBA")
    expected = true_betas(betas_folder, mask, ["ses-01", "ses-02"])
    assert np.array_equal(load_betas(data, rois="EBA", verbose=0).data, expected)
    assert len(list((data_dir / ".laion_fmri" / "voxels").rglob("*.npy"))) == 2


def test_without_fallocate(server, monkeypatch, betas_folder, face):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    for source in ("model", "images"):
        betas = fetch(source=source, mode="overwrite")
        assert np.array_equal(betas.data, true_betas(betas_folder, face, ["ses-01"]))


def test_removing_packed_images(server, data_dir, store):
    data = fetch_laion_fmri(1, rois="FFA1", sessions=[1, 2], verbose=0)
    expected = load_betas(data, rois="brain", verbose=0).data
    pack_betas(data, verbose=0)
    shutil.rmtree(store)
    assert remove_packed_images(data, "sub-01") == [image_key("ses-02")]
    assert not (data_dir / image_key("ses-02")).exists()
    assert remove_packed_images(data, "sub-01") == []
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    assert np.array_equal(load_betas(data, rois="brain", verbose=0).data, expected)


def test_packing_what_is_not_on_disk(server):
    data = fetch_laion_fmri(1, rois="FFA1", sessions=1, dry_run=True, verbose=0)
    with pytest.raises(NotCachedError):
        pack_betas(data, verbose=0)


# Many processes


def fill(url, data_dir, regions, locks_work, seed):
    """Run in a process of its own."""
    os.environ |= {"LAION_FMRI_BUCKET_URL": url, "LAION_FMRI_LICENSE": "I AGREE"}
    if not locks_work:
        fcntl.flock = fcntl.lockf = lambda *args: None
    chance = random.Random(seed)
    names = chance.sample(regions, len(regions))
    for i in (2, 4):
        source = chance.choice(["model", "images", "auto"])
        fetch(names[:i], sessions=[1, 2], data_dir=data_dir, source=source)


@pytest.mark.parametrize("locks_work", [True, False])
def test_processes_that_fill_a_store_and_are_killed(
    server, data_dir, betas_folder, locks_work
):
    regions = ["FFA1", "OFA", "EBA", "PPA", "MT"]
    chance = random.Random(0)

    def start(seed):
        args = (server.url, str(data_dir), regions, locks_work, seed)
        process = CONTEXT.Process(target=fill, args=args)
        process.start()
        return process

    processes = [start(i) for i in range(16)]
    voxels = data_dir / ".laion_fmri" / "voxels"
    n_killed = 0
    while n_killed < 5 and any(process.is_alive() for process in processes):
        time.sleep(chance.random() / 2)
        if voxels.exists():
            victim = chance.randrange(len(processes))
            if processes[victim].is_alive():
                processes[victim].kill()
                processes[victim].join()
                processes[victim] = start(100 + n_killed)
                n_killed += 1
    assert n_killed
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    everything = fetch(regions, sessions=[1, 2], data_dir=data_dir)
    mask = sum(
        roi(betas_folder, *names)
        for names in (
            ("face", "FFA-1"),
            ("face", "OFA"),
            ("body", "EBA"),
            ("place", "PPA"),
            ("motion", "MT"),
        )
    ).astype(bool)
    expected = true_betas(betas_folder, mask, ["ses-01", "ses-02"])
    assert np.array_equal(everything.data, expected)
    assert set(verify_cache(verbose=0)["status"]) == {"ok"}
    for session in ("ses-01", "ses-02"):
        left = os.listdir(voxels / "sub-01" / session)
        assert not [name for name in left if name.startswith(".image")]


def test_processes_that_fill_the_same_voxels_leave_one_part(
    server, data_dir, betas_folder, face
):
    args = (server.url, str(data_dir), ["FFA1"] * 4, False, 0)
    processes = [CONTEXT.Process(target=fill, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    voxels = data_dir / ".laion_fmri" / "voxels" / "sub-01"
    assert [len(files(voxels / session)) for session in SESSIONS[:2]] == [2, 2]
    expected = true_betas(betas_folder, face, SESSIONS[:2])
    assert np.array_equal(fetch(sessions=[1, 2], mode="offline").data, expected)


def test_what_a_killed_process_was_writing_is_removed(server, data_dir, store):
    fetch()
    process = CONTEXT.Process(target=begin_a_part, args=(store,))
    process.start()
    process.join(240)
    assert process.exitcode == -9
    assert len(files(store)) == 2
    (left,) = store.glob("*/.*.tmp")
    week_ago = time.time() - 7 * 24 * 3600
    os.utime(left, (week_ago, week_ago))
    process = CONTEXT.Process(
        target=fill, args=(server.url, str(data_dir), ["EBA", "MT"] * 2, True, 0)
    )
    process.start()
    process.join(240)
    assert process.exitcode == 0
    assert not left.exists()


def begin_a_part(store):
    (version,) = (path for path in store.iterdir() if path.is_dir())
    with store_room.new_part(version, np.arange(3), 5) as values:
        values[:] = 1
        os.kill(os.getpid(), 9)
