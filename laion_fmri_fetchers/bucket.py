"""The bucket over HTTP: where it is, and listing what it holds.

The bucket is public and read anonymously, with S3's ListObjectsV2. Another S3
server, such as a lab's mirror, is named by ``LAION_FMRI_BUCKET_URL``, a base such
that ``{base}/{key}`` is an object and ``{base}/?list-type=2`` lists; virtual-host
and path-style addresses both fit that.

The HTTP client is imported when it is first needed: offline calls do without it.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree as ET

from .exceptions import BucketError, InvalidQueryError
from .messages import tell

if TYPE_CHECKING:
    import requests

DEFAULT_BUCKET_URL = "https://laion-fmri.s3.us-west-2.amazonaws.com"

_TRIES_BUSY = 6
_TRIES_NO_ANSWER = 3
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 60.0
_CONNECT_TIMEOUT = 10.0
_QUIET = 3.0
_CONNECTION = re.compile(r"<?\S*HTTPS?Connection(Pool)?(\([^)]*\))?( at 0x\w+)?>?: ")
_RETRIED = frozenset({429, 500, 502, 503, 504})

_local = threading.local()


class UnreachableError(BucketError):
    """The bucket gives no answer, or none but "busy"; it may pass."""


def bucket_url() -> str:
    """Return the base of the bucket's addresses, without a slash at the end.

    Returns
    -------
    str
        ``LAION_FMRI_BUCKET_URL``, or the public bucket.

    Raises
    ------
    InvalidQueryError
        If the variable holds no http(s) address.
    """
    url = os.environ.get("LAION_FMRI_BUCKET_URL") or DEFAULT_BUCKET_URL
    if not url.startswith(("http://", "https://")):
        raise InvalidQueryError(
            f"LAION_FMRI_BUCKET_URL is {url!r}; it must begin with http:// or "
            f"https://, as in {DEFAULT_BUCKET_URL}"
        )
    return url.rstrip("/")


def object_url(key: str) -> str:
    """Return the address of an object.

    Parameters
    ----------
    key : str
        The object's key.

    Returns
    -------
    str
        Its address; characters beyond letters, digits and ``-._~/`` are encoded.
    """
    return f"{bucket_url()}/{quote(key, safe='/~')}"


def list_objects(
    prefix: str = "", delimiter: str = "", *, timeout: float = 30.0
) -> dict[str, Any]:
    """List the objects whose keys begin with a prefix, page by page.

    Parameters
    ----------
    prefix : str, default=""
        What the keys begin with.
    delimiter : {"", "/"}, default=""
        With ``"/"``, only objects directly below the prefix are listed, and what
        lies deeper is summed up in ``prefixes``.
    timeout : float, default=30.0
        Seconds without an answer after which a request is given up.

    Returns
    -------
    dict
        ``prefix``, ``delimiter``, ``bucket`` (base address), ``listed_at`` (seconds
        since the epoch), ``objects`` (list of ``[key, size in bytes, etag,
        last_modified]``) and ``prefixes`` (list of str).

    Raises
    ------
    BucketError
        If the bucket denies listing, or what it answers is no listing.
    """
    listing: dict[str, Any] = {
        "prefix": prefix,
        "delimiter": delimiter,
        "bucket": bucket_url(),
        "listed_at": time.time(),
        "objects": [],
        "prefixes": [],
    }
    for page in _pages(prefix, delimiter, timeout):
        decode = unquote_plus if _text(page, "EncodingType") == "url" else str
        listing["objects"] += [
            _object(element, decode)
            for element in page.iterfind("{*}Contents")
            if not (_text(element, "Key") or "").endswith(("/", "%2F"))
        ]
        listing["prefixes"] += [
            decode(_text(element, "Prefix") or "")
            for element in page.iterfind("{*}CommonPrefixes")
        ]
    return listing


def list_many(
    wanted: Iterable[tuple[str, str]],
    *,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> list[dict[str, Any]]:
    """List several ``(prefix, delimiter)`` at once; errors as `list_objects`.

    A line is printed where that takes long, and ``verbose`` is not 0.
    """
    wanted = list(wanted)
    if not wanted:
        return []
    # Its threads are daemons: Ctrl-C does not wait for a bucket that is silent.
    from multiprocessing.pool import ThreadPool

    how, patience = {"timeout": timeout}, time.monotonic() + _QUIET
    with ThreadPool(min(n_connections, len(wanted))) as pool:
        tasks = [pool.apply_async(list_objects, one, how) for one in wanted]
        for task in tasks:
            task.wait(max(0.0, patience - time.monotonic()))
        if not all(task.ready() for task in tasks):
            tell(f"Waiting for {bucket_url()} to list what it holds ...", verbose)
        return [task.get() for task in tasks]


def _pages(prefix: str, delimiter: str, timeout: float) -> Iterator[ET.Element]:
    """Yield the pages of a listing."""
    query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
    if delimiter:
        query["delimiter"] = delimiter
    level = repr(prefix) if prefix else "the top level"
    what = f"the listing of {level} in {bucket_url()}"
    while True:
        response = _get(f"{bucket_url()}/", query, what, timeout)
        _raise_for_status(response, what)
        page = _parse(response.content, what)
        yield page
        if _text(page, "IsTruncated") != "true":
            return
        token = _text(page, "NextContinuationToken")
        if not token or token == query.get("continuation-token"):
            raise BucketError(
                f"The server breaks off {what} without saying how to go on. {_ADVICE}"
            )
        query["continuation-token"] = token


_ADVICE = (
    "Check that LAION_FMRI_BUCKET_URL, if you set it, is the address of a public "
    "S3 bucket with the dataset."
)


def _get(
    url: str, query: dict[str, str], what: str, timeout: float
) -> requests.Response:
    """GET, again after a while where that may help."""
    import requests
    from urllib3.util import Retry

    tries = 0
    while True:
        tries += 1
        wait = _FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
        try:
            response = session().get(
                url, params=query, timeout=(min(timeout, _CONNECT_TIMEOUT), timeout)
            )
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
        ) as error:
            if tries >= _TRIES_NO_ANSWER:
                raise UnreachableError(
                    f"No answer to {what} ({_reason(error)}). Check the network, and "
                    "LAION_FMRI_BUCKET_URL if you set it."
                ) from None
        except requests.RequestException as error:
            raise BucketError(
                f"Cannot ask for {what} ({_reason(error)}). {_ADVICE}"
            ) from None
        else:
            if response.status_code not in _RETRIED:
                return response
            if tries >= _TRIES_BUSY:
                raise UnreachableError(
                    f"The server is busy: status {response.status_code} for {what}, "
                    f"{tries} times. Try again later."
                )
            asked = Retry().get_retry_after(response.raw) or 0.0
            wait = min(max(wait, asked), _LONGEST_WAIT)
        time.sleep(wait)


def session() -> requests.Session:
    """Return this thread's session, whose connections are kept."""
    import requests

    if getattr(_local, "pid", None) != os.getpid():
        _local.session, _local.pid = requests.Session(), os.getpid()
    return _local.session


