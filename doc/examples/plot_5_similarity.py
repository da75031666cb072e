"""
Representational similarity across subjects
===========================================

Voxels of different brains do not correspond, but the geometry of their responses can be
compared: which images does a region tell apart, and do other subjects agree?
"""

# %%
# The same images for everybody
# -----------------------------
#
# Images shown 12 times are left out: their averages have less noise in every subject,
# and that alone would make dissimilarities agree. `shared_labels` gives the images that
# every subject saw in both halves of the sessions. LAION-fMRI has 1,492 shared images,
# the demo 16.

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri, shared_labels
from laion_fmri_fetchers.demo import content_category, serve_demo

subjects = ["sub-01", "sub-03", "sub-05", "sub-06", "sub-07"]
demo = serve_demo(subjects=subjects, held_out=())
shared = {"unique_or_shared": "shared", "n_reps": 4}
trials = fetch_laion_fmri("all", None, trial_filter=shared, dry_run=True).trials
sessions = sorted(trials["session"].unique())
halves = sessions[::2], sessions[1::2]
labels = shared_labels(*(trials[trials["session"].isin(half)] for half in halves))
labels = sorted(labels, key=lambda label: (content_category(label), label))
assert len(labels) > 5

# %%
# With ``labels``, rows of each subject are sorted by image, in this order.

regions = {
    "early visual": ["V1", "V2", "V3"],
    "category-selective": ["face", "place", "body", "object", "character"],
    "parietal, frontal": ["IPS0", "IPCS", "SPCS"],
}
rois = [name for names in regions.values() for name in names]
betas = {
    subject: fetch_laion_betas(subject, rois, labels=labels, standardize="zscore")
    for subject in subjects
}

# %%
# Dissimilarity of images
# -----------------------
#
# The dissimilarity of two images is one minus the correlation of their average
# patterns.

import numpy as np
from scipy.spatial.distance import pdist, squareform


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
            mask = loaded.roi_mask(names)
            result[region][subject] = pdist(patterns[:, mask], "correlation")
    return result


all_sessions = dissimilarities(sessions)

# %%
# The mean over subjects. In category-selective regions, images of the same content are
# more similar:

from matplotlib import pyplot as plt

contents = [content_category(label) for label in labels]
names, starts = np.unique(contents, return_index=True)
middles = (starts + np.append(starts[1:], len(labels)) - 1) / 2
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.8), layout="constrained")
for ax, region in zip(axes, ["early visual", "category-selective"], strict=True):
    matrix = squareform(np.mean([*all_sessions[region].values()], axis=0))
    np.fill_diagonal(matrix, np.nan)
    shade = ax.imshow(matrix, cmap="cividis", vmin=0.7, vmax=1.3)
    ax.set_xticks(middles, names, rotation=45, ha="right")
    ax.set_yticks(middles, names)
    ax.set_title(region)
figure.colorbar(shade, ax=axes, label="Dissimilarity (1 - r)", shrink=0.8)
plt.show()

# %%
# Do subjects agree?
# ------------------
#
# Spearman's correlation of dissimilarities between pairs of subjects, and between the
# two halves of each subject's sessions, which shows how reliable they are.

from itertools import combinations

from scipy.stats import spearmanr

first, second = (dissimilarities(half) for half in halves)
figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for column, region in enumerate(regions):
    within = [(first[region][s], second[region][s]) for s in subjects]
    pairs = [*combinations(all_sessions[region].values(), 2)]
    for shift, colour, compared, label in (
        (-0.15, "#0072b2", within, "two halves of a subject's sessions"),
        (0.15, "#d55e00", pairs, "two subjects"),
    ):
        values = [spearmanr(*pair)[0] for pair in compared]
        x = column + shift + np.linspace(-0.08, 0.08, len(values))
        name = label if column == 0 else None
        ax.plot(x, values, "o", color=colour, ms=4, alpha=0.6, label=name)
        ax.hlines(np.mean(values), x[0], x[-1], color=colour, lw=3)
ax.axhline(0, color="black", lw=0.8)
ax.set_xticks(range(len(regions)), regions)
ax.set_ylabel("Agreement (Spearman's r; bar: mean)")
ax.legend(frameon=False)
plt.show()

# %%
# In the synthetic data, subjects share what category-selective regions prefer and
# nothing else, so in other regions they do not agree.

demo.stop()
