"""Transfers from a server that fails in every way that networks, disks and users do."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import gc
import hashlib
import ipaddress
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

from laion_fmri_fetchers.exceptions import (
    AccessRevokedError,
    DataDirectoryError,
    DiskSpaceError,
)
from laion_fmri_fetchers.remote import download as downloading
from laion_fmri_fetchers.remote import partial, progress, retry
from laion_fmri_fetchers.remote.checksums import check_file, part_sizes
from laion_fmri_fetchers.remote.download import Download, download_files

RANGE = 2**16
MIB = 2**20


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Let small files have several ranges, and waits be short."""
    monkeypatch.setattr(partial, "BLOCK", RANGE)
    monkeypatch.setattr(partial, "PART_SIZES", range(RANGE, 4 * MIB))
    monkeypatch.setattr(downloading, "SMALL", RANGE // 2)
    monkeypatch.setattr(downloading, "POLL", 0.01)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    """A data directory."""
    return tmp_path / "data"


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
    assert RANGE <= server.sent < RANGE + 100  # and the body of an error, late
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
        assert "CERTIFICATE_VERIFY_FAILED" in failed.reason
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
        assert f"proxy-authorization: basic {code}\r\n".lower() in head.lower()
    assert len(tunnel.heads) > 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_proxy_that_refuses(server, folder, monkeypatch):
    monkeypatch.setenv("https_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    download = a_download(server, folder)
    (failed,) = fetch(download._replace(url="https://bucket.invalid/file"), folder)
    assert "the proxy fails: Tunnel connection failed: 404" in failed.reason
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
    "wrong length": (faults.wrong_length(-3), None, "ended early"),
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
    timeout = 0.2 if fault == "stall" else 10.0
    (failed,) = fetch([download, other], folder, timeout=timeout)
    assert failed.id == "file"
    assert failed.status == status
    assert words in failed.reason
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
    assert [(one.id, one.status) for one in failed] == [("f3", 404), ("f7", 403)]
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
    assert "name cannot be resolved" in first.reason
    assert "refused" in second.reason
    assert fetch(download, folder) == []
    assert_whole(server, download)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/file", "http:///file", "file"])
def test_what_is_no_address(folder, url):
    download = Download("file", url, folder / "files" / "file", 10, "0" * 32)
    (failed,) = fetch(download, folder)
    assert failed.reason == "its address is not valid"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux lets callers wait")
def test_a_server_that_accepts_nobody(folder):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):
            url = f"http://127.0.0.1:{address[1]}/file"
            download = Download("file", url, folder / "files" / "file", 10, "0" * 32)
            (failed,) = fetch(download, folder, timeout=0.2)
    assert failed.reason == "the server does not accept connections"


def test_a_server_that_is_away_for_a_while(folder, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.05)

    def n_noted():
        lists = (folder / "partial").glob("*.blocks")
        return sum(path.read_bytes().count(b"\n") for path in lists)

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
    assert failed.reason == "the server does not say its size"


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
    assert download.etag in failed.reason
    assert etag_of(data[:-1] + bytes([data[-1] ^ 1])) in failed.reason
    assert server.count("file") == 2
    assert left(folder) == []


def test_a_wrong_sha256_fails_with_both_values(server, folder):
    download = a_download(server, folder, sha256="0" * 64)
    (failed,) = fetch(download, folder)
    assert "0" * 64 in failed.reason
    assert hashlib.sha256(server.objects["file"][0]).hexdigest() in failed.reason


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
    assert "changed" in failed.reason
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


def test_files_are_skipped_after_many_consecutive_failures(server, folder, monkeypatch):
    monkeypatch.setattr(downloading, "MOST_FAILED", 5)
    downloads = [a_download(server, folder, f"f{i}", 10) for i in range(60)]
    server.objects.clear()
    failed = fetch(downloads, folder, n_connections=2)
    assert [one.id for one in failed] == [d.id for d in downloads]
    assert len(server.requests) <= 6
    assert "skipped after 5 consecutive failures" in failed[-1].reason


def test_a_place_that_cannot_be_written(server, folder):
    download, other = (a_download(server, folder, key) for key in ("file", "other"))
    download.path.mkdir(parents=True)
    (failed,) = fetch([download, other], folder)
    assert "cannot be written: is a directory" in failed.reason
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
    target = folder / "func"
    target.mkdir(parents=True)
    download = a_download(server, folder)._replace(path=target / "file")
    with unwritable(target):
        (failed,) = fetch(download, folder)
    assert f"{target} cannot be written: permission" in failed.reason
    assert server.requests == []


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(server, small_disk):
    download = a_download(server, small_disk, size=2 * MIB)
    with pytest.raises(DiskSpaceError, match=r"2\.1 MB are needed") as caught:
        fetch(download, small_disk)
    assert caught.value.errno == 28
    assert server.requests == []


def test_a_disk_that_fills(server, small_disk):
    downloads = [a_download(server, small_disk, f"f{i}", 10 * RANGE) for i in range(3)]
    with pytest.raises(DiskSpaceError, match="Downloaded files are kept"):
        fetch([d._replace(size=None) for d in downloads], small_disk)
    for download in downloads:
        assert not download.path.exists() or download.path.stat().st_size == 10 * RANGE
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    sent = server.sent
    assert fetch(downloads, small_disk) == []
    assert server.sent - sent < 30 * RANGE
    assert_whole(server, *downloads)
    assert left(small_disk) == []


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
        with pytest.raises(DiskSpaceError, match="are free") as caught:
            fetch(download, folder)
        assert f"are free in {folder / 'files'})" in str(caught.value)
        assert os.listdir(small_disk) == []
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    sent = server.sent
    assert fetch(download, folder) == []
    assert server.sent == sent
    assert_whole(server, download)


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
    assert failed.status == 500
    server.faults.clear()
    server.requests.clear()
    server.sent = 0
    return download


def test_resume_fetches_only_what_lacks(server, folder):
    download = leave_unfinished(server, folder)
    assert len(left(folder)) == 2
    assert fetch(download, folder) == []
    assert RANGE <= server.sent < RANGE + 100  # and the body of an error, late
    assert server.requests[0][1]["if-match"] == f'"{download.etag}"'
    assert_whole(server, download)
    assert left(folder) == []


def test_resume_when_the_folder_was_moved(server, folder):
    download = leave_unfinished(server, folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    download = download._replace(path=moved / "files" / "file")
    assert fetch(download, moved) == []
    assert RANGE <= server.sent < RANGE + 100  # and the body of an error, late
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
        lambda text: text.replace(" 0 ", " -5 "),
        lambda text: text.replace("\n", " ", 1),
        lambda text: "\x00" * len(text),
        lambda text: "1 2 3\nx\n",
        lambda text: "",
    ],
)
def test_a_damaged_list_of_blocks_is_harmless(server, folder, damage):
    download = leave_unfinished(server, folder)
    (blocks,) = (folder / "partial").glob("*.blocks")
    blocks.write_text(damage(blocks.read_text()))
    assert fetch(download, folder) == []
    assert_whole(server, download)
    assert left(folder) == []


