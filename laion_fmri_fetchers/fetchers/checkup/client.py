"""HTTP for a check-up: few bytes, one try, and patience with a silent server once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import ReadTimeoutError

from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.transfer import bucket
from laion_fmri_fetchers.transfer.http import Session
from laion_fmri_fetchers.transfer.troubles import ERRORS, RedirectError

from .points import shown_url

MOST_BYTES = 20_000_000
"""Bytes of answers that a check-up reads at most."""
CONNECT_TIMEOUT = 10.0
N_AT_ONCE = 8
"""Requests of a check-up at once."""
SMALL = 2**16

_PIECE = 2**16


def begin(function: Callable[..., Any], *arguments: Any) -> Future:
    """Call a function in a thread of its own, for which Ctrl-C does not wait."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="laion-fmri-doctor").start()
    return future


class NoAnswerError(LaionFmriError, ConnectionError):
    """A server does not answer, or breaks off; the text says why."""


class Reply(NamedTuple):
    """An answer, and as much of its body as was requested."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float
    """Until all of that was read."""


class Client:
    """The requests of a check-up, counted; threads may share it.

    Proxies and certificates are those of listings.

    Parameters
    ----------
    timeout : float
        Seconds without an answer after which a server is asked no more.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.n_bytes = 0
        self.n_answers = 0
        self.latencies: list[float] = []
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(N_AT_ONCE)
        self._silent: set[str] = set()
        self._objects: dict[tuple, Reply] = {}
        self._reading: dict[tuple, threading.Lock] = {}

    def get(
        self,
        url: str,
        *,
        query: dict[str, str] | None = None,
        start: int = 0,
        stop: int | None = None,
        headers: dict[str, str] | None = None,
        most: int = SMALL,
        may_be_cut: bool = False,
    ) -> Reply:
        """Ask once, and read no more of the body than the range, or ``most`` bytes.

        Parameters
        ----------
        url : str
            The address.
        query : dict, optional
            What follows the question mark.
        start, stop : int
            The range to ask for; with None as stop, none is.
        headers : dict, optional
            Further headers.
        most : int
            Bytes to read where no range is asked for.
        may_be_cut : bool, default=False
            Return what arrived where the body takes longer than the time-out.

        Raises
        ------
        NoAnswerError
            If there is no answer; its text names no secret.
        """
        server = urlsplit(url).netloc.rpartition("@")[2]
        asked = {"Accept-Encoding": "identity", **(headers or {})}
        if stop is not None:
            asked["Range"] = f"bytes={start}-{stop - 1}"
            most = stop - start
        with self._slots:
            if server in self._silent:
                raise NoAnswerError(f"not asked, since {server} was silent before")
            began = time.monotonic()
            try:
                with (
                    Session(self.timeout) as session,
                    session.ask("GET", url, params=query, headers=asked) as response,
                ):
                    self.latencies.append(response.elapsed.total_seconds())
                    body = self._read(response, most, began, may_be_cut)
            except NoAnswerError:
                raise
            except (RedirectError, *ERRORS) as error:
                if _is_silence(error):
                    self._silent.add(server)
                raise NoAnswerError(reason(error)) from None
        with self._lock:
            self.n_answers += 1
        seconds = time.monotonic() - began
        return Reply(response.status_code, response.headers, body, seconds)

    def read(self, key: str, start: int = 0, stop: int = SMALL) -> Reply:
        """Ask for a range of an object of the bucket, once for all who need it."""
        which = key, start, stop
        with self._lock:
            reading = self._reading.setdefault(which, threading.Lock())
        with reading:
            if which not in self._objects:
                url = bucket.object_url(key)
                self._objects[which] = self.get(url, start=start, stop=stop)
        return self._objects[which]

    def list_many(self, levels: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """List ``(prefix, delimiter)`` as the fetchers do, and count the bytes."""
        left = MOST_BYTES - self.n_bytes
        listings = bucket.list_many(
            levels, timeout=self.timeout, verbose=0, most_bytes=left
        )
        with self._lock:
            self.n_bytes += sum(listing["n_bytes"] for listing in listings)
            self.n_answers += len(listings)
        return listings

    def _read(
        self, response: requests.Response, most: int, began: float, may_be_cut: bool
    ) -> bytes:
        """Read a body's first bytes."""
        body = bytearray()
        for piece in response.iter_content(_PIECE):
            body += piece
            with self._lock:
                self.n_bytes += len(piece)
                is_spent = self.n_bytes > MOST_BYTES
            if len(body) >= most:
                break
            is_late = time.monotonic() - began > self.timeout
            if (is_late or is_spent) and not may_be_cut:
                why = "took too long" if is_late else "is more than is read here"
                raise NoAnswerError(f"the body {why}: {len(body)} bytes were read")
            if is_late or is_spent:
                break
        return bytes(body[:most])


def _is_silence(error: Exception) -> bool:
    """Return whether a server took too long; requests hides it where a body stalls."""
    cause = error.args[0] if error.args else None
    return isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError)


def reason(error: Exception) -> str:
    """Return in words why a request failed; of the address, at most its host."""
    text = cause_of(error)
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS fails: {text}"
    if isinstance(error, requests.exceptions.ProxyError):
        return f"the proxy fails: {text}"
    if isinstance(error, requests.ConnectTimeout):
        return "the server does not accept connections"
    if _is_silence(error):
        return "the server is silent"
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return "the address of the proxy is not valid"
    if isinstance(error, requests.exceptions.InvalidURL):
        return "the address is not valid"
    if isinstance(error, requests.ConnectionError):
        return f"no connection: {text}"
    return f"{type(error).__name__}: {text}"


def cause_of(error: BaseException) -> str:
    """Return the words of the innermost error that requests and urllib3 wrap."""
    cause: Any = error
    while True:
        last = cause.args[-1] if cause.args else None
        inner = (getattr(cause, "reason", None), last, cause.__cause__)
        wrapped = [e for e in inner if isinstance(e, BaseException)]
        if not wrapped:
            break
        cause = wrapped[0]
    words = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None)
    return str(words or last or type(cause).__name__)


def proxy_of(url: str) -> str | None:
    """Return host and port of the proxy that requests uses for an address."""
    proxies = requests.utils.get_environ_proxies(url)
    proxy = requests.utils.select_proxy(url, proxies)
    return shown_url(proxy).rpartition("://")[2].rstrip("/") if proxy else None
