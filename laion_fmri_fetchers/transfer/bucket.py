"""The bucket over HTTP: where it is, and listing what it holds.

    list_many ─▶ a few threads, each with a session ─▶ pages, one after the other
        └─ watches over them, and cuts what makes no progress

The bucket is public and read anonymously, with S3's ListObjectsV2. Another S3
server, such as a lab's mirror, is named by ``LAION_FMRI_BUCKET_URL``, a base such
that ``{base}/{key}`` is an object and ``{base}/?list-type=2`` lists; virtual-host
and path-style addresses both fit that.

The HTTP client is imported when it is first needed: offline calls do without it.
"""

from __future__ import annotations

import contextlib
import email.utils
import html
import math
import os
import queue
import random
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote_plus, urljoin
from xml.parsers import expat

from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.messages import tell

if TYPE_CHECKING:
    import requests

DEFAULT_BUCKET_URL = "https://laion-fmri.s3.us-west-2.amazonaws.com"

_TRIES_BUSY = 6
_TRIES_NO_ANSWER = 3
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 60.0
_CONNECT_TIMEOUT = 10.0
_REDIRECTS = 4
_QUIET = 3.0
_WATCH = 0.1
_GRACE = 1.0
_LEAST_PROGRESS = 2**14
_LARGEST_PAGE = 2**23
_MOST_DIGITS = 18
_CONNECTION = re.compile(r"<?\S*HTTPS?Connection(Pool)?(\([^)]*\))?( at 0x\w+)?>?: ")
_RETRIED = frozenset({429, 500, 502, 503, 504})


class UnreachableError(BucketError):
    """The bucket gives no answer, or none but "busy"; it may pass."""


class Object(NamedTuple):
    """An object as the bucket lists it: size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str | None = None
    last_modified: str | None = None


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
    prefix: str = "",
    delimiter: str = "",
    *,
    timeout: float = 30.0,
    most_bytes: float = math.inf,
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
        Seconds without an answer, or without progress of it, after which a request
        is given up.
    most_bytes : float, optional
        Bytes of answers that are read at most.

    Returns
    -------
    dict
        ``prefix``, ``delimiter``, ``bucket`` (base address), ``listed_at`` (seconds
        since the epoch), ``n_bytes`` (of the answers), ``objects`` (list of `Object`)
        and ``prefixes`` (list of str).

    Raises
    ------
    UnreachableError
        If the bucket does not answer, or is busy.
    BucketError
        If the bucket denies listing, or its answer is not a listing, or too long.
    """
    wanted = [(prefix, delimiter)]
    return list_many(wanted, timeout=timeout, verbose=0, most_bytes=most_bytes)[0]


def list_many(
    wanted: Iterable[tuple[str, str]],
    *,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    most_bytes: float = math.inf,
) -> list[dict[str, Any]]:
    """List several ``(prefix, delimiter)`` at once; errors as `list_objects`.

    The first error ends all of them. A line is printed where listing takes long, and
    ``verbose`` is not 0.
    """
    wanted = list(wanted)
    if not wanted:
        return []
    work = _Work(bucket_url(), timeout, deque(enumerate(wanted)), most_bytes)
    listers = [_Lister(work) for _ in range(min(n_connections, len(wanted)))]
    for lister in listers:
        lister.start()
    listings: dict[int, dict[str, Any]] = {}
    patience = time.monotonic() + _QUIET
    try:
        while len(listings) < len(wanted):
            pause = min(_WATCH, max(0.0, patience - time.monotonic()))
            with contextlib.suppress(queue.Empty):
                number, found = work.done.get(timeout=pause)
                if isinstance(found, BaseException):
                    raise found
                listings[number] = found
            for lister in listers:
                lister.cut_if_stuck()
            if time.monotonic() > patience and len(listings) < len(wanted):
                tell(f"Waiting for {work.url} to list what it holds ...", verbose)
                patience = float("inf")
    finally:
        work.stopped.set()
        for lister in listers:
            lister.cut()
        until = time.monotonic() + _GRACE
        for lister in listers:
            lister.join(max(0.0, until - time.monotonic()))
    return [listings[number] for number in range(len(wanted))]


