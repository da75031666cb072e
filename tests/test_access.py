"""The access service: the form, the cached request_id, its errors, and no leaks."""

from __future__ import annotations

import _thread
import builtins
import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
import stat
import time
from pathlib import Path

import fault_server as faults
import gate_fixtures
import pandas as pd
import pytest
import requests
from conftest import unreadable
from fault_server import FaultServer, always
from policies import set_policy

from laion_fmri_fetchers import accept_license
from laion_fmri_fetchers.access import account, gate, service
from laion_fmri_fetchers.access.account import (
    access_status,
    login,
    logout,
    request_stimulus_access,
)
from laion_fmri_fetchers.access.gate import (
    current_terms_version,
    open_gate,
    published_archive,
    saved_archive,
)
from laion_fmri_fetchers.access.service import SecretText
from laion_fmri_fetchers.cache.state import auth_file, official_auth_file
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_access
from laion_fmri_fetchers.demo.service import MANIFEST, REFRESH, REQUEST
from laion_fmri_fetchers.exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessPendingError,
    AccessRateLimitedError,
    AccessRequiredError,
    AccessRevokedError,
    AccessServiceError,
    DiskSpaceError,
    DownloadError,
    InvalidQueryError,
    NotCachedError,
    StimulusAccessError,
    TermsOutdatedError,
)
from laion_fmri_fetchers.fetchers.stimuli import fetch_laion_stimuli
from laion_fmri_fetchers.layout.trees import ARCHIVE, GATED, STIMULUS_TABLE
from laion_fmri_fetchers.stimuli.archive import load_stimuli

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test
pytestmark = pytest.mark.usefixtures("secrets_of_test")

FORM = {
    "name": "Ada Example",
    "email": "ada@university.example",
    "institution": "University of Examples",
    "research_purpose": "Encoding models of natural images",
    "accept_terms_version": "1.0",
    "acknowledge_privacy": True,
}
OFFICIAL = {"email": "ada@university.example", "saved_at": "2026-01-01T00:00:00+00:00"}


def fetch(*args, **kwargs):
    return fetch_laion_stimuli(*args, **{"verbose": 0, **kwargs})


def request(**kwargs):
    request_stimulus_access(**{**FORM, "timeout": 5, **kwargs})


def calls(service, path):
    """Return the bodies of the calls of a path of the access service."""
    return [body for _, at, body in service.requests if at == path]


def forms(service):
    return calls(service, REQUEST)


def refreshes(service):
    return calls(service, REFRESH)


def auth_of(data_dir):
    return json.loads((data_dir / ".laion_fmri/auth.json").read_text())


