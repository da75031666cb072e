"""Listing, downloads and the access service by the ways of real networks.

TLS with an authority of the test (nginx), proxies with and without a password
(tinyproxy), SOCKS (microsocks), and redirects. Where a program is missing, its tests
are skipped.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import fault_server as faults
import pytest
from fault_server import FaultServer, always
from policies import set_policy

from laion_fmri_fetchers.access.gate import current_terms_version
from laion_fmri_fetchers.exceptions import AccessServiceError, BucketError
from laion_fmri_fetchers.remote.bucket import list_prefixes, object_url
from laion_fmri_fetchers.remote.client import CA_VARIABLES
from laion_fmri_fetchers.remote.download import Download, download_files

PREFIX = "derivatives/rois/sub-01/face/"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """Let nothing of this machine's proxies and certificates count; try little."""
    for name in (*CA_VARIABLES, *PROXIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    set_policy(monkeypatch, first_wait=0.01, tries_away=2)


def list_objects(prefix="", delimiter="", **options):
    return list_prefixes([(prefix, delimiter)], verbose=0, **options)[0]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command, port, log):
    """Run a server until the end of the block, from when it accepts connections."""
    if not (shutil.which(command[0]) or Path("/usr/sbin", command[0]).exists()):
        pytest.skip(f"{command[0]} is not installed")
    program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, *command[1:]], stdout=stream, stderr=stream
        )
        try:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Return a folder with ``ca.pem``, ``server.pem`` and ``server.key``."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("authority")
    now = dt.datetime.now(dt.timezone.utc)
    names, keys = {}, {}
    for who in ("ca", "server"):
        keys[who] = ec.generate_private_key(ec.SECP256R1())
        common = x509.NameAttribute(x509.NameOID.COMMON_NAME, f"test {who}")
        names[who] = x509.Name([common])
    issuer_key = x509.SubjectKeyIdentifier.from_public_key(keys["ca"].public_key())
    for who in ("ca", "server"):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[who])
            .issuer_name(names["ca"])
            .public_key(keys[who].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )
        key_id = x509.SubjectKeyIdentifier.from_public_key(keys[who].public_key())
        builder = builder.add_extension(key_id, critical=False)
        if who == "ca":
            builder = builder.add_extension(x509.BasicConstraints(True, None), True)
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            usage |= {"key_cert_sign": True, "crl_sign": True}
            builder = builder.add_extension(x509.KeyUsage(**usage), True)
        else:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            names_of_server = [address, x509.DNSName("localhost")]
            builder = builder.add_extension(
                x509.SubjectAlternativeName(names_of_server), critical=False
            ).add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    issuer_key
                ),
                critical=False,
            )
        certificate = builder.sign(keys["ca"], hashes.SHA256())
        pem = serialization.Encoding.PEM
        (folder / f"{who}.pem").write_bytes(certificate.public_bytes(pem))
        private = keys[who].private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{who}.key").write_bytes(private)
    return folder


@pytest.fixture
def over_tls(server, authority, tmp_path, monkeypatch):
    """Serve bucket and access service over TLS; return the host's address."""
    port = free_port()
    conf = tmp_path / "nginx.conf"
    with FaultServer() as service:
        service.put("api/v1/manifest", b'{"current_terms_version": "3"}')
        places = "".join(
            f"{name}_temp_path {tmp_path}/{name}; "
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        base = server.url.rpartition("/")[0]
        conf.write_text(
            f"""daemon off; pid {tmp_path}/nginx.pid; error_log stderr;
            events {{ }}
            http {{
              access_log off; {places}
              server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {authority}/server.pem;
                ssl_certificate_key {authority}/server.key;
                location / {{ proxy_pass {base}; }}
                location /api/ {{ proxy_pass {service.url}; }}
              }}
            }}"""
        )
        command = ["nginx", "-p", str(tmp_path), "-c", str(conf), "-e", "stderr"]
        with running(command, port, tmp_path / "nginx.log"):
            host = f"https://127.0.0.1:{port}"
            name = server.url.rpartition("/")[2]
            monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"{host}/{name}")
            monkeypatch.setenv("LAION_FMRI_ACCESS_URL", host)
            yield host


