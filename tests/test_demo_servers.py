"""The demo's servers: S3 as moto answers, faults on order, and the access service."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from urllib.parse import quote, unquote_plus, urlsplit

import numpy as np
import pytest
import requests
from moto.server import ThreadedMotoServer

from laion_fmri_fetchers.demo import serve_access, serve_bucket
from laion_fmri_fetchers.demo.server import DENIED, UPLOADED

MIB = 2**20
LARGE = np.random.default_rng(0).bytes(12 * MIB)  # put in parts of 5 MiB
OBJECTS = {
    "key": b"0123456789",
    "empty": b"",
    "large": LARGE,
    "a b+c/ü.txt": b"x",
    "dir/1": b"1",
    "dir/2<&>": b"2",
    "dir/sub/3": b"3",
    "dir-4": b"4",
}
ETAG = f'"{hashlib.md5(OBJECTS["key"]).hexdigest()}"'


@pytest.fixture
def server():
    with serve_bucket() as running:
        yield running


@pytest.fixture(scope="module")
def ours_and_motos():
    """Addresses of two buckets with the same objects: ours, and moto's."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    base = "http://{}:{}/laion-fmri".format(*moto.get_host_and_port())
    public = {"x-amz-acl": "public-read"}
    requests.put(base, headers=public, timeout=10).raise_for_status()
    with serve_bucket() as server:
        for key, data in OBJECTS.items():
            server.put(key, data, part_size=5 * MIB)
            url = f"{base}/{quote(key)}"
            if len(data) < 5 * MIB:
                put = requests.put(url, data=data, headers=public, timeout=10)
                put.raise_for_status()
                continue
            answer = requests.post(f"{url}?uploads", headers=public, timeout=10)
            upload = re.search("<UploadId>(.+)</UploadId>", answer.text)[1]
            parts = ""
            for i in range(0, len(data), 5 * MIB):
                number = i // (5 * MIB) + 1
                part = f"{url}?partNumber={number}&uploadId={upload}"
                put = requests.put(part, data=data[i : i + 5 * MIB], timeout=10)
                parts += f"<Part><PartNumber>{number}</PartNumber>"
                parts += f"<ETag>{put.headers['ETag']}</ETag></Part>"
            done = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
            whole = f"{url}?uploadId={upload}"
            requests.post(whole, data=done, timeout=10).raise_for_status()
        yield server.url, base
    moto.stop()


REQUESTS = [
    ("GET", "key", {}),
    ("HEAD", "key", {}),
    ("GET", "empty", {}),
    ("GET", quote("a b+c/ü.txt"), {}),
    ("GET", "large", {}),
    ("GET", "large", {"Range": f"bytes={5 * MIB - 5}-{5 * MIB + 4}"}),
    *(
        (method, "key", {"Range": f"bytes={span}"})
        for method in ("GET", "HEAD")
        for span in ("3-5", "7-", "7-99", "-2", "-20", "10-", "5-2", "0-1,3-4", "-0")
    ),
    ("GET", "empty", {"Range": "bytes=0-"}),
    *(
        (method, "key", {"If-Match": value})
        for method in ("GET", "HEAD")
        for value in (ETAG, '"other"')
    ),
    ("GET", "key", {"If-Match": ETAG, "Range": "bytes=3-5"}),
    ("GET", "key", {"If-Match": '"other"', "Range": "bytes=3-5"}),
    ("GET", "none", {}),
    ("HEAD", "none", {}),
    ("GET", "none", {"If-Match": ETAG}),
    *(
        ("GET", f"?list-type=2{options}", {})
        for options in (
            "",
            "&prefix=dir/",
            "&prefix=dir/&delimiter=/",
            "&prefix=dir&delimiter=/",
            "&prefix=none",
            "&delimiter=/&encoding-type=url",
            "&encoding-type=url",
            "&prefix=a%20b%2Bc/&encoding-type=url",
            "&max-keys=3",
            "&max-keys=3&delimiter=/",
            "&max-keys=0",
        )
    ),
]


