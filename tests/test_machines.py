"""What users' machines are like: logins kept for others, and no home directory."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import gate_fixtures
import pytest
from test_access import request

import laion_fmri_fetchers as lf
from laion_fmri_fetchers import exceptions as errors
from laion_fmri_fetchers.demo import AccessServer, Server, SplitServer, serve_splits

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test


@pytest.mark.parametrize("name", [".netrc", "variable"])
def test_logins_kept_for_other_servers_are_never_sent(
    access, data_dir, environment, monkeypatch, name
):
    sent = {}
    for kind in (Server, AccessServer, SplitServer):

        def noting(self, environ, respond=kind.respond):
            sent[environ["PATH_INFO"]] = environ.get("HTTP_AUTHORIZATION")
            return respond(self, environ)

        monkeypatch.setattr(kind, "respond", noting)
    file = environment / name
    file.write_text("default login ada password of_somebody\n")
    file.chmod(0o600)
    if name == "variable":
        monkeypatch.setenv("NETRC", str(file))
    lf.fetch_laion_fmri(rois="FFA1", max_images=1, verbose=0)
    request()
    stimuli = lf.fetch_laion_stimuli(verbose=0)
    with serve_splits(stimuli.metadata.index) as splits:
        monkeypatch.setenv("LAION_FMRI_SPLITS_URL", splits.url)
        lf.fetch_laion_splits("tau", verbose=0)
        lf.doctor()
    paths = " ".join(sent)
    for asked in ("FFA-1", "stimuli.h5", "/manifest", "/refresh", "tau.json"):
        assert asked in paths
    assert set(sent.values()) == {None}


@pytest.fixture
def homeless(monkeypatch):
    """Be a user without a home directory, as ``docker run --user 12345`` has."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


def test_what_needs_no_home_works_without_one(access, data_dir, homeless):
    assert lf.get_data_dir() == str(data_dir)
    assert lf.fetch_laion_fmri(rois="FFA1", max_images=1, verbose=0).images
    request()
    assert lf.fetch_laion_stimuli(verbose=0).archive
    lf.status()
    lf.login(access.grant(), verbose=0)
    assert lf.access_status()["source"] == str(data_dir / ".laion_fmri" / "auth.json")
    states = {point["point"]: point["state"] for point in lf.doctor()}
    assert states["data directory"] == states["request_id"] == "ok"


def test_without_a_home_errors_name_the_variable_to_set(
    tmp_path, homeless, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for call in (lf.get_data_dir, lf.status, lf.fetch_laion_fmri, lf.login):
        with pytest.raises(errors.InvalidQueryError, match="set LAION_FMRI_DATA_DIR"):
            call()
    with pytest.raises(errors.DataDirectoryError, match="LAION_FMRI_DATA_DIR.*XDG_"):
        lf.dataset_initialize(tmp_path / "data")
    with pytest.raises(errors.InvalidQueryError, match="no home directory"):
        lf.get_data_dir("~/laion_fmri")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert lf.dataset_initialize(tmp_path / "data") == lf.get_data_dir()


def test_the_package_is_imported_without_a_home():
    code = (
        "import pwd\n"
        "pwd.getpwuid = {}.__getitem__\n"  # as for the users of some containers
        "from laion_fmri_fetchers import *\n"
        "status()"
    )
    env = {**os.environ, "LAION_FMRI_DATA_DIR": "/nowhere"}
    del env["HOME"], env["XDG_CONFIG_HOME"]
    said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert "/nowhere" in said
