"""ROI masks, anatomical images and FreeSurfer's files of a synthetic subject."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .brain import (
    Brain,
    anatomical_grid,
    category_of,
    label_of,
    localizer_grid,
    regions_of_grid,
    regions_of_points,
)
from .cortex import SIDES, Cortex, centre_of_volume, cortex
from .formats import (
    freesurfer_label,
    freesurfer_surface,
    gifti_bytes,
    mgz_bytes,
    nifti_bytes,
)

_CONFORMED = 32, 8.0
"""Voxels on a side of FreeSurfer's volumes, and their size (mm); really 256 of 1 mm."""


def roi_files(
    subject: str, brain: Brain, resolution: float
) -> Iterator[tuple[str, bytes]]:
    """Yield the masks of volumes, on two grids, and of surfaces."""
    fine = localizer_grid(subject, resolution)
    fine_rois = regions_of_grid(subject, fine.affine, fine.mask)
    sides = {"L": -1, "R": 1}
    surfaces = {hemi: cortex(subject, side) for hemi, side in sides.items()}
    on_surface = {
        hemi: regions_of_points(subject, surfaces[hemi].middle, (side,))
        for hemi, side in sides.items()
    }
    centre = centre_of_volume(subject)
    for name in brain.rois:
        stem = f"derivatives/rois/{subject}/{category_of(name)}/{subject}"
        label = f"label-{label_of(name)}_mask"
        for res, voxels, affine in (
            ("1pt8", brain.rois[name], brain.affine),
            ("1pt5", fine_rois[name], fine.affine),
        ):
            volume = nifti_bytes(voxels.astype(np.uint8), affine)
            yield f"{stem}_space-T1w_res-{res}_{label}.nii.gz", volume
        for hemi, surface in surfaces.items():
            inside = on_surface[hemi][name]
            mask = f"{stem}_hemi-{hemi}_space-fsnative_{label}"
            yield f"{mask}.func.gii", gifti_bytes(inside)
            vertices = surface.white - centre
            yield f"{mask}.label", freesurfer_label(subject, vertices, inside)


def anatomical_files(
    subject: str, brain: Brain, resolution: float
) -> Iterator[tuple[str, bytes]]:
    """Yield T1w, T2w and brain mask, each on a fine and on the functional grid."""
    stem = (
        f"derivatives/anatomical/{subject}/ses-PrismaAnat/anat/"
        f"{subject}_ses-PrismaAnat_space-T1w"
    )
    fine = anatomical_grid(subject, resolution * 2 / 3)
    for space, t1, affine, mask in (
        (stem, fine.t1, fine.affine, fine.mask),
        (f"{stem}_res-1pt8", brain.t1, brain.affine, brain.mask),
    ):
        level = np.clip(t1, 0, 1) * 250
        contrast = np.where(mask, 300 - level, 0)
        yield f"{space}_T1w.nii.gz", nifti_bytes(level.astype(np.uint8), affine)
        yield f"{space}_T2w.nii.gz", nifti_bytes(contrast.astype(np.int16), affine)
        inside = nifti_bytes(mask.astype(np.uint8), affine)
        yield f"{space}_desc-brain_mask.nii.gz", inside


def freesurfer_files(subject: str, brain: Brain) -> Iterator[tuple[str, bytes]]:
    """Yield a handful of FreeSurfer's files."""
    stem = f"derivatives/freesurfer/{subject}"
    level = (np.clip(brain.t1, 0, 1) * 110).astype(np.uint8)
    yield f"{stem}/mri/brain.mgz", mgz_bytes(level, brain.affine)
    parcels = np.where(brain.mask, np.where(brain.t1 > 0.7, 2, 1001), 0)
    aseg = mgz_bytes(parcels.astype(np.int32), brain.affine)
    yield f"{stem}/mri/aparc+aseg.mgz", aseg
    yield from _talairach(f"{stem}/mri/transforms/talairach")
    orig, affine = _conformed(subject, brain)
    yield f"{stem}/mri/orig.mgz", mgz_bytes(orig, affine)
    for hemi, side in SIDES.items():
        surface = cortex(subject, side)
        for name, vertices in _relative(surface, centre_of_volume(subject)).items():
            geometry = freesurfer_surface(vertices, surface.faces, orig, affine)
            yield f"{stem}/surf/{hemi}.{name}", geometry
        white = surface.white - centre_of_volume(subject)
        inside = freesurfer_label(subject, white, np.abs(surface.white[:, 0]) > 8)
        yield f"{stem}/label/{hemi}.cortex.label", inside
    yield (
        f"{stem}/stats/aseg.stats",
        f"# subjectname {subject}\n# ColHeaders  Index SegId NVoxels\n"
        f"  1   2  {int((parcels == 2).sum())}\n".encode(),
    )


def _relative(surface: Cortex, centre: np.ndarray) -> dict[str, np.ndarray]:
    """Return vertices by name of the file; those of the brain relative to a centre."""
    return {
        "white": surface.white - centre,
        "pial": surface.pial - centre,
        "inflated": surface.inflated,
        "sphere.reg": surface.sphere_reg,
    }


def _conformed(subject: str, brain: Brain) -> tuple[np.ndarray, np.ndarray]:
    """Return T1w as FreeSurfer stores it, left, inferior, anterior; and its affine."""
    from scipy.ndimage import affine_transform

    n, zoom = _CONFORMED
    affine = np.eye(4)
    affine[:3, :3] = zoom * np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    affine[:3, 3] = centre_of_volume(subject) - affine[:3, :3] @ np.full(3, n / 2)
    to_voxel = np.linalg.inv(brain.affine) @ affine
    t1 = affine_transform(
        brain.t1, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=(n, n, n), order=1
    )
    return (np.clip(t1, 0, 1) * 110).astype(np.uint8), affine


def _talairach(stem: str) -> Iterator[tuple[str, bytes]]:
    """Yield the transform to MNI space, the identity, in FreeSurfer's two formats."""
    rows = np.eye(4)
    matrix = "\n".join(" ".join(f"{value:.6f}" for value in row) for row in rows)
    yield (
        f"{stem}.xfm",
        b"MNI Transform File\n% made by laion_fmri_fetchers.demo\n\n"
        b"Transform_Type = Linear;\nLinear_Transform =\n"
        + "\n".join(matrix.splitlines()[:3]).encode()
        + b";\n",
    )
    yield (
        f"{stem}.lta",
        f"type      = 1\nnxforms   = 1\nmean      = 0.0 0.0 0.0\nsigma     = 1.0\n"
        f"1 4 4\n{matrix}\n".encode(),
    )
