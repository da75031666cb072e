"""The access service: the form, the cached request_id, its errors, and no leaks."""

from __future__ import annotations

import _thread
import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import sys
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

from laion_fmri_fetchers import (
    access_status,
    current_terms_version,
    fetch_laion_stimuli,
    load_stimuli,
    login,
    request_stimulus_access,
)
from laion_fmri_fetchers.access import gate, service
from laion_fmri_fetchers.access.account import logout
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo import serve_access
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
from laion_fmri_fetchers.layout.trees import ARCHIVE, GATED, STIMULUS_TABLE

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test
pytestmark = pytest.mark.usefixtures("secrets_of_test")

REQUEST, REFRESH, MANIFEST = (
    f"/api/v1/{path}" for path in ("access/request", "refresh", "manifest")
)
FORM = {
    "name": "Ada Example",
    "email": "ada@university.example",
    "institution": "University of Examples",
    "research_purpose": "Encoding models of natural images",
    "accept_terms_version": "1.0",
    "acknowledge_privacy": True,
}
SENT = {
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


def fetch(*args, **kwargs):
    return fetch_laion_stimuli(*args, **{"verbose": 0, **kwargs})


def request(**kwargs):
    request_stimulus_access(**{**FORM, "timeout": 5, **kwargs})


def forms(service):
    """Return the forms that were sent to an access service."""
    return [body for _, path, body in service.requests if path == REQUEST]


def refreshes(service):
    """Return what was sent to an access service to get presigned URLs."""
    return [body for _, path, body in service.requests if path == REFRESH]


def own_file(data_dir):
    return data_dir / ".laion_fmri/auth.json"


def shared_file():
    """Return the file of the dataset's own package."""
    return Path.home() / ".cache/laion-fmri/auth.json"


def save(file, request_id, server_url, **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"server_url": server_url, "request_id": request_id, **more}
    file.write_text(json.dumps({"email": FORM["email"], **content}))


def saved(file):
    return json.loads(file.read_text())


def files_of(folder):
    """Return path -> content of all files of a data directory, listings aside."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.parent.name != "listings"
    }


def approval(access):
    """Return what the service answers to who has access."""
    body = {"request_id": access.grant(), "dataset_version": "v1"}
    return requests.post(f"{access.url}{REFRESH}", json=body, timeout=9).json()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01)


@pytest.fixture
def at_terminal(monkeypatch):
    """Answer questions with given lines; return what was asked."""
    asked, stdin = [], io.StringIO()
    stdin.isatty = lambda: True

    def answer_with(*lines):
        left = list(lines)

        def answer(prompt=""):
            asked.append(prompt)
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr("getpass.getpass", answer)
        return asked

    return answer_with


# --- From the request to the images ----------------------------------------------


def test_on_a_shell(access, data_dir, capfd, secrets_of_test, at_terminal):
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
    assert len(paths) > 2
    assert all(path.is_file() for path in paths)

    assert main(["logout"]) == 0
    assert main(["fetch-stimuli", "-q", "--mode", "offline"]) == 1
    at_terminal(secrets_of_test[0])
    assert main(["login"]) == 0
    assert main(["fetch-stimuli", "-q", "--mode", "offline"]) == 0


@pytest.mark.parametrize("mode", ["download_new", "overwrite", "offline"])
def test_without_an_id_nothing_is_asked_for(access, server, data_dir, mode):
    with pytest.raises(AccessRequiredError, match="request_stimulus_access.*request-a"):
        fetch(mode=mode)
    assert access.requests == []
    assert server.requests == []


def test_a_request_that_is_approved_at_once(
    access, server, data_dir, bucket_folder, capfd
):
    """No form is sent while its id is honoured, nor URLs asked for without need."""
    request()
    with pytest.raises(NotCachedError, match="metadata"):
        fetch(mode="offline")
    fetch(max_images=0)
    with pytest.raises(NotCachedError, match=r"stimuli\.h5"):
        fetch(mode="offline")
    stimuli = fetch()
    assert Path(stimuli.archive).read_bytes() == (bucket_folder / ARCHIVE).read_bytes()
    assert forms(access) == [SENT]
    n = len(refreshes(access))
    server.requests.clear()
    pd.testing.assert_frame_equal(fetch().metadata, stimuli.metadata)
    assert len(refreshes(access)) == n
    assert {key for _, key, _ in server.requests} == {""}
    auth = saved(own_file(data_dir))
    assert set(auth) == {"server_url", "request_id", "email", "saved_at"}
    assert (auth["server_url"], auth["email"]) == (access.url, FORM["email"])
    assert pd.Timestamp(auth["saved_at"]).tz is not None
    assert not shared_file().exists(), "it is of another service than the dataset's"
    request()
    assert "no form was sent" in capfd.readouterr().err
    assert len(forms(access)) == 1
    request(renew=True)
    assert len(forms(access)) == 2


@pytest.mark.parametrize("pending_form", ["202", "status", "no files"])
def test_pending_then_approved_without_a_new_form(
    access, server, data_dir, secrets_of_test, pending_form
):
    access.approves, access.pending_form = False, pending_form
    for call in (request, fetch, request, lambda: login(secrets_of_test[0])):
        with pytest.raises(AccessPendingError, match="no new form") as caught:
            call()
        secrets_of_test.assert_not_told_by(caught.value)
        assert access_status()["status"] == "pending"
    assert not any(key in GATED for _, key, _ in server.requests)
    access.approve()
    assert fetch().archive
    assert access_status()["status"] == "approved"
    assert len(forms(access)) == 1


def test_a_pending_id_is_asked_about_though_all_is_on_disk(access, data_dir):
    request()
    fetch()
    auth = {**saved(own_file(data_dir)), "status": "pending"}
    own_file(data_dir).write_text(json.dumps(auth))
    n = len(access.requests)
    with pytest.raises(AccessPendingError, match="later, online"):
        fetch(mode="offline")
    assert len(access.requests) == n
    fetch()
    assert access_status()["status"] == "approved"


def test_moved_to_a_machine_without_network(
    access, data_dir, tmp_path, monkeypatch, request
):
    request_stimulus_access(**FORM, verbose=0)
    query = {"unique_or_shared": "shared", "extract": True}
    online, moved = fetch(**query), tmp_path / "elsewhere" / "data"
    shutil.move(data_dir, moved)
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    request.getfixturevalue("no_network")
    offline = fetch(**query, mode="offline", data_dir=moved)
    pd.testing.assert_frame_equal(offline.metadata, online.metadata)
    there = [path.replace(str(data_dir), str(moved)) for path in online.images]
    assert offline.images == there
    assert all(os.path.exists(path) for path in offline.images)
    assert len(load_stimuli(offline)) == len(offline.images)
    assert set(offline) == set(online)


# --- Each error of the service ---------------------------------------------------


def detail(text):
    return {"detail": text}


FIELD = ["?", {"loc": ["body", "request_id"], "msg": "too short"}]
BLOCKED = {"error": "blocked", "message": "Not from there"}
REFRESH_ERRORS = {
    "revoked": ((403, {}, detail("it was revoked.")), AccessRevokedError, "revoked"),
    "unknown": ((404, {}, detail("not found")), AccessNotFoundError, "does not know"),
    "busy": ((429, {"Retry-After": "7"}, {}), AccessRateLimitedError, "in 7 s"),
    "busy for long": ((429, {}, detail("slow")), AccessRateLimitedError, "later"),
    "field": ((422, {}, detail(FIELD)), AccessFormError, "request_id: too short"),
    "server error": ((500, {}, b"oops"), AccessServiceError, "500"),
    "denied": ((403, {}, detail("Forbidden")), AccessServiceError, "Forbidden"),
    "blocked": ((403, {}, detail(BLOCKED)), AccessServiceError, r"\(Not from there\)"),
    "no json": ((200, {}, b"<html>hello</html>"), AccessServiceError, "not a JSON"),
    "other files": (
        (200, {}, {"files": [{"name": "a.h5", "url": "https://x.org/a"}, 3]}),
        AccessServiceError,
        "sha256",
    ),
    "other shape": ((200, {}, {"files": {"a": 1}}), AccessServiceError, "sha256"),
    "pending": ((202, {}, {"files": [{"name": "a"}]}), AccessPendingError, "approval"),
    "pending, no body": ((202, {}, b""), AccessPendingError, "waits for approval"),
}


@pytest.mark.parametrize("name", REFRESH_ERRORS)
def test_each_error_of_the_service(access, data_dir, secrets_of_test, name):
    """It leaves what is on disk; the next call goes on."""
    answer, kind, said = REFRESH_ERRORS[name]
    request()
    fetch(max_images=0)
    before = files_of(data_dir)
    assert STIMULUS_TABLE in before
    access.answers[REFRESH] = answer
    with pytest.raises(kind, match=said) as caught:
        fetch()
    assert isinstance(caught.value, StimulusAccessError)
    waits = {"busy": 7, "busy for long": None}
    assert name not in waits or caught.value.retry_after == waits[name]
    secrets_of_test.assert_not_told_by(caught.value)
    assert files_of(data_dir) == before
    left = [(503, {}, b"busy"), (502, {}, b"busy")]  # a short failure passes
    access.answers[REFRESH] = lambda body: left.pop() if left else None
    assert fetch().archive


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (faults.wait(5.0), "no byte for 0.3 s"),
        (faults.short(3), "the body ended early"),
        ("gone", "cannot connect: connection refused"),
        ("https", "TLS fails: "),
    ],
)
def test_a_service_that_gives_no_answer(
    data_dir, monkeypatch, fault, said, secrets_of_test
):
    with FaultServer() as running:
        running.faults[MANIFEST[1:]] = [always(fault)] if callable(fault) else []
        running.put(MANIFEST[1:], b'{"current_terms_version": "3"}')
        url = running.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", url)
        if fault == "gone":
            running.__exit__()
        elif fault == "https":
            url = url.replace("http:", "https:")
            monkeypatch.setenv("LAION_FMRI_ACCESS_URL", url)
        with pytest.raises(AccessServiceError) as caught:
            current_terms_version(timeout=0.3)
    assert f"{url}{MANIFEST} gives no answer ({said}" in str(caught.value)
    assert "mode='offline'" in str(caught.value)


@pytest.mark.parametrize("way", ["browser", "form"])
def test_terms_outdated(access, data_dir, secrets_of_test, way):
    request()
    access.terms_version = "2.0"
    with pytest.raises(TermsOutdatedError) as caught:
        fetch()
    assert caught.value.accept_url == f"{access.url}/terms/accept"
    assert caught.value.terms_version == "2.0"
    assert "2.0" in str(caught.value)
    assert caught.value.accept_url in str(caught.value)
    secrets_of_test.assert_not_told_by(caught.value)
    if way == "browser":
        access.accept_terms(secrets_of_test[0])
    else:
        request(accept_terms_version="2.0")
        assert saved(own_file(data_dir))["request_id"] == secrets_of_test[1]
    assert fetch().archive
    sent = [form["terms_version"] for form in forms(access)]
    assert sent == ["1.0", "2.0"][: 1 if way == "browser" else 2]


@pytest.mark.parametrize("request_id", [None, "kept/of+another=form"])
def test_an_id_that_the_service_repeats_is_not_told(
    access, data_dir, monkeypatch, secrets_of_test, request_id
):
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", request_id or access.grant())
    secrets_of_test.extend([request_id] if request_id else [])
    (own,) = secrets_of_test
    for told in (
        f"{own} was revoked",
        [{"loc": ["body", "request_id"], "msg": f"{own} is odd", "input": own}],
        "see https://bucket.example.org/a?X-Amz-Signature=1",
        {"error": "terms_outdated", "accept_url": f"{access.url}/accept?id={own}"},
    ):
        for status in (403, 404, 422, 429, 400):
            access.answers[REFRESH] = (status, {}, {"detail": told})
            with pytest.raises(StimulusAccessError) as caught:
                fetch()
            secrets_of_test.assert_not_told_by(caught.value)


# --- URLs in mid-download --------------------------------------------------------


@pytest.fixture
def large_archive(access, server, bucket_folder):
    """An archive that takes several reads; HDF5 ignores what follows its end."""
    data = (bucket_folder / ARCHIVE).read_bytes() + os.urandom(6 * 2**20)
    server.put(ARCHIVE, data)
    request()
    fetch(max_images=0)
    access.requests.clear()
    server.requests.clear()
    return data


class Expiring:
    """Cut the first body of the archive in the middle, and let its URL expire."""

    def __init__(self, access, data, then=lambda: None):
        self.access, self.data, self.then, self.ranges = access, data, then, []

    def __call__(self, environ):
        self.ranges.append(environ.get("HTTP_RANGE", ""))
        if len(self.ranges) > 1:
            return None
        self.access.expire()
        self.then()
        headers = {"Content-Length": str(len(self.data))}
        return 200, headers, self.data[: len(self.data) // 2]


def test_expiry_in_mid_download_resumes(access, data_dir, large_archive):
    access.objects = expiring = Expiring(access, large_archive)
    assert Path(fetch(n_connections=1).archive).read_bytes() == large_archive
    assert len(refreshes(access)) == 2
    first, second = expiring.ranges
    assert first == ""
    resumed_at = int(second.removeprefix("bytes=").partition("-")[0])
    assert resumed_at > len(large_archive) // 3


@pytest.mark.parametrize("fault", ["refused", "revoked", "changed"])
def test_an_error_in_mid_download(
    access, server, data_dir, large_archive, secrets_of_test, fault
):
    """A URL that is refused is renewed once; no part of a file is left in its place."""
    kind, said = DownloadError, "403"
    access.objects = lambda environ: (403, {}, b"<Error><Code>Some</Code></Error>")
    if fault == "revoked":
        kind, said = AccessRevokedError, "revoked"
        answers = [None, (403, {}, {"detail": "revoked"})]
        access.answers[REFRESH] = lambda body: answers.pop(0)
        access.objects = Expiring(access, large_archive)
    elif fault == "changed":
        said, large_archive = "bytes of it instead of", large_archive + b"more"
        change = lambda: server.put(ARCHIVE, large_archive)  # noqa: E731
        access.objects = Expiring(access, large_archive[:-4], change)
    with pytest.raises(kind, match=said) as caught:
        fetch(n_connections=1)
    secrets_of_test.assert_not_told_by(caught.value)
    assert len(refreshes(access)) == 2
    if fault == "refused":
        assert [key for _, key, _ in server.requests] == ["", ARCHIVE, ARCHIVE]
    assert not (data_dir / ARCHIVE).exists()
    access.answers.clear()
    access.objects = None
    assert Path(fetch().archive).read_bytes() == large_archive


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"sha256": "0" * 64}, DownloadError, "SHA-256"),
        ({"url": "http://bucket.example.org/?X-Amz-Sig"}, AccessServiceError, "https"),
    ],
)
def test_an_answer_that_is_tampered_with(
    access, data_dir, secrets_of_test, change, kind, said
):
    request()
    answer = approval(access)
    for file in answer["files"]:
        file.update(change)
    access.answers[REFRESH] = (200, {}, answer)
    with pytest.raises(kind, match=said) as caught:
        fetch()
    secrets_of_test.assert_not_told_by(caught.value)
    assert not (data_dir / ARCHIVE).exists()


# --- The form --------------------------------------------------------------------


@pytest.mark.parametrize(("status", "words"), [(403, "revoked"), (404, "not found")])
def test_an_id_that_is_not_honoured_is_replaced(
    access, data_dir, secrets_of_test, status, words
):
    request()
    ended = {"request_id": secrets_of_test[0]}
    access.answers[REFRESH] = lambda form: (
        (status, {}, {"detail": words}) if ended.items() <= form.items() else None
    )
    request()
    assert saved(own_file(data_dir))["request_id"] == secrets_of_test[1]


MISSING = dict.fromkeys(("accept_terms_version", "acknowledge_privacy"))


@pytest.mark.parametrize(
    ("changes", "fields", "said"),
    [
        (dict.fromkeys(FORM), FORM, "is missing"),
        ({"research_purpose": "too short"}, ["research_purpose"], "20"),
        ({"email": "nobody"}, ["email"], "email"),
        ({"name": " "}, ["name"], "Full name"),
        ({"institution": 3}, ["institution"], "Institution"),
        ({"acknowledge_privacy": None}, ["acknowledge_privacy"], "is missing"),
        ({"accept_terms_version": None}, ["accept_terms_version"], "is missing"),
        ({"acknowledge_privacy": False}, ["acknowledge_privacy"], "is not True"),
        ({"acknowledge_privacy": "no"}, ["acknowledge_privacy"], "is not True"),
    ],
)
def test_fields_that_are_missing_or_wrong_are_not_sent(
    access, data_dir, changes, fields, said
):
    with pytest.raises(AccessFormError, match=said) as caught:
        request(**changes)
    assert list(caught.value.fields) == list(fields)
    assert all(name in str(caught.value) for name in fields)
    if set(fields) & set(MISSING):
        assert f"{access.url}/terms" in str(caught.value)
        assert f"{access.url}/privacy" in str(caught.value)
    assert forms(access) == []


WRONG = [
    {"loc": ["body", "email"], "msg": "domain does not exist", "input": "x"},
    {"loc": ["body", "pi_or_supervisor"], "msg": "too long"},
]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((422, {}, {"detail": WRONG}), AccessFormError, "domain does not exist"),
        ((429, {"Retry-After": "5"}, {}), AccessRateLimitedError, "in 5 s"),
        ((500, {}, b""), AccessServiceError, "status 500"),
        ((503, {}, b""), AccessServiceError, "status 503"),
        ((404, {}, {"detail": "Not Found"}), AccessServiceError, "Not Found"),
        ((200, {}, {"files": []}), AccessServiceError, "returned no request_id"),
    ],
)
def test_a_form_that_fails_is_sent_once_and_keeps_the_id_there_is(
    access, data_dir, answer, kind, said
):
    request()
    before = files_of(data_dir)
    access.answers[REQUEST] = answer
    with pytest.raises(kind, match=said) as caught:
        request(renew=True)
    assert kind is not AccessFormError or caught.value.fields == {
        "email": "domain does not exist",
        "pi_or_supervisor": "too long",
    }
    assert len(forms(access)) == 2
    assert files_of(data_dir) == before


def test_another_version_of_the_terms_is_refused(access, data_dir):
    with pytest.raises(TermsOutdatedError, match=r"Version 1\.0 of") as caught:
        request(accept_terms_version="0.9")
    assert caught.value.terms_version == "1.0"
    assert forms(access) == []
    assert current_terms_version() == "1.0"


def test_asked_at_a_terminal(access, data_dir, at_terminal, capfd):
    asked = at_terminal(
        FORM["name"],
        "not an address",
        FORM["email"],
        FORM["institution"],
        "",
        "too short",
        FORM["research_purpose"],
        "i agree",
    )
    request_stimulus_access()
    assert forms(access) == [SENT]
    assert len(asked) == 8
    assert "accept version 1.0 of the agreement" in asked[-1]
    assert "acknowledge the privacy notice" in asked[-1]
    shown = capfd.readouterr().err
    for words in (f"{access.url}/terms", f"{access.url}/privacy", "version 1.0"):
        assert words in shown


@pytest.mark.parametrize(
    ("missing", "answers"),
    [
        ({"email": None, "pi": "P. Example"}, [FORM["email"]]),
        ({"accept_terms_version": None}, ["I AGREE"]),
        ({"acknowledge_privacy": None}, ["I AGREE"]),
        (MISSING, ["yes", "i agree"]),
    ],
)
def test_only_what_is_missing_is_asked(access, data_dir, at_terminal, missing, answers):
    asked = at_terminal(*answers)
    request(**missing)
    assert len(asked) == len(answers)
    assert forms(access) == [{**SENT, "pi_or_supervisor": missing.get("pi")}]


@pytest.mark.parametrize("answers", [["no"], [""], [], ["yes"], ["y", "agree", "ok"]])
def test_access_is_requested_only_by_the_words_of_consent(
    access, data_dir, at_terminal, answers
):
    at_terminal(*answers)
    with pytest.raises(AccessFormError, match="declined") as caught:
        request(**MISSING)
    assert caught.value.fields.keys() == MISSING.keys()
    with pytest.raises(AccessFormError, match="email") as caught:
        request(email=None)
    assert list(caught.value.fields) == ["email"], "no answer can be had any more"
    assert forms(access) == []


# --- Where ids go ----------------------------------------------------------------


def test_addresses_must_be_https(monkeypatch, data_dir, no_network):
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "http://access.example.org")
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    for call in (lambda: login("lfm_of_a_test"), current_terms_version):
        with pytest.raises(AccessServiceError, match="https"):
            call()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(access, server, data_dir, secrets_of_test, status):
    request()
    access.requests.clear()
    with serve_access(server) as other:
        for path in (MANIFEST, REFRESH, REQUEST):
            access.answers[path] = (status, {"Location": other.url + path}, {})
        for call in (fetch, current_terms_version):
            with pytest.raises(AccessServiceError, match=f"{status}") as caught:
                call()
            secrets_of_test.assert_not_told_by(caught.value)
        access.answers[MANIFEST] = None
        with pytest.raises(AccessServiceError, match=f"{status}"):
            request(renew=True)
        assert other.requests == []
    assert len(forms(access)) == len(refreshes(access)) == 1


def test_an_id_is_sent_only_to_where_it_comes_from(
    access, server, data_dir, monkeypatch
):
    request()
    with serve_access(server) as other:
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", other.url)
        with pytest.raises(AccessRequiredError, match=rf"no request_id of {other.url}"):
            fetch()
        monkeypatch.delenv("LAION_FMRI_ACCESS_URL")
        assert fetch(max_images=1).archive
        assert other.requests == []
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", other.url)
        request()
        assert len(forms(other)) == 1
        assert refreshes(other) == []
        auth = saved(own_file(data_dir))
        assert auth["server_url"] == other.url
        assert fetch(mode="overwrite").archive
    assert not any(auth["request_id"] in str(body) for _, _, body in access.requests)


# --- The cached id ---------------------------------------------------------------


def test_the_order_in_which_ids_are_looked_for(access, data_dir, monkeypatch):
    """The file of the dataset's own package is read, and left as it is."""
    ids = [access.grant() for _ in range(3)]
    save(shared_file(), ids[0], access.url)
    before = shared_file().read_bytes()
    fetch()
    fetch(mode="offline")
    save(own_file(data_dir), ids[1], access.url)
    fetch(mode="overwrite")
    monkeypatch.setenv("LAION_FMRI_REQUEST_ID", f" {ids[2]}\n")
    fetch(mode="overwrite")
    assert [body["request_id"] for body in refreshes(access)] == ids
    assert shared_file().read_bytes() == before
    with pytest.warns(UserWarning, match="LAION_FMRI_REQUEST_ID"):
        logout()
    with pytest.warns(UserWarning, match="unset it"):
        request(renew=True)


BROKEN = ("{", "[]", "{}", '{"request_id": 3}', '""', '{"request_id": "\xe9"}')


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_auth_file_is_ignored(access, data_dir, content):
    save(shared_file(), access.grant(), access.url)
    own_file(data_dir).parent.mkdir(parents=True)
    own_file(data_dir).write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"auth\.json does not hold a request_id and"):
        assert fetch(max_images=1).archive


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_an_auth_file_saved_by_an_editor(access, data_dir, encoding):
    """As Notepad and PowerShell write text."""
    file = own_file(data_dir)
    save(file, access.grant(), access.url)
    file.write_bytes(file.read_text().encode(encoding))
    assert fetch(max_images=1).archive


