"""The gate of the stimulus images: a ``request_id`` in, presigned URLs out.

open_gate ─▶ cached_identity, or AccessRequiredError
    └▶ Gate.url, Gate.file ─▶ fetch_links ─▶ ask_service, anew when URLs expire
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import (
    AccessPendingError,
    AccessRequiredError,
    AccessServiceError,
)
from laion_fmri_fetchers.layout.trees import GATED, STIMULI
from laion_fmri_fetchers.messages import listed
from laion_fmri_fetchers.query.arguments import refuse_offline

from .identity import (
    ID_VARIABLE,
    Identity,
    cached_identity,
    pending_text,
    update_identity,
)
from .manifest import GatedFile, gated_file
from .service import (
    ADVICE,
    TRIES,
    URL_VARIABLE,
    SecretText,
    ServiceAnswer,
    ask_service,
    is_same_server,
    raise_for_status,
    refuse_plain,
)


class Gate:
    """Access to the gated files: presigned URLs, requested when first needed.

    Made by `open_gate`. Its methods may be called from several threads.
    """

    def __init__(self, identity: Identity, timeout: float):
        self._auth, self._timeout = identity, timeout
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}

    def file(self, file_id: str) -> GatedFile:
        """Return size in bytes and SHA-256 of a gated file, by its ``id``."""
        with self._lock:
            return self._link(file_id).file

    def url(self, file_id: str) -> Callable[[bool], str]:
        """Return a function of the current URL; called with True, it is renewed."""

        def current(renew: bool) -> str:
            with self._lock:
                if renew:
                    self._renew()
                return self._link(file_id).url

        return current

    def ask(self) -> None:
        """Ask the service for URLs now."""
        with self._lock:
            self._renew()

    def _link(self, file_id: str) -> _Link:
        if not self._links:
            self._renew()
        return self._links[file_id]

    def _renew(self) -> None:
        links = fetch_links(self._auth, self._timeout)
        for file_id, before in self._links.items():
            if links[file_id].file != before.file:
                raise AccessServiceError(
                    f"{file_id} changed on the server during the download. Call again "
                    "to fetch the new version."
                )
        self._links = links
        if self._auth.status == "pending":
            self._auth = replace(self._auth, status="approved")
            update_identity(self._auth)


def open_gate(
    data_dir: str, *, mode: str = "download_new", timeout: float = 30.0
) -> Gate:
    """Return access to the gated files by the cached ``request_id``.

    Nothing is sent unless the id was pending when the service was last asked.

    Parameters
    ----------
    data_dir : str
        The data directory.
    mode : str, default="download_new"
        ``"offline"``: no socket is opened.
    timeout : float, default=30.0
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
    identity = cached_identity(data_dir)
    if identity is None:
        raise AccessRequiredError(
            "The stimulus images are gated by a Data Use Agreement, and no request_id "
            f"is cached for {data_dir}. Request access with request_stimulus_access() "
            "or 'laion-fmri-fetchers request-access'. If you already have a "
            f"request_id, use 'laion-fmri-fetchers login' or set {ID_VARIABLE}."
        )
    gate = Gate(identity, timeout)
    if identity.status == "pending":
        error = AccessPendingError(
            f"{pending_text(identity, identity.source)} Offline, the service cannot "
            "be asked whether it was approved meanwhile."
        )
        refuse_offline(mode, error)
        gate.ask()
    return gate


class _Link(NamedTuple):
    """A presigned URL and the file behind it."""

    url: SecretText
    file: GatedFile


def fetch_links(identity: Identity, timeout: float) -> dict[str, _Link]:
    """Return fresh URLs of the gated files, by ``id``."""
    wanted = os.environ.get(URL_VARIABLE)
    if wanted and not is_same_server(identity.server_url, wanted):
        raise AccessRequiredError(
            f"The request_id of {identity.source} comes from {identity.server_url} and "
            f"is sent nowhere else, but {URL_VARIABLE} is {wanted}. Request access "
            "there with request_stimulus_access(renew=True), or unset the variable."
        )
    server, what = identity.server_url.rstrip("/"), "fresh URLs of the stimulus files"
    answer = ask_service(
        server,
        "/api/v1/refresh",
        what,
        {"request_id": identity.request_id, "dataset_version": "v1"},
        timeout=timeout,
        tries=TRIES,
    )
    raise_for_status(answer, server, what, identity.request_id)
    if is_pending(answer):
        raise AccessPendingError(pending_text(identity, identity.source))
    return _links(answer, server)


def is_pending(answer: ServiceAnswer) -> bool:
    """Return whether the service says that a request waits for approval."""
    return (
        answer.status == 202
        or answer.content.get("status") == "pending"
        or not answer.content.get("files")
    )


def _links(answer: ServiceAnswer, server: str) -> dict[str, _Link]:
    """Return URL, size and SHA-256 of the gated files; raise if any is missing."""
    links = {}
    files = answer.content["files"]
    for entry in files if isinstance(files, list) else []:
        link = _link(entry)
        if link:
            links[STIMULI + entry["name"]] = link
    lacking = sorted(GATED - set(links))
    if lacking:
        raise AccessServiceError(
            f"{server} grants access but does not return url, size and sha256 of "
            f"{listed(lacking)}. {ADVICE}"
        )
    for link in links.values():
        refuse_plain(link.url, "The URL of a stimulus file")
    return links


def _link(entry: Any) -> _Link | None:
    file = gated_file(entry)
    if file is None or not isinstance(entry.get("url"), str):
        return None
    if STIMULI + str(entry.get("name")) not in GATED:
        return None
    return _Link(SecretText(entry["url"]), file)
