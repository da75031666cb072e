"""A local stimulus access service, with presigned URLs on a demo bucket.

    serve_access ─▶ AccessServer.__call__   /api/v1/manifest, access/request, refresh
                      └ _files              presigned URLs: path, expiry, signature
    bucket's gated archive ─▶ _gate         the signature is checked: 200, 206 or 403

The service keeps only hashes of the ids it gave, as the real one does.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from .facts import ARCHIVE, STIMULUS_TABLE
from .server import HttpAnswer, Server

LIFETIME = 3600
"""Seconds for which a presigned URL is valid."""

REQUEST, REFRESH, MANIFEST = (
    "/api/v1/access/request",
    "/api/v1/refresh",
    "/api/v1/manifest",
)
"""Paths of the service."""

_FILES = (ARCHIVE, STIMULUS_TABLE)
"""Keys of the files of the service; the bucket gives away the table to anybody."""

_FIELDS = {
    "name": 1,
    "email": 3,
    "institution": 1,
    "research_purpose": 20,
    "terms_version": 1,
    "source": 1,
}


@contextlib.contextmanager
def serve_access(
    bucket: Server,
    *,
    terms_version: str = "1.0",
    approves: bool = True,
    port: int = 0,
) -> Iterator[AccessServer]:
    """Offer the stimulus access service on this machine.

    Parameters
    ----------
    bucket : Server
        The demo bucket that holds the stimuli.
    terms_version : str, default="1.0"
        The version of the terms in force.
    approves : bool, default=True
        Whether requests are approved at once; else they wait for
        `AccessServer.approve`.
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.

    Yields
    ------
    AccessServer
        The server, which is stopped at the end.

    Examples
    --------
    >>> with serve_bucket() as bucket, serve_access(bucket) as access:  # doctest: +SKIP
    ...     os.environ["LAION_FMRI_ACCESS_URL"] = access.url
    """
    server = AccessServer(
        bucket, terms_version=terms_version, approves=approves, port=port
    )
    try:
        yield server
    finally:
        server.stop()


class AccessServer:
    """A stimulus access service; see `serve_access` for how to start one.

    Attributes
    ----------
    url : str
        Its address, for ``LAION_FMRI_ACCESS_URL``.
    requests : list of tuple
        ``(method, path, body)`` of every request so far; body is a dict or None.
    answers : dict
        Path -> ``(status, headers, content)`` that is sent instead of the service's
        own answer, content being JSON or bytes; or a function of the body that
        returns such an answer, or None.
    terms_version : str
        The version of the terms in force; set it to let the terms change.
    approves : bool
        Whether new requests are approved at once.
    pending_form : {"202", "status", "no files"}
        How the answer on a request that waits says so.
    lifetime : float
        Seconds for which presigned URLs are valid.
    objects : callable or None
        Function of the WSGI environ of a request for a gated object whose URL is
        valid; returns what is sent instead of the object, or None.
    """

    def __init__(
        self,
        bucket: Server,
        *,
        terms_version: str = "1.0",
        approves: bool = True,
        port: int = 0,
    ) -> None:
        from .handler import HttpServer

        self.bucket = bucket
        self.requests: list[tuple[str, str, dict | None]] = []
        self.answers: dict[str, Any] = {}
        self.terms_version = terms_version
        self.approves = approves
        self.pending_form = "202"
        self.lifetime: float = LIFETIME
        self.objects: Callable[[dict], HttpAnswer | None] | None = None
        self._key = secrets.token_bytes(16)
        self._granted: dict[str, dict[str, Any]] = {}
        self._http = HttpServer(self, port)
        self.url = f"http://127.0.0.1:{self._http.port}"

    def __repr__(self) -> str:
        return f"<AccessServer {self.url}>"

    # What the publishers do

    def approve(self) -> None:
        """Approve all requests that wait."""
        for grant in self._granted.values():
            grant["approved"] = True

    def accept_terms(self, request_id: str) -> None:
        """Accept the terms in force, as its owner does in a browser."""
        self._granted[_hash(request_id)]["terms_version"] = self.terms_version

    def revoke(self, request_id: str) -> None:
        """Withdraw an id."""
        self._granted[_hash(request_id)]["revoked"] = True

    def forget(self, request_id: str) -> None:
        """Forget an id."""
        del self._granted[_hash(request_id)]

    def expire(self) -> None:
        """Let all URLs given so far expire."""
        self._key = secrets.token_bytes(16)

    def grant(self) -> str:
        """Return a new, approved id."""
        request_id = f"lfm_{secrets.token_urlsafe(24)}"
        self._granted[_hash(request_id)] = {
            "approved": True,
            "terms_version": self.terms_version,
        }
        return request_id

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._http.running:
            self._http.stop()

    # HTTP

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer one request: the WSGI application."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        body = None
        with contextlib.suppress(ValueError):
            body = json.loads(environ["wsgi.input"].read() or b"null")
        self.requests.append((method, path, body))
        answer = self.answers.get(path)
        answer = answer(body) if callable(answer) else answer
        status, headers, content = answer or self._answer(method, path, body)
        kind = "text/plain" if isinstance(content, bytes) else "application/json"
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **headers}
        start_response(str(status), list(headers.items()))
        return [content]

    def _answer(
        self, method: str, path: str, body: Any
    ) -> tuple[int, dict[str, str], Any]:
        if (method, path) == ("GET", MANIFEST):
            return 200, {}, self._manifest()
        if (method, path) == ("POST", REQUEST):
            return self._request(body if isinstance(body, dict) else {})
        if (method, path) == ("POST", REFRESH):
            return self._refresh(body if isinstance(body, dict) else {})
        if method == "GET" and path in ("/terms", "/privacy", "/takedown", "/request"):
            return 200, {}, f"Demo page {path}, terms {self.terms_version}".encode()
        return 404, {}, {"detail": "Not Found"}

    def _request(self, form: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        wrong = [
            _wrong(name, f"String should have at least {least} characters")
            for name, least in _FIELDS.items()
            if not isinstance(form.get(name), str) or len(form[name]) < least
        ]
        for name in ("accepted_terms", "acknowledged_privacy"):
            if name not in form:
                wrong.append(_wrong(name, "Field required"))
            elif form[name] is not True:
                wrong.append(_wrong(name, "Input should be True"))
        if "pi_or_supervisor" not in form:
            wrong.append(_wrong("pi_or_supervisor", "Field required"))
        if "@" not in str(form.get("email")):
            wrong.append(_wrong("email", "value is not a valid email address"))
        if form.get("terms_version") != self.terms_version:
            wrong.append(_wrong("terms_version", "not the version in force"))
        if wrong:
            return 422, {}, {"detail": wrong}
        request_id = self.grant()
        self._granted[_hash(request_id)]["approved"] = self.approves
        status, headers, content = self._grant(self.approves)
        return status, headers, {"request_id": request_id, **content}

    def _refresh(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        granted = self._granted.get(_hash(str(body.get("request_id"))))
        if granted is None:
            return 404, {}, {"detail": "request_id not found"}
        if body.get("dataset_version") != "v1":
            return 422, {}, {"detail": [_wrong("dataset_version", "unknown")]}
        if granted.get("revoked"):
            return 403, {}, {"detail": "This request_id has been revoked"}
        if granted["terms_version"] != self.terms_version:
            detail = {
                "error": "terms_outdated",
                "accept_url": f"{self.url}/terms/accept",
                "current_terms_version": self.terms_version,
            }
            return 403, {}, {"detail": detail}
        return self._grant(granted["approved"])

    def _grant(self, approved: bool) -> tuple[int, dict[str, str], dict[str, Any]]:
        expires = time.time() + self.lifetime
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires))
        if approved:
            return 200, {}, {"expires_at": expiry, "files": self._files()}
        if self.pending_form == "202":
            return 202, {}, {"detail": "waiting for approval"}
        if self.pending_form == "status":
            return 200, {}, {"status": "pending", "expires_at": None, "files": []}
        return 200, {}, {"expires_at": expiry}

    # Files

    def _manifest(self) -> dict[str, Any]:
        return {
            "current_terms_version": self.terms_version,
            "files": [self._about(key) for key in _FILES],
        }

    def _about(self, key: str) -> dict[str, Any]:
        data = self._data(key)
        return {
            "name": key.rpartition("/")[2],
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def _files(self) -> list[dict[str, Any]]:
        for key in _FILES:
            self.bucket.faults[key] = self._gate(key)
        return [{**self._about(key), "url": self._presigned(key)} for key in _FILES]

    def _data(self, key: str) -> bytes:
        stored = self.bucket._backend.get_bucket(self.bucket._bucket).keys[key]
        return stored.value

    def _presigned(self, key: str) -> str:
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": "DEMO/20250601/us-west-2/s3/aws4_request",
            "X-Amz-Expires": str(time.time() + self.lifetime),
            "X-Amz-SignedHeaders": "host",
        }
        query["X-Amz-Signature"] = self._signature(key, query["X-Amz-Expires"])
        return f"{self.bucket.url}/{quote(key)}?{urlencode(query)}"

    def _signature(self, key: str, expires: str) -> str:
        signed = f"{key}\n{expires}".encode()
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()

    def _gate(self, key: str) -> Callable[[dict], HttpAnswer | None]:
        """Return the function by which the bucket answers for a gated object."""

        def answer(environ: dict) -> HttpAnswer | None:
            query = parse_qs(environ["QUERY_STRING"])
            signature = query.get("X-Amz-Signature", [""])[0]
            if not signature:
                return None
            expires = query.get("X-Amz-Expires", ["0"])[0]
            is_ours = hmac.compare_digest(signature, self._signature(key, expires))
            if not is_ours or float(expires) < time.time():
                return _expired()
            given = self.objects(environ) if self.objects else None
            return given or self._ranged(key, environ)

        return answer

    def _ranged(self, key: str, environ: dict) -> HttpAnswer:
        """Return an object or a range of it."""
        data = self._data(key)
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        wanted = environ.get("HTTP_IF_MATCH", "").strip('"')
        if wanted not in ("", digest):
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", environ.get("HTTP_RANGE", ""))
        if not span:
            return 200, headers, data
        start = int(span[1])
        part = data[start : int(span[2]) + 1 if span[2] else None]
        if not part:
            return 416, {}, b"<Error><Code>InvalidRange</Code></Error>"
        stop = start + len(part)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return 206, headers, part


def _hash(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()


def _wrong(name: str, message: str) -> dict[str, Any]:
    return {"loc": ["body", name], "msg": message, "type": "value_error"}


def _expired() -> HttpAnswer:
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>'
        b"<Message>Request has expired</Message></Error>"
    )
    return 403, {"Content-Type": "application/xml"}, body