def test_an_auth_file_of_somebody_else(of_dataset, data_dir):
    """One that may not be read is passed over, and not replaced."""
    theirs = own_file(data_dir)
    save(theirs, "lfm_theirs", of_dataset.url)
    with unreadable(theirs):
        with pytest.raises(AccessRequiredError):
            fetch()
        request()
        assert shared_file().exists()
        assert fetch().archive
        logout()
    assert "lfm_theirs" in theirs.read_text()


def test_auth_json_is_never_readable_by_others(access, data_dir, monkeypatch):
    seen, replace = [], os.replace

    def spy(source, target):
        if "auth.json" in str(target):
            seen.append(stat.S_IMODE(os.stat(source).st_mode))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    umask = os.umask(0)
    try:
        access.approves = False
        with pytest.raises(AccessPendingError):
            request()
        own_file(data_dir).chmod(0o644)
        access.approve()
        fetch()
    finally:
        os.umask(umask)
    assert seen == [0o600] * 2
    assert stat.S_IMODE(own_file(data_dir).stat().st_mode) == 0o600
    manifest = data_dir / ".laion_fmri/manifest.json"
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o666  # as the user's umask has it


def test_login_and_logout(access, data_dir, capfd, at_terminal, secrets_of_test):
    request_id = access.grant()
    with pytest.raises(InvalidQueryError, match="no terminal"):
        login()
    for unusable in ("", " "):
        with pytest.raises(InvalidQueryError, match="is empty"):
            login(unusable)
    secrets_of_test.append("lfm_unknown_to_the_service")
    with pytest.raises(AccessNotFoundError) as caught:
        login("lfm_unknown_to_the_service")
    secrets_of_test.assert_not_told_by(caught.value)
    assert not own_file(data_dir).exists()
    at_terminal(request_id)
    login()
    status = access_status()
    assert status["status"] == "approved"
    assert status["source"] == str(own_file(data_dir))
    assert status["request_id"] == f"...{request_id[-3:]}"
    logout()
    assert not own_file(data_dir).exists()
    assert access_status()["request_id"] is None
    with pytest.raises(AccessRequiredError):
        fetch()
    logout()
    assert "There is no request_id" in capfd.readouterr().err