def _reason(error: Exception) -> str:
    """Return the innermost cause that an error of requests wraps."""
    cause: Any = error
    while isinstance(cause, Exception) and cause.args:
        inner = getattr(cause, "reason", None) or cause.args[0]
        if not isinstance(inner, Exception):
            break
        cause = inner
    return _CONNECTION.sub("", str(cause.args[-1] if cause.args else cause))


def _raise_for_status(response: requests.Response, what: str) -> None:
    status = response.status_code
    if status == 200:
        return
    if status == 403:
        raise BucketError(f"The server denies {what} (status 403). {_ADVICE}")
    if status == 404:
        raise BucketError(f"No such bucket: status 404 for {what}. {_ADVICE}")
    raise BucketError(f"Status {status} for {what}. {_ADVICE}")


def _parse(content: bytes, what: str) -> ET.Element:
    try:
        page = ET.fromstring(content)
    except ET.ParseError as error:
        raise BucketError(
            f"What the server answers to {what} is no listing: {error}. {_ADVICE}"
        ) from error
    if page.tag.rpartition("}")[2] != "ListBucketResult":
        raise BucketError(
            f"What the server answers to {what} is no listing but "
            f"{page.tag.rpartition('}')[2]!r}. {_ADVICE}"
        )
    return page


def _object(element: ET.Element, decode: Any) -> list[Any]:
    """Return ``[key, size, etag, last_modified]`` of a ``Contents``."""
    key, size = _text(element, "Key"), _text(element, "Size")
    if not key or size is None or not size.isdecimal():
        raise BucketError(
            f"The listing holds an object without key or size (key {key!r}, size "
            f"{size!r}). {_ADVICE}"
        )
    etag = (_text(element, "ETag") or "").strip('"') or None
    return [decode(key), int(size), etag, _text(element, "LastModified")]


def _text(element: ET.Element, name: str) -> str | None:
    return element.findtext("{*}" + name)
