"""Ranges of objects over HTTP: asked for, found good or faulty, read in chunks.

Each thread has its own connections, kept open from one request to the next, and its own
buffer, into which bodies are read. No message, exception or log line from here holds an
address, because addresses may be presigned.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import os
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Generator
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests.utils

from .partials import bare

_BUFFER = 2**18
_CHUNK = 2**17
_SLOW = 0.25
_SMALL_BODY = 2**16
_LEAST_PROGRESS = 2**14
_CONNECT_TIMEOUT = 10.0
_LONGEST_WAIT_ASKED = 60.0
_REDIRECTS = 4

_TRIES = 6
_TRIES_UNREACHABLE = 9
_TRIES_UNREACHABLE_AT_FIRST = 3

_AGENT = "laion-fmri-fetchers"
_NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)
_STALE = (BrokenPipeError, ConnectionResetError)


class Fault(Exception):  # noqa: N818
    """What went wrong with a request or a file.

    Attributes
    ----------
    reason : str
        In words for the user.
    status : int or None
        HTTP status.
    tries : int
        How often to try in all.
    wait : float
        Seconds that the server asks to wait.
    remedy : str
        What helps other than trying again: ``"renew"`` the address, or start over as
        the object ``"changed"`` or has to be fetched ``"whole"``.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        *,
        tries: int = _TRIES,
        wait: float = 0.0,
        remedy: str = "",
    ):
        super().__init__(reason)
        self.reason, self.status, self.tries = reason, status, tries
        self.wait, self.remedy = wait, remedy


class Answer(NamedTuple):
    """A good answer, whose body is not read yet: bytes ``start`` to ``stop``."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    start: int
    stop: int
    size: int
    etag: str | None

    @property
    def last_modified(self) -> str | None:
        """Date of the object's last change, ISO 8601 in UTC as listings have it."""
        try:
            date = parsedate_to_datetime(self.response.headers["Last-Modified"])
        except (TypeError, ValueError):
            return None
        return f"{date.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S}.000Z"


