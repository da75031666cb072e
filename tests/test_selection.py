"""Tests of the arguments of `fetch_laion_fmri`: hints, and the query that is kept."""

from __future__ import annotations

import json
import threading

import pytest

from laion_fmri_fetchers import (
    GreaterThan,
    NotNull,
    ResultFilter,
    fetch_laion_captions,
    fetch_laion_embeddings,
    fetch_laion_fmri,
    fetch_laion_fmri_ids,
    fetch_laion_stimuli,
    get_subjects,
)
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.query import basic_image_terms

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
        ({"offline": True}, 'mode="offline"'),
        ({"overwrite": True}, 'mode="overwrite"'),
        ({"n_jobs": 4}, "n_connections="),
        ({"ses": 1}, "sessions="),
        ({"roi": "FFA1"}, "rois="),
        ({"category": "face"}, "rois="),
        ({"output_dir": "x"}, "data_dir="),
        ({"include_stimuli": True}, r"fetch_laion_stimuli\(\)"),
        ({"include_raw": True}, 'image_type="raw_bold"'),
        ({"local_files_only": True}, 'mode="offline"'),
        ({"data_home": "x"}, "data_dir="),
        ({"n_subjects": 3}, "subjects="),
        ({"image_terms": {"image_typ": "betas"}}, "did you mean 'image_type'"),
        ({"image_terms": {"n_reps": 12}}, r"trial_filter=\{'n_reps': 12\}"),
        ({"image_terms": ResultFilter()}, "dict of terms.*image_filter="),
    ],
)
def test_arguments_of_other_packages(argument, hint):
    (name,) = argument
    with pytest.raises(InvalidQueryError, match=hint) as error:
        fetch_laion_fmri(**argument)
    assert name in str(error.value) or name == "image_terms"


@pytest.mark.parametrize(
    ("call", "argument", "hint"),
    [
        (fetch_laion_captions, {"n_jobs": 2}, "n_connections="),
        (fetch_laion_stimuli, {"image_names": ["a.jpg"]}, "labels="),
        (fetch_laion_embeddings, {"model": "CLIP"}, "models="),
        (fetch_laion_embeddings, {"labelz": "a.jpg"}, "did you mean 'labels'"),
        (fetch_laion_fmri_ids, {"ids": ["a"]}, "image_ids="),
        (get_subjects, {"mode": "offline"}, "LAION_FMRI_OFFLINE=1"),
        (get_subjects, {"n_jobs": 2}, "has no argument 'n_jobs'"),
    ],
)
def test_arguments_of_other_packages_in_all_calls(call, argument, hint, no_network):
    (name,) = argument
    with pytest.raises(InvalidQueryError, match=hint) as error:
        call(**argument)
    assert repr(name) in str(error.value)


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
