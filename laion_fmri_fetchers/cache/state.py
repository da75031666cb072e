"""The state folder, in the data directory beside the data.

Data files mirror the bucket below the data directory. Beside them, the folder
``.laion_fmri`` keeps::

    license_accepted      marker of the accepted CC0 terms
    auth.json             request_id of the stimulus access service, mode 0600
    manifest.json         size and SHA-256 of the archive of stimuli, as downloaded
    listings/*.json       what the bucket held when a prefix was last listed
    fetched/*.json        which version of which file was fetched
    trials/sub-XX.columns trial tables of a subject, parsed
    brain_masks/          brain masks derived where the bucket has none
    voxels/sub-XX/ses-YY/ voxels of betas with all trials side by side
    splits/*/*.json       train/test splits by pool, with where they were read
    partial/              unfinished downloads

Every file appears whole under its name, by an atomic rename.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from laion_fmri_fetchers.layout.trees import STATE_FOLDER, brain_mask_name

from .files import read_file, write_atomically

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


def official_auth_file() -> Path | None:
    """Return the file in which the dataset's own package keeps its ``request_id``."""
    return home_path(".cache", "laion-fmri", "auth.json")


def home_path(*parts: str) -> Path | None:
    """Return a path in the user's home directory; None where there is none.

    A container that runs as ``docker run --user 12345`` has none.
    """
    home = os.path.expanduser("~")
    return None if home == "~" else Path(home, *parts)


def partial_dir(data_dir: str) -> Path:
    """Return the folder of unfinished downloads."""
    return state_path(data_dir, "partial")


def brain_mask_file(data_dir: str, subject: str) -> Path:
    """Return the brain mask derived for a subject without one in the bucket."""
    return state_path(data_dir, "brain_masks", brain_mask_name(subject))


def save_arrays(data_dir: str, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays in the state folder; where that is not possible, do without.

    The file is a line with a checksum of what follows, a line of JSON with type and
    shape of each array, and their bytes. It is read in a fifth of the time of a
    ``.npz`` of the same arrays.
    """
    about = {key: [array.dtype.str, *array.shape] for key, array in arrays.items()}
    body = json.dumps(about).encode() + b"\n"
    body += b"".join(array.tobytes() for array in arrays.values())
    with contextlib.suppress(OSError):
        write_atomically(state_path(data_dir, name), _checksum(body) + b"\n" + body)


def saved_arrays(data_dir: str, name: str) -> dict[str, np.ndarray]:
    """Return arrays kept by `save_arrays`; nothing where none are, or none whole."""
    import numpy as np

    try:
        content = read_file(state_path(data_dir, name))
        start = content.index(b"\n") + 1
        if content[:start] != _checksum(memoryview(content)[start:]) + b"\n":
            return {}
        about = content[start : content.index(b"\n", start) + 1]
        arrays, start = {}, start + len(about)
        for key, (dtype, *shape) in json.loads(about).items():
            array = np.frombuffer(content, dtype, math.prod(shape), start)
            arrays[key] = array.reshape(shape)
            start += array.nbytes
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return arrays


def _checksum(content: bytes | memoryview) -> bytes:
    return b"%08x" % zlib.crc32(content)
