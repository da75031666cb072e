"""The gate of the stimulus archive: a ``request_id`` in, presigned URLs out.

The public manifest of the access service says which version of the archive, and of the
Data Use Agreement, is current.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from laion_fmri_fetchers.cache.files import read_file, write_atomically
from laion_fmri_fetchers.cache.state import state_path
from laion_fmri_fetchers.exceptions import (
    AccessRequiredError,
    AccessServiceError,
)
from laion_fmri_fetchers.layout.trees import ARCHIVE, STIMULI
from laion_fmri_fetchers.query.arguments import refuse_offline

from .auth import ID_VARIABLE, Auth, find_auth, pending_error, write_auth
from .service import (
    ADVICE,
    TRIES,
    SecretDict,
    SecretText,
    ask_service,
    refuse_plain,
    server_url,
)


class ArchiveVersion(NamedTuple):
    """A version of the archive of stimulus images.

    ``order`` is a digest of the names of its images, in order; "" if it is not known.
    """

    size: int
    sha256: str
    order: str = ""


class Link(NamedTuple):
    """A presigned URL of the archive, and the version of it that is there."""

    url: SecretText
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
    version = ask_service("manifest", timeout=timeout).get("current_terms_version")
    if not isinstance(version, str) or not version or not version.isprintable():
        raise AccessServiceError(
            f"The manifest of {server_url()} lacks current_terms_version. {ADVICE}"
        )
    return version


def published_archive(timeout: float = 30.0, *, tries: int = TRIES) -> ArchiveVersion:
    """Ask the access service for the version of the archive that it has now.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or its answer is not as documented.
    """
    content = ask_service("manifest", timeout=timeout, tries=tries)
    return archive_in(content, server_url()).archive


def archive_in(content: Mapping[str, Any], server: str) -> Link:
    """Return what an answer of the service says of the archive.

    The manifest has no URL of it. Raises an AccessServiceError if it says nothing.
    """
    with contextlib.suppress(LookupError, TypeError, AttributeError):
        files = {entry["name"]: entry for entry in content["files"]}
        entry = files[ARCHIVE.removeprefix(STIMULI)]
        size, sha256 = entry["size"], entry["sha256"].lower()
        if isinstance(size, int) and re.fullmatch("[0-9a-f]{64}", sha256):
            url = SecretText(entry.get("url") or "")
            return Link(url, ArchiveVersion(size, sha256))
    raise AccessServiceError(
        f"The files of {server} lack name, size or sha256 of {ARCHIVE}. {ADVICE}"
    )


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


# --- The gate --------------------------------------------------------------------


class Gate:
    """Access to the archive by a ``request_id``; URLs are requested when needed."""

    def __init__(self, auth: Auth, timeout: float):
        self._auth, self._timeout = auth, timeout
        self._link: Link | None = None

    def url(self, renew: bool) -> str:
        """Return the presigned URL, which lasts an hour; a new one if ``renew``."""
        link = None if renew else self._link
        return (link or self.renew()).url

    def renew(self) -> Link:
        """Ask the service for a URL now."""
        link, before = request_link(self._auth, self._timeout), self._link
        if before and before.archive != link.archive:
            raise AccessServiceError(
                f"{ARCHIVE} changed on the server during the download. Call again to "
                "fetch the new version."
            )
        self._link = link
        if self._auth.status == "pending":
            self._auth = self._auth._replace(status="approved")
            write_auth(Path(self._auth.source), self._auth)
        return link


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
            f"of {server_url()} is cached for {data_dir}. Request access with "
            "request_stimulus_access() or 'laion-fmri-fetchers request-access'. If you "
            "already have a request_id, use 'laion-fmri-fetchers login' or set "
            f"{ID_VARIABLE}."
        )
    gate = Gate(auth, timeout)
    if auth.status == "pending":
        refuse_offline(mode, pending_error(auth))
        gate.renew()
    return gate


def request_link(auth: Auth, timeout: float) -> Link:
    """Return a fresh URL of the archive."""
    body = SecretDict(request_id=auth.request_id, dataset_version="v1")
    content = ask_service("refresh", body, server=auth.server_url, timeout=timeout)
    if is_pending(content):
        raise pending_error(auth)
    link = archive_in(content, auth.server_url)
    refuse_plain(link.url, "The URL of the archive")
    return link


def is_pending(content: SecretDict) -> bool:
    """Return whether an answer says that a request waits for approval."""
    return content.get("status") == "pending" or not content.get("files")
