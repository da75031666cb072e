"""
First fetch
===========

See which regions exist and how large a download would be, fetch, draw the regions on
the brain, and load the same again without a network.
"""

# %%
# What there is
# -------------
#
# This reads only lists of files. The demo has 4 public sessions per subject, LAION-fMRI
# 30.

from laion_fmri_fetchers import describe, get_rois
from laion_fmri_fetchers.demo import content_category, serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"])
describe()
print("Face regions of sub-01:", get_rois("sub-01", category="face"))

# %%
# A region as an array
# --------------------
#
# `fetch_laion_betas` downloads only the voxels of a region, of all sessions, and keeps
# them: another region adds to what is stored, and the same call again works offline.

from laion_fmri_fetchers import fetch_laion_betas

regions = fetch_laion_betas(
    "sub-01", ["face", "place"], standardize="zscore", average_repeats=True
)
again = fetch_laion_betas("sub-01", "face", mode="offline")
print(f"{regions.data.shape[0]} images x {regions.data.shape[1]} voxels")
assert len(again.trials) > len(regions.trials)

# %%
# What the regions respond to:

import matplotlib.pyplot as plt
import pandas as pd

response = pd.DataFrame(
    {
        name: regions.data[:, regions.roi_mask(name)].mean(axis=1)
        for name in ("face", "place")
    }
)
content = [content_category(label) for label in regions.trials["label"]]
response.groupby(content).mean().plot.bar(
    figsize=(6, 3.5), rot=0, ylabel="response (z)"
)
plt.show()

# %%
# Files
# -----
#
# `fetch_laion_fmri` fetches whole images, masks and maps. A session of betas is 1.15 GB
# in LAION-fMRI, so look first: a dry run lists the files that a call would download.

from laion_fmri_fetchers import fetch_laion_fmri

query = {"subjects": "sub-01", "rois": ["face", "place", "body"], "sessions": [1, 2]}
plan = fetch_laion_fmri(**query, dry_run=True)
print(f"{len(plan.plan)} files, {plan.plan_size / 1e6:.1f} MB")
data = fetch_laion_fmri(**query)
assert len(data.images) == 2

# %%
# ``trials`` has one row per trial: the volume of the session's image that holds its
# response, the image shown, what its name says, and which of its showings this was.

data.trials[["session", "beta_index", "label", "n_reps", "repetition"]].head()

# %%
# Draw the regions
# ----------------
#
# The anatomy is fetched by its ``image_type``, at its own resolution; `plot_rois` finds
# it on disk.

from laion_fmri_fetchers import plot_rois

fetch_laion_fmri("sub-01", rois=None, image_type="anatomical", suffix="T1w", res=None)
plot_rois(data, "sub-01", cut_coords=[-18, -12, -6, 0, 6, 12])
plt.show()

# %%
# Without a network
# -----------------
#
# ``mode="offline"`` opens no connection and gives the same result, so a script that ran
# on a login node runs on a compute node as well.

demo.bucket.requests.clear()
again = fetch_laion_fmri(**query, mode="offline")
print("The same files:", again.images == data.images)
print("Requests to the bucket:", len(demo.bucket.requests))
demo.stop()

# sphinx_gallery_thumbnail_number = 2
