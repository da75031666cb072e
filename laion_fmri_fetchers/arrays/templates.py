"""fsaverage, FreeSurfer's template of the cortex, wherever it is on this machine.

load_template ─▶ _shipped, _of_freesurfer, _cached or _downloaded ─▶ Template
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from laion_fmri_fetchers.cache.data_dir import nilearn_data_dirs
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    DownloadError,
    NotCachedError,
)
from laion_fmri_fetchers.layout.trees import HEMISPHERES, surface_name
from laion_fmri_fetchers.query.arguments import refuse_offline, user_path

from .geometry import read_surface

TEMPLATES = ("fsaverage5", "fsaverage6", "fsaverage")
"""With 10,242, 40,962 and 163,842 vertices per hemisphere."""

_SHIPPED = "fsaverage5"


class Template(NamedTuple):
    """fsaverage of some resolution."""

    mesh: Any
    """Pial surface, a :class:`nilearn.surface.PolyMesh`."""
    spheres: dict[str, np.ndarray]
    """Hemisphere -> where its vertices are on the sphere that subjects are registered
    to, (vertices, 3)."""


def load_template(name: str, mode: str) -> Template:
    """Load fsaverage from where it is found first.

    nilearn ships fsaverage5. The others are looked for in ``$SUBJECTS_DIR`` and in
    nilearn's data directories; last, nilearn downloads them.

    Parameters
    ----------
    name : str
        One of `TEMPLATES`.
    mode : str
        ``"offline"``: nothing is downloaded.

    Raises
    ------
    NotCachedError
        Offline, if it is not on this machine.
    DownloadError
        If nilearn cannot download it.
    CorruptImageError
        If its files are damaged.
    """
    if name == _SHIPPED:
        return _read_nilearn(_fetched_by_nilearn(name))
    if folder := _of_freesurfer(name):
        return _read_freesurfer(folder)
    if files := _cached(name):
        return _read_nilearn(files)
    missing = NotCachedError(
        f"{name} is not on this machine, and mode='offline' downloads nothing. Let "
        f"SUBJECTS_DIR name a folder of FreeSurfer's that holds {name}; or let nilearn "
        f"download it, online: nilearn.datasets.fetch_surf_fsaverage({name!r}). "
        f"target={_SHIPPED!r} needs neither."
    )
    refuse_offline(mode, missing)
    return _read_nilearn(_downloaded(name))


def _of_freesurfer(name: str) -> Path | None:
    """Return the folder of a template in ``$SUBJECTS_DIR``, if it is complete."""
    subjects_dir = os.environ.get("SUBJECTS_DIR")
    if not subjects_dir:
        return None
    folder = Path(user_path(subjects_dir, "SUBJECTS_DIR"), name)
    files = [
        folder / surface_name(hemisphere, surface)
        for hemisphere in HEMISPHERES
        for surface in ("pial", "sphere.reg")
    ]
    return folder if all(file.is_file() for file in files) else None


def _read_freesurfer(folder: Path) -> Template:
    from nilearn.surface import InMemoryMesh, PolyMesh

    advice = "If it is damaged, copy it from FreeSurfer again."
    pials, spheres = (
        {
            hemisphere: read_surface(folder / surface_name(hemisphere, surface), advice)
            for hemisphere in HEMISPHERES
        }
        for surface in ("pial", "sphere.reg")
    )
    return Template(
        PolyMesh(**{h: InMemoryMesh(s.coordinates, s.faces) for h, s in pials.items()}),
        {hemisphere: sphere.coordinates for hemisphere, sphere in spheres.items()},
    )


def _cached(name: str) -> dict[str, str] | None:
    """Return the files of a template that nilearn downloaded, if they are complete."""
    for folder in nilearn_data_dirs():
        files = {
            f"{kind}_{hemisphere}": os.path.join(
                folder, name, f"{kind}_{hemisphere}.gii.gz"
            )
            for kind in ("pial", "sphere")
            for hemisphere in HEMISPHERES
        }
        if all(map(os.path.isfile, files.values())):
            return files
    return None


def _downloaded(name: str) -> dict[str, str]:
    try:
        return _fetched_by_nilearn(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise DownloadError(
            f"nilearn could not download {name}: {error}. Let SUBJECTS_DIR name a "
            f"folder of FreeSurfer's that holds {name}, or use target={_SHIPPED!r}, "
            "which is part of nilearn."
        ) from error


def _fetched_by_nilearn(name: str) -> dict[str, str]:
    from nilearn.datasets import fetch_surf_fsaverage

    return fetch_surf_fsaverage(name)


def _read_nilearn(files: dict[str, str]) -> Template:
    from nilearn.surface import InMemoryMesh, PolyMesh

    pials, spheres = (
        {h: _read_gifti(files[f"{kind}_{h}"]) for h in HEMISPHERES}
        for kind in ("pial", "sphere")
    )
    return Template(
        PolyMesh(**{h: InMemoryMesh(*mesh) for h, mesh in pials.items()}),
        {hemisphere: coordinates for hemisphere, (coordinates, _) in spheres.items()},
    )


def _read_gifti(file: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates and faces of a surface in nilearn's cache."""
    from nilearn.surface import load_surf_mesh

    try:
        mesh = load_surf_mesh(file)
        return np.asarray(mesh.coordinates), np.asarray(mesh.faces)
    except Exception as error:  # of several libraries, for as many kinds of damage
        raise CorruptImageError(
            f"{file} cannot be read: {error}. Remove it, and nilearn downloads it "
            "again."
        ) from error
