"""Files that this package derived, and what their headers say they were made from."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

from laion_fmri_fetchers.layout.grids import (
    interpolation_for,
    resampled_path,
    resolution_label,
)
from laion_fmri_fetchers.layout.keys import record_of_path

from .files import local_path, read_file, readable

# How the description in the header of a resampled image begins.
MARK = "resampled: "

# Where a NIfTI-1 header has its description (``descrip``).
_DESCRIPTION = slice(148, 228)

# Bytes at the end of a gzip file: CRC-32 and length of its uncompressed content.
_GZIP_TRAILER = 8


def description_of(file: str) -> str:
    """Return the description in the header of an image, "" where it has none."""
    try:
        with gzip.open(file) if file.endswith(".gz") else open(file, "rb") as stream:
            header = stream.read(_DESCRIPTION.stop)
    except (OSError, EOFError, zlib.error):
        return ""
    return header[_DESCRIPTION].rstrip(b"\0").decode("latin-1")


def method(resolution: float, interpolation: str) -> str:
    """Return how the description of a resampled image begins."""
    return f"{MARK}{resolution:g} mm, {interpolation}, "


def origin(file: str) -> str:
    """Return how the description of a derived image ends: the version of its source.

    The size alone does not suffice, as a mask that was moved by a few voxels often
    keeps it; a description has room for 80 characters.
    """
    with readable(), open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if file.endswith(".gz"):
            stream.seek(-min(size, _GZIP_TRAILER), os.SEEK_END)
            return f"from {size}-{stream.read().hex()}"
        return f"from {size}-{os.fstat(stream.fileno()).st_mtime_ns:x}"


def resampled_originals(
    data_dir: str,
    ids: set[str],
    resolution: float,
    interpolation: str,
    is_wanted: Callable[[str], bool],
) -> dict[str, str]:
    """Return originals of which a resampled image is on disk: id -> path of that.

    Parameters
    ----------
    data_dir : str
        The data directory.
    ids : set of str
        Ids of files on disk below ``derivatives/laion-fmri-fetchers/``.
    resolution : float
        Voxel size of the resampled images, in mm.
    interpolation : str
        That of images other than labels and masks.
    is_wanted : callable
        Whether an original, by its id, is of interest.
    """
    entity = f"_res-{resolution_label(resolution)}"
    originals = {}
    for path in ids:
        if not path.endswith(".json") or entity not in path.rpartition("/")[2]:
            continue
        try:
            sidecar: Any = json.loads(read_file(local_path(data_dir, path)))
            (source,) = sidecar["Sources"]
            source = source.removeprefix("bids::")
            target = resampled_path(source, resolution)
            if target not in ids or not is_wanted(source):
                continue
            kind = interpolation_for(record_of_path(source), interpolation)
            file = local_path(data_dir, target)
            if description_of(file).startswith(method(resolution, kind)):
                originals[source] = file
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return originals
