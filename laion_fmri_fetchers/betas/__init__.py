"""Single-trial betas as arrays: the voxel store, and what fills it."""