def fetch_all(folder, bucket_folder):
    """List, download and ask the access service; see that all of it is right."""
    objects = list_objects(PREFIX)["objects"]
    assert len(objects) > 0
    downloads = [
        Download(e.key, object_url(e.key), folder / e.key, e.size, e.etag)
        for e in objects
    ]
    assert download(downloads, folder) == []
    for entry in objects:
        expected = (bucket_folder / entry.key).read_bytes()
        assert (folder / entry.key).read_bytes() == expected
    assert current_terms_version(timeout=5) == "3"


def download(downloads, folder, **options):
    settings = {"verbose": 0, "timeout": 5.0, "n_connections": 4, **options}
    return download_files(downloads, partial_dir=folder / "partial", **settings)


def troubles(tmp_path):
    """Return what listing, a download and the access service say that is wrong."""
    with pytest.raises(BucketError) as listing:
        list_objects(PREFIX, timeout=5.0)
    file = Download("file", object_url("file"), tmp_path / "file", 10, "0" * 32)
    (failed,) = download([file], tmp_path)
    with pytest.raises(AccessServiceError) as service:
        current_terms_version(timeout=5)
    return str(listing.value), failed.reason, str(service.value)


# --- TLS -------------------------------------------------------------------------


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_an_authority_of_ones_own(
    over_tls, authority, tmp_path, bucket_folder, monkeypatch, variable
):
    path = authority / "ca.pem"
    if variable == "SSL_CERT_DIR":
        digest = ["openssl", "x509", "-hash", "-noout", "-in", str(path)]
        if not shutil.which("openssl"):
            pytest.skip("openssl is not installed")
        done = subprocess.run(digest, capture_output=True, text=True, check=True)
        (tmp_path / "trusted").mkdir()
        shutil.copy(path, tmp_path / "trusted" / f"{done.stdout.strip()}.0")
        path = tmp_path / "trusted"
    monkeypatch.setenv(variable, str(path))
    fetch_all(tmp_path / "data", bucket_folder)


def test_an_authority_that_is_not_known(over_tls, tmp_path):
    listing, reason, service = troubles(tmp_path)
    assert "TLS fails: CERTIFICATE_VERIFY_FAILED" in listing
    assert reason.startswith("TLS fails: CERTIFICATE_VERIFY_FAILED, unable to get")
    assert "TLS fails" in service


def test_certificates_that_are_not_there(over_tls, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/ca.pem")
    for said in troubles(tmp_path):
        assert "SSL_CERT_FILE is /no/such/ca.pem, which cannot be used" in said


# --- Proxies ---------------------------------------------------------------------


@contextlib.contextmanager
def tinyproxy(tmp_path, options=""):
    port, log = free_port(), tmp_path / "proxy.log"
    conf = tmp_path / "tinyproxy.conf"
    conf.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 20\nLogLevel Connect\n"
        f"MaxClients 50\n{options}\n"
    )
    with running(["tinyproxy", "-d", "-c", str(conf)], port, log):
        yield port, log


@contextlib.contextmanager
def microsocks(tmp_path, *options):
    pytest.importorskip("socks")
    port, log = free_port(), tmp_path / "proxy.log"
    command = ["microsocks", "-i", "127.0.0.1", "-p", str(port), *options]
    with running(command, port, log):
        yield port, log


@pytest.fixture
def trusting(over_tls, authority, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "ca.pem"))
    return over_tls


@pytest.mark.parametrize("options", ["", "BasicAuth ada a_secret"])
def test_an_http_proxy(trusting, tmp_path, bucket_folder, monkeypatch, options):
    with tinyproxy(tmp_path, options) as (port, log):
        user = "ada:a_secret@" if options else ""
        monkeypatch.setenv("https_proxy", f"http://{user}127.0.0.1:{port}")
        fetch_all(tmp_path / "data", bucket_folder)
        assert f"CONNECT {trusting.partition('//')[2]}" in log.read_text()