@pytest.fixture
def of_dataset(access, monkeypatch):
    """The access service as if it were that of the dataset."""
    monkeypatch.setattr(service, "DEFAULT_ACCESS_URL", access.url)
    return access


def test_an_id_is_shared_with_the_dataset_package(of_dataset, data_dir, tmp_path):
    """So other data directories have it, too; a new one replaces it in both files."""
    own, shared = own_file(data_dir), shared_file()
    of_dataset.approves = False
    with pytest.raises(AccessPendingError):
        request()
    assert saved(own)["status"] == saved(shared)["status"] == "pending"
    of_dataset.approve()
    fetch(max_images=1)
    assert access_status()["status"] == "approved"
    of_dataset.approves = True
    for call in (
        lambda: request(renew=True),
        lambda: login(of_dataset.grant(), verbose=0),
        lambda: request(renew=True),
    ):
        call()
        assert saved(own)["request_id"] == saved(shared)["request_id"]
    assert stat.S_IMODE(shared.stat().st_mode) == 0o600
    assert set(saved(shared)) == {"server_url", "request_id", "email", "saved_at"}
    assert fetch(max_images=1, data_dir=tmp_path / "second").archive
    logout()
    assert not shared.exists()
    assert not own.exists()


@pytest.mark.parametrize(
    "kept",
    [
        {"server_url": "https://other.example.org"},
        {"email": "bob@university.example"},
        {"email": None},
    ],
)
def test_the_id_of_somebody_else_stays(of_dataset, data_dir, kept):
    theirs = {"request_id": "lfm_theirs", "server_url": of_dataset.url, **kept}
    save(shared_file(), **theirs)
    before = shared_file().read_bytes()
    request(renew=True)
    assert saved(own_file(data_dir))["request_id"] != "lfm_theirs"
    logout()
    assert shared_file().read_bytes() == before


