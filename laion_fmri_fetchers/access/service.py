"""The stimulus access service over HTTP, and its errors as ours.

A ``request_id`` and a presigned URL are secrets: they are sent to the server they
came from, and appear in no message, log, ``repr``, exception or exception's context.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Any

from laion_fmri_fetchers.exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessRateLimitedError,
    AccessRevokedError,
    AccessServiceError,
    StimulusAccessError,
    TermsOutdatedError,
)
from laion_fmri_fetchers.query.arguments import check_timeout
from laion_fmri_fetchers.remote import retry
from laion_fmri_fetchers.remote.client import Client, Fault, Threads

DEFAULT_ACCESS_URL = "https://laion-fmri.hebartlab.com"
URL_VARIABLE = "LAION_FMRI_ACCESS_URL"
# How often to ask, where asking again is safe: a person waits for the answer.
TRIES = 3
# Real answers have a few kB.
_MOST_BYTES = 2**22
# https, or a server of this machine; without a user name and a password.
_SAFE = re.compile(r"(https://[^/@\s]+|http://(localhost|127\.0\.0\.1)(:\d+)?)(/|$)")


class SecretText(str):
    """Text that a ``repr`` does not show, as in a traceback with local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"

    def __getitem__(self, index: Any) -> SecretText:
        """Return a part, as secret as the whole: rich and reprlib show beginnings."""
        return SecretText(super().__getitem__(index))


class SecretDict(dict):
    """A dict whose ``repr`` does not show its content."""

    def __repr__(self) -> str:
        return f"<{len(self)} fields, not shown>"


def server_url() -> str:
    """Return the address of the access service, without a slash at the end."""
    return (os.environ.get(URL_VARIABLE) or DEFAULT_ACCESS_URL).rstrip("/")


def is_same_server(url: str, other_url: str) -> bool:
    """Return whether two addresses are those of one service."""
    return url.rstrip("/").lower() == other_url.rstrip("/").lower()


def refuse_plain(url: str, what: str) -> None:
    """Raise unless an address is https, or of this machine, and holds no login."""
    if not _SAFE.match(url):
        raise unexpected(f"{what}, {hide_secrets(url)}, is not https or holds a login.")


def unexpected(problem: str) -> AccessServiceError:
    """Return the error of a service that is not as documented."""
    return AccessServiceError(
        f"{problem} Check {URL_VARIABLE} if you set it; else the service may have "
        f"changed, see {DEFAULT_ACCESS_URL}"
    )


def hide_secrets(text: str, *secrets: str) -> str:
    """Return text without ids, logins, queries of URLs and control characters.

    >>> hide_secrets("no lfm_ab-12 at https://me:pw@x.org/a?Signature=1 now", "now")
    'no lfm_... at https://x.org/a?... ...'
    """
    for secret in filter(None, secrets):
        text = text.replace(secret, "...")
    # So ids may begin; none is refused for lack of it.
    text = re.sub(r"lfm_[\w.~-]+", "lfm_...", text)
    # Passwords may hold any character, so they end only at the last "@".
    text = re.sub(r"(?<=://)\S*@", "", text)
    text = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1?...", text)
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text)


def call(
    server: str,
    path: str,
    body: SecretDict | None = None,
    *,
    timeout: float,
    tries: int = TRIES,
) -> SecretDict:
    """Return the JSON object with which the access service answers a call.

    Parameters
    ----------
    server : str
        Its address.
    path : str
        "manifest", "access/request" or "refresh".
    body : SecretDict, optional
        What to send; None: the call is a GET.
    timeout : float
        Seconds without an answer.
    tries : int
        How often to ask a service that is busy or does not answer.

    Raises
    ------
    StimulusAccessError
        If the service refuses, cannot be reached, or answers something else.
    """
    refuse_plain(server, "The address of the access service")
    url = f"{server.rstrip('/')}/api/v1/{path}"
    # By a thread, so that after Ctrl-C the traceback has no frame of the HTTP client,
    # whose variables hold the body.
    answer: SecretDict | StimulusAccessError
    with Client(1, check_timeout(timeout)) as client, Threads(1) as threads:
        sent = threads.submit(client.retrying, _send, client, url, body, tries)
        try:
            answer = sent.result()
        except Fault as fault:
            answer = AccessServiceError(
                f"{url} gives no answer ({fault.reason}). Check the network; files on "
                "disk can be used with mode='offline'."
            )
    # Raised here, as the context of an error above would hold the body.
    if isinstance(answer, StimulusAccessError):
        raise answer
    return answer


