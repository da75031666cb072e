"""The access service: its manifest, its pages, and whether a request_id is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from laion_fmri_fetchers.access.account import access_status
from laion_fmri_fetchers.access.service import ADVICE, refuse_plain, server_url
from laion_fmri_fetchers.layout.trees import ARCHIVE
from laion_fmri_fetchers.messages import listed
from laion_fmri_fetchers.storage.data_dir import get_data_dir

from .client import NoAnswerError
from .context import Context
from .points import NOTE, Point, judged, note, ok, shown_url

MANIFEST = "/api/v1/manifest"
PAGES = ("/terms", "/privacy")
FILE_FIELDS = ("name", "size", "sha256")

_ARCHIVE_NAME = ARCHIVE.rpartition("/")[2]


def access_manifest(context: Context) -> Iterator[Point]:
    """Read the fields of the manifest."""
    server = server_url()
    refuse_plain(server, "The address of the access service")
    yield ok("access service", shown_url(server))
    manifest = _manifest(context, server)
    version = manifest.get("current_terms_version")
    yield judged(
        isinstance(version, str) and bool(version),
        "terms version",
        f"{version!r}",
        "a text such as '2026-05-12'",
        f"Access cannot be requested. {ADVICE}",
    )
    versions = manifest.get("versions")
    yield judged(
        bool(manifest.get("dataset")) and isinstance(versions, list),
        "manifest",
        f"dataset {manifest.get('dataset')!r}, versions {versions!r}",
        "a dataset and its versions, 'v1' among them",
        ADVICE,
        NOTE,
    )
    files, good = _files(manifest)
    names = [str(file["name"]) for file in good]
    yield judged(
        bool(files) and len(good) == len(files) and _ARCHIVE_NAME in names,
        "manifest's files",
        f"{len(files)} files; with all fields: {listed(names) or 'none'}",
        f"{_ARCHIVE_NAME} and others, each with {listed(list(FILE_FIELDS))}",
        f"The stimulus images cannot be checked. {ADVICE}",
    )


def archive_size(context: Context) -> Iterator[Point]:
    """Compare the size of the archive in the manifest with that in the bucket."""
    _, good = _files(_manifest(context, server_url()))
    size = context.sample.size(ARCHIVE)
    told = next((f["size"] for f in good if f["name"] == _ARCHIVE_NAME), None)
    if size is not None and told is not None:
        yield judged(
            size == told,
            "size of the archive",
            f"{told} bytes in the manifest, {size} in the bucket",
            "the same",
            "Manifest and bucket are of different versions; downloads may be refused.",
        )


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


def _files(manifest: dict[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the files of a manifest, and those that have all fields."""
    files = manifest.get("files")
    files = files if isinstance(files, list) else []
    good = [f for f in files if isinstance(f, dict) and set(FILE_FIELDS) <= set(f)]
    return files, good


def access_pages(context: Context) -> Iterator[Point]:
    """Open the pages that a request for access refers to."""
    server = server_url()
    refuse_plain(server, "The address of the access service")
    found = {page: context.client.get(server + page).status for page in PAGES}
    yield judged(
        set(found.values()) == {200},
        "terms and privacy",
        ", ".join(f"{page} {status}" for page, status in found.items()),
        "200",
        f"Read them in a browser before you accept them. {ADVICE}",
        NOTE,
    )


def request_id(context: Context) -> Iterator[Point]:
    """Tell whether a request_id is kept; it is neither sent nor shown."""
    status = access_status(get_data_dir(context.data_dir))
    if status["status"]:
        yield ok("request_id", f"kept, {status['status']}; from {status['source']}")
    else:
        yield note(
            "request_id",
            "none is kept",
            "",
            "Only the stimulus images need it: request_stimulus_access().",
        )