@pytest.mark.parametrize(
    ("way", "request_id"),
    [
        ("form", "Zm9v/+9=.~ e"),
        ("argument", "{3f2504e0-4f89}"),
        ("argument", "0"),
        ("prompt", "Zm9v/+9=.~ e"),
        ("variable", "Zm9v/+9=.~ e"),
        ("own", "Zm9v/+9=.~ e"),
        ("shared", "{3f2504e0-4f89}"),
    ],
)
def test_an_id_of_any_form_grants_access(
    access, data_dir, monkeypatch, secrets_of_test, at_terminal, way, request_id
):
    answer = approval(access)
    answers = {request_id: (200, {}, answer)}
    access.answers[REFRESH] = lambda body: answers.get(body["request_id"])
    access.answers[REQUEST] = (200, {}, {"request_id": request_id, **answer})
    if way == "form":
        request()
    elif way == "argument":
        login(request_id)
    elif way == "prompt":
        at_terminal(request_id)
        login()
    elif way == "variable":
        monkeypatch.setenv("LAION_FMRI_REQUEST_ID", f'"{request_id}"')
    else:
        file = own_file(data_dir) if way == "own" else shared_file()
        save(file, request_id, access.url)
    if len(request_id) > 1:
        secrets_of_test.append(request_id)
    assert fetch(max_images=1).archive
    assert refreshes(access)[-1]["request_id"] == request_id
    assert access_status(data_dir)["request_id"] == "..."


