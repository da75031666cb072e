"""The demo's servers: S3 as moto answers, faults on order, and the access service."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
from urllib.parse import quote, unquote_plus, urlsplit

import boto3
import numpy as np
import pytest
import requests
import urllib3
from boto3.s3.transfer import TransferConfig
from moto.server import ThreadedMotoServer

from laion_fmri_fetchers.demo import serve_access, serve_bucket

BUCKET = "laion-fmri"
MIB = 2**20
OBJECTS = {
    "key": b"0123456789",
    "empty": b"",
    "large": np.random.default_rng(0).bytes(12 * MIB),  # put in parts of 5 MiB
    "a b+c/ü.txt": b"x",
    **dict.fromkeys(("dir/1", "dir/2<&>", "dir/sub/3", "dir-4"), b"1"),
}


def ask(method, url, **options):
    return requests.request(method, url, timeout=10, **options)


def get(url, **options):
    return ask("GET", url, **options)


def boto(url):
    """Return a client of Amazon's for the server of a bucket."""
    keys = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "x")
    endpoint = url.removesuffix(f"/{BUCKET}")
    return boto3.client("s3", "us-east-1", endpoint_url=endpoint, **keys)


@pytest.fixture
def server():
    with serve_bucket() as running:
        yield running


@pytest.fixture(scope="module")
def both():
    """Addresses of two buckets with the same objects: ours, and moto's."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    base = "http://{}:{}/laion-fmri".format(*moto.get_host_and_port())
    client, public = boto(base), {"ACL": "public-read"}
    client.create_bucket(Bucket=BUCKET, **public)
    parts = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    with serve_bucket() as server:
        for key, data in OBJECTS.items():
            server.put(key, data, part_size=5 * MIB)
            client.upload_fileobj(io.BytesIO(data), BUCKET, key, public, None, parts)
        yield server.url, base
    moto.stop()


ETAG = f'"{hashlib.md5(OBJECTS["key"]).hexdigest()}"'
SPANS = ("3-5", "7-", "7-99", "-2", "-20", "10-", "5-2", "0-1,3-4", "-0")
HEADERS = [
    {},
    *({"Range": f"bytes={span}"} for span in SPANS),
    {"If-Match": ETAG},
    {"If-Match": '"other"'},
]
REQUESTS = [
    *((method, "key", headers) for method in ("GET", "HEAD") for headers in HEADERS),
    ("GET", "key", {"If-Match": ETAG, "Range": "bytes=3-5"}),
    ("GET", "key", {"If-Match": '"other"', "Range": "bytes=3-5"}),
    *(("GET", path, {}) for path in ("empty", quote("a b+c/ü.txt"), "large", "none")),
    ("GET", "empty", {"Range": "bytes=0-"}),
    ("GET", "large", {"Range": f"bytes={5 * MIB - 5}-{5 * MIB + 4}"}),
    ("GET", "none", {"If-Match": ETAG}),
    ("HEAD", "none", {}),
]


@pytest.mark.parametrize(("method", "path", "headers"), REQUESTS)
def test_objects_are_answered_as_by_moto(both, method, path, headers):
    ours, motos = (ask(method, f"{base}/{path}", headers=headers) for base in both)
    assert ours.status_code == motos.status_code
    named = ["ETag", "Content-Range"]
    if ours.ok and ours.status_code != 304:
        named += ["Content-Type", "Accept-Ranges", "Content-Length"]
    # Moto's 412 on HEAD still describes the object.
    if (method, ours.status_code) != ("HEAD", 412):
        for name in named:
            assert ours.headers.get(name) == motos.headers.get(name), name
    assert ("Last-Modified" in ours.headers) == ours.ok
    if method == "GET" and not ours.ok:
        found = [re.findall(r"<(\w+)>([^<]+)<", one.text) for one in (ours, motos)]
        ours, motos = ({*each} for each in found)
        assert {n for n, _ in ours ^ motos} <= {"RequestId", "HostId"}
    else:
        assert ours.content == motos.content


def plain(page):
    """Return a page of a listing without what differs each time."""
    changing = {"ResponseMetadata", "NextContinuationToken", "ContinuationToken"}
    page = {name: page[name] for name in page if name not in changing}
    entries = page.pop("Contents", ())
    return page, [(each["Key"], each["ETag"], each["Size"]) for each in entries]


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"Prefix": "dir/"}, {"Prefix": "dir/", "Delimiter": "/"}, {"MaxKeys": 0}),
        *({"Prefix": "dir", "Delimiter": "/"}, {"Prefix": "none"}, {"Delimiter": "/"}),
        *({"Prefix": "a b+c/"}, {"MaxKeys": 3}),
        {"MaxKeys": 3, "Delimiter": "/"},
    ],
)
def test_listings_are_those_of_moto(both, options):
    clients = [boto(base) for base in both]
    options = {"Bucket": BUCKET, **options}
    ours, motos = (plain(client.list_objects_v2(**options)) for client in clients)
    assert ours == motos
    options |= {"MaxKeys": 2}
    ours, motos = (
        [*map(plain, client.get_paginator("list_objects_v2").paginate(**options))]
        for client in clients
    )
    assert ours == motos


# --- What S3 does and moto does not ---------------------------------------------------


def listed(url):
    pages = boto(url).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return [[each["Key"] for each in page.get("Contents", ())] for page in pages]


def test_pages_hold_a_thousand_keys_at_most(server):
    keys = [f"many/{i:04d}" for i in range(2100)]
    for key in keys:
        server.put(key, b"x")
    assert listed(server.url) == [keys[:1000], keys[1000:2000], keys[2000:]]
    assert get(f"{server.url}/?list-type=2&max-keys=5000").text.count("<Key>") == 1000


def test_names_are_percent_encoded_as_by_s3(server):
    names = ["a b+c.txt", "sub dir/1+2 ü.txt", "x&<y>.txt", "100%25.txt", "~(*)'.txt"]
    for name in names:
        server.put(name, name.encode())
        assert get(f"{server.url}/{quote(name)}").content == name.encode()
    # A plus sign in a path is a space.
    assert get(f"{server.url}/a+b%2Bc.txt").content == b"a b+c.txt"
    assert listed(server.url) == [sorted(names)]
    assert "<Key>x&amp;&lt;y&gt;.txt<" in get(f"{server.url}/?list-type=2").text
    url = f"{server.url}/?list-type=2&encoding-type=url"
    encoded = re.findall("<Key>(.*?)<", get(url).text)
    assert [*map(unquote_plus, encoded)] == sorted(names)
    assert {"a+b%2Bc.txt", "sub+dir/1%2B2+%C3%BC.txt"} < {*encoded}
    text = get(f"{url}&delimiter=/&prefix=sub%20d").text
    assert text.count("<Prefix>sub+d<") == text.count("<Prefix>sub+dir/<") == 1


def test_what_is_refused(server):
    assert ask("PUT", f"{server.url}/key", data=b"x").status_code == 403
    assert listed(server.url) == [[]]
    assert get(f"{server.url}er/key").status_code == 404
    server.delete("never there")
    server.deny_listing = True  # then S3 does not tell whether a key exists
    for path in ("?list-type=2", "none"):
        assert get(f"{server.url}/{path}").status_code == 403
    with pytest.raises(NotADirectoryError, match="No such folder"):
        serve_bucket("no/such/folder")
    with pytest.raises(OSError, match="in use"):
        serve_bucket(port=urlsplit(server.url).port)


def test_held_out_sessions_and_the_archive_are_listed_but_denied(bucket_folder):
    archive = "stimuli/task-images_stimuli.h5"
    with serve_bucket(bucket_folder) as server:
        keys = [key for page in listed(server.url) for key in page]
        held_out = [key for key in keys if "ses-3" in key and "localizers" not in key]
        for key in keys:
            if "ses-31" in key or key.startswith("stimuli/"):
                status = 403 if key in (archive, *held_out) else 200
                assert ask("HEAD", f"{server.url}/{key}").status_code == status, key
        assert "<Code>AccessDenied<" in get(f"{server.url}/{archive}").text
        server.denied = None
        assert {get(f"{server.url}/{key}").status_code for key in held_out} == {200}


# --- Connections, records and faults --------------------------------------------------


def test_connections_are_kept_alive_until_the_server_stops(server, capfd):
    server.put("key", b"x")
    server.put("large", bytes(30 * MIB))
    get(f"{server.url}/large", stream=True).close()  # goes away in the middle
    with urllib3.connection_from_url(server.url, maxsize=1, retries=False) as pool:
        for method, path, body, status in (
            *(("GET", "key", None, 200), ("HEAD", "key", None, 200)),
            *(("GET", "none", None, 404), ("HEAD", "none", None, 404)),
            *(("GET", "ses-31/key", None, 403), ("PUT", "key", b"a body", 403)),
            ("GET", "?list-type=2", None, 200),
        ):
            answer = pool.request(method, f"/{BUCKET}/{path}", body=body)
            assert answer.status == status
        assert pool.num_connections == 1
        server.stop()
        with pytest.raises(urllib3.exceptions.NewConnectionError):
            pool.request("GET", "/")
    assert capfd.readouterr() == ("", "")


def test_the_demo_needs_no_server_but_its_own():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['moto', 'boto3', 'werkzeug', "
        "'flask']); from laion_fmri_fetchers.demo import serve_bucket; "
        "serve_bucket().stop()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The access service ---------------------------------------------------------------

# What the form must have, and what is refused in its place; ... stands for nothing.
FORM = {
    "name": ("Ada Example", ["", ...]),
    "email": ("ada@university.example", ["nowhere"]),
    "institution": ("University of Examples", [None]),
    "pi_or_supervisor": (None, [...]),
    "research_purpose": ("Encoding models of natural images", ["too short"]),
    "accepted_terms": (True, ["yes", ...]),
    "acknowledged_privacy": (True, [False, ...]),
    "terms_version": ("1.0", ["0.9"]),
    "source": ("cli", [...]),
}


@pytest.fixture
def access(server):
    server.put("stimuli/task-images_stimuli.h5", b"an archive of images")
    server.put("stimuli/task-images_metadata.csv", b"image_name\n")
    with serve_access(server) as service:
        yield service


def post(service, path, body):
    return ask("POST", f"{service.url}/api/v1/{path}", json=body)


def test_the_service_refuses_forms(access):
    form = {field: right for field, (right, _) in FORM.items()}
    for field, (_, wrong) in FORM.items():
        for value in wrong:
            given = {**form, field: value}
            given = {name: given[name] for name in given if given[name] is not ...}
            answer = post(access, "access/request", given)
            assert answer.status_code == 422
            (detail,) = answer.json()["detail"]
            assert detail["loc"][-1] == field
            assert detail["msg"]
    granted = post(access, "access/request", form)
    assert granted.status_code == 200
    assert {*granted.json()} == {"request_id", "expires_at", "files"}


def test_gated_objects_need_a_good_signature(access):
    body = {"request_id": access.grant(), "dataset_version": "v1"}
    files = post(access, "refresh", body).json()["files"]
    (url,) = [file["url"] for file in files if file["name"].endswith("stimuli.h5")]
    part = get(url, headers={"Range": "bytes=3-9"})
    assert (part.status_code, part.content) == (206, b"archive")
    for bad in (url.replace("Signature=", "Signature=0"), url.partition("?")[0]):
        assert get(bad).status_code == 403
    access.expire()
    assert get(url).status_code == 403
    assert post(access, "refresh", {**body, "dataset_version": "v0"}).status_code == 422
    for page, status in {"terms": 200, "privacy": 200, "nowhere": 404}.items():
        assert get(f"{access.url}/{page}").status_code == status
