"""load_betas: arrays as NiftiMasker gives them, aligned with trials."""

from __future__ import annotations

import builtins
import io
import os
import warnings
from pathlib import Path

import joblib
import made_betas
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from checks import fails, no_warnings, warned
from made_betas import AFFINE, BRAIN, INSIDE, SHAPE, image, load, make, noise
from nilearn.maskers import NiftiMasker
from nilearn.masking import apply_mask, unmask
from sklearn.model_selection import GroupKFold
from sklearn.utils import Bunch

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri, shared_labels
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
)

fetch = made_betas.fetch


@pytest.fixture
def data(fetch):
    return fetch("sub-01")


@pytest.fixture
def whole(data):
    return load(data, rois="brain")


def inside_of(*files):
    """Return the voxels within any of some masks."""
    return np.any([nib.load(file).get_fdata() > 0 for file in files], axis=0)


# Values of fetched data


@pytest.mark.parametrize(
    ("rois", "query"), [("brain", None), ("FFA-1", {"n_reps": 12})], ids=str
)
def test_equal_to_nifti_masker(fetch, rois, query):
    data = fetch("sub-01", rois="face", trial_filter=query)
    betas = load(data, rois=rois)
    mask = inside_of(data.brain_masks["sub-01"])
    if rois != "brain":
        mask &= inside_of(data.roi_files["sub-01"]["FFA1"])
        assert list(betas.roi_masks) == ["FFA1"]
        assert betas.roi_masks["FFA1"].all()
        assert set(betas.trials["n_reps"]) == {12}
    assert np.array_equal(betas.mask_img.get_fdata() > 0, mask)
    pd.testing.assert_frame_equal(betas.trials, data.trials)
    assert betas.data.dtype == np.float32
    masker = NiftiMasker(betas.mask_img, standardize=None, dtype="float32").fit()
    pairs = zip(data.images, data.sample_masks, strict=True)
    expected = [masker.transform(file, sample_mask=chosen) for file, chosen in pairs]
    assert np.allclose(betas.data, np.concatenate(expected), rtol=1e-6)
    volume = nib.load(data.images[1]).get_fdata()[..., data.sample_masks[1][0]]
    row = np.flatnonzero(betas.trials["image_index"] == 1)[0]
    back = unmask(betas.data[row], betas.mask_img).get_fdata()
    assert np.allclose(back, np.where(mask, np.nan_to_num(volume), 0))


def test_rois_by_name_category_and_all(data, whole):
    every = load(data)
    assert list(every.roi_masks) == list(load(data, rois="all").roi_masks)
    assert set(every.roi_masks) == {meta["roi"] for meta in data.rois_meta}
    assert np.logical_or.reduce(list(every.roi_masks.values())).all()
    both = load(data, rois=["face", "ppa"])
    assert set(both.roi_masks) == {"FFA1", "FFA2", "OFA", "pSTSfaces", "PPA"}
    with_brain = load(data, rois=["brain", "PPA"])
    assert np.array_equal(with_brain.data, whole.data)
    in_brain = inside_of(data.brain_masks["sub-01"])
    for betas in (every, both, with_brain):
        for name, columns in betas.roi_masks.items():
            inside = inside_of(data.roi_files["sub-01"][name])[in_brain]
            assert np.array_equal(betas.data[:, columns], whole.data[:, inside])
    v1 = load(data, rois="v1")
    assert list(v1.roi_masks) == ["V1d", "V1v"]
    assert np.array_equal(v1.data, load(data, rois=["V1d", "V1v"]).data)


def test_masks_on_a_finer_grid_are_passed_over(fetch, tmp_path):
    data = fetch(rois="FFA1")
    expected = load(data).data
    fine = nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.diag([1.5, 1.5, 1.5, 1]))
    nib.save(fine, tmp_path / "fine.nii.gz")
    data.rois.insert(0, str(tmp_path / "fine.nii.gz"))
    data.rois_meta.insert(0, {**data.rois_meta[0], "res": "1pt5"})
    assert np.array_equal(load(data).data, expected)


