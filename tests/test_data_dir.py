"""What a data directory holds besides what this package downloaded for the dataset."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import warnings
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from conftest import unreadable
from policies import set_policy

from laion_fmri_fetchers import (
    accept_license,
    access_status,
    current_terms_version,
    dataset_initialize,
    describe,
    fetch_laion_betas,
    fetch_laion_captions,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    fetch_laion_fmri_ids,
    fetch_laion_segmentations,
    fetch_laion_splits,
    fetch_laion_stimuli,
    fetch_laion_stimulus_metadata,
    fetch_laion_surfaces,
    get_data_dir,
    get_rois,
    get_subjects,
    inspect_bucket,
    load_betas,
    login,
    request_stimulus_access,
    status,
    verify_cache,
)
from laion_fmri_fetchers.demo import serve_demo
from laion_fmri_fetchers.demo.splits import serve_splits
from laion_fmri_fetchers.exceptions import (
    BucketError,
    CorruptImageError,
    DataDirectoryError,
    InvalidQueryError,
    LaionFmriError,
    NotCachedError,
)

FORM = {
    "name": "Ada Example",
    "email": "ada@university.example",
    "institution": "University of Examples",
    "research_purpose": "Encoding models of natural images",
    "accept_terms_version": "2026-05-12",
    "acknowledge_privacy": True,
}
MASK = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz"
IN_BUCKET = MASK.replace("FFA1", "FFA-1")
WRITING = {
    "fmri": lambda: fetch_laion_fmri("sub-01", verbose=0),
    "all subjects": lambda: fetch_laion_fmri("all", verbose=0),
    "overwrite": lambda: fetch_laion_fmri("sub-01", mode="overwrite", verbose=0),
    "ids": lambda: fetch_laion_fmri_ids([MASK], verbose=0),
    "betas": lambda: fetch_laion_betas("sub-01", "FFA1", verbose=0),
    "surfaces": lambda: fetch_laion_surfaces("sub-01", verbose=0),
    "stimulus metadata": lambda: fetch_laion_stimulus_metadata(verbose=0),
    "stimuli": lambda: fetch_laion_stimuli(dry_run=True, verbose=0),
    "embeddings": lambda: fetch_laion_embeddings("CLIP", verbose=0),
    "captions": lambda: fetch_laion_captions(verbose=0),
    "segmentations": lambda: fetch_laion_segmentations(verbose=0),
    "splits": lambda: fetch_laion_splits("tau", verbose=0),
    "subjects": get_subjects,
    "ROIs": get_rois,
    "description": describe,
    "licence": accept_license,
    "form": lambda: request_stimulus_access(**FORM, verbose=0),
    "login": lambda: login("lfm_0123456789abcdefghijklmn", verbose=0),
    "repair": lambda: verify_cache(repair=True, verbose=0),
}


def small_demo():
    """Serve a demo that is built in a second."""
    return serve_demo(subjects=["sub-01"], n_sessions=1, held_out=())


def tree(folder):
    """Return path and content of all files of a folder."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


# --- Demo data never mix with others ---------------------------------------------


@pytest.fixture(scope="module")
def demo():
    with small_demo() as running:
        names = {**running.variables}
        del names["LAION_FMRI_DATA_DIR"], names["LAION_FMRI_LICENSE"]
        for name in running.variables:
            del os.environ[name]
        yield running, names


