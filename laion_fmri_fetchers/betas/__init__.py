"""Single-trial betas: from images, or the voxel store, to trials x voxels."""
