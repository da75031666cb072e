"""What a data directory holds besides what this package downloaded for the dataset."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unreadable
from policies import set_policy

import laion_fmri_fetchers as laion
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.demo import serve_demo
from laion_fmri_fetchers.demo.splits import serve_splits

FORM = {
    **dict.fromkeys(("name", "institution"), "Ada Example"),
    "email": "ada@university.example",
    "research_purpose": "Encoding models of natural images",
    "acknowledge_privacy": True,
}
MASK = "derivatives/rois/sub-01/face/sub-01_space-T1w_res-1pt8_label-FFA1_mask.nii.gz"
IN_BUCKET = MASK.replace("FFA1", "FFA-1")
WRITING = {
    "fmri": lambda: laion.fetch_laion_fmri("sub-01", verbose=0),
    "all subjects": lambda: laion.fetch_laion_fmri("all", verbose=0),
    "overwrite": lambda: laion.fetch_laion_fmri("sub-01", mode="overwrite", verbose=0),
    "ids": lambda: laion.fetch_laion_fmri_ids([MASK], verbose=0),
    "betas": lambda: laion.fetch_laion_betas("sub-01", "FFA1", verbose=0),
    "surfaces": lambda: laion.fetch_laion_surfaces("sub-01", verbose=0),
    "stimulus metadata": lambda: laion.fetch_laion_stimulus_metadata(verbose=0),
    "stimuli": lambda: laion.fetch_laion_stimuli(dry_run=True, verbose=0),
    "embeddings": lambda: laion.fetch_laion_embeddings("CLIP", verbose=0),
    "captions": lambda: laion.fetch_laion_captions(verbose=0),
    "segmentations": lambda: laion.fetch_laion_segmentations(verbose=0),
    "splits": lambda: laion.fetch_laion_splits("tau", verbose=0),
    "subjects": laion.get_subjects,
    "ROIs": laion.get_rois,
    "description": laion.describe,
    "licence": laion.accept_license,
    "form": lambda: laion.request_stimulus_access(
        **FORM, accept_terms_version="1", verbose=0
    ),
    "login": lambda: laion.login("lfm_0123456789abcdefghijklmn", verbose=0),
    "repair": lambda: laion.verify_cache(repair=True, verbose=0),
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
        laion.fetch_laion_fmri("sub-01", verbose=0)
    return data_dir


def test_demo_data_stay_out_of_the_directory_saved_for_the_dataset(
    environment, server, monkeypatch, capsys
):
    with small_demo() as demo:
        saved = laion.dataset_initialize("~/laion_fmri")
        message = capsys.readouterr().err.splitlines()
        assert len(message) == 1
        assert "saved for later: until the demo stops" in message[0]
        assert laion.fetch_laion_fmri("sub-01", verbose=0).data_dir == demo.data_dir
        assert tree(saved) == {}
        monkeypatch.delenv("LAION_FMRI_DATA_DIR")
        betas = laion.fetch_laion_betas("sub-01", "FFA1", verbose=0)
        assert betas.data.size
    assert (Path(saved) / ".laion_fmri" / "license_accepted").exists()
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    with pytest.raises(errors.InvalidQueryError, match=f"{saved} holds synth"):
        laion.fetch_laion_betas("sub-01", "FFA1", verbose=0)
    with pytest.warns(UserWarning, match="synthetic data of a demo, not LAION-fMRI"):
        laion.fetch_laion_betas("sub-01", "FFA1", mode="offline", verbose=0)


@pytest.mark.parametrize("direction", ["others into a demo's", "a demo's into others"])
def test_data_of_a_demo_and_others_never_mix(
    request, demo, server, direction, monkeypatch
):
    """Whatever is called: it is refused, and nothing is written."""
    is_of_demo = direction.startswith("others")
    folder = request.getfixturevalue("demo_dir" if is_of_demo else "cached")
    said = "Delete that directory, or name ano"
    if not is_of_demo:
        request.getfixturevalue("in_demo")
        said = "must not mix with what is in the dat"
    (folder / MASK).write_bytes(b"cut")
    (folder / ".laion_fmri" / "license_accepted").unlink()
    before = tree(folder)
    for name, call in WRITING.items():
        with pytest.raises(errors.InvalidQueryError, match=said):
            call()
        assert tree(folder) == before, name
    if is_of_demo:
        monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
        request.getfixturevalue("no_network")
        with pytest.raises(
            errors.InvalidQueryError, match="holds synthetic data of a demo"
        ):
            laion.get_subjects()


@pytest.mark.parametrize(
    ("there", "is_of_dataset"),
    [
        ("derivatives/x.txt", True),
        ("sub-01/x", True),
        (".laion_fmri/x", True),
        ("analysis.py", False),
    ],
)
def test_files_of_other_tools_and_projects(data_dir, in_demo, there, is_of_dataset):
    (data_dir / there).parent.mkdir(parents=True)
    (data_dir / there).touch()
    if is_of_dataset:
        with pytest.raises(errors.InvalidQueryError, match="must not mix"):
            laion.fetch_laion_fmri("sub-01", verbose=0)
    else:
        assert laion.fetch_laion_fmri("sub-01", verbose=0).images


def test_demo_data_are_used_by_the_demo_and_another_demo(demo_dir, in_demo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laion.fetch_laion_fmri("sub-01", verbose=0)
        laion.fetch_laion_fmri("sub-01", mode="offline", verbose=0)
    with small_demo():
        assert laion.fetch_laion_fmri("sub-01", data_dir=demo_dir, verbose=0).images


def test_offline_demo_data_are_used_with_one_warning(demo_dir, no_network):
    with pytest.warns(UserWarning, match="holds synthetic data") as caught:
        laion.fetch_laion_fmri("all", mode="offline", verbose=0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        laion.fetch_laion_betas("sub-01", "FFA1", mode="offline", verbose=0)


def test_access_in_a_demo_marks_its_directory(data_dir, in_demo):
    form = {**FORM, "accept_terms_version": laion.current_terms_version()}
    laion.request_stimulus_access(**form, verbose=0)
    assert laion.fetch_laion_stimuli(verbose=0).archive


# --- Directories that other tools filled -----------------------------------------


@pytest.fixture
def mirror(bucket_folder, data_dir):
    """A copy of the bucket with keys as they are, as `aws s3 sync` makes it."""
    shutil.copytree(bucket_folder, data_dir)
    assert (data_dir / IN_BUCKET).exists()
    return data_dir


def test_a_mirror_is_used_offline_as_what_was_downloaded(
    mirror, cached_folder, no_network, capsys
):
    expected = laion.fetch_laion_fmri("all", data_dir=cached_folder, mode="offline")
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "No listing of")
    data = laion.fetch_laion_fmri("all", mode="offline", verbose=0)
    assert [m["id"] for m in data.rois_meta] == [m["id"] for m in expected.rois_meta]
    assert len(data.rois) > 40
    face = laion.fetch_laion_fmri("sub-01", "face", mode="offline", verbose=0)
    assert str(mirror / IN_BUCKET) in face.rois
    (meta,) = [m for m in face.rois_meta if m["id"] == MASK]
    assert meta["relative_path"] == meta["key"] == IN_BUCKET
    ours, theirs = (laion.load_betas(d, "sub-01", "face") for d in (face, expected))
    np.testing.assert_array_equal(ours.data, theirs.data)
    warnings.simplefilter("ignore")
    query = {"resolution": 16, "mode": "offline", "verbose": 0}
    (roi,) = laion.fetch_laion_fmri("sub-01", "FFA1", 1, **query).rois
    assert os.path.exists(roi)
    laion.status()
    assert "files" in capsys.readouterr().out


def test_a_mirror_is_not_downloaded_again(mirror, server, tmp_path, monkeypatch):
    online = laion.get_rois("sub-01", data_dir=tmp_path / "new")
    server.requests.clear()
    laion.fetch_laion_fmri("all", verbose=0)
    laion.fetch_laion_betas("sub-01", "face", verbose=0)
    laion.fetch_laion_surfaces("sub-01", verbose=0)
    laion.fetch_laion_captions(verbose=0)
    assert {key for _, key, _ in server.requests} == {""}
    assert not (mirror / MASK).exists()
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    warnings.simplefilter("error")
    surfaces = laion.fetch_laion_surfaces("sub-01", rois="face", verbose=0)
    betas = laion.fetch_laion_betas("sub-01", "face", verbose=0)
    assert "FFA1" in surfaces.roi_masks
    assert "FFA1" in betas.roi_masks
    assert laion.get_rois("sub-01") == online


def test_a_mirror_is_verified_overwritten_and_repaired_in_place(mirror, server):
    report = laion.verify_cache(online=True, verbose=0)
    assert set(report["status"]) == {"ok"}
    assert MASK in set(report["id"])
    whole = (mirror / IN_BUCKET).read_bytes()
    (mirror / IN_BUCKET).write_bytes(whole[:-1])
    laion.fetch_laion_fmri_ids([MASK], mode="overwrite", verbose=0)
    assert (mirror / IN_BUCKET).read_bytes() == whole
    (mirror / IN_BUCKET).write_bytes(whole[:-1])
    for repair, state in ((False, "truncated"), (True, "repaired")):
        report = laion.verify_cache(repair=repair, verbose=0).set_index("id")
        assert report.loc[MASK, "status"] == state
    assert (mirror / IN_BUCKET).read_bytes() == whole
    assert not (mirror / MASK).exists()


@pytest.mark.parametrize("mode", ["offline", "download_new"])
def test_of_two_spellings_of_a_name_the_clean_one_is_used(mirror, server, mode):
    query = {"mode": mode, "verbose": 0}
    shutil.copy(mirror / IN_BUCKET, mirror / MASK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "No listing of")
        data = laion.fetch_laion_fmri("sub-01", "FFA1", **query)
    assert data.rois == [str(mirror / MASK)]
    (mirror / IN_BUCKET).write_bytes(b"other")
    with pytest.warns(UserWarning, match="label-FFA-1.* and .*label-FFA1.* differ"):
        data = laion.fetch_laion_fmri("sub-01", "FFA1", **query)
    assert data.rois == [str(mirror / MASK)]


# --- Files beside those of the bucket --------------------------------------------


@pytest.fixture
def beside(cached):
    """The cached files, and copies of some under names that are not in the bucket."""
    glm = cached / "derivatives/glmsingle-tedana/sub-01"
    (image,) = glm.glob("ses-01/func/*Betas_statmap.nii.gz")
    (ceiling,) = glm.glob("*Noiseceiling4rep_statmap.nii.gz")
    shutil.copy(cached / MASK, cached / MASK.replace("FFA1", "FFA1old"))
    shutil.copy(ceiling, glm / "ses-01" / ceiling.name)
    other = Path(str(image).replace("ses-01", "ses-09"))
    other.parent.mkdir(parents=True)
    shutil.copy(image, other)
    return cached


@pytest.mark.parametrize("mode", ["offline", "download_new"])
def test_what_the_bucket_does_not_list_joins_with_a_line_that_names_it(
    beside, server, mode
):
    with pytest.warns(UserWarning, match="not in the bucket's listing") as caught:
        data = laion.fetch_laion_fmri("sub-01", "face", mode=mode, verbose=0)
    text = "\n".join(str(one.message) for one in caught)
    assert "2 selected files on disk" in text
    assert MASK.replace("FFA1", "FFA1old") in text
    assert "ses-09/func/sub-01_ses-09_task-images_space-T1w_stat-effect" in text
    assert {m["roi"] for m in data.rois_meta} >= {"FFA1", "FFA1old"}
    with pytest.warns(UserWarning, match="1 selected file on disk.*FFA1old"):
        laion.fetch_laion_betas("sub-01", "face", 1, mode=mode, verbose=0)


def test_surfaces_name_masks_that_the_bucket_does_not_list(mirror, server):
    name = "derivatives/rois/sub-01/face/sub-01_hemi-L_space-fsnative_label-{}_mask"
    for extension in (".func.gii", ".label"):
        old = mirror / f"{name.format('FFA-1')}{extension}"
        shutil.copy(old, mirror / f"{name.format('mine')}{extension}")
    with pytest.warns(UserWarning, match="not in the bucket's listing: .*label-mine"):
        laion.fetch_laion_surfaces("sub-01", rois="face", verbose=0)


def test_of_files_in_folders_that_were_never_listed_the_folders_are_named(beside):
    shutil.rmtree(beside / ".laion_fmri" / "listings")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        laion.fetch_laion_fmri("sub-01", "face", [1, 2], mode="offline", verbose=0)
    (warned,) = caught
    assert str(warned.message).startswith("No listing of derivatives/")


# --- The bucket does not answer --------------------------------------------------

READING = {
    **{name: WRITING[name] for name in list(WRITING)[: list(WRITING).index("licence")]},
    "plan of betas": lambda: laion.fetch_laion_betas(
        "sub-01", "FFA1", dry_run=True, verbose=0
    ),
    "level": laion.inspect_bucket,
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
        with pytest.raises(errors.BucketError, match="no byte for 2 s"):
            laion.fetch_laion_fmri("sub-01", timeout=2, verbose=0)
        silent.setblocking(False)
        asked = []
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = silent.accept()
                asked.append(client.recv(2**16).partition(b"\r\n")[0])
                client.close()
    assert len(asked) == len(set(asked)) > 0


# --- Something else in the place of a file ---------------------------------------

OFFLINE = {"mode": "offline", "verbose": 0}


def offline(name, *args, **kwargs):
    return functools.partial(getattr(laion, name), *args, **OFFLINE, **kwargs)


def load_offline():
    laion.load_betas(laion.fetch_laion_fmri("sub-01", "FFA1", 1, **OFFLINE))


FUNC = "glmsingle-tedana/sub-01/ses-01/func"
TABLE = f"{FUNC}/*_trials.tsv"
CEILING = {"nc_threshold": 1, "noise_ceiling": "4rep"}
READERS = {
    TABLE: offline("fetch_laion_fmri", "sub-01", None, 1, trial_filter={"n_reps": 12}),
    MASK: offline("fetch_laion_betas", "sub-01", "FFA1"),
    "glmsingle-tedana/sub-01/*ceiling4rep_statmap.nii.gz": offline(
        "fetch_laion_betas", "sub-01", "face", **CEILING
    ),
    "lh.pial": offline("fetch_laion_surfaces", "sub-01"),
    "*-L_*FFA1*.gii": offline("fetch_laion_surfaces", "sub-01", rois="FFA1"),
    "task-images_metadata.csv": offline("fetch_laion_stimulus_metadata"),
    "*captions.csv": offline("fetch_laion_captions"),
    "stimuli/*desc-CLIP_embeddings.h5": offline("fetch_laion_embeddings", "CLIP"),
    "*segmentations_metadata.csv": offline("fetch_laion_segmentations"),
}
CLOSED = {
    "participants.tsv": offline("fetch_laion_fmri", "sub-01"),
    "anat/sub-01_*1pt8_desc-brain_mask.nii.gz": load_offline,
    f"{FUNC}/*Betas_statmap.nii.gz": load_offline,
}
KINDS = ["folder", "pipe", "link to nowhere", "empty file"]
needs_pipes = pytest.mark.skipif(os.name == "nt", reason="needs named pipes")


@pytest.fixture(scope="module")
def clean_folder(filled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "laion_fmri"
    shutil.copytree(filled, folder)
    for file in list(folder.rglob("*label-FFA-1*")):
        file.rename(str(file).replace("FFA-1", "FFA1"))
    return folder


@pytest.fixture
def clean(clean_folder, monkeypatch):
    """A data directory with all files of the bucket under clean names."""
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(clean_folder))
    return clean_folder


@contextlib.contextmanager
def spoilt(file, kind):
    """Put something else in the place of a file, until the end of the block."""
    kept = file.with_name(f".{file.name}.kept")
    file.rename(kept)
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to nowhere":
        file.symlink_to(file.parent / "nowhere")
    else:
        file.touch()
    try:
        yield
    finally:
        file.rmdir() if kind == "folder" else file.unlink()
        kept.rename(file)


@needs_pipes
@pytest.mark.parametrize("pattern", READERS)
def test_something_else_in_the_place_of_a_file_is_an_error(clean, pattern):
    file = min(clean.rglob(pattern))
    for kind in KINDS:
        with spoilt(file, kind), pytest.raises(errors.LaionFmriError) as caught:
            READERS[pattern]()
        is_missing_ceiling = "ceiling" in pattern and kind != "empty file"
        name = "noise ceiling" if is_missing_ceiling else file.name
        assert name in str(caught.value), kind


@pytest.mark.skipif(os.name == "nt", reason="needs permissions")
@pytest.mark.parametrize("pattern", [*READERS, *CLOSED])
def test_a_file_that_this_user_may_not_read_is_named(clean, pattern):
    file = min(clean.rglob(pattern))
    with unreadable(file), pytest.raises(errors.DataDirectoryError) as caught:
        (READERS | CLOSED)[pattern]()
    assert f"{file} cannot be read: permission denied" in str(caught.value)


@needs_pipes
@pytest.mark.parametrize("kind", KINDS)
def test_something_else_in_the_place_of_a_file_of_ours(
    clean, server, environment, monkeypatch, kind
):
    """What can be done without is; the file is named."""
    with (
        spoilt(min(clean.rglob(TABLE)), kind),
        contextlib.suppress(errors.CorruptImageError),
    ):
        data = laion.fetch_laion_fmri("sub-01", None, 2, **OFFLINE)
        assert kind != "empty file"
        assert data.trials["repetition"].isna().all()
    with (
        spoilt(clean / ".laion_fmri/splits/shared/tau.json", kind),
        pytest.raises(errors.NotCachedError, match="splits tau of pool 'shared'"),
    ):
        laion.fetch_laion_splits("tau", **OFFLINE)
    listing = clean / ".laion_fmri/listings/derivatives%2Frois%2Fsub-01%2F.json"
    auth = clean / ".laion_fmri/auth.json"
    auth.touch()
    if kind != "link to nowhere":
        with (
            spoilt(listing, kind),
            pytest.warns(UserWarning, match=f"{listing} cannot be used"),
        ):
            laion.fetch_laion_fmri("sub-01", "face", **OFFLINE)
        with spoilt(auth, kind), pytest.warns(UserWarning, match=str(auth)):
            assert laion.access_status()["status"] is None
    auth.unlink()
    monkeypatch.delenv("LAION_FMRI_DATA_DIR")
    laion.dataset_initialize(clean)
    config = environment / "config/laion_fmri/config.json"
    with (
        spoilt(config, kind),
        pytest.raises(errors.InvalidQueryError, match=f"{config} is broken, or"),
    ):
        laion.get_data_dir()
