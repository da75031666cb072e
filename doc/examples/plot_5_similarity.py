"""
Representational similarity across subjects
===========================================

Voxels of different brains do not correspond, but the geometry of their responses can be
compared: which images does a region tell apart, and do other subjects agree? Shared
images make that possible.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine. Leave out the lines with ``demo``,
# order the images as you like, take more sessions, and the rest runs on LAION-fMRI
# itself. It has 1,492 shared images, the demo 16.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(
    subjects=["sub-01", "sub-03", "sub-05", "sub-06", "sub-07"], held_out=()
)

# %%
# Fetch shared images only
# ------------------------
#
# Images that are shown 12 times are left out: their averages have less noise, in every
# subject, and that alone would make dissimilarities agree. ROIs are named individually
# or by category, and joined to larger regions below.

from laion_fmri_fetchers import fetch_laion_fmri

regions = {
    "early visual": ["V1d", "V1v", "V2d", "V2v", "V3d", "V3v"],
    "category-selective": ["face", "place", "body", "object", "character"],
    "parietal, frontal": ["IPS0", "IPCS", "SPCS"],
}
shared = {"unique_or_shared": "shared", "n_reps": 4}
data = fetch_laion_fmri(
    "all",
    rois=[name for names in regions.values() for name in names],
    sessions=range(1, 5),
    trial_filter=shared,
)

# %%
# Dissimilarity of images
# -----------------------
#
# Matrices need the same images in the same order. `shared_labels` gives those that
# every subject saw in both halves of the sessions; with ``labels``, `load_betas` puts
# the trials of all subjects in their order. Here, they are sorted by their content,
# which in the demo follows from an image's name. Each session is read once.

import numpy as np

from laion_fmri_fetchers import load_betas, shared_labels
from laion_fmri_fetchers.demo import content_category

is_first_half = data.trials["session"] <= "ses-02"
labels = sorted(
    shared_labels(data.trials[is_first_half], data.trials[~is_first_half]),
    key=lambda label: (content_category(label), label),
)
betas = {
    subject: load_betas(data, subject, labels=labels, standardize="zscore")
    for subject in data.trials["subject"].unique()
}

# %%
# Repeats are averaged. The dissimilarity of two images is one minus the correlation of
# their patterns, 0 to 2.

from scipy.spatial.distance import pdist


def dissimilarities(sessions):
    """Return dissimilarities of all pairs of images, by region and subject."""
    result = {region: {} for region in regions}
    for subject, loaded in betas.items():
        chosen = loaded.trials["session"].isin(sessions).to_numpy()
        image = loaded.groups["label"]
        patterns = np.array(
            [loaded.data[chosen & (image == label)].mean(axis=0) for label in labels]
        )
        for region, names in regions.items():
            mask = np.any([loaded.roi_mask(name) for name in names], axis=0)
            result[region][subject] = pdist(patterns[:, mask], "correlation")
    return result


all_sessions = dissimilarities(["ses-01", "ses-02", "ses-03", "ses-04"])

# %%
# The mean over subjects. In category-selective regions, images of the same content are
# more similar:

from matplotlib import pyplot as plt
from scipy.spatial.distance import squareform

contents = np.array([content_category(label) for label in labels])
names, starts = np.unique(contents, return_index=True)
middles = (starts + np.append(starts[1:], len(labels)) - 1) / 2
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.8), layout="constrained")
for ax, region in zip(axes, ["early visual", "category-selective"], strict=True):
    matrix = squareform(np.mean([*all_sessions[region].values()], axis=0))
    np.fill_diagonal(matrix, np.nan)
    shade = ax.imshow(matrix, cmap="cividis", vmin=0.7, vmax=1.3)
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", lw=0.8)
        ax.axvline(start - 0.5, color="white", lw=0.8)
    ax.set_xticks(middles, names, rotation=45, ha="right")
    ax.set_yticks(middles, names)
    ax.set_title(region)
figure.colorbar(shade, ax=axes, label="Dissimilarity (1 - r)", shrink=0.8)
plt.show()

# %%
# Do subjects agree?
# ------------------
#
# Spearman's correlation of dissimilarities, between pairs of subjects. The two halves
# of each subject's sessions, with half of the data each, show how reliable they are.

from itertools import combinations

from scipy.stats import spearmanr

halves = [
    dissimilarities(half) for half in (["ses-01", "ses-02"], ["ses-03", "ses-04"])
]


def agreement(first, second):
    """Return Spearman's correlation."""
    return spearmanr(first, second)[0]


within = {
    region: [
        agreement(*(half[region][subject] for half in halves)) for subject in betas
    ]
    for region in regions
}
between = {
    region: [agreement(*pair) for pair in combinations(of_subject.values(), 2)]
    for region, of_subject in all_sessions.items()
}
figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for values, marker, colour, shift, label in (
    (within, "s", "#0072b2", -0.15, "two halves of a subject's sessions"),
    (between, "o", "#d55e00", 0.15, "two subjects"),
):
    for column, region in enumerate(regions):
        x = column + shift
        spread = np.linspace(-0.08, 0.08, len(values[region]))
        ax.plot(x + spread, values[region], marker, color=colour, ms=4, alpha=0.6)
        mean = np.mean(values[region])
        ax.plot([x - 0.12, x + 0.12], [mean, mean], color=colour, lw=3)
    ax.plot([], [], marker, color=colour, label=f"{label} (bar: mean)")
ax.axhline(0, color="black", lw=0.8)
ax.set_xticks(range(len(regions)), regions)
ax.set_ylabel("Agreement (Spearman's r)")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=1)
plt.show()

# %%
# In the synthetic data, subjects share what category-selective regions prefer.
# Everything else was drawn separately for each subject, so in other regions they do not
# agree.

# %%
# Stop the stand-in; its data are removed.

demo.stop()
