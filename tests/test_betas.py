"""load_betas: arrays as NiftiMasker gives them, aligned with trials."""

from __future__ import annotations

import builtins
import io
import os
import tracemalloc
import warnings
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiMasker
from nilearn.masking import apply_mask, unmask
from sklearn.model_selection import GroupKFold
from sklearn.utils import Bunch

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri, shared_labels
from laion_fmri_fetchers.betas.load import load_betas
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
    InvalidQueryError,
    NotCachedError,
)

SHAPE = (9, 8, 7)
AFFINE = np.array([[2.0, 0, 0, -9], [0, 2, 0, -8], [0, 0, 2, -7], [0, 0, 0, 1]])
LABELS = ("b", "a", "c")


@pytest.fixture
def data(cached, no_network):
    return fetch_laion_fmri("sub-01", mode="offline", verbose=0)


@pytest.fixture
def fetch(cached):
    return lambda *args, **options: fetch_laion_fmri(
        *args, mode="offline", verbose=0, **options
    )


def masked(data, mask_img):
    """Return what nilearn makes of all images of a Bunch."""
    masker = NiftiMasker(mask_img, standardize=None, dtype="float32").fit()
    parts = [
        masker.transform(file, sample_mask=volumes)
        for file, volumes in zip(data.images, data.sample_masks, strict=True)
    ]
    return np.concatenate(parts)


def brain(shape=SHAPE):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[1:-1, 1:-1, 1:-1] = 1
    mask[3, 4] = 0
    return mask


def make(folder, images, masks=None, labels=LABELS):
    """Return a Bunch of images saved, one a session, and of ROI masks."""
    folder = Path(folder)
    metas, files, tables = [], [], []
    for i, image in enumerate(images):
        files.append(str(folder / f"{i}_betas.nii.gz"))
        nib.save(image, files[-1])
        meta = {"subject": "sub-01", "session": f"ses-{i + 1:02d}"}
        metas.append({**meta, "image_type": "betas", "extension": "nii.gz"})
        n = image.shape[3]
        own = [labels[(v + i) % len(labels)] for v in range(n)]
        table = {**meta, "run": 1, "beta_index": range(n), "label": own}
        tables.append(pd.DataFrame({**table, "image_index": i}))
    rois, rois_meta = [], []
    nib.save(nib.Nifti1Image(brain(), AFFINE), folder / "brain.nii.gz")
    for name, mask in (masks or {}).items():
        rois.append(str(folder / f"{name}.nii.gz"))
        nib.save(mask, rois[-1])
        meta = {"subject": "sub-01", "roi": name, "roi_category": "face"}
        rois_meta.append({**meta, "image_type": "roi", "extension": "nii.gz"})
    return Bunch(
        images=files,
        images_meta=metas,
        rois=rois,
        rois_meta=rois_meta,
        brain_masks={"sub-01": str(folder / "brain.nii.gz")},
        noise_ceilings={},
        trials=pd.concat(tables, ignore_index=True),
        sample_masks=[np.arange(image.shape[3]) for image in images],
        data_dir=str(folder / "no tables"),
    )


def noise(n, seed=0, dtype="float32", order="C", **header):
    rng = np.random.default_rng(seed)
    values = np.asarray(rng.normal(3, 20, (*SHAPE, n)).astype(dtype), order=order)
    made = nib.Nifti1Image(values, AFFINE, nib.Nifti1Header(**header), dtype=dtype)
    made.set_data_dtype(dtype)
    return made


# Half precision


def test_half_precision_is_that_of_the_result_alone(tmp_path):
    values = np.zeros((*SHAPE, 24), np.float32)
    values += 500 + np.random.default_rng(0).normal(size=values.shape)
    values[4, 5, 5, :] = 9000
    values[5, 5, 5, 3] = 70000
    data = make(tmp_path, [nib.Nifti1Image(values, AFFINE)], labels=["a", "b"])
    options = {"rois": "brain", "standardize": "zscore", "verbose": 0}
    for average in (False, True):
        options["average_repeats"] = average
        half = load_betas(data, dtype="float16", **options).data
        single = load_betas(data, dtype="float32", **options).data
        assert half.dtype == np.float16
        assert np.allclose(half, single, rtol=2e-3, atol=2e-3)
    sums = load_betas(data, "sub-01", "brain", average_repeats=True, dtype="float16")
    assert np.isfinite(sums.data).sum() >= sums.data.size - 1


def test_indices_of_volumes_that_became_floats(tmp_path):
    data = make(tmp_path, [noise(6)])
    expected = load_betas(data, rois="brain", verbose=0).data
    data.trials["beta_index"] = data.trials["beta_index"].astype(float)
    assert np.array_equal(load_betas(data, rois="brain", verbose=0).data, expected)
    data.trials.loc[2, "beta_index"] = np.nan
    with pytest.raises(
        InvalidQueryError, match="beta_index that is not a whole number"
    ):
        load_betas(data, rois="brain", verbose=0)


