"""
Batches for a deep-learning loader
==================================

Training on single trials, each with the image that was shown: `LaionDataset` gives
items to PyTorch's ``DataLoader``, or to a loop of your own. No image is read before its
turn, and loaders with worker processes open files of their own.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine, access to the images included. Leave
# out the lines with ``demo``, and the rest runs on LAION-fMRI itself, where access is
# requested once.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_sessions=2)

# %%
# Items
# -----
#
# An item holds the response to a trial, its image and embedding, and whose it was.

from laion_fmri_fetchers import (
    LaionDataset,
    current_terms_version,
    fetch_laion_betas,
    fetch_laion_embeddings,
    fetch_laion_stimuli,
    request_stimulus_access,
)

request_stimulus_access(
    name="Ada Example",
    email="ada@university.example",
    institution="University of Examples",
    research_purpose="Batches of images and of the responses to them",
    accept_terms_version=current_terms_version(),
    acknowledge_privacy=True,
)
betas = fetch_laion_betas("sub-01", rois="face", standardize="zscore")
stimuli = fetch_laion_stimuli(betas.trials)
clip = fetch_laion_embeddings("CLIP", betas.trials)
dataset = LaionDataset(betas, stimuli=stimuli, embeddings=clip)
for name, value in dataset[0].items():
    print(f"{name:<12} {getattr(value, 'shape', value)}")

# %%
# Batches
# -------
#
# With PyTorch, this is all there is to it::
#
#     from torch.utils.data import DataLoader
#
#     loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=4)
#
# and here, without, a linear read-out of the embedding learns from one batch after the
# other.

import numpy as np

rng = np.random.default_rng(0)
weights = np.zeros((dataset[0]["betas"].size, dataset[0]["embedding"].size), "float32")
losses = []
for _ in range(10):
    order = rng.permutation(len(dataset))
    for batch in np.array_split(order, len(order) // 32):
        items = [dataset[i] for i in batch]
        responses = np.stack([item["betas"] for item in items])
        targets = np.stack([item["embedding"] for item in items]).astype("float32")
        error = responses @ weights - targets
        weights -= 1e-3 * responses.T @ error / len(batch)
        losses.append(float((error**2).mean()))

# %%
# The error falls with the batches:

from matplotlib import pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(losses, color="#0072b2")
ax.set(xlabel="Batch", ylabel="Mean squared error")
ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Stop the stand-in; its data are removed.

demo.stop()
