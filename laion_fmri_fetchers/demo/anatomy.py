"""Anatomy of a synthetic subject: ROI masks, T1w and T2w, and FreeSurfer's surfaces.

The cortex is that of fsaverage5, which nilearn ships, on meshes of the subjects' own:
points spread over a sphere are ``sphere.reg``; the other shapes are where fsaverage
has its vertex nearest to each.
"""

from __future__ import annotations

import functools
import gzip
import io
from typing import NamedTuple

import numpy as np

from .brain import FITTED, ROIS, Brain, Grid, brain_grid, resample, responses
from .facts import PARTICIPANTS
from .formats import Files, freesurfer_label, freesurfer_surface

SIDES = {"L": -1, "R": 1}
"""Hemispheres, and the sign of their x coordinate."""

N_VERTICES = 1200
"""About as many a hemisphere; real ones have 150,000 or so."""

_CONFORMED = 32, 8.0
"""Voxels on a side of FreeSurfer's volumes, and their size (mm); really 256 of 1 mm."""


class Cortex(NamedTuple):
    """A hemisphere; surfaces are arrays of shape (vertices, 3)."""

    white: np.ndarray  # mm, scanner coordinates
    pial: np.ndarray  # mm, scanner coordinates
    inflated: np.ndarray
    sphere: np.ndarray
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

    # Points spread evenly over a sphere, and the triangles between them, facing out;
    # number and places differ by subject.
    i = PARTICIPANTS.index(subject)
    n = N_VERTICES + 10 * i + 3 * side
    height = 1 - (2 * np.arange(n) + 1) / n
    around = np.pi * (3 - np.sqrt(5)) * np.arange(n) + i
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(around), radius * np.sin(around), height], 1)
    faces = ConvexHull(points).simplices.copy()
    is_inwards = np.linalg.det(points[faces]) < 0
    faces[is_inwards] = faces[is_inwards][:, ::-1]

    files = fetch_surf_fsaverage("fsaverage5")
    hemisphere = "left" if side < 0 else "right"
    sphere = load_surf_mesh(files[f"sphere_{hemisphere}"]).coordinates
    nearest = KDTree(sphere).query(100 * points)[1]
    white, pial, inflated = (
        np.asarray(load_surf_mesh(files[f"{kind}_{hemisphere}"]).coordinates[nearest])
        for kind in ("white", "pial", "infl")
    )
    sulc = load_surf_data(files[f"sulc_{hemisphere}"])[nearest]
    return Cortex(white, pial, inflated, 100 * points, sulc, faces)


def roi_files(subject: str, brain: Brain, resolution: float) -> Files:
    """Yield the masks of volumes, on two grids, and of surfaces."""
    fine = brain_grid(subject, resolution * 1.5 / 1.778, FITTED)
    grids = {
        res: (grid, responses(subject, grid.points()).rois)
        for res, grid in (("1pt8", brain.grid), ("1pt5", fine))
    }
    surfaces = {
        hemi: responses(subject, cortex(subject, side).middle, (side,)).rois
        for hemi, side in SIDES.items()
    }
    for name in grids["1pt8"][1]:
        stem = f"derivatives/rois/{subject}/{ROIS[name].category}/{subject}"
        label = f"label-{ROIS[name].label}_mask"
        for res, (grid, rois) in grids.items():
            mask = grid.image(rois[name].astype(np.uint8))
            yield f"{stem}_space-T1w_res-{res}_{label}.nii.gz", mask
        for hemi, rois in surfaces.items():
            vertices = cortex(subject, SIDES[hemi]).white - centre_of_volume(subject)
            key = f"{stem}_hemi-{hemi}_space-fsnative_{label}"
            yield f"{key}.func.gii", rois[name]
            yield f"{key}.label", freesurfer_label(subject, vertices, rois[name])


def anatomical_files(subject: str, brain: Brain, resolution: float) -> Files:
    """Yield T1w, T2w and brain mask, each on a fine and on the functional grid."""
    stem = (
        f"derivatives/anatomical/{subject}/ses-PrismaAnat/anat/"
        f"{subject}_ses-PrismaAnat_space-T1w"
    )
    fine = brain_grid(subject, resolution * 2 / 3)
    for space, grid in ((stem, fine), (f"{stem}_res-1pt8", brain.grid)):
        level = np.clip(grid.t1, 0, 1) * 250
        for name, volume in (
            ("T1w", level.astype(np.uint8)),
            ("T2w", np.where(grid.mask, 300 - level, 0).astype(np.int16)),
            ("desc-brain_mask", grid.mask.astype(np.uint8)),
        ):
            yield f"{space}_{name}.nii.gz", (volume, grid.affine)


def freesurfer_files(subject: str, brain: Brain) -> Files:
    """Yield the files of FreeSurfer that surfaces and their projections need."""
    from nibabel import MGHImage
    from nibabel.freesurfer import write_morph_data

    # The T1w image as FreeSurfer stores it: left, inferior, anterior.
    stem = f"derivatives/freesurfer/{subject}"
    n, zoom = _CONFORMED
    centre = centre_of_volume(subject)
    affine = np.eye(4)
    affine[:3, :3] = zoom * np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    affine[:3, 3] = centre - affine[:3, :3] @ np.full(3, n / 2)
    conformed = Grid(affine, *np.zeros((2, n, n, n)))
    t1 = resample(brain.grid.t1, brain.grid.affine, conformed)
    orig = MGHImage((np.clip(t1, 0, 1) * 110).astype(np.uint8), affine)
    yield f"{stem}/mri/orig.mgz", gzip.compress(orig.to_bytes(), 1, mtime=0)
    yield (
        f"{stem}/mri/transforms/talairach.xfm",  # the brain is that of MNI space
        b"MNI Transform File\n% made by laion_fmri_fetchers.demo\n\n"
        b"Transform_Type = Linear;\nLinear_Transform =\n"
        b"1.0 0.0 0.0 0.0\n0.0 1.0 0.0 0.0\n0.0 0.0 1.0 0.0;\n",
    )
    for hemi, side in SIDES.items():
        surface = cortex(subject, side)
        # FreeSurfer's vertices of the brain itself are relative to the volume's centre.
        for name, vertices in (
            ("white", surface.white - centre),
            ("pial", surface.pial - centre),
            ("inflated", surface.inflated),
            ("sphere.reg", surface.sphere),
        ):
            geometry = freesurfer_surface(vertices, surface.faces, orig)
            yield f"{stem}/surf/{hemi.lower()}h.{name}", geometry
        sulc = io.BytesIO()
        write_morph_data(sulc, surface.sulc)
        yield f"{stem}/surf/{hemi.lower()}h.sulc", sulc.getvalue()
