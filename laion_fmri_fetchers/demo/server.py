"""A local S3 server that offers a folder as the LAION-fMRI bucket.

    serve_bucket ─▶ Server ─▶ werkzeug (threads, HTTP/1.1 keep-alive)
                                 └▶ Server.__call__: record, faults, denials
                                       └▶ moto's S3 application

Moto answers as S3 does but for a few details, which `Server` puts right on the
way: see `_object`, `_mend_listing` and `_cap_max_keys`. Moto runs as a server only:
nothing in the calling process is patched, no AWS settings are read or changed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import html
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlencode

from laion_fmri_fetchers.query.arguments import user_path

from .facts import DENIED

PART_SIZE = 8 * 2**20
"""Files of this size (bytes) or larger are stored in parts, as S3 clients do."""

UPLOADED = dt.datetime(2025, 6, 1, 12, 0, 0)
"""Last-Modified (UTC) of the files that a server starts with."""

_LENGTH, _RANGE = "content-length", "content-range"

HttpAnswer = tuple[int, dict[str, str], "bytes | Iterable[bytes]"]

_numbers = itertools.count()


@contextlib.contextmanager
def serve_bucket(
    folder: str | Path | None = None,
    *,
    name: str = "laion-fmri",
    port: int = 0,
    denied: re.Pattern[str] | str | None = DENIED,
) -> Iterator[Server]:
    """Offer a folder as an S3 bucket on this machine.

    Parameters
    ----------
    folder : path, optional
        What the bucket holds: a file's path below it is its key. By default the
        bucket is empty.
    name : str, default="laion-fmri"
        Name of the bucket. Servers running at once may share it; they do not see
        each other's objects.
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.
    denied : pattern or None, default=`DENIED`
        GET and HEAD of keys in which it is found answer 403; listings still show
        them.

    Yields
    ------
    Server
        The running server; its ``url`` is the base of listings and objects.

    Raises
    ------
    ImportError
        When moto is not installed.
    OSError
        When the port is taken.

    Examples
    --------
    >>> import urllib.request
    >>> with serve_bucket() as server:
    ...     server.put("README", b"hello")
    ...     print(urllib.request.urlopen(f"{server.url}/README").read())
    b'hello'
    """
    server = Server(name=name, port=port, denied=denied)
    try:
        if folder is not None:
            server.put_folder(folder)
        yield server
    finally:
        server.stop()


class Server:
    """A running S3 server; use `serve_bucket` to get one.

    Attributes
    ----------
    url : str
        Base such that ``{url}/{key}`` is an object and ``{url}/?list-type=2`` lists.
    requests : list of tuple
        ``(method, key, query string)`` of every request so far, the key decoded
        and empty for the bucket itself. Use ``requests.clear()`` or `reset`.
    deny_listing : bool
        Whether listings answer 403.
    faults : dict
        Key (empty for the bucket itself) -> ``(status, headers, body)`` sent
        instead of the object, body being bytes or an iterable of bytes; or a
        function of the WSGI environ that returns such an answer, or None to let
        the request through. Such answers close the connection, so that a body
        shorter than its Content-Length ends early.
    denied : re.Pattern or None
        GET and HEAD of keys in which it is found answer 403.
    """

    def __init__(
        self,
        *,
        name: str = "laion-fmri",
        port: int = 0,
        denied: re.Pattern[str] | str | None = DENIED,
    ) -> None:
        moto = _import_moto()
        self.name = name
        self.requests: list[tuple[str, str, str]] = []
        self.faults: dict[str, HttpAnswer | Callable[[dict], HttpAnswer | None]] = {}
        self.deny_listing = False
        self.denied = re.compile(denied) if denied is not None else None

        # Moto keeps all buckets of a process in one place, under unique names.
        self._bucket = f"{name}-{next(_numbers)}"
        self._lock = threading.Lock()
        self._backend = moto.backend
        self._backend.create_bucket(self._bucket, "us-west-2")
        self._public = moto.public
        self._app = moto.app
        self._http = moto.http_server(self, port)
        self.url = f"http://127.0.0.1:{self._http.port}/{quote(name)}"

    def __repr__(self) -> str:
        return f"<Server {self.url}>"

    def put(
        self,
        key: str,
        data: bytes,
        *,
        part_size: int = PART_SIZE,
        last_modified: dt.datetime | None = None,
    ) -> None:
        """Store an object, as if put in parts when it is as large as one or larger.

        Parameters
        ----------
        key : str
            Its key.
        data : bytes
            What it holds.
        part_size : int, default=8 MiB
            Bytes a part.
        last_modified : datetime, optional
            Its Last-Modified (UTC); by default now.
        """
        etag = _multipart_etag(data, part_size) if len(data) >= part_size else None
        with self._lock:
            stored = self._backend.put_object(self._bucket, key, data, etag=etag)
            stored.acl = self._public
            stored.disposed = True  # else moto warns when it is replaced
            if last_modified is not None:
                stored.last_modified = last_modified.replace(tzinfo=None)

    def put_folder(self, folder: str | Path) -> None:
        """Store every file below a folder under its path as key."""
        folder = Path(user_path(folder, "folder"))
        if not folder.is_dir():
            raise NotADirectoryError(f"No such folder to serve: {folder}")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = path.relative_to(folder).as_posix()
                self.put(key, path.read_bytes(), last_modified=UPLOADED)

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        with self._lock:
            self._backend.delete_object(self._bucket, key)

    def reset(self) -> None:
        """Forget recorded requests and faults, and allow listing."""
        self.requests.clear()
        self.faults.clear()
        self.deny_listing = False

    def stop(self) -> None:
        """Close the port and every connection, and drop the objects."""
        if not self._http.running:
            return
        self._http.stop()
        with self._lock:
            bucket = self._backend.get_bucket(self._bucket)
            for stored in list(bucket.keys.values()):
                stored.dispose()
            bucket.keys.clear()
            self._backend.delete_bucket(self._bucket)

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer one request: the WSGI application."""
        method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
        # As in S3, a plus sign in a path that is not percent-encoded is a space.
        path = unquote_plus(environ["RAW_URI"].partition("?")[0])
        bucket, _, key = path.removeprefix("/").partition("/")
        ours = bucket == self.name
        self.requests.append((method, key if ours else path, query))
        fault = self.faults.get(key) if ours else None
        answer = fault(environ) if callable(fault) else fault
        if answer is not None:
            return _send(answer, start_response, closing=True)
        if not ours:
            answer = _error(404, "NoSuchBucket", "The specified bucket does not exist")
        elif self._is_denied(method, key):
            answer = _error(403, "AccessDenied", "Access Denied")
        elif not key:
            answer = self._listing(environ, query)
        elif method == "GET" and not query:
            answer = self._object(environ, key)
        return _send(
            answer or self._ask_moto(environ, method, key, query), start_response
        )

    def _is_denied(self, method: str, key: str) -> bool:
        if method not in ("GET", "HEAD"):
            return True
        if not key:
            return self.deny_listing
        return self.denied is not None and self.denied.search(key) is not None

    def _object(self, environ: dict, key: str) -> HttpAnswer | None:
        """Return an object or a range of it, None when the answer is another.

        Moto copies whole objects to send a range, so it is asked for the headers
        only.
        """
        with self._lock:
            stored = self._backend.get_bucket(self._bucket).keys.get(key)
            status, headers, _ = self._ask_moto(environ, "HEAD", key, "")
        if status not in (200, 206):
            return None
        length = next(int(v) for k, v in headers.items() if k.lower() == _LENGTH)
        span = next((v for k, v in headers.items() if k.lower() == _RANGE), "bytes 0-")
        start = int(span.removeprefix("bytes ").partition("-")[0])
        return status, headers, _read(stored, start, start + length)

    def _listing(self, environ: dict, query: str) -> HttpAnswer:
        options = dict(parse_qsl(query, keep_blank_values=True))
        query = _cap_max_keys(query, options)
        method = environ["REQUEST_METHOD"]
        with self._lock:
            status, headers, body = self._ask_moto(environ, method, "", query)
        return status, headers, _mend_listing(body, options)

    def _ask_moto(
        self, environ: dict, method: str, key: str, query: str
    ) -> tuple[int, dict[str, str], bytes]:
        path = f"/{self._bucket}/{key}"
        address = f"{quote(path)}?{query}" if query else quote(path)
        environ = environ | {
            "REQUEST_METHOD": method,
            "PATH_INFO": path.encode().decode("latin-1"),
            "QUERY_STRING": query,
            "REQUEST_URI": address,
            "RAW_URI": address,
        }
        sent: list[Any] = []
        body = b"".join(self._app(environ, lambda *args: sent.extend(args[:2])))
        status, headers = int(sent[0].split()[0]), dict(sent[1])
        if method != "HEAD" and (not key or status >= 400):
            body = body.replace(self._bucket.encode(), self.name.encode())
            headers.pop("Content-Length", None)
        return status, headers, body


