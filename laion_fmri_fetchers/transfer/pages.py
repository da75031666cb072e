"""A page of a listing, as S3 writes it: from bytes of XML to objects and prefixes."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

from laion_fmri_fetchers.exceptions import BucketError

ADVICE = (
    "Check that LAION_FMRI_BUCKET_URL, if you set it, is the address of a public "
    "S3 bucket with the dataset."
)

_MOST_DIGITS = 18
"""Digits of a size: an exabyte. Python refuses to convert numbers of thousands."""


class Object(NamedTuple):
    """An object as the bucket lists it: size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str | None = None
    last_modified: str | None = None


class Page(NamedTuple):
    """A page of a listing."""

    objects: list[Object]
    prefixes: list[str]
    is_truncated: bool
    token: str
    n_bytes: int


def parse_page(content: bytes, what: str) -> Page:
    """Return the content of a page.

    Expat makes sure that it is XML of the plainest kind. In such XML, regular
    expressions find the texts of elements, much faster than by way of a tree.
    """
    try:
        _check(content)
        text = content.decode().replace("&quot;", "")
        if "<ListBucketResult" not in text:
            raise ValueError("it is other XML")
        head, _, rest = text.partition("<Contents>")
        frame = head + rest.rpartition("</Contents>")[2]
        is_url = _texts(frame, "EncodingType") == ["url"]
        decode = unquote_plus if is_url else str
        common = re.findall("<CommonPrefixes>(.*?)</CommonPrefixes>", text, re.DOTALL)
        return Page(
            _objects(text, decode),
            [
                decode(prefix)
                for element in common
                for prefix in _texts(element, "Prefix")
            ],
            _texts(frame, "IsTruncated") == ["true"],
            "".join(_texts(frame, "NextContinuationToken")),
            len(content),
        )
    except (expat.ExpatError, ValueError) as error:
        raise BucketError(
            f"The answer to {what} is not a listing: {error}. {ADVICE}"
        ) from None


def _check(content: bytes) -> None:
    """Raise if this is not XML in UTF-8 of nothing but elements and their texts."""

    def declaration(_: str, encoding: str | None, __: int) -> None:
        if encoding and encoding.lower() not in ("utf-8", "us-ascii"):
            raise ValueError(f"it is in {encoding}, not in UTF-8")

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, comments or such")

    parser = expat.ParserCreate("utf-8")
    parser.XmlDeclHandler = declaration
    parser.StartDoctypeDeclHandler = parser.StartCdataSectionHandler = refuse
    parser.CommentHandler = parser.ProcessingInstructionHandler = refuse
    parser.Parse(content, True)


def _texts(xml: str, name: str) -> list[str]:
    """Return the texts of all elements of a name."""
    texts = re.findall(f"<{name}>([^<]*)<", xml)
    return [html.unescape(text) for text in texts] if "&" in xml else texts


def _objects(xml: str, decode: Callable[[str], str]) -> list[Object]:
    n = xml.count("<Contents>")
    keys, sizes = _texts(xml, "Key"), _texts(xml, "Size")
    nothing: list[str | None] = [None] * n
    etags = [etag.strip('"') or None for etag in _texts(xml, "ETag")] or nothing
    dates = _texts(xml, "LastModified") or nothing
    if {len(keys), len(sizes), len(etags), len(dates), xml.count("Contents>") / 2} != {
        n
    }:
        raise ValueError("not every object has a key, a size, an ETag and a date")
    if not all(keys):
        raise ValueError("an object has an empty key")
    if not all(size.isdecimal() and len(size) <= _MOST_DIGITS for size in sizes):
        raise ValueError("the size of an object is not a number")
    return [*map(Object, map(decode, keys), map(int, sizes), etags, dates)]
