"""Many processes, one directory: with locks that work or do not, killed, and forked.

A watcher hashes each file when it appears under its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import random
import threading
import time

import pytest
from fault_server import FaultServer, always, slow

from laion_fmri_fetchers.remote import download as downloading
from laion_fmri_fetchers.remote import partial
from laion_fmri_fetchers.remote.download import Download, download_files

N_PROCESSES = 6
BLOCK = 2**18
SIZES = [*range(1000, 30_000, 2000), 2**18, *range(300_000, 3_000_000, 300_000)]
CONTEXT = multiprocessing.get_context("forkserver")
with_and_without_locks = pytest.mark.parametrize(
    "locks_work", [True, False], ids=["locks", "no locks"]
)


def fetch_all(downloads, partial_dir, locks_work, ready=None):
    """Run in a process of its own."""
    partial.BLOCK, partial.PART_SIZES = BLOCK, range(BLOCK, 2**24)
    downloading.SMALL, downloading.POLL = 0, 0.02  # a lock for every file
    if not locks_work:
        fcntl.flock = fcntl.lockf = lambda *args: None
    if ready:
        ready.wait()
    options = {"n_connections": 4, "timeout": 30.0, "verbose": 0}
    assert download_files(downloads, partial_dir=partial_dir, **options) == []


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
def start(downloads, tmp_path):
    """Return a function that starts a process which fetches all files."""

    def start(locks_work, ready=None):
        arguments = downloads, tmp_path / "partial", locks_work, ready
        process = CONTEXT.Process(target=fetch_all, args=arguments, daemon=True)
        process.start()
        return process

    return start


def digest(data):
    return hashlib.sha256(data).digest()


@pytest.fixture
def watched(server, tmp_path):
    """Check each file when it appears, and at the end that all are there, alone."""
    expected = {key: digest(data) for key, (data, _) in server.objects.items()}
    folder, seen, is_over = tmp_path / "files", {}, threading.Event()
    folder.mkdir()

    def watch():
        while not is_over.wait(0.001):
            for name in set(os.listdir(folder)) - seen.keys():
                seen[name] = digest((folder / name).read_bytes())

    watching = threading.Thread(target=watch)
    watching.start()
    yield
    is_over.set()
    watching.join()
    assert {p.name: digest(p.read_bytes()) for p in folder.iterdir()} == expected
    assert seen.items() <= expected.items()
    assert os.listdir(tmp_path / "partial") == []


@with_and_without_locks
@pytest.mark.usefixtures("watched")
def test_processes_that_fetch_the_same_files(server, start, locks_work):
    ready = CONTEXT.Barrier(N_PROCESSES)
    processes = [start(locks_work, ready) for _ in range(N_PROCESSES)]
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    assert (server.sent <= 1.2 * sum(SIZES)) == locks_work


@with_and_without_locks
@pytest.mark.usefixtures("watched")
def test_processes_that_are_killed(server, downloads, start, locks_work):
    def hold(reply):
        have_been_killed.wait(60)
        slow(1e6)(reply)

    chance, have_been_killed, n_killed = random.Random(0), threading.Event(), 0
    server.faults = {key: [always(slow(1e6))] for key in server.objects}
    server.faults[downloads[-1].id] = [always(hold)]
    processes = [start(locks_work) for _ in range(N_PROCESSES)]
    while not all(download.path.exists() for download in downloads):
        due = server.sent + chance.randrange(2_000_000)
        for _ in range(200):
            if server.sent >= due or not any(map(CONTEXT.Process.is_alive, processes)):
                break
            time.sleep(0.01)
        victim = chance.randrange(N_PROCESSES)
        processes[victim].kill()
        processes[victim].join()
        processes[victim] = start(locks_work)
        n_killed += 1
        if n_killed > 10:
            have_been_killed.set()
    for process in [*processes, start(locks_work)]:
        process.join(240)
        assert process.exitcode == 0


@pytest.mark.usefixtures("watched")
def test_forked_processes_download_after_their_parent_has(downloads, tmp_path):
    """Nothing of a call, such as threads and connections, is kept for the next one."""
    options = {"partial_dir": tmp_path / "partial", "timeout": 30.0, "verbose": 0}
    assert download_files(downloads[::2], **options) == []
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                os._exit(len(download_files(downloads[1::2], **options)))
            os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
