"""Tests of the arguments of `fetch_laion_fmri`: hints, and the query that is kept."""

from __future__ import annotations

import json
import threading

import pytest

from laion_fmri_fetchers import (
    GreaterThan,
    NotNull,
    ResultFilter,
    fetch_laion_betas,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    fetch_laion_fmri_ids,
    fetch_laion_splits,
    fetch_laion_surfaces,
    get_rois,
    get_subjects,
    load_betas,
    pack_betas,
)
from laion_fmri_fetchers.exceptions import DownloadError, InvalidQueryError
from laion_fmri_fetchers.layout.trees import STIMULUS_TABLE
from laion_fmri_fetchers.query import basic_image_terms
from laion_fmri_fetchers.query.selection import Selection

MAPS = "subject_noise_ceiling"


def types_of(data):
    return {meta["image_type"] for meta in data.images_meta}


@pytest.fixture
def fetch(cached, no_network):
    return lambda *args, **options: fetch_laion_fmri(
        *args, **{"mode": "offline", "verbose": 0, **options}
    )


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ({"standardize": "zscore"}, "argument of fetch_laion_betas, load_betas$"),
        ({"n_jobs": 4}, "argument of fetch_laion_betas, load_betas, pack_betas"),
        ({"n_reps": 12}, r"field of trials: trial_filter=\{'n_reps': 12\}$"),
        ({"subject": 1}, "use subjects="),
        ({"session": 1}, "use sessions="),
        ({"roi": "FFA1"}, "use rois="),
        ({"maximages": 1}, "did you mean 'max_images'"),
        ({"image_terms": {"image_typ": "betas"}}, "did you mean 'image_type'"),
        ({"image_terms": {"n_reps": 12}}, r"trial_filter=\{'n_reps': 12\}"),
        ({"image_terms": ResultFilter()}, "dict of terms.*image_filter="),
    ],
)
def test_an_argument_that_is_none_gets_its_place(argument, hint, no_network):
    (name,) = argument
    with pytest.raises(InvalidQueryError, match=hint) as error:
        fetch_laion_fmri(**argument)
    assert name in str(error.value) or name == "image_terms"


@pytest.mark.parametrize(
    ("call", "argument", "hint"),
    [
        (fetch_laion_betas, {"image_filter": {}}, "argument of fetch_laion_fmri$"),
        (fetch_laion_betas, {"n_reps": 12}, r"trial_filter=\{'n_reps': 12\}$"),
        (fetch_laion_betas, {"subject": 1}, "use subjects="),
        (fetch_laion_betas, {"label": "a.jpg"}, "use labels="),
        (fetch_laion_embeddings, {"model": "CLIP"}, "use models="),
        (fetch_laion_embeddings, {"labelz": "a.jpg"}, "did you mean 'labels'"),
        (fetch_laion_fmri_ids, {"rois": ["a"]}, "argument of .*fetch_laion_fmri"),
        (fetch_laion_splits, {"split": "tau"}, "has no argument 'split'"),
        (fetch_laion_surfaces, {"trial_filter": {}}, "argument of fetch_laion_betas"),
        (get_rois, {"subject": 1}, "use subjects="),
        (get_subjects, {"mode": "offline"}, "argument of .*fetch_laion_betas"),
        (load_betas, {"trial_filter": {}}, "fetch_laion_betas, fetch_laion_fmri$"),
        (load_betas, {"n_reps": 12}, r"\{'n_reps': 12\} of fetch_laion_fmri$"),
        (pack_betas, {"labels": ["a.jpg"]}, "argument of .*load_betas"),
    ],
)
def test_an_argument_of_another_call_is_named(call, argument, hint, no_network):
    (name,) = argument
    with pytest.raises(InvalidQueryError, match=hint) as error:
        call(**argument)
    assert f"{call.__name__} has no argument {name!r}" in str(error.value)


def test_a_field_of_trials_among_those_of_images(no_network):
    with pytest.raises(InvalidQueryError, match="'n_reps'.*use trial_filter"):
        fetch_laion_fmri(image_filter={"n_reps": 12})


def test_image_terms_in_one_dict(fetch):
    data = fetch(1, rois=None, image_terms={"image_type": MAPS})
    assert types_of(data) == {MAPS}
    assert data.images == fetch(1, rois=None, image_type=MAPS).images
    both = fetch(1, rois=None, image_terms=basic_image_terms(), stat="effect")
    assert both.images == fetch(1, rois=None).images


