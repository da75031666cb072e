"""The access service's public manifest: terms, and size and SHA-256 of its files.

fetch_manifest, current_terms_version ─▶ the service, now
save_manifest ─▶ manifest.json ─▶ saved_manifest      the files on disk, as fetched
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from laion_fmri_fetchers.cache.files import read_file, write_atomically
from laion_fmri_fetchers.cache.state import state_path
from laion_fmri_fetchers.exceptions import AccessServiceError, UnsafeKeyError
from laion_fmri_fetchers.layout.keys import clean_key
from laion_fmri_fetchers.layout.trees import GATED, STIMULI

from .service import ADVICE, TRIES, ask_service, raise_for_status, server_url

_ORDER = "order"

_MANIFEST = "the manifest of the stimulus files"


class GatedFile(NamedTuple):
    """A file of the access service: size in bytes and SHA-256, in lower case."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """The access service's public account of its files, by ``id``."""

    terms_version: str
    files: dict[str, GatedFile]


def current_terms_version(*, timeout: float = 30.0) -> str:
    """Ask the access service which version of the Data Use Agreement is in force.

    Parameters
    ----------
    timeout : float, default=30.0
        Seconds without an answer.

    Returns
    -------
    str
        The version, as ``accept_terms_version`` of `request_stimulus_access` takes it.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or its answer is not as documented.

    Examples
    --------
    ::

        version = current_terms_version()
    """
    server = server_url()
    content = _manifest_content(server, timeout, TRIES)
    return _text(content, "current_terms_version", server)


def fetch_manifest(timeout: float = 30.0, *, tries: int = TRIES) -> Manifest:
    """Ask the access service for its manifest, which needs no ``request_id``.

    Parameters
    ----------
    timeout : float, default=30.0
        Seconds without an answer.
    tries : int, default=3
        How often to ask a service that is busy or does not answer.

    Raises
    ------
    AccessServiceError
        If the service cannot be reached, or a field of the manifest is missing or is
        not as documented; the message names the field.
    """
    server = server_url()
    content = _manifest_content(server, timeout, tries)
    files = content.get("files")
    if not isinstance(files, list):
        _raise_bad_manifest(server, "files")
    entries = [_manifest_entry(entry, i, server) for i, entry in enumerate(files)]
    by_id = dict(entries)
    if len(by_id) < len(entries) or not by_id.keys() >= GATED:
        _raise_bad_manifest(server, "files")
    return Manifest(_text(content, "current_terms_version", server), by_id)


def saved_manifest(data_dir: str) -> dict[str, GatedFile]:
    """Return size and SHA-256 of the gated files as they were when fetched, by ``id``.

    Empty if none was fetched here; malformed entries are left out.
    """
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_file(_manifest_file(data_dir)))
    entries = content if isinstance(content, dict) else {}
    files = {name: gated_file(entries.get(name)) for name in GATED}
    return {name: file for name, file in files.items() if file}


def saved_order(data_dir: str) -> str | None:
    """Return what `save_manifest` was told of the order of images; None for nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
        order = json.loads(read_file(_manifest_file(data_dir))).get(_ORDER)
        return order if isinstance(order, str) else None
    return None


def save_manifest(
    data_dir: str, files: Mapping[str, GatedFile], order: str = ""
) -> None:
    """Keep size and SHA-256 of fetched files, where the directory can be written.

    ``order`` is a digest of the names of the images, in the order of the archive.
    """
    content: dict[str, Any] = {name: file._asdict() for name, file in files.items()}
    if order:
        content[_ORDER] = order
    with contextlib.suppress(OSError):
        write_atomically(
            _manifest_file(data_dir), (json.dumps(content, indent=2) + "\n").encode()
        )


def _manifest_file(data_dir: str) -> Path:
    return state_path(data_dir, "manifest.json")


def _manifest_content(server: str, timeout: float, tries: int) -> dict[str, Any]:
    answer = ask_service(
        server, "/api/v1/manifest", _MANIFEST, timeout=timeout, tries=tries
    )
    raise_for_status(answer, server, _MANIFEST)
    return answer.content


def _manifest_entry(entry: Any, index: int, server: str) -> tuple[str, GatedFile]:
    """Return the ``id`` of a file, its size and its SHA-256."""
    name = entry.get("name") if isinstance(entry, dict) else None
    file_id, file = f"{STIMULI}{name}", gated_file(entry)
    try:
        is_safe = isinstance(name, str) and clean_key(file_id) == file_id
    except UnsafeKeyError:
        is_safe = False
    if not is_safe or "/" in str(name):
        _raise_bad_manifest(server, f"files[{index}].name")
    if file is None:
        _raise_bad_manifest(server, f"files[{index}].size or .sha256")
    return file_id, file


def gated_file(entry: Any) -> GatedFile | None:
    """Return size and SHA-256 of a file; None where they are not valid."""
    if not isinstance(entry, dict):
        return None
    size, digest = entry.get("size"), entry.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(digest, str):
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        return None
    return GatedFile(size, str(digest).lower())


def _text(content: Mapping[str, Any], field: str, server: str) -> str:
    """Return a text of the manifest that is short and printable."""
    text = content.get(field)
    if not isinstance(text, str) or not 0 < len(text) <= 100 or not text.isprintable():
        _raise_bad_manifest(server, field)
    return str(text)


def _raise_bad_manifest(server: str, field: str) -> NoReturn:
    raise AccessServiceError(
        f"The manifest of {server} is not valid: its field {field!r} is missing or not "
        f"as documented. {ADVICE}"
    )
