"""Downloads from a server that fails in every way that networks, disks and users do."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import fault_server as faults
import pytest
from conftest import unwritable
from fault_server import FaultServer, always, etag_of, fine
from filelock import FileLock
from policies import set_policy

from laion_fmri_fetchers.exceptions import (
    AccessRevokedError,
    DataDirectoryError,
    DiskSpaceError,
)
from laion_fmri_fetchers.remote import download as downloading
from laion_fmri_fetchers.remote import partial
from laion_fmri_fetchers.remote.checksums import check_file, part_sizes
from laion_fmri_fetchers.remote.download import Download, download_files

BLOCK = 2**16
MIB = 2**20
SECRET = "X-Amz-Signature=s3cr3t"


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Let small files have several blocks, and waits be short."""
    monkeypatch.setattr(partial, "BLOCK", BLOCK)
    monkeypatch.setattr(partial, "PART_SIZES", range(BLOCK, 4 * MIB))
    monkeypatch.setattr(downloading, "SMALL", BLOCK // 2)
    monkeypatch.setattr(downloading, "POLL", 0.01)
    set_policy(monkeypatch, first_wait=0.01)


@pytest.fixture
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    """A data directory."""
    return tmp_path / "data"


def content(size, seed=0):
    return random.Random(seed).randbytes(size)


def a_download(server, folder, key="file", size=5 * BLOCK, part=None, **changes):
    """Store an object; return how to fetch it."""
    etag = server.put(key, content(size, key), part)
    if changes.get("etag"):  # of another kind
        server.objects[key] = content(size, key), changes["etag"]
    path, url = folder / "files" / key, f"{server.url}/{key.replace(' ', '%20')}"
    return Download(key, url, path, size, etag)._replace(**changes)


def fetch(downloads, folder, **options):
    downloads = [downloads] if isinstance(downloads, Download) else downloads
    settings = {"verbose": 0, "timeout": 10.0, "n_connections": 4, **options}
    return download_files(downloads, partial_dir=folder / "partial", **settings)


def assert_whole(server, *downloads):
    for download in downloads:
        assert Path(download.path).read_bytes() == server.objects[download.id][0]


def left(folder):
    return sorted(path.name for path in (folder / "partial").iterdir())


# --- What should come, comes -----------------------------------------------------


@pytest.mark.parametrize("known", ["md5", "parts", "sha256", "size", "nothing", "odd"])
def test_all_sizes_arrive_whole(server, folder, known):
    """Whatever is known of them: a checksum, the size alone, or an odd ETag."""
    downloads = []
    for size in (0, 1, BLOCK // 4, BLOCK, 3 * BLOCK + 7, 2 * MIB + 5):
        part = MIB if known == "parts" and size else None
        download = a_download(server, folder, f"a b/file {size}", size, part)
        data, _ = server.objects[download.id]
        if known == "odd":
            server.objects[download.id] = data, "not-an-md5"
        changes = {
            "sha256": {"etag": None, "sha256": hashlib.sha256(data).hexdigest()},
            "size": {"etag": None},
            "nothing": {"etag": None, "size": None},
            "odd": {"etag": "not-an-md5"},
        }
        downloads.append(download._replace(**changes.get(known, {})))
    assert fetch(downloads, folder) == []
    assert_whole(server, *downloads)
    assert left(folder) == []
    os.umask(umask := os.umask(0))
    assert {d.path.stat().st_mode & 0o777 for d in downloads} == {0o666 & ~umask}
    names_version = known in ("md5", "parts", "odd")
    for key, asked in server.requests:
        assert asked["accept-encoding"] == "identity"
        if names_version:
            assert asked["if-match"] == f'"{server.objects[key][1]}"'
    sizes = [len(data) for data, _ in server.objects.values()]
    assert known == "nothing" or server.sent == sum(sizes)


def test_what_is_there_is_not_fetched_again(server, folder):
    assert fetch([], folder) == []
    assert not folder.exists()
    download = a_download(server, folder)
    download.path.parent.mkdir(parents=True)
    download.path.write_bytes(b"x" * download.size)
    assert fetch(download, folder) == []
    assert server.requests == []
    assert fetch(download, folder, overwrite=True) == []
    assert_whole(server, download)
    download.path.write_bytes(b"of another size")
    assert fetch([download, download], folder) == []
    assert server.sent == 2 * download.size, "twice in a call, it is fetched once"
    assert_whole(server, download)


def test_a_downloaded_file_has_the_date_of_its_object(server, folder):
    listed = a_download(server, folder, last_modified=1.7e9)
    unlisted = a_download(server, folder, "other")
    date = faults.headers(Last_Modified="Mon, 28 Sep 2026 10:00:00 GMT")
    server.faults["other"] = [always(date)]
    assert fetch([listed, unlisted], folder) == []
    assert listed.path.stat().st_mtime == 1.7e9
    assert unlisted.path.stat().st_mtime == 1790589600.0


def test_a_folder_on_another_file_system(server, folder, monkeypatch):
    real = os.replace

    def replace(source, target):
        if Path(source).parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    download = a_download(server, folder)
    assert fetch(download, folder) == []
    assert_whole(server, download)
    assert os.listdir(download.path.parent) == ["file"]
    assert left(folder) == []


@pytest.mark.parametrize("is_finished", [False, True])
def test_an_unfinished_file_that_somebody_removes(server, folder, is_finished):
    """It starts over, unless another process has finished it meanwhile."""
    download = a_download(server, folder)

    def remove(key):
        if server.count(key) == (5 if is_finished else 3):
            for path in (folder / "partial").glob("*.part"):
                path.unlink()
            if is_finished:
                download.path.parent.mkdir(parents=True)
                download.path.write_bytes(server.objects[key][0])

    server.on_request = remove
    assert fetch(download, folder) == []
    assert not is_finished or server.sent == download.size
    assert_whole(server, download)
    assert left(folder) == []


# --- Faults ----------------------------------------------------------------------

PASSING = {
    "status 503": [faults.status(503)] * 2,
    "status 500": [faults.status(500)] * 2,
    "status 408": [faults.status(408)],
    "status 429": [faults.status(429, Retry_After="0")],
    "nonsense in Retry-After": [faults.status(429, Retry_After="soon")],
    "reset at once": [faults.reset()] * 2,
    "reset in the body": [faults.reset(5000)] * 2,
    "body cut short": [faults.short(5000), fine, faults.short(0)],
    "stall before the body": [faults.stall(0)],
    "stall in the body": [faults.stall(5000)],
    "no answer": [faults.wait(4.0)],
    "a wrong byte": [fine, faults.wrong_bytes],
    "too small a length": [faults.wrong_length(-10)],
    "too large a length": [faults.wrong_length(10)],
    "another range": [faults.wrong_range],
    "range ignored": [fine, faults.ignore_range],
    "range ignored always": [always(faults.ignore_range)],
    "no lengths": [always(faults.chunked)],
    "a connection closed in place of a length": [always(faults.no_length)],
    "a label of an encoding": [always(faults.headers(Content_Encoding="gzip"))],
}


@pytest.mark.parametrize("size", [BLOCK // 2, 5 * BLOCK + 3], ids=["small", "large"])
def test_faults_that_pass(server, folder, size):
    downloads = [a_download(server, folder, key, size) for key in ("fine", *PASSING)]
    server.faults = {key: list(PASSING[key]) for key in PASSING}
    assert fetch(downloads, folder, timeout=2.0, n_connections=8) == []
    assert_whole(server, *downloads)
    assert left(folder) == []
    for key, was in PASSING.items():
        assert server.faults[key] != was or hasattr(was[0], "lasts"), key


LASTING = {
    "status 503": (faults.status(503), 503, "status 503"),
    "status 500": (faults.status(500), 500, "status 500"),
    "denied": (faults.status(403), 403, "status 403"),
    "gone": (faults.status(404), 404, "status 404"),
    "reset": (faults.reset(100), None, "connection"),
    "body cut short": (faults.short(100), None, "ended early"),
    "wrong bytes": (faults.wrong_bytes, None, "instead of"),
    "wrong length": (faults.wrong_length(-3), None, "ended early"),
    "another range": (faults.wrong_range, 206, "another range"),
    "a range not named": (faults.no_range, 206, "does not say what range"),
    "a circle": (faults.status(307, Location="/a circle"), None, "circle"),
}


@pytest.mark.parametrize("is_secret", [False, True], ids=["public", "secret"])
def test_faults_that_last(server, folder, is_secret, caplog, capfd):
    """Each is told, others come, an older file stays, and a later call mends all.

    Of a secret address nothing is told.
    """
    caplog.set_level(logging.DEBUG)
    downloads = [a_download(server, folder, key) for key in ("fine", *LASTING)]
    if is_secret:
        downloads = [
            each._replace(url=lambda renew, url=each.url: f"{url}?{SECRET}")
            for each in downloads
        ]
    for download in downloads[::2]:
        download.path.parent.mkdir(parents=True, exist_ok=True)
        download.path.write_bytes(b"older")
    server.faults = {key: [fine, always(LASTING[key][0])] for key in LASTING}
    failed = fetch(downloads, folder, verbose=3)
    assert [(one.id, one.status) for one in failed] == [
        (key, status) for key, (_, status, _) in LASTING.items()
    ]
    for one in failed:
        assert LASTING[one.id][2] in one.reason
    assert not is_secret or "s3cr3t" not in f"{failed}{caplog.text}{capfd.readouterr()}"
    assert server.count("denied") <= 6  # blocks; none is asked for again
    assert server.count("gone") <= 5
    assert_whole(server, downloads[0])
    assert {download.path.read_bytes() for download in downloads[2::2]} == {b"older"}
    assert not any(download.path.exists() for download in downloads[1::2])
    assert all(not name.endswith(".lock") for name in left(folder))
    server.faults.clear()
    assert fetch(downloads, folder) == []
    assert_whole(server, *downloads)
    assert left(folder) == []


def test_a_stall_that_lasts(server, folder):
    download = a_download(server, folder)
    server.faults["file"] = [fine, always(faults.stall(100))]
    (failed,) = fetch(download, folder, timeout=0.2)
    assert "no byte for 0.2 s" in failed.reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bucket.invalid/file?", "the server's name cannot be resolved"),
        ("http://127.0.0.1:{closed}/file?", "cannot connect: connection refused"),
        ("ftp://127.0.0.1/file?", "its address is not valid"),
        ("http:///file?", "its address is not valid"),
        ("http://127.0.0.1:x/file?", "its address is not valid"),
        ("file?", "its address is not valid"),
    ],
)
def test_addresses_that_lead_nowhere(folder, url, reason, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = url.format(closed=port) + SECRET
    path = folder / "files" / "file"
    download = Download("file", lambda renew: address, path, 10, "0" * 32)
    (failed,) = fetch(download, folder, verbose=3)
    assert failed == ("file", failed.reason, None)
    assert failed.reason.partition(" (")[0] == reason
    assert "s3cr3t" not in f"{failed}{caplog.text}{capfd.readouterr()}"


def test_a_server_that_is_away_for_a_while(folder, monkeypatch):
    """Blocks that are finished by then are not fetched again."""
    set_policy(monkeypatch, first_wait=0.05)

    def n_noted():
        lists = (folder / "partial").glob("*.blocks")
        return sum(path.read_bytes().count(b"\n") for path in lists)

    with FaultServer() as server, contextlib.ExitStack() as later:
        download = a_download(server, folder, size=10 * BLOCK)
        server.faults["file"] = [fine] * 3 + [always(faults.stall(0))]
        restarted = []

        def restart():
            while not (len(server.requests) > 3 and n_noted() == 3):
                time.sleep(0.01)
            server.__exit__()
            time.sleep(0.5)
            restarted.append(later.enter_context(FaultServer(port=server.port)))
            restarted[0].objects.update(server.objects)

        restarting = threading.Thread(target=restart)
        restarting.start()
        assert fetch(download, folder) == []
        restarting.join()
        assert len(restarted[0].requests) == 7
        assert_whole(server, download)


def test_a_server_that_does_not_say_how_much_it_sends(server, folder):
    server.faults["file"] = [always(faults.no_length)]
    download = a_download(server, folder)._replace(size=None, etag=None)
    (failed,) = fetch(download, folder)
    assert failed.reason == "the server does not say its size"


def test_the_server_is_waited_for_as_it_asks(server, folder):
    times = []
    server.on_request = lambda key: times.append(time.monotonic())
    server.faults["file"] = [faults.status(429, Retry_After="1")]
    assert fetch(a_download(server, folder, size=10), folder) == []
    assert times[1] - times[0] >= 1.0


@pytest.mark.parametrize("kind", ["etag", "sha256"])
def test_two_mismatches_fail_with_both_values(server, folder, kind):
    download = a_download(server, folder, size=100)
    data = content(100, "file")
    wrong = data[:-1] + bytes([data[-1] ^ 1])
    expected, found = download.etag, etag_of(wrong)
    if kind == "sha256":
        expected, found = (hashlib.sha256(x).hexdigest() for x in (data, wrong))
        download = download._replace(sha256=expected)
    server.faults["file"] = [always(faults.wrong_bytes)]
    (failed,) = fetch(download, folder)
    assert expected in failed.reason
    assert found in failed.reason
    assert server.count("file") == 2
    assert left(folder) == []


@pytest.mark.parametrize("when", ["between blocks", "if-match ignored", "once"])
def test_an_object_that_changes(server, folder, when):
    """Its new version is downloaded, of which the caller is told."""
    download = a_download(server, folder)
    new = content(7 * BLOCK + 1, "new")

    def change(key):
        if len(server.requests) == 3:
            server.put("file", new)

    def ignore_match(reply):
        reply.status, reply.body = 200, new
        reply.headers = {"ETag": f'"{etag_of(new)}"', "Content-Length": str(len(new))}

    if when == "between blocks":
        server.on_request = change
    else:
        server.put("file", new)
    if when == "if-match ignored":
        server.faults["file"] = [ignore_match] * 5
    changed = {}
    with pytest.warns(UserWarning, match="file changed in the bucket after it was li"):
        assert fetch(download, folder, changed=changed) == []
    assert download.path.read_bytes() == new
    assert changed["file"][3:5] == (len(new), etag_of(new))
    assert left(folder) == []


def test_an_object_that_changes_all_the_time(server, folder):
    download = a_download(server, folder)
    server.on_request = lambda key: server.put("file", os.urandom(5 * BLOCK))
    (failed,) = fetch(download, folder)
    assert "changed" in failed.reason
    assert not download.path.exists()


def test_files_are_skipped_after_many_consecutive_failures(server, folder, monkeypatch):
    monkeypatch.setattr(downloading, "MOST_FAILED", 5)
    downloads = [a_download(server, folder, f"f{i}", 10) for i in range(60)]
    server.objects.clear()
    failed = fetch(downloads, folder, n_connections=2)
    assert [one.id for one in failed] == [d.id for d in downloads]
    assert len(server.requests) <= 6
    assert "skipped after 5 consecutive failures" in failed[-1].reason


# --- Disks and folders -----------------------------------------------------------


def test_places_that_cannot_be_written(server, folder):
    """Seen before the download; or kept for a later call."""
    locked = folder / "func"
    locked.mkdir(parents=True)
    first = a_download(server, folder, path=locked / "file")
    with unwritable(locked):
        (failed,) = fetch(first, folder)
    assert f"{locked} cannot be written: permission" in failed.reason
    with unwritable(folder / "partial"), pytest.raises(DataDirectoryError) as caught:
        fetch(first, folder)
    assert f"The folder {folder / 'partial'} cannot be written" in str(caught.value)
    assert server.requests == []

    download, other = (a_download(server, folder, key) for key in ("file", "other"))
    download.path.mkdir(parents=True)
    (failed,) = fetch([download, other], folder)
    assert f"{download.path} cannot be written: is a directory" in failed.reason
    sent = server.sent
    download.path.rmdir()
    assert fetch(download, folder) == []
    assert server.sent == sent
    assert_whole(server, download, other)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, and a function that mounts it anew with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        return subprocess.run(command, capture_output=True).returncode

    if os.name != "posix" or mount("size=1m"):
        pytest.skip("mounting a file system is not allowed here")
    yield disk, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_too_small(server, small_disk):
    """Noticed before the first byte, or when it is full; then the rest is fetched."""
    folder, remount = small_disk
    with pytest.raises(DiskSpaceError, match=r"2\.1 MB are needed") as caught:
        fetch(a_download(server, folder, size=2 * MIB), folder)
    assert caught.value.errno == 28
    assert server.requests == []
    downloads = [a_download(server, folder, f"f{i}", 10 * BLOCK) for i in range(3)]
    with pytest.raises(DiskSpaceError, match="Downloaded files are kept") as caught:
        fetch([d._replace(size=None) for d in downloads], folder)
    assert f"are free in {folder}" in str(caught.value)
    for download in downloads:
        assert not download.path.exists() or download.path.stat().st_size == 10 * BLOCK
    remount("size=8m")
    sent = server.sent
    assert fetch(downloads, folder) == []
    assert server.sent - sent < 30 * BLOCK
    assert_whole(server, *downloads)
    assert left(folder) == []


def test_a_disk_without_inodes(server, small_disk):
    folder, remount = small_disk
    remount("nr_inodes=4")
    downloads = [a_download(server, folder, f"f{i}", 10) for i in range(8)]
    with pytest.raises(DiskSpaceError, match="inode") as caught:
        fetch(downloads, folder)
    assert "are free" not in str(caught.value)


def test_a_full_disk_behind_a_linked_folder(server, small_disk, folder):
    disk, remount = small_disk
    folder.mkdir()
    (folder / "files").symlink_to(disk)
    download = a_download(server, folder, size=2 * MIB)
    for _ in range(2):
        with pytest.raises(DiskSpaceError) as caught:
            fetch(download, folder)
        assert f"are free in {folder / 'files'})" in str(caught.value)
        assert os.listdir(disk) == []
    remount("size=8m")
    sent = server.sent
    assert fetch(download, folder) == []
    assert server.sent == sent
    assert_whole(server, download)


# --- Going on where it was left --------------------------------------------------


def leave_unfinished(server, folder, n_blocks=10, **changes):
    """Fetch all blocks of a file but the last; return how to fetch it."""
    download = a_download(server, folder, size=n_blocks * BLOCK, **changes)

    def deny_last(reply):
        if reply.body == reply.data[-len(reply.body) :]:
            faults.status(404)(reply)

    server.faults["file"] = [always(deny_last)]
    (failed,) = fetch(download, folder, n_connections=1)
    assert failed.status == 404
    assert len(left(folder)) == 2
    server.faults.clear()
    server.sent = 0
    return download


@pytest.mark.parametrize("how", ["there", "moved", "linked", "no etag", "almost full"])
def test_only_missing_blocks_are_fetched(server, folder, how, monkeypatch):
    changes = {}
    if how == "linked":
        (folder.with_name("elsewhere") / "deep").mkdir(parents=True)
        folder.mkdir()
        (folder / "partial").symlink_to(folder.with_name("elsewhere") / "deep")
    elif how == "no etag":
        digest = hashlib.sha256(content(10 * BLOCK, "file")).hexdigest()
        changes = {"etag": None, "sha256": digest}
    download = leave_unfinished(server, folder, **changes)
    if how == "moved":
        folder = folder.rename(folder.with_name("moved"))
        download = download._replace(path=folder / "files" / "file")
    elif how == "almost full":
        usage = shutil.disk_usage(folder)._replace(free=2 * BLOCK)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert fetch(download, folder) == []
    assert BLOCK <= server.sent < BLOCK + 100  # and the body of an error, late
    assert_whole(server, download)
    assert left(folder) == []


@pytest.mark.parametrize("is_listed", [True, False])
def test_an_object_that_changed_meanwhile_starts_over(server, folder, is_listed):
    download = leave_unfinished(server, folder)
    new = content(9 * BLOCK, "new")
    etag = server.put("file", new)
    if is_listed:
        download = download._replace(etag=etag, size=len(new))
        assert fetch(download, folder) == []
        assert server.sent == len(new)
    else:
        with pytest.warns(UserWarning, match="changed"):
            assert fetch(download, folder) == []
        assert left(folder) == []
    assert download.path.read_bytes() == new


DAMAGE = {
    "bytes lost": lambda part, blocks: part.write_bytes(bytes(part.stat().st_size)),
    "end lost": lambda part, blocks: os.truncate(part, 3 * BLOCK + 5),
    "all lost": lambda part, blocks: os.truncate(part, 0),
    "list cut": lambda part, blocks: os.truncate(blocks, blocks.stat().st_size - 3),
    "list joined": lambda part, blocks: blocks.write_bytes(
        blocks.read_bytes().replace(b"\n", b" ", 1).replace(b" 0 ", b" -5 ")
    ),
    "list of zeros": lambda part, blocks: blocks.write_bytes(bytes(200)),
    "list of another": lambda part, blocks: blocks.write_bytes(b"1 2 3\nx\n"),
    "part removed": lambda part, blocks: part.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_leftovers_are_not_trusted(server, folder, damage):
    download = leave_unfinished(server, folder)
    (part,) = (folder / "partial").glob("*.part")
    DAMAGE[damage](part, part.with_suffix(".blocks"))
    assert fetch(download, folder) == []
    assert_whole(server, download)
    assert left(folder) == []


def test_finished_blocks_are_those_of_their_own_file(server, folder):
    """Where no checksum tells, as of an ETag that is none."""
    download = leave_unfinished(server, folder, etag="opaque")
    (part,) = (folder / "partial").glob("*.part")
    part.rename(folder / "aside")
    assert fetch(download, folder) == []
    assert_whole(server, download)


def test_unfinished_files_are_removed_after_days(server, folder):
    leave_unfinished(server, folder)
    (folder / "partial" / "notes.txt").write_text("of a user")
    for days, n_left in ((2, 3), (4, 1)):
        for path in (folder / "partial").iterdir():
            os.utime(path, (time.time() - days * 24 * 3600,) * 2)
        assert fetch(a_download(server, folder, f"after {days}"), folder) == []
        assert len(left(folder)) == n_left
    assert left(folder) == ["notes.txt"]


def test_a_killed_process_leaves_what_the_next_one_uses(server, folder):
    """At most a block per connection is lost."""
    download = a_download(server, folder, size=20 * BLOCK)
    server.faults["file"] = [fine] * 10 + [always(faults.stall(0))]
    script = f"""
from pathlib import Path
from laion_fmri_fetchers.remote import download, partial
partial.BLOCK = {BLOCK}
download.download_files(
    [download.Download("file", {download.url!r}, Path({str(download.path)!r}),
                       {download.size}, {download.etag!r})],
    partial_dir={str(folder / "partial")!r}, n_connections=2, verbose=0)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    while len(server.requests) < 12:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not download.path.exists()
    server.faults.clear()
    server.sent = 0
    assert fetch(download, folder) == []
    assert server.sent <= 12 * BLOCK
    assert_whole(server, download)
    assert left(folder) == []


@pytest.mark.parametrize("fault", [faults.stall(100), faults.wait(60.0), fine])
def test_an_interrupt_stops_at_once_and_leaves_what_is_done(server, folder, fault):
    downloads = [a_download(server, folder, f"f{i}", 40 * BLOCK) for i in range(3)]
    server.faults = {f"f{i}": [fine] * 5 + [always(fault)] for i in range(2)}
    server.faults["f2"] = [always(faults.slow(BLOCK))]
    sent_at = []

    def interrupt():
        while server.sent < 2 * BLOCK:
            time.sleep(0.01)
        time.sleep(0.3)
        sent_at.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        fetch(downloads, folder, timeout=60.0)
    assert time.monotonic() - sent_at[0] < 20.0, "far less than the timeout"
    interrupting.join()
    assert fault is fine or not any(download.path.exists() for download in downloads)
    assert all(not name.endswith(".lock") for name in left(folder))
    server.faults.clear()
    server.sent = 0
    assert fetch(downloads, folder) == []
    assert server.sent <= sum(d.size for d in downloads) - 5 * BLOCK // 4
    assert_whole(server, *downloads)
    assert left(folder) == []


def test_no_connection_and_no_thread_is_left(server, folder):
    def n_sockets():
        gc.collect()
        links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
        return sum("socket" in os.readlink(at) for at in links if os.path.islink(at))

    def n_threads():
        names = [thread.name for thread in threading.enumerate()]
        return sum(name.startswith("laion-fmri") for name in names)

    before = n_sockets()
    assert fetch([a_download(server, folder, f"f{i}") for i in range(4)], folder) == []
    for _ in range(200):  # threads end soon, and the server's ends after them
        if n_sockets() <= before and not n_threads():
            break
        time.sleep(0.1)
    assert n_sockets() <= before
    assert n_threads() == 0


# --- Locks -----------------------------------------------------------------------


@pytest.fixture
def locked(server, folder):
    """A download whose lock another process holds."""
    download = a_download(server, folder)
    (folder / "partial").mkdir(parents=True)
    name = partial.lock_name(str(folder / "partial"), download.path)
    with FileLock(folder / "partial" / f"{name}.lock", thread_local=False) as lock:
        yield download, lock


def test_who_holds_the_lock_is_waited_for(server, folder, locked):
    (download, lock), other = locked, a_download(server, folder, "other")

    def finish():
        while not other.path.exists():
            time.sleep(0.01)
        download.path.write_bytes(server.objects["file"][0])
        Path(lock.lock_file).unlink()
        lock.release()

    finishing = threading.Thread(target=finish)
    finishing.start()
    assert fetch([download, other], folder) == []
    finishing.join()
    assert server.count("file") == 0
    assert left(folder) == []


def test_a_holder_that_writes_is_waited_for_longer(server, folder, locked, monkeypatch):
    monkeypatch.setattr(downloading, "PATIENCE", 1.5)
    (download, lock), place = locked, folder / "partial"
    part = place / f"{partial.part_name(str(place), download)}.part"

    def write():
        for _ in range(50):
            part.write_bytes(b"a part of it")
            time.sleep(0.05)
        download.path.parent.mkdir(exist_ok=True)
        download.path.write_bytes(server.objects["file"][0])
        Path(lock.lock_file).unlink()
        lock.release()

    writing = threading.Thread(target=write)
    writing.start()
    assert fetch(download, folder, timeout=0.05) == []
    writing.join()
    assert server.count("file") == 0
    assert_whole(server, download)


@pytest.mark.parametrize("is_failing", [False, True])
def test_a_lock_of_no_use_is_not_waited_for(
    server, folder, locked, is_failing, monkeypatch
):
    """Its holder does nothing; or the file system has no locks."""

    def acquire(self, timeout=0):
        raise OSError(37, "No locks available")

    if is_failing:
        monkeypatch.setattr(FileLock, "acquire", acquire)
    else:
        monkeypatch.setattr(downloading, "PATIENCE", 0.1)
    assert fetch(locked[0], folder, timeout=10.0 if is_failing else 0.05) == []
    assert_whole(server, locked[0])


# --- Secret addresses ------------------------------------------------------------


@pytest.mark.parametrize("is_dead", [False, True])
def test_an_expired_address_is_renewed_once_an_expiry(server, folder, is_dead):
    """Where the new one is denied, too, that is an error."""
    valid, given, n_renewed = 0, 0, 0

    def address(renew):
        nonlocal given, n_renewed
        if renew:
            n_renewed += 1
            given = -n_renewed if is_dead else valid
        return f"{server.url}/file?X-Amz-Signature={given}"

    def expire(key):
        nonlocal valid
        valid += len(server.requests) in (4, 9)

    def check(reply):
        if is_dead or reply.query != f"X-Amz-Signature={valid}":
            faults.status(403)(reply)

    server.on_request, server.faults["file"] = expire, [always(check)]
    download = a_download(server, folder, size=12 * BLOCK, url=address)
    failed = fetch(download, folder, n_connections=1)
    assert [(one.id, one.status) for one in failed] == [("file", 403)] * is_dead
    assert n_renewed == (1 if is_dead else 2)
    assert is_dead or download.path.read_bytes() == server.objects["file"][0]


def test_errors_of_the_function_of_an_address_are_raised(server, folder):
    def url(renew):
        raise AccessRevokedError("withdrawn")

    download = a_download(server, folder, url=url)
    with pytest.raises(AccessRevokedError, match="withdrawn") as caught:
        fetch(download, folder)
    assert caught.value.__context__ is None
    assert fetch(a_download(server, folder), folder) == []


# --- What is shown ---------------------------------------------------------------


def test_verbosity(server, folder, capfd):
    warnings.simplefilter("error")
    for verbose in range(4):
        downloads = [a_download(server, folder, key) for key in ("one", "two")]
        server.faults["one"] = [faults.status(503)]
        fetch(downloads, folder, verbose=verbose, overwrite=True)
        shown = capfd.readouterr()
        assert shown.out == ""
        assert ("2 of 2 files, 655 kB in" in shown.err) == (verbose >= 1)
        assert ("one: 328 kB" in shown.err) == (verbose >= 2)
        assert ("one: status 503" in shown.err) == (verbose >= 3)
        assert verbose or not shown.err


def test_lines_where_there_is_no_terminal(server, folder, capfd, monkeypatch):
    set_policy(monkeypatch, line_every=0.0)
    server.faults["file"] = [fine, always(faults.slow(2 * BLOCK))]
    fetch(a_download(server, folder), folder, verbose=1)
    lines = capfd.readouterr().err.splitlines()
    assert any("0 of 1 files" in line and "s left" in line for line in lines[:-1])


def test_one_bar_on_a_terminal(server, folder, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    downloads = [a_download(server, folder, key) for key in ("one", "two")]
    fetch(downloads, folder, verbose=2)
    for words in ("100%", "2 of 2 files", "one: 328 kB"):
        assert words in terminal.getvalue()


# --- Checking files --------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 20 * MIB + 1])
def test_check_file(tmp_path, size):
    data, path, altered = content(size), tmp_path / "file", tmp_path / "altered"
    path.write_bytes(data)
    altered.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
    etags, seen = [etag_of(data)], []
    if size:
        etags += [etag_of(data, part * MIB) for part in (1, 5, 7, 8, 64)]
    for etag in etags:
        assert check_file(path, size=size, etag=etag, progress=seen.append) is None
        assert etag in check_file(altered, etag=etag)
    assert sum(seen) >= size
    wrong = f"it has {size} bytes instead of {size + 1}"
    assert check_file(path, size=size + 1) == wrong
    digest = hashlib.sha256(data).hexdigest()
    assert check_file(path, sha256=digest.upper(), etag="0" * 32) is None
    assert digest in check_file(altered, sha256=digest)
    assert check_file(path, etag="opaque") is None
    assert check_file(path, etag=f"{'0' * 32}-9999") is None


def test_part_sizes_that_fit():
    for size in (1, MIB, 9 * MIB, 100 * MIB + 1, 1_100_000_000):
        for part in (2**k * MIB for k in range(13)):
            n = -(-size // part)
            assert n == 1 or part in part_sizes(size, n)
            assert all(-(-size // p) == n for p in part_sizes(size, n))