class Connections:
    """The connections of several threads, all of which can be cut at once.

    Parameters
    ----------
    timeout : float
        Seconds without progress after which a connection is given up.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._all: list[http.client.HTTPConnection] = []
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._proxies: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None
        self._are_cut = False
        self._has_answered = False

    def ask(
        self,
        address: str,
        start: int,
        stop: int | None,
        *,
        size: int | None,
        etag: str | None,
        at_first: int,
    ) -> Answer:
        """Ask for a range of an object.

        Parameters
        ----------
        address : str
            URL of the object.
        start, stop : int
            The range; with None as stop, as much as ``at_first``, or all.
        size : int or None
            Bytes of the object, if known.
        etag : str or None
            The ETag that it must have.
        at_first : int
            Bytes to ask for where ``stop`` is None.

        Returns
        -------
        Answer
            Its ``size`` and ``etag`` are the server's.

        Raises
        ------
        Fault
            If no answer comes, or one that is not what was asked for.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": _AGENT}
        is_whole = stop is not None and (start, stop) == (0, size)
        if not is_whole:
            headers["Range"] = f"bytes={start}-{(stop or at_first) - 1}"
        if etag:
            headers["If-Match"] = f'"{etag}"'
        connection, response = self._get(address, headers)
        try:
            span = _judge(response, start, stop, is_whole, size, at_first)
        except Fault:
            self._dismiss(connection, response)
            raise
        self._has_answered = True
        return Answer(connection, response, *span)

    def chunks(self, answer: Answer) -> Generator[memoryview, None, None]:
        """Yield a body in pieces worth a write; see that it makes progress.

        A piece is valid until the next one is asked for.
        """
        response, length = answer.response, answer.stop - answer.start
        buffer = self._buffer(max(length, 1))
        got = held = mark = 0
        since = yielded = time.monotonic()
        fault = None
        try:
            while got < length and not fault:
                n, fault = self._read(response, buffer[held : held + length - got])
                got, held = got + n, held + n
                now = time.monotonic()
                if got - mark >= _LEAST_PROGRESS:
                    mark, since = got, now
                elif now - since > self._timeout and got < length:
                    fault = fault or Fault(f"no progress for {self._timeout:g} s")
                is_due = held >= _CHUNK or now - yielded > _SLOW or got == length
                if held and (is_due or fault):
                    yield buffer[:held]
                    held, yielded = 0, now
            if not (fault or response.length == 0 or response.isclosed()):
                more, _ = self._read(response, buffer[:1])
                fault = Fault("the body is longer than it should be") if more else None
        finally:
            if got == length and response.length == 0:
                response.close()
            if fault or not response.isclosed():
                self.drop(answer)
        if fault:
            raise fault

    def drop(self, answer: Answer) -> None:
        """Close the connection of an answer that is not wanted."""
        answer.response.close()
        answer.connection.close()

    def cut(self) -> None:
        """End all that waits for the network, now and later."""
        with self._lock:
            self._are_cut = True
            for open_socket in self._sockets:
                _shut(open_socket)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()

    def _get(
        self, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request; redirects are followed, the body is not read."""
        fault = None
        try:
            for _ in range(_REDIRECTS):
                connection, response = self._get_one(url, headers)
                target = response.headers.get("Location")
                if response.status not in (301, 302, 303, 307, 308) or not target:
                    return connection, response
                self._dismiss(connection, response)
                url = urljoin(url, target)
        except _NETWORK_ERRORS as error:
            fault = self._network_fault(error)
        raise fault or Fault("the server redirects in a circle", tries=1)

    def _get_one(
        self, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection, target, extra = self._connection(url)
        is_fresh = connection.sock is None
        try:
            if is_fresh:
                self._connect(connection)
            connection.request("GET", target, headers={**headers, **extra})
            return connection, connection.getresponse()
        except BaseException as error:
            connection.close()
            if is_fresh or not isinstance(error, _STALE):
                raise
        return self._get_one(url, headers)

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except OSError as error:
            raise _ConnectError(error) from None
        new = connection.sock
        new.settimeout(self._timeout)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._lock:
            self._sockets.add(new)
            if self._are_cut:
                _shut(new)

    def _connection(
        self, url: str
    ) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """Return this thread's connection for a URL, and what to send on it."""
        scheme, host, path, query, _ = urlsplit(url)
        if scheme not in ("http", "https") or not host:
            raise ValueError
        target = urlunsplit(("", "", path or "/", query, ""))
        routes = self._mine.__dict__.setdefault("routes", {})
        if (scheme, host) not in routes:
            routes[scheme, host] = self._route(scheme, host)
        connection, is_proxy, extra = routes[scheme, host]
        return connection, f"http://{host}{target}" if is_proxy else target, extra

    def _route(
        self, scheme: str, host: str
    ) -> tuple[http.client.HTTPConnection, bool, dict[str, str]]:
        proxy = self._proxy(f"{scheme}://{host}/")
        via = urlsplit(requests.utils.prepend_scheme_if_needed(proxy, "http"))
        extra = {}
        if via.username is not None:
            pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
            code = base64.b64encode(pair.encode()).decode()
            extra["Proxy-Authorization"] = f"Basic {code}"
        server = f"{via.hostname}:{via.port or 80}" if proxy else host
        timeout = min(self._timeout, _CONNECT_TIMEOUT)
        connection: http.client.HTTPConnection
        if scheme == "http":
            connection = http.client.HTTPConnection(server, timeout=timeout)
        else:
            with self._lock:
                self._tls = self._tls or _tls()
            connection = http.client.HTTPSConnection(
                server, timeout=timeout, context=self._tls
            )
            if proxy:
                connection.set_tunnel(host, headers=extra)
                extra = {}
        self._all.append(connection)
        return connection, bool(proxy) and scheme == "http", extra

    def _proxy(self, base: str) -> str:
        """Return the proxy that requests would use, or nothing."""
        with self._lock:
            if base not in self._proxies:
                proxies = requests.utils.get_environ_proxies(base)
                proxy = requests.utils.select_proxy(base, proxies)
                self._proxies[base] = proxy or ""
            return self._proxies[base]

    def _buffer(self, most: int) -> memoryview:
        """Return this thread's buffer; it is small as long as that will do."""
        buffer = getattr(self._mine, "buffer", memoryview(b""))
        wanted = min(most, _BUFFER)
        if len(buffer) < wanted:
            buffer = self._mine.buffer = memoryview(bytearray(wanted))
        return buffer

    def _read(
        self, response: http.client.HTTPResponse, view: memoryview
    ) -> tuple[int, Fault | None]:
        """Read what is there, but at least a byte."""
        fault = None
        n = 0
        try:
            if response.chunked:
                piece = response.read1(len(view))
                n = len(piece)
                view[:n] = piece
            else:
                n = response.fp.readinto1(view)
                if response.length is not None:
                    response.length -= n
        except _NETWORK_ERRORS as error:
            fault = self._network_fault(error)
        return n, fault or (None if n else Fault("the body ended early"))

    def _dismiss(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        """Keep a connection if what comes on it is small, though not wanted."""
        length = response.length
        with contextlib.suppress(*_NETWORK_ERRORS):
            if response.status >= 300 and length is not None and length <= _SMALL_BODY:
                response.read()
        if not response.isclosed():
            response.close()
            connection.close()

    def _network_fault(self, error: Exception) -> Fault:
        """Return an error in words that hold no address."""
        if isinstance(error, _ConnectError):
            n = _TRIES_UNREACHABLE
            if not self._has_answered:
                n = _TRIES_UNREACHABLE_AT_FIRST
            return Fault(_words_on_connecting(error.error), tries=n)
        if isinstance(error, TimeoutError):
            return Fault(f"no byte for {self._timeout:g} s")
        if isinstance(error, (ValueError, http.client.InvalidURL)):
            return Fault("its address is not valid", tries=1)
        return Fault(f"the connection broke: {_words(error)}")


class _ConnectError(OSError):
    def __init__(self, error: OSError):
        super().__init__()
        self.error = error


def _judge(
    response: http.client.HTTPResponse,
    start: int,
    stop: int | None,
    is_whole: bool,
    size: int | None,
    at_first: int,
) -> tuple[int, int, int, str | None]:
    """Return start, stop, size and ETag of an answer that is what was asked for."""
    status, headers, length = response.status, response.headers, response.length
    etag = bare(headers.get("ETag", "")) or None
    if status == 206:
        content_range = headers.get("Content-Range", "").strip()
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        if not found:
            raise Fault("the server does not say what range it sends", status)
        first, last, total = map(int, found.groups())
        end = min(total, at_first if stop is None else stop)
        if (first, last + 1) != (start, end):
            raise Fault("the server sends another range than asked", status)
    elif status == 200:
        if not (is_whole or stop is None):
            raise Fault("the server ignores Range", status, remedy="whole")
        if size is None and length is None:
            raise Fault("the server does not say its size", status, tries=1)
        end = total = length if length is not None else size or 0
    elif status == 416 and stop is None:
        return 0, 0, 0, etag
    else:
        raise _status_fault(response)
    if length not in (None, end - start):
        raise Fault(f"Content-Length is {length} instead of {end - start}", status)
    return start, end, total, etag


def _status_fault(response: http.client.HTTPResponse) -> Fault:
    """Return an answer that is no success as a fault."""
    status = response.status
    reason = f"status {status} {response.reason or ''}".rstrip()
    if status == 412:
        return Fault("it changed in the bucket", status, remedy="changed")
    if status in (400, 401, 403):
        return Fault(reason, status, tries=1, remedy="renew")
    if status in (408, 429) or status >= 500:
        wait = _seconds(response.headers.get("Retry-After", "0"))
        return Fault(reason, status, wait=min(wait, _LONGEST_WAIT_ASKED))
    return Fault(reason, status, tries=1)


def _seconds(retry_after: str) -> float:
    """Return what a Retry-After says, in seconds from now.

    >>> _seconds("7"), _seconds("Fri, 31 Dec 1999 23:59:59 GMT"), _seconds("soon")
    (7.0, 0.0, 0.0)
    """
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        due = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, due - time.time())


def _words_on_connecting(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the server's name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "the server does not accept connections"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {error.reason or type(error).__name__}"
    if str(error).startswith("Tunnel connection failed"):
        return f"the proxy fails: {error}"
    return f"cannot connect: {_words(error)}"


def _words(error: BaseException) -> str:
    """Return the operating system's words for an error, or its kind."""
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number else type(error).__name__


def _tls() -> ssl.SSLContext:
    """Return a context with the certificates that requests would trust."""
    bundle = (
        os.environ.get("REQUESTS_CA_BUNDLE")
        or os.environ.get("CURL_CA_BUNDLE")
        or requests.utils.DEFAULT_CA_BUNDLE_PATH
    )
    if os.path.isdir(bundle):
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def _shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)