# --- The manifest ----------------------------------------------------------------

ENTRY = {
    "name": "task-images_stimuli.h5",
    "size": 3_200_000_000,
    "sha256": "0123456789abcdef" * 4,
}
DOCUMENTED = {"current_terms_version": "2026-05-12", "files": [{}, ENTRY]}


def test_the_manifest_as_documented(access):
    packed = gzip.compress(json.dumps(DOCUMENTED).encode())
    for answer in (
        (200, {}, {**DOCUMENTED, "files": [ENTRY]}),
        (200, {"Content-Encoding": "gzip"}, packed),
    ):
        access.answers[MANIFEST] = answer
        assert current_terms_version() == "2026-05-12"
    access.answers[MANIFEST] = (200, {}, {"files": [{**ENTRY, "sha256": "F" * 64}]})
    assert gate.published_archive(timeout=5)[:2] == (3_200_000_000, "f" * 64)
    access.answers[MANIFEST] = (200, {"Content-Encoding": "gzip"}, b"plain")
    with pytest.raises(AccessServiceError, match="cannot be unpacked"):
        current_terms_version()


@pytest.mark.parametrize(
    "changes",
    [
        {"current_terms_version": 2},
        {"current_terms_version": ""},
        {"current_terms_version": "\x1b[2J"},
        {"files": None},
        {"files": [{**ENTRY, "name": "other.h5"}]},
        {"files": [{**ENTRY, "size": "3"}]},
        {"files": [{**ENTRY, "sha256": "ab"}]},
        {"files": [{**ENTRY, "sha256": None}]},
        None,
    ],
)
def test_a_manifest_of_another_kind(access, changes):
    content = {**DOCUMENTED, "files": [ENTRY], **changes} if changes else []
    access.answers[MANIFEST] = (200, {}, content)
    if "files" not in (changes or {}):
        with pytest.raises(AccessServiceError, match="no terms version|not a JSON"):
            current_terms_version()
    else:
        with pytest.raises(AccessServiceError, match="no size or sha256"):
            gate.published_archive()