def test_unfinished_files_are_removed_after_days(server, folder):
    leave_unfinished(server, folder)
    (folder / "partial" / "notes.txt").write_text("of a user")
    for path in (folder / "partial").iterdir():
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    assert fetch(a_download(server, folder, "other"), folder) == []
    assert len(left(folder)) == 3
    for path in (folder / "partial").iterdir():
        os.utime(path, (time.time() - 4 * 24 * 3600,) * 2)
    assert fetch(a_download(server, folder, "third"), folder) == []
    assert left(folder) == ["notes.txt"]


def test_a_downloaded_file_has_the_date_of_its_object(server, folder):
    listed = a_download(server, folder, last_modified=1.7e9)
    unlisted = a_download(server, folder, "other")
    date = faults.headers(Last_Modified="Mon, 28 Sep 2026 10:00:00 GMT")
    server.faults["other"] = [always(date)]
    assert fetch([listed, unlisted], folder) == []
    assert listed.path.stat().st_mtime == 1.7e9
    assert unlisted.path.stat().st_mtime == 1790589600.0


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


def test_no_connection_and_no_thread_is_left(server, folder):

    def sockets():
        gc.collect()
        links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
        return sum(
            "socket" in os.readlink(link) for link in links if os.path.islink(link)
        )

    before, threads = sockets(), set(threading.enumerate())
    for i in range(4):
        download = a_download(server, folder, size=8 * RANGE, key=f"file-{i}")
        assert fetch(download, folder) == []
    for _ in range(50):  # the server's ends are closed by its threads
        if sockets() <= before:
            break
        time.sleep(0.1)
    assert sockets() <= before
    for thread in set(threading.enumerate()) - threads - set(server._threads):
        thread.join(5.0)
        assert not thread.is_alive()


def test_a_killed_process_leaves_what_the_next_one_uses(server, folder):
    download = a_download(server, folder, size=20 * RANGE)
    server.faults["file"] = [fine] * 10 + [always(faults.stall(0))]
    script = f"""
from pathlib import Path
from laion_fmri_fetchers.remote import download, partial
partial.BLOCK = {RANGE}
download.download_files(
    [download.Download("file", {download.url!r}, Path({str(download.path)!r}),
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
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        fetch(downloads, folder, timeout=60.0)
    assert time.monotonic() - sent_at[0] < 20.0, "far less than the timeout"
    interrupt.join()
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
    name = partial.lock_name(str(folder / "partial"), download.path)
    return FileLock(folder / "partial" / f"{name}.lock", thread_local=False)


def test_who_holds_the_lock_is_waited_for(server, folder):
    download = a_download(server, folder)
    other = a_download(server, folder, "other")
    lock = lock_of(download, folder)
    lock.acquire()

    def finish():
        while not other.path.exists():
            time.sleep(0.01)
        download.path.write_bytes(server.objects["file"][0])
        Path(lock.lock_file).unlink()
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
    monkeypatch.setattr(downloading, "PATIENCE", 0.1)
    download = a_download(server, folder)
    with lock_of(download, folder):
        assert fetch(download, folder, timeout=0.05) == []
        assert_whole(server, download)


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
    assert failed.status == 403
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
    timeout = 0.2 if fault == "stall" else 10.0
    failed = fetch(download, folder, timeout=timeout, verbose=3)
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
        assert ("one: 328 kB" in shown.err) == (verbose >= 2)
        assert ("one: status 503" in shown.err) == (verbose >= 3)
        assert verbose or not shown.err


def test_lines_where_there_is_no_terminal(server, folder, capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
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
    assert "one: 328 kB" in terminal.written


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
    etags = [etag_of(data)]
    if size:
        etags += [etag_of(data, part * MIB) for part in (1, 4, 5, 8, 16, 64)]
    seen = []
    for etag in etags:
        assert check_file(path, size=size, etag=etag, progress=seen.append) is None
        assert etag in check_file(altered, etag=etag)
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
