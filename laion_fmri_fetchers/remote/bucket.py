"""The bucket: its address, its objects, and small files of any other web server.

The bucket is public and read anonymously, with S3's ListObjectsV2. Another S3 server,
such as a lab's mirror, is named by ``LAION_FMRI_BUCKET_URL``, a base such that
``{base}/{key}`` is an object and ``{base}/?list-type=2`` lists; virtual-host and
path-style addresses both fit that.
"""

from __future__ import annotations

import os
import re
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
    from .client import Client

PUBLIC_BUCKET = "s3://laion-fmri"
DEFAULT_BUCKET_URL = "https://laion-fmri.s3.us-west-2.amazonaws.com"
ADVICE = (
    "Check that LAION_FMRI_BUCKET_URL, if you set it, is the address of a public S3 "
    "bucket with the dataset."
)
# Bytes of a page: S3's have 1,000 keys, of 1 kB each at most, with 0.5 kB about it.
_LARGEST_PAGE = 2**23
# Connections for documents; a web server gives no more to one client.
_N_DOCUMENTS = 8


class UnreachableError(BucketError):
    """The bucket gives no answer, or none but "busy"; it may pass."""


class Object(NamedTuple):
    """An object as the bucket lists it: size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str | None = None
    last_modified: str | None = None  # ISO 8601, UTC


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
    try:
        return datetime.fromisoformat((date or "").replace("Z", "+00:00")).timestamp()
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
    """List the objects below several prefixes at once.

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
    from .client import Client, Fault, Threads, gather

    url = bucket_url()
    try:
        with Client(n_connections, timeout) as client, Threads(n_connections) as pool:
            listings = [pool.submit(_list_all, client, url, *each) for each in wanted]
            return gather(listings, f"{url} to list its files", verbose)
    except Fault as fault:
        text = f"The bucket {url} cannot be listed: {fault.reason}. {ADVICE}"
        if fault.tries > 1:
            raise UnreachableError(f"{text} Otherwise, check the network.") from None
        raise BucketError(text) from None


def _list_all(
    client: Client, bucket: str, prefix: str, delimiter: str
) -> dict[str, Any]:
    """Return a listing, page by page; by a thread."""
    listing: dict[str, Any] = {"prefix": prefix, "delimiter": delimiter}
    listing |= {"bucket": bucket, "listed_at": time.time(), "n_pages": 0, "n_bytes": 0}
    listing |= {"objects": [], "prefixes": []}
    query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
    if delimiter:
        query["delimiter"] = delimiter
    what = f"the listing of {repr(prefix) if prefix else 'the top level'} in {bucket}"
    last_name = ""
    while True:
        url = f"{bucket}/?{urlencode(query)}"
        answer = client.retrying(client.fetch, url, _LARGEST_PAGE)
        if answer.status != 200:
            words = {403: "The server denies", 404: "No such bucket; it should have"}
            reason = f"{words.get(answer.status, 'The server does not send')} {what}"
            raise BucketError(f"{reason} (status {answer.status}). {ADVICE}")
        try:
            objects, prefixes, token = _parse_page(answer.body)
        except (ET.ParseError, ValueError, LookupError) as error:
            text = f"The answer to {what} is not a listing: {error}. {ADVICE}"
            raise BucketError(text) from None
        # Keys that end in a slash are marks of folders, not files.
        listing["objects"] += [each for each in objects if each.key[-1:] != "/"]
        listing["prefixes"] += prefixes
        listing["n_pages"] += 1
        listing["n_bytes"] += len(answer.body)
        if token is None:
            return listing
        before = last_name
        last_name = max([*prefixes, *(each.key for each in objects)], default="")
        if not token or last_name <= before:
            raise BucketError(
                f"The server breaks off {what}, or repeats it, without saying how to "
                f"continue. {ADVICE}"
            )
        query["continuation-token"] = token


def _parse_page(content: bytes) -> tuple[list[Object], list[str], str | None]:
    """Return objects, prefixes and the token of the next page; None after the last.

    Raises
    ------
    ElementTree.ParseError, ValueError, LookupError
        If it is not a page of a listing.
    """
    # Without its namespace, which some servers leave out.
    root = ET.fromstring(re.sub(rb'\sxmlns="[^"]*"', b"", content, count=1))
    if root.tag != "ListBucketResult":
        raise ValueError("it is other XML")
    decode = unquote_plus if root.findtext("EncodingType") == "url" else str
    objects = []
    for element in root.iterfind("Contents"):
        key, size = element.findtext("Key"), element.findtext("Size", "")
        if not key or not size.isdecimal():
            raise ValueError("an object has no key or no size")
        etag = element.findtext("ETag", "").strip('"') or None
        date = element.findtext("LastModified")
        objects.append(Object(decode(key), int(size), etag, date))
    found = root.iterfind("CommonPrefixes/Prefix")
    prefixes = [decode(element.text or "") for element in found]
    if root.findtext("IsTruncated") != "true":
        return objects, prefixes, None
    return objects, prefixes, root.findtext("NextContinuationToken") or ""


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
    from .client import Client, Fault, Threads, gather

    try:
        with Client(_N_DOCUMENTS, timeout) as client, Threads(_N_DOCUMENTS) as pool:
            futures = [
                pool.submit(client.retrying, client.fetch, url, most_bytes)
                for url in urls
            ]
            answers = gather(futures, f"{len(futures)} small files", verbose)
    except Fault as fault:
        raise DownloadError(fault.reason) from None
    for answer in answers:
        if answer.status not in (200, 404):
            raise DownloadError(f"status {answer.status}")
    return [answer.body if answer.status == 200 else None for answer in answers]
