"""Files of a cortex, read and checked: surfaces, masks on them, and fsaverage.

FreeSurfer gives the vertices of white and pial relative to the centre of its volumes.
Where that centre is in the scanner, c_ras, is written behind the vertices, or in the
header of ``mri/orig.mgz``.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from laion_fmri_fetchers.cache.data_dir import nilearn_data_dirs
from laion_fmri_fetchers.cache.files import readable
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DownloadError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.trees import HEMISPHERES, surface_name
from laion_fmri_fetchers.query.arguments import user_path

# Surfaces whose vertices lie in the head; inflated ones and spheres lie nowhere.
IN_SCANNER = ("white", "pial")

# With 10,242, 40,962 and 163,842 vertices per hemisphere.
TEMPLATES = ("fsaverage5", "fsaverage6", "fsaverage")
SHIPPED = "fsaverage5"

# Where a ``.mgz`` file has ``goodRASFlag``: nibabel makes up a position without it, and
# does not tell.
_POSITION_FLAG = slice(28, 30)

# Directions of a volume's axes, as columns, in FreeSurfer's surface coordinates.
_AXES = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])

_REPAIR = "If it is damaged, `laion-fmri-fetchers verify --repair` fetches it again."


class Surface(NamedTuple):
    """The surface of a hemisphere."""

    file: str
    coordinates: np.ndarray  # of its vertices as in the file, float64, (vertices, 3)
    faces: np.ndarray  # the vertices at corners of triangles, int32, (faces, 3)
    to_scanner: np.ndarray | None  # from these coordinates, (4, 4), if the file says it


def read_surface(file: str | os.PathLike, advice: str = _REPAIR) -> Surface:
    """Read a surface that FreeSurfer wrote, such as ``lh.white``.

    Raises
    ------
    CorruptImageError
        If the file is damaged; its message ends with ``advice``.
    """
    file = os.fspath(file)
    with _naming(file, advice), warnings.catch_warnings():
        # Of files that do not tell about their volume; see `to_scanner`.
        warnings.simplefilter("ignore", UserWarning)
        vertices, faces, volume = nib.freesurfer.read_geometry(file, read_metadata=True)
        if not len(vertices) or not len(faces):
            raise ValueError("it has no vertices or no faces")
        if not np.isfinite(vertices).all():
            raise ValueError("some of its coordinates are not finite")
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise ValueError("its faces have vertices that do not exist")
        to_scanner = None
        if volume.get("valid", "").split()[:1] == ["1"]:
            # It adds c_ras. Volumes of FreeSurfer have axes along those of the scanner;
            # were they turned, the vertices would be, too.
            axes = np.stack([volume["xras"], volume["yras"], volume["zras"]], axis=1)
            transform = np.eye(4)
            transform[:3, :3] = axes @ np.linalg.inv(_AXES)
            transform[:3, 3] = volume["cras"]
            to_scanner = transform if _is_rigid(transform) else None
        return Surface(file, vertices, faces.astype(np.int32), to_scanner)


def read_orientation(file: str | os.PathLike) -> np.ndarray:
    """Return the transform from surface to scanner coordinates of ``mri/orig.mgz``.

    Only its header is read.

    Raises
    ------
    CorruptImageError
        If the file is damaged, or its header does not say where it lies.
    """
    with _naming(os.fspath(file), _REPAIR):
        with gzip.open(file) as stream:
            has_position = any(stream.read(_POSITION_FLAG.stop)[_POSITION_FLAG])
        header: Any = nib.load(file).header
        transform = header.get_affine() @ np.linalg.inv(header.get_vox2ras_tkr())
        if not (has_position and _is_rigid(transform)):
            raise ValueError("its header does not say where it lies in the scanner")
        return transform


def read_talairach(file: str | os.PathLike) -> np.ndarray:
    """Return the transform from scanner to MNI305 coordinates of ``talairach.xfm``.

    Raises
    ------
    CorruptImageError
        If the file is damaged.
    """
    with _naming(os.fspath(file), _REPAIR):
        text = Path(file).read_text("ascii")
        _, is_there, numbers = text.partition("Linear_Transform =")
        transform = np.eye(4)
        transform[:3] = np.reshape(numbers.split(";")[0].split(), (3, 4)).astype(float)
        # Brains differ in size by less than this; and none is turned inside out.
        if not (is_there and 0.2 < np.linalg.det(transform[:3, :3]) < 5):
            raise ValueError("it holds no transform of a head")
        return transform


def read_values(file: str | os.PathLike, n_vertices: int) -> np.ndarray:
    """Read a value per vertex of a hemisphere: of a GIFTI file, or of ``lh.sulc``.

    Raises
    ------
    CorruptImageError
        If the file is damaged, or of another number of vertices.
    """
    file = os.fspath(file)
    with _naming(file, _REPAIR):
        if file.endswith(".gii"):
            image: Any = nib.load(file)
            values = np.asarray(image.agg_data())
        else:
            values = nib.freesurfer.read_morph_data(file).astype(np.float32)
        if values.shape != (n_vertices,):
            raise ValueError(
                f"it has values of shape {values.shape}, and its hemisphere has "
                f"{n_vertices} vertices"
            )
        return values


def make_meshes(
    surfaces: dict[str, dict[str, Surface]], orientation: np.ndarray | None
) -> dict[str, Any]:
    """Return a PolyMesh of each surface; those of the head in scanner coordinates.

    Parameters
    ----------
    surfaces : dict
        Surface -> hemisphere -> what was read of it.
    orientation : numpy.ndarray, optional
        For surfaces that do not say where they lie; see `read_orientation`.

    Raises
    ------
    CorruptImageError
        If surfaces of a hemisphere do not have the same number of vertices.
    """
    from nilearn.surface import InMemoryMesh, PolyMesh

    meshes = {}
    for name, parts in surfaces.items():
        of_hemisphere = {}
        for hemisphere, surface in parts.items():
            first = surfaces["white"][hemisphere]
            if len(surface.coordinates) != len(first.coordinates):
                raise CorruptImageError(
                    f"{surface.file} has {len(surface.coordinates)} vertices, and "
                    f"{first.file} {len(first.coordinates)}: they are not of one "
                    "reconstruction. mode='overwrite' downloads them again."
                )
            vertices = surface.coordinates
            if name in IN_SCANNER:
                to_scanner = surface.to_scanner
                vertices = apply_affine(
                    orientation if to_scanner is None else to_scanner, vertices
                )
            of_hemisphere[hemisphere] = InMemoryMesh(vertices, surface.faces)
        meshes[name] = PolyMesh(**of_hemisphere)
    return meshes


def load_template(name: str, mode: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Load fsaverage from where it is found first.

    nilearn ships fsaverage5. The others are looked for in ``$SUBJECTS_DIR`` and in
    nilearn's data directories; last, nilearn downloads them.

    Parameters
    ----------
    name : str
        One of `TEMPLATES`.
    mode : str
        ``"offline"``: nothing is downloaded.

    Returns
    -------
    mesh : :class:`nilearn.surface.PolyMesh`
        The pial surface.
    spheres : dict
        Hemisphere -> where its vertices are on the sphere that subjects are registered
        to, (vertices, 3).

    Raises
    ------
    NotCachedError
        Offline, if it is not on this machine.
    DownloadError
        If nilearn cannot download it.
    CorruptImageError
        If its files are damaged.
    """
    from nilearn.surface import InMemoryMesh, PolyMesh, load_surf_mesh

    if folder := _in_subjects_dir(name):
        advice = "If it is damaged, copy it from FreeSurfer again."
        pials, spheres = (
            {h: read_surface(folder / surface_name(h, s), advice) for h in HEMISPHERES}
            for s in ("pial", "sphere.reg")
        )
    else:
        files = _in_nilearn(name, mode)
        advice = "Remove it, and nilearn downloads it again."
        pials, spheres = {}, {}
        for kind, meshes in (("pial", pials), ("sphere", spheres)):
            for hemisphere in HEMISPHERES:
                file = files[f"{kind}_{hemisphere}"]
                with _naming(os.fspath(file), advice):
                    meshes[hemisphere] = load_surf_mesh(file)
    parts = {h: InMemoryMesh(p.coordinates, p.faces) for h, p in pials.items()}
    of_sphere = {h: np.asarray(sphere.coordinates) for h, sphere in spheres.items()}
    return PolyMesh(**parts), of_sphere


