"""A local stimulus access service, with presigned URLs on a demo bucket.

The bucket hands out the archive of stimuli to who has a URL of the service that has
not expired. As the real one, the service keeps only hashes of the ids that it gave.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from .facts import ARCHIVE, STIMULUS_TABLE
from .server import Server, s3_error
from .web import Answer, LocalServer

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

_SHORTEST = {
    "name": 1,
    "email": 3,
    "institution": 1,
    "research_purpose": 20,
    "terms_version": 1,
    "source": 1,
}
"""Fields of the form that are text, and how many characters they take at least."""

_JsonAnswer = tuple[int, dict[str, str], Any]


class AccessServer(LocalServer):
    """Offer the stimulus access service on this machine, until the end of a ``with``.

    Parameters
    ----------
    bucket : Server
        The demo bucket that holds the stimuli.
    terms_version : str, default="1.0"
        The version of the terms in force.
    approves : bool, default=True
        Whether requests are approved at once; else they wait for `approve`.
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.

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

    Examples
    --------
    >>> with serve_bucket() as bucket, serve_access(bucket) as access:  # doctest: +SKIP
    ...     os.environ["LAION_FMRI_ACCESS_URL"] = access.url
    """

    def __init__(
        self,
        bucket: Server,
        *,
        terms_version: str = "1.0",
        approves: bool = True,
        port: int = 0,
    ) -> None:
        self.bucket = bucket
        self.requests: list[tuple[str, str, dict | None]] = []
        self.answers: dict[str, Any] = {}
        self.terms_version = terms_version
        self.approves = approves
        self.pending_form = "202"
        self.lifetime: float = LIFETIME
        self.objects: Callable[[dict], Answer | None] | None = None
        self._key = secrets.token_bytes(16)
        self._granted: dict[str, dict[str, Any]] = {}
        super().__init__(port)

    # What the dataset's authors and the owner of an id do

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
            return 200, {}, self._manifest()
        if (method, path) == ("POST", REQUEST):
            return self._request(form)
        if (method, path) == ("POST", REFRESH):
            return self._refresh(form)
        if method == "GET" and path in PAGES:
            return 200, {}, f"Demo page {path}, terms {self.terms_version}".encode()
        return 404, {}, {"detail": "Not Found"}

    def _manifest(self) -> dict[str, Any]:
        files = [self._describe(key) for key in _FILES]
        return {"current_terms_version": self.terms_version, "files": files}

    def _request(self, form: dict[str, Any]) -> _JsonAnswer:
        wrong = {
            name: f"String should have at least {n} characters"
            for name, n in _SHORTEST.items()
            if not isinstance(form.get(name), str) or len(form[name]) < n
        }
        for name in ("accepted_terms", "acknowledged_privacy", "pi_or_supervisor"):
            if name not in form:
                wrong[name] = "Field required"
            elif name != "pi_or_supervisor" and form[name] is not True:
                wrong[name] = "Input should be True"
        if "@" not in str(form.get("email")):
            wrong["email"] = "value is not a valid email address"
        if form.get("terms_version") != self.terms_version:
            wrong["terms_version"] = "not the version in force"
        if wrong:
            return 422, {}, {"detail": _invalid(**wrong)}
        request_id = self.grant()
        self._granted[_hash(request_id)]["approved"] = self.approves
        status, headers, content = self._hand_out(self.approves)
        return status, headers, {"request_id": request_id, **content}

    def _refresh(self, body: dict[str, Any]) -> _JsonAnswer:
        granted = self._granted.get(_hash(str(body.get("request_id"))))
        if granted is None:
            return 404, {}, {"detail": "request_id not found"}
        if body.get("dataset_version") != "v1":
            return 422, {}, {"detail": _invalid(dataset_version="unknown")}
        if granted.get("revoked"):
            return 403, {}, {"detail": "This request_id has been revoked"}
        if granted["terms_version"] != self.terms_version:
            detail = {
                "error": "terms_outdated",
                "accept_url": f"{self.url}/terms/accept",
                "current_terms_version": self.terms_version,
            }
            return 403, {}, {"detail": detail}
        return self._hand_out(granted["approved"])

    def _hand_out(self, approved: bool) -> _JsonAnswer:
        """Return the files with their URLs, or that access is not granted yet."""
        expires = time.time() + self.lifetime
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires))
        if approved:
            files = []
            for key in _FILES:
                self.bucket.faults[key] = self._gate(key)
                files.append({**self._describe(key), "url": self._presign(key)})
            return 200, {}, {"expires_at": expiry, "files": files}
        if self.pending_form == "202":
            return 202, {}, {"detail": "waiting for approval"}
        if self.pending_form == "status":
            return 200, {}, {"status": "pending", "expires_at": None, "files": []}
        return 200, {}, {"expires_at": expiry}

    def _describe(self, key: str) -> dict[str, Any]:
        data = self.bucket.objects[key].value
        digest = hashlib.sha256(data).hexdigest()
        return {"name": key.rpartition("/")[2], "size": len(data), "sha256": digest}

    # Presigned URLs

    def _presign(self, key: str) -> str:
        expires = str(time.time() + self.lifetime)
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": "DEMO/20250601/us-west-2/s3/aws4_request",
            "X-Amz-Expires": expires,
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": self._signature(key, expires),
        }
        return f"{self.bucket.url}/{quote(key)}?{urlencode(query)}"

    def _signature(self, key: str, expires: str) -> str:
        signed = f"{key}\n{expires}".encode()
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()

    def _gate(self, key: str) -> Callable[[dict], Answer | None]:
        """Return the function by which the bucket answers for a gated object."""

        def answer(environ: dict) -> Answer | None:
            query = parse_qs(environ["QUERY_STRING"])
            if "X-Amz-Signature" not in query:
                return None
            expires = query.get("X-Amz-Expires", ["0"])[0]
            is_ours = query["X-Amz-Signature"] == [self._signature(key, expires)]
            if not is_ours or float(expires) < time.time():
                return s3_error(403, "AccessDenied", "Request has expired")
            given = self.objects(environ) if self.objects else None
            return given or self.bucket.get_object(key, environ)

        return answer


serve_access = AccessServer


def _hash(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()


def _invalid(**messages: str) -> list[dict[str, Any]]:
    """Return what is wrong with fields of a form, by name, as the service says it."""
    return [
        {"loc": ["body", name], "msg": message, "type": "value_error"}
        for name, message in messages.items()
    ]
