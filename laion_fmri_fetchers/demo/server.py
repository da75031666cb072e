"""A local S3 server that offers a folder as the LAION-fMRI bucket.

It answers as S3 does what anonymous readers ask: listings (version 2), GET and HEAD of
objects, ranges and conditions. The tests compare its answers with those of moto.
`LocalServer` is how it and the demo's other servers speak HTTP.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import http.server
import io
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote_plus, unquote, unquote_plus
from xml.sax.saxutils import escape

from laion_fmri_fetchers.query.arguments import user_path

from .facts import DENIED

PART_SIZE = 8 * 2**20
"""Files of this size (bytes) or larger are stored in parts, as S3 clients do."""

UPLOADED = dt.datetime(2025, 6, 1, 12, tzinfo=dt.timezone.utc)
"""Last-Modified of the files that a server starts with."""

NAME = "laion-fmri"
"""Name of the bucket."""

PAGE = 1000
"""Most keys on a page of a listing."""

Answer = tuple[int, dict[str, str], "bytes | Iterable[bytes]"]
"""Status, headers and body."""


class LocalServer(socketserver.ThreadingTCPServer):
    """A web server on 127.0.0.1, which runs until `stop` or the end of a ``with``.

    The standard library's server speaks HTTP/1.1, a thread a connection. A kind of
    server says what it answers in its method ``respond(environ)``, of a WSGI environ.

    Parameters
    ----------
    port : int, default=0
        Its port; 0 takes a free one.

    Raises
    ------
    OSError
        When the port is taken.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int = 0) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Connection)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(
            target=self.serve_forever, args=[0.02], name=self.url, daemon=True
        )
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def respond(self, environ: dict[str, Any]) -> Answer:
        """Return the answer to a request."""
        raise NotImplementedError


