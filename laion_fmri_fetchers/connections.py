"""Ranges of objects over HTTP: asked for, found good or faulty, read in chunks.

No message, exception or log line that leaves this module holds an address, because
addresses may be presigned.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests.utils
import urllib3
from urllib3 import exceptions

from .partials import bare

_CHUNK = 2**17
_READ = 2**18
_SLOW = 0.25
_CONNECT_TIMEOUT = 10.0
_LEAST_PROGRESS = 2**14
_SMALL_BODY = 2**16
_LONGEST_WAIT_ASKED = 60.0

_NO_RETRIES = urllib3.Retry(False, redirect=False)

_TRIES = 6
_TRIES_UNREACHABLE = 9
_TRIES_UNREACHABLE_AT_FIRST = 3


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

    response: urllib3.BaseHTTPResponse
    start: int
    stop: int
    size: int
    etag: str | None


class Connections:
    """Pools of connections, all of which can be cut at once.

    Parameters
    ----------
    n_connections : int
        Connections to a host that are kept.
    timeout : float
        Seconds without progress after which a connection is given up.
    """

    def __init__(self, n_connections: int, timeout: float):
        self._n = n_connections
        self._seconds = timeout
        self._timeout = urllib3.Timeout(min(timeout, _CONNECT_TIMEOUT), timeout)
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
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
        is_secret: bool,
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
        is_secret : bool
            Whether to keep the address out of logs.

        Returns
        -------
        Answer
            Its ``size`` and ``etag`` are the server's.

        Raises
        ------
        Fault
            If no answer comes, or one that is not what was asked for.
        """
        headers = {"Accept-Encoding": "identity"}
        is_whole = stop is not None and (start, stop) == (0, size)
        if not is_whole:
            headers["Range"] = f"bytes={start}-{(stop or at_first) - 1}"
        if etag:
            headers["If-Match"] = f'"{etag}"'
        with _unlogged(is_secret):
            response = self._get(address, headers)
        try:
            answer = _judge(response, start, stop, is_whole, size, at_first)
        except Fault:
            _dismiss(response)
            raise
        self._has_answered = True
        return answer

    def chunks(self, answer: Answer) -> Generator[bytes, None, None]:
        """Yield a body in pieces worth a write; see that it makes progress."""
        response, length = answer.response, answer.stop - answer.start
        pieces: list[bytes] = []
        got = held = mark = 0
        since = yielded = time.monotonic()
        fault = None
        try:
            while got < length and not fault:
                piece, fault = self._read(response, min(_READ, length - got))
                pieces.append(piece)
                got, held = got + len(piece), held + len(piece)
                now = time.monotonic()
                if got - mark >= _LEAST_PROGRESS:
                    mark, since = got, now
                elif now - since > self._seconds and got < length:
                    fault = fault or Fault(f"no progress for {self._seconds:g} s")
                is_due = held >= _CHUNK or now - yielded > _SLOW or got == length
                if held and (is_due or fault):
                    yield b"".join(pieces)
                    pieces, held, yielded = [], 0, now
            if response.length_remaining is None and not fault:
                fault = _end(response)
        finally:
            if fault or got < length or response.length_remaining:
                response.close()
            else:
                response.drain_conn()
                response.release_conn()
        if fault:
            raise fault

    def cut(self) -> None:
        """End all that waits for the network, now and later."""
        with self._lock:
            self._are_cut = True
            for open_socket in self._sockets:
                _shut(open_socket)

    def close(self) -> None:
        """Close connections that wait for use."""
        for manager in self._managers.values():
            manager.clear()

    def _get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a request; redirects are followed, the body is not read."""
        fault = None
        try:
            for _ in range(4):
                response = self._manager(url).urlopen(
                    "GET",
                    url,
                    headers=headers,
                    timeout=self._timeout,
                    preload_content=False,
                    decode_content=False,
                    redirect=False,
                    retries=_NO_RETRIES,
                )
                target = response.get_redirect_location()
                if not target:
                    return response
                _dismiss(response)
                url = urljoin(url, target)
        except (exceptions.HTTPError, OSError, ValueError) as error:
            fault = self._network_fault(error)
        raise fault or Fault("the server redirects in a circle", tries=1)

    def _read(
        self, response: urllib3.BaseHTTPResponse, most: int
    ) -> tuple[bytes, Fault | None]:
        try:
            piece = response.read1(most)
        except (exceptions.HTTPError, OSError, ValueError) as error:
            return b"", self._network_fault(error)
        return piece, None if piece else Fault("the body ended early")

    def _network_fault(self, error: BaseException) -> Fault:
        """Return an error of urllib3 in words that hold no address."""
        while inner := _cause(error):
            error = inner
        n = _TRIES_UNREACHABLE if self._has_answered else _TRIES_UNREACHABLE_AT_FIRST
        if isinstance(error, exceptions.NameResolutionError):
            return Fault("the server's name cannot be resolved", tries=n)
        if isinstance(error, exceptions.NewConnectionError):
            return Fault(f"cannot connect: {_words(error.__cause__)}", tries=n)
        if isinstance(error, exceptions.ConnectTimeoutError):
            return Fault("the server does not accept connections", tries=n)
        if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
            return Fault(f"no byte for {self._seconds:g} s")
        if isinstance(error, exceptions.IncompleteRead):
            return Fault("the body ended early")
        if isinstance(error, ssl.SSLError):
            return Fault(f"TLS fails: {error.reason or type(error).__name__}", tries=2)
        if isinstance(error, ValueError):
            return Fault("its address is not valid", tries=1)
        return Fault(f"the connection broke: {_words(error)}")

    def _manager(self, url: str) -> urllib3.PoolManager:
        scheme, host = urlsplit(url)[:2]
        base = f"{scheme}://{host}"
        with self._lock:
            if base not in self._managers:
                self._managers[base] = self._new_manager(base)
            return self._managers[base]

    def _new_manager(self, base: str) -> urllib3.PoolManager:
        """Return pools with the proxy and certificates that requests would use."""
        keep_alive = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options: dict[str, Any] = {
            "maxsize": self._n,
            "socket_options": [
                *urllib3.connection.HTTPConnection.default_socket_options,
                keep_alive,
            ],
        }
        if base.startswith("https:"):
            options["ssl_context"] = _tls()
        proxies = requests.utils.get_environ_proxies(f"{base}/")
        proxy = requests.utils.select_proxy(f"{base}/", proxies)
        manager = urllib3.PoolManager(**options)
        if proxy:
            user, password = requests.utils.get_auth_from_url(proxy)
            if user:
                options["proxy_headers"] = urllib3.make_headers(
                    proxy_basic_auth=f"{user}:{password}"
                )
            proxy = requests.utils.prepend_scheme_if_needed(proxy, "http")
            manager = urllib3.ProxyManager(proxy, **options)
        manager.pool_classes_by_scheme = {
            "http": self._noting(urllib3.HTTPConnectionPool),
            "https": self._noting(urllib3.HTTPSConnectionPool),
        }
        return manager

    def _noting(self, pool_class: type) -> type:
        """Return a class of pools whose connections note their sockets here."""
        note = self._note

        class Connection(pool_class.ConnectionCls):  # type: ignore[name-defined]
            def connect(self) -> None:
                super().connect()
                note(self.sock)

        return type("Pool", (pool_class,), {"ConnectionCls": Connection})

    def _note(self, new_socket: socket.socket) -> None:
        with self._lock:
            self._sockets.add(new_socket)
            if self._are_cut:
                _shut(new_socket)


def _judge(
    response: urllib3.BaseHTTPResponse,
    start: int,
    stop: int | None,
    is_whole: bool,
    size: int | None,
    at_first: int,
) -> Answer:
    """Return an answer that is what was asked for."""
    status, headers = response.status, response.headers
    announced = headers.get("Content-Length", "")
    length = int(announced) if announced.isdecimal() else None
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
        return Answer(response, 0, 0, 0, etag)
    else:
        raise _status_fault(response)
    if length not in (None, end - start):
        raise Fault(f"Content-Length is {length} instead of {end - start}", status)
    return Answer(response, start, end, total, etag)


def _status_fault(response: urllib3.BaseHTTPResponse) -> Fault:
    """Return an answer that is no success as a fault."""
    status = response.status
    reason = f"status {status} {response.reason or ''}".rstrip()
    if status == 412:
        return Fault("it changed in the bucket", status, remedy="changed")
    if status in (400, 401, 403):
        return Fault(reason, status, tries=1, remedy="renew")
    if status in (408, 429) or status >= 500:
        wait = 0.0
        with contextlib.suppress(exceptions.InvalidHeader, OverflowError):
            asked = response.headers.get("Retry-After", "0")
            wait = urllib3.Retry().parse_retry_after(asked)
        return Fault(reason, status, wait=min(wait, _LONGEST_WAIT_ASKED))
    return Fault(reason, status, tries=1)


def _dismiss(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection of an answer whose body is small and not wanted."""
    length = response.headers.get("Content-Length", "")
    if response.status >= 300 and length.isdecimal() and int(length) <= _SMALL_BODY:
        response.drain_conn()
        response.release_conn()
    else:
        response.close()