class _Work:
    """What the threads of one call share."""

    def __init__(
        self,
        url: str,
        timeout: float,
        todo: deque[tuple[int, tuple[str, str]]],
        most_bytes: float,
    ) -> None:
        self.url, self.timeout, self.todo = url, timeout, todo
        self.most_bytes = most_bytes
        self.done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.has_answered = threading.Event()


class _Lister(threading.Thread):
    """A thread that lists prefixes, one after the other, until none is left.

    It is a daemon: Ctrl-C does not wait for a bucket that is silent. The socket's
    time-out is that of each read, so a server that sends a byte now and then is cut by
    the thread that waits for the listings.
    """

    def __init__(self, work: _Work) -> None:
        super().__init__(daemon=True, name="laion-fmri-listing")
        self._work = work
        self._socket: socket.socket | None = None
        self._waits_since = float("inf")
        self._is_stuck = False

    def run(self) -> None:
        with _session() as session:
            while not self._work.stopped.is_set():
                try:
                    number, (prefix, delimiter) = self._work.todo.popleft()
                except IndexError:
                    return
                try:
                    self._work.done.put(
                        (number, self._list(session, prefix, delimiter))
                    )
                except BaseException as error:
                    self._work.done.put((number, error))
                    return

    def note(self, connected: socket.socket) -> None:
        """Take note of the socket in use, from which an answer is awaited."""
        self._socket, self._waits_since = connected, time.monotonic()
        if self._work.stopped.is_set():
            self.cut()

    def cut(self) -> None:
        """End what waits for the network."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def cut_if_stuck(self) -> None:
        """End a request without progress; one without any byte ends by itself."""
        if time.monotonic() - self._waits_since > self._work.timeout + _GRACE:
            self._is_stuck = True
            self.cut()

    def _list(
        self, session: requests.Session, prefix: str, delimiter: str
    ) -> dict[str, Any]:
        listing: dict[str, Any] = {
            "prefix": prefix,
            "delimiter": delimiter,
            "bucket": self._work.url,
            "listed_at": time.time(),
            "n_bytes": 0,
            "objects": [],
            "prefixes": [],
        }
        query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
        if delimiter:
            query["delimiter"] = delimiter
        level = repr(prefix) if prefix else "the top level"
        what = f"the listing of {level} in {self._work.url}"
        last = ""
        while True:
            page = self._page(session, query, what)
            listing["n_bytes"] += page.n_bytes
            if listing["n_bytes"] > self._work.most_bytes:
                raise BucketError(f"Too long to be read: {what}.")
            names = [*page.prefixes, *(one.key for one in page.objects)]
            listing["prefixes"] += page.prefixes
            # Keys that end in a slash are marks of folders, not files.
            listing["objects"] += [
                one for one in page.objects if not one.key.endswith("/")
            ]
            if not page.is_truncated:
                return listing
            if not (names and page.token and min(names) > last):
                raise BucketError(
                    f"The server breaks off {what}, or repeats it, without saying how "
                    f"to go on. {_ADVICE}"
                )
            last = max(names)
            query["continuation-token"] = page.token

    def _page(
        self, session: requests.Session, query: dict[str, str], what: str
    ) -> _Page:
        """Return a page, asked for again after a while where that may help."""
        import requests
        import urllib3

        errors = (requests.RequestException, urllib3.exceptions.HTTPError)
        tries, began = 0, time.monotonic()
        while True:
            tries += 1
            wait = _FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1.5)
            try:
                with self._ask(session, query) as response:
                    self._work.has_answered.set()
                    if response.status_code not in _RETRIED:
                        _refuse(response, what)
                        return _parse(self._body(response, what), what)
            except (*errors, ValueError) as error:
                if isinstance(error, ValueError):  # the address, or that of a redirect
                    raise BucketError(
                        f"Cannot ask for {what} ({_reason(error)}). {_ADVICE}"
                    ) from None
                if tries >= _TRIES_NO_ANSWER or self._is_out_of_reach(error, began):
                    raise UnreachableError(
                        f"No answer to {what} ({_reason(error)}). Check the network, "
                        "and LAION_FMRI_BUCKET_URL if you set it."
                    ) from None
            else:
                if tries >= _TRIES_BUSY:
                    raise UnreachableError(
                        f"The server is busy: status {response.status_code} for "
                        f"{what}, {tries} times. Try again later."
                    )
                asked = _seconds(response.headers.get("Retry-After", ""))
                wait = min(max(wait, asked), _LONGEST_WAIT)
            finally:
                self._waits_since = float("inf")
            if self._work.stopped.wait(wait):
                raise UnreachableError(f"Interrupted: {what}.")

    def _is_out_of_reach(self, error: Exception, began: float) -> bool:
        """Tell whether connecting took all of its time, and nothing ever answered."""
        import requests

        return (
            isinstance(error, requests.ConnectionError)
            and not self._work.has_answered.is_set()
            and time.monotonic() - began >= self._connect_timeout
        )

    @property
    def _connect_timeout(self) -> float:
        return min(self._work.timeout, _CONNECT_TIMEOUT)

    def _ask(
        self, session: requests.Session, query: dict[str, str]
    ) -> requests.Response:
        """Send a request; return the answer, of which the body is not read."""
        url, params = f"{self._work.url}/", query
        for _ in range(_REDIRECTS):
            self._is_stuck, self._waits_since = False, time.monotonic()
            response = session.get(
                url,
                params=params,
                headers={"Accept-Encoding": "identity"},
                timeout=(self._connect_timeout, self._work.timeout),
                stream=True,
                allow_redirects=False,
            )
            if not response.is_redirect:
                break
            response.close()
            url, params = urljoin(url, response.headers["Location"]), {}
        return response

    def _body(self, response: requests.Response, what: str) -> bytes:
        """Return the body of a page; each piece of it is progress."""
        import requests

        body = bytearray()
        self._waits_since = time.monotonic()
        while piece := response.raw.read(_LEAST_PROGRESS, decode_content=False):
            self._waits_since = time.monotonic()
            body += piece
            if len(body) > _LARGEST_PAGE:
                raise BucketError(
                    f"The server sends more than {_LARGEST_PAGE // 2**20} MiB as "
                    f"a page of {what}. {_ADVICE}"
                )
        if self._is_stuck:  # to the HTTP client, the cut may look like the end
            raise requests.Timeout(f"no progress for {self._work.timeout:g} s")
        return bytes(body)


def _session() -> requests.Session:
    """Return a session whose connections are made known to the thread using them."""
    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            made = pool.ConnectionCls
            if not issubclass(made, _Noted):
                pool.ConnectionCls = type("Connection", (_Noted, made), {})
            return pool

    session = requests.Session()
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    return session


class _Noted:
    """A connection of urllib3 that makes its socket known to its `_Lister`."""

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]
        threading.current_thread().note(self.sock)  # type: ignore[attr-defined]


_ADVICE = (
    "Check that LAION_FMRI_BUCKET_URL, if you set it, is the address of a public "
    "S3 bucket with the dataset."
)


def _seconds(retry_after: str) -> float:
    """Return what a Retry-After says, in seconds from now; 0 if that is unclear.

    >>> _seconds("7"), _seconds("0.5"), _seconds("Fri, 31 Dec 1999 23:59:59 GMT")
    (7.0, 0.5, 0.0)
    >>> _seconds("soon"), _seconds("nan"), _seconds("")
    (0.0, 0.0, 0.0)
    """
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            due = email.utils.parsedate_to_datetime(retry_after).timestamp()
        except (TypeError, ValueError, OverflowError):
            return 0.0
        seconds = due - time.time()
    return seconds if seconds > 0 else 0.0


def _reason(error: Exception) -> str:
    """Return the innermost cause that an error of requests wraps."""
    cause: Any = error
    while isinstance(cause, Exception) and cause.args:
        inner = getattr(cause, "reason", None) or cause.args[0]
        if not isinstance(inner, Exception):
            break
        cause = inner
    return _CONNECTION.sub("", str(cause.args[-1] if cause.args else cause))


def _refuse(response: requests.Response, what: str) -> None:
    """Raise where an answer is not the page of a listing, by its head."""
    status = response.status_code
    if status == 403:
        raise BucketError(f"The server denies {what} (status 403). {_ADVICE}")
    if status == 404:
        raise BucketError(f"No such bucket: status 404 for {what}. {_ADVICE}")
    if status != 200:
        raise BucketError(f"Status {status} for {what}. {_ADVICE}")
    # A compressed page of a few kB may be one of many GB.
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BucketError(
            f"The server compresses {what}, though it was asked not to. {_ADVICE}"
        )


class _Page(NamedTuple):
    """A page of a listing."""

    objects: list[Object]
    prefixes: list[str]
    is_truncated: bool
    token: str
    n_bytes: int


def _parse(content: bytes, what: str) -> _Page:
    """Return what a page says.

    Expat makes sure that it is XML of the plainest kind. In such XML, regular
    expressions find the texts of elements, much faster than by way of a tree.
    """
    try:
        _check(content)
        text = content.decode().replace("&quot;", "")
        if "<ListBucketResult" not in text:
            raise ValueError("it is other XML")
        head, _, rest = text.partition("<Contents>")
        frame = head + rest.rpartition("</Contents>")[2]
        is_url = _texts(frame, "EncodingType") == ["url"]
        decode = unquote_plus if is_url else str
        common = re.findall("<CommonPrefixes>(.*?)</CommonPrefixes>", text, re.DOTALL)
        return _Page(
            _objects(text, decode),
            [decode(prefix) for one in common for prefix in _texts(one, "Prefix")],
            _texts(frame, "IsTruncated") == ["true"],
            "".join(_texts(frame, "NextContinuationToken")),
            len(content),
        )
    except (expat.ExpatError, ValueError) as error:
        raise BucketError(
            f"The answer to {what} is not a listing: {error}. {_ADVICE}"
        ) from None


def _check(content: bytes) -> None:
    """Raise if this is not XML in UTF-8 of nothing but elements and their texts."""

    def declaration(_: str, encoding: str | None, __: int) -> None:
        if encoding and encoding.lower() not in ("utf-8", "us-ascii"):
            raise ValueError(f"it is in {encoding}, not in UTF-8")

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, comments or such")

    parser = expat.ParserCreate("utf-8")
    parser.XmlDeclHandler = declaration
    parser.StartDoctypeDeclHandler = parser.StartCdataSectionHandler = refuse
    parser.CommentHandler = parser.ProcessingInstructionHandler = refuse
    parser.Parse(content, True)


def _texts(xml: str, name: str) -> list[str]:
    """Return the texts of all elements of a name."""
    found = re.findall(f"<{name}>([^<]*)<", xml)
    return [html.unescape(one) for one in found] if "&" in xml else found


def _objects(xml: str, decode: Callable[[str], str]) -> list[Object]:
    n = xml.count("<Contents>")
    keys, sizes = _texts(xml, "Key"), _texts(xml, "Size")
    nothing: list[str | None] = [None] * n
    etags = [one.strip('"') or None for one in _texts(xml, "ETag")] or nothing
    dates = _texts(xml, "LastModified") or nothing
    if {len(keys), len(sizes), len(etags), len(dates), xml.count("Contents>") / 2} != {
        n
    }:
        raise ValueError("not every object has a key, a size, an ETag and a date")
    if not all(keys):
        raise ValueError("an object has an empty key")
    if not all(one.isdecimal() and len(one) <= _MOST_DIGITS for one in sizes):
        raise ValueError("the size of an object is not a number")
    return [*map(Object, map(decode, keys), map(int, sizes), etags, dates)]