def _multipart_etag(data: bytes, part_size: int) -> str:
    """Return the ETag that S3 gives an object put in parts of a size."""
    starts = range(0, len(data), part_size)
    parts = [hashlib.md5(data[i : i + part_size]).digest() for i in starts]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _read(stored: Any, start: int, stop: int) -> Iterator[bytes]:
    """Yield a range of a stored object; less when the server is stopped."""
    file = stored._value_buffer
    while start < stop and not file.closed:
        with stored.lock:
            file.seek(start)
            chunk = file.read(min(stop - start, 2**20))
        yield chunk
        start += len(chunk)


def _cap_max_keys(query: str, options: dict[str, str]) -> str:
    """Limit a page to 1,000 keys as S3 does; moto gives as many as asked."""
    if options.get("max-keys", "").isdecimal() and int(options["max-keys"]) > 1000:
        return urlencode(options | {"max-keys": "1000"})
    return query


def _mend_listing(body: bytes, options: dict[str, str]) -> bytes:
    """Percent-encode a listing as S3 does.

    Moto encodes keys and prefixes, but writes a space as ``%20`` where S3 writes
    ``+``, and it leaves ``StartAfter`` as it is.
    """
    if options.get("encoding-type") != "url":
        return body

    def encoded(match: re.Match[bytes]) -> bytes:
        tag, text = match[1], match[2].decode()
        text = html.unescape(text) if tag == b"StartAfter" else unquote(text)
        return b"<%s>%s</%s>" % (tag, quote_plus(text, safe="/").encode(), tag)

    return re.sub(rb"<(Key|Prefix|StartAfter)>([^<]*)</\1>", encoded, body)


