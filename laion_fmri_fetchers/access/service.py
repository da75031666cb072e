"""The access service over HTTP: requests, bounded answers, and its errors as ours.

    ask_service ─▶ _send          redirects, never with a body to another host
              └ _send_once     a thread of its own, left behind at a deadline
                  └ _exchange  one request; its answer, of a few MB at most
         ─▶ _parsed ─▶ ServiceAnswer ─▶ raise_for_status

A ``request_id`` and a presigned URL are secrets: they are sent to the server they
came from, and appear in no message, log, ``repr``, exception or exception's context.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import re
import time
from concurrent.futures import wait
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from laion_fmri_fetchers.exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessRateLimitedError,
    AccessRevokedError,
    AccessServiceError,
    TermsOutdatedError,
)
from laion_fmri_fetchers.query.arguments import check_timeout
from laion_fmri_fetchers.remote import retry
from laion_fmri_fetchers.remote.client import Client, Fault, Threads

DEFAULT_ACCESS_URL = "https://laion-fmri.hebartlab.com"
URL_VARIABLE = "LAION_FMRI_ACCESS_URL"
PREFIX = "lfm_"
"""Beginning of a ``request_id``, as far as is known; none is refused for lack of it."""

TRIES = 3
"""How often to ask a service that is busy or does not answer, where that is safe."""

PATIENCE = 3.0
"""Time-outs in which an answer, of a few kB, must be whole."""
_REDIRECTS = 4
MOST_BYTES = 4 * 2**20
"""Bytes of an answer, unpacked, at most; real ones have a few kB."""
_MOST_LEVELS = 32
_DAY = 86_400.0

ADVICE = (
    f"Check {URL_VARIABLE} if you set it; else the service may have changed, see "
    f"{DEFAULT_ACCESS_URL}"
)


class SecretText(str):
    """Text that a ``repr`` does not show, as in a traceback with local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"

    def __getitem__(self, index: Any) -> SecretText:
        """Return a part, as secret as the whole: some tracebacks show beginnings."""
        return SecretText(super().__getitem__(index))


