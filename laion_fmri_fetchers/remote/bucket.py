"""The bucket: its address, its objects, and small files of any other web server.

The bucket is public and read anonymously, with S3's ListObjectsV2. Another S3 server,
such as a lab's mirror, is named by ``LAION_FMRI_BUCKET_URL``, a base such that
``{base}/{key}`` is an object and ``{base}/?list-type=2`` lists; virtual-host and
path-style addresses both fit that.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, unquote_plus, urlencode, urlsplit
from xml.etree import ElementTree as ET

from laion_fmri_fetchers.exceptions import (
    BucketError,
    DownloadError,
    InvalidQueryError,
)

if TYPE_CHECKING:
    from .client import Client, Fault

PUBLIC_BUCKET = "s3://laion-fmri"
DEFAULT_BUCKET_URL = "https://laion-fmri.s3.us-west-2.amazonaws.com"
ADVICE = (
    "Check that LAION_FMRI_BUCKET_URL, if you set it, is the address of a public S3 "
    "bucket with the dataset."
)
_LARGEST_PAGE = 2**23
"""Bytes of a page: S3's have 1,000 keys, of 1 kB each at most, with 0.5 kB about it."""
_N_DOCUMENTS = 8
"""Connections for documents; a web server gives no more to one client."""


class UnreachableError(BucketError):
    """The bucket gives no answer, or none but "busy"; it may pass."""


