"""
Noise ceilings and the choice of voxels
=======================================

A noise ceiling is the share of the variance of a voxel's responses that the images can
explain at best: the rest is noise. Look at it by region, select voxels by it, and
compute it from the betas to see how it is defined.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine. Leave out the lines with ``demo``, and
# the rest runs on LAION-fMRI itself.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"], n_trials=192)

# %%
# By region
# ---------
#
# The publishers provide three maps per subject, in percent: for averages of 4 and of 12
# repeats, and over all images. They are small and are downloaded with all betas.

from matplotlib import pyplot as plt

from laion_fmri_fetchers import fetch_laion_fmri, plot_noise_ceiling

data = fetch_laion_fmri(
    ["sub-01", "sub-03"],
    rois=["face", "place", "body", "object", "V1v", "V1d", "hV4"],
    sessions=range(1, 5),
)
plot_noise_ceiling(data, noise_ceiling="4rep")
plt.show()

# %%
# Choose voxels
# -------------
#
# With ``nc_threshold``, `load_betas` loads only voxels at or above a ceiling. Its
# result holds ``noise_ceilings``, from which one sees how many would remain at each
# threshold.

import numpy as np

from laion_fmri_fetchers import load_betas

betas = load_betas(data, "sub-01", standardize="zscore")
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
ax.set(
    xlabel="Threshold: noise ceiling (%)",
    ylabel="Voxels that remain (%)",
    ylim=(0, 104),
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# With a threshold, the array has fewer columns, and so have the masks of the regions:

best = load_betas(
    data, "sub-01", standardize="zscore", nc_threshold=30, noise_ceiling="4rep"
)
print(f"{betas.data.shape[1]} voxels, {best.data.shape[1]} of them at 30 % or more")

# %%
# Compute it
# ----------
#
# Repeats of an image differ by noise alone. So the variance within images estimates the
# noise, and the rest of the variance over all trials is signal. The ceiling for an
# average of *n* repeats is then signal / (signal + noise / *n*).


def noise_ceiling(betas, n_repeats):
    """Return the noise ceiling of each voxel, in percent."""
    codes = np.unique(betas.groups["label"], return_inverse=True)[1]
    counts = np.bincount(codes)[:, None]
    sums = np.zeros((len(counts), betas.data.shape[1]))
    np.add.at(sums, codes, betas.data)
    residuals = betas.data - (sums / counts)[codes]
    noise = (residuals**2).sum(axis=0) / (counts - 1).sum()
    signal = np.maximum(betas.data.var(axis=0, ddof=1) - noise, 0)
    return 100 * signal / (signal + noise / n_repeats)


computed = noise_ceiling(betas, n_repeats=4)

# %%
# Computed and published values agree but for the error of the estimate: four sessions,
# of few images in the demo. The published maps of the demo follow from the signal and
# noise that its betas are drawn from.

figure, ax = plt.subplots(figsize=(5, 4.6), layout="constrained")
ax.plot(ceiling, computed, ".", color="#8a8a8a", ms=4, label="one voxel")
for roi, (marker, colour) in shown.items():
    mask = betas.roi_masks[roi]
    ax.plot(
        np.median(ceiling[mask]),
        np.median(computed[mask]),
        marker,
        color=colour,
        mec="black",
        ms=9,
        label=f"median of {roi}",
    )
ax.plot([0, 100], [0, 100], color="black", lw=0.8, ls="--")
ax.set(
    xlabel="Published noise ceiling, 4 repeats (%)",
    ylabel="Computed from the betas (%)",
    xlim=(0, 80),
    ylim=(0, 80),
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize="small", loc="upper left")
plt.show()
print(f"Correlation over voxels: {np.corrcoef(ceiling, computed)[0, 1]:.2f}")
print(f"Median of computed - published: {np.median(computed - ceiling):.1f} points")

# %%
# Stop the stand-in; its data are removed.

demo.stop()
