"""RangeReader: ranges of objects over connections that fail."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import CancelledError

import fault_server as faults
import pytest
from fault_server import FaultServer, always, fine
from policies import set_policy

from laion_fmri_fetchers.remote.client import Fault, RemoteObject
from laion_fmri_fetchers.remote.ranges import RangeReader

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01, tries=3, tries_away=2)


@pytest.fixture
def server():
    with FaultServer() as running:
        running.put("model", CONTENT)
        yield running


@pytest.fixture
def target(server):
    return RemoteObject(
        "model", f"{server.url}/model", len(CONTENT), faults.etag_of(CONTENT)
    )


@pytest.fixture
def reader():
    with RangeReader(4, timeout=1.0) as running:
        yield running


def kept_in(received):
    """Return a sink that writes what arrives to its position."""

    def keep(position, chunk):
        received[position : position + len(chunk)] = chunk

    return keep


def test_ranges_arrive_whole_and_nothing_else(server, target):
    received, counted = bytearray(len(CONTENT)), []
    with RangeReader(4, 1.0, counted.append) as reader:
        edges = [10, 11, 5_000, 5_001, 100_000, 299_999]
        reader.read(target, itertools.pairwise(edges), kept_in(received))
        assert received[10:299_999] == CONTENT[10:299_999]
        assert not any(received[:10])
        assert received[-1] == 0
        assert server.sent == sum(counted) == 299_989
        assert reader.read_bytes(target, 7, 8) == CONTENT[7:8]
        reader.read(target, [], kept_in(received))


PASSING = {
    "busy": faults.status(503),
    "refused": faults.status(429, Retry_After="0"),
    "reset": faults.reset(1000),
    "early end": faults.short(70_000),
    "stall": faults.stall(30),
    "wrong range": faults.wrong_range,
    "no range": faults.no_range,
    "longer": faults.wrong_length(+1),
    "shorter": faults.wrong_length(-1),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass(server, target, reader, name):
    server.faults["model"] = [PASSING[name]]
    received = bytearray(len(CONTENT))
    ranges = [(0, 150_000), (150_000, 250_000)]
    reader.read(target, ranges, kept_in(received))
    assert received[:250_000] == CONTENT[:250_000]


def test_what_arrived_is_not_asked_for_again(server, target, reader):
    server.faults["model"] = [faults.short(200_000), fine]
    received = bytearray(len(CONTENT))
    reader.read(target, [(1, 250_000)], kept_in(received))
    assert received[1:250_000] == CONTENT[1:250_000]
    (_, second) = (headers["range"] for _, headers in server.requests)
    assert int(second.removeprefix("bytes=").partition("-")[0]) > 1


@pytest.mark.parametrize(
    ("fault", "status", "remedy", "reason"),
    [
        (faults.status(503), 503, "", "503"),
        (faults.status(403), 403, "renew", "403"),
        (faults.status(404), 404, "", "404"),
        (faults.reset(), None, "", "connection|ended|reset"),
        (faults.ignore_range, 200, "whole", "Range"),
        (faults.wrong_range, 206, "", "another range"),
        (faults.headers(ETag='"other"'), None, "changed", "changed"),
    ],
)
def test_faults_that_last(server, target, reader, fault, status, remedy, reason):
    server.faults["model"] = [always(fault)]
    with pytest.raises(Fault, match=reason) as error:
        reader.read_bytes(target, 5, 200)
    assert error.value.remedy == remedy
    assert error.value.reason.startswith("model: ")
    assert status in (None, error.value.status)
    is_final = status in (200, 403, 404) or remedy
    assert server.count("model") == (1 if is_final else 3)


def test_another_object_under_the_same_key(server, target, reader):
    server.put("model", CONTENT[::-1])
    with pytest.raises(Fault) as error:
        reader.read_bytes(target, 1, 200)
    assert error.value.remedy == "changed"
    assert server.count("model") == 1


def test_an_object_of_another_size(server, target, reader):
    with pytest.raises(Fault, match="300000 bytes of it instead of 300001"):
        reader.read_bytes(target._replace(size=300_001), 1, 200)


def test_a_server_that_is_gone(server, target, reader):
    with FaultServer() as other:
        url = f"{other.url}/model"
    with pytest.raises(Fault) as error:
        reader.read_bytes(target._replace(url=url), 0, 10)
    assert error.value.status is None
    assert url not in str(error.value)


def test_what_a_sink_raises_is_raised(target, reader):
    def full(position, chunk):
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        reader.read(target, [(0, 100_000), (100_000, 200_000)], full)
    assert reader.read_bytes(target, 0, 9) == CONTENT[:9]


def test_many_threads_read_at_the_same_time(server, target, reader):
    results = {}

    def read(start):
        results[start] = bytes(reader.read_bytes(target, start, start + 9_000))

    threads = [
        threading.Thread(target=read, args=(start,))
        for start in range(0, 90_000, 9_000)
    ]
    server.faults["model"] = [faults.status(503), faults.reset(100), faults.short(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert results == {start: CONTENT[start : start + 9_000] for start in results}
    assert len(results) == 10


def test_one_reading_fails_alone(server, target, reader):
    server.put("other", CONTENT)
    other = target._replace(id="other", url=f"{server.url}/other")
    server.faults["model"] = [always(faults.status(404))]
    with pytest.raises(Fault) as error:
        reader.read_bytes(target, 0, 100)
    assert error.value.reason.startswith("model: status 404")
    assert reader.read_bytes(other, 0, 100) == CONTENT[:100]


def late(reply):
    """Answer after a while, then stall."""
    faults.wait(1.0)(reply)
    faults.stall(10)(reply)


@pytest.mark.parametrize(
    "fault", [late, faults.stall(10)], ids=["before an answer", "amid a body"]
)
def test_a_reader_that_is_stopped(server, target, fault):
    server.faults["model"] = [always(fault)]
    errors = []
    with RangeReader(2, timeout=600.0) as reader:

        def read():
            try:
                reader.read_bytes(target, 0, 200_000)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        while not (server.sent or (fault is late and server.requests)):
            threading.Event().wait(0.01)
    thread.join(60)
    assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, (CancelledError, Fault))
    assert server.count("model") == 1
