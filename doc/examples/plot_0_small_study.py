"""
A small study in 40 lines
=========================

How well does the CLIP embedding of an image predict the response of a region to it, and
how close is that to the noise ceiling? An encoding model, from the bucket to the
answer.
"""

# %%
# All trials of three regions, z-scored within session and averaged over repeats of an
# image, without downloading the images that hold them:

import laion_fmri_fetchers as lf
from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=256)
regions = ["face", "place", "V1"]
betas = lf.fetch_laion_betas(
    "sub-01", rois=regions, standardize="zscore", average_repeats=True
)
print(f"{betas.data.shape[0]} images x {betas.data.shape[1]} voxels")

# %%
# The embedding of each image, in the same order, and the split ``"tau"`` of the
# dataset's authors, which tests on a fifth of the images. OOD images are on neither
# side, as a warning says.

clip = lf.fetch_laion_embeddings("CLIP", betas.trials)
features = lf.align(betas.trials, clip).astype("float32")
tau = lf.fetch_laion_splits("tau", pool="sub-01")["tau"]
train, test = tau.masks(betas.trials)
assert train.sum() > 100
assert test.sum() > 20

# %%
# Ridge regression from the embedding to each voxel, with a penalty per voxel, tested on
# new images:

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

model = make_pipeline(
    StandardScaler(), RidgeCV(np.logspace(1, 6, 6), alpha_per_target=True)
)
predicted = model.fit(features[train], betas.data[train]).predict(features[test])
r2 = r2_score(betas.data[test], predicted, multioutput="raw_values")

# %%
# The ceiling of these very averages, and the share of the explainable variance that the
# model explains:

ceiling = betas.noise_ceiling(betas.trials["n_averaged"][test])
score = lf.normalized_score(r2, ceiling)

from matplotlib import pyplot as plt

figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for region, colour in zip(regions, ["#d55e00", "#009e73", "#0072b2"], strict=True):
    mask = betas.roi_mask(region)
    label = f"{region}: median score {np.median(score[mask]):.2f}"
    ax.plot(ceiling[mask], 100 * r2[mask], "o", color=colour, alpha=0.6, label=label)
ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--", label="noise ceiling")
ax.set(xlabel="Noise ceiling (%)", ylabel="Variance explained (%)", ylim=(-30, 60))
ax.legend(frameon=False)
plt.show()

# %%
# In the synthetic data, embeddings encode what kind of thing an image shows, which
# drives face and place regions but not V1.

demo.stop()