def test_rois_as_people_write_them(fetch):
    options = {"max_images": 0}
    assert fetch(1, "ffa1", **options).rois == fetch(1, "FFA1", **options).rois
    assert fetch(1, "Face", **options).rois == fetch(1, "face", **options).rois
    both = fetch(1, ["V1d", "V1v"], **options)
    assert {meta["roi"] for meta in both.rois_meta} == {"V1d", "V1v"}
    assert fetch(1, "V1", **options).rois == both.rois
    assert fetch(1, "V1", **options).query["rois"] == ["V1d", "V1v"]
    for nothing in (None, "none", "None", (), []):
        assert fetch(1, nothing, **options).rois == []


def test_names_may_be_an_iterator(fetch):
    data = fetch(1, (name for name in ("FFA1", "PPA")), max_images=0)
    assert {meta["roi"] for meta in data.rois_meta} == {"FFA1", "PPA"}


def test_an_iterator_as_a_term(fetch):
    types = [MAPS, "betas"]
    data = fetch(1, rois=None, image_type=(name for name in types))
    assert types_of(data) == set(types)
    data = fetch(1, rois=None, image_type=dict.fromkeys("a", MAPS).values())
    assert types_of(data) == {MAPS}


def test_a_mistyped_image_type_in_any_form():
    for term in ("beta", ["beta"], {"beta"}, (name for name in ["beta"])):
        with pytest.raises(InvalidQueryError, match="did you mean 'betas'"):
            fetch_laion_fmri(image_type=term)


def test_the_query_does_not_change_with_the_callers_filter(fetch):
    asked = ResultFilter(n_reps=GreaterThan(4))
    data = fetch(1, rois=None, trial_filter=asked)
    asked["n_reps"] = 4
    assert data.query["trial_filter"] == {"n_reps": {"GreaterThan": [4]}}
    query = json.loads(json.dumps(data.query))
    assert fetch(**query).trials.equals(data.trials)


def test_a_query_with_a_function_is_refused(fetch):
    data = fetch(1, rois=None, trial_filter=bool)
    with pytest.raises(InvalidQueryError, match=r"trial_filter.*function bool alone"):
        fetch(**data.query)


def is_map(meta):
    return meta["image_type"] == MAPS


def test_functions_see_the_default_type_alone_and_the_warning_says_so(fetch):
    with pytest.warns(UserWarning, match=r"'betas' alone.*image_type=NotNull\(\)"):
        data = fetch(1, rois=None, image_filter=is_map)
    assert data.images == []
    data = fetch(1, rois=None, image_filter=is_map, image_type=NotNull())
    assert types_of(data) == {MAPS}


class Counter:
    """A filter function that cannot be copied, as it holds a lock."""

    def __init__(self):
        self.lock, self.n_asked = threading.Lock(), 0

    def take(self, record):
        with self.lock:
            self.n_asked += 1
        return record["session"] == "ses-01"


def test_methods_of_objects_are_asked_themselves(fetch):
    counter = Counter()
    data = fetch(1, rois=None, image_filter=counter.take)
    assert [meta["session"] for meta in data.images_meta] == ["ses-01"]
    assert counter.n_asked > 0
    counter = Counter()
    fetch(1, "FFA1", roi_filter=lambda mask: counter.take(mask) or True, max_images=0)
    assert counter.n_asked > 0


def test_null_is_in_no_range(fetch):
    """The subject's files have no session, and are not before any."""
    terms = {
        "session": GreaterThan("A"),
        "image_type": ["betas", MAPS],
    }
    data = fetch(1, rois=None, image_filter=terms)
    assert data.images
    assert all(meta["session"] is not None for meta in data.images_meta)


def test_advice_names_only_arguments_that_a_call_has(server, data_dir):
    server.faults[STIMULUS_TABLE] = (404, {}, b"")
    with pytest.raises(DownloadError, match="same call resumes") as error:
        fetch_laion_splits(verbose=0)
    assert "allow_missing" not in str(error.value)


@pytest.mark.parametrize(
    ("terms", "is_updated"),
    [
        ({}, True),
        ({"outdated": True}, False),
        ({"last_modified": GreaterThan("2026")}, False),
        ({"last_modified": GreaterThan("2024"), "outdated": False}, True),
    ],
)
def test_terms_on_versions_hold_for_files_that_go_with_images(terms, is_updated):
    record = {"outdated": False, "last_modified": "2025-06-02T00:00:00.000Z"}
    assert Selection(image_filter=ResultFilter(terms)).is_updated(record) == is_updated
