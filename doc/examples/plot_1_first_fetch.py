"""
First fetch
===========

See which subjects and regions exist and how large a download would be, fetch it, look
at the result, draw the regions on the brain, and load the same again without a network.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic: in the layout and formats of LAION-fMRI, but small, made up, and
# served by this machine. Leave out the lines with ``demo``, and the rest runs on
# LAION-fMRI itself.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"])

# %%
# What there is
# -------------
#
# This reads only lists of files, no data. Subjects differ in the regions they have. The
# demo has 4 public sessions per subject, LAION-fMRI 30.

from laion_fmri_fetchers import describe, get_rois

describe()
print()
print("Face regions of sub-01:", get_rois("sub-01", category="face"))

# %%
# How large is it?
# ----------------
#
# A session of betas is 1.15 GB in LAION-fMRI, so it is worth checking first. A dry run
# downloads no image: it lists the files that a call would fetch.

from laion_fmri_fetchers import fetch_laion_fmri

query = {"subjects": "sub-01", "rois": ["face", "place", "body"], "sessions": [1, 2]}
plan = fetch_laion_fmri(**query, dry_run=True)
print(f"{len(plan.plan)} files, {plan.plan_size / 1e6:.1f} MB, the largest of them:")
for file in plan.plan.nlargest(2, "size").itertuples():
    *_, name = file.id.split("/")
    print(f"{file.size:>9,} bytes  {name[:42]}...")

# %%
# Fetch
# -----
#
# The same call without ``dry_run``. Files that are on disk already are not fetched
# again. By default the images are single-trial responses ("betas"): one 4-D image per
# session with one volume per trial.

data = fetch_laion_fmri(**query)

for meta, volumes in zip(data.images_meta, data.sample_masks, strict=True):
    print(f"{meta['image_type']} of {meta['session']}: {len(volumes)} trials")
print("ROIs:", [meta["roi"] for meta in data.rois_meta])
print("Noise ceilings:", list(data.noise_ceilings["sub-01"]))

# %%
# ``trials`` has one row per trial: its run, the volume of the session's image that
# holds its response, the image that was shown, the information encoded in the name of
# that image, and which of its showings this was.

data.trials[["session", "beta_index", "label", "n_reps", "repetition"]].head()

# %%
# Draw the regions
# ----------------
#
# The anatomy is fetched by a call of its own: terms such as ``image_type`` choose other
# files than betas, and ``res=None`` the anatomy at its own resolution. `plot_rois`
# finds it on disk.

from matplotlib import pyplot as plt

from laion_fmri_fetchers import plot_rois

fetch_laion_fmri("sub-01", rois=None, image_type="anatomical", suffix="T1w", res=None)
plot_rois(data, "sub-01", cut_coords=[-18, -12, -6, 0, 6, 12])
plt.show()

# %%
# Without a network
# -----------------
#
# ``mode="offline"`` opens no connection. The result is the same, so a script that ran
# on a login node runs on a compute node as well. The bucket of this example counts its
# requests:

demo.bucket.requests.clear()
again = fetch_laion_fmri(**query, mode="offline")
print("The same files:", again.images == data.images)
print("The same trials:", again.trials.equals(data.trials))
print("Requests to the bucket:", len(demo.bucket.requests))

# %%
# Stop the stand-in; its data are removed.

demo.stop()
