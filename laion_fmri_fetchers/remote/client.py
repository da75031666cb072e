"""One HTTP client for everything: proxies, certificates, redirects, errors in words.

No message, exception or log line from here holds an address, because addresses may be
presigned, and nobody's login is ever sent: ``~/.netrc`` is not read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    IncompleteRead,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
)

from . import retry

AGENT = "laion-fmri-fetchers"
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that name certificates to trust; the first one that is set counts."""
CONNECT_TIMEOUT = 10.0
"""Seconds for a connection; three of the retransmissions of TCP fit into it."""

_CHUNK = 2**17
"""Bytes that are read at a time. Larger ones are not faster, and of smaller ones more
arrives before a line that is slow breaks."""
_FILES_EACH = 5
"""Open files of a connection: its socket, a stream of the file that it writes, that
file, its lock and the list of its blocks."""
_REDIRECTS = 4
"""Redirects that are followed; S3 needs one, a mirror perhaps two."""


class Fault(Exception):  # noqa: N818 - not an error until all tries have failed
    """Why a request brought nothing, or not all.

    Attributes
    ----------
    reason : str
        In words for the user, without an address.
    status : int or None
        HTTP status.
    tries : int
        How often to try in all.
    wait : float
        Seconds that the server asks to wait.
    remedy : str
        What helps where trying again does not: ``"renew"`` the address, start over as
        the object ``"changed"``, or fetch it ``"whole"`` as the server ignores Range.
    has_progressed : bool
        Whether so much arrived that tries are counted from the beginning.
    seconds : float
        How long the try took.
    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        *,
        tries: int = 1,
        wait: float = 0.0,
        remedy: str = "",
    ):
        super().__init__(reason)
        self.reason, self.status, self.remedy = reason, status, remedy
        self.tries, self.wait = tries, wait
        self.has_progressed, self.seconds = False, 0.0


class Answer(NamedTuple):
    """Status, headers and body of a small document."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Range(NamedTuple):
    """A range of an object that is on its way; size and ETag are the server's."""

    chunks: Iterator[bytes]
    size: int | None
    etag: str | None
    last_modified: float | None
    """Seconds since the epoch."""


