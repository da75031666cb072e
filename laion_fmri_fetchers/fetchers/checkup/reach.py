"""The way to the bucket, from its name to a first page of its listing."""

from __future__ import annotations

import email.utils
import functools
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as LateError
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from laion_fmri_fetchers.messages import listed
from laion_fmri_fetchers.remote.bucket import bucket_url

from .client import CONNECT_TIMEOUT, Client, NoAnswerError, Reply, begin, proxy_of
from .points import Point, advice_on, judged, note, ok, shown_url

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

_MOST_SKEW = 60.0
_PORTS = {"http": 80, "https": 443}


def reach(client: Client) -> Iterator[Point]:
    """Yield the points on the way to the bucket; the first failed one is the last."""
    url = bucket_url()
    yield ok("bucket", shown_url(url))
    proxy = proxy_of(url)
    if proxy:
        yield ok("proxy in use", proxy)
    target = urlsplit(f"//{proxy}" if proxy else url)
    host = target.hostname or ""
    port = target.port or _PORTS.get("http" if proxy else urlsplit(url).scheme, 80)
    limit = min(client.timeout, CONNECT_TIMEOUT)
    who = f"the proxy {host}" if proxy else host
    try:
        addresses = _within(limit, socket.getaddrinfo, host, port)
    except (OSError, LateError, UnicodeError):
        yield judged(False, "name", f"{who} is not resolved")
        return
    yield ok("name", f"{who} is {listed(sorted({a[4][0] for a in addresses}), 2)}")
    try:
        _within(limit, socket.create_connection, (host, port), limit).close()
    except (OSError, LateError) as error:
        why = getattr(error, "strerror", None) or f"nothing for {limit:g} s"
        found = f"{who}, port {port}: {why}"
        advice = advice_on("proxy") if proxy else ""
        yield judged(False, "connection", found, advice=advice)
        return
    yield ok("connection", f"{who}, port {port}, accepts connections")
    yield from _first_pages(client, url, proxy)


def _within(limit: float, function: Callable, *arguments: Any) -> Any:
    """Call a function in a thread that is left behind where it takes too long."""
    return begin(function, *arguments).result(limit + 0.5)


def _first_pages(client: Client, url: str, proxy: str | None) -> Iterator[Point]:
    """Yield the points on TLS, proxy, clock and listing."""
    query = {"list-type": "2", "encoding-type": "url", "delimiter": "/"}
    limit = min(client.timeout, CONNECT_TIMEOUT) + client.timeout
    try:
        ask = functools.partial(client.get, query={**query, "max-keys": "2"})
        reply = begin(ask, f"{url}/").result(limit)
    except (NoAnswerError, LateError) as error:
        yield _no_answer(str(error) or f"nothing for {limit:g} s")
        return
    if url.startswith("https:"):
        yield ok("TLS", "the certificate is trusted")
    is_of_s3 = b"<Error>" in reply.body
    if reply.status == 407 or (proxy and reply.status >= 400 and not is_of_s3):
        status = f"{proxy} answers with status {reply.status}"
        yield judged(False, "proxy", status)
        return
    yield _clock(reply)
    if reply.status != 200:
        yield judged(False, "listing", f"status {reply.status}", "200")
        return
    yield from _listing(client, f"{url}/", query, reply)


def _no_answer(why: str) -> Point:
    if why.startswith("TLS"):
        return judged(False, "TLS", why, advice=_advice_on_tls(why))
    if why.startswith("the proxy"):
        return judged(False, "proxy", why)
    return judged(False, "listing", why, "an answer")


def _advice_on_tls(why: str) -> str:
    if "expired" in why or "not yet valid" in why:
        return "Check the clock of this machine; else the server's certificate is old."
    if "match" in why:
        return "Another server answers under this name; check network and proxy."
    given = [name for name in CA_VARIABLES if os.environ.get(name)]
    in_force = f"{given[0]} names another" if given else "none is set"
    return (
        "A proxy or firewall of your institute may sign connections with a CA of its "
        f"own. Name its certificates by REQUESTS_CA_BUNDLE ({in_force})."
    )


def _clock(reply: Reply) -> Point:
    date = reply.headers.get("Date")
    if not date:
        return note("clock", "the server does not give its date")
    try:
        server_time = email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return note("clock", f"the server's date does not parse: {date!r}")
    skew = time.time() - server_time
    return judged(
        abs(skew) <= _MOST_SKEW,
        "clock",
        f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the server's",
        f"within {_MOST_SKEW:.0f} s",
    )


def _listing(
    client: Client, url: str, query: dict[str, str], reply: Reply
) -> Iterator[Point]:
    """Yield whether a page of two names, and the page behind it, are as S3's."""
    first = _page(reply)
    token = first.get("NextContinuationToken", "")
    is_right = (
        len(first.get("names", ())) == 2
        and first.get("IsTruncated") == "true"
        and first.get("EncodingType") == "url"
        and token
    )
    if not is_right:
        found = f"{first.get('tag')}, {len(first.get('names', ()))} names, "
        found += f"truncated: {first.get('IsTruncated')}, token: {bool(token)}, "
        found += f"encoding: {first.get('EncodingType')}"
        yield judged(False, "listing", found)
        return
    yield judged(True, "listing", "pages of 2 names, encoded as URLs, with a token")
    rest = client.get(url, query={**query, "continuation-token": token})
    second = _page(rest)
    names = second.get("names", [])
    yield judged(
        bool(names) and not set(names) & set(first["names"]),
        "listing goes on",
        f"status {rest.status}, {len(names)} further names",
    )
    most = second.get("MaxKeys", "unknown")
    if most != "1000":
        yield judged(False, "keys per page", f"at most {most}")


def _page(reply: Reply) -> dict[str, Any]:
    """Return the content of a page of a listing; nothing if it is not XML."""
    try:
        root = ET.fromstring(reply.body)
    except ET.ParseError:
        return {"tag": "not XML"}
    said: dict[str, Any] = {e.tag.rpartition("}")[2]: e.text for e in root}
    keys = [e.text for e in root.iterfind("{*}Contents/{*}Key")]
    folders = [e.text for e in root.iterfind("{*}CommonPrefixes/{*}Prefix")]
    return {**said, "tag": root.tag.rpartition("}")[2], "names": keys + folders}
