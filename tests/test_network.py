"""Listing, downloads and the access service by the ways of real networks.

TLS with a certificate of the test, proxies with and without a password (tinyproxy),
SOCKS (microsocks), and redirects. Where a program is missing, its tests are skipped.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import subprocess
import time

import fault_server as faults
import pytest
from fault_server import FaultServer, always, make_certificate
from policies import set_policy

from laion_fmri_fetchers import current_terms_version
from laion_fmri_fetchers.exceptions import AccessServiceError, BucketError
from laion_fmri_fetchers.remote.bucket import list_prefixes, object_url
from laion_fmri_fetchers.remote.client import CA_VARIABLES
from laion_fmri_fetchers.remote.download import Download, download_files

CONTENT = bytes(100_000)
LISTING = b"<ListBucketResult><Contents><Key>file</Key><Size>9</Size></Contents>"
SECRET = "X-Amz-Signature=s3cr3t"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Let nothing of this machine's proxies and certificates count; try little."""
    for name in (*CA_VARIABLES, "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "")
    set_policy(monkeypatch, first_wait=0.01, tries_away=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of this machine, and the context of a server that has it."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def over_tls(certificate, monkeypatch):
    """Serve a bucket of one file and the access service over TLS."""
    with FaultServer(certificate[1]) as server:
        server.put("file", CONTENT)
        server.objects[""] = (LISTING + b"</ListBucketResult>", None)
        server.put("api/v1/manifest", b'{"current_terms_version": "3"}')
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        monkeypatch.setenv("LAION_FMRI_ACCESS_URL", server.url)
        yield server


@pytest.fixture
def trusting(over_tls, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[0])
    return over_tls


def download(folder, timeout=5.0, **changes):
    size, etag = len(CONTENT), faults.etag_of(CONTENT)
    file = Download("file", object_url("file"), folder / "file", size, etag)
    settings = {"partial_dir": folder / "partial", "verbose": 0, "timeout": timeout}
    return download_files([file._replace(**changes)], **settings)


def reach_all(folder):
    """List, download and ask the access service; see that all of it is right."""
    (listing,) = list_prefixes([("", "")], verbose=0)
    assert [each.key for each in listing["objects"]] == ["file"]
    assert download(folder) == []
    assert (folder / "file").read_bytes() == CONTENT
    assert current_terms_version(timeout=5) == "3"


def reach_none(folder):
    """Return what listing, a download and the access service say that is wrong."""
    with pytest.raises(BucketError) as listing:
        list_prefixes([("", "")], verbose=0, timeout=5.0)
    (failed,) = download(folder)
    with pytest.raises(AccessServiceError) as service:
        current_terms_version(timeout=5)
    return str(listing.value), failed.reason, str(service.value)


# --- TLS -------------------------------------------------------------------------


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_a_certificate_of_ones_own(
    over_tls, certificate, tmp_path, monkeypatch, variable
):
    path = certificate[0]
    if variable == "SSL_CERT_DIR":
        digest = ["openssl", "x509", "-hash", "-noout", "-in", path]
        done = subprocess.run(digest, capture_output=True, text=True, check=True)
        (tmp_path / "trusted").mkdir()
        shutil.copy(path, tmp_path / "trusted" / f"{done.stdout.strip()}.0")
        path = str(tmp_path / "trusted")
    monkeypatch.setenv(variable, path)
    reach_all(tmp_path)


def test_faults_of_a_line_with_tls(trusting, tmp_path):
    trusting.faults["file"] = [faults.stall(5000), faults.reset(100)]
    assert download(tmp_path, timeout=1.0) == []
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_certificate_that_is_not_trusted(over_tls, tmp_path, monkeypatch):
    for said in reach_none(tmp_path):
        assert "TLS fails: CERTIFICATE_VERIFY_FAILED, self" in said
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/ca.pem")
    for said in reach_none(tmp_path):
        assert "SSL_CERT_FILE is /no/such/ca.pem, which cannot be used" in said
    assert over_tls.requests == []


# --- Proxies ---------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def proxy(scheme, folder, password=""):
    """Run a proxy for a user, if there is a password; yield its port, and its log."""
    port, log, conf = free_port(), folder / "proxy.log", folder / "proxy.conf"
    if scheme == "http":
        login = f"BasicAuth ada {password}" if password else ""
        conf.write_text(f"Port {port}\nListen 127.0.0.1\nLogLevel Connect\n{login}\n")
        command = ["tinyproxy", "-d", "-c", str(conf)]
    else:
        pytest.importorskip("socks")
        login = ["-u", "ada", "-P", password] if password else []
        command = ["microsocks", "-i", "127.0.0.1", "-p", str(port), *login]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.05)
            yield port, log
        finally:
            process.terminate()
            process.wait()


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
@pytest.mark.parametrize("password", ["", "a_secret"])
def test_a_proxy(trusting, tmp_path, monkeypatch, scheme, password):
    with proxy(scheme, tmp_path, password) as (port, log):
        user = f"ada:{password}@" if password else ""
        variable = "https_proxy" if scheme == "http" else "all_proxy"
        monkeypatch.setenv(variable, f"{scheme}://{user}127.0.0.1:{port}")
        reach_all(tmp_path)
        way = "CONNECT 127.0.0.1:{}" if scheme == "http" else "to 127.0.0.1:{}"
        assert way.format(trusting.port) in log.read_text()
    assert not any("proxy-authorization" in asked for _, asked in trusting.requests)


@pytest.mark.parametrize(("scheme", "says"), [("http", "407|401"), ("socks5h", "")])
def test_a_proxy_that_wants_another_password(
    trusting, tmp_path, monkeypatch, scheme, says
):
    with proxy(scheme, tmp_path, "a_secret") as (port, _):
        monkeypatch.setenv("all_proxy", f"{scheme}://ada:wr0ng@127.0.0.1:{port}")
        for said in reach_none(tmp_path):
            assert "the proxy fails: " in said
            assert not says or any(status in said for status in says.split("|"))
            assert "wr0ng" not in said
    assert trusting.requests == []


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_that_is_not_there(trusting, tmp_path, monkeypatch, scheme):
    if scheme == "socks5h":
        pytest.importorskip("socks")
    monkeypatch.setenv("all_proxy", f"{scheme}://ada:a_secret@127.0.0.1:{free_port()}")
    for said in reach_none(tmp_path):
        assert "the proxy fails: " in said
        assert "refused" in said
        assert "a_secret" not in said
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    reach_all(tmp_path)


def test_a_proxy_over_tls(certificate, trusting, tmp_path, monkeypatch):
    """That it was reached over TLS and understood shows in its refusal."""
    with FaultServer(certificate[1]) as server:
        monkeypatch.setenv("https_proxy", server.url)
        for said in reach_none(tmp_path):
            assert "the proxy fails: Tunnel connection failed: 404" in said


def test_a_proxy_of_a_server_without_tls(tmp_path, monkeypatch):
    with FaultServer() as server:
        server.put("file", CONTENT)
        login = f"ada:a%20secret@127.0.0.1:{server.port}"
        monkeypatch.setenv("http_proxy", f"http://{login}")
        assert download(tmp_path, url="http://bucket.invalid/file") == []
        (asked,) = (headers for _, headers in server.requests)
    code = base64.b64encode(b"ada:a secret").decode()
    assert asked["proxy-authorization"] == f"Basic {code}"
    assert asked["host"] == "bucket.invalid"


# --- Redirects -------------------------------------------------------------------


def redirect(server, target, key="file"):
    location = f"{target}?{SECRET}"
    server.faults[key] = [always(faults.status(307, Location=location))]


@pytest.mark.parametrize("is_secret", [True, False], ids=["secret", "public"])
def test_a_redirect_from_tls_to_none(trusting, tmp_path, monkeypatch, is_secret):
    with FaultServer() as other:
        other.put("file", CONTENT)
        redirect(trusting, f"{other.url}/file")
        redirect(trusting, other.url, "")
        url = f"{trusting.url}/file?{SECRET}"
        (failed,) = download(tmp_path, url=(lambda renew: url) if is_secret else url)
        assert failed.reason == "it is redirected from https to http"
        with pytest.raises(BucketError, match="redirected from https to http"):
            list_prefixes([("", "")], verbose=0)
        assert other.requests == []


def test_a_presigned_address_stays_with_its_server(tmp_path):
    with FaultServer() as first, FaultServer() as other:
        other.put("file", CONTENT)
        redirect(first, f"{other.url}/file")
        url = f"{first.url}/file?{SECRET}"
        (failed,) = download(tmp_path, url=lambda renew: url)
        assert "redirected elsewhere" in failed.reason
        assert "s3cr3t" not in str(failed)
        assert other.requests == []
        assert download(tmp_path, url=f"{first.url}/file") == []
        assert (tmp_path / "file").read_bytes() == CONTENT