def test_the_manifest_is_kept_with_the_archive(access, data_dir, bucket_folder):
    data = (bucket_folder / ARCHIVE).read_bytes()
    request()
    fetch()
    saved = gate.saved_archive(str(data_dir))
    assert saved[:2] == (len(data), hashlib.sha256(data).hexdigest())
    file = data_dir / ".laion_fmri/manifest.json"
    for broken in (b"{", b"[]", b"\xff", b'{"size": 3}'):
        file.write_bytes(broken)
        assert not fetch().files_meta[1]["outdated"]
    access.answers[MANIFEST] = (503, {}, b"")
    assert fetch().archive
    access.stop()
    assert fetch(timeout=5).archive, "images on disk need no service"


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
    found = record["id"], record["size"], record["outdated"]
    assert found == (ARCHIVE, len(old), True)
    stimuli = fetch(mode="overwrite")
    assert Path(stimuli.archive).read_bytes() == new
    record = stimuli.files_meta[1]
    assert (record["size"], record["outdated"]) == (len(new), False)
    assert fetch().files_meta[1]["outdated"] is False


# --- What may not leak -----------------------------------------------------------


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


@pytest.mark.parametrize("is_full", [False, True], ids=["in the way", "full"])
def test_an_id_that_cannot_be_written(
    access, data_dir, secrets_of_test, monkeypatch, is_full
):
    kind, said, replace = StimulusAccessError, "cannot be kept", os.replace

    def full(source, target):
        if "auth.json" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    if is_full:
        kind, said = DiskSpaceError, "disk is full"
        monkeypatch.setattr(os, "replace", full)
    else:
        for file in (own_file(data_dir), shared_file()):
            (file / "in the way").mkdir(parents=True)
    for call in (lambda: request(renew=True), lambda: login(secrets_of_test[0])):
        with pytest.raises(kind, match=said) as caught:
            call()
        secrets_of_test.assert_not_told_by(caught.value)
        assert is_full or str(own_file(data_dir)) in str(caught.value)
        assert not is_full or caught.value.errno == errno.ENOSPC
    assert not [f for f in data_dir.rglob("*auth.json*") if f.is_file()]


