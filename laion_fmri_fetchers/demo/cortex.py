"""Cortical surfaces of the synthetic subjects, as FreeSurfer reconstructs them.

The cortex is that of fsaverage5, which nilearn ships, on meshes of the subjects' own:
points spread over a sphere, turned by subject, are ``sphere.reg``; the other shapes are
where fsaverage has these points.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .facts import PARTICIPANTS

SIDES = {"lh": -1, "rh": 1}
"""Hemispheres, and the sign of their x coordinate."""

N_VERTICES = 1200
"""About as many a hemisphere; real ones have 150,000 or so."""

# From the space of fsaverage, MNI305, to that of the demo's brains, MNI152: the matrix
# on the page CoordinateSystems of FreeSurfer's wiki.
_TO_MNI152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
    ]
)


class Cortex(NamedTuple):
    """A hemisphere; surfaces are arrays of shape (vertices, 3)."""

    white: np.ndarray  # mm, scanner coordinates
    pial: np.ndarray  # mm, scanner coordinates
    inflated: np.ndarray
    sphere_reg: np.ndarray
    sulc: np.ndarray  # (vertices,): sulcal depth
    faces: np.ndarray  # (faces, 3)

    @property
    def middle(self) -> np.ndarray:
        """Half way between white and pial, where responses are."""
        return (self.white + self.pial) / 2


def centre_of_volume(subject: str) -> np.ndarray:
    """Return scanner coordinates (mm) of the centre of FreeSurfer's volumes: c_ras.

    FreeSurfer writes the vertices of white and pial relative to it.
    """
    i = PARTICIPANTS.index(subject)
    return np.array([2.5 + i, -17.25 - i, 11.5 + i / 2])


@functools.cache
def cortex(subject: str, side: int) -> Cortex:
    """Return a hemisphere of a subject: side -1 is the left one."""
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_data, load_surf_mesh
    from scipy.spatial import ConvexHull, KDTree

    # Points spread evenly over a sphere, and the triangles between them, facing out.
    i = PARTICIPANTS.index(subject)
    n = N_VERTICES + 10 * i + 3 * side
    height = 1 - (2 * np.arange(n) + 1) / n
    around = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(around), radius * np.sin(around), height], 1)
    cos, sin = np.cos(0.91 + i), np.sin(0.91 + i)
    points = points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    faces = ConvexHull(points).simplices.copy()
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    inwards = (np.cross(b - a, c - a) * (a + b + c)).sum(axis=1) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    points *= 100

    files = fetch_surf_fsaverage("fsaverage5")
    hemisphere = "left" if side < 0 else "right"
    white, pial, inflated, sphere = (
        np.asarray(load_surf_mesh(files[f"{kind}_{hemisphere}"]).coordinates, float)
        for kind in ("white", "pial", "infl", "sphere")
    )
    sulc = load_surf_data(files[f"sulc_{hemisphere}"])[:, None]
    distances, nearest = KDTree(sphere).query(points, k=3)
    weights = 1 / np.maximum(distances, 1e-6)
    weights /= weights.sum(axis=1, keepdims=True)
    white, pial, inflated, sulc = (
        (shape[nearest] * weights[..., None]).sum(axis=1)
        for shape in (white, pial, inflated, sulc)
    )
    white, pial = (
        shape @ _TO_MNI152[:, :3].T + _TO_MNI152[:, 3] for shape in (white, pial)
    )
    return Cortex(white, pial, inflated, points, sulc[:, 0], faces)
