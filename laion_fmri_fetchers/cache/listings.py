"""Listings of the bucket, kept on disk for calls that cannot ask it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from laion_fmri_fetchers.layout.trees import DEMO
from laion_fmri_fetchers.messages import warn

from .files import write_atomically
from .state import state_files, state_path

_LISTINGS = "listings"


_TOP = "top"


_PER_LINE = 1000


_OBJECTS, _END = b', "objects": [', b"\n]}"


def save_listing(data_dir: str, listing: dict[str, Any]) -> None:
    """Keep a listing of the bucket; where that is not possible, do without.

    The file is JSON, with a line per `_PER_LINE` objects: it is read and written line
    by line, as a listing may have a million objects.
    """
    head = {name: value for name, value in listing.items() if name != "objects"}
    objects = listing["objects"]
    content = bytearray(json.dumps(head)[:-1].encode() + _OBJECTS)
    for at in range(0, len(objects), _PER_LINE):
        line = json.dumps(objects[at : at + _PER_LINE])[1:-1]
        content += (",\n" if at else "\n").encode() + line.encode()
    content += _END
    name = _listing_name(listing["prefix"]) + ".level" * bool(listing["delimiter"])
    with contextlib.suppress(OSError):
        write_atomically(state_path(data_dir, _LISTINGS, f"{name}.json"), content)


def saved_listings(
    data_dir: str, wanted: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the saved listings that cover some prefixes.

    Parameters
    ----------
    data_dir : str
        The data directory.
    wanted : iterable of (prefix, delimiter)
        Prefixes of keys; with the delimiter ``"/"``, one level of them.

    Returns
    -------
    list of dict
        Listings as `save_listing` took them, oldest first; broken ones are left out.
        Each of their ``objects`` is a list of key, size, ETag and last change.
    """
    names = [(quote(prefix, safe=""), delimiter) for prefix, delimiter in wanted]
    listings = []
    for file in state_files(data_dir, _LISTINGS):
        name = file.name.removesuffix(".json").removesuffix(".level")
        name = "" if name == _TOP else name
        if any(w.startswith(name) or (not d and name.startswith(w)) for w, d in names):
            try:
                listing = _read_listing(file)
                if not _is_listing(listing, name):
                    raise ValueError("it is not as it was written")
                listings.append(listing)
            except (OSError, ValueError, RecursionError) as error:
                warn(
                    f"The saved listing {file} cannot be used: {error}. Offline, what "
                    "the bucket holds there is unknown; a call online saves it anew."
                )
    return sorted(listings, key=lambda listing: listing["listed_at"])


def kept_root(data_dir: str) -> dict[str, Any] | None:
    """Return the saved listing of the top of the bucket; None where there is none."""
    roots = saved_listings(data_dir, [("", "/")])
    return roots[-1] if roots else None


def is_demo(root: dict[str, Any] | None) -> bool:
    """Return whether a listing of the top is that of a demo, with synthetic data."""
    return root is not None and any(one[0] == DEMO for one in root["objects"])


def _read_listing(file: Path) -> Any:
    if not file.is_file():
        raise OSError("it is not a file")
    with open(file, "rb") as lines:
        first = next(lines, b"")
        if not first.endswith(_OBJECTS + b"\n"):
            return json.loads(first + lines.read())
        listing = json.loads(first + _END)
        for line in lines:
            if line == _END[1:]:
                return listing
            listing["objects"] += json.loads(b"[" + line.rstrip(b",\n") + b"]")
    raise ValueError("the file ends early")


def _is_listing(listing: Any, name: str) -> bool:
    """Return whether a file's content is a listing of the prefix in its name."""
    match listing:
        case {
            "prefix": str(prefix),
            "delimiter": "" | "/",
            "listed_at": int() | float() as listed_at,
            "objects": list(objects),
            "prefixes": list(prefixes),
        }:
            return (
                quote(prefix, safe="") == name
                and isinstance(listing.get("bucket", ""), str)
                and math.isfinite(listed_at)
                and all(type(one) is str for one in prefixes)
                and all(map(_is_object, objects))
            )
    return False


def _is_object(one: Any) -> bool:
    if type(one) is not list or len(one) != 4:
        return False
    key, size, etag, last_modified = one
    return (
        type(key) is str
        and type(size) is int
        and size >= 0
        and (etag is None or type(etag) is str)
        and (last_modified is None or type(last_modified) is str)
    )


def _listing_name(prefix: str) -> str:
    return quote(prefix, safe="") or _TOP
