"""
Noise ceilings and the choice of voxels
=======================================

A noise ceiling is the share of a voxel's variance that the images can explain at best.
Look at it by region, select voxels by it, and compute it from the betas.
"""

# %%
# By region
# ---------
#
# The dataset has three maps per subject, in percent: for averages of 4 and of 12
# repeats, and over all images. With ``max_images=0``, only masks and maps are
# downloaded.

from matplotlib import pyplot as plt

from laion_fmri_fetchers import fetch_laion_fmri, plot_noise_ceiling
from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"], n_trials=192)
rois = ["face", "place", "body", "V1v", "V1d", "hV4"]
maps = fetch_laion_fmri(["sub-01", "sub-03"], rois=rois, max_images=0)
plot_noise_ceiling(maps, noise_ceiling="4rep")
plt.show()

# %%
# Choose voxels
# -------------
#
# With ``nc_threshold``, only voxels at or above a ceiling are loaded. How many would
# remain at each threshold?

import numpy as np

from laion_fmri_fetchers import fetch_laion_betas

betas = fetch_laion_betas("sub-01", rois, standardize="zscore")
best = fetch_laion_betas("sub-01", rois, nc_threshold=30, noise_ceiling="4rep")
assert 0 < best.data.shape[1] < betas.data.shape[1]
print(f"{betas.data.shape[1]} voxels, {best.data.shape[1]} of them at 30 % or more")

ceiling = betas.noise_ceilings["4rep"]
thresholds = np.arange(0, 71, 2)
shown = {
    "FFA1": ("o", "#d55e00"),
    "PPA": ("s", "#009e73"),
    "EBA": ("^", "#cc79a7"),
    "V1v": ("D", "#0072b2"),
}
figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for roi, (marker, colour) in shown.items():
    values = ceiling[betas.roi_masks[roi]]
    remain = [100 * (values >= threshold).mean() for threshold in thresholds]
    ax.plot(thresholds, remain, marker=marker, markevery=4, color=colour, label=roi)
ax.set(xlabel="Threshold: noise ceiling (%)", ylabel="Voxels that remain (%)")
ax.legend(frameon=False)
plt.show()

# %%
# Compute it
# ----------
#
# Repeats of an image differ by noise alone. So the variance within images estimates the
# noise, and the rest of the variance over all trials is signal. The ceiling for an
# average of *n* repeats is then signal / (signal + noise / *n*).

by_image = betas.groups["label"]
codes = np.unique(by_image, return_inverse=True)[1]
counts = np.bincount(codes)
sums = np.zeros((len(counts), betas.data.shape[1]))
np.add.at(sums, codes, betas.data)
residuals = betas.data - (sums / counts[:, None])[codes]
noise = (residuals**2).sum(axis=0) / (counts - 1).sum()
signal = np.maximum(betas.data.var(axis=0, ddof=1) - noise, 0)
computed = 100 * signal / (signal + noise / 4)

# %%
# Computed and published values agree but for the error of the estimate, from four
# sessions of few images in the demo:

figure, ax = plt.subplots(figsize=(5, 4.6), layout="constrained")
ax.plot(ceiling, computed, ".", color="#8a8a8a", ms=4, label="one voxel")
for roi, (marker, colour) in shown.items():
    mask = betas.roi_masks[roi]
    medians = np.median(ceiling[mask]), np.median(computed[mask])
    ax.plot(*medians, marker, color=colour, mec="black", ms=9, label=f"median of {roi}")
ax.axline((0, 0), slope=1, color="black", lw=0.8, ls="--")
ax.set(
    xlabel="Published noise ceiling, 4 repeats (%)",
    ylabel="Computed from the betas (%)",
    xlim=(0, 80),
    ylim=(0, 80),
)
ax.legend(frameon=False, fontsize="small", loc="upper left")
plt.show()
print(f"Correlation over voxels: {np.corrcoef(ceiling, computed)[0, 1]:.2f}")
demo.stop()
