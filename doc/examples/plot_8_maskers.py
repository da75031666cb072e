"""
A localizer with nilearn's maskers
==================================

Fetched files work in nilearn without this package's own loaders. Here the whole brain
is tested for voxels that respond more to faces than to anything else.
"""

# %%
# Fetch trials of images that are shown 4 times
# ----------------------------------------------
#
# Averages of 4 trials have the same noise.

from laion_fmri_fetchers import fetch_laion_fmri
from laion_fmri_fetchers.demo import content_category, serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=192)
data = fetch_laion_fmri(
    "sub-01", rois="face", sessions=range(1, 5), trial_filter={"n_reps": 4}
)
assert len(data.trials) > 300

# %%
# From images to arrays
# ---------------------
#
# ``NiftiMasker`` takes the brain mask and, for each image, the volumes of the selected
# trials. It reads a whole image into memory, 12 GB for a session of LAION-fMRI, where
# `load_betas` needs memory for its result only. ``trials`` has one row per row of the
# array.

import numpy as np
from nilearn.maskers import NiftiMasker

masker = NiftiMasker(data.brain_masks["sub-01"], standardize="zscore_sample").fit()
responses = np.vstack(
    [
        masker.transform(image, sample_mask=volumes)
        for image, volumes in zip(data.images, data.sample_masks, strict=True)
    ]
)
assert len(responses) == len(data.trials)

# %%
# Test each voxel
# ---------------
#
# A permutation test with the largest statistic over the brain controls the family-wise
# error rate. Trials of one image are not independent, so the test is over averages of
# images. Voxels that GLMsingle did not fit are constant, and left out.

import pandas as pd
from nilearn.mass_univariate import permuted_ols

averages = pd.DataFrame(responses).groupby(data.trials["label"].to_numpy()).mean()
is_face = np.array([content_category(label) == "face" for label in averages.index])
print(f"{is_face.sum()} images of faces, {(~is_face).sum()} of something else")
is_fitted = (averages.std() > 0).to_numpy()
test = permuted_ols(
    is_face[:, None].astype(float),
    averages.to_numpy()[:, is_fitted],
    n_perm=500,
    two_sided_test=False,
    random_state=0,
    output_type="dict",
)
t_values = np.zeros(len(is_fitted))
t_values[is_fitted] = test["t"][0]
significant = np.zeros(len(is_fitted), bool)
significant[is_fitted] = 10.0 ** -test["logp_max_t"][0] < 0.05
print(f"{significant.sum()} voxels with p < 0.05, corrected")

# %%
# Compare with the regions of the dataset
# ---------------------------------------
#
# The outlines are those of the face-selective ROIs.

from matplotlib import pyplot as plt
from nilearn.image import math_img
from nilearn.plotting import plot_stat_map

anatomy = fetch_laion_fmri(
    "sub-01", rois=None, image_type="anatomical", suffix="T1w", res=None
)
t_values[~significant] = 0
display = plot_stat_map(
    masker.inverse_transform(t_values),
    bg_img=anatomy.images[0],
    display_mode="z",
    cut_coords=[-18, -12, 6, 12],
    threshold=0.99 * t_values[significant].min(),
    cmap="inferno",
    vmin=0,
    title="Faces > others: t where p < 0.05, corrected",
    resampling_interpolation="nearest",
)
union = math_img("np.max(masks, axis=-1)", masks=data.rois)
display.add_contours(union, levels=[0.5], colors="#56b4e9", linewidths=1.5)
plt.show()
demo.stop()
