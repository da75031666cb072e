"""The access service over HTTP: what it is asked, and its errors as ours.

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
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.util import Retry

from .exceptions import (
    AccessFormError,
    AccessNotFoundError,
    AccessRateLimitedError,
    AccessRevokedError,
    AccessServiceError,
    TermsOutdatedError,
)

DEFAULT_ACCESS_URL = "https://laion-fmri.hebartlab.com"
URL_VARIABLE = "LAION_FMRI_ACCESS_URL"
PREFIX = "lfm_"
"""What a ``request_id`` begins with."""

_FIRST_WAIT = 0.5
_CONNECT_TIMEOUT = 10.0
_MOST_REDIRECTS = 4
_BUSY = frozenset({500, 502, 503, 504})

ADVICE = (
    f"Check {URL_VARIABLE} if you set it; else the service may have changed, see "
    f"{DEFAULT_ACCESS_URL}"
)


class SecretText(str):
    """Text that a ``repr`` does not show, as in a traceback with local variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'...'"


class _Secret(dict):
    """A dict whose ``repr`` does not show what is in it."""

    def __repr__(self) -> str:
        return f"<{len(self)} fields, not shown>"


class Answer(NamedTuple):
    """Status and content of an answer, and the seconds to wait that it asks for."""

    status: int
    content: _Secret
    retry_after: float | None


def server_url() -> str:
    """Return the address of the access service, without a slash at the end."""
    return (os.environ.get(URL_VARIABLE) or DEFAULT_ACCESS_URL).rstrip("/")


def call(
    server: str,
    path: str,
    what: str,
    body: dict[str, Any] | None = None,
    *,
    timeout: float,
    tries: int = 1,
) -> Answer:
    """Ask the service; again after a while where that may help."""
    body = None if body is None else _Secret(body)
    url = server.rstrip("/") + path
    for i in range(tries):
        if i:
            time.sleep(_FIRST_WAIT * 2 ** (i - 1))
        response = _send(url, body, what, timeout)
        if not isinstance(response, str) and response.status_code not in _BUSY:
            break
    if isinstance(response, str):
        raise AccessServiceError(
            f"{server} gives no answer to the call for {what} ({response}). Check the "
            "network; what is on disk can be had with mode='offline'."
        )
    return _parsed(response, server, what)


def _send(
    url: str, body: dict[str, Any] | None, what: str, timeout: float
) -> requests.Response | str:
    """Send a request; where there is no answer, return why.

    With a body, which may hold a secret, no other host is followed to.
    """
    first = url
    for _ in range(_MOST_REDIRECTS):
        refuse_plain(url, f"The address for {what}")
        response = _send_once(url, body, timeout)
        if isinstance(response, str) or not 300 <= response.status_code < 400:
            return response
        url = urljoin(url, response.headers.get("Location", ""))
        if body is None:
            continue
        if _origin(url) != _origin(first):
            raise AccessServiceError(
                f"{_shown(first)} redirects to another host, {_host(url)}, to which "
                f"nothing was sent. {ADVICE}"
            )
        if response.status_code not in (307, 308):
            break
    raise AccessServiceError(
        f"{_shown(first)} answers with redirects that lead nowhere. {ADVICE}"
    )


def _send_once(
    url: str, body: dict[str, Any] | None, timeout: float
) -> requests.Response | str:
    try:
        return requests.request(
            "GET" if body is None else "POST",
            url,
            json=body,
            headers={"Accept": "application/json"},
            timeout=(min(timeout, _CONNECT_TIMEOUT), timeout),
            allow_redirects=False,
        )
    except requests.exceptions.SSLError:
        return "TLS fails"
    except requests.Timeout:
        return f"nothing for {timeout:g} s"
    except requests.ConnectionError:
        return "no connection"
    except (requests.RequestException, ValueError) as error:
        return type(error).__name__


def _parsed(response: requests.Response, server: str, what: str) -> Answer:
    """Return status and content of an answer; a success must be a JSON object."""
    content: Any = None
    with contextlib.suppress(ValueError):
        content = json.loads(response.content)
    status = response.status_code
    if not isinstance(content, dict):
        if status < 400 and not (status == 202 and not response.content):
            raise AccessServiceError(
                f"{server} answers the call for {what} with what is no JSON object "
                f"(status {status}). {ADVICE}"
            )
        content = {}
    asked = None
    with contextlib.suppress(Exception):
        asked = Retry().parse_retry_after(response.headers.get("Retry-After", ""))
    return Answer(status, _hidden(content), asked)


def _hidden(value: Any) -> Any:
    """Return parsed JSON such that no ``repr`` shows what is in it."""
    if isinstance(value, dict):
        return _Secret({name: _hidden(inner) for name, inner in value.items()})
    if isinstance(value, list):
        return [_hidden(inner) for inner in value]
    return SecretText(value) if isinstance(value, str) else value


def raise_for_status(
    answer: Answer, server: str, what: str, request_id: str = ""
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
        when = "later"
        if wait is not None:
            at = dt.datetime.now() + dt.timedelta(seconds=wait)
            when = f"in {wait:g} s, at {at:%H:%M:%S}"
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
    url = detail.get("accept_url")
    url = urljoin(f"{server}/", url if isinstance(url, str) else "terms/accept")
    if PREFIX in url or (request_id and request_id in url):
        url = url.partition("?")[0]  # the id in it is a secret
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
    for one in detail if isinstance(detail, list) else []:
        if isinstance(one, dict):
            loc = one.get("loc")
            names = [n for n in loc if isinstance(n, str)] if loc else []
            name = _clean(names[-1], request_id) if names else "form"
            fields[name] = _clean(str(one.get("msg")), request_id)
    listing = "; ".join(f"{name}: {text}" for name, text in fields.items())
    raise AccessFormError(
        f"{server} refuses {what}: {listing or 'it does not say which field'}. Mend it "
        "and call again.",
        fields,
    )


def _said(detail: Any, request_id: str) -> str:
    """Return what the service says, ready to follow a statement."""
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
        text = text.replace(request_id, f"{PREFIX}...")
    text = re.sub(rf"{PREFIX}[\w.~-]+", f"{PREFIX}...", text)
    text = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1?...", text)
    return str(re.sub(r"[^\x20-\x7e\xa0-\uffff]+", " ", text))[:300]


def refuse_plain(url: str, what: str) -> None:
    """Raise unless an address is https, or of this machine."""
    parts = urlsplit(url)
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


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        parts.hostname,
        parts.port or {"https": 443, "http": 80}.get(parts.scheme),
    )


def is_same_server(one: str, other: str) -> bool:
    """Tell whether two addresses are those of one service."""
    paths = (urlsplit(url).path.rstrip("/") for url in (one, other))
    return _origin(one) == _origin(other) and next(paths) == next(paths)


def _host(url: str) -> str:
    return _clean(urlsplit(url).hostname or "none")


def _shown(url: str) -> str:
    """Return an address without query and password."""
    parts = urlsplit(url)
    return _clean(f"{parts.scheme}://{parts.hostname or ''}{parts.path}")
