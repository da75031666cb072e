"""
Batches for a deep-learning loader
==================================

Train on single trials, each with its image: `LaionDataset` gives items to PyTorch's
``DataLoader``, or to a loop of your own. Images are read when their turn comes.
"""

# %%
# Items
# -----
#
# An item has the response to a trial, its image and embedding, and where it comes from.

from laion_fmri_fetchers import (
    LaionDataset,
    current_terms_version,
    fetch_laion_betas,
    fetch_laion_embeddings,
    fetch_laion_stimuli,
    request_stimulus_access,
)
from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01"], n_sessions=2)
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
assert len(dataset) == len(betas.trials) > 0
for name, value in dataset[0].items():
    print(f"{name:<12} {getattr(value, 'shape', value)}")

# %%
# Batches
# -------
#
# With PyTorch, this is all::
#
#     from torch.utils.data import DataLoader
#
#     loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=4)
#
# Here, without it, a linear read-out of the embedding learns batch by batch:

import numpy as np
from matplotlib import pyplot as plt

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
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot(losses)
ax.set(xlabel="Batch", ylabel="Mean squared error")
plt.show()
demo.stop()