def _send(
    client: Client, url: str, body: SecretDict | None, tries: int
) -> SecretDict | StimulusAccessError:
    """Return the content of an answer, or the error that it stands for."""
    try:
        answer = client.fetch(
            url,
            most_bytes=_MOST_BYTES,
            method="GET" if body is None else "POST",
            body=None if body is None else json.dumps(body).encode(),
            headers={"Accept": "application/json", "Content-Type": "application/json"},
            is_final=True,  # a redirect, too: the body is for this server alone
        )
    except Fault as fault:
        fault.tries = min(fault.tries, tries)
        raise
    # That there were too many requests is for the user to know.
    if answer.status in retry.RETRIED - {429}:
        raise Fault(f"status {answer.status}", tries=tries)
    request_id = body.get("request_id", "") if body else ""
    content = None
    with contextlib.suppress(ValueError):
        content = json.loads(answer.body, object_hook=SecretDict)
    if answer.status == 202:
        return SecretDict(content or {}, status="pending")
    if not isinstance(content, SecretDict):
        content = SecretDict(detail="not a JSON object")
    elif answer.status in (200, 201):
        return content
    wait = retry.retry_after(answer.headers.get("Retry-After"))
    return _error(answer.status, wait, content.get("detail"), url, request_id)


def _error(
    status: int, wait: float | None, detail: Any, url: str, request_id: str
) -> StimulusAccessError:
    """Return the error that an answer stands for."""

    def clean(value: Any) -> str:
        return hide_secrets(str(value), request_id)

    server = url.partition("/api/v1/")[0]
    anew = "Request access again with request_stimulus_access()."
    fields = detail if isinstance(detail, dict) else {}
    words = fields.get("message") or fields.get("error") if fields else detail
    said = f" ({clean(words)})" if words else ""
    if status == 403 and fields.get("error") == "terms_outdated":
        version = clean(fields.get("current_terms_version"))
        page = clean(fields.get("accept_url") or f"{server}/terms/accept")
        return outdated_error(version, page.partition("?")[0])
    if status == 403 and "revoked" in json.dumps(detail).lower():
        return AccessRevokedError(f"{server} revoked the request_id{said}. {anew}")
    if status == 404 and request_id:
        return AccessNotFoundError(f"{server} does not know this id{said}. {anew}")
    if status == 422 and isinstance(detail, list):
        entries = [entry for entry in detail if isinstance(entry, dict)]
        wrong = {clean(e["loc"][-1]): clean(e["msg"]) for e in entries if e.get("loc")}
        listing = "; ".join(f"{name}: {problem}" for name, problem in wrong.items())
        return AccessFormError(f"{url} refuses the request: {listing}.", wrong)
    if status == 429:
        when = "later" if wait is None else f"in {wait:g} s"
        return AccessRateLimitedError(
            f"Too many requests to {server}{said}. Try again {when}.", wait
        )
    return unexpected(f"{url} answers with status {status}{said}.")


def outdated_error(version: str, page: str) -> TermsOutdatedError:
    """Return the error of a Data Use Agreement that is of another version now."""
    return TermsOutdatedError(
        f"Version {version} of the Data Use Agreement is in force now. Accept it at "
        f"{page} or by request_stimulus_access(accept_terms_version={version!r}).",
        accept_url=page,
        terms_version=version,
    )
