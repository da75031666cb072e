"""Notes of which version of which file was downloaded."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from laion_fmri_fetchers.exceptions import UnsafeKeyError
from laion_fmri_fetchers.layout.keys import clean_key

from .files import write_atomically
from .state import state_files, state_path

if TYPE_CHECKING:
    pass


_NOTES = "fetched"

_MANY_NOTES = 50


class Note(NamedTuple):
    """Which version of a file was downloaded."""

    key: str
    size: int | None
    etag: str | None
    last_modified: str | None = None

    def differs_from(self, size: int | None, etag: str | None) -> bool:
        """Tell whether a listing has another version, as far as both are known."""
        versions = ((self.size, size), (self.etag, etag))
        return any(None not in both and both[0] != both[1] for both in versions)

    def is_older_than(self, last_modified: str | None) -> bool:
        """Tell whether a version listed is newer, and not older; where unknown, so."""
        if self.last_modified is None or last_modified is None:
            return True
        return self.last_modified <= last_modified


def note_fetched(data_dir: str, records: Iterable[dict[str, Any]]) -> None:
    """Write down which version of which files was downloaded.

    Each call writes a file of its own, so that writers never meet; when there are
    many, they are joined to one.
    """
    _add_notes(
        data_dir,
        {r["id"]: Note(*(r[name] for name in Note._fields)) for r in records},
    )


def note_removed(data_dir: str, ids: Iterable[str]) -> None:
    """Write down that files were removed on purpose, and are not missing."""
    _add_notes(data_dir, dict.fromkeys(ids))


def _add_notes(data_dir: str, notes: Mapping[str, Note | None]) -> None:
    folder = state_path(data_dir, _NOTES)
    before = state_files(data_dir, _NOTES)
    with contextlib.suppress(OSError):
        if len(before) >= _MANY_NOTES:
            notes = {**read_notes(data_dir), **notes}
        name = f"{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}.json"
        write_atomically(folder / name, json.dumps(notes).encode())
        if len(before) >= _MANY_NOTES:
            for file in before:
                file.unlink(missing_ok=True)


def read_notes(data_dir: str) -> dict[str, Note]:
    """Return which version of which files was downloaded, by ``id``.

    Notes that are not of this form, or of a file outside the data directory, are
    passed over: others may write to a shared directory.
    """
    notes: dict[str, Note] = {}
    for file in state_files(data_dir, _NOTES):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(file.read_bytes())
            for path, values in content.items() if isinstance(content, dict) else ():
                note = _note(path, values)
                if note:
                    notes[path] = note
                elif values is None:
                    notes.pop(path, None)
    return notes


def _note(path: str, values: Any) -> Note | None:
    """Return a note as it was written; None for anything else."""
    if not isinstance(values, list) or len(values) not in (3, 4):
        return None
    key, size, *texts = values
    is_size = size is None or (isinstance(size, int) and size >= 0)
    if not isinstance(key, str) or not is_size:
        return None
    if not all(text is None or isinstance(text, str) for text in texts):
        return None
    try:
        return Note(key, size, *texts) if clean_key(key) == path else None
    except UnsafeKeyError:
        return None