def _end(response: urllib3.BaseHTTPResponse) -> Fault | None:
    """Tell whether a body of unknown length ends here."""
    try:
        more = response.read1(1)
    except (exceptions.HTTPError, OSError, ValueError):
        more = b""
    return Fault("the body is longer than it should be") if more else None


def _cause(error: BaseException) -> BaseException | None:
    """Return the error inside an error, where its own kind says less."""
    if isinstance(error, exceptions.NewConnectionError):
        return None
    inner = (getattr(error, "reason", None), *error.args[::-1])
    return next((one for one in inner if isinstance(one, Exception)), None)


def _words(error: BaseException | None) -> str:
    """Return the operating system's words for an error, or its kind."""
    number = getattr(error, "errno", None)
    return os.strerror(number).lower() if number else type(error).__name__


def _tls() -> ssl.SSLContext:
    bundle = (
        os.environ.get("REQUESTS_CA_BUNDLE")
        or os.environ.get("CURL_CA_BUNDLE")
        or requests.utils.DEFAULT_CA_BUNDLE_PATH
    )
    context = urllib3.util.ssl_.create_urllib3_context()
    kind = "capath" if os.path.isdir(bundle) else "cafile"
    context.load_verify_locations(**{kind: bundle})
    return context


def _shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)


# --- Addresses stay out of logs --------------------------------------------------

_thread = threading.local()


def _is_public(_: logging.LogRecord) -> bool:
    return not getattr(_thread, "has_secret", False)


@contextlib.contextmanager
def _unlogged(is_secret: bool) -> Iterator[None]:
    """Drop what urllib3 logs in this thread, if an address is secret."""
    if is_secret:
        logging.getLogger("urllib3.connectionpool").addFilter(_is_public)
    _thread.has_secret = is_secret
    try:
        yield
    finally:
        _thread.has_secret = False
