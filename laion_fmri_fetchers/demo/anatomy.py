"""ROI masks, anatomical images and FreeSurfer's files of a synthetic subject."""

from __future__ import annotations

import numpy as np

from .brain import (
    ROIS,
    Brain,
    anatomical_grid,
    localizer_grid,
    regions_of_grid,
    resample,
    responses,
)
from .cortex import SIDES, centre_of_volume, cortex
from .formats import (
    Files,
    freesurfer_label,
    freesurfer_map,
    freesurfer_surface,
    gifti_bytes,
    mgz_bytes,
    nifti_bytes,
)

_CONFORMED = 32, 8.0
"""Voxels on a side of FreeSurfer's volumes, and their size (mm); really 256 of 1 mm."""


def roi_files(subject: str, brain: Brain, resolution: float) -> Files:
    """Yield the masks of volumes, on two grids, and of surfaces."""
    fine = localizer_grid(subject, resolution)
    fine_rois = regions_of_grid(subject, fine.affine, fine.mask)
    surfaces = {}
    for side in SIDES.values():
        surface = cortex(subject, side)
        vertices = surface.white - centre_of_volume(subject)
        rois = responses(subject, surface.middle, (side,)).rois
        surfaces["L" if side < 0 else "R"] = vertices, rois
    for name in brain.rois:
        stem = f"derivatives/rois/{subject}/{ROIS[name].category}/{subject}"
        label = f"label-{ROIS[name].label}_mask"
        for res, voxels, affine in (
            ("1pt8", brain.rois[name], brain.affine),
            ("1pt5", fine_rois[name], fine.affine),
        ):
            volume = nifti_bytes(voxels.astype(np.uint8), affine)
            yield f"{stem}_space-T1w_res-{res}_{label}.nii.gz", volume
        for hemi, (vertices, rois) in surfaces.items():
            mask = f"{stem}_hemi-{hemi}_space-fsnative_{label}"
            yield f"{mask}.func.gii", gifti_bytes(rois[name])
            yield f"{mask}.label", freesurfer_label(subject, vertices, rois[name])


def anatomical_files(subject: str, brain: Brain, resolution: float) -> Files:
    """Yield T1w, T2w and brain mask, each on a fine and on the functional grid."""
    stem = (
        f"derivatives/anatomical/{subject}/ses-PrismaAnat/anat/"
        f"{subject}_ses-PrismaAnat_space-T1w"
    )
    fine = anatomical_grid(subject, resolution * 2 / 3)
    for space, grid in ((stem, fine), (f"{stem}_res-1pt8", brain)):
        level = np.clip(grid.t1, 0, 1) * 250
        contrast = np.where(grid.mask, 300 - level, 0)
        for name, volume in (
            ("T1w", level.astype(np.uint8)),
            ("T2w", contrast.astype(np.int16)),
            ("desc-brain_mask", grid.mask.astype(np.uint8)),
        ):
            yield f"{space}_{name}.nii.gz", nifti_bytes(volume, grid.affine)


def freesurfer_files(subject: str, brain: Brain) -> Files:
    """Yield a handful of FreeSurfer's files."""
    stem = f"derivatives/freesurfer/{subject}"
    level = (np.clip(brain.t1, 0, 1) * 110).astype(np.uint8)
    yield f"{stem}/mri/brain.mgz", mgz_bytes(level, brain.affine)
    parcels = np.where(brain.mask, np.where(brain.t1 > 0.7, 2, 1001), 0)
    aseg = mgz_bytes(parcels.astype(np.int32), brain.affine)
    yield f"{stem}/mri/aparc+aseg.mgz", aseg

    # The T1w image as FreeSurfer stores it: left, inferior, anterior.
    n, zoom = _CONFORMED
    centre = centre_of_volume(subject)
    affine = np.eye(4)
    affine[:3, :3] = zoom * np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]])
    affine[:3, 3] = centre - affine[:3, :3] @ np.full(3, n / 2)
    t1 = resample(brain.t1, brain.affine, affine, (n, n, n))
    orig = (np.clip(t1, 0, 1) * 110).astype(np.uint8)
    yield f"{stem}/mri/orig.mgz", mgz_bytes(orig, affine)

    # The transform to MNI space is the identity, in FreeSurfer's two formats.
    rows = [" ".join(f"{value:.6f}" for value in row) for row in np.eye(4)]
    yield (
        f"{stem}/mri/transforms/talairach.xfm",
        "MNI Transform File\n% made by laion_fmri_fetchers.demo\n\n"
        "Transform_Type = Linear;\nLinear_Transform =\n{}\n{}\n{};\n".format(
            *rows[:3]
        ).encode(),
    )
    yield (
        f"{stem}/mri/transforms/talairach.lta",
        "type      = 1\nnxforms   = 1\nmean      = 0.0 0.0 0.0\nsigma     = 1.0\n"
        "1 4 4\n{}\n{}\n{}\n{}\n".format(*rows).encode(),
    )

    for hemi, side in SIDES.items():
        surface = cortex(subject, side)
        # FreeSurfer's vertices of the brain itself are relative to the volume's centre.
        for name, vertices in (
            ("white", surface.white - centre),
            ("pial", surface.pial - centre),
            ("inflated", surface.inflated),
            ("sphere.reg", surface.sphere_reg),
        ):
            geometry = freesurfer_surface(vertices, surface.faces, orig, affine)
            yield f"{stem}/surf/{hemi}.{name}", geometry
        yield f"{stem}/surf/{hemi}.sulc", freesurfer_map(surface.sulc)
        is_cortex = np.abs(surface.white[:, 0]) > 8
        label = freesurfer_label(subject, surface.white - centre, is_cortex)
        yield f"{stem}/label/{hemi}.cortex.label", label
    yield (
        f"{stem}/stats/aseg.stats",
        f"# subjectname {subject}\n# ColHeaders  Index SegId NVoxels\n"
        f"  1   2  {int((parcels == 2).sum())}\n".encode(),
    )
