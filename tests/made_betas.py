"""Images of betas that a test makes, and the Bunch that a fetch of them would be."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.utils import Bunch

from laion_fmri_fetchers import fetch_laion_fmri, load_betas

SHAPE = (9, 8, 7)
AFFINE = np.array([[2.0, 0, 0, -9], [0, 2, 0, -8], [0, 0, 2, -7], [0, 0, 0, 1]])
BRAIN = np.zeros(SHAPE, np.uint8)
BRAIN[1:-1, 1:-1, 1:-1] = 1
BRAIN[3, 4] = 0
INSIDE = BRAIN > 0


@pytest.fixture
def fetch(cached_folder, no_network):
    """Fetch from the demo's data directory, whose files tests must not change."""
    options = {"data_dir": cached_folder, "mode": "offline", "verbose": 0}
    return lambda *args, **more: fetch_laion_fmri(*args, **{**options, **more})


def load(*args, **options):
    return load_betas(*args, **{"verbose": 0, **options})


def image(values, affine=AFFINE):
    return nib.Nifti1Image(np.asarray(values), affine)


def noise(n, seed=0, dtype="float32", order="C", kind=nib.Nifti1Image, **header):
    """Return an image of n volumes."""
    values = np.random.default_rng(seed).normal(3, 20, (*SHAPE, n)).astype(dtype)
    header = kind.header_class(**header)
    made = kind(np.asarray(values, order=order), AFFINE, header, dtype=dtype)
    made.set_data_dtype(dtype)
    return made


def make(folder, images, masks=None, labels=("b", "a", "c")):
    """Return the Bunch of images, one a session, and of ROI masks of any values."""
    folder = Path(folder)
    metas, files, tables = [], [], []
    for i, betas in enumerate(images):
        files.append(str(folder / f"{i}_betas.nii.gz"))
        nib.save(betas, files[-1])
        meta = {"subject": "sub-01", "session": f"ses-{i + 1:02d}"}
        metas.append({**meta, "image_type": "betas", "extension": "nii.gz"})
        n = betas.shape[3]
        shown = [labels[(v + i) % len(labels)] for v in range(n)]
        table = {**meta, "run": 1, "beta_index": range(n), "label": shown}
        tables.append(pd.DataFrame({**table, "image_index": i}))
    rois, rois_meta = [], []
    for name, mask in {"brain": image(BRAIN), **(masks or {})}.items():
        rois.append(str(folder / f"{name}.nii.gz"))
        nib.save(mask, rois[-1])
        meta = {"subject": "sub-01", "roi": name, "roi_category": "face"}
        rois_meta.append({**meta, "image_type": "roi", "extension": "nii.gz"})
    return Bunch(
        images=files,
        images_meta=metas,
        rois=rois[1:],
        rois_meta=rois_meta[1:],
        brain_masks={"sub-01": rois[0]},
        noise_ceilings={},
        trials=pd.concat(tables, ignore_index=True),
        sample_masks=[np.arange(betas.shape[3]) for betas in images],
        data_dir=str(folder / "no tables"),
    )
