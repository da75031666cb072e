"""The data directory: where it is, what is in it, and its state folder.

Data files mirror the bucket below the data directory. Beside them, the state
folder ``.laion_fmri`` keeps::

    license_accepted      marker of the accepted CC0 terms
    auth.json             request_id of the stimulus access service, mode 0600
    listings/*.json       what the bucket held when a prefix was last listed
    fetched/*.json        which version of which file was fetched
    trials/sub-XX.npz     trial tables of a subject, parsed
    brain_masks/          brain masks derived where the bucket has none
    partial/              unfinished downloads

Every file appears whole under its name, by an atomic rename.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from .exceptions import InvalidQueryError, UnsafeKeyError
from .layout import STATE_FOLDER, clean_key

if TYPE_CHECKING:
    import numpy as np

_MANY_NOTES = 50
_TOP = "top"
_PER_LINE = 1000
_OBJECTS, _END = b', "objects": [', b"\n]}"


def get_data_dir(data_dir: str | os.PathLike | None = None) -> str:
    """Return the data directory in force.

    Parameters
    ----------
    data_dir : str or path, optional
        A directory named by the caller.

    Returns
    -------
    str
        Absolute path of the first of: ``data_dir``, the environment variable
        ``LAION_FMRI_DATA_DIR``, the directory saved by `dataset_initialize`, and
        ``laion_fmri`` in nilearn's data directory. It need not exist.

    Raises
    ------
    InvalidQueryError
        If the directory is not a path, or names a file.

    See Also
    --------
    dataset_initialize : Save the data directory for later calls.

    Examples
    --------
    >>> get_data_dir("/data/laion_fmri")
    '/data/laion_fmri'
    """
    if data_dir is not None and not isinstance(data_dir, (str, os.PathLike)):
        raise InvalidQueryError(
            f"data_dir is {data_dir!r}; it must be a path, or None for the saved one"
        )
    chosen = (
        data_dir
        or os.environ.get("LAION_FMRI_DATA_DIR")
        or _read_config().get("data_dir")
        or _nilearn_data_dir()
    )
    path = Path(os.path.abspath(Path(chosen).expanduser()))
    if path.exists() and not path.is_dir():
        raise InvalidQueryError(f"The data directory {path} is a file; name a folder.")
    return str(path)


def dataset_initialize(data_dir: str | os.PathLike) -> str:
    """Set the data directory once; later calls of any script remember it.

    It is saved in ``${XDG_CONFIG_HOME:-~/.config}/laion_fmri/config.json``, which the
    dataset's own package reads too.

    Parameters
    ----------
    data_dir : str or path
        The directory; it is created where it does not exist.

    Returns
    -------
    str
        Its absolute path.

    Raises
    ------
    InvalidQueryError
        If it names a file, or the saved configuration cannot be read.
    OSError
        If it cannot be created or the configuration cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> os.environ["XDG_CONFIG_HOME"] = folder
    >>> dataset_initialize(folder + "/laion") == folder + "/laion"
    True
    """
    if not data_dir:
        raise InvalidQueryError("data_dir is empty; name a folder.")
    path = get_data_dir(data_dir)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionError(
            error.errno, "You may not make this data directory; name another", path
        ) from None
    config = {**_read_config(), "data_dir": path}
    content = (json.dumps(config, indent=2) + "\n").encode()
    try:
        write_atomically(_config_file(), content)
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            "The data directory cannot be remembered; set LAION_FMRI_DATA_DIR instead "
            "of writing",
            str(_config_file()),
        ) from None
    return path


def _config_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "laion_fmri" / "config.json"


def _read_config() -> dict[str, Any]:
    file = _config_file()
    try:
        config = json.loads(file.read_text("utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        config = error
    if not isinstance(config, dict) or not isinstance(config.get("data_dir", ""), str):
        raise InvalidQueryError(
            f"The saved configuration {file} is broken. Delete it, then call "
            "dataset_initialize again."
        )
    return config


def _nilearn_data_dir() -> str:
    from nilearn.datasets import get_data_dirs

    candidates = [Path(d) / "laion_fmri" for d in get_data_dirs()]
    for candidate in candidates:
        if candidate.is_dir():
            return str(candidate)
    for candidate in candidates:
        if is_writable(candidate):
            return str(candidate)
    return str(candidates[0])


def is_writable(data_dir: str | os.PathLike) -> bool:
    """Tell whether files can be created below a directory that may not exist yet."""
    folder = Path(data_dir)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def local_path(data_dir: str, relative_path: str) -> str:
    """Return the absolute path of a file of the data directory."""
    path = f"{data_dir}/{relative_path}"
    return path if os.sep == "/" else path.replace("/", os.sep)


def scan(data_dir: str, wanted: Iterable[tuple[str, str]]) -> tuple[set[str], set[str]]:
    """Return what is on disk below some folders.

    Parameters
    ----------
    data_dir : str
        The data directory.
    wanted : iterable of (prefix, delimiter)
        Folders below it, ending in ``/`` (``""``: the data directory itself), as for
        a listing of the bucket: with ``"/"``, only one level is looked at.

    Returns
    -------
    files : set of str
        Relative paths. Hidden files are left out, and names that are not as this
        package or the dataset's own would write them.
    folders : set of str
        Relative paths, ending in ``/``, of the folders of levels looked at.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for prefix, delimiter in wanted:
        _scan_folder(
            local_path(data_dir, prefix), prefix, files, folders if delimiter else None
        )
    return files, folders