# Of fetched data


def test_masks_of_both_grids(fetch, tmp_path):
    data = fetch(rois="FFA1")
    expected = load_betas(data, rois="FFA1", verbose=0)
    fine = nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.diag([1.5, 1.5, 1.5, 1]))
    nib.save(fine, tmp_path / "fine.nii.gz")
    data.rois.insert(0, str(tmp_path / "fine.nii.gz"))
    data.rois_meta.insert(0, {**data.rois_meta[0], "res": "1pt5"})
    found = load_betas(data, rois="FFA1", verbose=0)
    assert np.array_equal(found.data, expected.data)
    assert found.roi_mask("face").all()


def test_fill_of_any_number(data):
    betas = load_betas(data, rois="FFA1", verbose=0)
    inside = np.ones(betas.data.shape[1], bool)
    for fill in (0.5, -1, 70_000, np.nan):
        image = betas.to_img(inside, fill=fill)
        outside = np.asarray(betas.mask_img.dataobj) == 0
        values = np.asarray(image.dataobj)[outside]
        assert np.array_equal(values, np.full(values.shape, fill), equal_nan=True)


def test_equal_to_nifti_masker(data):
    betas = load_betas(data, rois="brain")
    assert betas.data.dtype == np.float32
    assert np.array_equal(
        nib.load(data.brain_masks["sub-01"]).get_fdata() > 0,
        betas.mask_img.get_fdata() > 0,
    )
    assert np.allclose(betas.data, masked(data, betas.mask_img), rtol=1e-6)
    pd.testing.assert_frame_equal(betas.trials, data.trials)
    volume = nib.load(data.images[1]).get_fdata()[..., data.sample_masks[1][0]]
    inside = betas.mask_img.get_fdata() > 0
    row = np.flatnonzero(betas.trials["image_index"] == 1)[0]
    back = unmask(betas.data[row], betas.mask_img).get_fdata()
    assert np.allclose(back[inside], np.nan_to_num(volume)[inside])
    assert not back[~inside].any()
    assert not np.isfinite(volume[inside]).all()  # the demo has holes at the edge


def test_selected_trials_of_rois(fetch):
    data = fetch("sub-01", rois="face", trial_filter={"n_reps": 12})
    betas = load_betas(data, rois="FFA-1")
    roi = next(
        f for f, m in zip(data.rois, data.rois_meta, strict=True) if m["roi"] == "FFA1"
    )
    assert np.array_equal(
        betas.mask_img.get_fdata() > 0,
        (nib.load(roi).get_fdata() > 0) & brain_of(data, "sub-01"),
    )
    assert np.allclose(betas.data, masked(data, betas.mask_img), rtol=1e-6)
    assert list(betas.roi_masks) == ["FFA1"]
    assert betas.roi_masks["FFA1"].all()
    assert set(betas.trials["n_reps"]) == {12}
    assert len(betas.data) == len(data.trials) > 0


def brain_of(data, subject):
    return nib.load(data.brain_masks[subject]).get_fdata() > 0


def test_rois_by_name_category_and_all(data):
    brain = load_betas(data, rois="brain")
    fetched = load_betas(data)
    assert set(fetched.roi_masks) == {m["roi"] for m in data.rois_meta}
    assert brain.roi_masks == {}
    union = np.logical_or.reduce(list(fetched.roi_masks.values()))
    assert union.all()
    faces = load_betas(data, rois="face")
    names = {m["roi"] for m in data.rois_meta if m["roi_category"] == "face"}
    assert set(faces.roi_masks) == names
    both = load_betas(data, rois=["face", "PPA"])
    assert set(both.roi_masks) == {*names, "PPA"}
    assert both.data.shape[1] == np.sum(
        np.logical_or.reduce([fetched.roi_masks[name] for name in both.roi_masks])
    )
    for name, mask in both.roi_masks.items():
        columns = fetched.data[:, fetched.roi_masks[name]]
        assert np.array_equal(both.data[:, mask], columns)
    with_brain = load_betas(data, rois=["brain", "PPA"])
    assert np.array_equal(with_brain.data, brain.data)
    assert with_brain.roi_masks["PPA"].sum() == fetched.roi_masks["PPA"].sum()


