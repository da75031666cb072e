"""The demo bucket over HTTP, and an environment of its own for each test."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import shutil
import signal

import pytest

from laion_fmri_fetchers.demo import build_bucket, serve_bucket

SUBJECTS = ("sub-01", "sub-03")

# What a script runs in the background ignores Ctrl-C, and so would all its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What the many processes of some tests need is imported once.
multiprocessing.set_forkserver_preload(
    [
        "laion_fmri_fetchers.demo",
        "laion_fmri_fetchers.fetchers.betas",
        "laion_fmri_fetchers.fetchers.fmri",
        "pytest",
    ]
)


@pytest.fixture(scope="session")
def bucket_folder(tmp_path_factory):
    """The files of the demo bucket, as one of real data; tests must not change them."""
    folder = build_bucket(tmp_path_factory.mktemp("bucket"), subjects=SUBJECTS)
    (folder / "DEMO").unlink()
    return folder


@pytest.fixture(scope="session")
def shared_server(bucket_folder):
    with serve_bucket(bucket_folder) as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path_factory):
    """Keep tests apart from the user's settings and from the real dataset."""
    for name in [n for n in os.environ if n.startswith(("LAION_FMRI", "NILEARN_"))]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", "http://127.0.0.1:9/no-bucket")
    monkeypatch.setenv("LAION_FMRI_ACCESS_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LAION_FMRI_SPLITS_URL", "http://127.0.0.1:9/splits")
    return home


@pytest.fixture
def server(shared_server, monkeypatch):
    """The demo bucket, as it was built; what was asked of it so far is forgotten."""
    monkeypatch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
    shared_server.reset()
    yield shared_server
    shared_server.reset()


@pytest.fixture
def own_server(bucket_folder, monkeypatch):
    """The demo bucket on a server of its own, which a test may change or stop."""
    with serve_bucket(bucket_folder) as running:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", running.url)
        yield running


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty data directory for which the CC0 terms are accepted."""
    folder = tmp_path / "laion_fmri"
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(folder))
    monkeypatch.setenv("LAION_FMRI_LICENSE", "I AGREE")
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Let every attempt to open a socket fail the test."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def cached_folder(shared_server, tmp_path_factory):
    """A data directory with all of the demo bucket's betas and masks."""
    from laion_fmri_fetchers import fetch_laion_fmri

    folder = tmp_path_factory.mktemp("cached") / "laion_fmri"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
        patch.setenv("LAION_FMRI_LICENSE", "I AGREE")
        fetch_laion_fmri("all", data_dir=folder, verbose=0)
    return folder


@pytest.fixture
def cached(cached_folder, data_dir):
    """A copy of `cached_folder` as the data directory in force."""
    shutil.copytree(cached_folder, data_dir)
    return data_dir


@pytest.fixture
def on_disk(cached_folder, monkeypatch, no_network):
    """`cached_folder` itself in force, for tests that only read, and no network."""
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(cached_folder))
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")


@contextlib.contextmanager
def _held_by_permissions():
    """Let permissions hold for root too, who may go on reading what is root's own."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    this_thread = (ctypes.c_uint32 * 2)(0x20080522, 0)
    capabilities = (ctypes.c_uint32 * 6)()

    def call(function, *args):
        if function(*args):
            raise OSError(ctypes.get_errno(), function.__name__)

    call(libc.capget, this_thread, capabilities)
    effective = capabilities[0]
    call(libc.prctl, 28, 1 << 2)  # os.access goes by what is effective
    capabilities[0] = effective & ~0b110  # to write and to read everything
    call(libc.capset, this_thread, capabilities)
    try:
        yield
    finally:
        capabilities[0] = effective
        call(libc.capset, this_thread, capabilities)
        call(libc.prctl, 28, 0)


@contextlib.contextmanager
def unwritable(*paths, bits=0o222):
    """Take permissions away from files or folders, also for root."""
    modes = {path: path.stat().st_mode for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~bits)
    try:
        with _held_by_permissions():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


unreadable = functools.partial(unwritable, bits=0o777)


@pytest.fixture(scope="session")
def betas_folder(tmp_path_factory):
    """A small bucket of one subject; tests must not change its files."""
    folder = build_bucket(
        tmp_path_factory.mktemp("betas_bucket"),
        subjects=["sub-01"],
        n_sessions=3,
        held_out=["ses-31"],
        n_trials=40,
    )
    (folder / "DEMO").unlink()
    for name in ("localizers", "freesurfer", "preprocessed-tedana"):
        shutil.rmtree(folder / "derivatives" / name, ignore_errors=True)
    for name in ("stimuli", "sub-01"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


@pytest.fixture
def betas_server(betas_folder, monkeypatch):
    """A server of that bucket, which a test may change."""
    with serve_bucket(betas_folder) as running:
        monkeypatch.setenv("LAION_FMRI_BUCKET_URL", running.url)
        yield running
