"""RangeReader: ranges of objects over connections that fail."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import fault_server as faults
import pytest
from fault_server import FaultServer, always
from policies import set_policy

from laion_fmri_fetchers.remote.client import Fault, RemoteObject
from laion_fmri_fetchers.remote.ranges import RangeReader

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    set_policy(monkeypatch, first_wait=0.01, tries=4)


@pytest.fixture
def server():
    with FaultServer() as running:
        running.put("model", CONTENT)
        yield running


@pytest.fixture
def target(server):
    etag = faults.etag_of(CONTENT)
    return RemoteObject("model", f"{server.url}/model", len(CONTENT), etag)


@pytest.fixture
def reader():
    with RangeReader(4, timeout=2.0) as running:
        yield running


def test_ranges_arrive_whole_and_nothing_else(server, target):
    received, counted = bytearray(len(CONTENT)), []

    def keep(position, chunk):
        received[position : position + len(chunk)] = chunk

    with RangeReader(4, 10.0, counted.append) as reader:
        edges = [10, 11, 5_000, 5_001, 100_000, 299_999]
        reader.read(target, itertools.pairwise(edges), keep)
        assert received == bytes(10) + CONTENT[10:-1] + bytes(1)
        assert server.sent == sum(counted) == 299_989
        assert reader.read_bytes(target, 7, 8) == CONTENT[7:8]
        reader.read(target, [], keep)


def test_many_threads_read_though_connections_fail(server, target, reader):
    server.faults["model"] = [faults.status(503), faults.reset(100), faults.short(50)]
    server.faults["model"] += [faults.stall(30), faults.wrong_length(-1)]
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, 200_000, 50_000)
        found = pool.map(lambda a: reader.read_bytes(target, a, a + 100_000), starts)
    assert list(found) == [CONTENT[a : a + 100_000] for a in starts]
    assert server.count("model") == 4 + 5


def test_what_arrived_is_not_asked_for_again(server, target, reader):
    server.faults["model"] = [faults.short(200_000)]
    assert reader.read_bytes(target, 1, 250_000) == CONTENT[1:250_000]
    (_, second) = (headers["range"] for _, headers in server.requests)
    assert int(second.removeprefix("bytes=").partition("-")[0]) > 1


@pytest.mark.parametrize(
    ("fault", "status", "remedy", "reason"),
    [
        (faults.status(503), 503, "", "503"),
        (faults.status(403), 403, "renew", "403"),
        (faults.status(404), 404, "", "404"),
        (faults.ignore_range, 200, "whole", "Range"),
        (faults.wrong_range, 206, "", "another range"),
        (faults.headers(ETag='"other"'), None, "changed", "changed"),
        (faults.status(412), 412, "changed", "changed"),
    ],
)
def test_a_fault_that_lasts(server, target, reader, fault, status, remedy, reason):
    """It is said of which object; what tries cannot mend is tried once."""
    server.put("other", CONTENT)
    server.faults["model"] = [always(fault)]
    with pytest.raises(Fault, match=reason) as error:
        reader.read_bytes(target, 5, 200)
    assert error.value.reason.startswith("model: ")
    assert (error.value.status, error.value.remedy) == (status, remedy)
    assert server.count("model") == (1 if remedy or status == 404 else 4)
    other = target._replace(url=f"{server.url}/other")
    assert reader.read_bytes(other, 0, 100) == CONTENT[:100]


def test_tries_are_counted_from_the_last_progress(server, target, reader):
    """That of an earlier try does not let a server that fails be asked for ever."""
    content = bytes(2**21)
    server.put("model", content)
    target = target._replace(size=2**21, etag=faults.etag_of(content))
    server.faults["model"] = [faults.short(3 * 2**19), *9 * [faults.status(503)]]
    with pytest.raises(Fault, match="503"):
        reader.read_bytes(target, 0, 2**21)
    assert server.count("model") == 4


def test_an_object_of_another_size(server, target, reader):
    with pytest.raises(Fault, match="300000 bytes of it instead of 300001"):
        reader.read_bytes(target._replace(size=300_001), 1, 200)


def test_what_a_sink_raises_is_raised(target, reader):
    def full(position, chunk):
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        reader.read(target, [(0, 100_000), (100_000, 200_000)], full)
    assert reader.read_bytes(target, 0, 9) == CONTENT[:9]


def late(reply):
    faults.wait(1.0)(reply)
    faults.stall(10)(reply)


@pytest.mark.parametrize(
    "fault", [late, faults.stall(10)], ids=["before an answer", "amid a body"]
)
def test_a_reader_that_is_stopped(server, target, fault):
    """What is waited for by then ends, and is not tried again."""
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
