"""Images that this package resampled, told apart from those of the dataset."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laion_fmri_fetchers.layout.grids import (
    can_be_resampled,
    interpolation_for,
    resampled_path,
    resolution_label,
)
from laion_fmri_fetchers.layout.keys import record_of_path
from laion_fmri_fetchers.layout.trees import FUNCTIONAL_GRID, MADE_HERE

from .files import local_path

MARK = "resampled: "
"""Beginning of the description in the header of a resampled image."""

_DESCRIPTION = slice(148, 228)
"""Where a NIfTI-1 header has its description (``descrip``)."""


def is_leftover(file: str, record: dict[str, Any]) -> bool:
    """Tell whether a file is a resampled image that an earlier version of us made.

    Those lay beside the originals, where files of the dataset may be: its 1.5 mm grid
    has the name that an image resampled to 1.5 mm had. The header tells them apart.

    Parameters
    ----------
    file : str
        Its path.
    record : dict
        Its fields, from its name.
    """
    if not can_be_resampled(record) or record["res"] in (None, FUNCTIONAL_GRID):
        return False
    return description_of(file).startswith(MARK)


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


def resampled_originals(
    data_dir: str,
    ids: set[str],
    resolution: float,
    interpolation: str,
    is_wanted: Callable[[str], bool],
) -> set[str]:
    """Return the ids of originals of which a resampled image is on disk.

    Parameters
    ----------
    data_dir : str
        The data directory.
    ids : set of str
        Ids of files on disk, those below ``derivatives/laion-fmri-fetchers/`` among
        them.
    resolution : float
        Voxel size of the resampled images, in mm.
    interpolation : str
        That of images other than labels and masks.
    is_wanted : callable
        Whether an original, by its id, is of interest.
    """
    entity = f"_res-{resolution_label(resolution)}"
    originals = set()
    for path in ids:
        if not path.startswith(MADE_HERE) or not path.endswith(".json"):
            continue
        if entity not in path.rpartition("/")[2]:
            continue
        try:
            sidecar = json.loads(Path(local_path(data_dir, path)).read_bytes())
            (source,) = sidecar["Sources"]
            source = source.removeprefix("bids::")
            target = resampled_path(source, resolution)
            if target not in ids or not is_wanted(source):
                continue
            kind = interpolation_for(record_of_path(source), interpolation)
            made = description_of(local_path(data_dir, target))
            if made.startswith(method(resolution, kind)):
                originals.add(source)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return originals