def _elements(text):
    """Return the elements of an XML answer, but for what differs each time."""
    text = text.replace(' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', "")
    root = ET.fromstring(text)
    decode = unquote_plus if root.findtext("EncodingType") == "url" else str
    changing = {"RequestId", "HostId", "LastModified", "NextContinuationToken"}
    return root.tag, sorted(
        [one.tag, *(decode(x.text or "") for x in one.iter() if x.tag not in changing)]
        for one in root
        if one.tag not in changing
    )


@pytest.mark.parametrize(("method", "path", "headers"), REQUESTS)
def test_the_server_answers_as_moto_does(ours_and_motos, method, path, headers):
    ours, motos = (
        requests.request(method, f"{base}/{path}", headers=headers, timeout=10)
        for base in ours_and_motos
    )
    assert ours.status_code == motos.status_code
    named = ["ETag", "Content-Range"]
    if ours.ok and ours.status_code != 304:
        named += ["Content-Type", "Accept-Ranges"]
        if "?" not in path:
            named += ["Content-Length"]
    # Moto's 412 on HEAD still describes the object.
    if (method, ours.status_code) != ("HEAD", 412):
        for name in named:
            assert ours.headers.get(name) == motos.headers.get(name), name
    assert ("Last-Modified" in ours.headers) or not ours.ok or "?" in path
    if method == "GET" and ours.headers.get("Content-Type") == "application/xml":
        assert _elements(ours.text) == _elements(motos.text)
    else:
        assert ours.content == motos.content


def test_pages_of_a_listing_are_those_of_moto(ours_and_motos):
    for options in ({}, {"prefix": "dir"}, {"delimiter": "/"}):
        ours, motos = (
            [
                [x.text for x in page.iter() if x.tag in ("Key", "Prefix")]
                for page in _list_pages(base, **options, **{"max-keys": "2"})
            ]
            for base in ours_and_motos
        )
        assert len(ours) > 1
        assert [sorted(map(str, page)) for page in ours] == [
            sorted(map(str, page)) for page in motos
        ]


# What S3 does and moto does not


def _list_pages(url, **options):
    token = {}
    while True:
        query = {"list-type": "2", **options, **token}
        answer = requests.get(f"{url}/", params=query, timeout=10)
        answer.raise_for_status()
        space = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        page = ET.fromstring(answer.text.replace(space, ""))
        yield page
        if page.findtext("IsTruncated") != "true":
            return
        token = {"continuation-token": page.findtext("NextContinuationToken")}


def _listed(url, **options):
    return [x.text for page in _list_pages(url, **options) for x in page.iter("Key")]


def test_pages_hold_a_thousand_keys_at_most(server):
    for i in range(2100):
        server.put(f"many/{i:04d}", b"x")
    pages = list(_list_pages(server.url, **{"prefix": "many/", "max-keys": "5000"}))
    assert [len(page.findall("Contents")) for page in pages] == [1000, 1000, 100]
    assert _listed(server.url) == [f"many/{i:04d}" for i in range(2100)]


def test_listings_percent_encode_as_s3(server):
    names = ["a b+c.txt", "sub dir/1+2 ü.txt", "x&<y>.txt", "100%25.txt", "~(*)'.txt"]
    for name in names:
        server.put(name, name.encode())
    assert _listed(server.url) == sorted(names)
    options = {"encoding-type": "url"}
    encoded = _listed(server.url, **options)
    assert [unquote_plus(key) for key in encoded] == sorted(names)
    assert {"a+b%2Bc.txt", "sub+dir/1%2B2+%C3%BC.txt"} < set(encoded)
    options |= {"delimiter": "/", "prefix": "sub d"}
    page = next(_list_pages(server.url, **options))
    assert page.findtext("CommonPrefixes/Prefix") == "sub+dir/"
    assert page.findtext("Prefix") == "sub+d"
    for name in names:
        answer = requests.get(f"{server.url}/{quote(name)}", timeout=10)
        assert answer.content == name.encode()