class SecretBytes(bytes):
    """Bytes that a ``repr`` does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "b'...'"


class _Secret(dict):
    """A dict whose ``repr`` does not show its content."""

    def __repr__(self) -> str:
        return f"<{len(self)} fields, not shown>"


class ServiceAnswer(NamedTuple):
    """Status and content of an answer, and the seconds to wait that it asks for."""

    status: int
    content: _Secret
    retry_after: float | None


def server_url() -> str:
    """Return the address of the access service, without a slash at the end."""
    url = (os.environ.get(URL_VARIABLE) or DEFAULT_ACCESS_URL).rstrip("/")
    if "@" in _parts(url).netloc:
        raise AccessServiceError(
            f"{URL_VARIABLE} holds a user name or password, which are sent nowhere. "
            "Name an address that needs none."
        )
    return url


def ask_service(
    server: str,
    path: str,
    what: str,
    body: dict[str, Any] | None = None,
    *,
    timeout: float,
    tries: int = 1,
) -> ServiceAnswer:
    """Ask the service; again after a while where that may help."""
    timeout = check_timeout(timeout)
    body = None if body is None else _Secret(body)
    url = server.rstrip("/") + path
    for n_tried in range(tries):
        if n_tried:
            time.sleep(retry.wait_before(n_tried))
        reply = _send(url, body, what, timeout)
        # That there were too many requests is for the user to know.
        if not isinstance(reply, str) and (
            reply.status not in retry.RETRIED or reply.status == 429
        ):
            break
    if isinstance(reply, str):
        raise AccessServiceError(
            f"{server} gives no answer to the call for {what} ({reply}). Check the "
            "network; files on disk can be used with mode='offline'."
        )
    return _parsed(reply, server, what)


class _Reply(NamedTuple):
    """An answer over HTTP, whole and unpacked."""

    status: int
    location: SecretText
    retry_after: str
    body: SecretBytes


def _send(
    url: str, body: dict[str, Any] | None, what: str, timeout: float
) -> _Reply | str:
    """Send a request; without an answer, return why.

    With a body, which may hold a secret, no other host is followed to.
    """
    first = url
    for _ in range(_REDIRECTS):
        refuse_plain(url, f"The address for {what}")
        reply = _send_once(url, body, what, timeout)
        if isinstance(reply, str) or not 300 <= reply.status < 400:
            return reply
        url = _joined(url, reply.location)
        if body is None:
            continue
        if _origin(url) != _origin(first):
            raise AccessServiceError(
                f"{_shown(first)} redirects to another host, {_host(url)}, to which "
                f"nothing was sent. {ADVICE}"
            )
        if reply.status not in (307, 308):
            break
    raise AccessServiceError(
        f"{_shown(first)} answers with redirects that lead nowhere. {ADVICE}"
    )


def _send_once(
    url: str, body: dict[str, Any] | None, what: str, timeout: float
) -> _Reply | str:
    """Send a request in a thread of its own, and wait for the whole answer.

    Where Ctrl-C ends the wait, the frames of the HTTP client, whose variables hold the
    body, are not in the traceback.
    """
    most_seconds = PATIENCE * timeout
    with Client(1, timeout) as client, Threads(1) as threads:
        exchange = threads.submit(_exchange, client, url, body)
        done, _ = wait([exchange], most_seconds)
    if not done:
        raise AccessServiceError(
            f"{_shown(url)} has not answered the call for {what} completely after "
            f"{most_seconds:g} s. Try again later. {ADVICE}"
        )
    reply: _Reply | str = exchange.result()
    if not isinstance(reply, str) and len(reply.body) > MOST_BYTES:
        raise AccessServiceError(
            f"{_shown(url)} answers the call for {what} with more than "
            f"{MOST_BYTES // 2**20} MB, where a few kB are expected. {ADVICE}"
        )
    return reply


def _exchange(client: Client, url: str, body: dict[str, Any] | None) -> _Reply | str:
    """Send a request and read its answer; without one, return why.

    No exception leaves it: the frames of one would hold the body.
    """
    headers = {"Accept": "application/json"}
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = SecretBytes(json.dumps(body).encode())
    try:
        answer = client.fetch(
            url,
            most_bytes=MOST_BYTES,
            method="GET" if body is None else "POST",
            body=content,
            headers=headers,
            is_final=True,
        )
    except Fault as fault:
        return fault.reason
    except Exception as error:
        return type(error).__name__
    return _Reply(
        answer.status,
        SecretText(answer.headers.get("Location", "")),
        answer.headers.get("Retry-After", ""),
        SecretBytes(answer.body),
    )


def _parsed(reply: _Reply, server: str, what: str) -> ServiceAnswer:
    """Return status and content of an answer; a success must be a JSON object."""
    content: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        content = _hidden(json.loads(reply.body))
    if not isinstance(content, dict):
        if reply.status < 400 and not (reply.status == 202 and not reply.body):
            raise AccessServiceError(
                f"{server} answers the call for {what} with something that is not a "
                f"JSON object (status {reply.status}). {ADVICE}"
            )
        content = _Secret()
    return ServiceAnswer(reply.status, content, retry.retry_after(reply.retry_after))


def _hidden(value: Any, level: int = 0) -> Any:
    """Return parsed JSON such that no ``repr`` shows its content."""
    if level > _MOST_LEVELS:
        raise ValueError("nested too deep")
    if isinstance(value, dict):
        return _Secret({name: _hidden(v, level + 1) for name, v in value.items()})
    if isinstance(value, list):
        return [_hidden(inner, level + 1) for inner in value]
    return SecretText(value) if isinstance(value, str) else value


def raise_for_status(
    answer: ServiceAnswer, server: str, what: str, request_id: str = ""
) -> None:
    """Raise the error that an answer stands for."""
    status, detail = answer.status, answer.content.get("detail")
    if status in (200, 201, 202):
        return
    said = _said(detail, request_id)
    if status == 403 and isinstance(detail, dict):
        _raise_if_outdated(detail, server, request_id)
    if status == 403 and "revoked" in json.dumps(detail).lower():
        raise AccessRevokedError(
            f"{server} revoked the request_id{said}. Write to the publishers of the "
            "dataset, or request access again with request_stimulus_access()."
        )
    if status == 404 and request_id:
        raise AccessNotFoundError(
            f"{server} does not know the request_id{said}. Request access again with "
            f"request_stimulus_access(). {ADVICE}"
        )
    if status == 422:
        _raise_form_error(detail, server, what, request_id)
    if status == 429:
        wait = answer.retry_after
        when = "later" if wait is None else f"in {wait:g} s"
        if wait is not None and wait < _DAY:
            clock_time = dt.datetime.now() + dt.timedelta(seconds=wait)
            when += f", at {clock_time:%H:%M:%S}"
        raise AccessRateLimitedError(
            f"Too many requests to {server}{said}. Try again {when}.", wait
        )
    raise AccessServiceError(
        f"{server} answers the call for {what} with status {status}{said}. {ADVICE}"
    )


def _raise_if_outdated(detail: dict[str, Any], server: str, request_id: str) -> None:
    if detail.get("error") != "terms_outdated":
        return
    version = detail.get("current_terms_version")
    version = _clean(version) if isinstance(version, str) else None
    given = detail.get("accept_url")
    page = _joined(f"{server}/", given if isinstance(given, str) else "terms/accept")
    is_secret = PREFIX in page or (request_id and request_id in page)
    url = page.partition("?")[0] if is_secret else str(page)
    if not url.isprintable() or _clean(url, request_id) != _clean(url):
        url = f"{server}/terms/accept"
    refuse_plain(url, "The address at which to accept the terms")
    raise TermsOutdatedError(
        f"The Data Use Agreement changed to version {version} since access was "
        f"granted. Accept it at {url} or with request_stimulus_access(), then call "
        "again.",
        accept_url=url,
        terms_version=version,
    )


def _raise_form_error(detail: Any, server: str, what: str, request_id: str) -> None:
    fields: dict[str, str] = {}
    for entry in detail if isinstance(detail, list) else []:
        if isinstance(entry, dict):
            loc = entry.get("loc")
            names = [n for n in loc if isinstance(n, str)] if loc else []
            name = _clean(names[-1], request_id) if names else "form"
            fields[name] = _clean(str(entry.get("msg")), request_id)
    listing = "; ".join(f"{name}: {text}" for name, text in fields.items())
    raise AccessFormError(
        f"{server} refuses {what}: {listing or 'it does not say which field'}. Correct "
        "it and call again.",
        fields,
    )


def _said(detail: Any, request_id: str) -> str:
    """Return the words of the service, ready to follow a statement."""
    text = detail if isinstance(detail, str) else ""
    if isinstance(detail, dict):
        text = str(detail.get("message") or detail.get("error") or "")
    return f" ({_clean(text, request_id)})" if text else ""


def _clean(text: str, request_id: str = "") -> str:
    """Return text of a server without ids, URLs' queries and control characters.

    >>> _clean("no lfm_ab-12 at https://x.org/a?Signature=1 now")
    'no lfm_... at https://x.org/a?... now'
    """
    if request_id:
        text = text.replace(request_id, "...")
    text = re.sub(rf"{PREFIX}[\w.~-]+", f"{PREFIX}...", text)
    text = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1?...", text)
    return str(re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text))[:300]


def refuse_plain(url: str, what: str) -> None:
    """Raise unless an address is https, or of this machine."""
    parts = _parts(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return
    raise AccessServiceError(
        f"{what} is not https: {_shown(url)}. Nothing was sent. {ADVICE}"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(url: str) -> SplitResult:
    """Return the parts of an address; raise where it is not valid."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.port is None or parts.port >= 0:
            return parts
    shown = _clean(re.sub("//[^/]*@", "//", url))
    raise AccessServiceError(f"The address {shown!r} is not valid. {ADVICE}")


def _joined(base: str, target: str) -> SecretText:
    """Return the address that a redirect names; it may hold an id."""
    with contextlib.suppress(ValueError):
        return SecretText(urljoin(base, target))
    raise AccessServiceError(
        f"{_shown(base)} redirects to an address that is not valid. {ADVICE}"
    )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = _parts(url)
    return (
        parts.scheme,
        parts.hostname,
        parts.port or {"https": 443, "http": 80}.get(parts.scheme),
    )


def is_same_server(url: str, other_url: str) -> bool:
    """Return whether two addresses are those of one service."""
    paths = (_parts(server).path.rstrip("/") for server in (url, other_url))
    return _origin(url) == _origin(other_url) and next(paths) == next(paths)


def _host(url: str) -> str:
    """Return the host of an address with its port, without a password."""
    return _clean(_parts(url).netloc.rpartition("@")[2] or "none")


def _shown(url: str) -> str:
    """Return an address without query and password."""
    parts = _parts(url)
    return _clean(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
