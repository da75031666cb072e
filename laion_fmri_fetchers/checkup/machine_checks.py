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

from laion_fmri_fetchers.exceptions import did_you_mean
from laion_fmri_fetchers.layout.trees import STATE_FOLDER
from laion_fmri_fetchers.messages import counted, listed, readable_size
from laion_fmri_fetchers.storage.data_dir import _read_config, get_data_dir
from laion_fmri_fetchers.storage.state import (
    auth_file,
    official_auth_file,
    partial_dir,
    state_path,
)
from laion_fmri_fetchers.transfer.leftovers import leftovers

from .context import Context
from .points import ID_VARIABLE, NOTE, PROXY_VARIABLES, Point, failed, judged, note, ok
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
_ADVICE_ON_DISK = (
    "Free or ask for space (a quota counts too), or name another folder by data_dir, "
    "LAION_FMRI_DATA_DIR or `laion-fmri-fetchers config`."
)


def versions(_: Context) -> Iterator[Point]:
    """Name the versions of Python, of this package, and of what it stands on."""
    yield ok("python", f"{platform.python_version()}, {platform.platform()}")
    found = {name: _version(name) for name in PACKAGES}
    lacking = [name for name, number in found.items() if number is None]
    texts = [f"{name} {number}" for name, number in found.items() if number]
    yield judged(
        not lacking,
        "packages",
        ", ".join(texts) + f"; not installed: {listed(lacking)}" * bool(lacking),
        "all of them",
        "Install this package with pip.",
        NOTE,
    )


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
            hint = did_you_mean(name, VARIABLES)
            yield note(name, "set, but has no effect", "", hint)
        else:
            value = "set" if name == ID_VARIABLE else _shown(in_force[name])
            yield ok(name, value)
    if not of_package:
        yield ok("LAION_FMRI_…", "no variable is set")
    for name in sorted(n for n in in_force if n.upper() in PROXY_VARIABLES):
        value = in_force[name]
        yield ok(name, value if name.upper() == "NO_PROXY" else shown(value))
    for name in CA_VARIABLES:
        if name in in_force:
            yield judged(
                os.path.exists(in_force[name]),
                name,
                in_force[name],
                "a file or folder that exists",
                "Every https call may fail: mend the path, or unset the variable.",
            )


def _shown(value: str) -> str:
    return shown(value) if "://" in value else value


def saved_configuration(_: Context) -> Iterator[Point]:
    """Look at the data directory that dataset_initialize saved."""
    saved = _read_config().get("data_dir")
    if not saved:
        yield ok("saved data directory", "none")
        return
    yield judged(
        os.path.isabs(os.path.expanduser(saved)) and os.path.isdir(saved),
        "saved data directory",
        saved,
        "an absolute path of a folder that exists",
        "Save it again by `laion-fmri-fetchers config FOLDER`.",
        NOTE,
    )


def data_directory(context: Context) -> Iterator[Point]:
    """Write, rename, lock and remove a file in the data directory."""
    data_dir = Path(get_data_dir(context.data_dir))
    if data_dir.is_dir():
        yield ok("data directory", str(data_dir))
    else:
        yield note("data directory", f"{data_dir} does not exist yet; it will be made")
    folder = data_dir
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f".laion-fmri-doctor.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield from _probe(probe)
    except OSError as error:
        yield failed(
            "data directory",
            f"{folder} cannot be written: {error.strerror or type(error).__name__}",
            "files can be written, renamed and removed",
            _ADVICE_ON_DISK,
        )
    finally:
        for file in _probe_files(probe):
            with contextlib.suppress(OSError):
                file.unlink()


def _probe_files(probe: Path) -> list[Path]:
    """Return the files that a probe may leave: before and after rename, and a lock."""
    return [probe, probe.with_name(f"{probe.name}.moved"), _lock_file(probe)]


def _lock_file(probe: Path) -> Path:
    return probe.with_name(f"{probe.name}.lock")


def _probe(probe: Path) -> Iterator[Point]:
    _, moved, lock = _probe_files(probe)
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
        _ADVICE_ON_DISK,
    )
    same = moved.with_name(moved.name.upper()).exists()
    yield ok("case of names", "not told apart" if same else "told apart")
    yield _locks(lock)


def _locks(file: Path) -> Point:
    """Return whether another process is kept off by a lock of this one."""
    from filelock import FileLock

    advice = "Processes that fetch the same files at once do some work twice; no harm."
    try:
        with FileLock(file, timeout=0):
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-c", _TRY_LOCK, str(file)],
                capture_output=True,
                timeout=20,
                check=False,
            )
    except (OSError, NotImplementedError, subprocess.SubprocessError) as error:
        return note("file locks", f"not supported: {type(error).__name__}", "", advice)
    found = {0: "another process took the same lock", 3: "keep other processes off"}
    words = found.get(done.returncode, "could not be tried")
    return judged(done.returncode == 3, "file locks", words, found[3], advice, NOTE)


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
    folder = Path(get_data_dir(context.data_dir))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield judged(
        free >= SUBJECT_BYTES,
        "free space",
        readable_size(free),
        f"{readable_size(SESSION_BYTES)} for betas of a session, "
        f"{readable_size(SUBJECT_BYTES)} of a subject",
        "A quota may leave less. " + _ADVICE_ON_DISK,
        NOTE,
    )


def state_folder(context: Context) -> Iterator[Point]:
    """Look at permissions in the state folder, and at unfinished downloads."""
    data_dir = get_data_dir(context.data_dir)
    folder = state_path(data_dir)
    mode = _mode(folder)
    if mode is not None:
        yield judged(
            os.access(folder, os.R_OK | os.W_OK | os.X_OK),
            STATE_FOLDER,
            f"mode {mode:04o}",
            "readable and writable",
            "Listings and unfinished downloads cannot be kept; ask the folder's owner.",
            NOTE,
        )
    for file in (auth_file(data_dir), official_auth_file()):
        mode = _mode(file)
        if os.name == "posix" and mode is not None:
            yield judged(
                not mode & 0o077,
                "auth.json",
                f"{file} has mode {mode:04o}",
                "0600: others cannot read the request_id",
                f"chmod 600 {file}",
            )
    partial = partial_dir(data_dir)
    if os.access(partial, os.R_OK | os.X_OK):
        left = [one for group in leftovers(str(partial)).values() for one in group]
        size = sum(os.path.getsize(o.part) for o in left if os.path.exists(o.part))
        yield judged(
            not left,
            "unfinished downloads",
            f"{counted(len(left), 'file')}, {readable_size(size)}",
            "none",
            "The same call goes on from them; old ones are removed by later calls.",
            NOTE,
        )


def _mode(path: Path) -> int | None:
    """Return the permissions of a file; None where there is none to be seen."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None
