"""The data directory in use, and paths as users write them, wherever one is taken."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import unwritable

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
def config(environment):
    """The configuration, which the dataset's own package has, too."""
    file = environment / "config" / "laion_fmri" / "config.json"
    file.parent.mkdir(parents=True)
    return file


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder named by ``$SCRATCH``; the working directory is another, empty one."""
    folder, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("SCRATCH", str(folder))
    monkeypatch.chdir(elsewhere)
    yield folder
    assert list(elsewhere.iterdir()) == []


# --- The data directory in use ---------------------------------------------------


def test_precedence(tmp_path, monkeypatch, config, environment):
    def named(name):
        return str(tmp_path / name)

    assert get_data_dir() == f"{environment}/nilearn_data/laion_fmri"
    monkeypatch.setenv("NILEARN_DATA", named("nilearn"))
    assert get_data_dir() == named("nilearn/laion_fmri")
    config.write_text(json.dumps({"data_dir": named("theirs"), "other": 1}))
    assert get_data_dir() == named("theirs")
    assert dataset_initialize(named("saved")) == get_data_dir() == named("saved")
    assert Path(named("saved")).is_dir()
    assert json.loads(config.read_text()) == {"data_dir": named("saved"), "other": 1}
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", named("variable"))
    assert get_data_dir() == named("variable")
    assert get_data_dir(named("argument")) == named("argument")
    monkeypatch.chdir(tmp_path)
    assert get_data_dir("data") == named("data")
    with pytest.warns(UserWarning, match=r"LAION_FMRI_DATA_DIR is set.*/variable"):
        dataset_initialize(named("saved"))
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", named("saved"))
    warnings.simplefilter("error")
    dataset_initialize(named("saved"))


def test_nilearns_folder_that_has_the_data_or_can_be_written(tmp_path, monkeypatch):
    shared, own = tmp_path / "shared", tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, folder in (("NILEARN_SHARED_DATA", shared), ("NILEARN_DATA", own)):
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    with unwritable(shared, own, tmp_path):
        assert get_data_dir() == str(shared / "laion_fmri")
    with unwritable(shared, tmp_path):
        assert get_data_dir() == str(own / "laion_fmri")
    (shared / "laion_fmri").mkdir()
    with unwritable(shared, tmp_path):
        assert get_data_dir() == str(shared / "laion_fmri")


def test_initialize_where_one_may_not_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for advice, name in (("name another", "data"), ("LAION_FMRI_DATA_DIR", "json")):
        with (
            unwritable(tmp_path),
            pytest.raises(PermissionError, match=advice) as error,
        ):
            dataset_initialize(tmp_path / "data")
        assert error.value.filename.endswith(name)
        (tmp_path / "data").mkdir(exist_ok=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"data_dir": 3}', "\x00"])
def test_a_broken_configuration(config, tmp_path, text):
    config.write_text(text)
    with pytest.raises(InvalidQueryError, match=r"config\.json is broken"):
        get_data_dir()
    assert get_data_dir(tmp_path) == str(tmp_path)


def test_a_saved_directory_that_is_relative_or_has_variables(config, scratch):
    config.write_text('{"data_dir": "./laion"}')
    here = Path.cwd() / "laion"
    with pytest.warns(UserWarning, match=r"'./laion', which is relative") as said:
        assert get_data_dir() == str(here)
    assert all(str(path) in str(said[0].message) for path in (here, config))
    warnings.simplefilter("error")
    assert get_data_dir(scratch) == str(scratch)
    config.write_text('{"data_dir": "$SCRATCH/laion"}')
    assert get_data_dir() == str(scratch / "laion")
    config.write_text('{"data_dir": "$NOT_SET/laion"}')
    with pytest.raises(InvalidQueryError, match=r"config\.json.*NOT_SET is not set"):
        get_data_dir()


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("~/x", "home/x"),
        ("$SCRATCH/x", "scratch/x"),
        ("${SCRATCH}/x", "scratch/x"),
        (Path("$SCRATCH/x"), "scratch/x"),
    ],
)
def test_a_data_directory_is_named_in_any_way(
    scratch, environment, monkeypatch, path, meant
):
    meant = str(environment / "x" if meant.startswith("home") else scratch / "x")
    assert get_data_dir(path) == dataset_initialize(path) == get_data_dir() == meant
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(path))
    assert get_data_dir() == meant


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("$NOT_SET/x", "NOT_SET is not set"),
        ("${NOT_SET}", "NOT_SET is not set"),
        ('"/data/x"', "quotation marks"),
        ("'/data/x'", "quotation marks"),
        ("/data/x\r", r"/data/x\\r.*line ends"),
        ("a\tb", "control characters"),
        ("~no-such-user/x", "no user 'no-such-user'"),
        ("", "is empty"),
        (__file__, "is a file"),
    ],
)
def test_a_path_that_is_refused(scratch, monkeypatch, path, why):
    for call in (
        get_data_dir,
        dataset_initialize,
        lambda path: fetch_laion_fmri(data_dir=path),
    ):
        with pytest.raises(InvalidQueryError, match=f"data.dir.*{why}"):
            call(path)
    if path and path != __file__:
        monkeypatch.setenv("LAION_FMRI_DATA_DIR", path)
        with pytest.raises(InvalidQueryError, match=f"LAION_FMRI_DATA_DIR.*{why}"):
            get_data_dir()


# --- Paths of other calls --------------------------------------------------------


@pytest.fixture
def data(cached):
    return fetch_laion_fmri(rois="FFA1", sessions=1, mode="offline", verbose=0)


def test_paths_of_betas_and_masks(data, scratch, environment):
    betas = load_betas(data, rois="FFA1", verbose=0)
    betas.save("$SCRATCH/new/x.npz")
    assert (scratch / "new" / "x.npz").is_file()
    assert np.array_equal(load_betas("$SCRATCH/new/x.npz").data, betas.data)
    for call in (betas.save, load_betas):
        with pytest.raises(InvalidQueryError, match="path.*NOT_SET is not set"):
            call("$NOT_SET/x.npz")
    with pytest.raises(InvalidQueryError, match="path is empty"):
        betas.save("")
    shutil.copy(data.rois[0], environment / "x.nii.gz")
    n_voxels = int((nib.load(data.rois[0]).get_fdata() > 0).sum())
    betas = load_betas(data, rois="brain", mask_img="~/x.nii.gz", verbose=0)
    assert 0 < betas.data.shape[1] <= n_voxels
    with pytest.raises(InvalidQueryError, match=r"mask_img is '\"~/x.*quotation"):
        load_betas(data, mask_img='"~/x.nii.gz"', verbose=0)


def test_paths_of_reports(data, scratch, monkeypatch, capsys):
    report, file = make_report(data), scratch / "x.html"
    monkeypatch.setattr("webbrowser.open", lambda url: url)
    for write in (report.save_as_html, report.open_in_browser):
        write("$SCRATCH/x.html")
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


def test_paths_of_splits_and_of_a_bucket(
    server, data_dir, scratch, monkeypatch, environment
):
    (scratch / "shared").mkdir()
    (scratch / "shared" / "tau.json").write_text("{}")
    for path, said in (
        ("$SCRATCH", f"from {scratch} are.*tau"),
        ("$NOT_SET", "LAION_FMRI_SPLITS.*NOT_SET is not set"),
    ):
        monkeypatch.setenv("LAION_FMRI_SPLITS", path)
        with pytest.raises(LaionFmriError, match=said):
            fetch_laion_splits("tau", verbose=0)
    build_bucket("~/x", subjects=["sub-01"], n_sessions=1, n_trials=4)
    assert (environment / "x" / "participants.tsv").is_file()
