"""What users' machines are like: logins kept for others, no home, odd settings."""

from __future__ import annotations

import gate_fixtures
import pytest
from test_access import request

from laion_fmri_fetchers import (
    doctor,
    fetch_laion_fmri,
    fetch_laion_splits,
    fetch_laion_stimuli,
)
from laion_fmri_fetchers.demo.server import Server
from laion_fmri_fetchers.demo.service import AccessServer
from laion_fmri_fetchers.demo.splits import SplitServer, serve_splits

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test


@pytest.fixture
def logins(monkeypatch):
    """The logins that servers were sent, by path."""
    sent = {}
    for kind in (Server, AccessServer, SplitServer):
        answer = kind.__call__

        def noting(self, environ, start_response, answer=answer):
            sent[environ["PATH_INFO"]] = environ.get("HTTP_AUTHORIZATION")
            return answer(self, environ, start_response)

        monkeypatch.setattr(kind, "__call__", noting)
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
    for asked in ("FFA-1", "stimuli.h5", "/manifest", "/refresh", "tau.json", "/terms"):
        assert asked in paths
    assert set(logins.values()) == {None}
