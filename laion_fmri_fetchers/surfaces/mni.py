"""Volumes of a subject taken to MNI space, by FreeSurfer's transform of its head."""

from __future__ import annotations

import warnings
from typing import Any

import nibabel as nib
import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import warn

from .projection import check_choice, check_surfaces, open_image

# From MNI305 to MNI152 coordinates, as FreeSurfer's documentation has it
# (https://surfer.nmr.mgh.harvard.edu/fswiki/CoordinateSystems).
MNI305_TO_MNI152 = np.array(
    [
        [0.9975, -0.0073, 0.0176, -0.0429],
        [0.0146, 1.0009, -0.0024, 1.5496],
        [-0.0130, -0.0093, 0.9971, 1.1840],
        [0, 0, 0, 1],
    ]
)


def project_to_mni(
    img: Any,
    surfaces: Bunch,
    *,
    target: str = "MNI152",
    interpolation: str = "linear",
) -> nib.Nifti1Image:
    """Take an image of a subject to MNI space, by an affine transform.

    The transform is that of the subject's FreeSurfer reconstruction,
    ``mri/transforms/talairach.xfm``, which fits the whole head to MNI305 by twelve
    numbers. So positions and sizes are those of the template, but folds are not: gyri
    of two subjects may lie a centimetre apart. To compare cortex across subjects, use
    `project_to_surface` with ``target="fsaverage"``.

    Parameters
    ----------
    img : str, path or image
        A 3-D or 4-D NIfTI image in the subject's T1w space, such as a noise ceiling or
        a map made from betas: ``betas.to_img(values)``, of which only the voxels of
        ``betas`` count. A 4-D image is held in memory.
    surfaces : :class:`sklearn.utils.Bunch`
        From `fetch_laion_surfaces`, of the same subject.
    target : {"MNI152", "MNI305"}, default="MNI152"
        ``"MNI305"``: the voxels as they are, with the affine of their place there.
        ``"MNI152"``: resampled to the grid of nilearn's template, of 2 mm.
    interpolation : {"linear", "nearest"}, default="linear"
        Between voxels; ``"nearest"`` is for masks, labels and indices.

    Returns
    -------
    :class:`nibabel.nifti1.Nifti1Image`
        Of float32; NaN outside of the image, and of the voxels of betas.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, the image is of another subject or does not overlap
        with the template, or the bucket has no transform of the subject.
    CorruptImageError
        If a file is damaged.

    Warns
    -----
    UserWarning
        If ``"linear"`` would average labels; see `project_to_surface`.

    See Also
    --------
    project_to_surface : Project an image to the cortex, or to fsaverage.

    References
    ----------
    From MNI305 to MNI152 by the matrix that FreeSurfer publishes:
    https://surfer.nmr.mgh.harvard.edu/fswiki/CoordinateSystems

    Examples
    --------
    A noise ceiling on nilearn's template::

        from nilearn.plotting import plot_stat_map

        surfaces = fetch_laion_surfaces("sub-01", rois=None)
        ceiling = data.noise_ceilings["sub-01"]["Allrep"]
        plot_stat_map(project_to_mni(ceiling, surfaces))
    """
    check_surfaces(surfaces)
    check_choice("target", target, ("MNI152", "MNI305"))
    check_choice("interpolation", interpolation, ("linear", "nearest"))
    if surfaces.to_mni305 is None:
        raise InvalidQueryError(
            f"The bucket has no mri/transforms/talairach.xfm of {surfaces.subject}, by "
            "which it would be taken to MNI space"
        )
    image = open_image(img, surfaces.subject)
    # Each volume may be overwritten by the next.
    volumes = np.stack([np.array(volume) for volume in image.volumes], axis=3)
    if len(image.shape) == 3:
        volumes = volumes[..., 0]
    affine = surfaces.to_mni305 @ image.affine
    if target == "MNI305":
        result = nib.Nifti1Image(volumes, affine)
        result.set_sform(affine, "talairach")
        return result
    if interpolation == "linear" and image.has_labels:
        warn(
            "img holds labels, a mask or other whole numbers, which "
            "interpolation='linear' averages; 'nearest' keeps them."
        )

    from nilearn.datasets import load_mni152_template
    from nilearn.image import resample_img

    template = load_mni152_template(resolution=2)

    def resample(values: np.ndarray) -> np.ndarray:
        source = nib.Nifti1Image(values.astype(np.float32), MNI305_TO_MNI152 @ affine)
        resampled = resample_img(
            source,
            target_affine=template.affine,
            target_shape=template.shape,
            interpolation=interpolation,
            copy_header=True,
            force_resample=True,
        )
        return np.asarray(resampled.dataobj)

    # The mean of voxels that have a value, each by its share in the interpolation.
    has_value = np.isfinite(volumes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Resampling binary images")
        weights = resample(has_value)
    if not weights.any():
        raise InvalidQueryError(
            f"img does not overlap with the template; it must be in the T1w space of "
            f"{surfaces.subject}"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        values = resample(np.where(has_value, volumes, 0)) / weights
    result = nib.Nifti1Image(values, template.affine)
    result.set_sform(template.affine, "mni")
    return result
