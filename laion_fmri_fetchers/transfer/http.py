"""HTTP, set up in one place: proxies, certificates, redirects, bounds.

::

    in_sessions ─▶ daemon threads, a Session each, which the caller watches and cuts
                     └ Session.ask        requests, for listings and the access service
                         └ Session.read   a body, bounded in bytes and in idle time
    (downloads) ─▶ Session.ask_raw        urllib3, the engine of requests, for ranges

Both ways of asking go through the pools of one adapter. Proxies (with a password, over
TLS, or SOCKS with PySocks) and NO_PROXY are those that requests finds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import queue
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3

from . import policy
from .troubles import RedirectError, SetupError

AGENT = "laion-fmri-fetchers"
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that name certificates to trust; the first one that is set counts."""

THREADS = "laion-fmri-http"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_Result = TypeVar("_Result")


# --- Certificates and redirects --------------------------------------------------


def tls() -> ssl.SSLContext:
    """Return what trusts the certificates that the environment names."""
    for name in CA_VARIABLES:
        if path := os.environ.get(name):
            try:
                return _tls(path, os.stat(path).st_mtime_ns)
            except OSError as error:
                words = getattr(error, "strerror", None) or error
                text = f"{name} is {path}, which cannot be used: {words}"
            raise SetupError(text)
    return _tls(requests.utils.DEFAULT_CA_BUNDLE_PATH, 0)


