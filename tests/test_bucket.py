"""Listing the bucket over HTTP, and what may go wrong on the way."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from urllib.parse import parse_qs

import fault_server as faults
import pytest
from fault_server import FaultServer, always
from policies import set_policy

from laion_fmri_fetchers.demo import serve_bucket
from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.remote import bucket, retry
from laion_fmri_fetchers.remote.bucket import Object, UnreachableError, list_prefixes

PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}
</ListBucketResult>"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01)


def list_objects(prefix="", delimiter="", **options):
    return list_prefixes([(prefix, delimiter)], verbose=0, **options)[0]


def contents(*keys):
    return "".join(f"<Contents><Key>{k}</Key><Size>1</Size></Contents>" for k in keys)


def truncated(token, *keys):
    return PAGE.format(
        f"<IsTruncated>true</IsTruncated>{contents(*keys)}"
        f"<NextContinuationToken>{token}</NextContinuationToken>"
    ).encode()


# --- Addresses -------------------------------------------------------------------


def test_addresses_of_objects(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://host:1/bucket/")
    url = bucket.object_url("a b/c+d~é.jpg")
    assert url == "http://host:1/bucket/a%20b/c%2Bd~%C3%A9.jpg"
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    assert bucket.object_url("README") == f"{bucket.DEFAULT_BUCKET_URL}/README"


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("https://ada:secret@mirror.example/b", InvalidQueryError, "name or password"),
        ("s3://laion-fmri", InvalidQueryError, "LAION_FMRI_BUCKET_URL is 's3://laion"),
        ("http://", BucketError, "cannot be listed.*LAION_FMRI_BUCKET_URL"),
        ("http://x:port/b", BucketError, "cannot be listed.*LAION_FMRI_BUCKET_URL"),
        ("http://a..b", BucketError, "cannot be listed.*LAION_FMRI_BUCKET_URL"),
        (f"http://{'a' * 70}.example", BucketError, "cannot be listed.*LAION_FMRI_BUC"),
        ("http://no-such-host.invalid/b", UnreachableError, "no-such-host.*resolved"),
        ("http://127.0.0.1:{closed}", UnreachableError, "127.0.0.1:{closed}.*refused"),
    ],
)
def test_addresses_that_are_none(monkeypatch, url, kind, words):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = str(closed.getsockname()[1])
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url.replace("{closed}", port))
    with pytest.raises(kind, match=words.replace("{closed}", port)) as caught:
        list_objects()
    assert "secret" not in str(caught.value)


# --- What is listed --------------------------------------------------------------


def test_what_is_below_prefixes(server, bucket_folder):
    prefix = "derivatives/rois/sub-01/face/"
    wanted = [(prefix, ""), ("", "/")]
    below, top = list_prefixes(wanted, n_connections=2)
    assert [(one["prefix"], one["delimiter"]) for one in (below, top)] == wanted
    assert {one.key: one.size for one in below["objects"]} == {
        path.relative_to(bucket_folder).as_posix(): path.stat().st_size
        for path in (bucket_folder / prefix).iterdir()
    }
    assert below["prefixes"] == []
    assert "derivatives/" in top["prefixes"]
    assert "participants.tsv" in [one.key for one in top["objects"]]
    assert not [one.key for one in top["objects"] if "/" in one.key]
    assert list_prefixes([]) == []
    for _ in range(200):  # no thread is left, after a moment
        names = [thread.name for thread in threading.enumerate()]
        if not any(name.startswith("laion-fmri") for name in names):
            return
        time.sleep(0.02)
    pytest.fail(f"of {names}, a thread is left")


def test_pages_and_odd_names(monkeypatch):
    names = [f"many/{i:04d}" for i in range(2105)]
    names += ["many/a b+c&d<e>.jpg", "many/é%20ü.png", "many/~'(!)*"]
    with serve_bucket() as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        for name in names:
            server.put(name, b"x")
        listing = list_objects("many/")
    assert sorted(one.key for one in listing["objects"]) == sorted(names)
    queries = [parse_qs(query) for _, _, query in server.requests]
    assert len(queries) == 3
    assert all(query["encoding-type"] == ["url"] for query in queries)


def test_all_that_s3_says_of_objects(server):
    page = PAGE.format("""<Name>b</Name>
<Prefix></Prefix><KeyCount>3</KeyCount><EncodingType>url</EncodingType>
<IsTruncated>false</IsTruncated>
<Contents><Key>a%2Bb+c%26</Key><LastModified>2026-05-01T10:00:00.000Z</LastModified>
<ETag>&quot;0cc175b9c0f1b6a831c399e269772661-3&quot;</ETag><Size>12</Size>
<StorageClass>STANDARD</StorageClass></Contents>
<Contents><Size>0</Size><ETag>&#34;92eb5ffee6ae2fec3ad71c777531578f&#34;</ETag>
<Key>d/e</Key><LastModified>2026-05-02T10:00:00.000Z</LastModified></Contents>
<Contents><Key>mark-of-a-folder%2F</Key><Size>0</Size></Contents>
<CommonPrefixes><Prefix>x+y/</Prefix></CommonPrefixes>
<CommonPrefixes>
  <Prefix>z/</Prefix>
