"""The state folder: what is kept in the data directory beside the data.

Data files mirror the bucket below the data directory. Beside them, the folder
``.laion_fmri`` keeps::

    license_accepted      marker of the accepted CC0 terms
    auth.json             request_id of the stimulus access service, mode 0600
    manifest.json         size and SHA-256 of the archive of stimuli, as downloaded
    listings/*.json       what the bucket held when a prefix was last listed
    fetched/*.json        which version of which file was fetched
    trials/sub-XX.npz     trial tables of a subject, parsed
    brain_masks/          brain masks derived where the bucket has none
    partial/              unfinished downloads

Every file appears whole under its name, by an atomic rename.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from laion_fmri_fetchers.layout.trees import STATE_FOLDER, brain_mask_name

from .files import write_atomically

if TYPE_CHECKING:
    import numpy as np


def state_path(data_dir: str, *parts: str) -> Path:
    """Return a path in the state folder."""
    return Path(data_dir, STATE_FOLDER, *parts)


def state_files(data_dir: str, folder: str) -> list[Path]:
    """Return the JSON files in a folder of the state folder, sorted by name.

    There are none where this user may not look.
    """
    path = state_path(data_dir, folder)
    try:
        names = os.listdir(path)
    except OSError:
        return []
    return [path / name for name in sorted(names) if name.endswith(".json")]


def license_marker(data_dir: str) -> Path:
    """Return the file that marks the CC0 terms as accepted."""
    return state_path(data_dir, "license_accepted")


def auth_file(data_dir: str) -> Path:
    """Return the file that keeps the ``request_id`` of the access service."""
    return state_path(data_dir, "auth.json")


def official_auth_file() -> Path:
    """Return the file in which the dataset's own package keeps its ``request_id``."""
    return Path.home() / ".cache" / "laion-fmri" / "auth.json"


def partial_dir(data_dir: str) -> Path:
    """Return the folder of unfinished downloads."""
    return state_path(data_dir, "partial")


def brain_mask_file(data_dir: str, subject: str) -> Path:
    """Return the brain mask derived for a subject without one in the bucket."""
    return state_path(data_dir, "brain_masks", brain_mask_name(subject))


def save_arrays(data_dir: str, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays in the state folder; where that is not possible, do without."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with contextlib.suppress(OSError):
        write_atomically(state_path(data_dir, name), buffer.getvalue())


def saved_arrays(data_dir: str, name: str) -> dict[str, np.ndarray]:
    """Return arrays kept by `save_arrays`; nothing where there are none."""
    import zipfile

    import numpy as np

    try:
        with open(state_path(data_dir, name), "rb") as stream:
            return dict(np.load(stream, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
