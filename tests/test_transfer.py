"""Transfers from a server that fails in every way that networks, disks and users do."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import gc
import hashlib
import ipaddress
import itertools
import json
import logging
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import fault_server as faults
import pytest
from conftest import unwritable
from fault_server import FaultServer, always, etag_of, fine
from filelock import FileLock
from policies import set_policy

from laion_fmri_fetchers.exceptions import (
    AccessRevokedError,
    DataDirectoryError,
    DiskSpaceError,
)
from laion_fmri_fetchers.transfer import (
    checksums,
    disks,
    http,
    leftovers,
    owners,
    partials,
    positions,
    ranges,
)
from laion_fmri_fetchers.transfer.transfer import (
    Download,
    check_file,
    download_files,
    part_sizes,
)

RANGE = 2**16
MIB = 2**20


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Let small files have several ranges, and waits be short."""
    set_policy(monkeypatch, range_size=RANGE, first_wait=0.01, poll=0.01)


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    """A data directory; afterwards no thread is left of what was called."""
    before = set(threading.enumerate())
    yield tmp_path / "data"
    names = [t.name for t in set(threading.enumerate()) - before if "_work" in t.name]
    assert names == []


def content(size, seed=0):
    return random.Random(seed).randbytes(size)


def a_download(server, folder, key="file", size=5 * RANGE, part=None, **changes):
    """Store an object; return how to fetch it."""
    data = content(size, key)
    etag = server.put(key, data, part)
    values = {
        "id": key,
        "url": f"{server.url}/{key}",
        "path": folder / "files" / key,
        "size": size,
        "etag": etag,
    }
    return Download(**{**values, **changes})


def fetch(downloads, folder, **options):
    downloads = [downloads] if isinstance(downloads, Download) else downloads
    settings = {"verbose": 0, "timeout": 2.0, "n_connections": 4, **options}
    return download_files(downloads, partial_dir=folder / "partial", **settings)


def assert_whole(server, *downloads):
    for download in downloads:
        assert Path(download.path).read_bytes() == server.objects[download.id][0]


def left(folder):
    return sorted(path.name for path in (folder / "partial").iterdir())


# --- What should come, comes -----------------------------------------------------