class _Connection(http.server.BaseHTTPRequestHandler):
    """A connection: its requests one after the other, until one side closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 2**16
    server: LocalServer

    def handle(self) -> None:
        self.server.connections.add(self.connection)
        # Clients that break off are what the tests of a downloader are about.
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Write nothing."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "RAW_URI": self.path,
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "wsgi.input": io.BytesIO(body),
        }
        for name, value in self.headers.items():
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        status, headers, content = self.server.respond(environ)
        if isinstance(content, bytes):
            headers = {"Content-Length": str(len(content)), **headers}
            content = [content]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            for chunk in content:
                self.wfile.write(chunk)
                self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815


class StoredObject(NamedTuple):
    """An object of a bucket."""

    value: bytes
    etag: str  # without quotation marks
    last_modified: dt.datetime


class Server(LocalServer):
    """Offer a folder as an S3 bucket on this machine, until the end of a ``with``.

    Parameters
    ----------
    folder : path, optional
        What the bucket holds: a file's path below it is its key. By default the
        bucket is empty.
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.
    denied : pattern or None, default=`DENIED`
        GET and HEAD of keys in which it is found answer 403; listings still show
        them.

    Attributes
    ----------
    url : str
        Base such that ``{url}/{key}`` is an object and ``{url}/?list-type=2`` lists.
    objects : dict
        Key -> `StoredObject`.
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

    Raises
    ------
    NotADirectoryError
        When there is no such folder.
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

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        port: int = 0,
        denied: re.Pattern[str] | str | None = DENIED,
    ) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.faults: dict[str, Answer | Callable[[dict], Answer | None]] = {}
        self.deny_listing = False
        self.denied = re.compile(denied) if denied is not None else None
        if folder is not None:
            folder = Path(user_path(folder, "folder"))
            if not folder.is_dir():
                raise NotADirectoryError(f"No such folder to serve: {folder}")
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    key = path.relative_to(folder).as_posix()
                    self.put(key, path.read_bytes(), last_modified=UPLOADED)
        super().__init__(port)
        self.url += f"/{NAME}"

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
        etag = hashlib.md5(data).hexdigest()
        if len(data) >= part_size:
            starts = range(0, len(data), part_size)
            parts = [hashlib.md5(data[i : i + part_size]).digest() for i in starts]
            etag = f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"
        modified = last_modified or dt.datetime.now(dt.timezone.utc)
        modified = modified.replace(microsecond=0, tzinfo=dt.timezone.utc)
        self.objects[key] = StoredObject(bytes(data), etag, modified)

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        self.objects.pop(key, None)

    def reset(self) -> None:
        """Forget recorded requests and faults, and allow listing."""
        self.requests.clear()
        self.faults.clear()
        self.deny_listing = False

    def respond(self, environ: dict[str, Any]) -> Answer:
        """Return the answer to a request."""
        method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
        # As in S3, a plus sign in a path that is not percent-encoded is a space.
        path = unquote_plus(environ["RAW_URI"].partition("?")[0])
        key = path.removeprefix(f"/{NAME}").removeprefix("/")
        self.requests.append((method, key, query))
        fault = self.faults.get(key)
        answer = fault(environ) if callable(fault) else fault
        if answer is not None:
            status, headers, body = answer
            return status, {**headers, "Connection": "close"}, body
        is_denied = bool(self.denied and self.denied.search(key))
        if method not in ("GET", "HEAD") or (is_denied if key else self.deny_listing):
            return s3_error(403, "AccessDenied", "Access Denied")
        return self.get_object(key, environ) if key else self._list_objects(query)

    def get_object(self, key: str, environ: dict[str, Any]) -> Answer:
        """Return an object or a range of it, or why not; nothing is denied here."""
        stored = self.objects.get(key)
        if stored is None:
            # Whether a key exists is told only to those who may list.
            if self.deny_listing:
                return s3_error(403, "AccessDenied", "Access Denied")
            message = "The specified key does not exist."
            return s3_error(404, "NoSuchKey", message, Key=key)
        headers = {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": format_datetime(stored.last_modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        match = environ.get("HTTP_IF_MATCH", "*").strip('"')
        if match not in ("*", stored.etag):
            message = "At least one of the pre-conditions you specified did not hold"
            return s3_error(412, "PreconditionFailed", message, Condition="If-Match")
        headers["Content-Type"] = "binary/octet-stream"
        data, size = stored.value, len(stored.value)
        asked = environ.get("HTTP_RANGE", "")
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
        first, last = span.groups() if span else ("", "")
        # What is no range, two ranges, or one that ends before it starts is ignored.
        if not (first or last) or (first and last and int(first) > int(last)):
            return 200, headers, data
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            message = "The requested range is not satisfiable"
            about = {"ActualObjectSize": str(size), "RangeRequested": asked}
            return s3_error(416, "InvalidRange", message, **about)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206, headers, data[start:stop]

    def _list_objects(self, query: str) -> Answer:
        """Return a page of a listing (ListObjectsV2)."""
        options = dict(parse_qsl(query, keep_blank_values=True))
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        max_keys = min(int(options.get("max-keys", PAGE)), PAGE)
        token = options.get("continuation-token", "")
        last = bytes.fromhex(token).decode()

        # Keys with their objects, common prefixes with None.
        page: dict[str, StoredObject | None] = {}
        following = ""
        for key in sorted(self.objects):
            if not key.startswith(prefix):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\0")
            entry = prefix + head + cut
            if entry <= last or entry in page:
                continue
            if len(page) >= max_keys:
                following = max(page, default="").encode().hex()
                break
            page[entry] = None if cut else self.objects[key]

        is_encoded = options.get("encoding-type") == "url"

        def encode(text: str) -> str:
            return quote_plus(text, safe="/") if is_encoded else text

        result: list[tuple[str, Any]] = [
            ("Name", NAME),
            ("Prefix", encode(prefix)),
            ("MaxKeys", str(max_keys)),
            ("KeyCount", str(len(page))),
            ("IsTruncated", str(bool(following)).lower()),
            ("Delimiter", encode(delimiter)),
            ("EncodingType", "url" if is_encoded else ""),
            ("ContinuationToken", token),
            ("NextContinuationToken", following),
        ]
        for entry, stored in page.items():
            if stored is None:
                result.append(("CommonPrefixes", [("Prefix", encode(entry))]))
                continue
            about = [
                ("Key", encode(entry)),
                ("LastModified", f"{stored.last_modified:%Y-%m-%dT%H:%M:%S.000Z}"),
                ("ETag", f'"{stored.etag}"'),
                ("Size", str(len(stored.value))),
                ("StorageClass", "STANDARD"),
            ]
            result.append(("Contents", about))
        return _xml_answer(200, "ListBucketResult", result)


serve_bucket = Server


def s3_error(status: int, code: str, message: str, **fields: str) -> Answer:
    """Return an error as S3 words it."""
    about = {"Code": code, "Message": message, **fields}
    about |= {"RequestId": "DEMO", "HostId": "demo"}
    return _xml_answer(status, "Error", list(about.items()))


def _xml_answer(status: int, tag: str, fields: list[tuple[str, Any]]) -> Answer:
    def xml(value: str | list[tuple[str, Any]]) -> str:
        if isinstance(value, str):
            return escape(value)
        # What is empty is left out, but for the prefix of a listing.
        shown = [(name, x) for name, x in value if x or name == "Prefix"]
        return "".join(f"<{name}>{xml(x)}</{name}>" for name, x in shown)

    space = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' * (tag != "Error")
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{tag}{space}>{xml(fields)}</{tag}>'
    )
    return status, {"Content-Type": "application/xml"}, body.encode()
