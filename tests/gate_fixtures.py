"""The access service for tests, and a watch over what must not leak."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest

from laion_fmri_fetchers.demo import serve_access
from laion_fmri_fetchers.demo.server import UPLOADED
from laion_fmri_fetchers.layout.trees import ARCHIVE, STIMULUS_TABLE

TESTS = str(Path(__file__).parent)


class Secrets(list):
    """All ids that were given out in a test, and what presigned URLs hold."""

    def assert_not_in(self, text, where):
        for secret in [*self, "X-Amz-Signature", "X-Amz-Credential"]:
            assert secret not in text, f"a secret occurs in {where}"

    def assert_not_told_by(self, error):
        """Look through an error, its chain, and its traceback with local variables."""
        seen = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            self.assert_not_in(f"{error} {error!r} {error.args} {vars(error)}", "error")
            lines = traceback.TracebackException.from_exception(
                error, capture_locals=True
            )
            for frame in lines.stack:
                if not frame.filename.startswith(TESTS):
                    self.assert_not_in(f"{frame.locals}", f"locals of {frame.name}")
            error = error.__cause__ or error.__context__


@pytest.fixture
def secrets_of_test(environment, tmp_path, capfd, caplog, recwarn):
    """Collect secrets; at the end, grep for them in all that the test left."""
    caplog.set_level(logging.DEBUG)
    secrets = Secrets()
    yield secrets
    out, err = capfd.readouterr()
    secrets.assert_not_in(out + err, "the output")
    for phase in ("setup", "call"):
        for record in caplog.get_records(phase):
            secrets.assert_not_in(f"{record.getMessage()} {record.args}", "a log")
    for warning in recwarn:
        secrets.assert_not_in(str(warning.message), "a warning")
    for folder in (tmp_path, environment):
        for file in folder.rglob("*"):
            secrets.assert_not_in(str(file), "a file name")
            if file.is_file() and file.name != "auth.json":
                text = file.read_bytes().decode("latin-1")
                secrets.assert_not_in(text, file)


@pytest.fixture
def access(server, bucket_folder, monkeypatch, secrets_of_test):
    """The access service, in force; its files are as they were at its end."""
    files = (ARCHIVE, STIMULUS_TABLE)
    before = {key: (bucket_folder / key).read_bytes() for key in files}
    with serve_access(server) as service:
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", service.url)
        grant = service.grant

        def noted():
            secrets_of_test.append(grant())
            return secrets_of_test[-1]

        service.grant = noted
        yield service
    for key, data in before.items():
        server.put(key, data, last_modified=UPLOADED)