def test_noise_ceilings_of_columns_and_threshold(data):
    maps = data.noise_ceilings["sub-01"]
    everything = load_betas(data, rois="brain")
    assert set(everything.noise_ceilings) == {"4rep", "12rep", "Allrep"}
    for name, file in maps.items():
        expected = apply_mask(file, everything.mask_img, ensure_finite=False)
        assert np.allclose(everything.noise_ceilings[name], expected, equal_nan=True)
    for name in ("Allrep", "4rep"):
        level = float(np.nanmedian(everything.noise_ceilings[name]))
        high = everything.noise_ceilings[name] >= level
        assert 0 < high.sum() < len(high)
        for number in (level, np.float64(level)):
            betas = load_betas(
                data, rois="brain", nc_threshold=number, noise_ceiling=name
            )
            assert np.array_equal(betas.data, everything.data[:, high])
        assert (betas.noise_ceilings[name] >= level).all()


def test_a_mask_may_hold_values_that_are_not_finite(data):
    """They are outside, as is 0."""
    inside = load_betas(data, rois="FFA1").mask_img
    values = inside.get_fdata()
    values[values == 0] = np.nan
    values[tuple(np.argwhere(values > 0)[0])] = np.inf
    mask = nib.Nifti1Image(values.astype("float32"), inside.affine)
    betas = load_betas(data, rois="brain", mask_img=mask)
    assert betas.data.shape[1] == (inside.get_fdata() > 0).sum() - 1


