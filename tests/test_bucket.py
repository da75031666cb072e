"""Listing the bucket over HTTP, and what may go wrong on the way."""

from __future__ import annotations

import itertools
import threading
import time
from urllib.parse import parse_qs

import pytest

from laion_fmri_fetchers import BucketError, InvalidQueryError, bucket
from laion_fmri_fetchers.bucket import UnreachableError, list_many, list_objects
from laion_fmri_fetchers.demo import serve_bucket

PAGE = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}
</ListBucketResult>"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(bucket, "_FIRST_WAIT", 0.01)


def test_all_below_a_prefix(server, bucket_folder):
    prefix = "derivatives/rois/sub-01/face/"
    listing = list_objects(prefix)
    files = {
        path.relative_to(bucket_folder).as_posix(): path.stat().st_size
        for path in (bucket_folder / prefix).iterdir()
    }
    assert {key: size for key, size, _, _ in listing["objects"]} == files
    for _, _, etag, last_modified in listing["objects"]:
        assert len(etag) == 32
        assert last_modified.endswith("Z")
    assert listing["prefixes"] == []


def test_one_level(server):
    listing = list_objects("", "/")
    assert "derivatives/" in listing["prefixes"]
    assert "participants.tsv" in [key for key, *_ in listing["objects"]]
    assert not [key for key, *_ in listing["objects"] if "/" in key]


def test_pages_and_odd_names(monkeypatch):
    names = [f"many/{i:04d}" for i in range(2105)]
    odd = ["many/a b+c&d<e>.jpg", "many/é%20ü.png", "many/~'(!)*"]
    with serve_bucket() as server:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", server.url)
        for name in names + odd:
            server.put(name, b"x")
        listing = list_objects("many/")
    assert sorted(key for key, *_ in listing["objects"]) == sorted(names + odd)
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
    assert len(server.requests) == bucket._TRIES_BUSY


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
    with pytest.raises(BucketError, match="Cannot ask for.*LAION_FMRI_BUCKET_URL"):
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
    assert [key for key, *_ in list_objects()["objects"]] == ["a/b c"]


def test_keys_as_they_are_without_encoding(server):
    page = PAGE.format("<Contents><Key>a+b%20c</Key><Size>1</Size></Contents>")
    server.faults[""] = (200, {}, page.encode())
    assert [key for key, *_ in list_objects()["objects"]] == ["a+b%20c"]


def test_many_at_once(server):
    wanted = [("derivatives/", "/"), ("", "/"), ("derivatives/rois/", "")]
    found = list_many(wanted, n_connections=2)
    assert [(one["prefix"], one["delimiter"]) for one in found] == wanted
    assert list_many([]) == []


def test_a_session_a_thread():
    sessions = {}
    threads = [
        threading.Thread(target=lambda n=n: sessions.setdefault(n, bucket.session()))
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(session) for session in sessions.values()}) == 3
    assert bucket.session() is bucket.session()
