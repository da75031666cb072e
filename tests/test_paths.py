"""Paths as users write them, wherever a call or a variable takes one."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from laion_fmri_fetchers import (
    dataset_initialize,
    fetch_laion_fmri,
    fetch_laion_splits,
    get_data_dir,
    load_betas,
    make_report,
)
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import build_bucket
from laion_fmri_fetchers.exceptions import InvalidQueryError, LaionFmriError


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder named by ``$SCRATCH``; the working directory is another, empty one."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("SCRATCH", str(folder))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    yield folder
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def data(cached):
    return fetch_laion_fmri(rois="FFA1", sessions=1, mode="offline", verbose=0)


FORMS = {
    "~/x": "home/x",
    "$SCRATCH/x": "scratch/x",
    "${SCRATCH}/x": "scratch/x",
    Path("$SCRATCH/x"): "scratch/x",
}
REFUSED = {
    "$NOT_SET/x": "NOT_SET is not set",
    "${NOT_SET}": "NOT_SET is not set",
    '"/data/x"': "quotation marks",
    "'/data/x'": "quotation marks",
    "/data/x\r": r"/data/x\\r.*line ends",
    "a\tb": "control characters",
    "~no-such-user/x": "no user 'no-such-user'",
    "": "is empty",
}


@pytest.mark.parametrize(("path", "meant"), FORMS.items(), ids=str)
def test_a_data_directory_is_named_in_any_way(
    scratch, environment, monkeypatch, path, meant
):
    meant = str(environment / "x" if meant.startswith("home") else scratch / "x")
    assert get_data_dir(path) == meant
    assert dataset_initialize(path) == meant
    assert get_data_dir() == meant
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(path))
    assert get_data_dir() == meant


def test_a_saved_data_directory_may_have_variables(environment, scratch):
    file = environment / "config" / "laion_fmri" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"data_dir": "$SCRATCH/laion"}')
    assert get_data_dir() == str(scratch / "laion")
    file.write_text('{"data_dir": "$NOT_SET/laion"}')
    with pytest.raises(InvalidQueryError, match=r"config\.json.*NOT_SET is not set"):
        get_data_dir()


@pytest.mark.parametrize(("path", "why"), REFUSED.items())
def test_no_data_directory_is_made_of_a_refused_path(scratch, monkeypatch, path, why):
    for call in (
        get_data_dir,
        dataset_initialize,
        lambda path: fetch_laion_fmri(data_dir=path),
    ):
        with pytest.raises(InvalidQueryError, match=f"data_dir.*{why}"):
            call(path)
    if path:
        monkeypatch.setenv("LAION_FMRI_DATA_DIR", path)
        with pytest.raises(InvalidQueryError, match=f"LAION_FMRI_DATA_DIR.*{why}"):
            get_data_dir()


def test_betas_are_saved_and_loaded_by_a_path_with_variables(data, scratch):
    betas = load_betas(data, rois="FFA1", verbose=0)
    betas.save("$SCRATCH/new/x.npz")
    assert (scratch / "new" / "x.npz").is_file()
    assert np.array_equal(load_betas("$SCRATCH/new/x.npz").data, betas.data)
    for call in (betas.save, load_betas):
        with pytest.raises(InvalidQueryError, match="path.*NOT_SET is not set"):
            call("$NOT_SET/x.npz")
    with pytest.raises(InvalidQueryError, match="path is empty"):
        betas.save("")


def test_a_mask_is_named_by_a_path_in_the_home(data, scratch, environment):
    shutil.copy(data.rois[0], environment / "x.nii.gz")
    n_voxels = int((nib.load(data.rois[0]).get_fdata() > 0).sum())
    betas = load_betas(data, rois="brain", mask_img="~/x.nii.gz", verbose=0)
    assert 0 < betas.data.shape[1] <= n_voxels
    with pytest.raises(InvalidQueryError, match=r"mask_img is '\"~/x.*quotation"):
        load_betas(data, mask_img='"~/x.nii.gz"', verbose=0)


def test_a_report_is_written_to_a_path_with_variables(
    data, scratch, monkeypatch, capsys
):
    report, file = make_report(data), scratch / "x.html"
    report.save_as_html("$SCRATCH/x.html")
    file.unlink()
    monkeypatch.setattr("webbrowser.open", lambda url: url)
    report.open_in_browser("$SCRATCH/x.html")
    file.unlink()
    words = ["--subjects", "sub-01", "--rois", "FFA1", "--sessions", "1"]
    assert main(["make-report", *words, "--output", "$SCRATCH/x.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    assert file.is_file()
    with pytest.raises(InvalidQueryError, match="file_name is empty"):
        report.save_as_html("")
    for command in ("make-report", "fetch-betas"):
        assert main([command, "--rois", "FFA1", "--output", "$NOT_SET/x"]) == 2
        assert "--output is '$NOT_SET/x'" in capsys.readouterr().err


def test_splits_lie_in_a_folder_named_with_variables(
    server, data_dir, scratch, monkeypatch
):
    (scratch / "shared").mkdir()
    (scratch / "shared" / "tau.json").write_text("{}")
    monkeypatch.setenv("LAION_FMRI_SPLITS", "$SCRATCH")
    with pytest.raises(LaionFmriError, match=f"from {scratch} are.*tau"):
        fetch_laion_splits("tau", verbose=0)
    monkeypatch.setenv("LAION_FMRI_SPLITS", "$NOT_SET")
    with pytest.raises(InvalidQueryError, match="LAION_FMRI_SPLITS.*NOT_SET is not"):
        fetch_laion_splits("tau", verbose=0)


def test_a_demo_bucket_is_built_at_a_path_in_the_home(scratch, environment):
    build_bucket("~/x", subjects=["sub-01"], n_sessions=1, n_trials=4)
    assert (environment / "x" / "participants.tsv").is_file()
