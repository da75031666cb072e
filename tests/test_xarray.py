"""Betas as a labelled array, against selections by numpy and pandas."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from laion_fmri_fetchers import fetch_laion_betas
from laion_fmri_fetchers.exceptions import InvalidQueryError


@pytest.fixture
def betas(cached, no_network):
    return fetch_laion_betas("sub-01", ["face", "V1v"], mode="offline", verbose=0)


def test_values_and_coordinates_are_those_of_the_betas(betas):
    array = betas.to_xarray()
    assert array.dims == ("trial", "voxel")
    assert array.attrs["subject"] == "sub-01"
    np.testing.assert_array_equal(array.values, betas.data)
    for name, column in betas.trials.items():
        known = column.notna().to_numpy()
        found = array[name].to_numpy()
        assert list(found[known]) == list(column[known])
    np.testing.assert_array_equal(array.x, betas.coordinates[:, 0])
    np.testing.assert_array_equal(array.z, betas.coordinates[:, 2])
    np.testing.assert_array_equal(array.roi_FFA1, betas.roi_masks["FFA1"])
    percent = betas.noise_ceilings["4rep"]
    np.testing.assert_array_equal(array.noise_ceiling_4rep, percent)


def test_its_selections_are_those_of_numpy_and_pandas(betas):
    array = betas.to_xarray()
    is_first = (betas.trials["session"] == "ses-01").to_numpy()
    assert 0 < is_first.sum() < len(is_first)
    chosen = array.where(array.session == "ses-01", drop=True)[:, array.roi_FFA1]
    expected = betas.data[is_first][:, betas.roi_masks["FFA1"]]
    np.testing.assert_array_equal(chosen.values, expected)
    means = array.groupby("label").mean("trial")
    label = betas.trials["label"].value_counts().index[0]
    rows = betas.data[(betas.trials["label"] == label).to_numpy()]
    assert len(rows) > 1
    found = means.sel(label=label).values
    np.testing.assert_allclose(found, rows.mean(axis=0), rtol=1e-5)


def test_a_lazy_array_stays_lazy(cached, no_network):
    pytest.importorskip("dask")
    betas = fetch_laion_betas("sub-01", "FFA1", mode="offline", as_dask=True, verbose=0)
    array = betas.to_xarray()
    assert array.chunks is not None
    np.testing.assert_array_equal(array.compute().values, betas.data.compute())


def test_trials_that_do_not_fit_and_names_that_are_taken_are_errors(betas):
    betas.trials["x"] = 1
    with pytest.raises(InvalidQueryError, match="columns x, names that voxels have"):
        betas.to_xarray()
    betas.trials = betas.trials.iloc[:-1]
    with pytest.raises(InvalidQueryError, match="trials"):
        betas.to_xarray()


def test_without_xarray_the_error_says_how_to_install_it(betas, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"laion_fmri_fetchers\[xarray\]"):
        betas.to_xarray()
