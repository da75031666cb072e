# ruff: noqa: D205, D400, E402
"""
Decode what an image shows
==========================

From a bucket to a brain map: fetch betas and ROI masks of one subject, load them as an
array, decode what was seen with a cross-validated scikit-learn pipeline, and put what
the decoder learnt back into the brain.

The data are synthetic, and served by a local stand-in for the dataset's bucket. Without
the first section, the same lines run on LAION-fMRI itself, with categories of your own.
"""

# %%
# A bucket with synthetic data
# ----------------------------
#
# It has the layout and the formats of the dataset, with small images.

import os
import tempfile
from contextlib import ExitStack

from laion_fmri_fetchers.demo import build_bucket, content_category, serve_bucket

stack = ExitStack()
folder = stack.enter_context(tempfile.TemporaryDirectory())
bucket = build_bucket(f"{folder}/bucket", subjects=["sub-01"])
os.environ["LAION_FMRI_BUCKET_URL"] = stack.enter_context(serve_bucket(bucket)).url
os.environ["LAION_FMRI_DATA_DIR"] = f"{folder}/laion_fmri"
os.environ["LAION_FMRI_LICENSE"] = "I AGREE"

# %%
# Fetch and load
# --------------
#
# Voxels differ in ridge shrinkage, so each is z-scored within its session. Only voxels
# with a noise ceiling of 5 percent or more are loaded.

from laion_fmri_fetchers import fetch_laion_fmri, load_betas

data = fetch_laion_fmri("sub-01", rois=["face", "place", "object", "body"])
betas = load_betas(data, nc_threshold=5, standardize="zscore")
print(f"{betas.data.shape[0]} trials x {betas.data.shape[1]} voxels")
for roi, mask in betas.roi_masks.items():
    print(f"{roi}: {mask.sum()} voxels")

# %%
# What to decode
# --------------
#
# In the synthetic dataset, a label tells what its image shows.

shown = betas.trials["label"].map(content_category).to_numpy()
wanted = [i for i, what in enumerate(shown) if what in ("face", "place", "object")]
print(betas.trials.iloc[wanted].groupby(shown[wanted]).size())

# %%
# Decode
# ------
#
# An image is shown several times. Folds are made of labels, so that no image is both
# learnt and predicted; ``betas.groups["session"]`` would leave out sessions instead.

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

decoder = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
scores = cross_val_score(
    decoder,
    betas.data[wanted],
    shown[wanted],
    groups=betas.groups["label"][wanted],
    cv=StratifiedGroupKFold(5),
)
print(f"accuracy {scores.mean():.2f} +- {scores.std():.2f}; by chance 0.33")

# %%
# Which regions tell faces apart?

for roi, mask in betas.roi_masks.items():
    of_roi = cross_val_score(
        decoder,
        betas.data[wanted][:, mask],
        shown[wanted] == "face",
        groups=betas.groups["label"][wanted],
        cv=StratifiedGroupKFold(5),
        scoring="roc_auc",
    )
    print(f"{roi:<10} AUC {of_roi.mean():.2f}")

# %%
# Back to the brain
# -----------------
#
# Weights of a decoder are hard to read. Its pattern is what the signal looks like where
# the decoder sees a face: the covariance of voxels and decision.

from nilearn.masking import unmask
from nilearn.plotting import plot_stat_map, show

decoder.fit(betas.data[wanted], shown[wanted])
face = list(decoder.classes_).index("face")
decision = decoder.decision_function(betas.data[wanted])[:, face]
pattern = betas.data[wanted].T @ (decision - decision.mean()) / len(wanted)
pattern_img = unmask(pattern.astype(np.float32), betas.mask_img)

anatomy = fetch_laion_fmri(
    "sub-01", rois=None, image_type="anatomical", suffix="T1w", res="1pt8"
)
plot_stat_map(
    pattern_img,
    bg_img=anatomy.images[0],
    cut_coords=(40, -56, -17),
    title="Pattern of the face decoder",
)
show()

# %%
# Stop the stand-in.

stack.close()
