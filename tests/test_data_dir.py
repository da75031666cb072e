"""What a data directory holds besides what this package downloaded for the dataset."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from laion_fmri_fetchers import (
    accept_license,
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
    get_rois,
    get_subjects,
    login,
    request_stimulus_access,
    verify_cache,
)
from laion_fmri_fetchers.demo import serve_demo
from laion_fmri_fetchers.exceptions import InvalidQueryError

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
        (demo_dir / MASK).unlink()
    (demo_dir / ".laion_fmri" / "license_accepted").unlink()
    before = tree(demo_dir)
    with pytest.raises(InvalidQueryError, match="Delete that directory, or name ano"):
        WRITING[name]()
    assert tree(demo_dir) == before


@pytest.mark.parametrize("name", WRITING)
def test_no_demo_data_are_written_beside_others(cached, in_demo, name):
    if name == "repair":
        (cached / MASK).unlink()
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
