"""Listing the bucket over HTTP, and what may go wrong on the way."""

from __future__ import annotations

import contextlib
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
from laion_fmri_fetchers.remote.bucket import (
    Object,
    UnreachableError,
    list_prefixes,
)
from laion_fmri_fetchers.remote.client import NAME

PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}
</ListBucketResult>"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01)


def list_objects(prefix="", delimiter="", **options):
    return list_prefixes([(prefix, delimiter)], verbose=0, **options)[0]


def test_an_address_with_a_password_is_refused(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "https://ada:secret@mirror.example/b")
    with pytest.raises(InvalidQueryError, match="user name or password") as caught:
        bucket.bucket_url()
    assert "secret" not in str(caught.value)


def test_all_below_a_prefix(server, bucket_folder):
    prefix = "derivatives/rois/sub-01/face/"
    listing = list_objects(prefix)
    files = {
        path.relative_to(bucket_folder).as_posix(): path.stat().st_size
        for path in (bucket_folder / prefix).iterdir()
    }
    assert {one.key: one.size for one in listing["objects"]} == files
    for one in listing["objects"]:
        assert len(one.etag) == 32
        assert one.last_modified.endswith("Z")
    assert listing["prefixes"] == []


def test_one_level(server):
    listing = list_objects("", "/")
    assert "derivatives/" in listing["prefixes"]
    assert "participants.tsv" in [one.key for one in listing["objects"]]
    assert not [one.key for one in listing["objects"] if "/" in one.key]


def test_pages_and_odd_names(monkeypatch):
    names = [f"many/{i:04d}" for i in range(2105)]
    odd = ["many/a b+c&d<e>.jpg", "many/é%20ü.png", "many/~'(!)*"]
    with serve_bucket() as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        for name in names + odd:
            server.put(name, b"x")
        listing = list_objects("many/")
    assert sorted(one.key for one in listing["objects"]) == sorted(names + odd)
    queries = [parse_qs(query) for _, _, query in server.requests]
    assert len(queries) == 3
    assert all(query["encoding-type"] == ["url"] for query in queries)


