"""FreeSurfer's files of a cortex, read and checked: surfaces, and masks on them.

FreeSurfer gives the vertices of white and pial relative to the centre of its volumes.
Where that centre is in the scanner, c_ras, is written behind the vertices, or in the
header of ``mri/orig.mgz``::

    read_surface ─▶ Surface ───────────────────┬─▶ moved
    read_orientation ─▶ (4, 4), of orig.mgz ───┘
    read_mask ─▶ bool per vertex
"""

from __future__ import annotations

import contextlib
import gzip
import os
import warnings
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

import nibabel as nib
import numpy as np

from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.exceptions import CorruptImageError

REPAIR = "If it is damaged, `laion-fmri-fetchers verify --repair` fetches it again."

# nibabel reads without checking: what a damaged file leads to depends on the damage.
_DAMAGED: tuple[Any, ...] = (
    *(
        ValueError,
        IndexError,
        KeyError,
        EOFError,
        OverflowError,
        MemoryError,
        TypeError,
    ),
    *(OSError, zlib.error, ExpatError, nib.filebasedimages.ImageFileError),
    *(nib.spatialimages.HeaderDataError, AttributeError),
)

_POSITION_FLAG = 28
"""Bytes before ``goodRASFlag``, of two bytes, in a ``.mgz`` file."""

_AXES = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""Directions of a volume's axes, as columns, in FreeSurfer's surface coordinates."""


class Surface(NamedTuple):
    """The surface of a hemisphere."""

    file: str
    coordinates: np.ndarray
    """Of its vertices, float64, (vertices, 3), in mm, as they are in the file."""
    faces: np.ndarray
    """Triangles: the vertices at their corners, int32, (faces, 3)."""
    to_scanner: np.ndarray | None
    """From these coordinates to the scanner's, (4, 4); None: the file does not say."""


def read_surface(file: str | os.PathLike, advice: str = REPAIR) -> Surface:
    """Read a surface that FreeSurfer wrote.

    Parameters
    ----------
    file : str or path
        Such as ``lh.white``.
    advice : str, optional
        What to do about a damaged file.

    Returns
    -------
    Surface

    Raises
    ------
    CorruptImageError
        If the file is damaged.
    """
    file = os.fspath(file)
    with _named(file, advice), warnings.catch_warnings():
        # Of files that lack what was said about their volume; see `to_scanner`.
        warnings.simplefilter("ignore", UserWarning)
        coordinates, faces, volume = nib.freesurfer.read_geometry(
            file, read_metadata=True
        )
        _check(coordinates, faces)
        return Surface(file, coordinates, faces.astype(np.int32), _to_scanner(volume))


def _check(coordinates: np.ndarray, faces: np.ndarray) -> None:
    if not len(coordinates) or not len(faces):
        raise ValueError("it has no vertices or no faces")
    if not np.isfinite(coordinates).all():
        raise ValueError("some of its coordinates are not finite")
    if faces.min() < 0 or faces.max() >= len(coordinates):
        raise ValueError("its faces have vertices that do not exist")


def _to_scanner(volume: dict[str, Any]) -> np.ndarray | None:
    """Return the transform to scanner coordinates, None where it is not known.

    It adds c_ras. Volumes of FreeSurfer have axes along those of the scanner; were they
    turned, the vertices would be, too.
    """
    if volume.get("valid", "").split()[:1] != ["1"]:
        return None
    axes = np.stack([volume["xras"], volume["yras"], volume["zras"]], axis=1)
    transform = np.eye(4)
    transform[:3, :3] = axes @ np.linalg.inv(_AXES)
    transform[:3, 3] = volume["cras"]
    return transform if _is_rigid(transform) else None


def _is_rigid(transform: np.ndarray) -> bool:
    turn = transform[:3, :3]
    return bool(
        np.isfinite(transform).all()
        and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3)
    )


def read_orientation(file: str | os.PathLike) -> np.ndarray:
    """Return the transform from surface to scanner coordinates of ``mri/orig.mgz``.

    Parameters
    ----------
    file : str or path
        A volume in FreeSurfer's format, of which only the header is read.

    Returns
    -------
    numpy.ndarray, shape (4, 4)

    Raises
    ------
    CorruptImageError
        If the file is damaged, or its header does not say where it lies.
    """
    file = os.fspath(file)
    with _named(file, REPAIR):
        header: Any = nib.load(file).header
        transform = header.get_affine() @ np.linalg.inv(header.get_vox2ras_tkr())
        if not (_has_position(file) and _is_rigid(transform)):
            raise ValueError("its header does not say where it lies in the scanner")
        return transform


def _has_position(file: str) -> bool:
    """Tell whether a header has a position; where not, nibabel makes up an answer."""
    with gzip.open(file) as stream:
        start = stream.read(_POSITION_FLAG + 2)
    return bool(int.from_bytes(start[_POSITION_FLAG:], "big"))


def moved(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Return points, (n_points, 3), moved by an affine transform, (4, 4).

    Examples
    --------
    >>> to_scanner = np.eye(4)
    >>> to_scanner[:3, 3] = (2, -17, 11)  # c_ras
    >>> moved(np.array([[1.0, 1, 1]]), to_scanner).tolist()
    [[3.0, -16.0, 12.0]]
    """
    return points @ transform[:3, :3].T + transform[:3, 3]


def check_same_vertices(surfaces: list[Surface]) -> None:
    """Raise CorruptImageError for surfaces of a hemisphere that do not correspond."""
    first = surfaces[0]
    for other in surfaces[1:]:
        if len(other.coordinates) != len(first.coordinates):
            raise CorruptImageError(
                f"{other.file} has {len(other.coordinates)} vertices, and {first.file} "
                f"{len(first.coordinates)}: they are not of one reconstruction. "
                "mode='overwrite' downloads them again."
            )


def read_mask(file: str | os.PathLike, n_vertices: int) -> np.ndarray:
    """Read a mask of vertices from a GIFTI file.

    Parameters
    ----------
    file : str or path
        Such as ``…_hemi-L_space-fsnative_label-FFA1_mask.func.gii``.
    n_vertices : int
        Vertices of the hemisphere.

    Returns
    -------
    numpy.ndarray of bool, shape (n_vertices,)

    Raises
    ------
    CorruptImageError
        If the file is damaged, or of another number of vertices.
    """
    file = os.fspath(file)
    with _named(file, REPAIR):
        values = np.asarray(nib.load(file).agg_data())  # type: ignore[attr-defined]
        if values.shape != (n_vertices,):
            raise ValueError(
                f"it has values of shape {values.shape}, and its hemisphere has "
                f"{n_vertices} vertices"
            )
        return values > 0


@contextlib.contextmanager
def _named(file: str, advice: str) -> Iterator[None]:
    """Let errors of a damaged file name it, and say what to do."""
    try:
        with readable():
            yield
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error) or type(error).__name__
        raise CorruptImageError(f"{file} cannot be read: {reason}. {advice}") from error
