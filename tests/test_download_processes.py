"""Many processes, one directory: with locks that work or do not, and killed.

A watcher hashes every file when it appears under its final name.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import multiprocessing
import os
import random
import select
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from fault_server import FaultServer, always, slow

from laion_fmri_fetchers.remote import download as downloading
from laion_fmri_fetchers.remote import partial
from laion_fmri_fetchers.remote.download import Download, download_files

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="watches files with inotify"
)

N_PROCESSES = 16
RANGE = 2**18
SIZES = [
    *range(1000, 30_000, 1000),
    100_000,
    2**18,
    *range(300_000, 3_000_000, 300_000),
]

CONTEXT = multiprocessing.get_context("forkserver")


def fetch_all(downloads, partial_dir, locks_work, ready):
    """Run in a process of its own."""
    partial.BLOCK, partial.PART_SIZES = RANGE, range(RANGE, 2**24)
    downloading.SMALL, downloading.POLL = 0, 0.02  # a lock for every file
    if not locks_work:
        fcntl.flock = fcntl.lockf = lambda *args: None
    if ready:
        ready.wait()
    failed = download_files(
        downloads, partial_dir=partial_dir, n_connections=4, timeout=10.0, verbose=0
    )
    assert failed == [], failed


class Watcher:
    """Hashes files when they appear, in a thread; a context manager.

    Attributes
    ----------
    seen : list of tuple
        Name and SHA-256 of each file at the moment it appeared.
    """

    MOVED_TO, CREATE, CLOSE_WRITE = 0x80, 0x100, 0x8

    def __init__(self, folder: Path):
        self.folder, self.seen = folder, []
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_CLOEXEC)
        events = self.MOVED_TO | self.CREATE | self.CLOSE_WRITE
        libc.inotify_add_watch(self.descriptor, os.fsencode(folder), events)
        self.end, self.told = os.pipe()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        os.write(self.told, b"x")
        self.thread.join()
        for descriptor in (self.descriptor, self.end, self.told):
            os.close(descriptor)

    def _watch(self):
        while True:
            readable, _, _ = select.select([self.descriptor, self.end], [], [])
            if self.descriptor in readable:
                self._hash(os.read(self.descriptor, 2**16))
            elif self.end in readable:
                return

    def _hash(self, events):
        at = 0
        while at < len(events):
            _, _, _, length = struct.unpack_from("iIII", events, at)
            name = events[at + 16 : at + 16 + length].rstrip(b"\0").decode()
            at += 16 + length
            # Without locks, what another process began anew may be renamed, and is
            # removed at once by whoever did so.
            with contextlib.suppress(FileNotFoundError):
                content = (self.folder / name).read_bytes()
                self.seen.append((name, hashlib.sha256(content).hexdigest()))


@pytest.fixture
def server():
    with FaultServer() as running:
        for i, size in enumerate(SIZES):
            part = 2**20 if size > 2**20 else None
            running.put(f"f{i}", random.Random(i).randbytes(size), part)
        yield running


@pytest.fixture
def downloads(server, tmp_path):
    return [
        Download(key, f"{server.url}/{key}", tmp_path / "files" / key, len(data), etag)
        for key, (data, etag) in server.objects.items()
    ]


@pytest.fixture
def watcher(tmp_path):
    (tmp_path / "files").mkdir()
    with Watcher(tmp_path / "files") as running:
        yield running


def start(downloads, tmp_path, locks_work, ready):
    args = (downloads, tmp_path / "partial", locks_work, ready)
    process = CONTEXT.Process(target=fetch_all, args=args)
    process.start()
    return process


def assert_all_well(server, downloads, watcher, tmp_path):
    """Check what is there at the end, and all that was there before."""
    expected = {
        key: hashlib.sha256(data).hexdigest()
        for key, (data, _) in server.objects.items()
    }
    for download in downloads:
        digest = hashlib.sha256(download.path.read_bytes()).hexdigest()
        assert digest == expected[download.id]
    for _ in range(100):
        if {name for name, _ in watcher.seen} == set(expected):
            break
        time.sleep(0.05)
    assert {name for name, _ in watcher.seen} == set(expected)
    assert all(digest == expected[name] for name, digest in watcher.seen)
    assert sorted(os.listdir(tmp_path / "files")) == sorted(expected)
    assert os.listdir(tmp_path / "partial") == []


@pytest.mark.parametrize("locks_work", [True, False])
def test_processes_that_fetch_the_same_files(
    server, downloads, watcher, tmp_path, locks_work
):
    ready = CONTEXT.Barrier(N_PROCESSES)
    processes = [
        start(downloads, tmp_path, locks_work, ready) for _ in range(N_PROCESSES)
    ]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    assert_all_well(server, downloads, watcher, tmp_path)
    if locks_work:
        assert server.sent <= 1.2 * sum(SIZES)
    else:
        assert server.sent > 1.2 * sum(SIZES)


@pytest.mark.parametrize("locks_work", [True, False])
def test_processes_that_are_killed(server, downloads, watcher, tmp_path, locks_work):
    def held(reply):
        have_been_killed.wait(60)
        slow(1e6)(reply)

    chance = random.Random(0)
    have_been_killed = threading.Event()
    for key in server.objects:
        server.faults[key] = [always(slow(1e6))]
    server.faults[key] = [always(held)]
    processes = [start(downloads, tmp_path, locks_work, None) for _ in range(6)]
    n_killed = 0
    while not all(download.path.exists() for download in downloads):
        due = server.sent + chance.randrange(2_000_000)
        for _ in range(200):
            if server.sent >= due or not any(map(CONTEXT.Process.is_alive, processes)):
                break
            time.sleep(0.01)
        victim = chance.randrange(len(processes))
        processes[victim].kill()
        processes[victim].join()
        processes[victim] = start(downloads, tmp_path, locks_work, None)
        n_killed += 1
        if n_killed > 10:
            have_been_killed.set()
    processes.append(start(downloads, tmp_path, locks_work, None))
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    assert_all_well(server, downloads, watcher, tmp_path)


def test_forked_processes_download_after_their_parent_has(server, downloads, tmp_path):
    """Nothing of a call, such as threads and connections, is kept for the next one."""

    def fetch(files):
        folder = tmp_path / "partial"
        options = {"n_connections": 4, "timeout": 10.0, "verbose": 0}
        assert download_files(files, partial_dir=folder, **options) == []

    first, second = downloads[::2], downloads[1::2]
    fetch(first)
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                fetch(second)
                os._exit(0)
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for download in downloads:
        content, _ = server.objects[download.id]
        assert download.path.read_bytes() == content