def test_object_url_encodes(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://host:1/bucket/")
    url = bucket.object_url("a b/c+d~é.jpg")
    assert url == "http://host:1/bucket/a%20b/c%2Bd~%C3%A9.jpg"
    monkeypatch.delenv("LAION_FMRI_BUCKET_URL")
    assert bucket.object_url("README") == f"{bucket.DEFAULT_BUCKET_URL}/README"


def test_what_is_no_address(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "s3://laion-fmri")
    with pytest.raises(InvalidQueryError, match="LAION_FMRI_BUCKET_URL"):
        list_objects()


def answers(*statuses, headers=()):
    """Answer with these, one after the other, then let requests through."""
    left = itertools.chain(statuses, itertools.repeat(None))

    def answer(environ):
        status = next(left)
        return status and (status, dict(headers), b"<Error/>")

    return answer


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_busy_passes(server, status):
    server.faults[""] = answers(status, status)
    assert list_objects("participants")["objects"]
    assert len(server.requests) == 3


def test_retry_after_is_honoured(server):
    server.faults[""] = answers(429, headers={"Retry-After": "1"})
    start = time.monotonic()
    assert list_objects("participants")["objects"]
    assert time.monotonic() - start >= 1


def test_busy_for_good(server):
    server.faults[""] = lambda environ: (503, {}, b"")
    with pytest.raises(UnreachableError, match="503"):
        list_objects("derivatives/")
    assert len(server.requests) == retry.TRIES


@pytest.mark.parametrize(("status", "word"), [(403, "denies"), (404, "No such bucket")])
def test_denied_and_missing_are_not_tried_again(server, status, word):
    server.faults[""] = (status, {}, b"<Error/>")
    with pytest.raises(BucketError, match=word) as error:
        list_objects("derivatives/rois/")
    assert not isinstance(error.value, UnreachableError)
    assert server.url in str(error.value)
    assert "derivatives/rois/" in str(error.value)
    assert len(server.requests) == 1


def test_other_status(server):
    server.faults[""] = (301, {}, b"")
    with pytest.raises(BucketError, match="301"):
        list_objects()


def test_body_cut_short_is_asked_for_again(server):
    left = iter([(200, {"Content-Length": "5000"}, b"<?xml")])
    server.faults[""] = lambda environ: next(left, None)
    assert list_objects("participants")["objects"]


def test_no_server(monkeypatch):
    with serve_bucket() as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
    with pytest.raises(UnreachableError, match="refused") as error:
        list_objects()
    assert server.url in str(error.value)


def test_no_host(monkeypatch):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://no-such-host.invalid/b")
    with pytest.raises(UnreachableError, match="no-such-host"):
        list_objects()


@pytest.mark.parametrize("url", ["http://", "http://x:port/b"])
def test_an_address_without_host_or_port(monkeypatch, url):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
    with pytest.raises(BucketError, match="cannot be listed.*LAION_FMRI_BUCKET_URL"):
        list_objects()


def test_silent_server(server):
    release = threading.Event()
    server.faults[""] = lambda environ: release.wait(5) and None
    try:
        with pytest.raises(UnreachableError):
            list_objects(timeout=0.2)
    finally:
        release.set()


@pytest.mark.parametrize(
    "body",
    [
        "<html><body>log in</body></html>",
        "no xml",
        "",
        PAGE.format("<Contents><Key>a</Key></Contents>"),
        PAGE.format("<Contents><Size>3</Size></Contents>"),
        PAGE.format("<Contents><Key>a</Key><Size>much</Size></Contents>"),
        PAGE.format("<IsTruncated>true</IsTruncated>"),
    ],
)
def test_what_is_no_listing(server, body):
    server.faults[""] = (200, {}, body.encode())
    with pytest.raises(BucketError):
        list_objects()


def test_listing_that_turns_in_circles(server):
    page = PAGE.format(
        "<IsTruncated>true</IsTruncated>"
        "<NextContinuationToken>x</NextContinuationToken>"
    )
    server.faults[""] = (200, {}, page.encode())
    with pytest.raises(BucketError, match="breaks off"):
        list_objects()


def test_folder_marks_are_no_files(server):
    page = PAGE.format(
        "<EncodingType>url</EncodingType>"
        "<Contents><Key>a%2F</Key><Size>0</Size></Contents>"
        "<Contents><Key>a/b+c</Key><Size>1</Size></Contents>"
    )
    server.faults[""] = (200, {}, page.encode())
    assert [one.key for one in list_objects()["objects"]] == ["a/b c"]


def test_keys_as_they_are_without_encoding(server):
    page = PAGE.format("<Contents><Key>a+b%20c</Key><Size>1</Size></Contents>")
    server.faults[""] = (200, {}, page.encode())
    assert [one.key for one in list_objects()["objects"]] == ["a+b%20c"]


def test_many_at_once(server):
    wanted = [("derivatives/", "/"), ("", "/"), ("derivatives/rois/", "")]
    found = list_prefixes(wanted, n_connections=2)
    assert [(one["prefix"], one["delimiter"]) for one in found] == wanted
    assert list_prefixes([]) == []


def test_no_thread_is_left(server):
    list_prefixes([("derivatives/", "/"), ("", "/")])
    assert not listers()


def listers():
    """Threads that list, after a moment for them to end."""
    for _ in range(100):
        found = [t for t in threading.enumerate() if t.name == NAME]
        if not found:
            break
        time.sleep(0.02)
    return found


def contents(*keys):
    return "".join(f"<Contents><Key>{k}</Key><Size>1</Size></Contents>" for k in keys)


def truncated(token, *keys):
    return PAGE.format(
        f"<IsTruncated>true</IsTruncated>{contents(*keys)}"
        f"<NextContinuationToken>{token}</NextContinuationToken>"
    ).encode()


def test_all_that_s3_says_of_objects(server):
    page = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<Prefix></Prefix><KeyCount>3</KeyCount><EncodingType>url</EncodingType>
<IsTruncated>false</IsTruncated>
<Contents><Key>a%2Bb+c%26</Key><LastModified>2026-05-01T10:00:00.000Z</LastModified>
<ETag>&quot;0cc175b9c0f1b6a831c399e269772661-3&quot;</ETag><Size>12</Size>
<StorageClass>STANDARD</StorageClass></Contents>
<Contents><Size>0</Size><ETag>&#34;92eb5ffee6ae2fec3ad71c777531578f&#34;</ETag>
<Key>d/e</Key><LastModified>2026-05-02T10:00:00.000Z</LastModified></Contents>
<CommonPrefixes><Prefix>x+y/</Prefix></CommonPrefixes>
<CommonPrefixes>
  <Prefix>z/</Prefix>
</CommonPrefixes></ListBucketResult>"""
    server.faults[""] = (200, {}, page.encode())
    listing = list_objects("", "/")
    assert listing["objects"] == [
        Object(
            "a+b c&",
            12,
            "0cc175b9c0f1b6a831c399e269772661-3",
            "2026-05-01T10:00:00.000Z",
        ),
        Object(
            "d/e", 0, "92eb5ffee6ae2fec3ad71c777531578f", "2026-05-02T10:00:00.000Z"
        ),
    ]
    assert listing["prefixes"] == ["x y/", "z/"]


@pytest.mark.parametrize(
    "pages",
    [
        [truncated("A", "a"), truncated("B", "b"), truncated("A", "a")],
        [truncated("A", "b"), truncated("B", "a")],
        [truncated("A", "a"), truncated("B", "a")],
        [truncated("A")],
    ],
)
def test_pages_must_advance(server, pages):
    left = itertools.cycle(pages)
    server.faults[""] = lambda environ: (200, {}, next(left))
    with pytest.raises(BucketError, match="breaks off"):
        list_objects()
    assert len(server.requests) <= 3 + 1  # the next page is asked for in advance


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            '<?xml version="1.0" encoding="no-such"?><ListBucketResult/>',
            "unknown encoding|no-such",
        ),
        (PAGE.format("<a:Contents></a:Contents>"), "unbound prefix"),
        (PAGE.format(contents("")), "no key"),
        (PAGE.format("<Contents><Key>a</Key><Size>-1</Size></Contents>"), "size"),
        (
            PAGE.format(f"<Contents><Key>a</Key><Size>{'9' * 5000}</Size></Contents>"),
            "not a listing",
        ),
        (PAGE.format(contents("a"))[:-9], "no element|not well-formed|unclosed"),
        (PAGE.format(contents("a")).encode() + b"\xff", "not well-formed|invalid"),
    ],
)
def test_xml_that_is_refused(server, body, words):
    body = body if isinstance(body, bytes) else body.encode()
    server.faults[""] = (200, {}, body)
    with pytest.raises(BucketError, match=words) as error:
        list_objects()
    assert not isinstance(error.value, UnreachableError)


@pytest.mark.parametrize("value", ["0.5", "soon", "nan", "-1", "Fri, 99 Dec 1999"])
def test_retry_after_of_any_kind(server, value):
    server.faults[""] = answers(503, headers={"Retry-After": value})
    assert list_objects("participants")["objects"]


@pytest.mark.parametrize("url", ["http://a..b", f"http://{'a' * 70}.example"])
def test_a_host_name_that_cannot_be(monkeypatch, url):
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", url)
    with pytest.raises(BucketError, match="cannot be listed.*LAION_FMRI_BUCKET_URL"):
        list_objects()


@pytest.mark.parametrize("location", ["http://[", "http://a..b/", "/there"])
def test_redirects_to_nowhere(server, location):
    server.faults[""] = (302, {"Location": location}, b"")
    with pytest.raises(BucketError, match="cannot be listed|302|403|404"):
        list_objects()


def test_a_redirect_is_followed(server, monkeypatch):
    with FaultServer() as other:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", other.url)
        location = f"{server.url}/?list-type=2&prefix=participants.tsv"
        other.faults[""] = [always(faults.status(307, Location=location))]
        (one,) = list_objects("participants.tsv")["objects"]
    assert one.key == "participants.tsv"


def raw(page):
    """Serve a page at the top of a server on a raw socket."""
    server = FaultServer()
    server.objects[""] = (page, None)
    return server


def test_a_slow_body_that_makes_progress_is_read(monkeypatch):
    """40 kB at 40 kB/s with 0.6 s of patience: longer in all than any of it."""
    keys = [f"{n:0200d}" for n in range(200)]
    with raw(PAGE.format(contents(*keys)).encode()) as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        server.faults[""] = [always(faults.slow(40_000.0))]
        start = time.monotonic()
        assert [one.key for one in list_objects(timeout=0.6)["objects"]] == keys
        assert time.monotonic() - start > 1


def test_one_time_out_to_connect_in_all(monkeypatch):
    """A full queue of a listener drops what wants to connect, as a firewall does."""
    set_policy(monkeypatch, connect_timeout=1.0)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(
            socket.create_server(("127.0.0.1", 0), backlog=0)
        )
        address = listener.getsockname()
        stack.enter_context(socket.create_connection(address))
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", f"http://127.0.0.1:{address[1]}")
        wanted = [(f"sub-{n:02d}/", "") for n in range(200)]
        start = time.monotonic()
        with pytest.raises(UnreachableError, match="does not accept connections"):
            list_prefixes(wanted, n_connections=4)
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
