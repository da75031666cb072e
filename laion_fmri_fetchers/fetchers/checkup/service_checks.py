"""The access service and its request_id, and where train/test splits are read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from laion_fmri_fetchers.access.account import access_status
from laion_fmri_fetchers.access.gate import ArchiveVersion, archive_in
from laion_fmri_fetchers.access.service import refuse_plain, server_url
from laion_fmri_fetchers.exceptions import AccessServiceError
from laion_fmri_fetchers.layout.names import SUBJECTS
from laion_fmri_fetchers.layout.trees import ARCHIVE
from laion_fmri_fetchers.splits import MOST_BYTES, as_split, read_local, sources

from .client import NoAnswerError
from .context import Context
from .points import Point, judged, ok, shown_url

MANIFEST = "/api/v1/manifest"
PAGES = ("/terms", "/privacy")


def access_manifest(context: Context) -> Iterator[Point]:
    """Read the fields of the manifest."""
    server = server_url()
    refuse_plain(server, "The address of the access service")
    yield ok("access service", shown_url(server))
    manifest = _manifest(context, server)
    version = manifest.get("current_terms_version")
    is_text = isinstance(version, str) and bool(version)
    yield judged(is_text, "terms version", f"{version!r}")
    archive = _archive(manifest)
    found = f"{archive.size} bytes" if archive else "no name, size or SHA-256"
    yield judged(archive is not None, "manifest's files", found)


def archive_size(context: Context) -> Iterator[Point]:
    """Compare the size of the archive in the manifest with that in the bucket."""
    archive = _archive(_manifest(context, server_url()))
    rec = context.sample.file(ARCHIVE)
    if rec is not None and archive is not None:
        found = f"{archive.size} bytes in the manifest, {rec['size']} in the bucket"
        yield judged(archive.size == rec["size"], "size of the archive", found)


def _manifest(context: Context, server: str) -> dict[str, Any]:
    reply = context.client.get(server + MANIFEST)
    if reply.status != 200:
        raise NoAnswerError(f"status {reply.status} for {MANIFEST}")
    try:
        content = json.loads(reply.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise NoAnswerError(f"{MANIFEST} is not a JSON object")
    return content


def _archive(manifest: dict[str, Any]) -> ArchiveVersion | None:
    with contextlib.suppress(AccessServiceError):
        return archive_in(manifest, server_url()).archive
    return None


def access_pages(context: Context) -> Iterator[Point]:
    """Open the pages that a request for access refers to."""
    server = server_url()
    refuse_plain(server, "The address of the access service")
    statuses = {page: context.client.get(server + page).status for page in PAGES}
    found = ", ".join(f"{page} {status}" for page, status in statuses.items())
    yield judged(set(statuses.values()) == {200}, "terms and privacy", found)


def request_id(context: Context) -> Iterator[Point]:
    """Report whether a request_id is kept; it is neither sent nor shown."""
    status = access_status(context.data_dir)
    if status["status"]:
        yield ok("request_id", f"kept, {status['status']}; from {status['source']}")
    else:
        yield judged(False, "request_id", "none is kept")


def splits(context: Context) -> Iterator[Point]:
    """Read two splits from where a call would read them, unless they are kept."""
    for source in sources():
        if source.kind == "web":
            break
        try:
            files = read_local(source.place, "shared", ["tau"])
            files |= read_local(source.place, SUBJECTS[0], ["random_0"])
        except ValueError as error:
            yield judged(False, "splits", f"{source.place}: {error}")
            return
        if "tau" in files:
            for name, content in files.items():
                yield _split(content, name, source.place)
            return
    for pool, name in (("shared", "tau"), (SUBJECTS[0], "random_0")):
        url = f"{source.place}/{pool}/{name}.json"
        try:
            reply = context.client.get(url, most=MOST_BYTES)
        except NoAnswerError as error:
            yield judged(False, "splits", f"{shown_url(url)}: {error}")
            return
        if reply.status == 200:
            yield _split(reply.body, name, shown_url(url))
        elif name == "tau":  # a demo may lack the subject
            found = f"status {reply.status} for {shown_url(url)}"
            yield judged(False, "splits", found)


def _split(content: bytes, name: str, source: str) -> Point:
    point = "splits" if name == "tau" else "random splits"
    try:
        split = as_split(json.loads(content), name)
    except ValueError as error:
        return judged(False, point, f"{source}: {error}")
    if name == "tau":
        sizes = f"{len(split.train)} train, {len(split.test)} test"
        return ok(point, f"{name} of {sizes} from {source}")
    revision = split.params.get("revision")
    found = f"revision {revision}" if revision else "no revision"
    return judged(revision == 2, point, f"{found} from {source}")