def test_noise_ceilings_of_columns_and_threshold(data, whole):
    assert set(whole.noise_ceilings) == {"4rep", "12rep", "Allrep"}
    for name, file in data.noise_ceilings["sub-01"].items():
        expected = apply_mask(file, whole.mask_img, ensure_finite=False)
        assert np.allclose(whole.noise_ceilings[name], expected, equal_nan=True)
        level = np.float64(np.nanmedian(expected))
        high = whole.noise_ceilings[name] >= level
        betas = load(data, rois="brain", nc_threshold=level, noise_ceiling=name)
        assert np.array_equal(betas.data, whole.data[:, high])
    words = r"percent.*did you mean 20\?"
    betas = warned(words, load, data, rois="brain", nc_threshold=0.2)
    assert betas.noise_ceilings["Allrep"].min() >= 0.2
    with no_warnings():
        load(data, rois="brain", nc_threshold=1)


# Masks of one's own


def test_masks_of_every_form(data, whole, tmp_path):
    inside = inside_of(data.brain_masks["sub-01"])
    half = inside.copy()
    half[len(half) // 2 :] = False
    odd = np.where(half, 1, np.nan)
    odd[tuple(np.argwhere(~half)[0])] = np.inf  # what is not finite is outside
    two = np.ones((*half.shape, 2))
    plain, odd, fourth, two = (
        nib.Nifti1Image(np.asarray(values, "f4"), whole.mask_img.affine)
        for values in (half, odd, half[..., None], two)
    )
    file = tmp_path / "half.nii.gz"
    nib.save(plain, file)
    masker = NiftiMasker(plain).fit()
    for given in (plain, file, str(file), fourth, odd, masker.mask_img_):
        betas = load(data, rois="brain", mask_img=given)
        assert np.array_equal(betas.data, whole.data[:, half[inside]])
    nib.save(two, tmp_path / "two.nii.gz")
    ceiling = data.noise_ceilings["sub-01"]["Allrep"]
    for given, words in (
        # Every voxel of a map that is not exactly 0 would be taken.
        (ceiling, "mask_img has values from .*binarize"),
        (nib.load(ceiling), "mask_img has values from .*binarize"),
        (two, "not on the grid"),
        (tmp_path / "two.nii.gz", "2 volumes"),
        (masker, "NiftiMasker.*mask_img_"),
        (tmp_path / "nope.nii.gz", r"mask_img.*nope\.nii.*does not exist"),
    ):
        fails(InvalidQueryError, words, load, data, rois="brain", mask_img=given)
    data.brain_masks = {}
    words = "no brain mask of sub-01.*mask_img"
    fails(InvalidQueryError, words, load, data, rois="brain")
    betas = load(data, rois="brain", mask_img=whole.mask_img)
    assert np.array_equal(betas.data, whole.data)


def test_a_roi_of_which_nothing_is_left_is_a_warning(data):
    """The mean over its columns would be NaN."""
    betas = load(data)
    ceiling = betas.noise_ceilings["Allrep"]
    best = {roi: ceiling[inside].max() for roi, inside in betas.roi_masks.items()}
    low, *_, high = sorted(best, key=best.get)
    chosen = {"rois": [low, high], "nc_threshold": (best[low] + best[high]) / 2}
    warned(f"No voxel of {low} of sub-01 remains", load, data, **chosen)


@pytest.mark.parametrize("call", [fetch_laion_betas, load])
def test_a_mask_without_rois_says_what_it_loses(cached, data, call):
    given, options = data, {}
    if call is fetch_laion_betas:
        given, options = "sub-01", {"mode": "offline", "verbose": 0}
    brain = nib.load(data.brain_masks["sub-01"])
    n_brain = int((brain.get_fdata() > 0).sum())
    n_rois = load(data).data.shape[1]
    words = f"{n_brain - n_rois:,} of {n_brain:,} voxels of mask_img.*rois='brain'"
    betas = warned(words, call, given, mask_img=brain, **options)
    assert betas.data.shape[1] == n_rois < n_brain
    with no_warnings():
        inside = call(given, mask_img=betas.mask_img, **options)
        face = call(given, rois="face", mask_img=brain, **options)
    assert np.array_equal(inside.data, betas.data)
    assert np.array_equal(face.data, betas.data[:, betas.roi_mask("face")])


def test_grids_of_masks(tmp_path):
    def mask(shift=0.0, shape=SHAPE):
        affine = AFFINE.copy()
        affine[0, 3] += shift
        values = np.zeros(shape, dtype=np.uint8)
        values[2:4, 2:4, 2:4] = 1
        return nib.Nifti1Image(values, affine)

    masks = {"exact": mask(), "rounded": mask(0.01), "shifted": mask(1.0)}
    masks["larger"] = mask(shape=(10, 8, 7))
    data = make(tmp_path, [noise(3), noise(3)], masks)
    exact = load(data, rois="exact").data
    assert np.array_equal(load(data, rois="rounded").data, exact)
    for name in ("shifted", "larger"):
        fails(InvalidQueryError, rf"{name}\.nii\.gz.*grid", load, data, rois=name)
        given = {"rois": "exact", "mask_img": masks[name]}
        fails(InvalidQueryError, "mask_img", load, data, **given)
    moved = image(np.asarray(noise(3).dataobj), masks["shifted"].affine)
    for wrong in (moved, image(np.zeros((*SHAPE[:2], 9, 3), "float32"))):
        nib.save(wrong, data.images[1])
        words = "1_betas.*not on the grid"
        fails(CorruptImageError, words, load, data, rois="exact")


# Subjects


def test_subjects(fetch, tmp_path):
    data = fetch("all", rois="FFA1")
    words = "several subjects.*subjects='sub-01'"
    fails(InvalidQueryError, words, load, data)
    expected = load(fetch("sub-03", rois="FFA1")).data
    for subject in ("sub-03", "3", 3):
        betas = load(data, subject)
        assert np.array_equal(betas.data, expected)
    for subjects in ("all", ["sub-01", 3], [3]):
        each = load(data, subjects)
        assert list(each) == ["sub-01", "sub-03"][-len(each) :]
        assert np.array_equal(each["sub-03"].data, expected)
    fails(InvalidQueryError, "did you mean", load, data, "sub-04")
    maps = fetch("sub-01", image_type="rsquare")
    fails(InvalidQueryError, "no betas", load, maps)
    # Grids of two may differ by less than what rounding of affines may.
    betas.save(tmp_path / "betas.npz")
    for given in (betas, load(tmp_path / "betas.npz")):
        chosen = {"rois": "brain", "mask_img": given.mask_img}
        words = "of sub-03, and the betas are of"
        fails(InvalidQueryError, words, load, data, "sub-01", **chosen)
        load(data, "sub-03", **chosen)


def test_fetched_betas_of_each_subject_are_those_of_images(server, data_dir):
    where = {"rois": "FFA1", "sessions": 1, "verbose": 0}
    plans = fetch_laion_betas([1, 3], dry_run=True, **where)
    alone = fetch_laion_betas(3, dry_run=True, **where)
    pd.testing.assert_frame_equal(plans["sub-03"].plan, alone.plan)
    data = fetch_laion_fmri("all", **where)
    expected = load(data, "all")
    for subjects in ("all", list(expected), ["01"]):
        found = fetch_laion_betas(subjects, **where)
        assert list(found) == ["sub-01", "sub-03"][: len(found)]
        for name, betas in found.items():
            assert np.array_equal(betas.data, expected[name].data)
            index = betas.trials["image_index"]
            of_images = expected[name].trials.assign(image_index=index)
            pd.testing.assert_frame_equal(betas.trials, of_images)
    # The query repeats the call.
    asked = {**where, "trial_filter": {"run": 1}, "average_repeats": True}
    betas = fetch_laion_betas(1, **asked)
    again = fetch_laion_betas(**betas.query, verbose=0)
    assert np.array_equal(again.data, betas.data)
    assert (again.query, again.versions) == (betas.query, betas.versions)
    assert betas.versions[data.images_meta[0]["id"]] == data.images_meta[0]["etag"]
    assert "sub-01 (1 session: ses-01)" in betas.methods()


@pytest.mark.parametrize("call", [fetch_laion_betas, load])
def test_rows_of_the_same_images_in_other_orders_are_told(fetch, cached, call):
    """Each subject saw the shared images in an order of its own."""
    data = fetch("all", "FFA1", trial_filter={"unique_or_shared": "shared"})
    counts = data.trials.groupby("subject")["label"].value_counts().unstack(0)
    same = counts.index[counts.nunique(axis=1) == 1].tolist()
    data.trials = data.trials[data.trials["label"].isin(same)]
    given, options = (data, "all"), {}
    if call is fetch_laion_betas:
        given, options = (["sub-01", "sub-03"], "FFA1"), {"mode": "offline"}
        options |= {"trial_filter": {"label": same}, "verbose": 0}
    words = f"sub-01, sub-03 show the same {len(same)} images, but row by row"
    for average in (True, False):
        each = warned(words, call, *given, average_repeats=average, **options)
    options |= {"average_repeats": True, "labels": shared_labels(each)}
    with no_warnings():  # in one order, or of other images
        each = call(*given, **options)
        load(fetch("all", "FFA1", [1, 2]), "all")
    first, second = (betas.trials["label"].tolist() for betas in each.values())
    assert first == second == sorted(same)


def test_groups_for_cross_validation(data):
    betas = load(data, rois="FFA1")
    for name in ("session", "label"):
        assert betas.groups[name].tolist() == betas.trials[name].tolist()
        values = betas.trials[name].to_numpy()
        for train, test in GroupKFold(2).split(values, groups=betas.groups[name]):
            assert not {*values[train]} & {*values[test]}


# What is wrong


def test_arguments_that_are_not_valid(data, whole):
    for options, words in (
        ({"rois": "FFA"}, "did you mean .FFA"),
        ({"rois": ["PPA", 3]}, "no ROI 3"),
        ({"rois": []}, "rois='brain'"),
        ({"rois": None}, "rois is None.*'brain'"),
        ({"nc_threshold": True}, "in percent"),
        ({"nc_threshold": 101}, "No voxel of sub-"),
        ({"nc_threshold": 5, "noise_ceiling": "13rep"}, "12rep"),
        ({"noise_ceiling": "12rep"}, "noise_ceiling is '12rep'.*give nc_threshold"),
        ({"standardize": True}, "'zscore_sample'"),
        ({"average_repeats": "session"}, "True .all repeats of an image. or False"),
        ({"dtype": "int16"}, "float32"),
        ({"dtype": "real"}, "float32"),
        ({"verbose": "loud"}, "verbose"),
    ):
        fails(InvalidQueryError, words, load, data, **options)
    fails(InvalidQueryError, "Betas without images_meta", load, whole)
    fails(InvalidQueryError, "NoneType without images_meta", load, None)
    fails(NotCachedError, "no file sub-01 that the method save", load, "sub-01")


def test_what_is_not_on_disk_or_disagrees(cached, no_network):
    here = {"mode": "offline", "verbose": 0}
    data = fetch_laion_fmri("sub-01", "FFA1", **here)
    stem, _, _ = data.images[0].partition("_space-T1w")
    table = Path(f"{stem}_desc-SingletrialBetas_trials.tsv")
    lines = table.read_text().splitlines()
    last = len(lines) - 2
    for changed in (lines[:-1], [*lines, f"ses-01\t1\t{last + 1}\tx.jpg"]):
        table.write_text("\n".join(changed) + "\n")
        error = fails(CorruptImageError, "trial table has", load, data)
        assert data.images[0] in str(error)
    table.unlink()
    load(data)
    beta_index = data.trials.loc[3, "beta_index"]
    data.trials.loc[3, "beta_index"] = last + 1
    fails(CorruptImageError, "trial table has", load, data)
    data.trials.loc[3, "beta_index"] = beta_index
    for file, name in ((data.rois[0], "FFA1"), (data.images[0], "SingletrialBetas")):
        os.unlink(file)
        fails(NotCachedError, name, load, data)
    without = fetch_laion_fmri("sub-03", None, **here)
    fails(InvalidQueryError, "rois='brain'", load, without)


# Of images made for the purpose


def test_rows_follow_trials_in_any_order(tmp_path):
    data = make(tmp_path, [noise(5, 1), noise(4, 2)])
    whole = load(data, rois="brain")
    order = [8, 0, 3, 3, 6, 1]
    data.trials = whole.trials.astype({"beta_index": float}).iloc[order]
    betas = load(data, rois="brain")
    assert np.array_equal(betas.data, whole.data[order])
    assert list(betas.trials["beta_index"]) == list(data.trials["beta_index"])
    assert list(betas.trials.index) == list(range(6))
    for trials, words in (
        (whole.trials.iloc[:0], "No trial of sub-01 is selected"),
        (whole.trials.assign(image_index=7), "image_index"),
        (whole.trials.assign(beta_index=0.5), "beta_index that is not a whole number"),
    ):
        data.trials = trials
        fails(InvalidQueryError, words, load, data, rois="brain")


def test_half_precision_is_that_of_the_result_alone(tmp_path):
    values = np.random.default_rng(0).normal(500, size=(*SHAPE, 24))
    values[4, 5, 5, :], values[5, 5, 5, 3] = 9000, 70_000
    data = make(tmp_path, [image(values.astype("f4"))], labels=["a", "b"])
    for average in (False, True):
        options = {"rois": "brain", "standardize": "zscore", "average_repeats": average}
        half = load(data, dtype="float16", **options).data
        assert half.dtype == np.float16
        assert np.allclose(half, load(data, **options).data, rtol=2e-3, atol=2e-3)
    sums = load(data, rois="brain", average_repeats=True, dtype="float16")
    assert np.isfinite(sums.data).sum() >= sums.data.size - 1


@pytest.mark.parametrize(("name", "ddof"), [("zscore", 0), ("zscore_sample", 1)])
def test_standardized_over_all_finite_trials_of_a_session(tmp_path, name, ddof):
    images = [noise(8, 1), noise(7, 2)]
    images[0].dataobj[4, 4, 4] = 1000.1  # constant
    images[1].dataobj[...] += 1e5
    images[1].dataobj[1, 1, 1] = np.nan
    images[1].dataobj[2, 2, 2, 3] = np.inf
    images[1].dataobj[2, 2, 3, [0, 4]] = np.nan
    data = make(tmp_path, images)
    options, expected = {"rois": "brain", "standardize": name}, []
    for made in images:
        values = np.asarray(made.dataobj)[INSIDE].T.astype(float)
        values[~np.isfinite(values)] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that are nowhere finite
            mean, deviation = np.nanmean(values, 0), np.nanstd(values, 0, ddof=ddof)
        expected.append((values - mean) / np.where(deviation < 1e-9, 1, deviation))
    expected = np.concatenate(expected)
    is_hole = np.isnan(expected)
    assert is_hole.sum() == 7 + 1 + 2
    whole = load(data, **options).data
    assert np.allclose(whole, np.nan_to_num(expected), atol=1e-4)
    assert (whole[is_hole] == 0).all()
    assert (load(data, rois="brain").data[is_hole] == 0).all()
    averaged = load(data, average_repeats=True, **options).data
    frame = pd.DataFrame(expected).groupby(list(data.trials["label"]), sort=False)
    # Sums of 1e5 in float32 are exact to 0.03.
    assert np.allclose(averaged, frame.mean().fillna(0), atol=2e-3)
    data.trials = data.trials.iloc[[0, 4, 9]]  # whatever trials are selected
    assert np.array_equal(load(data, **options).data, whole[[0, 4, 9]])
    data = make(tmp_path, [noise(8)])
    if ddof:
        masker = NiftiMasker(image(BRAIN), standardize="zscore_sample")
        by_nilearn = masker.fit_transform(data.images[0])
        assert np.allclose(load(data, **options).data, by_nilearn, atol=1e-5)


@pytest.mark.parametrize("standardize", [None, "zscore"])
@pytest.mark.parametrize("n_sessions", [1, 3])
def test_average_of_repeats(tmp_path, standardize, n_sessions):
    data = make(tmp_path, [noise(7, i) for i in range(n_sessions)])
    data.trials["n_reps"] = pd.array([None] * len(data.trials), dtype="Int64")
    options = {"rois": "brain", "standardize": standardize}
    single = load(data, **options)
    betas = load(data, average_repeats=True, **options)
    frame = pd.DataFrame(single.data).groupby(list(data.trials["label"]), sort=False)
    assert np.allclose(betas.data, frame.mean(), atol=1e-5)
    assert list(betas.trials["label"]) == ["b", "a", "c"]
    assert list(betas.trials["n_averaged"]) == frame.size().tolist()
    assert betas.trials[["beta_index", "n_reps"]].isna().all(axis=None)
    assert (betas.trials["run"] == 1).all()
    assert betas.trials["session"].isna().all() == (n_sessions > 1)
    assert ("session" in betas.groups) == (n_sessions == 1)


# Memory and workers


def test_a_result_larger_than_free_memory(tmp_path, monkeypatch):
    """Of the machine, or of a batch job on it."""
    data = make(tmp_path, [noise(5)])
    need = 5 * int(INSIDE.sum()) * 4
    free, real = Bunch(available=need), builtins.open
    limits = {
        "/proc/self/cgroup": "0::/slurm/job\n",
        "/sys/fs/cgroup/slurm/job/memory.max": "max",
        "/sys/fs/cgroup/slurm/memory.max": str(need + 400),
        "/sys/fs/cgroup/slurm/memory.stat": "anon 300\nfile 5000\nshmem 100\n",
    }

    def opened(file, *args, **options):
        content = limits.get(str(file))
        return io.StringIO(content) if content else real(file, *args, **options)

    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    monkeypatch.setattr(builtins, "open", opened)
    load(data, rois="brain")
    # Nothing is read then, else it would be an error of the image.
    os.truncate(data.images[0], os.path.getsize(data.images[0]) - 500)
    limits["/sys/fs/cgroup/slurm/memory.max"] = str(need + 399)
    fails(MemoryError, "are free", load, data, rois="brain")
    limits.clear()
    free.available = need - 1
    fails(MemoryError, "nc_threshold", load, data, rois="brain")


@pytest.fixture
def shuffled(tmp_path):
    """Data of four sessions of different lengths, with holes, out of order."""
    images = [noise(4 + i, i) for i in range(4)]
    images[2].dataobj[4, 4, 4, :2] = np.nan
    data = make(tmp_path, images)
    data.trials = data.trials.sample(frac=0.8, random_state=0)
    return data


WAYS = ({}, {"standardize": "zscore"}, {"standardize": "zscore", "dtype": "float16"})


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_threads_give_the_same(shuffled, backend):
    for options in (*WAYS, {"average_repeats": True}):
        alone = load(shuffled, rois="brain", **options)
        for n_jobs in (2, -1):
            with joblib.parallel_config(backend):
                betas = load(shuffled, rois="brain", n_jobs=n_jobs, **options)
            assert np.array_equal(betas.data, alone.data)
            pd.testing.assert_frame_equal(betas.trials, alone.trials)


def test_dask_gives_the_same_by_workers_of_a_cluster(shuffled, tmp_path):
    distributed = pytest.importorskip("distributed")
    here = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**here) as cluster, distributed.Client(cluster):
        for options in WAYS:
            alone = load(shuffled, rois="brain", **options)
            lazy = load(shuffled, rois="brain", as_dask=True, **options)
            assert len(lazy.data.chunks[0]) >= 4
            assert lazy.data.dtype == alone.data.dtype
            assert np.array_equal(lazy.data.compute(), alone.data)
            pd.testing.assert_frame_equal(lazy.trials, alone.trials)
        # What a file holds when it is computed counts, not what was computed before.
        nib.save(noise(4, 99), shuffled.images[0])
        again = load(shuffled, rois="brain", as_dask=True, **options)
        assert not np.array_equal(again.data.compute(), alone.data)
    again.save(tmp_path / "betas.npz")
    computed = load(shuffled, rois="brain", **options)
    assert np.array_equal(load(tmp_path / "betas.npz").data, computed.data)
    averages = {"as_dask": True, "average_repeats": True}
    words = "leave average_repeats out"
    fails(InvalidQueryError, words, load, shuffled, rois="brain", **averages)