def test_nothing_shows_a_secret(access, data_dir, secrets_of_test, capfd):
    request()
    opened = gate.open_gate(str(data_dir), "download_new", 5.0)
    url, kept = opened.url(False), gate.find_auth(str(data_dir))
    assert "X-Amz-Signature" in url
    for one in (opened, vars(opened), kept, url, opened.renew(), access_status()):
        secrets_of_test.assert_not_in(repr(one), type(one))
    # Tracebacks that cut long values show beginnings.
    assert repr(url[:6]) == repr(kept.request_id[:6]) == "'...'"
    stimuli = fetch(verbose=3, extract=True)
    secrets_of_test.assert_not_in(f"{dict(stimuli)}{stimuli!r}", "the Bunch")
    assert "3.2 GB" in capfd.readouterr().err


def test_the_watch_sees_a_leak(access, data_dir, secrets_of_test):
    """The fixture that greps does find an id where there is one."""
    request()
    chained = ValueError("nothing")
    chained.__context__ = ValueError(secrets_of_test[0])
    for leak in (
        ValueError(secrets_of_test[0]),
        ValueError("https://x.org/a?X-Amz-Signature=1"),
        chained,
    ):
        with pytest.raises(AssertionError, match="secret"):
            secrets_of_test.assert_not_told_by(leak)
