"""
A noise ceiling on the cortex
=============================

Maps in this dataset are volumes. FreeSurfer's surfaces of the same subject show where
on the cortex they are, with the regions drawn on it; and they lead to fsaverage, where
vertices of subjects correspond.
"""

# %%
# The data of this example
# ------------------------
#
# They are synthetic and served by this machine: a cortex of 1,200 vertices per
# hemisphere instead of 150,000. Leave out the lines with ``demo``, and the rest runs on
# LAION-fMRI itself.

from laion_fmri_fetchers.demo import serve_demo

demo = serve_demo(subjects=["sub-01", "sub-03"], n_sessions=1)

# %%
# Surfaces of a subject
# ---------------------
#
# `fetch_laion_surfaces` downloads ten files of FreeSurfer's reconstruction, and masks
# of regions on them. White and pial surface are in the coordinates of the volumes.

from laion_fmri_fetchers import fetch_laion_fmri, fetch_laion_surfaces

data = fetch_laion_fmri(["sub-01", "sub-03"], rois=None, sessions=1)
surfaces = fetch_laion_surfaces("sub-01", rois=["FFA1", "PPA", "EBA", "V1"])

# %%
# A map on the inflated surface
# -----------------------------
#
# `project_to_surface` averages the volume between the white and the pial surface. The
# result is an image of nilearn's, on the mesh of the subject, and so are the masks.

from matplotlib import pyplot as plt
from nilearn.plotting import plot_surf

from laion_fmri_fetchers import project_to_surface

ceiling = project_to_surface(data.noise_ceilings["sub-01"]["Allrep"], surfaces)

views = {"left": "lateral", "right": "ventral"}
figure, axes = plt.subplots(
    1, 2, figsize=(8, 3.8), subplot_kw={"projection": "3d"}, layout="constrained"
)
for ax, (hemi, view) in zip(axes, views.items(), strict=True):
    plot_surf(
        surfaces.inflated,
        surf_map=ceiling,
        bg_map=surfaces.sulc,
        hemi=hemi,
        view=view,
        cmap="inferno",
        vmin=0,
        vmax=60,
        colorbar=hemi == "right",
        title=f"{hemi}, {view}",
        axes=ax,
        figure=figure,
    )
figure.suptitle("Noise ceiling (%)")
plt.show()

# %%
# Regions
# -------
#
# Masks select vertices; both hemispheres are in one image.

import numpy as np

for name, mask in surfaces.roi_masks.items():
    inside = np.concatenate(
        [ceiling.data.parts[h][mask.data.parts[h]] for h in ("left", "right")]
    )
    print(f"{name:5} {len(inside):3} vertices, median {np.median(inside):.0f} %")

# %%
# Two subjects on fsaverage
# -------------------------
#
# With ``target="fsaverage5"``, maps are on the template, which nilearn ships. There the
# subjects can be averaged vertex by vertex, or compared.

from nilearn.datasets import load_fsaverage
from nilearn.plotting import plot_surf_stat_map
from nilearn.surface import SurfaceImage

on_template = {}
for subject in ("sub-01", "sub-03"):
    on_template[subject] = project_to_surface(
        data.noise_ceilings[subject]["Allrep"],
        fetch_laion_surfaces(subject, rois=None),
        target="fsaverage5",
    )
template = load_fsaverage("fsaverage5")
mean = {
    hemi: np.mean([img.data.parts[hemi] for img in on_template.values()], axis=0)
    for hemi in ("left", "right")
}
plot_surf_stat_map(
    template["inflated"],
    stat_map=SurfaceImage(template["pial"], mean),
    hemi="right",
    view="ventral",
    cmap="inferno",
    vmin=0,
    vmax=60,
    threshold=20,
    title="Mean of two subjects (%), where above 20",
)
plt.show()

first, second = (
    np.concatenate([*img.data.parts.values()]) for img in on_template.values()
)
print(f"Correlation of two subjects: {np.corrcoef(first, second)[0, 1]:.2f}")

# %%
# Stop the stand-in; its data are removed.

demo.stop()