def test_mask_img_as_path_and_image(data, tmp_path):
    everything = load_betas(data, rois="brain")
    inside = np.asarray(everything.mask_img.dataobj) > 0
    half = inside.copy()
    half[half.shape[0] // 2 :] = False
    image = nib.Nifti1Image(half.astype("float32"), everything.mask_img.affine)
    nib.save(image, tmp_path / "half.nii.gz")
    fourth = nib.Nifti1Image(half[..., None].astype("float32"), image.affine)
    file = tmp_path / "half.nii.gz"
    for given in (image, fourth, file, str(file)):
        betas = load_betas(data, rois="brain", mask_img=given)
        assert np.array_equal(betas.data, everything.data[:, half[inside]])


def test_voxels_of_another_subject_are_no_mask(fetch, tmp_path):
    """Grids of two may differ by less than what rounding of affines may."""
    data = fetch("all", rois="FFA1")
    betas = load_betas(data, "sub-03", verbose=0)
    betas.save(tmp_path / "betas.npz")
    for given in (betas, load_betas(tmp_path / "betas.npz")):
        with pytest.raises(InvalidQueryError, match="of sub-03, and the betas are of"):
            load_betas(data, "sub-01", "brain", mask_img=given.mask_img)
        load_betas(data, "sub-03", "brain", mask_img=given.mask_img, verbose=0)


@pytest.mark.parametrize("as_path", [True, False])
def test_a_map_is_no_mask(data, tmp_path, as_path):
    """Every voxel of a map that is not exactly 0 would be taken, as nilearn refuses."""
    ceiling = data.noise_ceilings["sub-01"]["Allrep"]
    given = ceiling if as_path else nib.load(ceiling)
    with pytest.raises(InvalidQueryError, match="mask_img has values from .*binarize"):
        load_betas(data, rois="brain", mask_img=given)


def test_a_roi_of_which_nothing_is_left_is_a_warning(data):
    """The mean over its columns would be NaN."""
    betas = load_betas(data, rois="all", verbose=0)
    ceiling = betas.noise_ceilings["Allrep"]
    best = {roi: ceiling[inside].max() for roi, inside in betas.roi_masks.items()}
    low, *_, high = sorted(best, key=best.get)
    threshold = (best[low] + best[high]) / 2
    with pytest.warns(UserWarning, match=f"No voxel of {low} of sub-01 is left"):
        load_betas(data, rois=[low, high], nc_threshold=threshold, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_betas(data, rois=[high], nc_threshold=threshold, verbose=0)


@pytest.mark.parametrize("call", [fetch_laion_betas, load_betas])
def test_a_mask_without_rois_says_what_it_loses(data, call):
    offline = {"mode": "offline", "verbose": 0}
    given, options = (data, {}) if call is load_betas else (1, offline)
    brain = nib.load(data.brain_masks["sub-01"])
    n_brain = int((brain.get_fdata() > 0).sum())
    n_rois = load_betas(data, verbose=0).data.shape[1]
    words = f"{n_brain - n_rois:,} of {n_brain:,} voxels of mask_img are left out"
    with pytest.warns(UserWarning, match=f"{words}.*rois='brain'"):
        betas = call(given, mask_img=brain, **options)
    assert betas.data.shape[1] == n_rois < n_brain
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = call(given, rois="brain", mask_img=brain, **options)
        inside = call(given, mask_img=betas.mask_img, **options)
        face = call(given, rois="face", mask_img=brain, **options)
    assert whole.data.shape[1] == n_brain
    assert np.array_equal(inside.data, betas.data)
    assert np.array_equal(face.data, betas.data[:, betas.roi_mask("face")])


@pytest.mark.parametrize("as_path", [True, False])
def test_a_mask_of_several_volumes_is_refused(tmp_path, as_path):
    data = make(tmp_path, [noise(3)], {"exact": nib.Nifti1Image(brain(), AFFINE)})
    image = nib.Nifti1Image(np.ones((*SHAPE, 2), np.uint8), AFFINE)
    nib.save(image, tmp_path / "two.nii.gz")
    with pytest.raises(InvalidQueryError, match="2 volumes|not on the grid"):
        load_betas(data, mask_img=tmp_path / "two.nii.gz" if as_path else image)


def test_masks_that_are_not_images(tmp_path):
    data = make(tmp_path, [noise(3)], {"exact": nib.Nifti1Image(brain(), AFFINE)})
    masker = NiftiMasker(nib.Nifti1Image(brain(), AFFINE)).fit()
    with pytest.raises(InvalidQueryError, match="NiftiMasker.*mask_img_"):
        load_betas(data, mask_img=masker)
    by_masker = load_betas(data, mask_img=masker.mask_img_)
    assert np.array_equal(by_masker.data, load_betas(data).data)
    with pytest.raises(InvalidQueryError, match=r"mask_img.*nope\.nii.*does not exist"):
        load_betas(data, mask_img=tmp_path / "nope.nii.gz")


def test_a_threshold_below_one_percent_is_questioned(data):
    with pytest.warns(UserWarning, match=r"percent.*did you mean 20\?"):
        betas = load_betas(data, rois="brain", nc_threshold=0.2)
    assert betas.noise_ceilings["Allrep"].min() >= 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_betas(data, rois="brain", nc_threshold=0)
        load_betas(data, rois="brain", nc_threshold=1)


def test_unions_and_names_in_any_case(tmp_path):
    halves = {name: np.zeros(SHAPE, np.uint8) for name in ("V1d", "V1v", "MT")}
    halves["V1d"][2], halves["V1v"][3], halves["MT"][4] = 1, 1, 1
    masks = {name: nib.Nifti1Image(mask, AFFINE) for name, mask in halves.items()}
    data = make(tmp_path, [noise(3)], masks)
    both = load_betas(data, rois=["V1d", "V1v"])
    for name in ("V1", "v1"):
        betas = load_betas(data, rois=name)
        assert np.array_equal(betas.data, both.data)
        assert list(betas.roi_masks) == ["V1d", "V1v"]
    assert np.array_equal(
        load_betas(data, rois="mt").data, load_betas(data, rois="MT").data
    )
    assert list(load_betas(data, rois="all").roi_masks) == list(halves)
    with pytest.raises(InvalidQueryError, match="no ROI 'V2'"):
        load_betas(data, rois="V2")


def test_the_bunch_of_another_function(data):
    betas = load_betas(data, rois="brain")
    for other in (betas, None):
        kind = type(other).__name__
        with pytest.raises(InvalidQueryError, match=f"{kind} without images_meta"):
            load_betas(other)
    with pytest.raises(NotCachedError, match="no file sub-01 that the method save"):
        load_betas("sub-01")


def test_a_mask_is_needed(data):
    everything = load_betas(data, rois="brain")
    data.brain_masks = {}
    with pytest.raises(InvalidQueryError, match="no brain mask of sub-01.*mask_img"):
        load_betas(data, rois="brain")
    betas = load_betas(data, rois="brain", mask_img=everything.mask_img)
    assert np.array_equal(betas.data, everything.data)


def test_groups_for_cross_validation(data):
    betas = load_betas(data, rois="FFA1")
    for name in ("session", "label"):
        assert betas.groups[name].tolist() == betas.trials[name].tolist()
        values = betas.trials[name].to_numpy()
        for train, test in GroupKFold(2).split(values, groups=betas.groups[name]):
            assert not {*values[train]} & {*values[test]}


def test_subjects(fetch):
    data = fetch("all", rois="FFA1")
    with pytest.raises(InvalidQueryError, match="several subjects.*subjects='sub-01'"):
        load_betas(data)
    for subject in ("sub-03", "3", 3):
        betas = load_betas(data, subject)
        assert set(betas.trials["subject"]) == {"sub-03"}
    for subjects in ("all", ["sub-01", 3], [3]):
        each = load_betas(data, subjects)
        assert list(each) == ["sub-01", "sub-03"][-len(each) :]
        assert np.array_equal(each["sub-03"].data, betas.data)
    alone = load_betas(fetch("sub-03", rois="FFA1"))
    assert np.array_equal(alone.data, betas.data)
    with pytest.raises(InvalidQueryError, match="did you mean"):
        load_betas(data, "sub-04")
    with pytest.raises(InvalidQueryError, match="no betas"):
        load_betas(fetch("sub-01", image_type="rsquare"))


def test_several_subjects_are_a_bunch_of_each(server, data_dir):
    where = {"rois": "FFA1", "sessions": 1, "verbose": 0}
    data = fetch_laion_fmri("all", **where)
    same = load_betas(data, "all", verbose=0)
    for subjects in ("all", list(same)):
        found = fetch_laion_betas(subjects, **where)
        assert (
            list(found)
            == list(same)
            == [meta["subject"] for meta in data.subjects_meta]
        )
        for name, betas in found.items():
            assert np.array_equal(betas.data, same[name].data)
            own = same[name].trials.assign(image_index=betas.trials["image_index"])
            pd.testing.assert_frame_equal(betas.trials, own)
    (name,) = fetch_laion_betas(["01"], **where)
    assert name == "sub-01"


def test_the_query_of_fetched_betas_repeats_the_call(server, data_dir):
    betas = fetch_laion_betas(
        1, "face", 1, trial_filter={"run": 1}, average_repeats=True, verbose=0
    )
    again = fetch_laion_betas(**betas.query, verbose=0)
    assert np.array_equal(again.data, betas.data)
    assert (again.query, again.versions) == (betas.query, betas.versions)
    assert betas.query["sessions"] == ["ses-01"]
    data = fetch_laion_fmri(1, "face", 1, dry_run=True, verbose=0)
    (image,) = data.images_meta
    assert betas.versions[image["id"]] == image["etag"]
    assert "sub-01 (1 session: ses-01)" in betas.methods()


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("call", [fetch_laion_betas, load_betas])
def test_rows_of_the_same_images_in_other_orders_are_told(
    server, data_dir, call, average
):
    """Each subject saw the shared images in an order of its own."""
    both = {"trial_filter": {"unique_or_shared": "shared"}, "verbose": 0}
    given, options = ["sub-01", "sub-03"], {"rois": "FFA1", **both}
    data = fetch_laion_fmri(given, **options)
    counts = data.trials.groupby("subject")["label"].value_counts().unstack(0)
    same = counts.index[counts.nunique(axis=1) == 1].tolist()
    data.trials = data.trials[data.trials["label"].isin(same)]
    options["trial_filter"] = {"label": same}
    if call is load_betas:
        given, options = data, {"subjects": "all", "verbose": 0}
    words = f"sub-01, sub-03 show the same {len(same)} images, but row by row"
    with pytest.warns(UserWarning, match=words):
        each = call(given, average_repeats=average, **options)
    first, second = (betas.trials["label"].tolist() for betas in each.values())
    assert sorted(first) == sorted(second)
    assert first != second
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each = call(given, average_repeats=True, labels=shared_labels(each), **options)
    first, second = (betas.trials["label"].tolist() for betas in each.values())
    assert first == second == sorted(same)


def test_subjects_of_other_images_are_not_compared(server, data_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fetch_laion_betas("all", "FFA1", [1, 2], verbose=0)


def test_a_plan_of_several_subjects_is_a_plan_of_each(server, data_dir):
    plans = fetch_laion_betas([1, 3], "FFA1", iter([1]), dry_run=True, verbose=0)
    for name in ("sub-01", "sub-03"):
        alone = fetch_laion_betas(name, "FFA1", 1, dry_run=True, verbose=0)
        pd.testing.assert_frame_equal(plans[name].plan, alone.plan)
        assert plans[name].plan_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rois": "FFA"}, "did you mean .FFA"),
        ({"rois": ["PPA", 3]}, "no ROI 3"),
        ({"rois": []}, "rois='brain'"),
        ({"rois": None}, "rois is None.*'brain'"),
        ({"rois": 3}, "rois is 3"),
        ({"nc_threshold": True}, "in percent"),
        ({"nc_threshold": 101}, "No voxel of sub-"),
        ({"nc_threshold": "high"}, "in percent"),
        ({"nc_threshold": 5, "noise_ceiling": "13rep"}, "12rep"),
        ({"noise_ceiling": "12rep"}, "noise_ceiling is '12rep'.*give nc_threshold"),
        ({"standardize": True}, "'zscore_sample'"),
        ({"average_repeats": "session"}, "True .all repeats of an image. or False"),
        ({"dtype": "int16"}, "float32"),
        ({"dtype": "real"}, "float32"),
    ],
    ids=str,
)
def test_arguments_that_are_not_valid(data, options, message):
    with pytest.raises(InvalidQueryError, match=message):
        load_betas(data, **options)


def test_what_is_not_on_disk(fetch, server, data_dir):
    plan = fetch("sub-01", rois="FFA1")
    os.unlink(plan.rois[0])
    with pytest.raises(NotCachedError, match="FFA1"):
        load_betas(plan)
    os.unlink(plan.images[0])
    with pytest.raises(NotCachedError, match="SingletrialBetas"):
        load_betas(plan)
    without = fetch("sub-03", rois=None)
    with pytest.raises(InvalidQueryError, match="rois='brain'"):
        load_betas(without)


def test_a_trial_table_that_disagrees_is_an_error(data):
    table = data.images[0].replace(
        "_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz",
        "_desc-SingletrialBetas_trials.tsv",
    )
    lines = Path(table).read_text().splitlines()
    last = len(lines) - 2
    for changed in (lines[:-1], [*lines, f"ses-01\t1\t{last + 1}\tx.jpg"]):
        Path(table).write_text("\n".join(changed) + "\n")
        with pytest.raises(CorruptImageError, match="trial table has") as error:
            load_betas(data, rois="FFA1")
        assert data.images[0] in str(error.value)
    Path(table).unlink()
    load_betas(data, rois="FFA1")
    data.trials.loc[3, "beta_index"] = last + 1
    with pytest.raises(CorruptImageError, match="trial table has"):
        load_betas(data, rois="FFA1")


# Of images made for the purpose


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": "F"},
        {"dtype": "float64"},
        {"dtype": "int16"},
        {"dtype": "uint8"},
        {"endianness": ">"},
        {"endianness": ">", "dtype": "int16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("extension", ["nii.gz", "nii"])
@pytest.mark.parametrize("scaled", [False, True])
def test_formats(tmp_path, options, extension, scaled):
    image = noise(6, **options)
    if scaled:
        image.header.set_slope_inter(0.37, -2)
    data = make(tmp_path, [image])
    if extension == "nii":
        data.images = [str(tmp_path / "betas.nii")]
        nib.save(image, data.images[0])
    data.trials = data.trials.iloc[[1, 2, 5]]
    data.sample_masks = [np.array([1, 2, 5])]
    for dtype in ("float32", "float64"):
        betas = load_betas(data, rois="brain", dtype=dtype)
        assert betas.data.dtype == dtype
        assert np.allclose(betas.data, masked(data, betas.mask_img), rtol=1e-5)
        expected = nib.load(data.images[0]).get_fdata()[..., [1, 2, 5]]
        inside = brain()[..., None] > 0
        back = unmask(betas.data, betas.mask_img).get_fdata()
        assert np.allclose(back, np.where(inside, expected, 0), rtol=1e-5)


def test_values_that_are_not_finite(tmp_path):
    image = noise(7)
    values = np.asarray(image.dataobj)
    values[1, 1, 1] = np.nan
    values[2, 2, 2, 3] = np.inf
    values[2, 2, 3, [0, 4]] = np.nan
    data = make(tmp_path, [image])
    plain = load_betas(data, rois="brain")
    assert np.allclose(plain.data, masked(data, plain.mask_img))
    flat = values[brain() > 0].T.astype(float)
    flat[~np.isfinite(flat)] = np.nan
    for name, ddof in (("zscore", 0), ("zscore_sample", 1)):
        betas = load_betas(data, rois="brain", standardize=name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that are nowhere finite
            mean = np.nanmean(flat, 0)
            expected = (flat - mean) / np.nanstd(flat, 0, ddof=ddof)
        assert np.allclose(betas.data, np.nan_to_num(expected), atol=1e-5)
        assert (betas.data[np.isnan(flat)] == 0).all()
        averaged = load_betas(
            data, rois="brain", standardize=name, average_repeats=True
        )
        frame = pd.DataFrame(expected).groupby(list(data.trials["label"]), sort=False)
        assert np.allclose(averaged.data, frame.mean().fillna(0), atol=1e-5)


@pytest.mark.parametrize("standardize", ["zscore", "zscore_sample"])
def test_standardized_over_all_trials_of_a_session(tmp_path, standardize):
    images = [noise(8, 1), noise(5, 2)]
    images[0].dataobj[3, 3, 3] = 1000.1  # constant
    images[1].dataobj[...] += 1e5
    data = make(tmp_path, images)
    whole = load_betas(data, rois="brain", standardize=standardize)
    for i, image in enumerate(images):
        values = np.asarray(image.dataobj)[brain() > 0].T.astype(float)
        deviation = values.std(0, ddof=int(standardize == "zscore_sample"))
        constant = deviation < 1e-9
        expected = (values - values.mean(0)) / np.where(constant, 1, deviation)
        mine = whole.data[(whole.trials["image_index"] == i).to_numpy()]
        assert np.allclose(mine, expected, atol=1e-5)
    chosen = [0, 4, 9]
    data.trials = data.trials.iloc[chosen]
    betas = load_betas(data, rois="brain", standardize=standardize)
    assert np.array_equal(betas.data, whole.data[chosen])


def test_standardized_as_nilearn_does(tmp_path):
    data = make(tmp_path, [noise(8)])
    betas = load_betas(data, rois="brain", standardize="zscore_sample")
    masker = NiftiMasker(betas.mask_img, standardize="zscore_sample")
    assert np.allclose(betas.data, masker.fit_transform(data.images[0]), atol=1e-5)


@pytest.mark.parametrize("standardize", [None, "zscore"])
@pytest.mark.parametrize("n_sessions", [1, 3])
def test_average_of_repeats(tmp_path, standardize, n_sessions):
    data = make(tmp_path, [noise(7, i) for i in range(n_sessions)])
    data.trials["n_reps"] = pd.array([None] * len(data.trials), dtype="Int64")
    single = load_betas(data, rois="brain", standardize=standardize)
    betas = load_betas(
        data, rois="brain", standardize=standardize, average_repeats=True
    )
    frame = pd.DataFrame(single.data).groupby(list(data.trials["label"]), sort=False)
    assert np.allclose(betas.data, frame.mean(), atol=1e-5)
    assert list(betas.trials["label"]) == list(LABELS)
    assert list(betas.trials["n_averaged"]) == frame.size().tolist()
    assert betas.trials["beta_index"].isna().all()
    assert (betas.trials["run"] == 1).all()
    assert betas.trials["n_reps"].isna().all()
    assert betas.trials["session"].isna().all() == (n_sessions > 1)
    assert ("session" in betas.groups) == (n_sessions == 1)


def test_rows_follow_trials_in_any_order(tmp_path):
    data = make(tmp_path, [noise(5, 1), noise(4, 2)])
    whole = load_betas(data, rois="brain")
    order = [8, 0, 3, 3, 6, 1]
    data.trials = data.trials.iloc[order]
    betas = load_betas(data, rois="brain")
    assert np.array_equal(betas.data, whole.data[order])
    assert list(betas.trials["beta_index"]) == list(data.trials["beta_index"])
    assert list(betas.trials.index) == list(range(6))
    data.trials = data.trials.iloc[:0]
    with pytest.raises(InvalidQueryError, match="No trial of sub-01 is selected"):
        load_betas(data, rois="brain")
    data.trials = pd.DataFrame({**whole.trials, "image_index": 7})
    with pytest.raises(InvalidQueryError, match="image_index"):
        load_betas(data, rois="brain")


def test_grids_of_masks(tmp_path):
    def mask(shift=0.0, shape=SHAPE):
        affine = AFFINE.copy()
        affine[0, 3] += shift
        values = np.zeros(shape, dtype=np.uint8)
        values[2:4, 2:4, 2:4] = 1
        return nib.Nifti1Image(values, affine)

    masks = {
        "exact": mask(),
        "rounded": mask(0.01),
        "shifted": mask(1.0),
        "larger": mask(shape=(10, 8, 7)),
    }
    data = make(tmp_path, [noise(3)], masks)
    exact = load_betas(data, rois="exact")
    assert np.array_equal(load_betas(data, rois="rounded").data, exact.data)
    for name in ("shifted", "larger"):
        with pytest.raises(InvalidQueryError, match="grid") as error:
            load_betas(data, rois=name)
        assert f"{name}.nii.gz" in str(error.value)
        with pytest.raises(InvalidQueryError, match="mask_img"):
            load_betas(data, rois="exact", mask_img=masks[name])
    other = make(tmp_path, [noise(3), noise(3)], masks)
    moved = nib.Nifti1Image(np.asarray(noise(3).dataobj), masks["shifted"].affine)
    larger = nib.Nifti1Image(np.zeros((*SHAPE[:2], 9, 3), "float32"), AFFINE)
    for image in (moved, larger):
        nib.save(image, other.images[1])
        with pytest.raises(CorruptImageError, match="1_betas.*not on the grid"):
            load_betas(other, rois="exact")


@pytest.mark.parametrize("damage", ["cut", "changed"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_damaged_image(tmp_path, damage, n_jobs):
    data = make(tmp_path, [noise(30), noise(30)])
    file = Path(data.images[1])
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-500:]
    else:
        content[-500:-400] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(CorruptImageError, match="verify --repair") as error:
        load_betas(data, rois="brain", n_jobs=n_jobs)
    assert str(file) in str(error.value)


def test_what_lies_behind_the_last_trial_is_not_read(tmp_path):
    data = make(tmp_path, [noise(30)])
    file = Path(data.images[0])
    whole = load_betas(data, rois="brain").data
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    data.trials = data.trials.iloc[[4, 2]]
    assert np.array_equal(load_betas(data, rois="brain").data, whole[[4, 2]])
    with pytest.raises(CorruptImageError):
        load_betas(data, rois="brain", standardize="zscore")


# Memory and workers


def test_memory_is_constant_in_the_number_of_volumes(tmp_path):
    load_betas(make(tmp_path, [noise(3)]), rois="brain")  # imports
    for options in ({}, {"standardize": "zscore"}, {"average_repeats": True}):
        added = []
        for n in (20, 320):
            data = make(tmp_path, [noise(n)])
            peaks = []
            for _ in range(3):  # what other threads of the tests take is counted, too
                tracemalloc.start()
                betas = load_betas(data, rois="brain", **options)
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
            added.append(min(peaks) - betas.data.nbytes)
        # A trial costs its row in tables and plans, far less than its volume.
        assert added[1] - added[0] < 300 * 500 < 300 * brain().size


def test_a_result_larger_than_free_memory(tmp_path, monkeypatch):
    data = make(tmp_path, [noise(5)])
    need = 5 * int(brain().sum()) * 4
    free = Bunch(available=need)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    load_betas(data, rois="brain")
    free.available = need - 1
    # Nothing is read then, else it would be an error of the image.
    Path(data.images[0]).write_bytes(Path(data.images[0]).read_bytes()[:-500])
    with pytest.raises(MemoryError, match="nc_threshold"):
        load_betas(data, rois="brain")


def test_a_batch_job_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    data = make(tmp_path, [noise(5)])
    need = 5 * int(brain().sum()) * 4
    limits = {
        "/proc/self/cgroup": "0::/slurm/job\n",
        "/sys/fs/cgroup/slurm/job/memory.max": "max",
        "/sys/fs/cgroup/slurm/memory.max": str(need + 400),
        "/sys/fs/cgroup/slurm/memory.stat": "anon 300\nfile 5000\nshmem 100\n",
    }
    real = builtins.open

    def opened(file, *args, **options):
        if str(file) in limits:
            return io.StringIO(limits[file])
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", opened)
    load_betas(data, rois="brain")
    limits["/sys/fs/cgroup/slurm/memory.max"] = str(need + 399)
    with pytest.raises(MemoryError, match="are free"):
        load_betas(data, rois="brain")


@pytest.mark.parametrize("backend", ["threading", "loky"])
@pytest.mark.parametrize("n_jobs", [2, -1])
def test_threads_give_the_same(tmp_path, backend, n_jobs):
    data = shuffled(tmp_path)
    for options in STATISTICS:
        alone = load_betas(data, rois="brain", **options)
        with joblib.parallel_config(backend):
            betas = load_betas(data, rois="brain", n_jobs=n_jobs, **options)
        assert np.array_equal(betas.data, alone.data)
        pd.testing.assert_frame_equal(betas.trials, alone.trials)


STATISTICS = (
    {},
    {"standardize": "zscore"},
    {"standardize": "zscore_sample", "average_repeats": True},
)


def shuffled(folder):
    """Return data of four sessions of different lengths, with holes, out of order."""
    images = [noise(4 + i, i) for i in range(4)]
    images[2].dataobj[4, 4, 4, :2] = np.nan
    data = make(folder, images)
    data.trials = data.trials.sample(frac=0.8, random_state=0)
    return data


def test_dask_gives_the_same(tmp_path):
    pytest.importorskip("dask.array")
    data = shuffled(tmp_path)
    for options in ({}, {"standardize": "zscore"}, {"dtype": "float16"}):
        alone = load_betas(data, rois="brain", **options)
        lazy = load_betas(data, rois="brain", as_dask=True, **options)
        assert len(lazy.data.chunks[0]) >= 4
        assert lazy.data.dtype == alone.data.dtype
        assert np.array_equal(lazy.data.compute(), alone.data)
        pd.testing.assert_frame_equal(lazy.trials, alone.trials)
    with pytest.raises(InvalidQueryError, match="leave average_repeats out"):
        load_betas(data, rois="brain", as_dask=True, average_repeats=True)
    lazy.save(tmp_path / "betas.npz")
    assert np.array_equal(load_betas(tmp_path / "betas.npz").data, alone.data)


def test_workers_of_a_dask_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    data = shuffled(tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        lazy = load_betas(data, rois="brain", as_dask=True, standardize="zscore")
        alone = load_betas(data, rois="brain", standardize="zscore")
        assert np.array_equal(lazy.data.compute(), alone.data)
        # What a file holds when it is computed counts, not what was computed before.
        nib.save(noise(4, 99), data.images[0])
        again = load_betas(data, rois="brain", as_dask=True, standardize="zscore")
        assert not np.array_equal(again.data.compute(), alone.data)