@functools.lru_cache(maxsize=4)
def _tls(path: str, _version: int) -> ssl.SSLContext:
    # Made once: to read a hundred certificates takes 20 ms, which is not to be spent
    # per connection.
    context = urllib3.util.ssl_.create_urllib3_context()
    is_folder = os.path.isdir(path)
    context.load_verify_locations(**{"capath" if is_folder else "cafile": path})
    return context


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
    RedirectError
        From https to http; from a secret address to another server.
    ValueError
        If it is not an address.
    """
    target = urljoin(url, location)
    old, new = urlsplit(url), urlsplit(target)
    if (old.scheme, new.scheme) == ("https", "http"):
        raise RedirectError("it is redirected from https to http")
    if is_secret and _origin(old) != _origin(new):
        raise RedirectError("its address, which is secret, is redirected elsewhere")
    return target


def _origin(parts: Any) -> tuple[str, str | None, int | None]:
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


# --- A thread's connections ------------------------------------------------------


class Session(requests.Session):
    """The connections of one thread, which another thread can cut.

    Parameters
    ----------
    timeout : float
        Seconds without a byte after which a request is given up.
    answered : threading.Event, optional
        Set at the first answer; shared by the sessions of a call.
    proxies : dict, optional
        Proxies by host, filled as they are found; shared by the sessions of a call.
    """

    def __init__(
        self,
        timeout: float,
        answered: threading.Event | None = None,
        proxies: dict[str, dict[str, str]] | None = None,
    ):
        super().__init__()
        self.headers["User-Agent"] = AGENT
        # Otherwise requests sends a login of ~/.netrc, be it that of its entry
        # "default". No server here wants one.
        self.auth = lambda request: request
        self.timeout = timeout
        self.connect_timeout = min(timeout, policy.POLICY.connect_timeout)
        self.answered = answered or threading.Event()
        self._stopped = threading.Event()
        self._socket: Any = None
        self._waits_since = math.inf
        self._is_stuck = False
        self._pools: dict[str, tuple[Any, bool]] = {}
        self._proxies_of = {} if proxies is None else proxies
        adapter = _Adapter(self)
        for scheme in ("http://", "https://"):
            self.mount(scheme, adapter)

    # Asking, by the thread itself

    def ask(
        self, method: str, url: str, *, is_secret: bool = False, **options: Any
    ) -> requests.Response:
        """Send a request; redirects are followed, the body is not read."""

        def send(url: str) -> tuple[requests.Response, int, str | None]:
            response = self.request(
                method,
                url,
                timeout=(self.connect_timeout, self.timeout),
                stream=True,
                allow_redirects=False,
                **options,
            )
            options.pop("params", None)
            return response, response.status_code, response.headers.get("Location")

        return self._followed(url, send, is_secret)

    def ask_raw(
        self, url: str, headers: dict[str, str], *, is_secret: bool
    ) -> urllib3.BaseHTTPResponse:
        """Get with as little work as may be; redirects are followed, no body is read.

        An answer that is not wanted is to be given to `dismiss`.
        """

        def send(url: str) -> tuple[urllib3.BaseHTTPResponse, int, str | None]:
            response = self._send_raw(url, {"User-Agent": AGENT, **headers})
            return response, response.status, response.headers.get("Location")

        return self._followed(url, send, is_secret)

    def read(self, response: requests.Response, most_bytes: int) -> bytes:
        """Return a body; of one that is too long, a byte more than allowed."""
        body = bytearray()
        self.note_progress()
        while piece := response.raw.read(
            policy.POLICY.least_progress, decode_content=False
        ):
            self.note_progress()
            body += piece
            if len(body) > most_bytes:
                break
        if self._is_stuck:  # to the HTTP client, the cut may look like the end
            raise requests.Timeout
        return bytes(body[: most_bytes + 1])

    def pause(self, seconds: float) -> bool:
        """Wait; tell whether to go on after that."""
        self.note_rest()
        return not self._stopped.wait(seconds)

    def note_progress(self) -> None:
        """Take note of progress."""
        self._waits_since = time.monotonic()

    def note_rest(self) -> None:
        """Take note that nothing is waited for."""
        self._waits_since = math.inf

    def close(self) -> None:
        """Close all connections.

        urllib3 closes those of a pool when nothing refers to it anymore, but keeps the
        connections until then: as ours know their session, and that its pools, they
        would stay open for ever.
        """
        super().close()
        for pool, _ in self._pools.values():
            pool.close()
        self._pools.clear()

    # Cutting, by another thread

    @property
    def is_cut(self) -> bool:
        """Whether nothing more is to be asked."""
        return self._stopped.is_set()

    @property
    def is_stuck(self) -> bool:
        """Whether the request under way was ended for lack of progress."""
        return self._is_stuck

    def cut(self) -> None:
        """End what waits for the network, now and later."""
        self._stopped.set()
        self._shut()

    def cut_if_stuck(self) -> None:
        """End a request without progress; one without any byte ends by itself."""
        patience = self.timeout + policy.POLICY.grace
        if time.monotonic() - self._waits_since > patience:
            self._is_stuck = True
            self._shut()

    # Inside

    def note_socket(self, connected: Any) -> None:
        """Take note of the socket on which an answer is awaited."""
        self._socket = connected
        self._is_stuck = False
        self.note_progress()
        if self.is_cut:
            self._shut()

    def _shut(self) -> None:
        # TLS within TLS, as through a proxy, is a wrapper around the socket.
        connected = getattr(self._socket, "socket", self._socket)
        if connected is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _followed(
        self,
        url: str,
        send: Callable[[str], tuple[Any, int, str | None]],
        is_secret: bool,
    ) -> Any:
        for _ in range(policy.POLICY.redirects):
            response, status, location = send(url)
            if self._is_stuck:  # the cut looks like the end of the headers
                response.close()
                raise requests.Timeout
            if status not in REDIRECTS or not location:
                self.answered.set()
                return response
            response.close()
            url = redirected(url, location, is_secret=is_secret)
        raise RedirectError("the server redirects in a circle")

    def _send_raw(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        pool, target = self._pool(url)
        before = self._socket
        timeout = urllib3.Timeout(connect=self.connect_timeout, read=self.timeout)
        ask = functools.partial(
            pool.urlopen,
            "GET",
            target,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=timeout,
            preload_content=False,
            decode_content=False,
        )
        _asking.is_ours = True
        try:
            return ask()
        except urllib3.exceptions.ProtocolError as error:
            # A server may close a connection that was kept open just when a request
            # is sent on it.
            is_stale = isinstance(error.args[-1], ConnectionError)
            if not is_stale or self._socket is not before:
                raise
            return ask()
        finally:
            _asking.is_ours = False

    def _pool(self, url: str) -> tuple[Any, str]:
        """Return the pool of connections for an address, and what to ask it for."""
        scheme, host, path, query, _ = urlsplit(url)
        base = f"{scheme}://{host}"
        if base not in self._pools:
            if scheme not in ("http", "https") or not host:
                raise ValueError("not an address")
            request = requests.Request("GET", base).prepare()
            if base not in self._proxies_of:
                found = requests.utils.get_environ_proxies(base)
                self._proxies_of[base] = dict(found)
            proxies = self._proxies_of[base]
            adapter: Any = self.get_adapter(base)
            pool = adapter.get_connection_with_tls_context(request, None, proxies)
            is_forwarded = adapter.request_url(request, proxies).startswith("http")
            self._pools[base] = (pool, is_forwarded)
        pool, is_forwarded = self._pools[base]
        target = urlunsplit(("", "", path or "/", query, ""))
        return pool, base + target if is_forwarded else target


class _Adapter(requests.adapters.HTTPAdapter):
    """Pools that trust what `tls` trusts, and make sockets known to their session."""

    def __init__(self, session: Session):
        self._session = session
        # A thread has one request at a time. To close pools of ten took a quarter of
        # the time of small files.
        super().__init__(pool_maxsize=1)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        host, given = super().build_connection_pool_key_attributes(
            request, verify is not False, cert
        )
        # A file named here would be read again for each connection.
        options: dict[str, Any] = {
            k: v for k, v in given.items() if not k.startswith("ca_cert")
        }
        is_tls = str(request.url).startswith("https:")
        names = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
        if is_tls or any(os.environ.get(n, "").startswith("https:") for n in names):
            options["ssl_context"] = tls()
        return host, options

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave it to the context of `tls`, which verifies."""

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        if proxy.lower().startswith("https:"):
            options["proxy_ssl_context"] = tls()
        return super().proxy_manager_for(proxy, **options)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Noted):
            bases = (_Noted, pool.ConnectionCls)
            pool.ConnectionCls = type("Noted", bases, {"session": self._session})
        return pool


