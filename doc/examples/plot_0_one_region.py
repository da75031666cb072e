"""
One region of all sessions in seconds
=====================================

A region has a few hundred of 270,000 voxels. Its betas are downloaded without the
images that hold them, 1.15 GB for each session: voxel by voxel, from the model files
beside these images.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine. Leave out the lines with ``demo``, and
# the rest runs on LAION-fMRI itself, with labels of your own in place of
# ``content_category``.

from laion_fmri_fetchers.demo import content_category, serve_demo

demo = serve_demo(subjects=["sub-01"])

# %%
# From the bucket to an array
# ---------------------------
#
# The arguments are those of `load_betas`. Voxels of the face area are z-scored within
# each session, and trials of the same image averaged.

from laion_fmri_fetchers import fetch_laion_betas

betas = fetch_laion_betas(
    "sub-01", rois="face", standardize="zscore", average_repeats=True
)
print(f"{betas.data.shape[0]} images x {betas.data.shape[1]} voxels")

# %%
# The next region
# ---------------
#
# What was downloaded is kept in the voxel store. Here, only voxels that the store lacks
# are downloaded, and the same call again takes all from the disk, offline, too.

places = fetch_laion_betas(
    "sub-01", rois="place", standardize="zscore", average_repeats=True
)
again = fetch_laion_betas("sub-01", rois=["face", "place"], mode="offline")
print(f"{again.data.shape[0]} trials x {again.data.shape[1]} voxels")

# %%
# What the regions respond to
# ---------------------------

import matplotlib.pyplot as plt
import pandas as pd

response = pd.DataFrame(
    {
        "face regions": betas.data.mean(axis=1),
        "place regions": places.data.mean(axis=1),
        "content": [content_category(label) for label in betas.trials["label"]],
    }
)
fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
response.groupby("content").mean().plot.bar(ax=ax, rot=0, width=0.7)
ax.set(xlabel="", ylabel="mean response (z)")
ax.axhline(0, color="black", linewidth=0.8)
plt.show()

# %%
# Stop the stand-in; its data are removed.

demo.stop()
