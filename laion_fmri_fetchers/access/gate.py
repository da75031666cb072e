"""The gate of the stimulus archive: the ``request_id``, and what it opens.

::

    find_auth   environment, or auth.json ─▶ Auth
    open_gate   Auth ─▶ Gate.url ─▶ presigned URLs, which last an hour

An ``auth.json`` is in the data directory; another one, in the user's cache, is shared
with the dataset's own package.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laion_fmri_fetchers.cache.files import read_file, write_atomically
from laion_fmri_fetchers.cache.state import auth_file, official_auth_file, state_path
from laion_fmri_fetchers.exceptions import (
    AccessPendingError,
    AccessRequiredError,
    DiskSpaceError,
    StimulusAccessError,
)
from laion_fmri_fetchers.layout.trees import ARCHIVE, STIMULI
from laion_fmri_fetchers.messages import warn

from . import service

ID_VARIABLE = "LAION_FMRI_REQUEST_ID"


class ArchiveVersion(NamedTuple):
    """A version of the archive of stimulus images.

    ``order`` is a digest of the names of its images, in order; "" if it is not known.
    """

    size: int
    sha256: str
    order: str = ""


class Link(NamedTuple):
    """A presigned URL of the archive, and the version of it that is there."""

    url: service.SecretText
    archive: ArchiveVersion


# --- The public manifest ---------------------------------------------------------


def current_terms_version(*, timeout: float = 30.0) -> str:
    """Ask the access service which version of the Data Use Agreement is in force.

    Parameters
    ----------
    timeout : float, default=30.0
        Seconds without an answer.

    Returns
    -------
    str
        The version, as ``accept_terms_version`` of `request_stimulus_access` takes it.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or its answer is not as documented.

    Examples
    --------
    ::

        version = current_terms_version()
    """
    server = service.server_url()
    content = service.call(server, "manifest", timeout=timeout)
    version = content.get("current_terms_version")
    if not isinstance(version, str) or not version or not version.isprintable():
        raise service.unexpected(f"The manifest of {server} has no terms version.")
    return version


def published_archive(
    timeout: float = 30.0, *, tries: int = service.TRIES
) -> ArchiveVersion:
    """Ask the access service for the version of the archive that it has now.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or its answer is not as documented.
    """
    server = service.server_url()
    content = service.call(server, "manifest", timeout=timeout, tries=tries)
    return archive_in(content, server).archive


def archive_in(content: Mapping[str, Any], server: str) -> Link:
    """Return what an answer of the service says of the archive.

    The manifest has no URL of it. Raises an AccessServiceError if it says nothing.
    """
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        files = {entry["name"]: entry for entry in content["files"]}
        entry = files[ARCHIVE.removeprefix(STIMULI)]
        size, sha256 = entry["size"], entry["sha256"].lower()
        if isinstance(size, int) and re.fullmatch("[0-9a-f]{64}", sha256):
            url = service.SecretText(entry.get("url") or "")
            return Link(url, ArchiveVersion(size, sha256))
    raise service.unexpected(f"{server} gives no size or sha256 of {ARCHIVE}.")


# --- The version on disk ---------------------------------------------------------


def saved_archive(data_dir: str) -> ArchiveVersion | None:
    """Return the version of the archive that was downloaded; None if not known."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        file = state_path(data_dir, "manifest.json")
        return ArchiveVersion(**json.loads(read_file(file)))
    return None


def save_archive(data_dir: str, archive: ArchiveVersion) -> None:
    """Note which version of the archive was downloaded, where that can be written."""
    with contextlib.suppress(OSError):
        content = json.dumps(archive._asdict(), indent=2) + "\n"
        write_atomically(state_path(data_dir, "manifest.json"), content.encode())


# --- The request_id --------------------------------------------------------------


class Auth(NamedTuple):
    """A ``request_id``, its service, its state, and the file or variable it is from."""

    request_id: service.SecretText
    server_url: str
    status: str  # "pending" or "approved"
    email: str | None = None
    source: str = ""


