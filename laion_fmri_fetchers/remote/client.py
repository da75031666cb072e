"""One HTTP client for everything: proxies, certificates, redirects, errors in words.

No message, exception or log line from here holds an address, because addresses may be
presigned, and nobody's login is ever sent: ``~/.netrc`` is not read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from email.utils import mktime_tz, parsedate_tz
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from laion_fmri_fetchers.messages import tell

from . import retry
from .objects import Fault, RemoteObject

AGENT = "laion-fmri-fetchers"
# Beginning of the names of threads.
NAME = "laion-fmri"
# Variables that name certificates to trust; the first one that is set counts.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
# Seconds for a connection; three of the retransmissions of TCP fit into it.
CONNECT_TIMEOUT = 10.0
# Seconds of waiting after which a message says for what.
QUIET = 3.0

# Bytes that are read at a time: with less, threads spend more time on Python's lock;
# with more, less of what came is kept when a line breaks.
_CHUNK = 2**18
# S3 needs one redirect, a mirror perhaps two.
_REDIRECTS = 4
# Reasons by the names of errors, as PySocks need not be installed, the more telling
# ones first: before a server was reached, and after that.
_NOT_REACHED = {
    "ProxyError": "the proxy fails: {}",
    "SSLError": "{}",
    "NameResolutionError": "the server's name cannot be resolved",
    "NewConnectionError": "cannot connect: {}",
    "ConnectTimeoutError": "the server does not accept connections",
}
_BROKEN_OFF = {
    "TimeoutError": "no byte for {timeout:g} s",
    "IncompleteRead": "the body ended early",
    "DecodeError": "the body cannot be unpacked",
}


class Answer(NamedTuple):
    """Status, headers and body of a small document."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Threads(contextlib.AbstractContextManager["Threads"]):
    """Threads for any number of callers; a context manager that stops them at its end.

    Parameters
    ----------
    n : int
        Threads at most; they are started as there are calls for them.
    """

    def __init__(self, n: int):
        self.n, self._is_stopped = n, False
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __exit__(self, *_: object) -> None:
        self._is_stopped = True
        self._calls.put(None)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Call a function in a thread; after the end, the call is cancelled."""
        future: Future = Future()
        self._calls.put((future, function, arguments))
        if len(self._threads) < self.n:
            thread = threading.Thread(target=self._work, name=NAME, daemon=True)
            # Where the system allows no more threads, those there are will do.
            with contextlib.suppress(*[RuntimeError] * min(len(self._threads), 1)):
                thread.start()
                self._threads.append(thread)
        if self._is_stopped:
            future.cancel()
        return future

    def _work(self) -> None:
        while call := self._calls.get():
            future, function, arguments = call
            if self._is_stopped:
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as error:
                    future.set_exception(error)
        self._calls.put(None)  # for the next thread, also one that starts late


class Client(contextlib.AbstractContextManager["Client"]):
    """Connections to any number of servers, which threads share; a context manager.

    Parameters
    ----------
    n_connections : int
        Connections per server; fewer where open files are limited.
    timeout : float
        Seconds without a byte after which a request is given up.
    """

    def __init__(self, n_connections: int, timeout: float):
        self.n_connections, self.timeout = n_connections, timeout
        with contextlib.suppress(ImportError):  # Windows has no such limit
            from resource import RLIMIT_NOFILE, getrlimit

            # Files of a connection: its socket, a stream of the file that it writes,
            # that file, its lock and the list of its blocks.
            n_free = getrlimit(RLIMIT_NOFILE)[0] - len(os.listdir("/dev/fd"))
            self.n_connections = max(1, min(n_connections, n_free // 5))
        # Takes a line that says what will be tried again, and when; from any thread.
        self.told: Callable[[str], object] = lambda _: None
        self.is_closed = threading.Event()
        first = min(timeout, CONNECT_TIMEOUT)
        self._timeout = urllib3.Timeout(connect=first, read=timeout)
        self._has_answered = False
        self._managers: dict[str, urllib3.PoolManager] = {}
        self._responses: set[urllib3.BaseHTTPResponse] = set()
        self._lock = threading.Lock()

    def __exit__(self, *_: object) -> None:
        self.is_closed.set()
        for response in list(self._responses):  # of threads that Ctrl-C left reading
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                response.shutdown()
        for manager in self._managers.values():
            manager.clear()

    def retrying(
        self, function: Callable[..., Any], *arguments: Any, name: str = ""
    ) -> Any:
        """Call a function, again after a while if it raises a `Fault` that may pass."""
        n_tried = 0
        while True:
            try:
                return function(*arguments)
            except Fault as error:
                fault = error
            n_tried = 1 if fault.has_progressed else n_tried + 1
            seconds = retry.wait_before(n_tried, fault.wait)
            if n_tried >= fault.tries or fault.is_silent:
                break
            self.told(f"{name}: {fault.reason}, again in {seconds:.1f} s")
            if self.is_closed.wait(seconds):
                break
        if n_tried > 1:
            fault.reason += f" ({n_tried} times)"
        raise fault

    def fetch(
        self,
        url: str,
        most_bytes: int,
        *,
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
        opened = self._opened(method, url, headers or {}, body, follow=not is_final)
        with opened as response:
            if response.status in retry.RETRIED and not is_final:
                raise _status_fault(response)
            chunks = self._body(response, most_bytes + 1, decode_content=True)
            return Answer(response.status, response.headers, b"".join(chunks))

    def look_up(self, url: str) -> tuple[int, str | None, float | None]:
        """Return the size, ETag and date that an object has now.

        Raises
        ------
        Fault
            If the server does not say.
        """
        with self._opened("GET", url, {}) as response:
            if response.status != 200:
                raise _status_fault(response)
            if response.length_remaining is None:
                raise Fault("the server does not say its size")
            etag = bare_etag(response.headers.get("ETag", "")) or None
            return response.length_remaining, etag, _date(response)

    def read_range(
        self,
        target: RemoteObject,
        start: int,
        stop: int,
        sink: Callable[[int, bytes], object],
        *,
        is_whole: bool = False,
    ) -> float | None:
        """Read a range of an object; go on where it breaks off. Return its date.

        Parameters
        ----------
        target : RemoteObject
            The object, with the size and ETag that it must have.
        start, stop : int
            The range. If it is all of the object, it is asked for as such.
        sink : callable
            Takes the position and the bytes of each chunk.
        is_whole : bool, default=False
            Whether the server ignores Range, and each try begins at the start.

        Raises
        ------
        Fault
            If the answers are not what was asked for, or break off too often.
        """
        place, url = start, target.url

        def read() -> float | None:
            nonlocal place, url
            first = place = start if is_whole else place
            headers = {"If-Match": f'"{target.etag}"'} if target.etag else {}
            if (first, stop) != (0, target.size):
                headers["Range"] = f"bytes={first}-{stop - 1}"
            try:
                with self._opened(
                    "GET", url, headers, is_secret=target.renew is not None
                ) as response:
                    _check_range(response, first, stop, target)
                    for chunk in self._body(response, stop - first, is_exact=True):
                        sink(place, chunk)
                        place += len(chunk)
                    return _date(response)
            except Fault as fault:
                fault.has_progressed = place - first >= retry.PROGRESS
                if fault.remedy == "renew" and target.renew:
                    denied, url = url, target.renew(url)
                    if url != denied:
                        fault.has_progressed, fault.tries = True, retry.TRIES
                raise

        date: float | None = self.retrying(read, name=target.id)
        return date

    def _body(
        self,
        response: urllib3.BaseHTTPResponse,
        n_bytes: int,
        *,
        decode_content: bool = False,
        is_exact: bool = False,
    ) -> Iterator[bytes]:
        """Yield a body, of so many bytes at most, or exactly."""
        read = functools.partial(response.read, decode_content=decode_content)
        while n_bytes and (chunk := self._as_fault(read, min(_CHUNK, n_bytes))):
            n_bytes -= len(chunk)
            yield chunk
        if n_bytes and is_exact:
            raise Fault("the body ended early", tries=retry.TRIES)

    @contextlib.contextmanager
    def _opened(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Send a request; the body of the answer is to be read in the block.

        Of a body that was read to its end, urllib3 keeps the connection for the next
        request; any other answer closes it.

        Raises
        ------
        Fault
            If there is no answer.
        CancelledError
            If the client is closed, or was while the request was under way.
        """
        if self.is_closed.is_set():
            raise CancelledError
        response = self._as_fault(self._send, *arguments, **options)
        self._responses.add(response)
        try:
            # Whoever closes the client shuts what is in the set by then. What comes
            # later would be read by nobody, and waited for until its timeout.
            if self.is_closed.is_set():
                raise CancelledError
            yield response
        finally:
            self._responses.discard(response)
            response.close()
            response.release_conn()

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        is_secret: bool = False,
        follow: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, and follow redirects."""
        for _ in range(_REDIRECTS):
            response = self._manager(url).urlopen(
                method,
                url,
                headers={"User-Agent": AGENT, "Accept-Encoding": "identity", **headers},
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=self._timeout,
            )
            self._has_answered = True
            location = response.get_redirect_location()
            if not (follow and location):
                return response
            response.drain_conn()
            target = urljoin(url, location)
            if url.startswith("https:") and target.startswith("http:"):
                raise Fault("it is redirected from https to http")
            if is_secret and not urllib3.connection_from_url(url).is_same_host(target):
                raise Fault("its address, which is secret, is redirected elsewhere")
            url = target
        raise Fault("the server redirects in a circle")

    def _manager(self, url: str) -> urllib3.PoolManager:
        """Return the pools of connections for an address."""
        scheme, host = urlsplit(url)[:2]
        if scheme not in ("http", "https") or not host:
            raise ValueError("not an address")
        base = f"{scheme}://{host}"
        with self._lock:
            if base not in self._managers:
                self._managers[base] = _make_manager(base, self.n_connections)
        return self._managers[base]

    def _as_fault(
        self, function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """Return what a function does; raise errors of urllib3 as faults."""
        try:
            return function(*arguments, **options)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            fault = self._explain(error)
        raise fault  # here, such that no context holds the address

    def _explain(self, error: BaseException) -> Fault:
        """Return an error of urllib3 as a fault, in words without an address."""
        if isinstance(error, ValueError):
            return Fault("its address is not valid")
        chain = [error]
        while inner := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(inner)
        names = {kind.__name__ for each in chain for kind in type(each).__mro__}
        cause = next((e for e in reversed(chain) if isinstance(e, OSError)), None)
        words = type(error).__name__
        if isinstance(cause, ssl.SSLError):
            why = getattr(cause, "verify_message", "")
            words = f"TLS fails: {cause.reason or words}{f', {why}' if why else ''}"
        elif cause:
            # http.client and PySocks give their own words, without a number.
            words = cause.strerror.lower() if cause.strerror else str(cause)
        reasons = _NOT_REACHED | _BROKEN_OFF
        name = next((name for name in reasons if name in names), "")
        reason = reasons.get(name, "the connection broke: {}")
        tries = retry.TRIES_AWAY if name in _NOT_REACHED else retry.TRIES
        if name and not self._has_answered:
            tries = retry.TRIES_NEVER_SEEN
        fault = Fault(reason.format(words, timeout=self.timeout), tries=tries)
        # Where nothing has ever answered, it is enough to wait the whole time once.
        is_timeout = name in ("TimeoutError", "ConnectTimeoutError")
        fault.is_silent = is_timeout and not self._has_answered
        return fault


def gather(futures: list[Future], waiting_for: str, verbose: int) -> list[Any]:
    """Return the results of futures, or raise the first error of any.

    If it takes long and ``verbose`` is not 0, a line says what is waited for.
    """
    done, left = wait(futures, QUIET, FIRST_EXCEPTION)
    if left and not any(future.exception() for future in done):
        tell(f"Waiting for {waiting_for} ...", verbose)
        done, _ = wait(futures, None, FIRST_EXCEPTION)
    for future in done:
        future.result()
    return [future.result() for future in futures]


def bare_etag(etag: str) -> str:
    """Return an ETag without what surrounds it.

    >>> bare_etag('W/"abc"')
    'abc'
    """
    return etag.strip().removeprefix("W/").strip('"')


def _check_range(
    response: urllib3.BaseHTTPResponse, start: int, stop: int, target: RemoteObject
) -> None:
    """Raise unless an answer has a range of the object that is meant."""
    total = response.length_remaining
    if response.status == 206:
        sent = response.headers.get("Content-Range", "").strip()
        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", sent)
        if not span:
            text = "the server does not say what range it sends"
            raise Fault(text, 206, retry.TRIES)
        first, last, total = map(int, span.groups())
        if (first, last) != (start, stop - 1):
            text = "the server sends another range than asked"
            raise Fault(text, 206, retry.TRIES)
    elif response.status != 200:
        raise _status_fault(response)
    elif (start, stop) != (0, target.size):
        raise Fault("the server ignores Range", 200, remedy="whole")
    found = bare_etag(response.headers.get("ETag", ""))
    if target.etag and found not in ("", target.etag):
        raise Fault("it changed in the bucket", remedy="changed")
    if target.size is not None and total not in (None, target.size):
        text = f"the server has {total} bytes of it instead of {target.size}"
        raise Fault(text, tries=retry.TRIES)


def _date(response: urllib3.BaseHTTPResponse) -> float | None:
    """Return when an object was changed, in seconds since the epoch, if it is said."""
    date = parsedate_tz(response.headers.get("Last-Modified", ""))
    return mktime_tz(date) if date else None


def _status_fault(response: urllib3.BaseHTTPResponse) -> Fault:
    """Return an unsuccessful answer as a fault."""
    status = response.status
    if status == 412:
        return Fault("it changed in the bucket", status, remedy="changed")
    fault = Fault(f"status {status} {response.reason or ''}".rstrip(), status)
    if status in (400, 401, 403):
        fault.remedy = "renew"
    if status in retry.RETRIED:
        fault.tries = retry.TRIES
        fault.wait = retry.retry_after(response.headers.get("Retry-After")) or 0.0
    return fault


def _make_manager(base: str, n_connections: int) -> urllib3.PoolManager:
    """Return a manager for a server, by the proxy that the environment names for it."""
    proxy = requests.utils.select_proxy(base, requests.utils.get_environ_proxies(base))
    is_tls = base.startswith("https:") or (proxy or "").lower().startswith("https:")
    context = _tls_context() if is_tls else None
    options: dict[str, Any] = {"ssl_context": context}
    options |= {"maxsize": n_connections, "block": True}  # wait for a connection
    if not proxy:
        return urllib3.PoolManager(**options)
    proxy = requests.utils.prepend_scheme_if_needed(proxy, "http")
    if proxy.lower().startswith("socks"):
        # Without PySocks this is an ImportError, with urllib3's words about it.
        from urllib3.contrib.socks import SOCKSProxyManager

        return SOCKSProxyManager(proxy, **options)
    user, password = requests.utils.get_auth_from_url(proxy)
    if user:
        login = f"{user}:{password}"
        options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
    return urllib3.ProxyManager(proxy, proxy_ssl_context=context, **options)


def _tls_context() -> ssl.SSLContext:
    """Return what trusts the certificates that the environment names."""
    name = next(filter(os.environ.get, CA_VARIABLES), "")
    path = os.environ.get(name) or requests.utils.DEFAULT_CA_BUNDLE_PATH
    try:
        return _load_certificates(path, os.stat(path).st_mtime_ns)
    except OSError as error:
        text = f"{name} is {path}, which cannot be used: {error.strerror}"
        raise Fault(text) from None


@functools.lru_cache(maxsize=4)
def _load_certificates(path: str, _version: int) -> ssl.SSLContext:
    # Once per process: to read a hundred certificates takes 20 ms.
    context = urllib3.util.ssl_.create_urllib3_context()
    kind = "capath" if os.path.isdir(path) else "cafile"
    context.load_verify_locations(**{kind: path})
    return context


def _hide_queries(record: logging.LogRecord) -> bool:
    """Leave queries out of what urllib3 logs of our requests: they may be secret."""
    if str(record.threadName).startswith(NAME) and record.args:
        record.args = tuple(
            arg.partition("?")[0] if isinstance(arg, str) else arg
            for arg in record.args
        )
    return True


logging.getLogger("urllib3.connectionpool").addFilter(_hide_queries)
