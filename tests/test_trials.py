"""Trials and what belongs to them: chosen, reshaped by a user, or cut in part."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from nilearn.maskers import NiftiMasker

from laion_fmri_fetchers import (
    LaionDataset,
    align,
    fetch_laion_betas,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    load_betas,
    make_report,
    normalized_score,
    pack_betas,
    plot_trials,
    select_trials,
    shared_labels,
)
from laion_fmri_fetchers.exceptions import InvalidQueryError


@pytest.fixture
def data(cached, no_network):
    return fetch_laion_fmri("sub-01", "face", mode="offline", verbose=0)


@pytest.fixture
def several(cached, no_network):
    return fetch_laion_fmri("all", "face", mode="offline", verbose=0)


def changed(data, **keys):
    copied = data.copy()
    copied.update(keys)
    return copied


def load(data, **options):
    return load_betas(data, **{"rois": "FFA1", "verbose": 0, **options})


# select_trials


def test_masker_gives_the_rows_of_selected_trials(several):
    trials = several.trials.sample(frac=0.3, random_state=0)
    trials = trials[
        ~((trials["subject"] == "sub-01") & (trials["session"] == "ses-01"))
    ]
    part = select_trials(several, trials)
    assert len(part.images) == len(several.images) - 1
    assert [meta["absolute_path"] for meta in part.images_meta] == part.images
    assert set(part.trials.index) == set(range(len(trials)))
    masker = NiftiMasker(part.brain_masks["sub-03"], standardize=None).fit()
    for i, (file, volumes) in enumerate(
        zip(part.images, part.sample_masks, strict=True)
    ):
        own = part.trials[part.trials["image_index"] == i]
        assert own["beta_index"].tolist() == volumes.tolist() == sorted(volumes)
        assert {(m["subject"], m["session"]) for m in [part.images_meta[i]]} == {
            *zip(own["subject"], own["session"], strict=True)
        }
        if part.images_meta[i]["subject"] == "sub-03":
            rows = masker.transform(file, sample_mask=volumes)
            betas = load(select_trials(part, own), rois="brain")
            assert np.allclose(rows, betas.data)
    keys = ["subject", "session", "beta_index", "label", "repetition"]
    expected = trials.sort_values(keys[:3])[keys].reset_index(drop=True)
    pd.testing.assert_frame_equal(part.trials[keys], expected)
    assert part.rois == several.rois
    assert len(several.trials) > len(several.sample_masks[0]) > 0


@pytest.mark.parametrize(
    "kind", ["index", "category", "Int64", "float", "int8", "Bunch"]
)
def test_selected_trials_are_found_in_tables_of_other_types(data, kind):
    chosen = data.trials.iloc[::5]
    given = {
        "index": chosen.set_index(["label", "beta_index"]),
        "category": chosen.astype({"session": "category", "label": "string"}),
        "Bunch": {"trials": chosen},
    }.get(kind)
    if given is None:
        given = chosen.astype({"beta_index": kind})
    part = select_trials(data, given)
    assert part.trials["label"].tolist() == chosen["label"].tolist()


def test_files_that_have_no_trials_stay_with_selected_ones(cached, no_network):
    types = ["betas", "subject_noise_ceiling"]
    data = fetch_laion_fmri(1, None, image_type=types, mode="offline", verbose=0)
    trials = data.trials[data.trials["session"] == "ses-02"]
    part = select_trials(data, trials.iloc[:4])
    kinds = [meta["image_type"] for meta in part.images_meta]
    assert sorted(kinds) == ["betas", *["subject_noise_ceiling"] * 3]
    assert (part.trials["image_index"] == kinds.index("betas")).all()
    for kind, volumes in zip(kinds, part.sample_masks, strict=True):
        assert (volumes is not None) == (kind == "betas")


def other_label(trials):
    return trials.assign(label=trials["label"].to_numpy()[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[:2]]), "2 trials twice"),
        (
            lambda t: t.assign(beta_index=t["beta_index"] + 7000),
            "that data.trials lacks",
        ),
        (lambda t: t.assign(subject="sub-03"), "that data.trials lacks"),
        (lambda t: t.assign(session=pd.NA), "that data.trials lacks|twice"),
        (other_label, "that data.trials lacks"),
        (lambda t: t.groupby("label").max(), "that data.trials lacks|twice"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t["n_reps"] == 12, "is a Series"),
        (lambda t: t[["label"]], "'subject', 'session', 'beta_index'"),
        (lambda t: "all", "is a str"),
    ],
)
def test_rows_that_are_not_those_of_data_are_refused(data, change, message):
    with pytest.raises(InvalidQueryError, match=message):
        select_trials(data, change(data.trials))


# A Bunch of which a part was cut or put in another order


def cut(**keys):
    return lambda data: {key: data[key][part] for key, part in keys.items()}


FIRST, REVERSED = slice(1), slice(None, None, -1)
CHANGES = {
    "images cut": cut(images=FIRST),
    "images and records cut": cut(images=FIRST, images_meta=FIRST),
    "first image left out, other trials": lambda data: {
        "images": data.images[1:],
        "images_meta": data.images_meta[1:],
        "trials": data.trials[data.trials["image_index"] < len(data.images) - 1],
    },
    "images reversed": cut(images=REVERSED),
    "images and records reversed": cut(images=REVERSED, images_meta=REVERSED),
    "masks cut": cut(rois=FIRST),
    "masks reversed": cut(rois=REVERSED),
    "subject by number": lambda data: {"trials": data.trials.assign(subject=1)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_bunch_cut_in_part_is_refused_by_all(data, name):
    part = changed(data, **CHANGES[name](data))
    trials = data.trials
    for call in (
        load,
        lambda data: load(data, average_repeats=True),
        lambda data: pack_betas(data, verbose=0),
        lambda data: select_trials(data, trials),
        make_report,
    ):
        with pytest.raises(InvalidQueryError, match=r"select_trials\(data, trials\)"):
            call(part)
    assert load(data).data.size


def test_a_copy_is_a_bunch_whose_trials_change_alone(data):
    copied = data.copy()
    copied.trials = copied.trials.iloc[:3]
    assert len(load(copied).data) == 3
    assert len(load(data).data) == len(data.trials) > 3


@pytest.mark.parametrize("index", [-1, 1e6])
def test_volumes_that_are_not_there_are_refused(data, index):
    data.trials.loc[2, "beta_index"] = int(index)
    with pytest.raises(InvalidQueryError, match="beta_index"):
        load(data)


def test_trials_under_another_label_are_told(data):
    first = data.trials.groupby("label").first()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(changed(data, trials=first)).trials["label"].is_unique
    data.trials = data.trials.groupby("label").max()  # columns of different trials
    with pytest.warns(UserWarning, match="not those of the trial table"):
        load(data)


def test_a_trial_given_twice_is_no_repeat(data):
    data.trials = pd.concat([data.trials, data.trials.iloc[:3]])
    assert len(load(data).data) == len(data.trials)
    with pytest.raises(InvalidQueryError, match="3 trials twice"):
        load(data, average_repeats=True)


def test_averages_need_labels(data):
    data.trials.loc[4, "label"] = None
    with pytest.raises(InvalidQueryError, match="label None"):
        load(data, average_repeats=True)


# Tables that a user reshaped


WORKING = {
    "index": lambda t: t.set_index("label"),
    "indices": lambda t: t.set_index(["subject", "session", "label"]),
    "first": lambda t: t.groupby("label").first(),
    "small": lambda t: t.astype({"beta_index": "int8", "image_index": "uint8"}),
    "nullable": lambda t: t.convert_dtypes(),
    "float": lambda t: t.astype({"beta_index": float, "image_index": float}),
    "categories": lambda t: t.astype(
        dict.fromkeys(("subject", "session", "label"), "category")
    ),
    "text": lambda t: t.astype({"label": "string", "subject": "string"}),
}
LACKING = {
    "three columns": (lambda t: t[["session", "beta_index", "image_index"]], "'label'"),
    "without labels": (lambda t: t.drop(columns=["label", "subject"]), "'label'"),
    "a dict": (lambda t: t.to_dict("list"), "dict"),
    "records": (lambda t: t.to_dict("records"), "list|label {"),
    "an array": (lambda t: t.to_numpy(), "ndarray|label "),
    "two columns": (
        lambda t: pd.concat([t, t["label"]], axis=1),
        "two columns 'label'",
    ),
}


@pytest.fixture
def clip(cached, server):
    return fetch_laion_embeddings("CLIP", verbose=0)


def test_reshaped_tables_give_the_same_rows(clip):
    data = fetch_laion_fmri("sub-01", "face", verbose=0)
    for name, reshape in WORKING.items():
        table = reshape(data.trials)
        plain = table if "label" in table else table.reset_index()
        given = data.copy()
        given.trials = table
        betas = load(given)
        expected = load(changed(data, trials=plain.reset_index(drop=True)))
        assert np.array_equal(betas.data, expected.data), name
        assert betas.trials["label"].tolist() == plain["label"].tolist(), name
        assert np.array_equal(align(table, clip), align(plain["label"], clip)), name
        assert shared_labels(table) == sorted(plain["label"].unique()), name
        betas.trials = betas.trials.set_index(["label", "subject"])
        item = LaionDataset(betas, embeddings=clip)[0]
        assert (item["label"], item["subject"]) == (plain["label"].iloc[0], "sub-01")
        assert plot_trials(given).patches, name


@pytest.mark.parametrize("name", LACKING)
def test_tables_that_lack_something_say_what(data, name):
    change, message = LACKING[name]
    table = change(data.trials)
    for call in (
        load,
        lambda data: load(data, labels=["a.jpg"]),
        lambda data: select_trials(data, table),
        lambda data: LaionDataset(load(data)),
        make_report,
    ):
        with pytest.raises(InvalidQueryError):
            call(changed(data, trials=table))
    with pytest.raises(InvalidQueryError, match=message):
        load(changed(data, trials=table))
    for call in (shared_labels, lambda table: align(table, {"image_names": []})):
        with pytest.raises(InvalidQueryError):
            call(table)


def test_plots_of_tables_that_lack_something(data):
    for change in (lambda t: t[["label"]], lambda t: t["label"], lambda t: None):
        data.trials = change(data.trials)
        with pytest.raises(InvalidQueryError, match=r"data\.trials is a"):
            plot_trials(data)


# Betas of which a part was cut


def test_betas_of_which_a_part_was_cut(data, tmp_path):
    betas = load(data, average_repeats=True)
    rows = betas.copy()
    rows.trials = betas.trials.iloc[:5]
    for call in (
        lambda: rows.noise_ceiling("averaged"),
        lambda: rows.save(tmp_path / "betas.npz"),
        lambda: LaionDataset(rows),
        lambda: align(rows, {"image_names": [], "captions": None}),
    ):
        with pytest.raises(InvalidQueryError, match="one row per trial"):
            call()
    rows.data = betas.data[:5]
    rows.noise_ceiling("averaged")
    rows.save(tmp_path / "rows.npz")
    groups = load_betas(tmp_path / "rows.npz").groups["label"]
    assert list(groups) == list(rows.trials["label"])
    columns = betas.copy()
    columns.data = betas.data[:, 1:]
    with pytest.raises(InvalidQueryError, match="mask_img is of 4 voxels"):
        columns.save(tmp_path / "betas.npz")
    columns = betas.copy()
    columns.noise_ceilings = {k: v[1:] for k, v in betas.noise_ceilings.items()}
    with pytest.raises(
        InvalidQueryError, match=r"noise_ceilings\['.*'\] is of 3 voxels"
    ):
        columns.save(tmp_path / "betas.npz")
    assert not list(tmp_path.glob("betas.npz"))


@pytest.mark.parametrize("key", ["embeddings", "valid", "image_names"])
def test_embeddings_of_which_a_part_was_cut(clip, key):
    betas = load(fetch_laion_fmri("sub-01", "face", verbose=0))
    clip[key] = (
        clip[key][1:] if key == "image_names" else {"CLIP": clip[key]["CLIP"][1:]}
    )
    for call in (
        lambda: align(betas, clip),
        lambda: LaionDataset(betas, embeddings=clip),
    ):
        with pytest.raises(InvalidQueryError, match="image_names|lack"):
            call()


# Labels and units


def test_repeated_labels_are_told(data):
    first, second = data.trials["label"].unique()[:2]
    with pytest.warns(UserWarning, match="labels has 3 names of 2 images"):
        betas = load(data, labels=[second, first, second])
    assert list(betas.trials["label"].unique()) == [second, first]


def test_an_unknown_label_is_answered_alike_by_both(data):
    label = data.trials["label"][0]
    for call in (
        lambda labels: load(data, labels=labels),
        lambda labels: fetch_laion_betas(1, "FFA1", labels=labels, mode="offline"),
    ):
        for labels in ([label, label[:-5] + "?.jpg"], label[:-5] + "?.jpg"):
            with pytest.raises(
                InvalidQueryError, match=f"did you mean {re.escape(repr(label))}"
            ):
                call(labels)
        with pytest.raises(InvalidQueryError, match="labels is"):
            call(3)


def test_explained_variance_in_percent_is_told():
    with pytest.warns(UserWarning, match="not in percent"):
        normalized_score([12.0, 0.5], [40, 50])
    with pytest.warns(UserWarning, match="in percent"):
        normalized_score([0.1, 0.2], [0.4, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalized_score([0.1, -0.2, np.nan, 1.0], [40, 50, 0.5, np.nan])
    with pytest.raises(InvalidQueryError, match="one value per voxel"):
        normalized_score(np.full((3, 1), 0.1), np.full(3, 40))


@pytest.mark.parametrize("n_repeats", [0.25, [True, True], [3, 0.5]])
def test_repeats_are_numbers_from_one_on(data, n_repeats):
    with pytest.raises(InvalidQueryError, match="n_repeats"):
        load(data).noise_ceiling(n_repeats)


def test_a_resolution_in_centimetres_is_told(cached, no_network):
    with pytest.warns(UserWarning, match=r"did you mean 2\?"):
        fetch_laion_fmri(
            1, None, 1, resolution=0.2, mode="offline", dry_run=True, verbose=0
        )