class Object(NamedTuple):
    """An object as the bucket lists it: size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str | None = None
    last_modified: str | None = None
    """ISO 8601, UTC."""


class _Page(NamedTuple):
    objects: list[Object]
    prefixes: list[str]
    token: str | None
    """What the next page is asked for with; None after the last, "" if unknown."""
    last_name: str
    n_bytes: int


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
    if "@" in urlsplit(url).netloc:
        raise InvalidQueryError(
            "LAION_FMRI_BUCKET_URL holds a user name or password, which would be shown "
            "and saved with listings. Name an address that needs none, such as a proxy "
            "on this machine."
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


def timestamp(date: str | None) -> float | None:
    """Return an ISO 8601 date of a listing in seconds since the epoch.

    >>> timestamp("2026-09-28T10:00:00.000Z")
    1790589600.0
    """
    if date is None:
        return None
    try:
        return datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None


def iso_date(seconds: float | None) -> str | None:
    """Return seconds since the epoch as listings write dates.

    >>> iso_date(1790589600.0)
    '2026-09-28T10:00:00.000Z'
    """
    if seconds is None:
        return None
    date = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{date:%Y-%m-%dT%H:%M:%S}.000Z"


def key_of(name: str) -> str:
    """Return the key that an ``s3://`` or http(s) address of the bucket stands for.

    Examples
    --------
    >>> key_of("s3://laion-fmri/participants.tsv"), key_of("participants.tsv")
    ('participants.tsv', 'participants.tsv')
    """
    if "://" not in name:
        return name
    for base in (PUBLIC_BUCKET, DEFAULT_BUCKET_URL, bucket_url()):
        if name.startswith(f"{base}/"):
            key = name.removeprefix(f"{base}/")
            return key if base == PUBLIC_BUCKET else unquote(key.partition("?")[0])
    raise InvalidQueryError(
        f"{name.partition('?')[0]!r} is not an address in the bucket; give one that "
        f"begins with {PUBLIC_BUCKET}/ or {bucket_url()}/, or a key alone"
    )


def list_prefixes(
    wanted: Iterable[tuple[str, str]],
    *,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> list[dict[str, Any]]:
    """List the objects below several prefixes at once, page by page.

    Parameters
    ----------
    wanted : iterable of (prefix, delimiter)
        What the keys begin with; with ``"/"`` as delimiter, only objects directly
        below the prefix are listed, and what lies deeper is summed up in ``prefixes``.
    n_connections : int, default=64
        HTTP connections, at most.
    timeout : float, default=30.0
        Seconds without a byte after which a request is given up.
    verbose : int, default=1
        Whether a line is printed where listing takes long.

    Returns
    -------
    list of dict
        For each, ``prefix``, ``delimiter``, ``bucket`` (base address), ``listed_at``
        (seconds since the epoch), ``n_pages`` and ``n_bytes`` of the answers,
        ``objects`` (list of `Object`) and ``prefixes`` (list of str).

    Raises
    ------
    UnreachableError
        If the bucket does not answer, or is busy.
    BucketError
        If the bucket denies listing, or its answer is not a listing. The first error
        ends all.
    """
    from .client import Client, Fault
    from .tasks import Tasks, Threads

    url = bucket_url()
    listings: list[dict[str, Any]] = []
    last_names: dict[int, str] = {}
    try:
        with (
            Client(n_connections, timeout) as client,
            Threads(n_connections) as threads,
        ):
            tasks = Tasks(threads, functools.partial(_give_up_on_silence, client))
            for number, (prefix, delimiter) in enumerate(wanted):
                about: dict[str, Any] = {
                    "prefix": prefix,
                    "delimiter": delimiter,
                    "bucket": url,
                }
                about |= {"listed_at": time.time(), "objects": [], "prefixes": []}
                about |= {"n_pages": 0, "n_bytes": 0}
                listings.append(about)
                tasks.submit(number, _fetch_page, client, about)
            for number, content in tasks.results(f"{url} to list its files", verbose):
                listing = listings[number]
                # Here rather than in threads, whose memory is given back and taken
                # again by every page, which takes as long as to parse it.
                page = _read_page(content, listing, last_names.get(number))
                last_names[number] = page.last_name
                # Keys that end in a slash are marks of folders, not files.
                listing["objects"] += [o for o in page.objects if o.key[-1:] != "/"]
                listing["prefixes"] += page.prefixes
                listing["n_pages"] += 1
                listing["n_bytes"] += page.n_bytes
                if page.token:
                    tasks.submit(number, _fetch_page, client, listing, page.token)
    except Fault as fault:
        reason = f"The bucket {url} cannot be listed: {fault.reason}."
        if fault.tries > 1:
            raise UnreachableError(
                f"{reason} Check the network, and LAION_FMRI_BUCKET_URL if you set it, "
                "or try again later."
            ) from None
        raise BucketError(f"{reason} {ADVICE}") from None
    return listings


def _give_up_on_silence(client: Client, _: Any, fault: Fault, __: float) -> None:
    """Raise where a try took all of its time, and nothing ever answered."""
    if fault.seconds >= client.connect_timeout and not client.has_answered:
        raise fault


def _fetch_page(
    client: Client, listing: dict[str, Any], token: str | None = None
) -> bytes:
    """Return a page of a listing: the first, or the one that a token stands for."""
    query = {"list-type": "2", "prefix": listing["prefix"], "encoding-type": "url"}
    if listing["delimiter"]:
        query["delimiter"] = listing["delimiter"]
    if token:
        query["continuation-token"] = token
    url = f"{listing['bucket']}/?{urlencode(query)}"
    answer = client.fetch(url, most_bytes=_LARGEST_PAGE)
    what = _name_listing(listing)
    if answer.status == 403:
        raise BucketError(f"The server denies {what} (status 403). {ADVICE}")
    if answer.status == 404:
        raise BucketError(f"No such bucket: status 404 for {what}. {ADVICE}")
    if answer.status != 200:
        raise BucketError(f"Status {answer.status} for {what}. {ADVICE}")
    return answer.body


def _name_listing(listing: dict[str, Any]) -> str:
    level = repr(listing["prefix"]) if listing["prefix"] else "the top level"
    return f"the listing of {level} in {listing['bucket']}"


def _read_page(content: bytes, listing: dict[str, Any], before: str | None) -> _Page:
    """Return a page of a listing that goes on after the name ``before``."""
    what = _name_listing(listing)
    try:
        page = parse_page(content)
    except (ET.ParseError, ValueError, LookupError) as error:
        text = f"The answer to {what} is not a listing: {error}. {ADVICE}"
        raise BucketError(text) from None
    is_stuck = before is not None and page.last_name <= before
    if is_stuck or page.token == "":
        raise BucketError(
            f"The server breaks off {what}, or repeats it, without saying how to "
            f"continue. {ADVICE}"
        )
    return page


def parse_page(content: bytes) -> _Page:
    """Return what a page of a listing holds.

    Raises
    ------
    ElementTree.ParseError, ValueError
        If it is not one.
    """
    if len(content) > _LARGEST_PAGE:
        raise ValueError(f"it has more than {_LARGEST_PAGE // 2**20} MiB")
    root = ET.fromstring(content)
    if root.tag.rpartition("}")[2] != "ListBucketResult":
        raise ValueError("it is other XML")
    space = root.tag.rpartition("}")[0] + "}" if "}" in root.tag else ""
    is_encoded = root.findtext(f"{space}EncodingType") == "url"
    decode = unquote_plus if is_encoded else str
    # Names of tags are made once: a listing may have a million objects.
    key_tag, size_tag = f"{space}Key", f"{space}Size"
    etag_tag, date_tag = f"{space}ETag", f"{space}LastModified"
    objects = []
    for element in root.iterfind(f"{space}Contents"):
        key, size = element.findtext(key_tag), element.findtext(size_tag, "")
        if not key or not size.isdecimal():
            raise ValueError("an object has no key or no size")
        etag = element.findtext(etag_tag, "").strip('"') or None
        date = element.findtext(date_tag)
        objects.append(Object(decode(key), int(size), etag, date))
    found = root.iterfind(f"{space}CommonPrefixes/{space}Prefix")
    prefixes = [decode(element.text or "") for element in found]
    token = root.findtext(f"{space}NextContinuationToken")
    is_cut = root.findtext(f"{space}IsTruncated") == "true"
    names = [*prefixes, *(each.key for each in objects)]
    token = (token if names else "") or "" if is_cut else None
    return _Page(objects, prefixes, token, max(names, default=""), len(content))


def read_documents(
    urls: Iterable[str], *, most_bytes: int, timeout: float, verbose: int
) -> list[bytes | None]:
    """Return what small files hold, in order; None for those that are not there.

    Of one that is too long, a byte more than allowed is returned.

    Parameters
    ----------
    urls : iterable of str
        Their addresses.
    most_bytes : int
        Bytes of a file at most.
    timeout : float
        Seconds without a byte after which a request is given up.
    verbose : int
        Whether to say so where it takes long.

    Raises
    ------
    DownloadError
        If the server cannot be reached, or refuses a file other than by 404. The
        text, which holds no address, says why.
    """
    from .client import Client, Fault
    from .tasks import Tasks, Threads

    documents: list[bytes | None] = []
    try:
        with Client(_N_DOCUMENTS, timeout) as client, Threads(_N_DOCUMENTS) as threads:
            tasks = Tasks(threads, functools.partial(_give_up_on_silence, client))
            for number, url in enumerate(urls):
                documents.append(None)
                fetch = functools.partial(client.fetch, url, most_bytes=most_bytes)
                tasks.submit(number, fetch)
            waiting_for = f"{len(documents)} small files"
            for number, answer in tasks.results(waiting_for, verbose):
                if answer.status == 200:
                    documents[number] = answer.body
                elif answer.status != 404:
                    raise DownloadError(f"status {answer.status}")
    except Fault as fault:
        raise DownloadError(fault.reason) from None
    return documents
