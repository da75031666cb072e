"""
Images beside the responses to them
===================================

Stimulus images are gated by a Data Use Agreement. Request access, wait for approval,
fetch the images of chosen trials, and look at those that drive a region most and least.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine, and so is the service that grants
# access: no request is sent to anybody. Leave out the lines with ``demo``, and the rest
# runs on LAION-fMRI itself, with your own name in the form.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=128)
demo.access.approves = False  # as with the real service, approval takes time

# %%
# Request access
# --------------
#
# At a terminal or in a notebook, ``request_stimulus_access()`` asks for all fields. In
# a script, they are arguments, including two consents: the version of the agreement
# that you have read and accept, and that you acknowledge the privacy notice.
# ``renew=True`` sends the form even if this machine keeps an approved request already.
# Until the request is approved, calls raise `.AccessPendingError`.

from laion_fmri_fetchers import (
    access_status,
    current_terms_version,
    request_stimulus_access,
)
from laion_fmri_fetchers.exceptions import AccessPendingError

try:
    request_stimulus_access(
        name="Ada Example",
        email="ada@university.example",
        institution="University of Examples",
        research_purpose="Category selectivity of visual cortex",
        accept_terms_version=current_terms_version(),
        acknowledge_privacy=True,
        renew=True,
    )
except AccessPendingError:
    print("Status:", access_status()["status"])

# %%
# Later the request is approved. With the real service, the publishers approve it; here
# we approve it ourselves.

demo.access.approve()

# %%
# Fetch images of chosen trials
# -----------------------------
#
# All images are in one archive (3.2 GB in LAION-fMRI), which is downloaded once.
# ``trials`` selects rows of its table, one per image. The table alone is public, see
# `fetch_laion_stimulus_metadata`.

from laion_fmri_fetchers import fetch_laion_fmri, fetch_laion_stimuli, load_betas

data = fetch_laion_fmri("sub-01", rois="FFA1", sessions=range(1, 5))
stimuli = fetch_laion_stimuli(data.trials)
print("Status:", access_status()["status"])
stimuli.metadata.head()

# %%
# The response to each image
# --------------------------
#
# Betas are z-scored within session, averaged over repeats, then over the voxels of
# FFA1. Only images with four or more repeats are compared, because means of few trials
# are extreme by noise alone.

betas = load_betas(data, rois="FFA1", standardize="zscore", average_repeats=True)
responses = betas.trials.set_index("label")[["n_averaged"]]
responses["beta"] = betas.data.mean(axis=1)
responses = responses.query("n_averaged >= 4").sort_values("beta")
responses.tail(3)

# %%
# Most and least driving images
# -----------------------------
#
# `load_stimuli` decodes the images in the order of ``metadata``, so select its rows
# first.

from matplotlib import pyplot as plt

from laion_fmri_fetchers import load_stimuli

most, least = responses.index[:-7:-1], responses.index[:6]
stimuli.metadata = stimuli.metadata.loc[[*most, *least]]
pictures = load_stimuli(stimuli, size=160)

figure, axes = plt.subplots(2, 6, figsize=(7.2, 3), layout="constrained")
for ax, picture, label in zip(axes.flat, pictures, [*most, *least], strict=True):
    ax.imshow(picture)
    ax.set_title(f"{responses.loc[label, 'beta']:.2f}", fontsize="medium")
    ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("Most driving")
axes[1, 0].set_ylabel("Least driving")
figure.suptitle("Images and the mean response of FFA1 to them (z)")
plt.show()

# %%
# Responses by kind of image
# --------------------------
#
# One extreme image proves little; distributions show more: medians and quartiles over
# images. In the demo, the content of an image follows from its name. On the real data,
# use captions (see :ref:`sphx_glr_auto_examples_plot_4_decoding.py`) or nouns of
# `fetch_laion_segmentations`.

from laion_fmri_fetchers.demo import content_category

kinds = responses["beta"].groupby(responses.index.map(content_category))
order = kinds.median().sort_values().index
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
ax.boxplot(
    [kinds.get_group(kind) for kind in order],
    medianprops={"color": "#d55e00", "lw": 2},
)
ax.set_xticklabels([f"{kind}\n{kinds.size()[kind]} images" for kind in order])
ax.axhline(0, color="black", lw=0.8, ls=":")
ax.set(ylabel="Mean response of FFA1 (z)")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Stop the stand-in; its data are removed.

demo.stop()
