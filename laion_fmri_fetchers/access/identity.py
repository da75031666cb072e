"""The ``request_id`` that grants access, and the two ``auth.json`` that keep it.

    cached_identity ─▶ _read    the environment, the data directory, the user's cache
    save_identity   ─▶ _write   the data directory, and the user's cache where free
    update_identity, forget_identity

A file in the user's cache is shared with the dataset's own package.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.cache.data_dir import is_writable
from laion_fmri_fetchers.cache.files import read_file, write_atomically
from laion_fmri_fetchers.cache.state import auth_file, official_auth_file
from laion_fmri_fetchers.exceptions import (
    DiskSpaceError,
    InvalidQueryError,
    StimulusAccessError,
)
from laion_fmri_fetchers.messages import warn

from .service import (
    DEFAULT_ACCESS_URL,
    URL_VARIABLE,
    SecretBytes,
    SecretText,
    is_same_server,
)

ID_VARIABLE = "LAION_FMRI_REQUEST_ID"

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass(frozen=True)
class Identity:
    """A ``request_id``, its source and its state."""

    request_id: str
    server_url: str
    status: str
    email: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "request_id", SecretText(self.request_id))


def cached_identity(data_dir: str) -> Identity | None:
    """Return the ``request_id`` in force: the one of the server in force, if any."""
    files = filter(None, (auth_file(data_dir), official_auth_file()))
    kept = [identity for identity in map(_read, files) if identity]
    given = id_of_environment()
    wanted = os.environ.get(URL_VARIABLE)
    if given:
        kept = [identity for identity in kept if identity.request_id == given]
        server = wanted or DEFAULT_ACCESS_URL
        kept.append(Identity(given, server, "approved", source=ID_VARIABLE))
    for identity in kept:
        if not wanted or is_same_server(identity.server_url, wanted):
            return identity
    return kept[0] if kept else None


def id_of_environment() -> str:
    """Return the id that the environment gives, without quotes, or ""."""
    given = os.environ.get(ID_VARIABLE, "").strip().strip("'\"")
    if given and not is_sendable(given):
        given = ""
        raise InvalidQueryError(
            f"{ID_VARIABLE} has control characters; set it to the request_id alone."
        )
    return given


def _read(file: Path) -> Identity | None:
    """Read an ``auth.json``; None if this user cannot read one."""
    try:
        content = _content(file)
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        warn(f"{file} is ignored: {error.strerror}. Remove it; login() keeps an id.")
        return None
    request_id = content.get("request_id")
    if not isinstance(request_id, str) or not is_sendable(request_id.strip()):
        warn(f"{file} does not hold a request_id and is ignored; delete it.")
        return None
    email, server = content.get("email"), content.get("server_url")
    return Identity(
        request_id.strip(),
        server if isinstance(server, str) and server else DEFAULT_ACCESS_URL,
        "pending" if content.get("status") == "pending" else "approved",
        email if isinstance(email, str) else None,
        str(file),
    )


def _content(file: Path) -> dict[str, Any]:
    """Return the fields of an ``auth.json``; none if it is broken.

    An editor may have saved it in another encoding; ``json`` detects UTF-16.
    """
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(read_file(file))
        if isinstance(content, dict):
            return content
    return {}


def save_identity(identity: Identity, data_dir: str) -> str:
    """Keep a ``request_id``; return the files it is in, as text.

    It goes to the data directory. The dataset's own package, and other data
    directories, look into the user's cache: an id of the dataset's own service goes
    there too, unless that holds the id of somebody else or of another service.
    Where the data directory cannot be written, only the user's cache keeps it.
    """
    file, shared = auth_file(data_dir), official_auth_file()
    files, reasons = [], []
    before = None
    if not _is_of_others(file) and is_writable(file.parent):
        before = _read(file) if os.path.exists(file) else None
        files.append(file)
    is_of_dataset = is_same_server(identity.server_url, DEFAULT_ACCESS_URL)
    is_wanted = is_of_dataset or not files
    if shared and is_wanted and _may_replace(shared, identity, before):
        files.append(shared)
    kept = []
    for target in files:
        error = _write(target, identity)
        if error:
            reasons.append(error)
        else:
            kept.append(target)
    if kept:
        return joined(kept)
    if any(number in _FULL for number, _ in reasons):
        raise DiskSpaceError(
            errno.ENOSPC,
            f"The request_id cannot be kept, as the disk is full ({joined(files)}). "
            "Free some space, then call request_stimulus_access(renew=True)",
        )
    why = "; ".join(text for _, text in reasons)
    elsewhere = "there is no home directory to keep it in"
    if shared:
        is_tried = shared in files
        problem = f"cannot either ({why})" if is_tried else "holds another id"
        elsewhere = f"{shared} {problem}"
    raise StimulusAccessError(
        f"The request_id cannot be kept: {file} cannot be written, and {elsewhere}. "
        "Name a data_dir that you may write to, then call "
        "request_stimulus_access(renew=True)."
    )


def _is_of_others(file: Path) -> bool:
    """Return whether a file exists but belongs to somebody else: it cannot be read."""
    return os.path.exists(file) and not os.access(file, os.R_OK)


def _may_replace(shared: Path, identity: Identity, before: Identity | None) -> bool:
    """Return whether the shared file is free, or holds an id of the same person.

    Parameters
    ----------
    shared : Path
        The file that is shared with the dataset's own package.
    identity : Identity
        The new id.
    before : Identity or None
        The id that it replaces in the data directory.
    """
    if not os.path.exists(shared):
        return True
    if _is_of_others(shared):
        return False
    kept = _read(shared)
    if kept is None:
        return True
    same_ids = {
        identity.request_id,
        before.request_id if before else identity.request_id,
    }
    return is_same_server(kept.server_url, identity.server_url) and (
        kept.request_id in same_ids or kept.email == identity.email is not None
    )


def _holds_same_id(file: Path | None, identity: Identity | None) -> bool:
    """Return whether an ``auth.json`` exists and holds an id."""
    kept = _read(file) if identity and file and os.path.exists(file) else None
    return bool(identity and kept and kept.request_id == identity.request_id)


def joined(files: Iterable[Path]) -> str:
    """Return file names as text."""
    return " and ".join(map(str, files))


def forget_identity(data_dir: str) -> list[Path]:
    """Remove the user's id from the data directory, and the same id from the cache.

    Returns the files that were removed.
    """
    file, shared = auth_file(data_dir), official_auth_file()
    if not os.path.exists(file) or _is_of_others(file):
        return []
    files = [file]
    if shared and _holds_same_id(shared, _read(file)):
        files.append(shared)
    for kept in files:
        kept.unlink(missing_ok=True)
    return files


def update_identity(identity: Identity) -> None:
    """Note a new status in the files that keep the ``request_id``."""
    if identity.source in ("", ID_VARIABLE):
        return
    for file in {Path(identity.source), official_auth_file()}:
        if file and _holds_same_id(file, identity):
            _write(file, identity)


def _write(file: Path, identity: Identity) -> tuple[int, str] | None:
    """Write an ``auth.json``; return number and reason of the error, if any.

    The error itself ends here: its traceback would hold what was to be written.
    """
    content = {
        "server_url": identity.server_url,
        "request_id": identity.request_id,
        "email": identity.email,
        "saved_at": dt.datetime.now(dt.timezone.utc).isoformat(),
    }
    # The file of the dataset's package has its four fields, unless the request waits.
    if file != official_auth_file() or identity.status == "pending":
        content["status"] = identity.status
    encoded = SecretBytes((json.dumps(content, indent=2) + "\n").encode())
    try:
        write_atomically(file, encoded, 0o600)
    except OSError as error:
        number = error.errno or 0
        return number, f"{file}: {os.strerror(number) if number else 'error'}"
    return None


def masked(request_id: str) -> str:
    """Return an id shortened, to tell it from others but not to use it.

    >>> masked("lfm_0123456789abcdefghijklmn"), masked("short")
    ('...lmn', '...')
    """
    return f"...{request_id[-3:] if len(request_id) >= 24 else ''}"


def is_sendable(request_id: str) -> bool:
    """Return whether a text is not empty and has no control characters.

    Nothing else is known of the form of ids.
    """
    return bool(request_id) and not re.search(r"[\x00-\x1f\x7f]", request_id)


def pending_text(identity: Identity, file: str) -> str:
    """Return what to say of a request that waits for approval."""
    return (
        f"The access request waits for approval by {identity.server_url}. Its "
        f"request_id is kept ({file}): call again later, no new form is needed."
    )
