"""
Encoding model on image embeddings
==================================

How much of a voxel's response can be predicted from the embedding of an image by a
vision model? Fit a ridge regression from embeddings to betas, test it on new images,
and compare it with the noise ceiling.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine. Embeddings of images of the same kind
# of thing are similar, as those of real models are. Leave out the lines with ``demo``,
# and the rest runs on LAION-fMRI itself.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=256)

# %%
# Responses
# ---------
#
# The average over repeats, one row per image, of all voxels in any ROI.

from laion_fmri_fetchers import fetch_laion_fmri, load_betas

data = fetch_laion_fmri("sub-01", rois="all", sessions=range(1, 5))
betas = load_betas(data, standardize="zscore", average_repeats=True)
print(f"{betas.data.shape[0]} images x {betas.data.shape[1]} voxels")

# %%
# Embeddings
# ----------
#
# Embeddings are public; no access request is needed. `align` puts them in the order of
# the responses, and warns of images that the model gave no valid embedding of.

import numpy as np

from laion_fmri_fetchers import align, fetch_laion_embeddings

clip = fetch_laion_embeddings("CLIP", betas.trials)
X = align(betas.trials, clip).astype(np.float32)
Y = betas.data
print(f"{X.shape[0]} images x {X.shape[1]} features")

# %%
# Predict new images
# ------------------
#
# The publishers' split ``"tau"`` keeps a fifth of the images for the test, such that
# they are as varied as those of the training. Rows are images here; with single trials,
# too, ``masks`` would put all trials of an image on the same side. OOD images are on
# neither side, which a warning says. Each voxel has a penalty of its own, chosen within
# the training images.

from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from laion_fmri_fetchers import fetch_laion_splits

tau = fetch_laion_splits("tau", pool="sub-01")["tau"]
train, test = tau.masks(betas.trials)
print(f"{train.sum()} images to train on, {test.sum()} to test")

model = make_pipeline(
    StandardScaler(), RidgeCV(np.logspace(1, 6, 6), alpha_per_target=True)
)
predicted = model.fit(X[train], Y[train]).predict(X[test])
residual = ((Y[test] - predicted) ** 2).sum(axis=0)
r2 = 1 - residual / ((Y[test] - Y[test].mean(axis=0)) ** 2).sum(axis=0)

# %%
# Below the ceiling
# -----------------
#
# A model cannot explain more than the noise ceiling of these averages, which depends on
# how many trials they have. None of the published maps need be of the same number, but
# each tells the ratio of signal and noise, from which ``betas.noise_ceiling`` derives
# the ceiling that fits. `normalized_score` is the explained share of what can be
# explained.

from laion_fmri_fetchers import normalized_score

n_averaged = betas.trials["n_averaged"][test]
print(n_averaged.value_counts().to_dict())
ceiling = betas.noise_ceiling(n_averaged)
score = normalized_score(r2, ceiling)
for name in ("face", "place", "V1"):
    mask = betas.roi_mask(name)
    print(f"{name}: median of the normalized score {np.median(score[mask]):.2f}")

# %%
# Medians over the voxels of each ROI:

from matplotlib import pyplot as plt

colours = {
    "face": ("#d55e00", "o"),
    "place": ("#009e73", "s"),
    "body": ("#cc79a7", "^"),
    "character": ("#e69f00", "v"),
    "motion": ("#000000", "P"),
    "object": ("#56b4e9", "D"),
    "retinotopy": ("#0072b2", "X"),
}
category = betas.roi_categories
figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
for name, (colour, marker) in colours.items():
    masks = [betas.roi_masks[roi] for roi in category if category[roi] == name]
    ax.plot(
        [np.median(ceiling[mask]) for mask in masks],
        [100 * np.median(r2[mask]) for mask in masks],
        marker,
        color=colour,
        ms=7,
        label=name,
    )
ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--", label="ceiling")
ax.axhline(0, color="black", lw=0.8)
ax.set(
    xlabel="Noise ceiling of the averages (%)",
    ylabel="Variance explained by the model (%)",
    xlim=(0, 65),
    ylim=(-5, 30),
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", ncols=2, loc="upper right")
plt.show()

# %%
# In the synthetic data, embeddings encode what kind of thing an image shows, and
# nothing else that a voxel responds to. So the model explains some of the variance in
# most category-selective regions, stays far below the ceiling, and fails in most
# retinotopic maps. With so few images to test on, a region may be off by some percent.
#
# Back to the brain
# -----------------

from nilearn.plotting import plot_stat_map

anatomy = fetch_laion_fmri(
    "sub-01", rois=None, image_type="anatomical", suffix="T1w", res=None
)
plot_stat_map(
    betas.to_img(100 * r2),
    bg_img=anatomy.images[0],
    threshold=3,
    vmin=0,
    vmax=20,
    cmap="inferno",
    display_mode="z",
    cut_coords=[-18, -12, 0, 6],
    title="Variance explained by the model (%)",
    resampling_interpolation="nearest",
)
plt.show()

# %%
# Stop the stand-in; its data are removed.

demo.stop()
