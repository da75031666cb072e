"""A local S3 server that offers a folder as the LAION-fMRI bucket.

It answers as S3 does what anonymous readers ask: listings (version 2), GET and HEAD of
objects, ranges and conditions. The tests compare its answers with those of moto.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Callable
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, quote_plus, unquote_plus
from xml.sax.saxutils import escape

from laion_fmri_fetchers.query.arguments import user_path

from .facts import DENIED
from .web import Answer, LocalServer

PART_SIZE = 8 * 2**20
"""Files of this size (bytes) or larger are stored in parts, as S3 clients do."""

UPLOADED = dt.datetime(2025, 6, 1, 12, tzinfo=dt.timezone.utc)
"""Last-Modified of the files that a server starts with."""

PAGE = 1000
"""Most keys on a page of a listing."""


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
    name : str, default="laion-fmri"
        Name of the bucket. Servers running at once may share it; they do not see
        each other's objects.
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
        name: str = "laion-fmri",
        port: int = 0,
        denied: re.Pattern[str] | str | None = DENIED,
    ) -> None:
        self.name = name
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
        super().__init__(port, f"/{quote(name)}")

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
        bucket, _, key = path.removeprefix("/").partition("/")
        if bucket != self.name:
            self.requests.append((method, path, query))
            return s3_error(404, "NoSuchBucket", "The specified bucket does not exist")
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
        # Of both kinds of conditions the ETag goes before the time.
        match = environ.get("HTTP_IF_MATCH", stored.etag).strip('"')
        if match not in ("*", stored.etag):
            message = "At least one of the pre-conditions you specified did not hold"
            return s3_error(412, "PreconditionFailed", message, Condition="If-Match")
        known, since = (
            environ.get(f"HTTP_IF_{name}") for name in ("NONE_MATCH", "MODIFIED_SINCE")
        )
        if known and known.strip('"') in ("*", stored.etag):
            return 304, headers, b""
        is_newer = since and stored.last_modified > parsedate_to_datetime(since)
        if since and not (known or is_newer):
            return 304, headers, b""
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
        try:
            max_keys = min(int(options.get("max-keys", PAGE)), PAGE)
            shown, following = self._page(options, max_keys)
        except ValueError:
            message = "max-keys or continuation-token is not valid"
            return s3_error(400, "InvalidArgument", message)
        is_encoded = options.get("encoding-type") == "url"

        def encode(text: str) -> str:
            return quote_plus(text, safe="/") if is_encoded else text

        fields = {
            "Name": self.name,
            "Prefix": encode(options.get("prefix", "")),
            "MaxKeys": str(max_keys),
            "KeyCount": str(len(shown)),
            "IsTruncated": str(bool(following)).lower(),
            "Delimiter": encode(options.get("delimiter", "")),
            "StartAfter": encode(options.get("start-after", "")),
            "EncodingType": "url" if is_encoded else "",
            "ContinuationToken": options.get("continuation-token", ""),
            "NextContinuationToken": following,
        }
        fields = {name: x for name, x in fields.items() if x or name == "Prefix"}
        parts = []
        for entry, stored in shown.items():
            if stored is None:
                parts.append(_xml("CommonPrefixes", {"Prefix": encode(entry)}))
                continue
            about = {
                "Key": encode(entry),
                "LastModified": f"{stored.last_modified:%Y-%m-%dT%H:%M:%S.000Z}",
                "ETag": f'"{stored.etag}"',
                "Size": str(len(stored.value)),
                "StorageClass": "STANDARD",
            }
            parts.append(_xml("Contents", about))
        space = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        return _document(200, _xml("ListBucketResult", fields, "".join(parts), space))

    def _page(
        self, options: dict[str, str], max_keys: int
    ) -> tuple[dict[str, StoredObject | None], str]:
        """Return keys, common prefixes (None) and the token of the next page."""
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        last = bytes.fromhex(options.get("continuation-token", "")).decode()
        page: dict[str, StoredObject | None] = {}
        for key, stored in sorted(self.objects.items()):
            if not key.startswith(prefix) or key <= options.get("start-after", ""):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter or "\0")
            entry = prefix + head + cut
            if entry <= last or entry in page:
                continue
            if len(page) == max_keys:
                return page, list(page)[-1].encode().hex() if page else ""
            page[entry] = None if cut else stored
        return page, ""


serve_bucket = Server


def _xml(tag: str, fields: dict[str, str], more: str = "", attributes: str = "") -> str:
    inside = "".join(f"<{name}>{escape(x)}</{name}>" for name, x in fields.items())
    return f"<{tag}{attributes}>{inside}{more}</{tag}>"


def _document(status: int, xml: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode()
    return status, {"Content-Type": "application/xml"}, body


def s3_error(status: int, code: str, message: str, **fields: str) -> Answer:
    """Return an error as S3 words it."""
    about = {"Code": code, "Message": message, **fields}
    return _document(
        status, _xml("Error", {**about, "RequestId": "DEMO", "HostId": "demo"})
    )