def _error(status: int, code: str, message: str) -> HttpAnswer:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message>"
        "<RequestId>DEMO0000DEMO0000</RequestId><HostId>demo</HostId></Error>"
    ).encode()
    headers = {"Content-Type": "application/xml", "Content-Length": str(len(body))}
    return status, headers, body


def _send(
    answer: HttpAnswer, start_response: Callable, *, closing: bool = False
) -> Iterable[bytes]:
    status, headers, body = answer
    headers = dict(headers)
    if isinstance(body, bytes):
        if not any(name.lower() == "content-length" for name in headers):
            headers["Content-Length"] = str(len(body))
        body = [body]
    if closing:
        headers["Connection"] = "close"
    start_response(str(status), list(headers.items()))
    return body


class _Moto(NamedTuple):
    """Modules imported when the first server starts."""

    app: Callable[..., Iterable[bytes]]
    backend: Any
    public: Any
    http_server: type


@functools.cache
def _import_moto() -> _Moto:
    try:
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import get_canned_acl, s3_backends
        from moto.server import create_backend_app

        from .handler import HttpServer
    except ImportError as error:
        raise ImportError(
            'The demo server needs moto: pip install "laion_fmri_fetchers[demo]"'
        ) from error
    return _Moto(
        app=create_backend_app("s3"),
        backend=s3_backends[DEFAULT_ACCOUNT_ID]["aws"],
        public=get_canned_acl("public-read"),
        http_server=HttpServer,
    )