def affordable(n_connections: int) -> int:
    """Return how many connections the limit on open files leaves room for, at most."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows has no such limit
        return n_connections
    most = getrlimit(RLIMIT_NOFILE)[0]
    if most == RLIM_INFINITY:
        return n_connections
    n_free = most - len(os.listdir("/dev/fd"))
    return max(1, min(n_connections, n_free // _FILES_EACH))


class Client:
    """Connections to any number of servers, which threads share.

    Parameters
    ----------
    n_connections : int
        Connections that are kept open per server.
    timeout : float
        Seconds without a byte after which a request is given up.
    """

    def __init__(self, n_connections: int, timeout: float):
        self.timeout = timeout
        self.connect_timeout = min(timeout, CONNECT_TIMEOUT)
        self.n_connections = n_connections
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._proxies: dict[str, str | None] = {}
        self._responses: set[urllib3.BaseHTTPResponse] = set()
        self.has_answered = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for response in list(self._responses):  # of threads that Ctrl-C left reading
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                response.shutdown()
        for manager in self._managers.values():
            manager.clear()

    def fetch(
        self,
        url: str,
        *,
        most_bytes: int,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        is_final: bool = False,
    ) -> Answer:
        """Return a small document whole, whatever its status.

        Of a body that is too long, a byte more than allowed is returned.

        Parameters
        ----------
        url : str
            Its address.
        most_bytes : int
            Bytes that it may have.
        method, body, headers : optional
            What to send.
        is_final : bool, default=False
            Whether redirects and busy servers are answers like any other.

        Raises
        ------
        Fault
            If there is no answer, or one of a server that is busy.
        """
        opened = self._opened(method, url, headers, body, follow=not is_final)
        with opened as response:
            if response.status in retry.RETRIED and not is_final:
                raise self._status_fault(response)
            content = bytearray()
            for chunk in self._chunks(response, decode_content=True):
                content += chunk
                if len(content) > most_bytes:
                    break
            return Answer(
                response.status, response.headers, bytes(content[: most_bytes + 1])
            )

    @contextlib.contextmanager
    def range(
        self,
        url: str,
        start: int,
        stop: int | None,
        *,
        size: int | None = None,
        etag: str | None = None,
        is_secret: bool = False,
    ) -> Iterator[Range]:
        """Open a range of an object, whose chunks are to be read in the block.

        Parameters
        ----------
        url : str
            Address of the object.
        start, stop : int
            The range. From 0 to ``size``, or to None, the object is asked for whole.
        size, etag : int and str, optional
            Bytes and ETag that the object must have.
        is_secret : bool, default=False
            Whether the address is for its server alone.

        Raises
        ------
        Fault
            If the answer is not what was asked for, or breaks off.
        """
        headers = {}
        is_whole = start == 0 and stop in (None, size)
        if not is_whole:
            headers["Range"] = f"bytes={start}-{(stop or 0) - 1}"
        if etag:
            headers["If-Match"] = f'"{etag}"'
        opened = self._opened("GET", url, headers, is_secret=is_secret)
        with opened as response:
            length, total = self._check_range(response, start, stop, is_whole)
            known = bare_etag(response.headers.get("ETag", ""))
            if etag and known and known != etag:
                raise Fault("it changed in the bucket", remedy="changed")
            if size is not None and total not in (None, size):
                text = f"the server has {total} bytes of it instead of {size}"
                raise Fault(text, tries=retry.TRIES)
            yield Range(
                self._exactly(response, size if length is None else length),
                total,
                known or None,
                _timestamp(response.headers.get("Last-Modified")),
            )

    def _check_range(
        self,
        response: urllib3.BaseHTTPResponse,
        start: int,
        stop: int | None,
        is_whole: bool,
    ) -> tuple[int | None, int | None]:
        """Return the bytes of a body and those of its object, as far as is known."""
        status, length = response.status, response.length_remaining
        if status == 200 and is_whole:
            return length, length
        if status == 200:
            raise Fault("the server ignores Range", status, remedy="whole")
        if status != 206:
            raise self._status_fault(response)
        content_range = response.headers.get("Content-Range", "").strip()
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        if not span:
            text = "the server does not say what range it sends"
            raise Fault(text, status, tries=retry.TRIES)
        first, last, total = map(int, span.groups())
        if first != start or last + 1 != min(total, total if stop is None else stop):
            text = "the server sends another range than asked"
            raise Fault(text, status, tries=retry.TRIES)
        expected = last + 1 - first
        if length not in (None, expected):
            text = f"Content-Length is {length} instead of {expected}"
            raise Fault(text, status, tries=retry.TRIES)
        return expected, total

    def _exactly(
        self, response: urllib3.BaseHTTPResponse, length: int | None
    ) -> Iterator[bytes]:
        """Yield a body; raise where it is shorter or longer than announced."""
        n_bytes = 0
        for chunk in self._chunks(response):
            n_bytes += len(chunk)
            if length is not None and n_bytes > length:
                text = "the body is longer than it should be"
                raise Fault(text, tries=retry.TRIES)
            yield chunk
        if length is not None and n_bytes < length:
            raise Fault("the body ended early", tries=retry.TRIES)

    def _chunks(
        self, response: urllib3.BaseHTTPResponse, *, decode_content: bool = False
    ) -> Iterator[bytes]:
        try:
            while chunk := response.read(_CHUNK, decode_content=decode_content):
                yield chunk
        except (HTTPError, OSError, ValueError) as error:
            fault = self._fault(error)
        else:
            return
        raise fault  # here, such that no context holds the address

    @contextlib.contextmanager
    def _opened(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes | None = None,
        *,
        is_secret: bool = False,
        follow: bool = True,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request and follow redirects; the body is to be read in the block.

        Of a body that was read to its end, urllib3 keeps the connection for the next
        request; any other answer closes it.
        """
        given = {"User-Agent": AGENT, "Accept-Encoding": "identity", **(headers or {})}
        for _ in range(_REDIRECTS):
            response = self._send(method, url, given, body)
            location = response.headers.get("Location")
            is_redirect = response.status in (301, 302, 303, 307, 308) and location
            if not (follow and is_redirect):
                break
            response.close()
            url = redirected(url, str(location), is_secret=is_secret)
        else:
            raise Fault("the server redirects in a circle")
        self._responses.add(response)
        try:
            yield response
        finally:
            self._responses.discard(response)
            response.close()

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._manager(url).request(
                method,
                url,
                headers=headers,
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(
                    connect=self.connect_timeout, read=self.timeout
                ),
            )
        except (HTTPError, requests.RequestException, OSError, ValueError) as error:
            fault = self._fault(error)
        else:
            self.has_answered = True
            return response
        raise fault  # here, such that no context holds the address

    def _manager(self, url: str) -> urllib3.PoolManager:
        """Return the pools of the proxy that the environment names for an address."""
        scheme, host = urlsplit(url)[:2]
        if scheme not in ("http", "https") or not host:
            raise ValueError("not an address")
        base = f"{scheme}://{host}"
        if base not in self._proxies:
            proxies = requests.utils.get_environ_proxies(base)
            self._proxies[base] = requests.utils.select_proxy(base, proxies)
        proxy = self._proxies[base]
        if proxy not in self._managers:
            self._managers[proxy] = _make_manager(proxy, self.n_connections)
        return self._managers[proxy]

    def _status_fault(self, response: urllib3.BaseHTTPResponse) -> Fault:
        """Return an unsuccessful answer as a fault."""
        status = response.status
        reason = f"status {status} {response.reason or ''}".rstrip()
        if status == 412:
            return Fault("it changed in the bucket", status, remedy="changed")
        if status in (400, 401, 403):
            return Fault(reason, status, remedy="renew")
        if status in retry.RETRIED:
            wait = retry.retry_after(response.headers.get("Retry-After")) or 0.0
            return Fault(reason, status, tries=retry.TRIES, wait=wait)
        return Fault(reason, status)

    def _fault(self, error: BaseException) -> Fault:
        """Return an error of urllib3 as a fault, in words without an address."""
        errors = list(_chain(error))
        setup = [str(each) for each in errors if isinstance(each, SetupError)]
        if any("SOCKS support" in str(each) for each in errors):
            setup = ["a SOCKS proxy needs PySocks: pip install 'requests[socks]'"]
        if setup:
            return Fault(setup[0])
        words = _words(errors[-1])
        if any(type(each).__module__ == "socks" for each in errors):
            errors.insert(0, ProxyError("", error))  # type: ignore[arg-type]
        for kind, reason in _ON_THE_WAY.items():
            if any(isinstance(each, kind) for each in errors):
                tries = (
                    retry.TRIES_AWAY if self.has_answered else retry.TRIES_NEVER_SEEN
                )
                return Fault(reason.format(words), tries=tries)
        if any(isinstance(each, ValueError) for each in errors):
            return Fault("its address is not valid")
        reason = f"the connection broke: {words}"
        if any(isinstance(each, IncompleteRead) for each in errors):
            reason = "the body ended early"
        if any(isinstance(each, DecodeError) for each in errors):
            reason = "the body cannot be unpacked"
        late = (TimeoutError, urllib3.exceptions.TimeoutError)
        if any(isinstance(each, late) for each in errors):
            reason = f"no byte for {self.timeout:g} s"
        return Fault(reason, tries=retry.TRIES)


