"""Trials and what belongs to them: chosen, reshaped by a user, or cut in part."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from calls import fetch, no_warning
from nilearn.maskers import NiftiMasker

from laion_fmri_fetchers import (
    LaionDataset,
    align,
    fetch_laion_betas,
    fetch_laion_embeddings,
    load_betas,
    make_report,
    normalized_score,
    pack_betas,
    plot_trials,
    select_trials,
    shared_labels,
)
from laion_fmri_fetchers.exceptions import InvalidQueryError

FIRST, REVERSED = slice(1), slice(None, None, -1)


@pytest.fixture
def data(on_disk):
    return fetch("sub-01", "face")


@pytest.fixture(scope="module")
def embeddings(shared_server, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAION_FMRI_BUCKET_URL", shared_server.url)
        patch.setenv("LAION_FMRI_LICENSE", "I AGREE")
        folder = tmp_path_factory.mktemp("embeddings")
        return fetch_laion_embeddings("CLIP", data_dir=folder, verbose=0)


def changed(data, /, **keys):
    copied = data.copy()
    copied.update(keys)
    return copied


def load(data, **options):
    return load_betas(data, **{"rois": "FFA1", "verbose": 0, **options})


# --- select_trials --------------------------------------------------------------------


def test_masker_gives_the_rows_of_selected_trials(on_disk):
    data = fetch("all", "face")
    trials = data.trials.sample(frac=0.3, random_state=0)
    trials = trials[trials["subject"].ne("sub-01") | trials["session"].ne("ses-01")]
    part = select_trials(data, trials)
    assert len(part.images) == len(data.images) - 1
    assert part.rois == data.rois
    masker = NiftiMasker(part.brain_masks["sub-03"], standardize=None).fit()
    for i, (meta, volumes) in enumerate(
        zip(part.images_meta, part.sample_masks, strict=True)
    ):
        own = part.trials[part.trials["image_index"] == i]
        assert part.images[i] == meta["absolute_path"]
        assert own["beta_index"].tolist() == volumes.tolist() == sorted(volumes)
        assert {*own["subject"], *own["session"]} == {meta["subject"], meta["session"]}
        if meta["subject"] == "sub-03":
            rows = masker.transform(part.images[i], sample_mask=volumes)
            betas = load(select_trials(part, own), rois="brain")
            assert np.allclose(rows, betas.data)
    keys = ["subject", "session", "beta_index", "label", "repetition"]
    expected = trials.sort_values(keys[:3])[keys].reset_index(drop=True)
    pd.testing.assert_frame_equal(part.trials[keys], expected)


def test_files_that_have_no_trials_stay_with_selected_ones(on_disk):
    data = fetch(1, None, image_type=["betas", "subject_noise_ceiling"])
    trials = data.trials[data.trials["session"] == "ses-02"]
    part = select_trials(data, trials.iloc[:4])
    kinds = [meta["image_type"] for meta in part.images_meta]
    assert sorted(kinds) == ["betas", *["subject_noise_ceiling"] * 3]
    assert (part.trials["image_index"] == kinds.index("betas")).all()
    for kind, volumes in zip(kinds, part.sample_masks, strict=True):
        assert (volumes is not None) == (kind == "betas")


UNKNOWN = "that data.trials lacks"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[:2]]), "2 trials twice"),
        (lambda t: t.assign(beta_index=t["beta_index"] + 7000), UNKNOWN),
        (lambda t: t.assign(subject="sub-03"), UNKNOWN),
        (lambda t: t.assign(session=pd.NA), f"{UNKNOWN}|twice"),
        (lambda t: t.assign(label=t["label"].to_numpy()[::-1]), UNKNOWN),
        (lambda t: t.groupby("label").max(), f"{UNKNOWN}|twice"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t["n_reps"] == 12, "is a Series"),
        (lambda t: t[["label"]], "'subject', 'session', 'beta_index'"),
        (lambda t: "all", "is a str"),
    ],
)
def test_rows_that_are_not_those_of_data_are_refused(data, change, message):
    with pytest.raises(InvalidQueryError, match=message):
        select_trials(data, change(data.trials))


# --- A Bunch of which a part was cut or put in another order --------------------------


def cut(**keys):
    return lambda data: {key: data[key][part] for key, part in keys.items()}


@pytest.mark.parametrize(
    "change",
    [
        cut(images=FIRST),
        cut(images=FIRST, images_meta=FIRST),
        lambda data: {
            **cut(images=slice(1, None), images_meta=slice(1, None))(data),
            "trials": data.trials[data.trials["image_index"] < len(data.images) - 1],
        },
        cut(images=REVERSED),
        cut(images=REVERSED, images_meta=REVERSED),
        cut(rois=FIRST),
        cut(rois=REVERSED),
        lambda data: {"trials": data.trials.assign(subject=1)},
    ],
)
def test_a_bunch_cut_in_part_is_refused_by_all(data, change):
    part = changed(data, **change(data))
    for call in (
        load,
        lambda data: load(data, average_repeats=True),
        lambda part: pack_betas(part, verbose=0),
        lambda part: select_trials(part, data.trials),
        make_report,
    ):
        with pytest.raises(InvalidQueryError, match=r"select_trials\(data, trials\)"):
            call(part)


@pytest.mark.parametrize("index", [-1, 1e6])
def test_volumes_that_are_not_there_are_refused(data, index):
    data.trials.loc[2, "beta_index"] = int(index)
    with pytest.raises(InvalidQueryError, match="beta_index"):
        load(data)


def test_trials_under_another_label_are_told(data):
    first = data.trials.groupby("label").first()
    with no_warning():
        assert load(changed(data, trials=first)).trials["label"].is_unique
    data.trials = data.trials.groupby("label").max()  # columns of different trials
    with pytest.warns(UserWarning, match="not those of the trial table"):
        load(data)


def test_averages_need_each_trial_once_and_its_label(data):
    twice = changed(data, trials=pd.concat([data.trials, data.trials.iloc[:3]]))
    assert len(load(twice).data) == len(twice.trials)
    with pytest.raises(InvalidQueryError, match="3 trials twice"):
        load(twice, average_repeats=True)
    data.trials.loc[4, "label"] = None
    with pytest.raises(InvalidQueryError, match="label None"):
        load(data, average_repeats=True)


# --- Tables that a user reshaped ------------------------------------------------------

TEXTS = ("subject", "session", "label")


@pytest.mark.parametrize(
    "reshape",
    [
        lambda t: t.set_index("label"),
        lambda t: t.set_index([*TEXTS]),
        lambda t: t.groupby("label").first(),
        lambda t: t.astype({"beta_index": "int8", "image_index": "uint8"}),
        lambda t: t.convert_dtypes(),
        lambda t: t.astype({"beta_index": float, "image_index": float}),
        lambda t: t.astype(dict.fromkeys(TEXTS, "category")),
        lambda t: t.astype({"label": "string", "subject": "string"}),
    ],
    ids="index indices first small nullable float categories text".split(),
)
def test_reshaped_tables_give_the_same_rows(data, embeddings, reshape):
    table = reshape(data.trials)
    plain = table if "label" in table else table.reset_index()
    given = changed(data, trials=table)
    betas = load(given)
    expected = load(changed(data, trials=plain.reset_index(drop=True)))
    assert np.array_equal(betas.data, expected.data)
    assert betas.trials["label"].tolist() == plain["label"].tolist()
    of_labels = align(plain["label"], embeddings)
    assert np.array_equal(align(table, embeddings), of_labels)
    assert shared_labels(table) == sorted(plain["label"].unique())
    chosen = select_trials(data, table.iloc[::5])
    assert sorted(chosen.trials["label"]) == sorted(plain["label"][::5])
    betas.trials = betas.trials.set_index(["label", "subject"])
    item = LaionDataset(betas, embeddings=embeddings)[0]
    assert (item["label"], item["subject"]) == (plain["label"].iloc[0], "sub-01")
    assert plot_trials(given).patches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[["session", "beta_index", "image_index"]], "'label'"),
        (lambda t: t.drop(columns=["label", "subject"]), "'label'"),
        (lambda t: t.to_dict("list"), "dict"),
        (lambda t: t.to_dict("records"), "list|label {"),
        (lambda t: t.to_numpy(), "ndarray|label "),
        (lambda t: pd.concat([t, t["label"]], axis=1), "two columns 'label'"),
    ],
    ids=["three", "no labels", "dict", "records", "array", "twice"],
)
def test_tables_that_lack_something_say_what(data, change, message):
    table = change(data.trials)
    part = changed(data, trials=table)
    with pytest.raises(InvalidQueryError, match=message):
        load(part)
    for call in (
        lambda: load(part, labels=["a.jpg"]),
        lambda: select_trials(part, table),
        lambda: make_report(part),
        lambda: plot_trials(part),
        lambda: shared_labels(table),
        lambda: align(table, {"image_names": []}),
    ):
        with pytest.raises(InvalidQueryError):
            call()


# --- Betas and embeddings of which a part was cut -------------------------------------


def test_betas_of_which_a_part_was_cut(data, tmp_path):
    betas = load(data, average_repeats=True)
    rows = changed(betas, trials=betas.trials.iloc[:5])
    ceilings = {k: v[1:] for k, v in betas.noise_ceilings.items()}
    for part, words in (
        (rows, "one row per trial"),
        (changed(betas, data=betas.data[:, 1:]), "mask_img is of 4 voxels"),
        (changed(betas, noise_ceilings=ceilings), r"ceilings\['.*'\] is of 3 voxels"),
    ):
        with pytest.raises(InvalidQueryError, match=words):
            part.save(tmp_path / "betas.npz")
    assert not (tmp_path / "betas.npz").exists()
    for call in (
        lambda: rows.noise_ceiling("averaged"),
        lambda: LaionDataset(rows),
        lambda: align(rows, {"image_names": [], "captions": None}),
    ):
        with pytest.raises(InvalidQueryError, match="one row per trial"):
            call()
    rows.data = betas.data[:5]
    rows.save(tmp_path / "rows.npz")
    groups = load_betas(tmp_path / "rows.npz").groups["label"]
    assert list(groups) == list(rows.trials["label"])


@pytest.mark.parametrize("key", ["embeddings", "valid", "image_names"])
def test_embeddings_of_which_a_part_was_cut(data, embeddings, key):
    betas, whole = load(data), embeddings[key]
    part = whole[1:] if key == "image_names" else {"CLIP": whole["CLIP"][1:]}
    part = changed(embeddings, **{key: part})
    for call in (align, lambda *both: LaionDataset(both[0], embeddings=both[1])):
        with pytest.raises(InvalidQueryError, match="image_names|lack"):
            call(betas, part)


# --- Labels and units -----------------------------------------------------------------


def test_repeated_labels_are_told(data):
    first, second = data.trials["label"].unique()[:2]
    with pytest.warns(UserWarning, match="labels has 3 names of 2 images"):
        betas = load(data, labels=[second, first, second])
    assert list(betas.trials["label"].unique()) == [second, first]


def test_an_unknown_label_is_answered_alike_by_both(data):
    label = data.trials["label"][0]
    meant = f"did you mean {re.escape(repr(label))}"
    for call in (
        lambda labels: load(data, labels=labels),
        lambda labels: fetch_laion_betas(1, "FFA1", labels=labels),
    ):
        for labels in ([label, label[:-5] + "?.jpg"], label[:-5] + "?.jpg"):
            with pytest.raises(InvalidQueryError, match=meant):
                call(labels)
        with pytest.raises(InvalidQueryError, match="labels is"):
            call(3)


def test_explained_variance_in_percent_is_told():
    with pytest.warns(UserWarning, match="not in percent"):
        normalized_score([12.0, 0.5], [40, 50])
    with pytest.warns(UserWarning, match="in percent"):
        normalized_score([0.1, 0.2], [0.4, 0.5])
    with no_warning():
        normalized_score([0.1, -0.2, np.nan, 1.0], [40, 50, 0.5, np.nan])
    with pytest.raises(InvalidQueryError, match="one value per voxel"):
        normalized_score(np.full((3, 1), 0.1), np.full(3, 40))
