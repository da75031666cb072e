"""The ``request_id`` that grants access to the stimuli, in the files ``auth.json``.

One is in the data directory. The other, in the user's cache, is shared with the
dataset's own package and has the same fields.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

from laion_fmri_fetchers.cache.files import read_file, write_atomically
from laion_fmri_fetchers.cache.state import auth_file, official_auth_file
from laion_fmri_fetchers.exceptions import (
    AccessPendingError,
    DiskSpaceError,
    StimulusAccessError,
)
from laion_fmri_fetchers.messages import warn

from .service import DEFAULT_ACCESS_URL, URL_VARIABLE, SecretText, is_same_server

ID_VARIABLE = "LAION_FMRI_REQUEST_ID"


class Auth(NamedTuple):
    """A ``request_id``, its service, its state, and the file or variable it is from."""

    request_id: SecretText
    server_url: str
    status: str  # "pending" or "approved"
    email: str | None = None
    source: str = ""


def find_auth(data_dir: str) -> Auth | None:
    """Return the ``request_id`` in force: of the environment, or of a file.

    Where ``LAION_FMRI_ACCESS_URL`` names a service, it is one of that service.
    """
    service = os.environ.get(URL_VARIABLE)
    if given := os.environ.get(ID_VARIABLE, "").strip().strip("'\""):
        server = service or DEFAULT_ACCESS_URL
        return Auth(SecretText(given), server, "approved", source=ID_VARIABLE)
    for file in (auth_file(data_dir), official_auth_file()):
        auth = read_auth(file)
        if auth and (not service or is_same_server(auth.server_url, service)):
            return auth
    return None


def read_auth(file: Path | None) -> Auth | None:
    """Return what an ``auth.json`` holds; None if there is none for this user."""
    if file is None or not os.access(file, os.R_OK):
        return None
    # An editor may have saved it in another encoding; json detects UTF-16.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(read_file(file))
        if isinstance(content["request_id"], str):
            return Auth(
                SecretText(content["request_id"].strip()),
                str(content.get("server_url") or DEFAULT_ACCESS_URL),
                "pending" if content.get("status") == "pending" else "approved",
                content.get("email"),
                str(file),
            )
    warn(f"{file} does not hold a request_id and is ignored. Remove it.")
    return None


def write_auth(file: Path, auth: Auth) -> OSError | None:
    """Write an ``auth.json`` that only its owner may read; return the error, if any.

    The error ends here, as its traceback would hold what was to be written.
    """
    content = {
        "server_url": auth.server_url,
        "request_id": auth.request_id,
        "email": auth.email,
        "saved_at": dt.datetime.now(dt.timezone.utc).isoformat(),
    }
    # The dataset's own package knows these four alone.
    if auth.status == "pending":
        content["status"] = auth.status
    try:
        if os.path.exists(file) and not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, "it is another user's", str(file))
        write_atomically(file, (json.dumps(content, indent=2) + "\n").encode(), 0o600)
    except OSError as error:
        return error
    return None


def save_auth(auth: Auth, data_dir: str) -> str:
    """Keep a ``request_id``; return the files that it is in, as text.

    It goes to the data directory. The dataset's own package, and other data
    directories, look into the user's cache: an id of the dataset's own service goes
    there too, unless it holds somebody else's.
    """
    own, shared = auth_file(data_dir), official_auth_file()
    before, there, files = read_auth(own), read_auth(shared), [own]
    if (
        shared
        and is_same_server(auth.server_url, DEFAULT_ACCESS_URL)
        and (
            there is None
            or there.request_id in (auth.request_id, before and before.request_id)
            or (there.server_url, there.email) == (auth.server_url, auth.email or "")
        )
    ):
        files.append(shared)
    errors = {file: error for file in files if (error := write_auth(file, auth))}
    kept = [str(file) for file in files if file not in errors]
    if kept:
        return " and ".join(kept)
    text = (
        f"The request_id cannot be kept ({'; '.join(map(str, errors.values()))}). Free "
        "some space, or name a data_dir that you may write to, then call "
        "request_stimulus_access(renew=True)"
    )
    if any(isinstance(error, DiskSpaceError) for error in errors.values()):
        raise DiskSpaceError(errno.ENOSPC, text)
    raise StimulusAccessError(text)


def pending_error(auth: Auth) -> AccessPendingError:
    """Return the error of a request that waits for approval."""
    return AccessPendingError(
        f"The form was sent, and waits for approval by {auth.server_url}. Call again "
        "later, online; the request_id is kept, and no new form is needed."
    )
