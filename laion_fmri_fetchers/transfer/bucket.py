"""The bucket over HTTP: its address, and listing its objects.

    list_many ─▶ in_sessions, a few threads ─▶ _list: pages, one after the other
                                                 └ _page ─▶ Session.ask ─▶ parse_page

The bucket is public and read anonymously, with S3's ListObjectsV2. Another S3
server, such as a lab's mirror, is named by ``LAION_FMRI_BUCKET_URL``, a base such
that ``{base}/{key}`` is an object and ``{base}/?list-type=2`` lists; virtual-host
and path-style addresses both fit that.

The HTTP client is imported when it is first needed: offline calls do without it.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from laion_fmri_fetchers.exceptions import BucketError, InvalidQueryError
from laion_fmri_fetchers.messages import tell

from . import policy
from .pages import ADVICE, Object, Page, parse_page

if TYPE_CHECKING:
    import requests

    from .http import Session
    from .troubles import Trouble

__all__ = [
    "DEFAULT_BUCKET_URL",
    "Object",
    "UnreachableError",
    "bucket_url",
    "list_many",
    "list_objects",
    "object_url",
]

PUBLIC_BUCKET = "s3://laion-fmri"
DEFAULT_BUCKET_URL = "https://laion-fmri.s3.us-west-2.amazonaws.com"

_LARGEST_PAGE = 2**23
"""Bytes of a page: S3's have 1,000 keys, of 1 kB each at most, with 0.5 kB about it."""


class UnreachableError(BucketError):
    """The bucket gives no answer, or none but "busy"; it may pass."""


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


def list_objects(
    prefix: str = "",
    delimiter: str = "",
    *,
    timeout: float = 30.0,
    most_bytes: float = math.inf,
) -> dict[str, Any]:
    """List the objects whose keys begin with a prefix, page by page.

    Parameters
    ----------
    prefix : str, default=""
        What the keys begin with.
    delimiter : {"", "/"}, default=""
        With ``"/"``, only objects directly below the prefix are listed, and what
        lies deeper is summed up in ``prefixes``.
    timeout : float, default=30.0
        Seconds without an answer, or without progress of it, after which a request
        is given up.
    most_bytes : float, optional
        Bytes of answers that are read at most.

    Returns
    -------
    dict
        ``prefix``, ``delimiter``, ``bucket`` (base address), ``listed_at`` (seconds
        since the epoch), ``n_bytes`` (of the answers), ``objects`` (list of `Object`)
        and ``prefixes`` (list of str).

    Raises
    ------
    UnreachableError
        If the bucket does not answer, or is busy.
    BucketError
        If the bucket denies listing, or its answer is not a listing, or too long.
    """
    wanted = [(prefix, delimiter)]
    return list_many(wanted, timeout=timeout, verbose=0, most_bytes=most_bytes)[0]


def list_many(
    wanted: Iterable[tuple[str, str]],
    *,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    most_bytes: float = math.inf,
) -> list[dict[str, Any]]:
    """List several ``(prefix, delimiter)`` at once; errors as `list_objects`.

    The first error ends all of them. A line is printed where listing takes long, and
    ``verbose`` is not 0.
    """
    from .http import in_sessions

    url = bucket_url()
    tasks = [
        functools.partial(_list, url, prefix, delimiter, most_bytes)
        for prefix, delimiter in wanted
    ]
    message = f"Waiting for {url} to list its files ..."
    listings = dict(
        in_sessions(
            tasks,
            n_threads=n_connections,
            timeout=timeout,
            on_quiet=lambda: tell(message, verbose),
        )
    )
    return [listings[number] for number in range(len(tasks))]