def _scan_folder(
    folder: str, prefix: str, files: set[str], folders: set[str] | None
) -> None:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        if entry.is_dir():
            if folders is None:
                _scan_folder(entry.path, f"{prefix}{name}/", files, None)
            else:
                folders.add(f"{prefix}{name}/")
        elif entry.is_file():
            with contextlib.suppress(UnsafeKeyError):
                if clean_key(prefix + name) == prefix + name:
                    files.add(prefix + name)


def write_atomically(file: Path, content: bytes | bytearray, mode: int = 0o666) -> None:
    """Write a small file such that it appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def state_path(data_dir: str, *parts: str) -> Path:
    """Return a path in the state folder."""
    return Path(data_dir, STATE_FOLDER, *parts)


def license_marker(data_dir: str) -> Path:
    """Return the file that marks the CC0 terms as accepted."""
    return state_path(data_dir, "license_accepted")


def auth_file(data_dir: str) -> Path:
    """Return the file that keeps the ``request_id`` of the access service."""
    return state_path(data_dir, "auth.json")


def official_auth_file() -> Path:
    """Return the file in which the dataset's own package keeps its ``request_id``."""
    return Path.home() / ".cache" / "laion-fmri" / "auth.json"


def partial_dir(data_dir: str) -> Path:
    """Return the folder of unfinished downloads."""
    return state_path(data_dir, "partial")


def brain_mask_file(data_dir: str, subject: str) -> Path:
    """Return the brain mask derived for a subject without one in the bucket."""
    name = f"{subject}_space-T1w_res-1pt8_desc-brain_mask.nii.gz"
    return state_path(data_dir, "brain_masks", name)


def save_listing(data_dir: str, listing: dict[str, Any]) -> None:
    """Keep a listing of the bucket; where that is not possible, do without.

    The file is JSON, with a line per `_PER_LINE` objects: it is read and written line
    by line, as a listing may have a million objects.
    """
    head = {name: value for name, value in listing.items() if name != "objects"}
    objects = listing["objects"]
    content = bytearray(json.dumps(head)[:-1].encode() + _OBJECTS)
    for at in range(0, len(objects), _PER_LINE):
        line = json.dumps(objects[at : at + _PER_LINE])[1:-1]
        content += (",\n" if at else "\n").encode() + line.encode()
    content += _END
    name = _listing_name(listing["prefix"]) + ".level" * bool(listing["delimiter"])
    with contextlib.suppress(OSError):
        write_atomically(state_path(data_dir, "listings", f"{name}.json"), content)


