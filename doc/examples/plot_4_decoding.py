"""
Decode what an image shows
==========================

From a fetch to a brain map: load betas as an array, take labels from captions, decode
them with a cross-validated scikit-learn pipeline, compare regions, and map the pattern
of the decoder back to the brain.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine: category-selective regions respond more
# to what they prefer. Leave out the lines with ``demo``, and the rest runs on
# LAION-fMRI itself.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=128)

# %%
# Fetch and load
# --------------
#
# Ridge shrinkage differs between voxels and sessions, so each voxel is z-scored within
# its session. Only voxels with a noise ceiling of 5 percent or more are loaded.

from laion_fmri_fetchers import fetch_laion_fmri, load_betas

data = fetch_laion_fmri(
    "sub-01", rois=["face", "place", "object", "V1v", "V1d"], sessions=range(1, 5)
)
betas = load_betas(data, nc_threshold=5, standardize="zscore")
print(f"{betas.data.shape[0]} trials x {betas.data.shape[1]} voxels")

# %%
# What to decode
# --------------
#
# Captions describe what people saw in an image. A trial is labelled by the words in
# them, and left out if it has none of these words, or words of two kinds.

from laion_fmri_fetchers import fetch_laion_captions

words = {
    "face": {"face", "portrait"},
    "place": {"house", "street", "room"},
    "object": {"object", "tool"},
}
captions = fetch_laion_captions(betas.trials, source="human").captions
captions = captions.groupby("image_name")["caption"].agg(" ".join).str.lower()


def kind(label):
    """Return what the captions of an image are about, None if that is not clear."""
    found = set(captions.get(label, "").replace(",", " ").split())
    kinds = [name for name, own in words.items() if own & found]
    return kinds[0] if len(kinds) == 1 else None


shown = betas.trials["label"].map(kind)
wanted = shown.notna().to_numpy()
y = shown[wanted].to_numpy()
X = betas.data[wanted]
groups = betas.groups["label"][wanted]
shown[wanted].value_counts()

# %%
# Decode
# ------
#
# An image is shown several times. Folds are made of images, so that no image is in both
# training and test set; ``betas.groups["session"]`` would leave out sessions instead.

import numpy as np
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

decoder = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
folds = StratifiedGroupKFold(5)
predicted = cross_val_predict(decoder, X, y, groups=groups, cv=folds)

figure, ax = plt.subplots(figsize=(4.8, 4), layout="constrained")
ConfusionMatrixDisplay.from_predictions(
    y,
    predicted,
    normalize="true",
    values_format=".2f",
    cmap="cividis",
    im_kw={"vmin": 0, "vmax": 1},
    ax=ax,
)
ax.set(xlabel="Decoded (share of trials)", ylabel="In the captions")
largest = shown[wanted].value_counts(normalize=True).max()
ax.set_title(f"{np.mean(y == predicted):.2f} correct; largest class {largest:.2f}")
plt.show()

# %%
# Which regions tell faces apart?
# -------------------------------
#
# ``roi_masks`` has the columns of each region. The area under the ROC curve is 0.5
# by chance; bars are the mean over folds, points are folds.

from sklearn.model_selection import cross_val_score

scores = {
    roi: cross_val_score(
        decoder,
        X[:, mask],
        y == "face",
        groups=groups,
        cv=folds,
        scoring="roc_auc",
    )
    for roi, mask in betas.roi_masks.items()
}
colours = {"face": "#d55e00", "place": "#009e73", "object": "#56b4e9"}
category = {meta["roi"]: meta["roi_category"] for meta in data.rois_meta}
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for row, (roi, values) in enumerate(scores.items()):
    colour = colours.get(category[roi], "#0072b2")
    ax.barh(row, values.mean() - 0.5, left=0.5, color=colour, alpha=0.6)
    ax.plot(values, [row] * len(values), "o", color="black", ms=3)
ax.axvline(0.5, color="black", lw=0.8)
ax.set_yticks(range(len(scores)), [f"{roi} ({category[roi]})" for roi in scores])
ax.invert_yaxis()
ax.set(xlabel="Faces against places and objects: area under the ROC curve")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Back to the brain
# -----------------
#
# Weights of a decoder are hard to read. Its pattern is what the signal looks like where
# the decoder sees a face: the covariance of each voxel with the decision.

from nilearn.masking import unmask
from nilearn.plotting import plot_stat_map

decoder.fit(X, y)
decision = decoder.decision_function(X)[:, list(decoder.classes_).index("face")]
pattern = X.T @ (decision - decision.mean()) / len(X)
pattern_img = unmask(pattern.astype(np.float32), betas.mask_img)

anatomy = fetch_laion_fmri(
    "sub-01", rois=None, image_type="anatomical", suffix="T1w", res=None
)
plot_stat_map(
    pattern_img,
    bg_img=anatomy.images[0],
    cut_coords=(40, -56, -17),
    title="Pattern of the face decoder",
    resampling_interpolation="nearest",
)
plt.show()

# %%
# Stop the stand-in; its data are removed.

demo.stop()

# sphinx_gallery_thumbnail_number = 2