@pytest.fixture
def in_demo(demo, monkeypatch):
    """Let calls go to a demo, but for their data directory."""
    for name, value in demo[1].items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def demo_dir(demo, data_dir):
    """A data directory with data of a demo that is not served any more."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in demo[1].items():
            patch.setenv(name, value)
        fetch_laion_fmri("sub-01", verbose=0)
    return data_dir


def test_demo_data_stay_out_of_the_directory_saved_for_the_dataset(
    environment, server, monkeypatch, capsys
):
    with small_demo() as demo:
        saved = dataset_initialize("~/laion_fmri")
        message = capsys.readouterr().err.splitlines()
        assert len(message) == 1
        assert "saved for later: until the demo stops" in message[0]
        assert fetch_laion_fmri("sub-01", verbose=0).data_dir == demo.data_dir
        assert tree(saved) == {}
        monkeypatch.delenv("LAION_FMRI_DATA_DIR")
        betas = fetch_laion_betas("sub-01", "FFA1", verbose=0)
        assert betas.data.size
    assert (Path(saved) / ".laion_fmri" / "license_accepted").exists()
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    with pytest.raises(InvalidQueryError, match=f"{saved} holds synthetic data of a"):
        fetch_laion_betas("sub-01", "FFA1", verbose=0)
    with pytest.warns(UserWarning, match="synthetic data of a demo, not LAION-fMRI"):
        fetch_laion_betas("sub-01", "FFA1", mode="offline", verbose=0)


@pytest.mark.parametrize("name", WRITING)
def test_nothing_else_is_written_beside_demo_data(demo_dir, server, name):
    if name == "repair":
        (demo_dir / MASK).write_bytes(b"cut")
    (demo_dir / ".laion_fmri" / "license_accepted").unlink()
    before = tree(demo_dir)
    with pytest.raises(InvalidQueryError, match="Delete that directory, or name ano"):
        WRITING[name]()
    assert tree(demo_dir) == before


@pytest.mark.parametrize("name", WRITING)
def test_no_demo_data_are_written_beside_others(cached, in_demo, name):
    if name == "repair":
        (cached / MASK).write_bytes(b"cut")
    (cached / ".laion_fmri" / "license_accepted").unlink()
    before = tree(cached)
    with pytest.raises(InvalidQueryError, match="must not mix with what is in the dat"):
        WRITING[name]()
    assert tree(cached) == before


@pytest.mark.parametrize("kept", ["derivatives/x.txt", "sub-01/x", ".laion_fmri/x"])
def test_no_demo_data_are_written_beside_files_of_other_tools(data_dir, in_demo, kept):
    (data_dir / kept).parent.mkdir(parents=True)
    (data_dir / kept).touch()
    with pytest.raises(InvalidQueryError, match="must not mix"):
        fetch_laion_fmri("sub-01", verbose=0)


def test_demo_data_are_written_beside_files_of_other_projects(data_dir, in_demo):
    data_dir.mkdir()
    (data_dir / "analysis.py").touch()
    assert fetch_laion_fmri("sub-01", verbose=0).images


def test_the_public_bucket_is_known_to_be_no_demo(demo_dir, monkeypatch, no_network):
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    with pytest.raises(InvalidQueryError, match="holds synthetic data of a demo"):
        get_subjects()


def test_demo_data_are_used_by_the_demo_and_another_demo(demo_dir, in_demo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch_laion_fmri("sub-01", verbose=0)
        fetch_laion_fmri("sub-01", mode="offline", verbose=0)
    with small_demo():
        assert fetch_laion_fmri("sub-01", data_dir=demo_dir, verbose=0).images


def test_offline_demo_data_are_used_with_one_warning(demo_dir, no_network):
    with pytest.warns(UserWarning, match="holds synthetic data") as caught:
        fetch_laion_fmri("all", mode="offline", verbose=0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch_laion_betas("sub-01", "FFA1", mode="offline", verbose=0)


def test_access_in_a_demo_marks_its_directory(data_dir, in_demo):
    form = {**FORM, "accept_terms_version": current_terms_version()}
    request_stimulus_access(**form, verbose=0)
    assert fetch_laion_stimuli(verbose=0).archive


# --- Directories that other tools filled -----------------------------------------


@pytest.fixture
def mirror(bucket_folder, data_dir):
    """A copy of the bucket with keys as they are, as `aws s3 sync` makes it."""
    shutil.copytree(bucket_folder, data_dir)
    assert (data_dir / IN_BUCKET).exists()
    return data_dir


def names_of(data):
    return [(rec["id"], Path(rec["absolute_path"]).name) for rec in data.rois_meta]


def test_a_mirror_is_used_offline_as_what_was_downloaded(
    mirror, cached_folder, no_network
):
    expected = fetch_laion_fmri("all", data_dir=cached_folder, mode="offline")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "No listing of")
        data = fetch_laion_fmri("all", mode="offline", verbose=0)
    assert [m["id"] for m in data.rois_meta] == [m["id"] for m in expected.rois_meta]
    assert len(data.rois) > 40
    face = fetch_laion_fmri("sub-01", "face", mode="offline", verbose=0)
    assert str(mirror / IN_BUCKET) in face.rois
    (meta,) = [m for m in face.rois_meta if m["id"] == MASK]
    assert meta["relative_path"] == meta["key"] == IN_BUCKET
    ours, theirs = (load_betas(d, "sub-01", "face") for d in (face, expected))
    np.testing.assert_array_equal(ours.data, theirs.data)


def test_offline_names_of_a_mirror_are_those_of_the_bucket(
    mirror, server, tmp_path, monkeypatch
):
    online = get_rois("sub-01", data_dir=tmp_path / "new")
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    assert get_rois("sub-01") == online


def test_a_mirror_is_not_downloaded_again(mirror, server):
    fetch_laion_fmri("all", verbose=0)
    fetch_laion_betas("sub-01", "face", verbose=0)
    fetch_laion_surfaces("sub-01", verbose=0)
    fetch_laion_captions(verbose=0)
    assert {key for _, key, _ in server.requests} == {""}
    assert not (mirror / MASK).exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surfaces = fetch_laion_surfaces(
            "sub-01", rois="face", mode="offline", verbose=0
        )
        betas = fetch_laion_betas("sub-01", "face", mode="offline", verbose=0)
    assert "FFA1" in surfaces.roi_masks
    assert "FFA1" in betas.roi_masks


def test_a_mirror_is_resampled(mirror, no_network):
    data = fetch_laion_fmri(
        "sub-01", "FFA1", 1, resolution=16, mode="offline", verbose=0
    )
    assert len(data.rois) == 1
    assert os.path.exists(data.rois[0])


def test_a_mirror_is_overwritten_and_repaired_in_place(mirror, server):
    whole = (mirror / IN_BUCKET).read_bytes()
    (mirror / IN_BUCKET).write_bytes(whole[:-1])
    fetch_laion_fmri_ids([MASK], mode="overwrite", verbose=0)
    assert (mirror / IN_BUCKET).read_bytes() == whole
    (mirror / IN_BUCKET).write_bytes(whole[:-1])
    report = verify_cache(verbose=0).set_index("id")
    assert report.loc[MASK, "status"] == "truncated"
    assert verify_cache(repair=True, verbose=0).set_index("id").loc[MASK, "status"] == (
        "repaired"
    )
    assert (mirror / IN_BUCKET).read_bytes() == whole
    assert not (mirror / MASK).exists()


def test_a_mirror_is_verified(mirror, server):
    report = verify_cache(online=True, verbose=0)
    assert set(report["status"]) == {"ok"}
    assert MASK in set(report["id"])


def test_a_mirror_has_a_status(mirror, capsys):
    status()
    n_files = sum(len(names) for _, _, names in os.walk(mirror))
    assert f"{n_files} files" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["offline", "download_new"])
def test_of_two_spellings_of_a_name_the_clean_one_is_used(mirror, server, mode):
    shutil.copy(mirror / IN_BUCKET, mirror / MASK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "No listing of")
        data = fetch_laion_fmri("sub-01", "FFA1", mode=mode, verbose=0)
    assert data.rois == [str(mirror / MASK)]
    (mirror / IN_BUCKET).write_bytes(b"other")
    with pytest.warns(UserWarning, match="label-FFA-1.* and .*label-FFA1.* differ"):
        data = fetch_laion_fmri("sub-01", "FFA1", mode=mode, verbose=0)
    assert data.rois == [str(mirror / MASK)]
    with pytest.warns(UserWarning, match="one file in two spellings, but differ"):
        verify_cache(verbose=0)


# --- Files beside those of the bucket --------------------------------------------

BESIDE = {
    "mask": MASK.replace("FFA1", "FFA1old"),
    "betas": "derivatives/glmsingle-tedana/sub-01/ses-09/func/sub-01_ses-09_task-"
    "images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz",
    "noise ceiling": "derivatives/glmsingle-tedana/sub-01/ses-01/sub-01_task-images_"
    "space-T1w_desc-Noiseceiling4rep_statmap.nii.gz",
}


@pytest.fixture
def beside(cached):
    """The cached files, and copies of some under names that are not in the bucket."""
    for name in BESIDE.values():
        source = name.replace("FFA1old", "FFA1").replace("ses-09", "ses-01")
        if "ses-01/sub-01_task" in name:
            source = name.replace("ses-01/", "")
        (cached / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(cached / source, cached / name)
    return cached


@pytest.mark.parametrize("mode", ["offline", "download_new"])
def test_what_the_bucket_does_not_list_joins_with_a_line_that_names_it(
    beside, server, mode
):
    with pytest.warns(UserWarning, match="not in the bucket's listing") as caught:
        data = fetch_laion_fmri("sub-01", "face", mode=mode, verbose=0)
    text = "\n".join(str(one.message) for one in caught)
    assert "2 selected files on disk" in text
    assert BESIDE["mask"] in text
    assert BESIDE["betas"] in text
    assert {m["roi"] for m in data.rois_meta} >= {"FFA1", "FFA1old"}
    with pytest.warns(UserWarning, match="1 selected file on disk.*FFA1old"):
        fetch_laion_betas("sub-01", "face", 1, mode=mode, verbose=0)


def test_surfaces_name_masks_that_the_bucket_does_not_list(mirror, server):
    name = "derivatives/rois/sub-01/face/sub-01_hemi-L_space-fsnative_label-{}_mask"
    for extension in (".func.gii", ".label"):
        old = mirror / f"{name.format('FFA-1')}{extension}"
        shutil.copy(old, mirror / f"{name.format('mine')}{extension}")
    with pytest.warns(UserWarning, match="not in the bucket's listing: .*label-mine"):
        fetch_laion_surfaces("sub-01", rois="face", verbose=0)


def test_of_files_in_folders_that_were_never_listed_the_folders_are_named(beside):
    shutil.rmtree(beside / ".laion_fmri" / "listings")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fetch_laion_fmri("sub-01", "face", [1, 2], mode="offline", verbose=0)
    (warned,) = caught
    assert str(warned.message).startswith("No listing of derivatives/")


# --- The bucket does not answer --------------------------------------------------

READING = {
    **{name: WRITING[name] for name in list(WRITING)[: list(WRITING).index("licence")]},
    "plan of betas": lambda: fetch_laion_betas(
        "sub-01", "FFA1", dry_run=True, verbose=0
    ),
    "level": inspect_bucket,
}
READING.pop("overwrite")


@pytest.fixture(scope="module")
def filled(bucket_folder, shared_server, tmp_path_factory):
    """A data directory with all files of the bucket, and listings of them."""
    folder = tmp_path_factory.mktemp("filled") / "laion_fmri"
    # As of today, since the server has the files since today.
    shutil.copytree(bucket_folder, folder, copy_function=shutil.copyfile)
    table = pd.read_csv(folder / "stimuli" / "task-images_metadata.csv")
    with (
        serve_splits(table["image_name"]) as splits,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
        patch.setenv("LAION_FMRI_DATA_DIR", str(folder))
        patch.setenv("LAION_FMRI_SPLITS_URL", splits.url)
        patch.setenv("LAION_FMRI_LICENSE", "I AGREE")
        for call in READING.values():
            call()
    return folder


@pytest.mark.parametrize("name", READING)
def test_without_the_bucket_every_call_says_why_it_uses_what_is_stored(
    filled, server, monkeypatch, name
):
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(filled))
    set_policy(monkeypatch, first_wait=0.001)
    server.faults[""] = (503, {}, b"")
    with pytest.warns(UserWarning, match="cannot be listed: status 503") as caught:
        READING[name]()
    assert len({str(one.message) for one in caught}) == 1


def test_a_bucket_that_never_answers_is_given_up_after_one_timeout(filled, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(filled))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
        with pytest.raises(BucketError, match="no byte for 2 s"):
            fetch_laion_fmri("sub-01", timeout=2, verbose=0)
        silent.setblocking(False)
        asked = []
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = silent.accept()
                asked.append(client.recv(2**16).partition(b"\r\n")[0])
                client.close()
    assert len(asked) == len(set(asked)) > 0


# --- Something else in the place of a file ---------------------------------------

GLM = "derivatives/glmsingle-tedana/sub-01"
TABLE = f"{GLM}/ses-01/func/sub-01_ses-01_task-images_desc-SingletrialBetas_trials.tsv"
CEILING = f"{GLM}/sub-01_task-images_space-T1w_desc-Noiseceiling4rep_statmap.nii.gz"
PIAL = "derivatives/freesurfer/sub-01/surf/lh.pial"
SURFACE_MASK = (
    "derivatives/rois/sub-01/face/sub-01_hemi-L_space-fsnative_label-FFA1_mask.func.gii"
)
OFFLINE = {"mode": "offline", "verbose": 0}
READERS = {
    TABLE: lambda: fetch_laion_fmri(
        "sub-01", "face", 1, trial_filter={"n_reps": 12}, **OFFLINE
    ),
    MASK: lambda: fetch_laion_betas("sub-01", "FFA1", **OFFLINE),
    CEILING: lambda: fetch_laion_betas(
        "sub-01", "face", nc_threshold=1, noise_ceiling="4rep", **OFFLINE
    ),
    PIAL: lambda: fetch_laion_surfaces("sub-01", **OFFLINE),
    SURFACE_MASK: lambda: fetch_laion_surfaces("sub-01", rois="FFA1", **OFFLINE),
    "stimuli/task-images_metadata.csv": lambda: fetch_laion_stimulus_metadata(
        **OFFLINE
    ),
    "stimuli/task-images_desc-captions.csv": lambda: fetch_laion_captions(**OFFLINE),
    "stimuli/task-images_desc-CLIP_embeddings.h5": lambda: fetch_laion_embeddings(
        "CLIP", **OFFLINE
    ),
    "stimuli/task-images_desc-segmentations_metadata.csv": (
        lambda: fetch_laion_segmentations(**OFFLINE)
    ),
}


def spoil(file, kind):
    """Put something else in the place of a file."""
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to nowhere":
        file.symlink_to(file.parent / "nowhere")
    else:
        file.touch(0o666 if kind == "empty file" else 0)


KINDS = ["folder", "pipe", "link to nowhere", "empty file"]
needs_pipes = pytest.mark.skipif(os.name == "nt", reason="needs named pipes")


def fill(folder, filled, monkeypatch):
    """Copy all files of the bucket to a data directory, under clean names."""
    shutil.copytree(filled, folder, dirs_exist_ok=True)
    for name in (MASK, SURFACE_MASK):
        (folder / name.replace("FFA1", "FFA-1")).rename(folder / name)
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def spoilt(filled, tmp_path, monkeypatch):
    return fill(tmp_path / "laion_fmri", filled, monkeypatch)


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", READERS)
def test_something_else_in_the_place_of_a_file_is_an_error(spoilt, path, kind):
    spoil(spoilt / path, kind)
    with pytest.raises(LaionFmriError) as caught:
        READERS[path]()
    name = "noise ceiling" if path == CEILING and kind != "empty file" else path
    assert name.rpartition("/")[2] in str(caught.value)


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_earlier_sessions_are_counted_where_they_are_files(spoilt, kind):
    spoil(spoilt / TABLE, kind)
    with contextlib.suppress(CorruptImageError):
        data = fetch_laion_fmri("sub-01", None, 2, **OFFLINE)
        assert kind != "empty file"
        assert data.trials["repetition"].isna().all()


@pytest.mark.skipif(os.name == "nt", reason="needs permissions")
@pytest.mark.parametrize(
    ("path", "call"),
    [
        (PIAL, READERS[PIAL]),
        (SURFACE_MASK, READERS[SURFACE_MASK]),
        (
            MASK,
            lambda: fetch_laion_fmri("sub-01", "FFA1", 1, resolution=16, **OFFLINE),
        ),
    ],
)
def test_a_file_that_this_user_may_not_read_is_named(
    filled, tmp_path, monkeypatch, path, call
):
    file = fill(tmp_path / "data", filled, monkeypatch) / path
    with unreadable(file), pytest.raises(DataDirectoryError, match=re.escape(path)):
        call()


@needs_pipes
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "link" not in kind])
def test_a_saved_listing_that_cannot_be_used_is_named(spoilt, kind):
    name = quote("derivatives/rois/sub-01/", safe="")
    listing = spoilt / f".laion_fmri/listings/{name}.json"
    spoil(listing, kind)
    with pytest.warns(UserWarning, match=f"{re.escape(str(listing))} cannot be used"):
        fetch_laion_fmri("sub-01", "face", **OFFLINE)


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_configuration_that_cannot_be_read_is_named(
    tmp_path, environment, monkeypatch, kind
):
    dataset_initialize(tmp_path / "data")
    file = environment / "config/laion_fmri/config.json"
    spoil(file, kind)
    with pytest.raises(
        InvalidQueryError, match=f"{re.escape(str(file))} is broken, or"
    ):
        get_data_dir()
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(tmp_path))
    assert get_data_dir() == str(tmp_path)


@needs_pipes
@pytest.mark.parametrize("kind", ["folder", "pipe", "empty file"])
def test_an_auth_file_that_holds_no_id_is_named(data_dir, kind):
    file = data_dir / ".laion_fmri/auth.json"
    file.parent.mkdir(parents=True)
    file.touch()
    spoil(file, kind)
    with pytest.warns(UserWarning, match=re.escape(str(file))):
        assert access_status()["status"] is None


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_saved_splits_that_cannot_be_used_are_read_anew(spoilt, server, kind):
    spoil(spoilt / ".laion_fmri/splits/shared/tau.json", kind)
    with pytest.raises(NotCachedError, match="splits tau of pool 'shared'"):
        fetch_laion_splits("tau", **OFFLINE)