_ON_THE_WAY = {
    ProxyError: "the proxy fails: {}",
    ssl.SSLError: "{}",
    NameResolutionError: "the server's name cannot be resolved",
    socket.gaierror: "the server's name cannot be resolved",
    NewConnectionError: "cannot connect: {}",
    ConnectTimeoutError: "the server does not accept connections",
}
"""Errors before a server was reached, the more telling ones first."""


class SetupError(OSError):
    """The proxy or the certificates that the environment names cannot be used."""


def redirected(url: str, location: str, *, is_secret: bool) -> str:
    """Return where a redirect leads, if it may be followed.

    Parameters
    ----------
    url : str
        The address that was asked.
    location : str
        What the server says.
    is_secret : bool
        Whether the address, or what is sent to it, is for this server alone.

    Raises
    ------
    Fault
        From https to http; from a secret address to another server; to no address.
    """
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
        servers = [
            (u.scheme, u.hostname, u.port or {"https": 443, "http": 80}.get(u.scheme))
            for u in (old, new)
        ]
    except ValueError:
        raise Fault("it is redirected to an address that is not valid") from None
    if (old.scheme, new.scheme) == ("https", "http"):
        raise Fault("it is redirected from https to http")
    if is_secret and servers[0] != servers[1]:
        raise Fault("its address, which is secret, is redirected elsewhere")
    return target