def saved_listings(
    data_dir: str, wanted: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the listings kept that tell of some prefixes.

    Parameters
    ----------
    data_dir : str
        The data directory.
    wanted : iterable of (prefix, delimiter)
        Prefixes of keys; with the delimiter ``"/"``, one level of them.

    Returns
    -------
    list of dict
        Listings as `save_listing` took them, oldest first; broken ones are left out.
        Each of their ``objects`` is a list of key, size, ETag and last change.
    """
    names = [(quote(prefix, safe=""), delimiter) for prefix, delimiter in wanted]
    listings = []
    for file in state_path(data_dir, "listings").glob("*.json"):
        name = file.name.removesuffix(".json").removesuffix(".level")
        name = "" if name == _TOP else name
        if any(w.startswith(name) or (not d and name.startswith(w)) for w, d in names):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                listing = _read_listing(file)
                if _is_listing(listing, name):
                    listings.append(listing)
    return sorted(listings, key=lambda listing: listing["listed_at"])


def _read_listing(file: Path) -> Any:
    with open(file, "rb") as lines:
        first = next(lines, b"")
        if not first.endswith(_OBJECTS + b"\n"):
            return json.loads(first + lines.read())
        listing = json.loads(first + _END)
        for line in lines:
            if line == _END[1:]:
                return listing
            listing["objects"] += json.loads(b"[" + line.rstrip(b",\n") + b"]")
    raise ValueError("the file ends early")


def _is_listing(listing: Any, name: str) -> bool:
    """Tell whether what a file holds is a listing of the prefix in its name."""
    match listing:
        case {
            "prefix": str(prefix),
            "delimiter": "" | "/",
            "listed_at": int() | float() as listed_at,
            "objects": list(objects),
            "prefixes": list(prefixes),
        }:
            return (
                quote(prefix, safe="") == name
                and isinstance(listing.get("bucket", ""), str)
                and math.isfinite(listed_at)
                and all(type(one) is str for one in prefixes)
                and all(map(_is_object, objects))
            )
    return False


def _is_object(one: Any) -> bool:
    if type(one) is not list or len(one) != 4:
        return False
    key, size, etag, last_modified = one
    return (
        type(key) is str
        and type(size) is int
        and size >= 0
        and (etag is None or type(etag) is str)
        and (last_modified is None or type(last_modified) is str)
    )


def _listing_name(prefix: str) -> str:
    return quote(prefix, safe="") or _TOP


class Note(NamedTuple):
    """Which version of a file was downloaded."""

    key: str
    size: int | None
    etag: str | None
    last_modified: str | None = None

    def differs_from(self, size: int | None, etag: str | None) -> bool:
        """Tell whether a listing has another version, as far as both are known."""
        versions = ((self.size, size), (self.etag, etag))
        return any(None not in both and both[0] != both[1] for both in versions)

    def is_older_than(self, last_modified: str | None) -> bool:
        """Tell whether a version listed is newer, and not older; where unknown, so."""
        if self.last_modified is None or last_modified is None:
            return True
        return self.last_modified <= last_modified


def note_fetched(data_dir: str, records: Iterable[dict[str, Any]]) -> None:
    """Write down which version of which files was downloaded.

    Each call writes a file of its own, so that writers never meet; when there are
    many, they are joined to one.
    """
    _add_notes(
        data_dir,
        {r["id"]: Note(*(r[name] for name in Note._fields)) for r in records},
    )


def note_removed(data_dir: str, ids: Iterable[str]) -> None:
    """Write down that files were removed on purpose, and are not missing."""
    _add_notes(data_dir, dict.fromkeys(ids))


def _add_notes(data_dir: str, notes: Mapping[str, Note | None]) -> None:
    folder = state_path(data_dir, "fetched")
    before = sorted(folder.glob("*.json"))
    with contextlib.suppress(OSError):
        if len(before) >= _MANY_NOTES:
            notes = {**fetched(data_dir), **notes}
        name = f"{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        write_atomically(folder / name, json.dumps(notes).encode())
        if len(before) >= _MANY_NOTES:
            for file in before:
                file.unlink(missing_ok=True)


def fetched(data_dir: str) -> dict[str, Note]:
    """Return which version of which files was downloaded, by ``id``.

    Notes that are not of this form, or of a file outside the data directory, are
    passed over: others may write to a shared directory.
    """
    notes: dict[str, Note] = {}
    for file in sorted(state_path(data_dir, "fetched").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(file.read_bytes())
            for path, values in content.items() if isinstance(content, dict) else ():
                note = _note(path, values)
                if note:
                    notes[path] = note
                elif values is None:
                    notes.pop(path, None)
    return notes


def _note(path: str, values: Any) -> Note | None:
    """Return a note as it was written; None for anything else."""
    if not isinstance(values, list) or len(values) not in (3, 4):
        return None
    key, size, *texts = values
    is_size = size is None or (isinstance(size, int) and size >= 0)
    if not isinstance(key, str) or not is_size:
        return None
    if not all(text is None or isinstance(text, str) for text in texts):
        return None
    try:
        return Note(key, size, *texts) if clean_key(key) == path else None
    except UnsafeKeyError:
        return None


def save_arrays(data_dir: str, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays in the state folder; where that is not possible, do without."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with contextlib.suppress(OSError):
        write_atomically(state_path(data_dir, name), buffer.getvalue())


def saved_arrays(data_dir: str, name: str) -> dict[str, np.ndarray]:
    """Return arrays kept by `save_arrays`; nothing where there are none."""
    import zipfile

    import numpy as np

    try:
        with open(state_path(data_dir, name), "rb") as stream:
            return dict(np.load(stream, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