@pytest.mark.parametrize("known", ["md5", "parts", "sha256", "size", "nothing", "odd"])
def test_all_sizes_arrive_whole(server, folder, known):
    sizes = [0, 1, RANGE // 4, RANGE // 4 + 1, RANGE, 3 * RANGE + 7, 2 * MIB + 5]
    downloads = []
    for size in sizes:
        key = f"a b/file {size}"
        part = MIB if known == "parts" and size else None
        one = a_download(server, folder, key, size, part)
        one = one._replace(url=f"{server.url}/a%20b/file%20{size}")
        if known == "sha256":
            digest = hashlib.sha256(server.objects[key][0]).hexdigest()
            one = one._replace(etag=None, sha256=digest)
        elif known == "size":
            one = one._replace(etag=None)
        elif known == "nothing":
            one = one._replace(etag=None, size=None)
        elif known == "odd":
            server.objects[key] = (server.objects[key][0], "not-an-md5")
            one = one._replace(etag="not-an-md5")
        downloads.append(one)
    assert fetch(downloads, folder) == []
    assert_whole(server, *downloads)
    assert left(folder) == []
    umask = os.umask(0)
    os.umask(umask)
    assert {d.path.stat().st_mode & 0o777 for d in downloads} == {0o666 & ~umask}


def test_ranges_are_spread_over_connections_and_name_the_etag(server, folder):
    download = a_download(server, folder, size=8 * RANGE)
    assert fetch(download, folder) == []
    asked = [fields for _, fields in server.requests]
    assert len(asked) == 8
    assert {fields["if-match"] for fields in asked} == {f'"{download.etag}"'}
    assert {fields["accept-encoding"] for fields in asked} == {"identity"}


def test_parts_of_one_upload_are_hashed_without_reading_the_file_again(
    server, folder, monkeypatch
):
    set_policy(monkeypatch, range_size=4 * MIB)
    monkeypatch.setattr(partials, "read_at", None)
    download = a_download(server, folder, size=5 * MIB + 3, part=MIB)
    assert fetch(download, folder) == []
    assert_whole(server, download)


def test_nothing_to_do_touches_nothing(folder):
    assert fetch([], folder) == []
    assert not folder.exists()


def test_a_file_that_is_there_is_not_fetched_again(server, folder):
    download = a_download(server, folder)
    download.path.parent.mkdir(parents=True)
    download.path.write_bytes(b"x" * download.size)
    assert fetch(download, folder) == []
    assert server.requests == []
    assert fetch(download, folder, overwrite=True) == []
    assert_whole(server, download)


def test_a_file_of_another_size_is_replaced(server, folder):
    download = a_download(server, folder)
    download.path.parent.mkdir(parents=True)
    download.path.write_bytes(b"x")
    assert fetch(download, folder) == []
    assert_whole(server, download)


def test_a_partial_folder_that_is_a_link_elsewhere(server, folder):
    elsewhere = folder.with_name("elsewhere") / "deep" / "down"
    elsewhere.mkdir(parents=True)
    folder.mkdir()
    (folder / "partial").symlink_to(elsewhere)
    download = leave_unfinished(server, folder)
    assert left(folder) != []
    assert fetch(download, folder) == []
    assert server.sent == RANGE
    assert_whole(server, download)
    assert left(folder) == []


def test_an_unfinished_file_that_is_removed_starts_over(server, folder):
    download = a_download(server, folder)

    def remove(key):
        if len(server.requests) == 3:
            for path in (folder / "partial").glob("*.part"):
                path.unlink()

    server.on_request = remove
    assert fetch(download, folder) == []
    assert_whole(server, download)
    assert left(folder) == []


def test_the_same_file_twice_in_a_call(server, folder):
    download = a_download(server, folder)
    assert fetch([download, download], folder) == []
    assert server.sent == download.size
    assert_whole(server, download)


def test_redirects_are_followed(server, folder):
    download = a_download(server, folder)
    server.objects["moved"] = (b"", None)
    server.faults["moved"] = [always(faults.status(307, Location="/file"))]
    assert fetch(download._replace(url=f"{server.url}/moved"), folder) == []
    assert_whole(server, download)


def test_proxies_of_the_environment_are_used(server, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    download = a_download(server, folder)
    assert fetch(download._replace(url="http://bucket.invalid/file"), folder) == []
    assert_whole(server, download)


def test_a_proxy_that_asks_for_a_password(server, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://ada:a%20secret@127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "")
    download = a_download(server, folder)
    assert fetch(download._replace(url="http://bucket.invalid/file"), folder) == []
    sent = {fields["proxy-authorization"] for _, fields in server.requests}
    assert sent == {"Basic " + base64.b64encode(b"ada:a secret").decode()}


@pytest.fixture
def certificate(tmp_path):
    """A key and a certificate of 127.0.0.1, in one file."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            encoding,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(encoding)
    )
    return str(path)


def test_tls(folder, certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultServer(context) as server:
        download = a_download(server, folder)
        (failed,) = fetch(download, folder)
        assert "CERTIFICATE_VERIFY_FAILED" in failed["reason"]
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
        server.faults["file"] = [faults.stall(5000), faults.reset(100)]
        assert fetch(download, folder, timeout=0.5) == []
        assert_whole(server, download)


class Tunnel(threading.Thread):
    """A proxy that leads each CONNECT to one server, and notes what it was asked."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.heads = port, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.lead, args=(client,), daemon=True).start()

    def lead(self, client):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        self.heads.append(head.decode())
        with client, socket.create_connection(("127.0.0.1", self.port)) as server:
            client.sendall(b"HTTP/1.1 200 Fine\r\n\r\n")
            back = threading.Thread(target=self.pump, args=(server, client))
            back.start()
            self.pump(client, server)
            back.join()

    def pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_tls_through_a_proxy(folder, certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    monkeypatch.setenv("no_proxy", "")
    with FaultServer(context) as server:
        tunnel = Tunnel(server.port)
        proxy = f"http://ada:secret@127.0.0.1:{tunnel.listener.getsockname()[1]}"
        monkeypatch.setenv("https_proxy", proxy)
        download = a_download(server, folder)
        assert fetch(download, folder) == []
        assert_whole(server, download)
        assert not any("proxy-authorization" in fields for _, fields in server.requests)
    tunnel.listener.close()
    code = base64.b64encode(b"ada:secret").decode()
    for head in tunnel.heads:
        assert head.startswith(f"CONNECT 127.0.0.1:{server.port} ")
        assert f"Proxy-Authorization: Basic {code}\r\n" in head
    assert len(tunnel.heads) > 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_proxy_that_refuses(server, folder, monkeypatch):
    monkeypatch.setenv("https_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    download = a_download(server, folder)
    (failed,) = fetch(download._replace(url="https://bucket.invalid/file"), folder)
    assert "the proxy fails: Tunnel connection failed: 404" in failed["reason"]
    gc.collect()  # of the sockets that http.client leaves open up to Python 3.11


def test_a_folder_on_another_file_system(server, folder, monkeypatch):
    real = os.replace

    def replace(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    download = a_download(server, folder)
    assert fetch(download, folder) == []
    assert_whole(server, download)
    assert os.listdir(download.path.parent) == ["file"]
    assert left(folder) == []


# --- Faults ----------------------------------------------------------------------

PASSING = {
    "status 503": [faults.status(503)] * 2,
    "status 500": [faults.status(500)] * 2,
    "status 429": [faults.status(429, Retry_After="0")],
    "nonsense in Retry-After": [faults.status(429, Retry_After="soon")],
    "reset at once": [faults.reset()] * 2,
    "reset in the body": [faults.reset(5000)] * 2,
    "body cut short": [faults.short(5000), fine, faults.short(0)],
    "stall before the body": [faults.stall(0)],
    "stall in the body": [faults.stall(5000)],
    "no answer": [faults.wait(1.0)],
    "a byte now and then": [faults.drip(20.0)],
    "a wrong byte": [fine, faults.wrong_bytes],
    "too small a length": [faults.wrong_length(-10)],
    "too large a length": [faults.wrong_length(10)],
    "another range": [faults.wrong_range],
    "range ignored": [fine, faults.ignore_range],
    "range ignored always": [always(faults.ignore_range)],
    "no lengths": [always(faults.chunked)],
    "a connection closed in place of a length": [always(faults.no_length)],
    "a label of an encoding": [always(faults.headers(Content_Encoding="gzip"))],
    "no request for a while": [faults.status(408)],
}


@pytest.mark.parametrize("size", [RANGE // 2, 5 * RANGE + 3])
@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes(server, folder, fault, size):
    server.faults["file"] = list(PASSING[fault])
    other = a_download(server, folder, "other", 3 * RANGE)
    download = a_download(server, folder, size=size)
    assert fetch([download, other], folder, timeout=0.3) == []
    assert_whole(server, download, other)
    assert left(folder) == []


LASTING = {
    "status 503": (faults.status(503), 503, "status 503"),
    "status 500": (faults.status(500), 500, "status 500"),
    "denied": (faults.status(403), 403, "status 403"),
    "gone": (faults.status(404), 404, "status 404"),
    "reset": (faults.reset(100), None, "connection"),
    "body cut short": (faults.short(100), None, "ended early"),
    "stall": (faults.stall(100), None, "no byte for 0.2 s"),
    "wrong bytes": (faults.wrong_bytes, None, "instead of"),
    "wrong length": (faults.wrong_length(3), 206, "Content-Length"),
    "another range": (faults.wrong_range, 206, "another range"),
    "a range not named": (faults.no_range, 206, "does not say what range"),
    "redirected in a circle": (faults.status(307, Location="/file"), None, "circle"),
}


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_fault_that_lasts(server, folder, fault, is_there):
    what, status, words = LASTING[fault]
    server.faults["file"] = [fine, always(what)]
    download, other = (
        a_download(server, folder, key, 4 * RANGE) for key in ("file", "other")
    )
    if is_there:
        download.path.parent.mkdir(parents=True)
        download.path.write_bytes(b"older")
    (failed,) = fetch([download, other], folder, timeout=0.2)
    assert failed["id"] == "file"
    assert failed["status"] == status
    assert words in failed["reason"]
    assert_whole(server, other)
    assert download.path.exists() == is_there
    assert not is_there or download.path.read_bytes() == b"older"
    assert all(not name.endswith(".lock") for name in left(folder))

    server.faults.clear()
    assert fetch([download, other], folder) == []
    assert_whole(server, download, other)
    assert left(folder) == []


def test_single_keys_denied_and_gone(server, folder):
    downloads = [a_download(server, folder, f"f{i}", 100) for i in range(20)]
    del server.objects["f3"]
    server.faults["f7"] = [always(faults.status(403))]
    failed = fetch(downloads, folder)
    assert [(one["id"], one["status"]) for one in failed] == [("f3", 404), ("f7", 403)]
    assert server.count("f3") == server.count("f7") == 1
    rest = [d for d in downloads if d.id not in ("f3", "f7")]
    assert_whole(server, *rest)


def test_unreachable_servers(server, folder):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    download = a_download(server, folder)
    nowhere = download._replace(id="a", url="http://bucket.invalid/file")
    refused = download._replace(
        id="b", url=f"http://127.0.0.1:{port}/file", path=folder / "b"
    )
    first, second = fetch([nowhere, refused], folder)
    assert "name cannot be resolved" in first["reason"]
    assert "refused" in second["reason"]
    assert fetch(download, folder) == []
    assert_whole(server, download)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/file", "http:///file", "file"])
def test_what_is_no_address(folder, url):
    download = Download("file", url, folder / "files" / "file", 10, "0" * 32)
    (failed,) = fetch(download, folder)
    assert failed["reason"] == "its address is not valid"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lets callers wait")
def test_a_server_that_accepts_nobody(folder):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            url = f"http://127.0.0.1:{address[1]}/file"
            download = Download("file", url, folder / "files" / "file", 10, "0" * 32)
            (failed,) = fetch(download, folder, timeout=0.2)
    assert failed["reason"] == "the server does not accept connections (3 times)"


def test_a_server_that_is_away_for_a_while(folder, monkeypatch):
    set_policy(monkeypatch, first_wait=0.05)

    def n_noted():
        journals = (folder / "partial").glob("*.done")
        return sum(journal.read_bytes().count(b"\n") - 1 for journal in journals)

    with FaultServer() as server:
        download = a_download(server, folder, size=10 * RANGE)
        server.faults["file"] = [fine] * 3 + [always(faults.stall(0))]
        later = []

        def restart():
            for _ in range(2000):
                if len(server.requests) > 3 and n_noted() == 3:
                    break
                time.sleep(0.01)
            server.__exit__()
            time.sleep(0.5)
            later.append(FaultServer(port=server.port))
            later[0].objects.update(server.objects)

        restarting = threading.Thread(target=restart)
        restarting.start()
        try:
            assert fetch(download, folder, timeout=10.0) == []
        finally:
            restarting.join()
            later[0].__exit__()
    assert_whole(server, download)
    assert len(later[0].requests) == 7


def test_a_server_that_does_not_say_how_much_it_sends(server, folder):
    def hide(reply):
        faults.ignore_range(reply)
        faults.no_length(reply)

    server.faults["file"] = [always(hide)]
    download = a_download(server, folder, size=10)._replace(size=None, etag=None)
    (failed,) = fetch(download, folder)
    assert failed["reason"] == "the server does not say its size"


@contextlib.contextmanager
def dripping(first, then):
    """Serve an answer that begins at once, and goes on by a few bytes now and then."""
    stopped = threading.Event()

    def drip(client):
        with client, contextlib.suppress(OSError):
            client.sendall(first)
            while not stopped.wait(0.1):
                client.sendall(then)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=drip, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/file"
        stopped.set()


def test_a_body_that_begins_fast_and_drips_is_given_up(folder, monkeypatch):
    set_policy(monkeypatch, grace=0.2, tries=2, range_size=4 * MIB)
    head = b"HTTP/1.1 200 Fine\r\nContent-Length: 4194304\r\n\r\n"
    began = time.monotonic()
    with dripping(head + b"x" * MIB, b"y") as url:
        download = Download("file", url, folder / "files" / "file", 4 * MIB, "opaque")
        (failed,) = fetch(download, folder, timeout=0.5)
    assert failed["id"] == "file"
    assert time.monotonic() - began < 60


def test_headers_that_drip_are_given_up(folder, monkeypatch):
    set_policy(monkeypatch, grace=0.2, tries=2)
    began = time.monotonic()
    with dripping(b"HTTP/1.1 206 Fine\r\n", b"X: y\r\n") as url:
        download = Download("file", url, folder / "files" / "file", 10, "0" * 32)
        (failed,) = fetch(download, folder, timeout=0.5)
    assert failed["reason"] == "no byte for 0.5 s (2 times)"
    assert time.monotonic() - began < 60


def test_the_server_is_waited_for_as_it_asks(server, folder):
    times = []
    server.on_request = lambda key: times.append(time.monotonic())
    server.faults["file"] = [faults.status(429, Retry_After="1")]
    assert fetch(a_download(server, folder, size=10), folder) == []
    assert times[1] - times[0] >= 1.0


def test_two_mismatches_fail_with_both_values(server, folder):
    download = a_download(server, folder, size=100)
    server.faults["file"] = [always(faults.wrong_bytes)]
    (failed,) = fetch(download, folder)
    data = server.objects["file"][0]
    assert download.etag in failed["reason"]
    assert etag_of(data[:-1] + bytes([data[-1] ^ 1])) in failed["reason"]
    assert server.count("file") == 2
    assert left(folder) == []


def test_a_wrong_sha256_fails_with_both_values(server, folder):
    download = a_download(server, folder, sha256="0" * 64)
    (failed,) = fetch(download, folder)
    assert "0" * 64 in failed["reason"]
    assert hashlib.sha256(server.objects["file"][0]).hexdigest() in failed["reason"]


@pytest.mark.parametrize("part", [5, 7])
def test_an_unusual_part_size_is_found(server, folder, part):
    download = a_download(server, folder, size=9 * MIB, part=part * MIB)
    assert part_sizes(download.size, 2)[0] == 8 * MIB
    assert fetch(download, folder) == []
    assert_whole(server, download)


def test_an_object_that_changes_between_ranges(server, folder):
    download = a_download(server, folder)
    new = content(7 * RANGE + 1, "new")

    def change(key):
        if len(server.requests) == 3:
            server.put("file", new)

    server.on_request = change
    with pytest.warns(UserWarning, match="file changed in the bucket"):
        assert fetch(download, folder) == []
    assert download.path.read_bytes() == new
    assert left(folder) == []


def test_an_object_that_changes_all_the_time(server, folder):
    download = a_download(server, folder)
    server.on_request = lambda key: server.put("file", os.urandom(5 * RANGE))
    (failed,) = fetch(download, folder)
    assert "changed" in failed["reason"]
    assert not download.path.exists()
    server.on_request = None
    with pytest.warns(UserWarning, match="changed"):
        assert fetch(download, folder) == []
    assert_whole(server, download)


def test_an_object_that_changed_though_the_server_ignores_if_match(server, folder):
    download = a_download(server, folder, size=10)
    server.put("file", b"new content")
    server.faults["file"] = [always(lambda reply: None)]
    real = server._right
    server._right = lambda key, asked: real(key, {**asked, "if-match": server_etag()})

    def server_etag():
        return f'"{server.objects["file"][1]}"'

    with pytest.warns(UserWarning, match="changed"):
        assert fetch(download, folder) == []
    assert_whole(server, download)


def test_hopeless_runs_end_early(server, folder):
    downloads = [a_download(server, folder, f"f{i}", 10) for i in range(60)]
    server.objects.clear()
    failed = fetch(downloads, folder, n_connections=2, max_consecutive_fails=5)
    assert [one["id"] for one in failed] == [d.id for d in downloads]
    assert len(server.requests) <= 6
    assert "5 files failed in a row" in failed[-1]["reason"]


def test_hopeless_runs_end_large_files_too(server, folder):
    large = a_download(server, folder, "large", 4 * RANGE)
    server.faults["large"] = [always(faults.slow(RANGE / 8))]
    small = [a_download(server, folder, f"f{i}", 10) for i in range(5)]
    for download in small:
        del server.objects[download.id]
        server.faults[download.id] = [always(faults.wait(0.3))]
    options = {"n_connections": 24, "max_consecutive_fails": 5}
    failed = fetch([large, *small], folder, **options)
    assert len(failed) == 6
    assert failed[0]["status"] is None
    server.faults.clear()
    assert fetch(large, folder) == []
    assert_whole(server, large)


def test_a_place_that_cannot_be_written(server, folder):
    download, other = (a_download(server, folder, key) for key in ("file", "other"))
    download.path.mkdir(parents=True)
    (failed,) = fetch([download, other], folder)
    assert "cannot be written: is a directory" in failed["reason"]
    assert_whole(server, other)
    sent = server.sent
    download.path.rmdir()
    assert fetch(download, folder) == []
    assert server.sent == sent
    assert_whole(server, download)


def test_a_partial_folder_that_cannot_be_written(server, folder):
    (folder / "partial").mkdir(parents=True)
    download = a_download(server, folder)
    with (
        unwritable(folder / "partial"),
        pytest.raises(DataDirectoryError) as caught,
    ):
        fetch(download, folder)
    assert f"The folder {folder / 'partial'} cannot be written" in str(caught.value)
    assert server.requests == []


# --- Disks that are full ---------------------------------------------------------


@pytest.fixture
def small_disk(folder):
    """A file system of 1 MiB, which can be made larger."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_is_seen_before_the_download(server, folder):
    func = folder / "func"
    func.mkdir(parents=True)
    download = a_download(server, folder)._replace(path=func / "file")
    with unwritable(func):
        (failed,) = fetch(download, folder)
    assert f"the folder {func} cannot be written: permission" in failed["reason"]
    assert server.requests == []


def test_kinds_of_file_systems(small_disk, tmp_path):
    assert disks.file_system(small_disk) == "tmpfs"
    assert disks.file_system("/proc") == "proc"
    assert disks.file_system(tmp_path / "missing") == ""


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(server, small_disk):
    download = a_download(server, small_disk, size=2 * MIB)
    with pytest.raises(DiskSpaceError, match=r"2\.1 MB are needed") as caught:
        fetch(download, small_disk)
    assert caught.value.errno == 28
    assert server.requests == []


def test_a_disk_that_fills(server, small_disk):
    downloads = [a_download(server, small_disk, f"f{i}", 10 * RANGE) for i in range(3)]
    with pytest.raises(DiskSpaceError, match="Files that arrived stay; make space"):
        fetch([d._replace(size=None) for d in downloads], small_disk)
    for download in downloads:
        assert not download.path.exists() or download.path.stat().st_size == 10 * RANGE
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    sent = server.sent
    assert fetch(downloads, small_disk) == []
    assert server.sent - sent < 30 * RANGE
    assert_whole(server, *downloads)
    assert left(small_disk) == []


def test_a_quota_that_is_exceeded(server, folder, monkeypatch):
    download = a_download(server, folder)
    real, written = positions._write_some, []

    def write(descriptor, chunk, offset):
        written.append(len(chunk))
        if sum(written) > 2 * RANGE:
            raise OSError(122, "Disk quota exceeded")
        return real(descriptor, chunk, offset)

    with monkeypatch.context() as patch:
        patch.setattr(positions, "_write_some", write)
        with pytest.raises(DiskSpaceError, match="quota") as caught:
            fetch(download, folder)
    assert "are free" not in str(caught.value)
    assert not download.path.exists()
    assert fetch(download, folder) == []
    assert_whole(server, download)


def test_a_disk_without_inodes(server, small_disk):
    options = "remount,nr_inodes=4"
    subprocess.run(["mount", "-o", options, str(small_disk)], check=True)
    downloads = [a_download(server, small_disk, f"f{i}", 10) for i in range(8)]
    with pytest.raises(DiskSpaceError, match="inode") as caught:
        fetch(downloads, small_disk)
    assert "are free" not in str(caught.value)


def test_a_full_disk_behind_a_linked_folder(server, small_disk, tmp_path):
    folder = tmp_path / "with a link"
    folder.mkdir()
    (folder / "files").symlink_to(small_disk)
    download = a_download(server, folder, size=2 * MIB)
    for _ in range(2):
        with pytest.raises(DiskSpaceError, match="are free in") as caught:
            fetch(download, folder)
        assert f"in {folder / 'files'}." in str(caught.value)
        assert os.listdir(small_disk) == []
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    sent = server.sent
    assert fetch(download, folder) == []
    assert server.sent == sent
    assert_whole(server, download)


def test_what_a_killed_process_copied_to_another_disk_is_removed(server, small_disk):
    folder = small_disk.with_name("with a link")
    folder.mkdir()
    (folder / "files").symlink_to(small_disk)
    download = a_download(server, folder)
    relative = os.path.relpath(download.path, folder / "partial")
    gone = f"{owners._host()}-{owners._machine()}-{2**22 + 1}-aaaa"
    (small_disk / f".{partials.stem(relative)}.{gone}.part").write_bytes(b"x")
    assert fetch(download, folder) == []
    assert os.listdir(small_disk) == ["file"]


def test_what_can_be_reused_is_not_needed_again(server, folder, monkeypatch):
    download = leave_unfinished(server, folder)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=download.size)
    )
    assert fetch(download, folder) == []
    other = a_download(server, folder, "other", download.size + 1)
    with pytest.raises(DiskSpaceError):
        fetch(other, folder)


# --- Going on where it was left --------------------------------------------------


def leave_unfinished(server, folder, n_ranges=10):
    """Fetch all ranges of a file but the last; return how to fetch it."""
    download = a_download(server, folder, size=n_ranges * RANGE)

    def deny_last(reply):
        if reply.body == reply.data[-len(reply.body) :]:
            faults.status(500)(reply)

    server.faults["file"] = [always(deny_last)]
    (failed,) = fetch(download, folder)
    assert failed["status"] == 500
    server.faults.clear()
    server.requests.clear()
    server.sent = 0
    return download


def test_resume_fetches_only_what_lacks(server, folder):
    download = leave_unfinished(server, folder)
    assert len(left(folder)) == 2
    assert fetch(download, folder) == []
    assert server.sent == RANGE
    assert server.requests[0][1]["if-match"] == f'"{download.etag}"'
    assert_whole(server, download)
    assert left(folder) == []


def test_resume_to_the_byte(server, folder):
    download = a_download(server, folder, size=RANGE // 4)
    server.faults["file"] = [always(faults.short(10_000))]
    fetch(download, folder)
    server.faults.clear()
    sent, server.sent = server.sent, 0
    assert fetch(download, folder) == []
    assert sent + server.sent < 2 * download.size
    assert server.requests[-1][1]["range"].startswith("bytes=10000-")
    assert_whole(server, download)


def test_resume_when_the_folder_was_moved(server, folder):
    download = leave_unfinished(server, folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    download = download._replace(path=moved / "files" / "file")
    assert fetch(download, moved) == []
    assert server.sent == RANGE
    assert_whole(server, download)


def test_resume_of_a_file_whose_etag_only_the_server_knows(server, folder):
    data = content(10 * RANGE, "file")
    digest = hashlib.sha256(data).hexdigest()
    leave_unfinished(server, folder)
    shutil.rmtree(folder)
    download = a_download(server, folder, size=10 * RANGE)._replace(
        etag=None, sha256=digest
    )
    server.faults["file"] = [fine] * 6 + [always(faults.status(500))]
    assert fetch(download, folder) != []
    server.faults.clear()
    server.requests.clear()
    assert fetch(download, folder) == []
    assert len(server.requests) < 10
    assert_whole(server, download)


def test_an_object_that_changed_meanwhile_starts_over(server, folder):
    download = leave_unfinished(server, folder)
    new = content(10 * RANGE, "new")
    etag = server.put("file", new)
    assert fetch(download._replace(etag=etag), folder) == []
    assert server.sent == 10 * RANGE
    assert download.path.read_bytes() == new
    assert left(folder) == []


def test_an_object_that_changed_since_it_was_listed_starts_over(server, folder):
    download = leave_unfinished(server, folder)
    server.put("file", content(9 * RANGE, "new"))
    with pytest.warns(UserWarning, match="changed"):
        assert fetch(download, folder) == []
    assert_whole(server, download)
    assert left(folder) == []


@pytest.mark.parametrize("lost", ["its bytes", "its end", "all of it"])
def test_damaged_leftovers_are_not_trusted(server, folder, lost):
    download = leave_unfinished(server, folder)
    (part,) = (folder / "partial").glob("*.part")
    if lost == "its bytes":
        part.write_bytes(bytes(part.stat().st_size))
    else:
        os.truncate(part, 0 if lost == "all of it" else 3 * RANGE + 5)
    assert fetch(download, folder) == []
    assert_whole(server, download)
    assert left(folder) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-3],
        lambda text: text[:40],
        lambda text: text.replace("[0, ", "[-5, "),
        lambda text: text.replace("\n[", "\n[[", 1),
        lambda text: text.replace('"size": ', '"size": "x', 1),
        lambda text: "\x00" * len(text),
        lambda text: "[]\n[]\n",
        lambda text: "",
    ],
)
def test_damaged_journals_are_harmless(server, folder, damage):
    download = leave_unfinished(server, folder)
    (journal,) = (folder / "partial").glob("*.done")
    journal.write_text(damage(journal.read_text()))
    assert fetch(download, folder) == []
    assert_whole(server, download)
    (folder / "partial" / "notes.txt").write_text("of a user")
    leftovers.clean(folder / "partial")
    kept = [name for name in left(folder) if not name.endswith(("part", "done"))]
    assert kept == ["notes.txt"]


def make_foreign(folder, owner):
    """Let what is unfinished seem to be of another process; return the files."""
    renamed = []
    for path in (folder / "partial").iterdir():
        stem, _, kind = path.name.split(".")
        lines = path.read_bytes().replace(b"[]\n", b"")
        path.unlink()
        renamed.append(path.with_name(f"{stem}.{owner}.{kind}"))
        renamed[-1].write_bytes(lines)
    return sorted(renamed)


@pytest.mark.parametrize(
    "owner",
    [
        "elsewhere-12-aaaa",
        f"{owners._host()}-{owners._machine()}-1-bbbb",
        # No process of this machine has that number; of a container, perhaps one.
        f"{owners._host()}-{'0' * 16}-{2**22 + 1}-dddd",
        f"{owners._host()}-{2**22 + 1}-eeee",
        f"{owners._host()}-{owners._machine()}-{2**70}-cccc",
        "of-another-programme",
    ],
)
def test_another_process_may_still_write_to_its_file(server, folder, owner):
    download = leave_unfinished(server, folder)
    files = make_foreign(folder, owner)
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert fetch(download, folder) == []
    assert server.sent == RANGE
    assert_whole(server, download)
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in files] == before

    for path in files:
        os.utime(path, (0, 0))
    assert fetch(download, folder) == []
    assert left(folder) == []


def test_what_the_version_before_left_is_used(server, folder):
    """Its names lack the machine; that its journal is closed is enough."""
    download = leave_unfinished(server, folder)
    for path in (folder / "partial").iterdir():
        stem, _, kind = path.name.split(".")
        path.rename(path.with_name(f"{stem}.{owners._host()}-123-0123456789ab.{kind}"))
    assert fetch(download, folder) == []
    assert server.sent == RANGE
    assert_whole(server, download)
    assert left(folder) == []


MACHINE = "from laion_fmri_fetchers.transfer import owners; print(owners._machine())"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has such containers")
def test_processes_of_another_container_are_never_gone():
    ours = subprocess.run([sys.executable, "-c", MACHINE], capture_output=True)
    assert ours.stdout.decode().strip() == owners._machine()
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", MACHINE]
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    theirs = subprocess.run(command, capture_output=True)
    if theirs.returncode:
        pytest.skip("a space of process numbers cannot be made here")
    assert theirs.stdout.decode().strip() != owners._machine()


def test_machines_whose_names_begin_alike(monkeypatch):
    names = [f"{'pod-of-a-long-name-' * 3}{i}" for i in range(2)]
    machines = []
    for name in names:
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        machines.append(owners._machine())
    assert names[0][:40] == names[1][:40]
    assert machines[0] != machines[1]


def test_a_file_that_another_finished_while_its_unfinished_one_was_removed(
    server, folder
):
    download = a_download(server, folder)

    def replace(key):
        if len(server.requests) == 5:
            for path in (folder / "partial").glob("*.part"):
                path.unlink()
            download.path.parent.mkdir(parents=True)
            download.path.write_bytes(server.objects["file"][0])

    server.on_request = replace
    assert fetch(download, folder) == []
    assert server.sent == download.size
    assert_whole(server, download)
    assert left(folder) == []


def test_a_clock_that_is_ahead_of_the_file_server(server, folder, monkeypatch):
    (folder / "partial").mkdir(parents=True)
    part = folder / "partial" / f"{'0' * 24}.elsewhere-12-aaaa.part"
    part.write_bytes(b"x")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7 * 24 * 3600)
    assert fetch(a_download(server, folder), folder) == []
    assert left(folder) == [part.name]
    os.utime(part, (0, 0))
    assert fetch(a_download(server, folder, "other"), folder) == []
    assert left(folder) == []


def test_leftovers_of_two_processes_are_put_together(server, folder):
    download = leave_unfinished(server, folder)
    make_foreign(folder, "elsewhere-12-aaaa")
    (journal,) = (folder / "partial").glob("*.done")
    first, *lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([first, *lines[:3]]))
    (part,) = (folder / "partial").glob("*.part")
    shutil.copy(part, str(part).replace("aaaa", "bbbb"))
    Path(str(journal).replace("aaaa", "bbbb")).write_text("".join([first, *lines[2:6]]))
    assert fetch(download, folder) == []
    done = ranges.merged(json.loads(line) for line in lines[:6])
    assert server.sent == download.size - ranges.length(done)
    assert_whole(server, download)


def test_no_connection_stays_open(server, folder):
    """Neither sockets nor what refers to them are left of many downloads."""

    def sockets():
        gc.collect()
        links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
        return sum(
            "socket" in os.readlink(link) for link in links if os.path.islink(link)
        )

    before = sockets()
    for i in range(4):
        download = a_download(server, folder, size=8 * RANGE, key=f"file-{i}")
        assert fetch(download, folder) == []
    for _ in range(50):  # the server's ends are closed by its threads
        if sockets() <= before:
            break
        time.sleep(0.1)
    assert sockets() <= before
    assert not [o for o in gc.get_objects() if isinstance(o, http.Session)]


def test_a_killed_process_leaves_what_the_next_one_uses(server, folder):
    download = a_download(server, folder, size=20 * RANGE)
    server.faults["file"] = [fine] * 10 + [always(faults.stall(0))]
    script = f"""
from pathlib import Path
from dataclasses import replace
from laion_fmri_fetchers.transfer import policy, transfer
policy.POLICY = replace(policy.POLICY, range_size={RANGE})
transfer.download_files(
    [transfer.Download("file", {download.url!r}, Path({str(download.path)!r}),
                       {download.size}, {download.etag!r})],
    partial_dir={str(folder / "partial")!r}, n_connections=2, verbose=0)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    while len(server.requests) < 12:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert left(folder) != []
    server.faults.clear()
    server.sent = 0
    assert fetch(download, folder) == []
    assert server.sent <= 11 * RANGE
    assert_whole(server, download)
    assert left(folder) == []


def times_of_requests(server, folder, monkeypatch, fault):
    """Fetch a file of eight ranges; one core may be used."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    download = a_download(server, folder, size=8 * RANGE)
    server.faults["file"] = [always(fault)]
    times = []
    server.on_request = lambda key: times.append(time.monotonic())
    assert fetch(download, folder, n_connections=8) == []
    assert_whole(server, download)
    return [moment - times[0] for moment in times]


def test_a_line_that_is_the_limit_gets_all_connections(server, folder, monkeypatch):
    set_policy(monkeypatch, watch_every=1.0, busy=1.0)
    all_are_asked_for = threading.Barrier(8, timeout=60)
    times = times_of_requests(
        server, folder, monkeypatch, lambda reply: all_are_asked_for.wait()
    )
    # One at first, the others at the first look and before the first answer.
    assert len(times) == 8
    assert times[1] > 0.5


def test_cores_that_are_the_limit_get_a_connection_each(server, folder, monkeypatch):
    set_policy(monkeypatch, watch_every=0.05, busy=0.0, busy_for=60.0)
    times = times_of_requests(server, folder, monkeypatch, faults.wait(0.4))
    assert len(times) == 8
    assert all(b - a > 0.35 for a, b in itertools.pairwise(times))


def test_small_files_get_all_connections_at_once(server, folder, monkeypatch):
    set_policy(monkeypatch, watch_every=100.0, busy=0.0, busy_for=200.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    downloads = [a_download(server, folder, f"file{i}", size=100) for i in range(8)]
    all_are_asked_for = threading.Barrier(8, timeout=60)
    for download in downloads:
        server.faults[download.id] = [lambda reply: all_are_asked_for.wait()]
    assert fetch(downloads, folder, n_connections=8) == []
    assert not all_are_asked_for.broken


@pytest.mark.parametrize("fault", [faults.stall(100), faults.wait(60.0), fine])
def test_an_interrupt_stops_at_once_and_leaves_what_is_done(server, folder, fault):
    downloads = [a_download(server, folder, f"f{i}", 40 * RANGE) for i in range(3)]
    for download in downloads:
        server.faults[download.id] = [fine] * 5 + [always(fault)]
    server.faults["f2"] = [always(faults.slow(RANGE))]
    sent_at = []

    def send():
        for _ in range(3000):
            if server.sent >= 2 * RANGE:
                break
            time.sleep(0.01)
        time.sleep(0.3)
        sent_at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    interrupt = threading.Thread(target=send)
    before = set(threading.enumerate())
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        fetch(downloads, folder, timeout=60.0)
    assert time.monotonic() - sent_at[0] < 20.0, "far less than the timeout"
    interrupt.join()
    assert set(threading.enumerate()) - before - set(server._threads) == set()
    for download in downloads:
        assert not download.path.exists() or fault is fine
    assert all(not name.endswith(".lock") for name in left(folder))

    server.faults.clear()
    server.sent = 0
    assert fetch(downloads, folder) == []
    assert server.sent <= sum(d.size for d in downloads) - 5 * RANGE // 4
    assert_whole(server, *downloads)
    assert left(folder) == []


# --- Locks -----------------------------------------------------------------------


def lock_of(download, folder):
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    relative = os.path.relpath(download.path, folder / "partial")
    path = folder / "partial" / f"{partials.stem(relative)}.lock"
    return FileLock(path, thread_local=False)


def test_who_holds_the_lock_is_waited_for(server, folder):
    download = a_download(server, folder)
    other = a_download(server, folder, "other")
    lock = lock_of(download, folder)
    lock.acquire()

    def finish():
        while not other.path.exists():
            time.sleep(0.01)
        download.path.write_bytes(server.objects["file"][0])
        lock.release()

    finishing = threading.Thread(target=finish)
    finishing.start()
    assert fetch([download, other], folder) == []
    finishing.join()
    assert server.count("file") == 0
    assert left(folder) == []


def test_who_holds_the_lock_and_does_nothing_is_not_waited_for(
    server, folder, monkeypatch
):
    set_policy(monkeypatch, lock_patience=0.1)
    download = a_download(server, folder)
    with lock_of(download, folder):
        assert fetch(download, folder, timeout=0.05) == []
        assert_whole(server, download)


def test_locks_that_nobody_holds_are_removed(server, folder):
    other = a_download(server, folder, "other")
    held, left_behind = lock_of(other, folder), folder / "partial" / "abc.lock"
    left_behind.touch()
    with held:
        assert fetch(a_download(server, folder), folder) == []
        assert left(folder) == [Path(held.lock_file).name]


def test_locks_that_fail_do_not_matter(server, folder, monkeypatch):
    def acquire(self, timeout=0):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    download = a_download(server, folder)
    assert fetch(download, folder) == []
    assert_whole(server, download)


# --- Secret addresses ------------------------------------------------------------


class Signer:
    """An address that expires, and the server's view of it."""

    def __init__(self, server, key):
        self.server, self.key = server, key
        self.version, self.renewals, self.is_dead = 1, 0, False
        real = server._right

        def checked(asked_key, asked):
            reply = real(asked_key, asked)
            if asked_key == self.key and not self.is_valid():
                faults.status(403)(reply)
            return reply

        self.valid_version = 1
        server._right = checked
        self.seen = []
        real_answer = server._answer

        def answer(client, head):
            self.current = head.split(" ")[1].rpartition("=")[2]
            return real_answer(client, head)

        server._answer = answer

    def is_valid(self):
        return self.current == f"s3cr3t{self.valid_version}" and not self.is_dead

    def __call__(self, renew):
        if renew:
            self.renewals += 1
            self.version = self.valid_version
        return f"{self.server.url}/{self.key}?X-Amz-Signature=s3cr3t{self.version}"


def test_an_expired_address_is_renewed_once_an_expiry(server, folder):
    signer = Signer(server, "file")
    download = a_download(server, folder, size=12 * RANGE, url=signer)

    def expire(key):
        if len(server.requests) in (4, 9):
            signer.valid_version += 1

    server.on_request = expire
    assert fetch(download, folder, n_connections=1) == []
    assert signer.renewals == 2
    assert_whole(server, download)


def test_an_address_that_stays_denied_is_renewed_once(server, folder):
    signer = Signer(server, "file")
    signer.is_dead = True
    (failed,) = fetch(a_download(server, folder, url=signer), folder)
    assert failed["status"] == 403
    assert signer.renewals == 1


@pytest.mark.parametrize("fault", [*LASTING, "refused", "not an address"])
def test_secret_addresses_are_shown_nowhere(server, folder, fault, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    secret = "X-Amz-Signature=s3cr3t"
    signer = Signer(server, "file")
    url = signer
    if fault in LASTING:
        server.faults["file"] = [fine, always(LASTING[fault][0])]
    elif fault == "refused":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        url = lambda renew: f"http://127.0.0.1:{port}/file?{secret}"  # noqa: E731
    else:
        url = lambda renew: f"http://127.0.0.1:x/file?{secret}"  # noqa: E731
    download = a_download(server, folder, size=4 * RANGE, url=url)
    failed = fetch(download, folder, timeout=0.2, verbose=3)
    shown = capfd.readouterr()
    assert failed != []
    assert "s3cr3t" not in str(failed) + caplog.text + shown.out + shown.err


def test_errors_of_the_function_of_an_address_are_raised(server, folder):
    def url(renew):
        raise AccessRevokedError("withdrawn")

    download = a_download(server, folder, url=url)
    with pytest.raises(AccessRevokedError, match="withdrawn") as caught:
        fetch(download, folder)
    assert caught.value.__context__ is None
    assert fetch(download._replace(url=f"{server.url}/file"), folder) == []


# --- What is shown ---------------------------------------------------------------


def test_verbosity(server, folder, capfd):
    for verbose in range(4):
        downloads = [a_download(server, folder, key) for key in ("one", "two")]
        server.faults["one"] = [faults.status(503)]
        fetch(downloads, folder, verbose=verbose, overwrite=True)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("2 of 2 files, 655 kB in" in shown.err) == (verbose >= 1)
        assert ("one: 328 kB in" in shown.err) == (verbose >= 2)
        assert ("one: status 503" in shown.err) == (verbose >= 3)
        assert verbose or not shown.err


def test_lines_where_there_is_no_terminal(server, folder, capfd, monkeypatch):
    set_policy(monkeypatch, line_every=0.0)
    download = a_download(server, folder)
    server.faults["file"] = [fine, always(faults.slow(2 * RANGE))]
    fetch(download, folder, verbose=1)
    lines = capfd.readouterr().err.splitlines()
    assert any("0 of 1 files" in line and "s left" in line for line in lines[:-1])


def test_one_bar_on_a_terminal(server, folder, monkeypatch):
    class Terminal:
        written = ""

        def write(self, text):
            self.written += text

        def flush(self):
            pass

        def isatty(self):
            return True

    terminal = Terminal()
    downloads = [a_download(server, folder, key) for key in ("one", "two")]
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(downloads, folder, verbose=2)
    assert "100%" in terminal.written
    assert "2 of 2 files" in terminal.written
    assert "one: 328 kB in" in terminal.written


def test_no_warning_without_cause(server, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch(a_download(server, folder), folder, verbose=1) == []


# --- Checking files --------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB, 5 * MIB, 20 * MIB + 1])
def test_check_file(tmp_path, size):
    data = content(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    altered = tmp_path / "altered"
    altered.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
    etags = [etag_of(data), f'"{etag_of(data)}"']
    if size:
        etags += [etag_of(data, part * MIB) for part in (1, 4, 5, 8, 16, 64)]
    seen = []
    for etag in etags:
        assert check_file(path, size=size, etag=etag, progress=seen.append) is None
        assert checksums.bare(etag) in check_file(altered, etag=etag)
    assert sum(seen) >= size
    assert (
        check_file(path, size=size + 1) == f"it has {size} bytes instead of {size + 1}"
    )
    digest = hashlib.sha256(data).hexdigest()
    assert check_file(path, sha256=digest.upper(), etag="0" * 32) is None
    assert digest in check_file(altered, sha256=digest)
    assert check_file(path, etag="opaque") is None
    assert check_file(path, etag=f"{'0' * 32}-9999") is None


def test_part_sizes_that_fit():
    for size in (1, MIB, 9 * MIB, 100 * MIB + 1, 1_100_000_000):
        for k in range(13):
            part = 2**k * MIB
            n = -(-size // part)
            fitting = part_sizes(size, n)
            assert n == 1 or part in fitting
            assert all(-(-size // p) == n for p in fitting)
