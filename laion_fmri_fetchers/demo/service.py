"""A local stimulus access service, with presigned URLs on a demo bucket.

The bucket hands out the archive of stimuli to who has a URL of the service that has
not expired.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote

from .facts import ARCHIVE, STIMULUS_TABLE
from .server import Answer, LocalServer, Server, s3_error

LIFETIME = 3600
"""Seconds for which a presigned URL is valid."""

REQUEST, REFRESH, MANIFEST = (
    "/api/v1/access/request",
    "/api/v1/refresh",
    "/api/v1/manifest",
)
"""Paths of the service."""

PAGES = ("/terms", "/privacy", "/takedown", "/request")

_FILES = (ARCHIVE, STIMULUS_TABLE)
"""Keys of the files of the service; the bucket gives away the table to anybody."""

# Fields of the form, and what the service says is valid.
_FORM: dict[str, Callable[[Any], bool]] = {
    "name": bool,
    "email": lambda value: "@" in str(value),
    "institution": bool,
    "pi_or_supervisor": lambda _: True,
    "research_purpose": lambda value: len(str(value)) >= 20,
    "accepted_terms": lambda value: value is True,
    "acknowledged_privacy": lambda value: value is True,
    "source": bool,
}

_JsonAnswer = tuple[int, dict[str, str], Any]


class AccessServer(LocalServer):
    """Offer the stimulus access service on this machine, until the end of a ``with``.

    Parameters
    ----------
    bucket : Server
        The demo bucket that holds the stimuli.

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
        Whether new requests are approved at once; else they wait for `approve`.
    pending_form : {"202", "status", "no files"}
        How the answer on a request that waits says so.
    objects : callable or None
        Function of the WSGI environ of a request for a gated object whose URL is
        valid; returns what is sent instead of the object, or None.

    Examples
    --------
    >>> with serve_bucket() as bucket, serve_access(bucket) as access:  # doctest: +SKIP
    ...     os.environ["LAION_FMRI_ACCESS_URL"] = access.url
    """

    def __init__(self, bucket: Server) -> None:
        self.bucket = bucket
        self.requests: list[tuple[str, str, dict | None]] = []
        self.answers: dict[str, Any] = {}
        self.terms_version = "1.0"
        self.approves = True
        self.pending_form = "202"
        self.objects: Callable[[dict], Answer | None] | None = None
        self._terms: dict[str, str] = {}  # id -> version of the terms it was given for
        self._waiting: set[str] = set()  # ids
        self._urls: dict[str, tuple[str, float]] = {}  # signature -> key, expiry
        super().__init__()

    # What the dataset's authors and the owner of an id do

    def approve(self) -> None:
        """Approve all requests that wait."""
        self._waiting.clear()

    def accept_terms(self, request_id: str) -> None:
        """Accept the terms in force, as its owner does in a browser."""
        self._terms[request_id] = self.terms_version

    def expire(self) -> None:
        """Let all URLs given so far expire."""
        self._urls.clear()

    def grant(self) -> str:
        """Return a new, approved id."""
        request_id = f"lfm_{secrets.token_urlsafe(24)}"
        self._terms[request_id] = self.terms_version
        return request_id

    # What the service answers

    def respond(self, environ: dict[str, Any]) -> Answer:
        """Return the answer to a request."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        body = None
        with contextlib.suppress(ValueError):
            body = json.loads(environ["wsgi.input"].read() or b"null")
        self.requests.append((method, path, body))
        answer = self.answers.get(path)
        answer = answer(body) if callable(answer) else answer
        status, headers, content = answer or self._answer(method, path, body)
        if isinstance(content, bytes):
            return status, {"Content-Type": "text/plain", **headers}, content
        headers = {"Content-Type": "application/json", **headers}
        return status, headers, json.dumps(content).encode()

    def _answer(self, method: str, path: str, body: Any) -> _JsonAnswer:
        form = body if isinstance(body, dict) else {}
        if (method, path) == ("GET", MANIFEST):
            files = [self._describe(key) for key in _FILES]
            return (
                200,
                {},
                {"current_terms_version": self.terms_version, "files": files},
            )
        if (method, path) == ("POST", REQUEST):
            return self._request(form)
        if (method, path) == ("POST", REFRESH):
            return self._refresh(form)
        if method == "GET" and path in PAGES:
            return 200, {}, f"Demo page {path}, terms {self.terms_version}".encode()
        return 404, {}, {"detail": "Not Found"}

    def _request(self, form: dict[str, Any]) -> _JsonAnswer:
        wrong = [name for name in _FORM if name not in form]
        wrong += [x for x in form if x in _FORM and not _FORM[x](form[x])]
        if form.get("terms_version") != self.terms_version:
            wrong.append("terms_version")
        if wrong:
            return _invalid(*wrong)
        request_id = self.grant()
        if not self.approves:
            self._waiting.add(request_id)
        status, headers, content = self._hand_out(request_id)
        return status, headers, {"request_id": request_id, **content}

    def _refresh(self, form: dict[str, Any]) -> _JsonAnswer:
        request_id = str(form.get("request_id"))
        if request_id not in self._terms:
            return 404, {}, {"detail": "request_id not found"}
        if form.get("dataset_version") != "v1":
            return _invalid("dataset_version")
        if self._terms[request_id] != self.terms_version:
            detail = {
                "error": "terms_outdated",
                "accept_url": f"{self.url}/terms/accept",
                "current_terms_version": self.terms_version,
            }
            return 403, {}, {"detail": detail}
        return self._hand_out(request_id)

    def _hand_out(self, request_id: str) -> _JsonAnswer:
        """Return the files with their URLs, or that access is not granted yet."""
        expires = time.time() + LIFETIME
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires))
        if request_id in self._waiting:
            if self.pending_form == "202":
                return 202, {}, {"detail": "waiting for approval"}
            if self.pending_form == "status":
                return 200, {}, {"status": "pending", "expires_at": None, "files": []}
            return 200, {}, {"expires_at": expiry}
        files = []
        for key in _FILES:
            signature = secrets.token_hex(32)
            self._urls[signature] = key, expires
            self.bucket.faults[key] = self._answer_signed
            query = f"X-Amz-Credential=DEMO&X-Amz-Signature={signature}"
            url = f"{self.bucket.url}/{quote(key)}?{query}"
            files.append({**self._describe(key), "url": url})
        return 200, {}, {"expires_at": expiry, "files": files}

    def _describe(self, key: str) -> dict[str, Any]:
        data = self.bucket.objects[key].value
        digest = hashlib.sha256(data).hexdigest()
        return {"name": key.rpartition("/")[2], "size": len(data), "sha256": digest}

    def _answer_signed(self, environ: dict) -> Answer | None:
        """Return what the bucket answers to a presigned URL, None if it is not one."""
        (signature,) = parse_qs(environ["QUERY_STRING"]).get("X-Amz-Signature", [""])
        if not signature:
            return None
        key, expires = self._urls.get(signature, ("", 0.0))
        if expires < time.time() or not environ["PATH_INFO"].endswith(key):
            return s3_error(403, "AccessDenied", "Request has expired")
        given = self.objects(environ) if self.objects else None
        return given or self.bucket.get_object(key, environ)


serve_access = AccessServer


def _invalid(*names: str) -> _JsonAnswer:
    """Return what is wrong with fields of a form, as the service says it."""
    message = "Field required, or its value is not valid"
    detail = [
        {"loc": ["body", name], "msg": message, "type": "value_error"} for name in names
    ]
    return 422, {}, {"detail": detail}