def _list(
    url: str, prefix: str, delimiter: str, most_bytes: float, session: Session
) -> dict[str, Any]:
    listing: dict[str, Any] = {
        "prefix": prefix,
        "delimiter": delimiter,
        "bucket": url,
        "listed_at": time.time(),
        "n_bytes": 0,
        "objects": [],
        "prefixes": [],
    }
    query = {"list-type": "2", "prefix": prefix, "encoding-type": "url"}
    if delimiter:
        query["delimiter"] = delimiter
    level = repr(prefix) if prefix else "the top level"
    what = f"the listing of {level} in {url}"
    last = ""
    while True:
        page = _page(session, f"{url}/", query, what)
        listing["n_bytes"] += page.n_bytes
        if listing["n_bytes"] > most_bytes:
            raise BucketError(f"Too long to be read: {what}.")
        names = [*page.prefixes, *(entry.key for entry in page.objects)]
        listing["prefixes"] += page.prefixes
        # Keys that end in a slash are marks of folders, not files.
        listing["objects"] += [
            entry for entry in page.objects if not entry.key.endswith("/")
        ]
        if not page.is_truncated:
            return listing
        if not (names and page.token and min(names) > last):
            raise BucketError(
                f"The server breaks off {what}, or repeats it, without saying how "
                f"to continue. {ADVICE}"
            )
        last = max(names)
        query["continuation-token"] = page.token


def _page(session: Session, url: str, query: dict[str, str], what: str) -> Page:
    """Return a page, asked for again after a while where that may help."""
    limits = policy.POLICY
    tries, began = 0, time.monotonic()
    while True:
        tries += 1
        answer = _answer(session, url, query, what)
        if isinstance(answer, Page):
            return answer
        if isinstance(answer, _Busy):
            if tries >= limits.tries:
                raise UnreachableError(
                    f"The server is busy: status {answer.status} for {what}, {tries} "
                    "times. Try again later."
                )
        else:
            # A try took all of its time, and nothing ever answered: others would, too.
            is_hopeless = (
                not session.answered.is_set()
                and time.monotonic() - began >= session.connect_timeout
            )
            if tries >= limits.tries_unreachable_at_first or is_hopeless:
                raise UnreachableError(
                    f"No answer to {what} ({answer.reason}). Check the network, "
                    "and LAION_FMRI_BUCKET_URL if you set it."
                )
        asked = answer.retry_after if isinstance(answer, _Busy) else None
        if not session.pause(limits.wait(tries, asked)):
            raise UnreachableError(f"Interrupted: {what}.")


class _Busy(NamedTuple):
    """An answer that may be another later."""

    status: int
    retry_after: float | None


def _answer(
    session: Session, url: str, query: dict[str, str], what: str
) -> Page | _Busy | Trouble:
    """Ask for a page once; return it, or why it may be there later."""
    from .troubles import ERRORS, RedirectError, trouble

    headers = {"Accept-Encoding": "identity"}
    try:
        with session.ask("GET", url, params=dict(query), headers=headers) as response:
            status = response.status_code
            if status in policy.POLICY.retried:
                asked = response.headers.get("Retry-After", "")
                return _Busy(status, policy.retry_after(asked))
            _refuse(response, what)
            return parse_page(_body(session, response, what), what)
    except BucketError:
        raise
    except RedirectError as error:
        raise BucketError(f"Cannot ask for {what}: {error}. {ADVICE}") from None
    except ERRORS as error:
        answer = trouble(error, session.timeout)
    if answer.kind.is_final:
        raise BucketError(f"Cannot ask for {what} ({answer.reason}). {ADVICE}")
    return answer


def _refuse(response: requests.Response, what: str) -> None:
    """Raise where an answer is not the page of a listing, by its head."""
    status = response.status_code
    if status == 403:
        raise BucketError(f"The server denies {what} (status 403). {ADVICE}")
    if status == 404:
        raise BucketError(f"No such bucket: status 404 for {what}. {ADVICE}")
    if status != 200:
        raise BucketError(f"Status {status} for {what}. {ADVICE}")
    # A compressed page of a few kB may be one of many GB.
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BucketError(
            f"The server compresses {what}, though it was asked not to. {ADVICE}"
        )


def _body(session: Session, response: requests.Response, what: str) -> bytes:
    body = session.read(response, _LARGEST_PAGE)
    if len(body) > _LARGEST_PAGE:
        raise BucketError(
            f"The server sends more than {_LARGEST_PAGE // 2**20} MiB as "
            f"a page of {what}. {ADVICE}"
        )
    return body
