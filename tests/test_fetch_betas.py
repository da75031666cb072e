"""fetch_laion_betas: a region of all sessions by ranges of model files, or by images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from model_buckets import (
    SESSIONS,
    Log,
    brain,
    image_key,
    model_key,
    put_models,
    roi,
    true_betas,
)

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri, load_betas

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture
def server(betas_server):
    return betas_server


def fetch(rois="FFA1", **options):
    return fetch_laion_betas(1, rois, **{"verbose": 0, **options})


OPTIONS = "shape", "layout", "dtype", "order", "voxels"

# Pairs of options meet at least once.
VARIANTS = [
    ("2d", "contiguous", "float32", "C", "fitted"),
    ("2d", "contiguous", "float64", "F", "brain"),
    ("2d", "chunked", "float32", "F", "fitted"),
    ("2d", "gzip", "float64", "C", "brain"),
    ("glmsingle", "contiguous", "float32", "F", "brain"),
    ("glmsingle", "chunked", "float64", "C", "fitted"),
    ("glmsingle", "gzip", "float32", "C", "fitted"),
    ("volume", "contiguous", "float32", "C", "fitted"),
    ("volume", "chunked", "float64", "C", "brain"),
    ("volume", "gzip", "float32", "C", "brain"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_every_layout_of_models_gives_the_values_of_images(
    server, betas_folder, data_dir, variant
):
    options = dict(zip(OPTIONS, variant, strict=True))
    put_models(server, betas_folder, ["ses-01", "ses-02"], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        betas = fetch("EBA", sessions=[1, 2], source="model")
        whole = fetch("brain", sessions=[1], source="model")
    mask = roi(betas_folder, "body", "EBA")
    expected = true_betas(betas_folder, mask, ["ses-01", "ses-02"])
    assert np.array_equal(betas.data, expected)
    assert np.array_equal(betas.mask_img.get_fdata() > 0, mask)
    expected = true_betas(betas_folder, brain(betas_folder), ["ses-01"])
    assert np.array_equal(whole.data, expected)
    assert not (data_dir / image_key("ses-01")).exists()
    assert not (data_dir / model_key("ses-01")).exists()
