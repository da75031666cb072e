"""
Images beside the responses to them
===================================

Stimulus images are covered by a Data Use Agreement. Request access, fetch the images of
chosen trials, and look at those that drive a region most and least.
"""

# %%
# Request access
# --------------
#
# At a terminal or in a notebook, ``request_stimulus_access()`` asks for all fields. In
# a script, they are arguments, including two consents. Access is granted in the answer.
# Here the demo answers: no request is sent to anybody.

from laion_fmri_fetchers import current_terms_version, request_stimulus_access
from laion_fmri_fetchers.demo import content_category, serve_demo

demo = serve_demo(subjects=["sub-01"], n_trials=128)
request_stimulus_access(
    name="Ada Example",
    email="ada@university.example",
    institution="University of Examples",
    research_purpose="Category selectivity of visual cortex",
    accept_terms_version=current_terms_version(),
    acknowledge_privacy=True,
    renew=True,
)

# %%
# The response to each image
# --------------------------
#
# The mean of FFA1, of images with four or more repeats, because means of few trials are
# extreme by noise alone.

from laion_fmri_fetchers import fetch_laion_betas

betas = fetch_laion_betas("sub-01", "FFA1", standardize="zscore", average_repeats=True)
responses = betas.trials.set_index("label")[["n_averaged"]]
responses["beta"] = betas.data.mean(axis=1)
responses = responses.query("n_averaged >= 4").sort_values("beta")
assert len(responses) > 12

# %%
# Most and least driving images
# -----------------------------
#
# All images are in one archive (3.2 GB in LAION-fMRI), which is downloaded once.

from matplotlib import pyplot as plt

from laion_fmri_fetchers import fetch_laion_stimuli, load_stimuli

chosen = [*responses.index[:-7:-1], *responses.index[:6]]
stimuli = fetch_laion_stimuli(chosen)
stimuli.metadata = stimuli.metadata.loc[chosen]
pictures = load_stimuli(stimuli, size=160)

figure, axes = plt.subplots(2, 6, figsize=(7.2, 3), layout="constrained")
for ax, picture, label in zip(axes.flat, pictures, chosen, strict=True):
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
# One extreme image proves little; distributions show more. On the real data, take kinds
# from captions (:ref:`sphx_glr_auto_examples_plot_4_decoding.py`) or from nouns of
# `fetch_laion_segmentations`.

kinds = responses["beta"].groupby(responses.index.map(content_category))
order = kinds.median().sort_values().index
figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
ax.boxplot([kinds.get_group(kind) for kind in order])
ax.set_xticklabels([f"{kind}\n{kinds.size()[kind]} images" for kind in order])
ax.axhline(0, color="black", lw=0.8, ls=":")
ax.set(ylabel="Mean response of FFA1 (z)")
plt.show()
demo.stop()
