"""
A localizer with nilearn's maskers
==================================

The fetched files work in nilearn without this package's own loaders: paths of images
and masks, and the volumes to select. Here the whole brain is tested for voxels that
respond more to faces than to anything else.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine. Leave out the lines with ``demo``, and
# the rest runs on LAION-fMRI itself, with labels of your own in place of
# ``content_category``.

from laion_fmri_fetchers.demo import content_category, serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=192)

# %%
# Fetch trials of images that are shown 4 times
# ----------------------------------------------
#
# Averages of 4 trials have the same noise.

from laion_fmri_fetchers import fetch_laion_fmri

data = fetch_laion_fmri(
    "sub-01",
    rois="face",
    sessions=range(1, 5),
    trial_filter={"n_reps": 4},
)

# %%
# From images to arrays
# ---------------------
#
# ``NiftiMasker`` takes the brain mask of the subject and, for each image, the volumes
# of the selected trials. It reads a whole image into memory: 12 GB for a session of
# LAION-fMRI, where `load_betas` needs memory for its result only. And it z-scores over
# the selected trials, where `load_betas` does so over all trials of the session.

import numpy as np
from nilearn.maskers import NiftiMasker

masker = NiftiMasker(
    mask_img=data.brain_masks["sub-01"],
    standardize="zscore_sample",
    smoothing_fwhm=None,
).fit()
sessions = [
    masker.transform(image, sample_mask=volumes)
    for image, volumes in zip(data.images, data.sample_masks, strict=True)
]
responses = np.vstack(sessions)
print(f"{responses.shape[0]} trials x {responses.shape[1]} voxels")

# %%
# ``trials`` has one row per row of this array, in the same order.

faces = (data.trials["label"].map(content_category) == "face").to_numpy()
print(f"{faces.sum()} trials with faces, {(~faces).sum()} with something else")
assert len(faces) == len(responses)

# %%
# Test each voxel
# ---------------
#
# A permutation test with the largest statistic over the brain controls the family-wise
# error rate. Trials of one image are not independent, so responses are averaged over
# repeats first, and the test is over images. Voxels of the brain mask that GLMsingle
# did not fit are constant, and left out.

import pandas as pd
from nilearn.mass_univariate import permuted_ols

codes, labels = pd.factorize(data.trials["label"])
counts = np.bincount(codes)
averages = np.zeros((len(labels), responses.shape[1]))
np.add.at(averages, codes, responses)
averages /= counts[:, None]
is_fitted = averages.std(axis=0) > 0
is_face = np.array([[content_category(label) == "face"] for label in labels], float)
test = permuted_ols(
    is_face,
    averages[:, is_fitted],
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
# The map is drawn with the outlines of the face-selective ROIs that were fetched.

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

# %%
# How many voxels of each region are among them?

from nilearn.masking import apply_mask

rows = []
for path, meta in zip(data.rois, data.rois_meta, strict=True):
    inside = apply_mask(path, data.brain_masks["sub-01"]) > 0
    rows.append((meta["roi"], inside.sum(), (inside & significant).sum()))
pd.DataFrame(rows, columns=["ROI", "voxels", "significant"]).set_index("ROI")

# %%
# Stop the stand-in; its data are removed.

demo.stop()