def files_of(folder):
    """Return path -> content of all files of a data directory, listings aside."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.parent.name != "listings"
    }


def save_official(file, request_id, server_url, **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"server_url": server_url, "request_id": request_id, **OFFICIAL, **more}
    file.write_text(json.dumps(content, indent=2))


@pytest.fixture
def at_terminal(monkeypatch):
    """Answer questions with given lines; return what was asked."""
    asked = []

    def answer_with(*lines):
        left = list(lines)

        def answer(prompt=""):
            asked.append(prompt)
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr(account, "can_ask", lambda: True)
        monkeypatch.setattr(builtins, "input", answer)
        return asked

    return answer_with


# ---------------------------------------------------------------- on a shell


def test_from_the_request_to_the_images_on_a_shell(
    access, data_dir, capfd, secrets_of_test, monkeypatch
):
    """A request that waits for approval is no failure: it was sent."""
    access.approves = False
    form = {k: v for k, v in FORM.items() if k != "acknowledge_privacy"}
    words = [w for k, v in form.items() for w in (f"--{k.replace('_', '-')}", v)]
    assert main(["request-access", *words, "--acknowledge-privacy"]) == 0
    out, _ = capfd.readouterr()
    assert "form was sent" in out
    assert "waits for approval" in out
    assert main(["fetch-stimuli", "-q"]) == 1
    assert "waits for approval" in capfd.readouterr().err

    access.approve()
    assert main(["fetch-stimuli", "--dry-run", "--where", "n_reps=12"]) == 0
    out, err = capfd.readouterr()
    assert out.split("\t")[1:] == ["missing", f"{ARCHIVE}\n"]
    assert "would be downloaded" in err
    assert main(["fetch-stimuli", "-q", "--where", "n_reps=12", "--extract"]) == 0
    paths = [Path(line) for line in capfd.readouterr().out.splitlines()]
    assert all(path.is_file() for path in paths)
    assert len(paths) > 2

    assert main(["logout"]) == 0
    assert main(["fetch-stimuli", "-q", "--mode", "offline"]) == 1
    monkeypatch.setattr(account, "can_ask", lambda: True)
    monkeypatch.setattr(account.getpass, "getpass", lambda prompt: secrets_of_test[0])
    assert main(["login"]) == 0
    assert main(["fetch-stimuli", "-q", "--mode", "offline"]) == 0
    secrets_of_test.assert_not_in("".join(capfd.readouterr()), "the output")


# ---------------------------------------------------------------- the gate


@pytest.mark.parametrize("mode", ["download_new", "overwrite", "offline"])
def test_without_an_id_nothing_is_asked_for(access, server, data_dir, mode):
    with pytest.raises(AccessRequiredError) as caught:
        fetch(mode=mode)

    assert "request_stimulus_access" in str(caught.value)
    assert "request-access" in str(caught.value)
    assert access.requests == []
    assert server.requests == []


def test_request_approved_at_once_opens_the_gate(access, data_dir, bucket_folder):
    request()
    stimuli = fetch()

    assert Path(stimuli.archive).read_bytes() == (bucket_folder / ARCHIVE).read_bytes()
    assert access_status()["status"] == "approved"
    (form,) = forms(access)
    assert form == {
        "name": FORM["name"],
        "email": FORM["email"],
        "institution": FORM["institution"],
        "pi_or_supervisor": None,
        "research_purpose": FORM["research_purpose"],
        "accepted_terms": True,
        "acknowledged_privacy": True,
        "terms_version": "1.0",
        "source": "cli",
    }


@pytest.mark.parametrize("pending_form", ["202", "status", "no files"])
def test_pending_then_approved_without_a_new_form(
    access, server, data_dir, secrets_of_test, pending_form
):
    access.approves, access.pending_form = False, pending_form
    with pytest.raises(AccessPendingError, match="no new form") as caught:
        request()
    secrets_of_test.assert_not_told_by(caught.value)
    assert access_status()["status"] == "pending"

    with pytest.raises(AccessPendingError) as caught:
        fetch()
    secrets_of_test.assert_not_told_by(caught.value)
    with pytest.raises(AccessPendingError):
        request()
    assert not any(key in GATED for _, key, _ in server.requests)

    access.approve()
    stimuli = fetch()
    assert len(stimuli.metadata) > 0
    assert access_status()["status"] == "approved"
    assert len(forms(access)) == 1


def test_a_pending_id_does_not_open_the_gate_offline(access, data_dir, no_network):
    save_official(auth_file(data_dir), "lfm_x", access.url, status="pending")

    with pytest.raises(AccessPendingError, match="later, online"):
        fetch(mode="offline")


def test_a_pending_id_is_asked_about_though_all_is_on_disk(access, data_dir):
    request()
    fetch()
    auth = {**auth_of(data_dir), "status": "pending"}
    auth_file(data_dir).write_text(json.dumps(auth))
    n = len(refreshes(access))

    fetch()
    assert len(refreshes(access)) == n + 1
    assert access_status()["status"] == "approved"


def test_urls_are_asked_for_only_when_something_is_fetched(access, server, data_dir):
    request()
    first = fetch()
    n = len(refreshes(access))
    server.requests.clear()

    again = fetch()
    assert len(refreshes(access)) == n
    assert {key for _, key, _ in server.requests} == {""}
    pd.testing.assert_frame_equal(again.metadata, first.metadata)


def test_moved_to_a_machine_without_network(
    access, data_dir, tmp_path, monkeypatch, request
):
    request_stimulus_access(**FORM, verbose=0)
    online = fetch(unique_or_shared="shared", extract=True)
    moved = tmp_path / "elsewhere" / "data"
    shutil.move(data_dir, moved)
    for name in ("LAION_FMRI_ACCESS_URL", "LAION_FMRI_BUCKET_URL"):
        monkeypatch.delenv(name)
    request.getfixturevalue("no_network")

    offline = fetch(
        unique_or_shared="shared", extract=True, mode="offline", data_dir=moved
    )
    assert set(offline) == set(online)
    pd.testing.assert_frame_equal(offline.metadata, online.metadata)
    there = [str(moved) + path[len(str(data_dir)) :] for path in online.images]
    assert offline.images == there
    assert all(os.path.exists(path) for path in offline.images)
    assert (load_stimuli(offline) == load_stimuli(offline)).all()
    for key in ("query", "description", "failed"):
        assert offline[key] == online[key]


def test_offline_without_the_files(access, data_dir):
    request()

    with pytest.raises(NotCachedError, match="metadata"):
        fetch(mode="offline")
    fetch(max_images=0)
    with pytest.raises(NotCachedError, match=r"stimuli\.h5"):
        fetch(mode="offline")


# ---------------------------------------------------------------- each error

REFRESH_ERRORS = {
    "revoked": (
        (403, {}, {"detail": "This request_id has been revoked."}),
        AccessRevokedError,
        "revoked",
    ),
    "unknown": (
        (404, {}, {"detail": "request_id not found"}),
        AccessNotFoundError,
        "does not know",
    ),
    "busy": (
        (429, {"Retry-After": "7"}, {"detail": "Rate limit exceeded"}),
        AccessRateLimitedError,
        "in 7 s",
    ),
    "field": (
        (
            422,
            {},
            {"detail": ["?", {"loc": ["body", "request_id"], "msg": "too short"}]},
        ),
        AccessFormError,
        "request_id: too short",
    ),
    "server error": ((500, {}, b"oops"), AccessServiceError, "500"),
    "denied": ((403, {}, {"detail": "Forbidden"}), AccessServiceError, "Forbidden"),
    "denied, with words": (
        (403, {}, {"detail": {"error": "blocked", "message": "Not from there"}}),
        AccessServiceError,
        r"\(Not from there\)",
    ),
    "no json": ((200, {}, b"<html>hello</html>"), AccessServiceError, "not a JSON"),
    "other files": (
        (200, {}, {"files": [{"name": "a.h5", "url": "https://x.org/a"}, 3]}),
        AccessServiceError,
        "sha256",
    ),
    "other shape": ((200, {}, {"files": {"a": 1}}), AccessServiceError, "sha256"),
    "pending": ((202, {}, {}), AccessPendingError, "waits for approval"),
    "pending, with files": (
        (202, {}, {"files": [{"name": "a.h5"}]}),
        AccessPendingError,
        "waits for approval",
    ),
    "pending, no body": ((202, {}, b""), AccessPendingError, "waits for approval"),
}


@pytest.mark.parametrize("name", REFRESH_ERRORS)
def test_each_error_of_the_service(
    access, data_dir, monkeypatch, secrets_of_test, name
):
    answer, kind, said = REFRESH_ERRORS[name]
    set_policy(monkeypatch, first_wait=0.01)
    request()
    fetch(max_images=0)
    before = files_of(data_dir)
    assert STIMULUS_TABLE in before
    access.answers[REFRESH] = answer

    with pytest.raises(kind, match=said) as caught:
        fetch()
    assert isinstance(caught.value, StimulusAccessError)
    secrets_of_test.assert_not_told_by(caught.value)
    assert files_of(data_dir) == before

    access.answers.clear()
    assert fetch().archive


def test_rate_limit_says_when_to_try_again(access, data_dir):
    request()
    access.answers[REFRESH] = (429, {"Retry-After": "90"}, {"detail": "slow down"})
    with pytest.raises(AccessRateLimitedError) as caught:
        fetch()
    assert caught.value.retry_after == 90

    access.answers[REFRESH] = (429, {}, {"detail": "slow down"})
    with pytest.raises(AccessRateLimitedError, match="later") as caught:
        fetch()
    assert caught.value.retry_after is None


def test_service_unreachable(access, data_dir, monkeypatch, secrets_of_test):
    set_policy(monkeypatch, first_wait=0.01)
    request()
    access.stop()

    with pytest.raises(AccessServiceError, match="connection refused") as caught:
        fetch(timeout=2)
    assert "offline" in str(caught.value)
    secrets_of_test.assert_not_told_by(caught.value)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (faults.wait(5.0), "no byte for 0.3 s"),
        (faults.short(3), "the body ended early"),
        (faults.fine, None),
    ],
)
def test_a_service_that_gives_no_answer(monkeypatch, fault, said):
    set_policy(monkeypatch, first_wait=0.01)
    with FaultServer() as service:
        service.put("api/v1/manifest", b'{"current_terms_version": "3"}')
        service.faults["api/v1/manifest"] = [always(fault)]
        url = service.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", url)
        if said is None:
            assert current_terms_version(timeout=5) == "3"
            return
        with pytest.raises(AccessServiceError) as caught:
            current_terms_version(timeout=0.3)
    assert f"{url}{MANIFEST} gives no answer ({said}" in str(caught.value)


def test_a_service_without_tls(access, monkeypatch):
    url = access.url.replace("http://", "https://")
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", url)
    set_policy(monkeypatch, first_wait=0.01)
    with pytest.raises(AccessServiceError, match=r"\(TLS fails: "):
        current_terms_version(timeout=5)
    assert access.requests == []


def test_a_short_failure_of_the_service_passes(access, data_dir, monkeypatch):
    set_policy(monkeypatch, first_wait=0.01)
    request()
    left = [(503, {}, b"busy"), (502, {}, b"busy")]
    access.answers[REFRESH] = lambda body: left.pop() if left else None

    assert fetch().archive


def test_terms_outdated_accepted_in_a_browser(access, data_dir, secrets_of_test):
    request()
    access.terms_version = "2.0"

    with pytest.raises(TermsOutdatedError) as caught:
        fetch()
    assert caught.value.accept_url == f"{access.url}/terms/accept"
    assert repr(caught.value.terms_version) == "'2.0'"
    assert caught.value.accept_url in str(caught.value)
    assert "2.0" in str(caught.value)
    secrets_of_test.assert_not_told_by(caught.value)

    access.accept_terms(secrets_of_test[0])
    assert fetch().archive
    assert len(forms(access)) == 1


def test_terms_outdated_accepted_through_the_form(access, data_dir, secrets_of_test):
    request()
    access.terms_version = "2.0"
    with pytest.raises(TermsOutdatedError):
        fetch()

    request(accept_terms_version="2.0")
    assert fetch().archive
    assert auth_of(data_dir)["request_id"] == secrets_of_test[1]
    assert forms(access)[1]["terms_version"] == "2.0"


def test_an_accept_url_that_holds_the_id_is_cut(access, data_dir, secrets_of_test):
    request()
    url = f"{access.url}/terms/accept?id={secrets_of_test[0]}"
    detail = {
        "error": "terms_outdated",
        "accept_url": url,
        "current_terms_version": "2.0",
    }
    access.answers[REFRESH] = (403, {}, {"detail": detail})

    with pytest.raises(TermsOutdatedError) as caught:
        fetch()
    assert caught.value.accept_url == f"{access.url}/terms/accept"
    secrets_of_test.assert_not_told_by(caught.value)


def test_an_id_that_the_service_repeats_is_not_told(access, data_dir, secrets_of_test):
    request()
    own = secrets_of_test[0]
    told = [{"loc": ["body", "request_id"], "msg": f"{own} is odd", "input": own}]
    url = "see https://bucket.example.org/a?X-Amz-Signature=1"
    for detail in (f"{own} was revoked", f"unknown {own}", told, url):
        for status in (403, 404, 422, 429, 400):
            access.answers[REFRESH] = (status, {}, {"detail": detail})
            with pytest.raises(StimulusAccessError) as caught:
                fetch()
            secrets_of_test.assert_not_told_by(caught.value)


def test_an_id_of_another_form_is_not_told_either(
    access, data_dir, monkeypatch, secrets_of_test
):
    secrets_of_test.append("kept/of+another=form")
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", secrets_of_test[0])
    access.answers[REFRESH] = lambda body: (
        404,
        {},
        {"detail": f"{body['request_id']} is not known"},
    )
    with pytest.raises(AccessNotFoundError, match="is not known") as caught:
        fetch()
    secrets_of_test.assert_not_told_by(caught.value)


# ---------------------------------------------------------------- URLs in mid-download


@pytest.fixture
def large_archive(access, server, bucket_folder):
    """An archive that takes several reads; HDF5 ignores what follows its end."""
    data = (bucket_folder / ARCHIVE).read_bytes() + os.urandom(6 * 2**20)
    server.put(ARCHIVE, data)
    return data


class Expiring:
    """Cut the first body of the archive in the middle, and let its URL expire."""

    def __init__(self, access, data):
        self.access, self.data, self.ranges = access, data, []

    def __call__(self, environ):
        if not environ["RAW_URI"].partition("?")[0].endswith("stimuli.h5"):
            return None
        self.ranges.append(environ.get("HTTP_RANGE", ""))
        if len(self.ranges) > 1:
            return None
        self.access.expire()
        headers = {"Content-Length": str(len(self.data))}
        return 200, headers, self.data[: len(self.data) // 2]


def test_expiry_in_mid_download_resumes(access, data_dir, large_archive):
    request()
    access.objects = expiring = Expiring(access, large_archive)

    stimuli = fetch(n_connections=1)
    assert Path(stimuli.archive).read_bytes() == large_archive
    assert len(refreshes(access)) == 2
    first, second = expiring.ranges
    assert first == ""
    resumed_at = int(second.removeprefix("bytes=").partition("-")[0])
    assert resumed_at > len(large_archive) // 3


def test_a_url_refused_after_renewal_is_an_error(
    access, server, data_dir, large_archive, secrets_of_test
):
    request()
    fetch(max_images=0)
    n = len(refreshes(access))
    server.requests.clear()
    access.objects = lambda environ: (
        403,
        {},
        b"<Error><Code>AccessDenied</Code></Error>",
    )

    with pytest.raises(DownloadError, match="403") as caught:
        fetch(n_connections=1)
    secrets_of_test.assert_not_told_by(caught.value)
    assert len(refreshes(access)) == n + 2
    assert [key for _, key, _ in server.requests] == ["", ARCHIVE, ARCHIVE]
    assert not (data_dir / ARCHIVE).exists()


def test_an_error_of_the_service_in_mid_download(
    access, data_dir, large_archive, secrets_of_test
):
    request()
    fetch(max_images=0)
    access.objects = Expiring(access, large_archive)
    answers = [None, (403, {}, {"detail": "revoked"})]
    access.answers[REFRESH] = lambda body: answers.pop(0)

    with pytest.raises(AccessRevokedError) as caught:
        fetch(n_connections=1)
    secrets_of_test.assert_not_told_by(caught.value)
    assert not (data_dir / ARCHIVE).exists()

    access.answers.clear()
    access.objects = lambda environ: None
    assert Path(fetch(n_connections=1).archive).read_bytes() == large_archive


def test_a_file_that_changes_in_mid_download(access, server, data_dir, large_archive):
    request()
    expiring = Expiring(access, large_archive)

    def objects(environ):
        answer = expiring(environ)
        if answer:
            server.put(ARCHIVE, large_archive + b"more")
        return answer

    access.objects = objects
    with pytest.raises(DownloadError, match="bytes of it instead of"):
        fetch(n_connections=1)
    assert not (data_dir / ARCHIVE).exists()
    access.objects = None
    assert Path(fetch().archive).read_bytes() == large_archive + b"more"


def test_a_sha256_mismatch_leaves_no_file(access, data_dir, secrets_of_test):
    request()

    def tampered(body):
        status, headers, content = access._refresh(body)
        for one in content["files"]:
            one["sha256"] = "0" * 64
        return status, headers, content

    access.answers[REFRESH] = tampered
    with pytest.raises(DownloadError, match="SHA-256") as caught:
        fetch()
    secrets_of_test.assert_not_told_by(caught.value)
    assert not (data_dir / ARCHIVE).exists()
    assert saved_archive(str(data_dir)) is None


# ---------------------------------------------------------------- the form


def test_an_honoured_id_sends_no_form(access, data_dir, capfd):
    request()
    request()
    assert len(forms(access)) == 1
    assert "no form was sent" in capfd.readouterr().err

    request(renew=True)
    assert len(forms(access)) == 2


@pytest.mark.parametrize("ending", ["revoke", "forget"])
def test_an_id_that_is_not_honoured_is_replaced(
    access, data_dir, secrets_of_test, ending
):
    request()
    getattr(access, ending)(secrets_of_test[0])

    request()
    assert auth_of(data_dir)["request_id"] == secrets_of_test[1]


def test_missing_fields_are_named_where_nobody_can_be_asked(access, data_dir):
    with pytest.raises(AccessFormError) as caught:
        request_stimulus_access(name="Ada Example", institution="U")

    assert set(caught.value.fields) == {
        "email",
        "research_purpose",
        "accept_terms_version",
        "acknowledge_privacy",
    }
    for name in caught.value.fields:
        assert name in str(caught.value)
    assert access.requests == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("research_purpose", "too short", "20"),
        ("email", "nobody", "email"),
        ("name", " ", "Full name"),
        ("institution", 3, "Institution"),
    ],
)
def test_wrong_fields_are_not_sent(access, data_dir, field, value, said):
    with pytest.raises(AccessFormError, match=said) as caught:
        request(**{field: value})
    assert list(caught.value.fields) == [field]
    assert forms(access) == []


def test_fields_that_the_service_refuses(access, data_dir, secrets_of_test):
    detail = [
        {"loc": ["body", "email"], "msg": "domain does not exist", "input": "x"},
        {"loc": ["body", "pi_or_supervisor"], "msg": "too long"},
    ]
    access.answers[REQUEST] = (422, {}, {"detail": detail})

    with pytest.raises(AccessFormError, match="domain does not exist") as caught:
        request()
    assert caught.value.fields == {
        "email": "domain does not exist",
        "pi_or_supervisor": "too long",
    }
    assert not auth_file(data_dir).exists()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((429, {"Retry-After": "5"}, {"detail": "slow"}), AccessRateLimitedError),
        ((500, {}, b""), AccessServiceError),
        ((404, {}, {"detail": "Not Found"}), AccessServiceError),
        ((200, {}, {"files": []}), AccessServiceError),
    ],
)
def test_errors_on_the_form_keep_the_id_there_is(access, data_dir, answer, kind):
    request()
    before = files_of(data_dir)
    access.answers[REQUEST] = answer

    with pytest.raises(kind):
        request(renew=True)
    assert files_of(data_dir) == before


def test_a_form_is_sent_once_even_if_the_service_fails(access, data_dir):
    access.answers[REQUEST] = (503, {}, b"")

    with pytest.raises(AccessServiceError):
        request()
    assert len(forms(access)) == 1


def test_another_version_of_the_terms_is_refused(access, data_dir):
    with pytest.raises(TermsOutdatedError, match=r"Version 1\.0 of") as caught:
        request(accept_terms_version="0.9")
    assert caught.value.terms_version == "1.0"
    assert forms(access) == []
    assert current_terms_version() == "1.0"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"current_terms_version": 2},
        {"current_terms_version": ""},
        {"current_terms_version": "\x1b[2J"},
        [],
    ],
)
def test_a_manifest_without_version(access, content):
    access.answers[MANIFEST] = (200, {}, content)
    with pytest.raises(AccessServiceError):
        current_terms_version()


def test_asked_at_a_terminal(access, data_dir, at_terminal, capfd):
    asked = at_terminal(
        "Ada Example",
        "not an address",
        "ada@university.example",
        "University of Examples",
        "",
        "too short",
        "Encoding models of natural images",
        "i agree",
    )
    request_stimulus_access()

    (form,) = forms(access)
    assert form["email"] == "ada@university.example"
    assert form["pi_or_supervisor"] is None
    assert len(asked) == 8
    assert "accept version 1.0 of the agreement" in asked[-1]
    assert "acknowledge the privacy notice" in asked[-1]
    shown = capfd.readouterr().err
    assert f"{access.url}/terms" in shown
    assert f"{access.url}/privacy" in shown
    assert "version 1.0" in shown
    assert fetch().archive


def test_only_what_is_missing_is_asked(access, data_dir, at_terminal):
    asked = at_terminal("ada@university.example")
    request(email=None, pi="P. Example")

    assert len(asked) == 1
    assert forms(access)[0]["pi_or_supervisor"] == "P. Example"


@pytest.mark.parametrize(
    "lacking",
    [["accept_terms_version"], ["acknowledge_privacy"]],
)
def test_one_question_where_a_consent_is_missing(
    access, data_dir, at_terminal, lacking
):
    asked = at_terminal("I AGREE")
    request(**dict.fromkeys(lacking))

    assert len(asked) == 1
    (form,) = forms(access)
    assert form["accepted_terms"] is True
    assert form["acknowledged_privacy"] is True


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"acknowledge_privacy": None}, "is missing"),
        ({"accept_terms_version": None}, "is missing"),
        ({"acknowledge_privacy": False}, "is not True"),
        ({"acknowledge_privacy": "no"}, "is not True"),
    ],
)
def test_a_script_gives_both_consents(access, data_dir, lacking, said):
    with pytest.raises(AccessFormError, match=said) as caught:
        request(**lacking)
    assert list(caught.value.fields) == list(lacking)
    assert f"{access.url}/terms" in str(caught.value)
    assert f"{access.url}/privacy" in str(caught.value)
    assert access.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acknowledged_privacy": None}, "Field required"),
        ({"acknowledged_privacy": False}, "Input should be True"),
        ({"accepted_terms": None}, "Field required"),
    ],
)
def test_the_demo_refuses_a_form_without_consents(access, changes, message):
    form = {
        "name": "Ada Example",
        "email": "ada@university.example",
        "institution": "University of Examples",
        "pi_or_supervisor": None,
        "research_purpose": "Encoding models of natural images",
        "accepted_terms": True,
        "acknowledged_privacy": True,
        "terms_version": "1.0",
        "source": "cli",
    }
    for name, value in changes.items():
        if value is None:
            del form[name]
        else:
            form[name] = value
    answer = requests.post(f"{access.url}/api/v1/access/request", json=form, timeout=9)

    assert answer.status_code == 422
    (wrong,) = answer.json()["detail"]
    assert wrong["loc"] == ["body", next(iter(changes))]
    assert wrong["msg"] == message


@pytest.mark.parametrize("answers", [["no"], [""], [], ["yes"], ["y", "agree", "ok"]])
def test_access_is_requested_only_by_the_words_of_consent(
    access, data_dir, at_terminal, answers
):
    at_terminal(*answers)
    with pytest.raises(AccessFormError, match="declined") as caught:
        request(accept_terms_version=None)
    assert set(caught.value.fields) == {"accept_terms_version", "acknowledge_privacy"}
    assert forms(access) == []


def test_the_agreement_is_asked_for_again_after_another_word(
    access, data_dir, at_terminal
):
    asked = at_terminal("yes", "i agree")
    request(accept_terms_version=None)
    assert len(asked) == 2
    assert len(forms(access)) == 1


def test_input_that_ends(access, data_dir, at_terminal):
    at_terminal("Ada Example")
    with pytest.raises(AccessFormError, match="email") as caught:
        request_stimulus_access()
    assert list(caught.value.fields) == ["email"]


# ---------------------------------------------------------------- where ids go


@pytest.mark.parametrize("path", [MANIFEST, REQUEST, REFRESH])
def test_addresses_must_be_https(monkeypatch, data_dir, no_network, path):
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "http://access.example.org")
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", "lfm_of_a_test")
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")

    with pytest.raises(AccessServiceError, match="https"):
        login("lfm_of_a_test") if path == REFRESH else current_terms_version()


def test_presigned_urls_must_be_https(access, data_dir):
    request()

    def plain(body):
        status, headers, content = access._refresh(body)
        for one in content["files"]:
            one["url"] = "http://bucket.example.org/x?X-Amz-Signature=1"
        return status, headers, content

    access.answers[REFRESH] = plain
    with pytest.raises(AccessServiceError, match="https"):
        fetch()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(access, server, data_dir, secrets_of_test, status):
    request()
    n = len(access.requests)
    with serve_access(server) as other:
        for path in (MANIFEST, REFRESH, REQUEST):
            access.answers[path] = (status, {"Location": other.url + path}, {})
        for call in (fetch, current_terms_version, lambda: request(renew=True)):
            with pytest.raises(AccessServiceError, match=f"{status}") as caught:
                call()
            secrets_of_test.assert_not_told_by(caught.value)
        access.answers[MANIFEST] = None
        with pytest.raises(AccessServiceError, match=f"{status}"):
            request(renew=True)
        assert other.requests == []
    asked = [path for _, path, _ in access.requests[n:]]
    assert asked.count(REQUEST) == asked.count(REFRESH) == 1


def test_an_id_is_sent_only_to_where_it_comes_from(
    access, server, data_dir, monkeypatch
):
    request()
    with serve_access(server) as other:
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", other.url)
        with pytest.raises(AccessRequiredError, match=rf"no request_id of {other.url}"):
            fetch()
        assert other.requests == []

        monkeypatch.delenv("LAION_FMRI_ACCESS_URL")
        assert fetch().archive
        assert other.requests == []


def test_a_server_without_access_takes_a_new_form(
    access, server, data_dir, monkeypatch
):
    request()
    with serve_access(server) as other:
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", other.url)
        request()
        assert len(forms(other)) == 1
        assert refreshes(other) == []
        auth = auth_of(data_dir)
        assert auth["server_url"] == other.url
        assert fetch().archive
        secret = auth["request_id"]
    assert not any(secret in str(body) for _, _, body in access.requests)


# ---------------------------------------------------------------- the cached id


def test_the_order_in_which_ids_are_looked_for(access, data_dir, monkeypatch):
    ids = [access.grant() for _ in range(3)]
    save_official(official_auth_file(), ids[0], access.url)
    fetch()
    save_official(auth_file(data_dir), ids[1], access.url)
    fetch(mode="overwrite")
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", f" {ids[2]}\n")
    fetch(mode="overwrite")

    assert [body["request_id"] for body in refreshes(access)] == ids


def test_the_auth_file_of_the_dataset_package_opens_the_gate(access, data_dir):
    file = official_auth_file()
    assert file == Path.home() / ".cache/laion-fmri/auth.json"
    save_official(file, access.grant(), access.url)
    before = file.read_bytes()

    assert fetch().archive
    assert file.read_bytes() == before
    assert fetch(mode="offline").archive


def test_our_auth_file_has_the_fields_of_the_dataset_package(access, data_dir):
    request()
    auth = auth_of(data_dir)

    assert set(auth) == {"server_url", "request_id", "email", "saved_at"}
    assert auth["server_url"] == access.url
    assert auth["request_id"].startswith("lfm_")
    assert auth["email"] == FORM["email"]
    assert pd.Timestamp(auth["saved_at"]).tz is not None


def test_the_licence_marker_is_that_of_the_dataset_package(data_dir, monkeypatch):
    marker = data_dir / ".laion_fmri/license_accepted"
    accept_license()
    assert marker.read_bytes() == b""
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    accept_license()


def test_an_unreadable_auth_file_is_passed_over(access, data_dir):
    save_official(auth_file(data_dir), access.grant(), access.url)
    with unreadable(auth_file(data_dir)), pytest.raises(AccessRequiredError):
        fetch()


def test_a_folder_in_the_place_of_an_auth_file(access, data_dir):
    auth_file(data_dir).mkdir(parents=True)
    with (
        pytest.warns(UserWarning, match=r"auth\.json does not hold a request_id"),
        pytest.raises(AccessRequiredError),
    ):
        fetch()


def test_an_auth_file_of_somebody_else(access, data_dir, monkeypatch):
    """One that may not be read is passed over, and not replaced."""
    monkeypatch.setattr(service, "DEFAULT_ACCESS_URL", access.url)
    theirs = auth_file(data_dir)
    save_official(theirs, "lfm_theirs", access.url)
    read_bytes, may = Path.read_bytes, os.access

    def refused(self):
        if self == theirs and not is_over:
            raise PermissionError(13, "denied", str(self))
        return read_bytes(self)

    is_over = False
    monkeypatch.setattr(Path, "read_bytes", refused)
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != theirs and may(path, mode)
    )
    with pytest.raises(AccessRequiredError):
        fetch()

    request()
    assert official_auth_file().exists()
    assert fetch().archive
    logout()
    is_over = True
    assert "lfm_theirs" in theirs.read_bytes().decode()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"request_id": 3}', '""'])
def test_a_broken_auth_file_is_ignored(access, data_dir, content):
    save_official(official_auth_file(), access.grant(), access.url)
    auth_file(data_dir).parent.mkdir(parents=True)
    auth_file(data_dir).write_text(content)

    with pytest.warns(UserWarning, match="ignored"):
        assert fetch().archive


def test_auth_json_is_never_readable_by_others(access, data_dir, monkeypatch):
    seen, created = [], {}
    os_open, replace = os.open, os.replace

    def spy_open(path, flags, mode=0o777, **kwargs):
        descriptor = os_open(path, flags, mode, **kwargs)
        if flags & os.O_CREAT:
            created[str(path)] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    def spy_replace(source, target):
        if "auth.json" in str(target):
            seen.append(created[str(source)])
            seen.append(stat.S_IMODE(os.stat(source).st_mode))
        replace(source, target)

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "replace", spy_replace)
    umask = os.umask(0)
    try:
        access.approves = False
        with pytest.raises(AccessPendingError):
            request()
        auth_file(data_dir).chmod(0o644)
        access.approve()
        fetch()
    finally:
        os.umask(umask)
    assert seen == [0o600] * 4
    manifest = data_dir / ".laion_fmri/manifest.json"
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o666  # as the user's umask has it
    assert stat.S_IMODE(auth_file(data_dir).stat().st_mode) == 0o600


def test_login_and_logout(access, data_dir, capfd):
    request_id = access.grant()
    login(request_id)
    assert fetch(max_images=0) is not None
    status = access_status()
    assert status["status"] == "approved"
    assert status["source"] == str(auth_file(data_dir))
    assert request_id not in str(status)
    assert status["request_id"].endswith(request_id[-3:])

    logout()
    assert not auth_file(data_dir).exists()
    assert access_status()["request_id"] is None
    with pytest.raises(AccessRequiredError):
        fetch()
    logout()
    assert "There is no request_id" in capfd.readouterr().err


def test_login_asks_without_showing(access, data_dir, monkeypatch):
    request_id = access.grant()
    with pytest.raises(InvalidQueryError, match="no terminal"):
        login()
    monkeypatch.setattr(account, "can_ask", lambda: True)
    monkeypatch.setattr(account.getpass, "getpass", lambda prompt: request_id)
    login()
    assert auth_of(data_dir)["request_id"] == request_id


def test_login_keeps_only_what_the_service_honours(access, data_dir, secrets_of_test):
    secrets_of_test.append("lfm_unknown_to_the_service")
    with pytest.raises(AccessNotFoundError) as caught:
        login("lfm_unknown_to_the_service")
    secrets_of_test.assert_not_told_by(caught.value)
    for unusable in ("", " "):
        with pytest.raises(InvalidQueryError, match="is empty"):
            login(unusable)
    assert not auth_file(data_dir).exists()

    access.approves = False
    with pytest.raises(AccessPendingError):
        request()
    request_id = auth_of(data_dir)["request_id"]
    logout()
    with pytest.raises(AccessPendingError, match="is kept"):
        login(request_id)
    assert auth_of(data_dir)["status"] == "pending"


def test_logout_tells_of_an_id_that_stays(access, data_dir, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    with pytest.warns(UserWarning, match="LAION_FMRI_REQUEST_ID"):
        logout()


def test_a_new_id_behind_that_of_the_environment(access, data_dir, monkeypatch):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", access.grant())
    with pytest.warns(UserWarning, match="unset it"):
        request(renew=True)


# ---------------------------------------------------------------- shared with others


@pytest.fixture
def of_dataset(access, monkeypatch):
    """The access service as if it were that of the dataset."""
    monkeypatch.setattr(service, "DEFAULT_ACCESS_URL", access.url)
    return access


def official():
    return json.loads(official_auth_file().read_text())


def test_an_id_is_shared_with_the_dataset_package(of_dataset, data_dir, tmp_path):
    request()

    shared = official_auth_file()
    assert shared == Path.home() / ".cache/laion-fmri/auth.json"
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600
    assert set(official()) == {"server_url", "request_id", "email", "saved_at"}
    assert official()["request_id"] == auth_of(data_dir)["request_id"]
    assert official()["server_url"] == of_dataset.url
    assert official()["email"] == "ada@university.example"
    assert fetch(max_images=1, data_dir=tmp_path / "second").archive

    logout()
    assert not shared.exists()
    assert not auth_file(data_dir).exists()


def test_a_request_that_waits_is_known_to_other_directories(of_dataset, data_dir):
    of_dataset.approves = False
    with pytest.raises(AccessPendingError):
        request()
    assert auth_of(data_dir)["status"] == official()["status"] == "pending"
    of_dataset.approve()
    fetch(max_images=1)
    assert access_status()["status"] == "approved"


def test_an_id_of_another_service_is_of_no_use_to_the_dataset_package(access, data_dir):
    request()
    assert auth_file(data_dir).exists()
    assert not official_auth_file().exists()


@pytest.mark.parametrize(
    "kept",
    [
        {"server_url": "https://other.example.org"},
        {"email": "bob@university.example"},
        {"email": None},
    ],
)
def test_the_id_of_somebody_else_stays(of_dataset, data_dir, kept):
    shared = official_auth_file()
    theirs = {"request_id": "lfm_theirs", "server_url": of_dataset.url, **kept}
    save_official(shared, **theirs)
    before = shared.read_bytes()

    request(renew=True)
    assert shared.read_bytes() == before
    assert auth_of(data_dir)["request_id"] != "lfm_theirs"
    logout()
    assert shared.read_bytes() == before


def test_a_new_id_replaces_the_old_in_both_files(of_dataset, data_dir):
    login(of_dataset.grant(), verbose=0)
    assert official()["email"] is None
    request(renew=True)
    assert official()["request_id"] == auth_of(data_dir)["request_id"]
    login(of_dataset.grant(), verbose=0)
    assert official()["request_id"] == auth_of(data_dir)["request_id"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_an_auth_file_saved_by_an_editor(access, data_dir, encoding):
    """As Notepad and PowerShell write text."""
    file = auth_file(data_dir)
    save_official(file, access.grant(), access.url)
    file.write_bytes(file.read_text().encode(encoding))
    assert fetch(max_images=1).archive


def test_an_auth_file_that_is_not_text(access, data_dir, secrets_of_test):
    file = auth_file(data_dir)
    save_official(file, access.grant(), access.url, email="a@b.example \u00e9")
    file.write_bytes(file.read_text().encode().replace(b"\\u00e9", b"\xe9"))

    with (
        pytest.warns(UserWarning, match="does not hold a request_id"),
        pytest.raises(AccessRequiredError) as caught,
    ):
        fetch()
    secrets_of_test.assert_not_told_by(caught.value)


@pytest.mark.parametrize(
    "way", ["form", "argument", "prompt", "variable", "own", "shared"]
)
@pytest.mark.parametrize("request_id", ["Zm9v/+9=.~ e", "{3f2504e0-4f89}", "0"])
def test_an_id_of_any_form_grants_access(
    access, data_dir, monkeypatch, secrets_of_test, way, request_id
):
    answer = requests.post(
        f"{access.url}{REFRESH}",
        json={"request_id": access.grant(), "dataset_version": "v1"},
        timeout=9,
    ).json()
    answers = {request_id: (200, {}, answer)}
    access.answers[REFRESH] = lambda body: answers.get(body["request_id"])
    access.answers[REQUEST] = (200, {}, {"request_id": request_id, **answer})
    if way == "form":
        request()
    elif way == "argument":
        login(request_id)
    elif way == "prompt":
        monkeypatch.setattr(account, "can_ask", lambda: True)
        monkeypatch.setattr(account.getpass, "getpass", lambda prompt: request_id)
        login()
    elif way == "variable":
        monkeypatch.setenv("LAION_FMRI_REQUEST_ID", f'"{request_id}"')
    else:
        file = auth_file(data_dir) if way == "own" else official_auth_file()
        save_official(file, request_id, access.url)
    if len(request_id) > 1:
        secrets_of_test.append(request_id)
    assert fetch().archive
    assert refreshes(access)[-1]["request_id"] == request_id
    assert access_status(data_dir)["request_id"] == "..."


def test_an_answer_without_an_id_sends_nobody_to_an_inbox(access, data_dir):
    access.answers[REQUEST] = (200, {}, {"files": []})
    with pytest.raises(AccessServiceError, match="returned no request_id") as caught:
        request()
    assert "mail" not in f"{caught.value}"


# ---------------------------------------------------------------- the manifest

DIGEST = "0123456789abcdef" * 4
DOCUMENTED = {
    "current_terms_version": "2026-05-12",
    "files": [
        {"name": "task-images_stimuli.h5", "size": 3_200_000_000, "sha256": DIGEST},
        {"name": "task-images_metadata.csv", "size": 1_600_000, "sha256": "F" * 64},
    ],
}


def test_the_manifest_as_documented(access):
    access.answers[MANIFEST] = (200, {}, DOCUMENTED)
    assert published_archive(timeout=5)[:2] == (3_200_000_000, DIGEST)
    assert current_terms_version() == "2026-05-12"


def test_the_manifest_of_the_demo(access, bucket_folder):
    content = requests.get(f"{access.url}{MANIFEST}", timeout=9).json()
    assert set(content) == {"current_terms_version", "files"}
    assert [set(file) for file in content["files"]] == [{"name", "size", "sha256"}] * 2
    assert published_archive().size == (bucket_folder / ARCHIVE).stat().st_size


ENTRY = DOCUMENTED["files"][0]


@pytest.mark.parametrize(
    "files",
    [
        None,
        {},
        [],
        ["task-images_stimuli.h5"],
        [{**ENTRY, "name": "other.h5"}],
        [{**ENTRY, "size": "3"}],
        [{**ENTRY, "sha256": "ab"}],
        [{**ENTRY, "sha256": None}],
    ],
)
def test_a_manifest_without_the_archive(access, files):
    access.answers[MANIFEST] = (200, {}, {**DOCUMENTED, "files": files})
    with pytest.raises(AccessServiceError, match="no size or sha256"):
        published_archive()


def test_the_manifest_is_kept_with_the_archive(access, data_dir, bucket_folder):
    data = (bucket_folder / ARCHIVE).read_bytes()
    assert saved_archive(str(data_dir)) is None
    request()
    fetch()
    saved = saved_archive(str(data_dir))
    assert saved[:2] == (len(data), hashlib.sha256(data).hexdigest())
    file = data_dir / ".laion_fmri/manifest.json"
    for broken in (b"{", b"[]", b"\xff", b'{"size": 3}'):
        file.write_bytes(broken)
        assert saved_archive(str(data_dir)) is None
    file.unlink()
    file.mkdir()
    assert saved_archive(str(data_dir)) is None
    assert fetch().archive


@pytest.mark.parametrize("n_more", [0, 7])
def test_a_new_version_of_the_archive(access, server, data_dir, bucket_folder, n_more):
    """HDF5 ignores what follows its end; of the same size, the SHA-256 tells."""
    old = (bucket_folder / ARCHIVE).read_bytes() + bytes(4)
    server.put(ARCHIVE, old)
    request()
    fetch()
    new = old[:-1] + b"x" + bytes(n_more)
    server.put(ARCHIVE, new)

    with pytest.warns(UserWarning, match="new version") as warned:
        stimuli = fetch()
    (warning,) = warned
    for said in (ARCHIVE, f"{len(old):,}", f"{len(new):,}", "mode='overwrite'"):
        assert said in str(warning.message)
    assert Path(stimuli.archive).read_bytes() == old
    record = stimuli.files_meta[1]
    assert (record["id"], record["size"]) == (ARCHIVE, len(old))
    assert record["outdated"] is True

    stimuli = fetch(mode="overwrite")
    assert Path(stimuli.archive).read_bytes() == new
    record = stimuli.files_meta[1]
    assert (record["outdated"], record["size"]) == (False, len(new))
    assert fetch().files_meta[1]["outdated"] is False


def test_images_on_disk_need_no_service_that_answers(access, data_dir):
    request()
    fetch()
    access.answers[MANIFEST] = (503, {}, b"")
    assert fetch().archive
    access.stop()
    assert fetch(timeout=5).archive


def test_a_body_that_is_packed(access):
    packed = gzip.compress(json.dumps(DOCUMENTED).encode())
    access.answers[MANIFEST] = (200, {"Content-Encoding": "gzip"}, packed)
    assert current_terms_version() == "2026-05-12"
    access.answers[MANIFEST] = (200, {"Content-Encoding": "gzip"}, b"plain")
    with pytest.raises(AccessServiceError, match="cannot be unpacked"):
        current_terms_version()


# ---------------------------------------------------------------- what may not leak


def test_ctrl_c_while_the_service_is_silent(access, data_dir, secrets_of_test):
    request()

    def silent(body):
        _thread.interrupt_main()
        time.sleep(1)
        return 503, {}, b""

    access.answers[REFRESH] = silent
    with pytest.raises(KeyboardInterrupt) as caught:
        fetch(timeout=5)
    secrets_of_test.assert_not_told_by(caught.value)


def test_an_id_that_cannot_be_written(access, data_dir, secrets_of_test):
    for file in (auth_file(data_dir), official_auth_file()):
        (file / "in the way").mkdir(parents=True)

    with pytest.raises(StimulusAccessError, match="cannot be kept") as caught:
        request(renew=True)
    assert str(auth_file(data_dir)) in str(caught.value)
    secrets_of_test.assert_not_told_by(caught.value)


def test_an_id_for_which_the_disk_is_full(
    access, data_dir, secrets_of_test, monkeypatch
):
    replace = os.replace

    def full(source, target):
        if "auth.json" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskSpaceError, match="disk is full") as caught:
        request()
    assert caught.value.errno == errno.ENOSPC
    secrets_of_test.assert_not_told_by(caught.value)
    with pytest.raises(DiskSpaceError) as caught:
        login(secrets_of_test[0])
    secrets_of_test.assert_not_told_by(caught.value)
    assert not list(data_dir.rglob("*auth.json*"))


def test_the_beginning_of_a_secret_is_secret():
    """Tracebacks that cut long values show beginnings."""
    assert repr(SecretText("lfm_0123")[:6]) == "'...'"
    assert f"{SecretText('lfm_0123')[-3:]}" == "123"


def test_nothing_shows_a_secret(access, data_dir, secrets_of_test, capfd):
    request()
    opened = open_gate(str(data_dir), "download_new", 5.0)
    url = opened.url(False)
    assert "X-Amz-Signature" in url
    kept = gate.find_auth(str(data_dir))
    for one in (opened, vars(opened), kept, url, opened.renew(), access_status()):
        secrets_of_test.assert_not_in(repr(one), type(one))
    stimuli = fetch(verbose=3, extract=True)
    secrets_of_test.assert_not_in(f"{dict(stimuli)}{stimuli!r}", "the Bunch")
    assert "3.2 GB" in capfd.readouterr().err


def test_the_watch_sees_a_leak(access, data_dir, secrets_of_test):
    """The fixture that greps does find an id where there is one."""
    request()
    for leak in (
        ValueError(secrets_of_test[0]),
        ValueError("https://x.org/a?X-Amz-Signature=1"),
    ):
        with pytest.raises(AssertionError, match="secret"):
            secrets_of_test.assert_not_told_by(leak)
    chained = ValueError("nothing")
    with contextlib.suppress(AssertionError):
        chained.__context__ = ValueError(secrets_of_test[0])
        secrets_of_test.assert_not_told_by(chained)
        pytest.fail("the context was not looked at")