def test_a_plus_sign_in_a_path_is_a_space(server):
    server.put("1+2", b"plus")
    server.put("1 2", b"space")
    assert requests.get(f"{server.url}/1%2B2", timeout=10).content == b"plus"
    assert requests.get(f"{server.url}/1+2", timeout=10).content == b"space"


def test_held_out_sessions_and_the_archive_are_listed_but_denied(server):
    denied = [
        "derivatives/glmsingle-tedana/sub-01/ses-31/func/x.nii.gz",
        "sub-01/ses-34/func/x.nii.gz",
        "stimuli/task-images_stimuli.h5",
    ]
    released = [
        "derivatives/localizers/sub-01/ses-31/func/x.nii.gz",
        "derivatives/glmsingle-tedana/sub-01/ses-30/func/x.nii.gz",
        "stimuli/task-images_metadata.csv",
    ]
    for key in denied + released:
        server.put(key, b"x", last_modified=UPLOADED)
    entry = next(_list_pages(server.url)).find("Contents")
    assert entry.findtext("LastModified") == "2025-06-01T12:00:00.000Z"
    assert _listed(server.url) == sorted(denied + released)
    for key in released:
        assert requests.get(f"{server.url}/{key}", timeout=10).status_code == 200
    for key in denied:
        answer = requests.get(f"{server.url}/{key}", timeout=10)
        assert answer.status_code == 403
        assert ET.fromstring(answer.content).findtext("Code") == "AccessDenied"
        assert requests.head(f"{server.url}/{key}", timeout=10).status_code == 403
    server.denied = None
    assert requests.get(f"{server.url}/{denied[0]}", timeout=10).content == b"x"
    server.denied = DENIED


def test_listing_can_be_denied(server):
    server.put("key", b"x")
    server.deny_listing = True
    assert requests.get(f"{server.url}/?list-type=2", timeout=10).status_code == 403
    assert requests.get(f"{server.url}/key", timeout=10).content == b"x"
    # Then S3 does not tell whether a key exists.
    assert requests.get(f"{server.url}/none", timeout=10).status_code == 403
    server.reset()
    assert _listed(server.url) == ["key"]


def test_clients_cannot_write(server):
    assert requests.put(f"{server.url}/key", data=b"x", timeout=10).status_code == 403
    assert _listed(server.url) == []
    server.delete("never there")
    with pytest.raises(NotADirectoryError, match="No such folder"):
        serve_bucket("no/such/folder")
    other = server.url.replace("laion-fmri", "other")
    assert requests.get(f"{other}/key", timeout=10).status_code == 404


# Connections, records and faults


def test_connections_are_kept_alive(server):
    server.put("key", b"x")
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    connection.connect()
    used = connection.sock
    for method, path, body, status in [
        ("GET", "key", None, 200),
        ("HEAD", "key", None, 200),
        ("GET", "none", None, 404),
        ("HEAD", "none", None, 404),
        ("GET", "ses-31/key", None, 403),
        ("PUT", "key", b"a body", 403),
        ("GET", "?list-type=2", None, 200),
    ]:
        connection.request(method, f"{address.path}/{path}", body)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        assert connection.sock is used
    connection.close()


