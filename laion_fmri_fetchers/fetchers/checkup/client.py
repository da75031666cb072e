"""HTTP for a check-up: few bytes, one try, and patience with a silent server once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import requests

from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.remote import bucket
from laion_fmri_fetchers.remote.client import Client as HttpClient
from laion_fmri_fetchers.remote.client import Fault

from .points import shown_url

MOST_BYTES = 20_000_000
"""Bytes of answers that a check-up reads at most."""
CONNECT_TIMEOUT = 10.0
N_AT_ONCE = 8
"""Requests of a check-up at once."""
SMALL = 2**16


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
            if query:
                url = f"{url}?{urlencode(query)}"
            try:
                with HttpClient(1, self.timeout) as client:
                    answer = client.fetch(
                        url, most_bytes=most, headers=asked, is_final=True
                    )
            except Fault as fault:
                if fault.reason.startswith("no byte"):
                    self._silent.add(server)
                raise NoAnswerError(fault.reason) from None
        seconds = time.monotonic() - began
        with self._lock:
            self.latencies.append(seconds)
            self.n_answers += 1
            self.n_bytes += len(answer.body)
        return Reply(answer.status, answer.headers, answer.body[:most], seconds)

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

    def list_prefixes(self, levels: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """List ``(prefix, delimiter)`` as the fetchers do, and count the answers."""
        listings = bucket.list_prefixes(levels, timeout=self.timeout, verbose=0)
        with self._lock:
            self.n_bytes += sum(listing["n_bytes"] for listing in listings)
            self.n_answers += sum(listing["n_pages"] for listing in listings)
        return listings


def proxy_of(url: str) -> str | None:
    """Return host and port of the proxy that requests uses for an address."""
    proxies = requests.utils.get_environ_proxies(url)
    proxy = requests.utils.select_proxy(url, proxies)
    return shown_url(proxy).rpartition("://")[2].rstrip("/") if proxy else None