def test_an_http_proxy_without_tls_behind_it(
    server, tmp_path, bucket_folder, monkeypatch
):
    with tinyproxy(tmp_path) as (port, log):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        (entry, *_) = list_objects(PREFIX)["objects"]
        file = tmp_path / "file"
        url = object_url(entry.key)
        one = Download(entry.key, url, file, entry.size, entry.etag)
        assert download([one], tmp_path) == []
        assert file.read_bytes() == (bucket_folder / entry.key).read_bytes()
        assert f"GET {url}" in log.read_text()


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
@pytest.mark.parametrize("options", [(), ("-u", "ada", "-P", "a_secret")])
def test_a_socks_proxy(trusting, tmp_path, bucket_folder, monkeypatch, scheme, options):
    with microsocks(tmp_path, *options) as (port, log):
        user = "ada:a_secret@" if options else ""
        monkeypatch.setenv("all_proxy", f"{scheme}://{user}127.0.0.1:{port}")
        fetch_all(tmp_path / "data", bucket_folder)
        assert (
            f"connected to 127.0.0.1:{trusting.rpartition(':')[2]}" in log.read_text()
        )


def test_a_proxy_over_tls(trusting, authority, tmp_path, bucket_folder, monkeypatch):
    """Tinyproxy speaks no TLS; a tunnel of TLS leads to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    with FaultServer(context) as proxy:
        proxy.objects[""] = (b"", None)
        monkeypatch.setenv("https_proxy", proxy.url)
        listing, reason, _ = troubles(tmp_path)
    # That it was reached over TLS and understood shows in its refusal.
    assert "the proxy fails: Tunnel connection failed: 404" in listing
    assert "the proxy fails: Tunnel connection failed: 404" in reason


def test_a_proxy_that_wants_a_password(trusting, tmp_path, monkeypatch):
    with tinyproxy(tmp_path, "BasicAuth ada a_secret") as (port, _):
        monkeypatch.setenv("https_proxy", f"http://ada:wr0ng@127.0.0.1:{port}")
        for said in troubles(tmp_path):
            assert "the proxy fails: Tunnel connection failed: 40" in said
            assert "wr0ng" not in said


def test_a_socks_proxy_that_wants_a_password(trusting, tmp_path, monkeypatch):
    with microsocks(tmp_path, "-u", "ada", "-P", "a_secret") as (port, _):
        monkeypatch.setenv("all_proxy", f"socks5h://ada:wr0ng@127.0.0.1:{port}")
        for said in troubles(tmp_path):
            assert "the proxy fails: " in said
            assert "wr0ng" not in said


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_that_is_not_there(trusting, tmp_path, monkeypatch, scheme):
    if scheme == "socks5h":
        pytest.importorskip("socks")
    monkeypatch.setenv("all_proxy", f"{scheme}://ada:a_secret@127.0.0.1:{free_port()}")
    for said in troubles(tmp_path):
        assert "the proxy fails: " in said
        assert "refused" in said
        assert "a_secret" not in said


def test_no_proxy_is_heeded(trusting, tmp_path, bucket_folder, monkeypatch):
    monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch_all(tmp_path / "data", bucket_folder)


# --- Redirects -------------------------------------------------------------------


@pytest.mark.parametrize("is_secret", [True, False])
def test_a_redirect_from_tls_to_none(authority, tmp_path, monkeypatch, is_secret):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "ca.pem"))
    with FaultServer(context) as first, FaultServer() as second:
        etag = second.put("file", b"content")
        target = f"{second.url}/file?X-Amz-Signature=s3cr3t"
        first.faults["file"] = [always(faults.status(307, Location=target))]
        plain = f"{first.url}/file?X-Amz-Signature=s3cr3t"
        url = (lambda renew: plain) if is_secret else plain
        file = Download("file", url, tmp_path / "file", 7, etag)
        (failed,) = download([file], tmp_path)
        assert failed.reason == "it is redirected from https to http"
        first.faults[""] = [always(faults.status(307, Location=second.url))]
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", first.url)
        with pytest.raises(BucketError, match="redirected from https to http"):
            list_objects()
        assert second.requests == []


def test_a_presigned_address_stays_with_its_server(tmp_path):
    with FaultServer() as first, FaultServer() as second:
        etag = second.put("file", b"content")
        target = f"{second.url}/file?X-Amz-Signature=s3cr3t"
        first.faults["file"] = [always(faults.status(307, Location=target))]
        plain = f"{first.url}/file?X-Amz-Signature=s3cr3t"
        file = Download("file", lambda renew: plain, tmp_path / "file", 7, etag)
        (failed,) = download([file], tmp_path)
        assert "redirected elsewhere" in failed.reason
        assert second.requests == []
        public = file._replace(url=f"{first.url}/file")
        assert download([public], tmp_path) == []
        assert (tmp_path / "file").read_bytes() == b"content"
