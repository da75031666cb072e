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
    surface,
)
from .formats import (
    freesurfer_label,
    freesurfer_surface,
    gifti_bytes,
    mgz_bytes,
    nifti_bytes,
)


def roi_files(
    subject: str, brain: Brain, resolution: float
) -> Iterator[tuple[str, bytes]]:
    """Yield the masks of volumes, on two grids, and of surfaces."""
    fine = localizer_grid(subject, resolution)
    fine_rois = regions_of_grid(subject, fine.affine, fine.mask)
    sides = {"L": -1, "R": 1}
    on_surface = {
        hemisphere: regions_of_points(subject, surface(side)[0], (side,))
        for hemisphere, side in sides.items()
    }
    for name in brain.rois:
        stem = f"derivatives/rois/{subject}/{category_of(name)}/{subject}"
        label = f"label-{label_of(name)}_mask"
        for res, voxels, affine in (
            ("1pt8", brain.rois[name], brain.affine),
            ("1pt5", fine_rois[name], fine.affine),
        ):
            volume = nifti_bytes(voxels.astype(np.uint8), affine)
            yield f"{stem}_space-T1w_res-{res}_{label}.nii.gz", volume
        for hemisphere, side in sides.items():
            inside = on_surface[hemisphere][name]
            mask = f"{stem}_hemi-{hemisphere}_space-fsnative_{label}"
            yield f"{mask}.func.gii", gifti_bytes(inside)
            vertices, _ = surface(side)
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
    for hemisphere, side in (("lh", -1), ("rh", 1)):
        vertices, faces = surface(side)
        yield f"{stem}/surf/{hemisphere}.white", freesurfer_surface(vertices, faces)
        pial = vertices + np.sign(vertices) * 1.5
        yield f"{stem}/surf/{hemisphere}.pial", freesurfer_surface(pial, faces)
        cortex = freesurfer_label(subject, vertices, np.abs(vertices[:, 0]) > 8)
        yield f"{stem}/label/{hemisphere}.cortex.label", cortex
    yield (
        f"{stem}/stats/aseg.stats",
        f"# subjectname {subject}\n# ColHeaders  Index SegId NVoxels\n"
        f"  1   2  {int((parcels == 2).sum())}\n".encode(),
    )


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
