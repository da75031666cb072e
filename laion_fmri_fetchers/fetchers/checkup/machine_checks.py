"""The machine in use: versions, settings, and the data directory."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from laion_fmri_fetchers.access.gate import ID_VARIABLE
from laion_fmri_fetchers.cache.data_dir import get_data_dir, read_config
from laion_fmri_fetchers.cache.state import (
    auth_file,
    official_auth_file,
    partial_dir,
    state_path,
)
from laion_fmri_fetchers.exceptions import did_you_mean
from laion_fmri_fetchers.layout.trees import STATE_FOLDER
from laion_fmri_fetchers.messages import counted, listed, readable_size
from laion_fmri_fetchers.query.arguments import user_path

from .context import Context
from .points import PROXY_VARIABLES, Point, judged, note, ok
from .points import shown_url as shown
from .reach import CA_VARIABLES

PACKAGES = (
    *("laion_fmri_fetchers", "numpy", "nibabel", "h5py", "requests", "urllib3"),
    *("nilearn", "pandas", "filelock"),
)
VARIABLES = (
    *("LAION_FMRI_DATA_DIR", "LAION_FMRI_BUCKET_URL", "LAION_FMRI_ACCESS_URL"),
    *(ID_VARIABLE, "LAION_FMRI_LICENSE", "LAION_FMRI_OFFLINE"),
    *("LAION_FMRI_SPLITS", "LAION_FMRI_SPLITS_URL"),
)
SESSION_BYTES = 1_150_000_000
"""Of the betas of a session as published."""
SUBJECT_BYTES = 41_400_000_000
"""Of all betas of a subject, at most."""

_PROBE = 2**16


def versions(_: Context) -> Iterator[Point]:
    """Name the versions of Python, of this package, and of its dependencies."""
    yield ok("python", f"{platform.python_version()}, {platform.platform()}")
    numbers = {name: _version(name) for name in PACKAGES}
    lacking = [name for name, number in numbers.items() if number is None]
    texts = [f"{name} {number}" for name, number in numbers.items() if number]
    more = f"; not installed: {listed(lacking)}" * bool(lacking)
    yield judged(not lacking, "packages", ", ".join(texts) + more)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def settings(_: Context) -> Iterator[Point]:
    """Name the variables of the environment that change what calls do."""
    in_force = {name: value for name, value in os.environ.items() if value}
    of_package = sorted(n for n in in_force if n.startswith("LAION_FMRI_"))
    for name in of_package:
        if name not in VARIABLES:
            yield note(name, "set, but has no effect", did_you_mean(name, VARIABLES))
        else:
            yield ok(name, "set" if name == ID_VARIABLE else _shown(in_force[name]))
    if not of_package:
        yield ok("LAION_FMRI_…", "no variable is set")
    for name in sorted(n for n in in_force if n.upper() in PROXY_VARIABLES):
        value = in_force[name]
        yield ok(name, value if name.upper() == "NO_PROXY" else shown(value))
    for name in CA_VARIABLES:
        if name in in_force:
            point = judged(
                os.path.exists(in_force[name]), "certificates", in_force[name]
            )
            yield point._replace(point=name)


def _shown(value: str) -> str:
    return shown(value) if "://" in value else value


def saved_configuration(_: Context) -> Iterator[Point]:
    """Look at the data directory that dataset_initialize saved."""
    saved = read_config().get("data_dir")
    if not saved:
        yield ok("saved data directory", "none")
        return
    path = user_path(saved, "data_dir")
    is_right = os.path.isabs(path) and os.path.isdir(path)
    yield judged(is_right, "saved data directory", saved)


def data_directory(context: Context) -> Iterator[Point]:
    """Write, rename, lock and remove a file in the data directory."""
    data_dir = Path(get_data_dir(context.data_dir))
    if data_dir.is_dir():
        yield ok("data directory", str(data_dir))
    else:
        yield note("data directory", f"{data_dir} does not exist yet; it will be made")
    folder = _nearest_folder(data_dir)
    probe = folder / f".laion-fmri-doctor.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield from _probe(probe)
    except OSError as error:
        why = error.strerror or type(error).__name__
        yield judged(False, "data directory", f"{folder} cannot be written: {why}")
    finally:
        for file in folder.glob(f"{probe.name}*"):
            with contextlib.suppress(OSError):
                file.unlink()


def _nearest_folder(path: Path) -> Path:
    """Return a folder, or the first one above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _probe(probe: Path) -> Iterator[Point]:
    moved = probe.with_name(f"{probe.name}.moved")
    with open(probe, "xb") as stream:
        stream.write(os.urandom(_PROBE))
        stream.flush()
        os.fsync(stream.fileno())
    # A file system of a network may report a full disk only now.
    written = probe.stat().st_size
    moved.write_bytes(b"")
    os.replace(probe, moved)
    yield judged(
        written == moved.stat().st_size == _PROBE,
        "write and rename",
        f"{written} bytes written, {moved.stat().st_size} after a rename over a file",
        f"{_PROBE}",
    )
    same = moved.with_name(moved.name.upper()).exists()
    yield ok("case of names", "not told apart" if same else "told apart")
    yield _locks(probe.with_name(f"{probe.name}.lock"))


def _locks(file: Path) -> Point:
    """Return whether another process is kept off by a lock of this one."""
    from filelock import FileLock

    try:
        with FileLock(file, timeout=0):
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", _TRY_LOCK, str(file)],
                capture_output=True,
                timeout=20,
                check=False,
            )
    except (OSError, NotImplementedError, subprocess.SubprocessError) as error:
        return judged(False, "file locks", f"not supported: {type(error).__name__}")
    words = {0: "another process took the same lock", 3: "keep other processes off"}
    found = words.get(done.returncode, "could not be tried")
    return judged(done.returncode == 3, "file locks", found)


_TRY_LOCK = """
import sys
from filelock import FileLock, Timeout
try:
    FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout:
    sys.exit(3)
"""


def free_space(context: Context) -> Iterator[Point]:
    """Compare free space with the betas of a session and of a subject."""
    folder = _nearest_folder(Path(get_data_dir(context.data_dir)))
    free = shutil.disk_usage(folder).free
    yield judged(
        free >= SUBJECT_BYTES,
        "free space",
        readable_size(free),
        f"{readable_size(SESSION_BYTES)} for betas of a session, "
        f"{readable_size(SUBJECT_BYTES)} of a subject",
    )


def state_folder(context: Context) -> Iterator[Point]:
    """Look at permissions in the state folder, and at unfinished downloads."""
    data_dir = get_data_dir(context.data_dir)
    folder = state_path(data_dir)
    mode = _mode(folder)
    if mode is not None:
        is_usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        yield judged(is_usable, STATE_FOLDER, f"mode {mode:04o}")
    for file in filter(None, (auth_file(data_dir), official_auth_file())):
        mode = _mode(file)
        if os.name == "posix" and mode is not None:
            yield judged(
                not mode & 0o077,
                "auth.json",
                f"{file} has mode {mode:04o}",
                advice=f"chmod 600 {file}",
            )
    partial = partial_dir(data_dir)
    if os.access(partial, os.R_OK | os.X_OK):
        parts = list(partial.glob("*.part"))
        size = sum(os.path.getsize(part) for part in parts if os.path.exists(part))
        found = f"{counted(len(parts), 'file')}, {readable_size(size)}"
        yield judged(not parts, "unfinished downloads", found)


def _mode(path: Path) -> int | None:
    """Return the permissions of a file; None if it cannot be seen."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