def bare_etag(etag: str) -> str:
    """Return an ETag without what surrounds it.

    >>> bare_etag('W/"abc"')
    'abc'
    """
    return etag.strip().removeprefix("W/").strip('"')


def _timestamp(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


# --- Proxies and certificates -----------------------------------------------------


def _make_manager(proxy: str | None, n_connections: int) -> urllib3.PoolManager:
    options: dict[str, Any] = {"maxsize": n_connections, "ssl_context": _tls_context()}
    if not proxy:
        return urllib3.PoolManager(**options)
    proxy = requests.utils.prepend_scheme_if_needed(proxy, "http")
    if proxy.lower().startswith("socks"):
        from urllib3.contrib.socks import SOCKSProxyManager

        return SOCKSProxyManager(proxy, **options)
    parts = urlsplit(proxy)
    if not parts.hostname:
        raise SetupError("the address of the proxy is not valid")
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
    if parts.scheme == "https":
        options["proxy_ssl_context"] = options["ssl_context"]
    return urllib3.ProxyManager(proxy, **options)


def _tls_context() -> ssl.SSLContext:
    """Return what trusts the certificates that the environment names."""
    for name in CA_VARIABLES:
        if path := os.environ.get(name):
            try:
                return _load_certificates(path, os.stat(path).st_mtime_ns)
            except OSError as error:
                words = getattr(error, "strerror", None) or error
                text = f"{name} is {path}, which cannot be used: {words}"
            raise SetupError(text)
    return _load_certificates(requests.utils.DEFAULT_CA_BUNDLE_PATH, 0)


@functools.lru_cache(maxsize=4)
def _load_certificates(path: str, _version: int) -> ssl.SSLContext:
    # Once per process: to read a hundred certificates takes 20 ms.
    context = urllib3.util.ssl_.create_urllib3_context()
    is_folder = os.path.isdir(path)
    context.load_verify_locations(**{"capath" if is_folder else "cafile": path})
    return context


# --- Errors in words, and the log ---------------------------------------------------


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it wraps, in any of the ways of urllib3."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        names = ("original_error", "reason")
        inner = [*(getattr(error, name, None) for name in names), *error.args]
        inner.append(error.__cause__)
        # Errors of PySocks that wrap another are not named as the cause.
        if type(error.__context__).__module__ == "socks":
            inner.append(error.__context__)
        error = next((e for e in inner if isinstance(e, BaseException)), None)


def _words(error: BaseException) -> str:
    """Return a cause in the words of the operating system, of TLS, or of a proxy."""
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "verify_message", "")
        reason = error.reason or type(error).__name__
        return f"TLS fails: {reason}{f', {why}' if why else ''}"
    if str(error).startswith("Tunnel connection failed"):
        return str(error)
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return os.strerror(number).lower()
    return str(error) if type(error).__module__ == "socks" else type(error).__name__


class _Discreet(logging.Filter):
    """Leaves queries out of what urllib3 logs of our requests: they may be secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = str(record.threadName).startswith(AGENT[:10])
        if is_ours and isinstance(record.args, tuple):
            record.args = tuple(
                arg.partition("?")[0] if isinstance(arg, str) else arg
                for arg in record.args
            )
        return True


logging.getLogger("urllib3.connectionpool").addFilter(_Discreet())