</CommonPrefixes>""")
    server.faults[""] = (200, {}, page.encode())
    listing = list_objects("", "/")
    assert listing["objects"] == [
        Object(key, size, etag, f"2026-05-0{day}T10:00:00.000Z")
        for key, size, etag, day in (
            ("a+b c&", 12, "0cc175b9c0f1b6a831c399e269772661-3", 1),
            ("d/e", 0, "92eb5ffee6ae2fec3ad71c777531578f", 2),
        )
    ]
    assert listing["prefixes"] == ["x y/", "z/"]
    server.faults[""] = (200, {}, PAGE.format(contents("a+b%20c")).encode())
    assert [one.key for one in list_objects()["objects"]] == ["a+b%20c"]


# --- Servers that are busy, deny, or break off -----------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *((status, {}, b"<Error/>") for status in (500, 502, 503, 504, 429)),
        *((503, {"Retry-After": value}, b"") for value in ("0.5", "soon", "nan", "-1")),
        (200, {"Content-Length": "5000"}, b"<?xml"),
    ],
    ids=lambda fault: " ".join(map(str, [fault[0], *fault[1].values()])),
)
def test_a_server_that_fails_twice(server, fault):
    left = itertools.chain([fault] * 2, itertools.repeat(None))
    server.faults[""] = lambda environ: next(left)
    assert list_objects("participants")["objects"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "words", "n_asked"),
    [
        ((503, {}, b""), UnreachableError, "503", retry.TRIES),
        (
            (403, {}, b"<Error/>"),
            BucketError,
            "denies the listing of 'derivatives/r",
            1,
        ),
        ((404, {}, b"<Error/>"), BucketError, "No such bucket.*derivatives/rois/", 1),
        ((301, {}, b""), BucketError, "status 301", 1),
        ((302, {"Location": "http://["}, b""), BucketError, "address is not valid", 1),
        ((302, {"Location": "http://a..b/"}, b""), BucketError, "cannot be listed", 1),
        ((302, {"Location": "/there"}, b""), BucketError, "status 404", 2),
    ],
)
def test_a_server_that_fails_for_good(server, answer, kind, words, n_asked):
    server.faults[""] = answer
    with pytest.raises(BucketError, match=words) as error:
        list_objects("derivatives/rois/")
    assert type(error.value) is kind
    assert server.url in str(error.value)
    assert len(server.requests) == n_asked


def test_a_redirect_is_followed(server, monkeypatch):
    with FaultServer() as other:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", other.url)
        location = f"{server.url}/?list-type=2&prefix=participants.tsv"
        other.faults[""] = [always(faults.status(307, Location=location))]
        (one,) = list_objects("participants.tsv")["objects"]
    assert one.key == "participants.tsv"


ONE = PAGE.format(contents("a"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html><body>log in</body></html>", "not a listing: it is other XML"),
        ("no xml", "not a listing"),
        ("", "not a listing"),
        (PAGE.format("<Contents><Key>a</Key></Contents>"), "no key or no size"),
        (PAGE.format("<Contents><Size>3</Size></Contents>"), "no key"),
        (PAGE.format(contents("")), "no key"),
        (ONE.replace(">1<", ">much<"), "no size"),
        (ONE.replace(">1<", ">-1<"), "no size"),
        (ONE.replace(">1<", f">{'9' * 5000}<"), "not a listing"),
        (PAGE.format("<a:Contents></a:Contents>"), "unbound prefix"),
        (ONE[:-9], "not a listing"),
        (ONE.encode() + b"\xff", "not a listing"),
        (ONE.replace("UTF-8", "no-such"), "unknown encoding|no-such"),
        (PAGE.format("<IsTruncated>true</IsTruncated>"), "breaks off"),
    ],
)
def test_what_is_no_listing(server, body, words):
    body = body if isinstance(body, bytes) else body.encode()
    server.faults[""] = (200, {}, body)
    with pytest.raises(BucketError, match=words) as error:
        list_objects()
    assert not isinstance(error.value, UnreachableError)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "pages",
    [
        [truncated("A", "a"), truncated("B", "b"), truncated("A", "a")],
        [truncated("A", "b"), truncated("B", "a")],
        [truncated("A", "a")],
        [truncated("A")],
    ],
)
def test_pages_must_advance(server, pages):
    left = itertools.cycle(pages)
    server.faults[""] = lambda environ: (200, {}, next(left))
    with pytest.raises(BucketError, match="breaks off"):
        list_objects()
    assert len(server.requests) <= 3


# --- Servers that are slow -------------------------------------------------------


def test_a_silent_server(server):
    release = threading.Event()
    server.faults[""] = lambda environ: release.wait(5) and None
    try:
        with pytest.raises(UnreachableError, match="no byte for 0.2 s"):
            list_objects(timeout=0.2)
    finally:
        release.set()


def test_a_slow_body_that_makes_progress_is_read(monkeypatch):
    """40 kB at 40 kB/s with 0.6 s of patience: longer in all than any of it."""
    keys = [f"{n:0200d}" for n in range(200)]
    with FaultServer() as server:
        server.objects[""] = (PAGE.format(contents(*keys)).encode(), None)
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        server.faults[""] = [always(faults.slow(40_000.0))]
        assert [one.key for one in list_objects(timeout=0.6)["objects"]] == keys
        assert len(server.requests) == 1


def test_one_time_out_to_connect_in_all(monkeypatch):
    """A full queue of a listener drops what wants to connect, as a firewall does."""
    set_policy(monkeypatch, connect_timeout=1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"http://127.0.0.1:{address[1]}")
        with socket.create_connection(address):
            start = time.monotonic()
            with pytest.raises(UnreachableError, match="does not accept connections"):
                list_prefixes([(f"sub-{n}/", "") for n in range(200)], n_connections=4)
    assert 1.0 <= time.monotonic() - start < 25


def test_an_error_of_one_ends_the_others(server):
    release = threading.Event()

    def answer(environ):
        if "prefix=b%2F" in environ["QUERY_STRING"]:
            return 403, {}, b""
        release.wait(100)
        return None

    server.faults[""] = answer
    start = time.monotonic()
    try:
        with pytest.raises(BucketError, match="denies"):
            list_prefixes([("a/", ""), ("b/", ""), ("c/", "")])
        assert time.monotonic() - start < 60
    finally:
        release.set()
