"""
A noise ceiling on the cortex
=============================

Maps in this dataset are volumes. FreeSurfer's surfaces of the same subject show where
on the cortex they are, and lead to fsaverage, where vertices of subjects correspond.
"""

# %%
# A map on the inflated surface
# -----------------------------
#
# `fetch_laion_surfaces` downloads ten files of FreeSurfer's reconstruction (150,000
# vertices per hemisphere, 1,200 in the demo) and masks of regions. `project_to_surface`
# averages the volume between the white and the pial surface.

from matplotlib import pyplot as plt
from nilearn.plotting import plot_surf

from laion_fmri_fetchers import (
    fetch_laion_fmri,
    fetch_laion_surfaces,
    project_to_surface,
)
from laion_fmri_fetchers.demo import serve_demo

subjects = ["sub-01", "sub-03"]
demo = serve_demo(subjects=subjects, n_sessions=1)
maps = fetch_laion_fmri(subjects, rois=None, max_images=0).noise_ceilings
surfaces = fetch_laion_surfaces("sub-01", rois=["FFA1", "PPA", "EBA", "V1"])
ceiling = project_to_surface(maps["sub-01"]["Allrep"], surfaces)

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
    assert len(inside)
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

on_template = []
for subject in subjects:
    surfaces = fetch_laion_surfaces(subject, rois=None)
    ceiling = project_to_surface(maps[subject]["Allrep"], surfaces, target="fsaverage5")
    on_template.append(ceiling.data.parts)
mean = {h: np.mean([m[h] for m in on_template], axis=0) for h in ("left", "right")}
template = load_fsaverage("fsaverage5")
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
first, second = (m["right"] for m in on_template)
print(f"Correlation of two subjects: {np.corrcoef(first, second)[0, 1]:.2f}")
demo.stop()