class _Noted:
    """A connection of urllib3 that makes its socket known to its session."""

    session: Session

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]
        connected = getattr(self.sock, "socket", self.sock)
        # Routers forget silent connections: what never comes is then noticed.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.session.note_socket(self.sock)

    def getresponse(self: Any, *args: Any) -> Any:
        self.session.note_socket(self.sock)
        return super().getresponse(*args)  # type: ignore[misc]


def dismiss(response: urllib3.BaseHTTPResponse, most_bytes: int = 2**16) -> None:
    """Be done with an answer; a body of some kB is read, to keep the connection."""
    length = getattr(response, "length_remaining", None)
    if length is None or length > most_bytes:
        response.close()
    else:
        response.drain_conn()


def read_into(response: Any, view: memoryview) -> int:
    """Fill a view with the next bytes of a body, unless it ends.

    The ``readinto`` of urllib3 reads into new memory and copies that, which takes a
    quarter longer for large files. So this is that of the response of `http.client`
    underneath, for which urllib3 has no public name.
    """
    n_bytes = response._fp.readinto(view)
    if response.length_remaining is not None:
        response.length_remaining -= n_bytes
    return n_bytes


_asking = threading.local()


class _Discreet(logging.Filter):
    """Leaves queries out of what urllib3 logs of our requests: they may be secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(_asking, "is_ours", False) and isinstance(record.args, tuple):
            record.args = tuple(
                arg.partition("?")[0] if isinstance(arg, str) else arg
                for arg in record.args
            )
        return True


logging.getLogger("urllib3.connectionpool").addFilter(_Discreet())


# --- Several sessions at once ----------------------------------------------------


def in_sessions(
    tasks: Sequence[Callable[[Session], _Result]],
    *,
    n_threads: int,
    timeout: float,
    most_seconds: float = math.inf,
    on_quiet: Callable[[], None] = lambda: None,
) -> Generator[tuple[int, _Result], None, None]:
    """Yield the number and result of each task, done in threads with a session each.

    The threads are daemons: Ctrl-C does not wait for a server that is silent. And the
    time-out of a socket is that of each read, so a server that sends a byte now and
    then is cut by the thread that waits for the results.

    Parameters
    ----------
    tasks : sequence of callable
        Functions of a `Session`.
    n_threads : int
        Threads at most.
    timeout : float
        Seconds without progress after which a request is given up.
    most_seconds : float, optional
        Seconds for all tasks.
    on_quiet : callable, optional
        Called once if the tasks take long.

    Raises
    ------
    TimeoutError
        After ``most_seconds``.
    BaseException
        The first error of a task, which ends all others.
    """
    limits = policy.POLICY
    answered = threading.Event()
    sessions = [Session(timeout, answered) for _ in tasks[:n_threads]]
    todo = deque(enumerate(tasks))
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    threads = [
        threading.Thread(
            target=_work, args=(session, todo, done), daemon=True, name=THREADS
        )
        for session in sessions
    ]
    began = time.monotonic()
    is_quiet = True
    try:
        _start(threads)
        n_left = len(tasks)
        while n_left:
            until = began + (limits.quiet if is_quiet else most_seconds)
            pause = min(limits.watch_every, max(0.0, until - time.monotonic()))
            with contextlib.suppress(queue.Empty):
                number, result, error = done.get(timeout=pause)
                if error is not None:
                    raise error
                n_left -= 1
                yield number, result
            for session in sessions:
                session.cut_if_stuck()
            passed = time.monotonic() - began
            if n_left and is_quiet and passed > limits.quiet:
                is_quiet = False
                on_quiet()
            if n_left and passed > most_seconds:
                raise TimeoutError
    finally:
        for session in sessions:
            session.cut()
        until = time.monotonic() + limits.grace
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))


def _start(threads: list[threading.Thread]) -> None:
    """Start threads: those that the system's limit allows, one at least."""
    n_started = 0
    try:
        for thread in threads:
            thread.start()
            n_started += 1
    except RuntimeError:
        if not n_started:
            raise


def _work(
    session: Session,
    todo: deque[tuple[int, Callable[[Session], Any]]],
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]],
) -> None:
    with session:
        while not session.is_cut:
            try:
                number, task = todo.popleft()
            except IndexError:
                return
            try:
                done.put((number, task(session), None))
            except BaseException as error:
                done.put((number, None, error))
                return
            finally:
                session.note_rest()
