"""What users' machines are like: logins kept for others, and no home directory."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import gate_fixtures
import pytest
from test_access import request

from laion_fmri_fetchers import (
    access_status,
    dataset_initialize,
    doctor,
    fetch_laion_fmri,
    fetch_laion_splits,
    fetch_laion_stimuli,
    get_data_dir,
    login,
    status,
)
from laion_fmri_fetchers.demo.server import Server
from laion_fmri_fetchers.demo.service import AccessServer
from laion_fmri_fetchers.demo.splits import SplitServer, serve_splits
from laion_fmri_fetchers.exceptions import DataDirectoryError, InvalidQueryError

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test


@pytest.fixture
def logins(monkeypatch):
    """The logins that servers were sent, by path."""
    sent = {}
    for kind in (Server, AccessServer, SplitServer):
        respond = kind.respond

        def noting(self, environ, respond=respond):
            sent[environ["PATH_INFO"]] = environ.get("HTTP_AUTHORIZATION")
            return respond(self, environ)

        monkeypatch.setattr(kind, "respond", noting)
    return sent


@pytest.mark.parametrize("name", [".netrc", "variable"])
def test_logins_kept_for_other_servers_are_never_sent(
    access, data_dir, environment, monkeypatch, logins, name
):
    file = environment / name
    file.write_text("default login ada password of_somebody\n")
    file.chmod(0o600)
    if name == "variable":
        monkeypatch.setenv("NETRC", str(file))
    fetch_laion_fmri(rois="FFA1", max_images=1, verbose=0)
    request()
    stimuli = fetch_laion_stimuli(verbose=0)
    with serve_splits(stimuli.metadata.index) as splits:
        monkeypatch.setenv("LAION_FMRI_SPLITS_URL", splits.url)
        fetch_laion_splits("tau", verbose=0)
        doctor()
    paths = " ".join(logins)
    for asked in ("FFA-1", "stimuli.h5", "/manifest", "/refresh", "tau.json"):
        assert asked in paths
    assert set(logins.values()) == {None}


@pytest.fixture
def homeless(monkeypatch):
    """Be a user without a home directory, as ``docker run --user 12345`` has."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_what_needs_no_home_works_without_one(access, data_dir, homeless):
    assert get_data_dir() == str(data_dir)
    assert fetch_laion_fmri(rois="FFA1", max_images=1, verbose=0).images
    request()
    assert fetch_laion_stimuli(verbose=0).archive
    status()
    request_id = access.grant()
    login(request_id, verbose=0)
    assert access_status()["source"] == str(data_dir / ".laion_fmri" / "auth.json")
    states = {point["point"]: point["state"] for point in doctor()}
    assert states["data directory"] == states["request_id"] == "ok"


def test_without_a_home_errors_name_the_variable_to_set(
    tmp_path, homeless, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for call in (get_data_dir, status, fetch_laion_fmri, login):
        with pytest.raises(InvalidQueryError, match="set LAION_FMRI_DATA_DIR"):
            call()
    with pytest.raises(DataDirectoryError, match="LAION_FMRI_DATA_DIR.*XDG_CONFIG"):
        dataset_initialize(tmp_path / "data")
    with pytest.raises(InvalidQueryError, match="no home directory"):
        get_data_dir("~/laion_fmri")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert dataset_initialize(tmp_path / "data") == get_data_dir()


def test_the_package_is_imported_without_a_home():
    code = (
        "import pwd\n"
        "pwd.getpwuid = {}.__getitem__\n"  # as for the users of some containers
        "from laion_fmri_fetchers import *\n"
        "status()"
    )
    env = {**os.environ, "LAION_FMRI_DATA_DIR": "/nowhere"}
    del env["HOME"], env["XDG_CONFIG_HOME"]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "/nowhere" in done.stdout
