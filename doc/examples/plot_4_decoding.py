"""
Decode what an image shows
==========================

Take labels from captions, decode them from betas with a cross-validated scikit-learn
pipeline, compare regions, and map the decoder's pattern back to the brain.
"""

# %%
# Responses
# ---------
#
# Only voxels with a noise ceiling of 5 percent or more, each z-scored within its
# session.

from laion_fmri_fetchers import fetch_laion_betas
from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=128)
rois = ["face", "place", "object", "V1"]
betas = fetch_laion_betas("sub-01", rois, nc_threshold=5, standardize="zscore")
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
    kinds = [name for name, its_words in words.items() if its_words & found]
    return kinds[0] if len(kinds) == 1 else None


shown = betas.trials["label"].map(kind)
wanted = shown.notna().to_numpy()
assert wanted.sum() > 100
X, y = betas.data[wanted], shown[wanted].to_numpy()
images = betas.groups["label"][wanted]
shown[wanted].value_counts()

# %%
# Decode
# ------
#
# Folds are made of images, so that no image is in both training and test set.

import numpy as np
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

decoder = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
folds = StratifiedGroupKFold(5)
predicted = cross_val_predict(decoder, X, y, groups=images, cv=folds)
display = ConfusionMatrixDisplay.from_predictions(y, predicted, normalize="true")
display.ax_.set(xlabel="Decoded (share of trials)", ylabel="In the captions")
display.ax_.set_title(f"{np.mean(y == predicted):.2f} correct")
plt.show()

# %%
# Which regions tell faces apart?
# -------------------------------
#
# The area under the ROC curve is 0.5 by chance. Bars are means, points are folds.

from sklearn.model_selection import cross_val_score

colours = {"face": "#d55e00", "place": "#009e73", "object": "#56b4e9"}
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for roi, mask in betas.roi_masks.items():
    how = {"groups": images, "cv": folds, "scoring": "roc_auc"}
    scores = cross_val_score(decoder, X[:, mask], y == "face", **how)
    colour = colours.get(betas.roi_categories.get(roi), "#0072b2")
    ax.barh(roi, scores.mean() - 0.5, left=0.5, color=colour, alpha=0.6)
    ax.plot(scores, [roi] * len(scores), "o", color="black", ms=3)
ax.invert_yaxis()
ax.set(xlabel="Faces against places and objects: area under the ROC curve")
plt.show()

# %%
# Back to the brain
# -----------------
#
# Weights of a decoder are hard to read. Its pattern is what the signal looks like where
# the decoder sees a face: the covariance of each voxel with the decision.

from nilearn.plotting import plot_stat_map

from laion_fmri_fetchers import fetch_laion_fmri

decoder.fit(X, y)
decision = decoder.decision_function(X)[:, list(decoder.classes_).index("face")]
pattern = X.T @ (decision - decision.mean()) / len(X)
anatomy = fetch_laion_fmri(
    "sub-01", rois=None, image_type="anatomical", suffix="T1w", res=None
)
plot_stat_map(
    betas.to_img(pattern),
    bg_img=anatomy.images[0],
    cut_coords=(40, -56, -17),
    title="Pattern of the face decoder",
    resampling_interpolation="nearest",
)
plt.show()
demo.stop()

# sphinx_gallery_thumbnail_number = 2