def test_many_connections_at_once(server):
    contents = {f"key {i}": str(i).encode() * 1000 for i in range(64)}
    for key, data in contents.items():
        server.put(key, data)
    got = {}
    barrier = threading.Barrier(64)

    def fetch(key):
        barrier.wait(30)
        got[key] = requests.get(f"{server.url}/{quote(key)}", timeout=30).content

    threads = [threading.Thread(target=fetch, args=[key]) for key in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == contents


def test_faults(server):
    for key in ("busy", "short", "flaky"):
        server.put(key, b"fine")
    answers = [(503, {"Retry-After": "1"}, b"<Code>SlowDown</Code>")]
    server.faults["busy"] = answers[0]
    server.faults["short"] = (200, {"Content-Length": "10"}, [b"123", b"45"])
    server.faults["flaky"] = lambda environ: answers.pop() if answers else None
    server.faults[""] = (200, {}, [b"no ", b"listing"])
    with requests.Session() as session:
        busy = session.get(f"{server.url}/busy", timeout=10)
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            session.get(f"{server.url}/short", timeout=10)
        statuses = [session.get(f"{server.url}/flaky", timeout=10) for _ in range(2)]
        assert [answer.status_code for answer in statuses] == [503, 200]
        assert session.get(f"{server.url}/", timeout=10).content == b"no listing"
        server.reset()
        assert session.get(f"{server.url}/busy", timeout=10).content == b"fine"
        assert server.requests == [("GET", "busy", "")]


def test_a_stopped_server_refuses_connections():
    with serve_bucket() as server:
        address = urlsplit(server.url)
        connection = http.client.HTTPConnection(address.netloc, timeout=10)
        connection.request("HEAD", address.path)
        connection.getresponse().read()
        server.stop()
        assert connection.sock.recv(1) == b""
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), timeout=10)


def test_a_taken_port_is_an_error():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        serve_bucket(port=taken.getsockname()[1])


def test_serving_leaves_the_process_as_it_was(capfd):
    before = dict(os.environ)
    with serve_bucket() as server:
        requests.get(f"{server.url}/", timeout=10)
        # A client that goes away in the middle of an object.
        server.put("large", bytes(30 * MIB))
        requests.get(f"{server.url}/large", stream=True, timeout=10).close()
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_the_demo_needs_no_server_but_its_own():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['moto', 'boto3', 'werkzeug', "
        "'flask']); from laion_fmri_fetchers.demo import serve_bucket; "
        "serve_bucket().stop()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The access service

ARCHIVE = "stimuli/task-images_stimuli.h5"
FORM = {
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


@pytest.fixture
def access(server):
    server.put(ARCHIVE, b"an archive of images")
    server.put("stimuli/task-images_metadata.csv", b"image_name\n")
    with serve_access(server) as service:
        yield service


def _post(service, path, body):
    return requests.post(service.url + path, json=body, timeout=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("email", "nowhere"),
        ("institution", None),
        ("research_purpose", "too short"),
        ("accepted_terms", "yes"),
        ("acknowledged_privacy", False),
        ("acknowledged_privacy", ...),
        ("terms_version", "0.9"),
        ("pi_or_supervisor", ...),
        ("source", ...),
    ],
)
def test_the_service_refuses_a_form(access, field, value):
    form = {**FORM, field: value}
    if value is ...:
        del form[field]
    answer = _post(access, "/api/v1/access/request", form)
    assert answer.status_code == 422
    assert {one["loc"][-1] for one in answer.json()["detail"]} == {field}
    assert all(one["msg"] for one in answer.json()["detail"])
    assert _post(access, "/api/v1/access/request", FORM).status_code == 200


def test_the_service_knows_its_pages_and_versions(access):
    for page in ("/terms", "/privacy", "/takedown", "/request"):
        assert requests.get(access.url + page, timeout=10).status_code == 200
    assert requests.get(f"{access.url}/nowhere", timeout=10).status_code == 404
    assert _post(access, "/api/v1/manifest", {}).status_code == 404
    body = {"request_id": access.grant(), "dataset_version": "v0"}
    answer = _post(access, "/api/v1/refresh", body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "dataset_version"]


def test_gated_objects_need_a_good_signature(access):
    body = {"request_id": access.grant(), "dataset_version": "v1"}
    files = _post(access, "/api/v1/refresh", body).json()["files"]
    (url,) = [file["url"] for file in files if file["name"].endswith("stimuli.h5")]
    part = requests.get(url, headers={"Range": "bytes=3-9"}, timeout=10)
    assert (part.status_code, part.content) == (206, b"archive")
    bad = url.replace("Signature=", "Signature=0")
    assert requests.get(bad, timeout=10).status_code == 403
    assert requests.get(url.partition("?")[0], timeout=10).status_code == 403
    access.expire()
    assert requests.get(url, timeout=10).status_code == 403