def find_auth(data_dir: str) -> Auth | None:
    """Return the ``request_id`` in force: of the environment, or of a file.

    Where ``LAION_FMRI_ACCESS_URL`` names a service, it is one of that service.
    """
    server = os.environ.get(service.URL_VARIABLE)
    if given := os.environ.get(ID_VARIABLE, "").strip().strip("'\""):
        given, server = service.SecretText(given), server or service.DEFAULT_ACCESS_URL
        return Auth(given, server, "approved", source=ID_VARIABLE)
    for file in (auth_file(data_dir), official_auth_file()):
        auth = read_auth(file)
        if auth and (not server or service.is_same_server(auth.server_url, server)):
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
                service.SecretText(content["request_id"].strip()),
                str(content.get("server_url") or service.DEFAULT_ACCESS_URL),
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
    saved_at = dt.datetime.now(dt.timezone.utc).isoformat()
    content = {**auth._asdict(), "saved_at": saved_at}
    del content["source"]
    # The dataset's own package knows the other four alone.
    if auth.status == "approved":
        del content["status"]
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
        and service.is_same_server(auth.server_url, service.DEFAULT_ACCESS_URL)
        and (
            there is None
            or there.request_id in (auth.request_id, before and before.request_id)
            or (there.server_url, there.email) == (auth.server_url, auth.email or "")
        )
    ):
        files.append(shared)
    errors = {file: error for file in files if (error := write_auth(file, auth))}
    if len(errors) < len(files):
        return " and ".join(str(file) for file in files if file not in errors)
    text = (
        f"The request_id cannot be kept ({'; '.join(map(str, errors.values()))}). Mend "
        "this or name another data_dir, then call request_stimulus_access(renew=True)"
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


# --- The gate --------------------------------------------------------------------


class Gate:
    """Access to the archive by a ``request_id``; URLs are requested when needed."""

    def __init__(self, auth: Auth, timeout: float):
        self._auth, self._timeout = auth, timeout
        self._link: Link | None = None

    def url(self, renew: bool) -> str:
        """Return the presigned URL, which lasts an hour; a new one if ``renew``."""
        return (self.renew() if renew or not self._link else self._link).url

    def renew(self) -> Link:
        """Ask the service for a URL now."""
        self._link = request_link(self._auth, self._timeout)
        if self._auth.status == "pending":
            self._auth = self._auth._replace(status="approved")
            write_auth(Path(self._auth.source), self._auth)
        return self._link


def open_gate(data_dir: str, mode: str, timeout: float) -> Gate:
    """Return access to the archive by the cached ``request_id``.

    Nothing is sent unless the id was pending when the service was last asked.

    Parameters
    ----------
    data_dir : str
        The data directory.
    mode : str
        ``"offline"``: no socket is opened.
    timeout : float
        Seconds without an answer.

    Raises
    ------
    AccessRequiredError
        If no ``request_id`` is cached.
    AccessPendingError
        If it is not approved yet.
    StimulusAccessError
        If the service rejects a pending id in another way.
    """
    auth = find_auth(data_dir)
    if auth is None:
        raise AccessRequiredError(
            "The stimulus images are gated by a Data Use Agreement, and no request_id "
            f"of {service.server_url()} is cached for {data_dir}. Request access with "
            "request_stimulus_access() or 'laion-fmri-fetchers request-access'. If you "
            f"have a request_id, use 'laion-fmri-fetchers login' or set {ID_VARIABLE}."
        )
    gate = Gate(auth, timeout)
    if auth.status == "pending":
        if mode == "offline":
            raise pending_error(auth)
        gate.renew()
    return gate


def request_link(auth: Auth, timeout: float) -> Link:
    """Return a fresh URL of the archive."""
    body = service.SecretDict(request_id=auth.request_id, dataset_version="v1")
    content = service.call(auth.server_url, "refresh", body, timeout=timeout)
    if is_pending(content):
        raise pending_error(auth)
    link = archive_in(content, auth.server_url)
    service.refuse_plain(link.url, "The URL of the archive")
    return link


def is_pending(content: service.SecretDict) -> bool:
    """Return whether an answer says that a request waits for approval."""
    return content.get("status") == "pending" or not content.get("files")