def _in_subjects_dir(name: str) -> Path | None:
    """Return the folder of a template in ``$SUBJECTS_DIR``, if it is complete."""
    subjects_dir = os.environ.get("SUBJECTS_DIR")
    if not subjects_dir or name == SHIPPED:
        return None
    folder = Path(user_path(subjects_dir, "SUBJECTS_DIR"), name)
    names = [surface_name(h, s) for h in HEMISPHERES for s in ("pial", "sphere.reg")]
    return folder if all((folder / file).is_file() for file in names) else None


def _in_nilearn(name: str, mode: str) -> dict[str, Any]:
    """Return the files of a template that nilearn has, or downloads now."""
    from nilearn.datasets import fetch_surf_fsaverage

    if name == SHIPPED:
        return fetch_surf_fsaverage(name)
    # nilearn would go online for files that are not needed here.
    names = [f"{kind}_{h}" for kind in ("pial", "sphere") for h in HEMISPHERES]
    for folder in nilearn_data_dirs():
        files = {key: os.path.join(folder, name, f"{key}.gii.gz") for key in names}
        if all(map(os.path.isfile, files.values())):
            return files
    if mode == "offline":
        raise NotCachedError(
            f"{name} is not on this machine, and mode='offline' downloads nothing. Let "
            f"SUBJECTS_DIR name a folder of FreeSurfer's that holds {name}; or let "
            "nilearn download it, online: "
            f"nilearn.datasets.fetch_surf_fsaverage({name!r}). target={SHIPPED!r} "
            "needs neither."
        )
    try:
        return fetch_surf_fsaverage(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise DownloadError(
            f"nilearn could not download {name}: {error}. Let SUBJECTS_DIR name a "
            f"folder of FreeSurfer's that holds {name}, or use target={SHIPPED!r}, "
            "which is part of nilearn."
        ) from error


def _is_rigid(transform: np.ndarray) -> bool:
    turn = transform[:3, :3]
    is_finite = np.isfinite(transform).all()
    return bool(is_finite and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3))


@contextlib.contextmanager
def _naming(file: str, advice: str) -> Iterator[None]:
    """Let errors of a damaged file name it, and say what to do."""
    try:
        with readable():
            yield
    except Exception as error:
        # nibabel reads without checking, so that what a damaged file leads to depends
        # on the damage. What fails on a sound file has a number.
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error) or type(error).__name__
        raise CorruptImageError(f"{file} cannot be read: {reason}. {advice}") from error
