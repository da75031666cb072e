"""Tests of the special values, of `ResultFilter` and of its masks."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import pickle
import re
import threading
from collections import deque
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nilearn.datasets import neurovault

import laion_fmri_fetchers as filters
from laion_fmri_fetchers import (
    Contains,
    GreaterOrEqual,
    GreaterThan,
    IsIn,
    IsNull,
    LessOrEqual,
    LessThan,
    NotContains,
    NotEqual,
    NotIn,
    NotNull,
    Pattern,
    ResultFilter,
)
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.query.filters import admits, as_filter, fields

try:
    from nilearn.datasets.tests import test_neurovault as nilearn_tests
except ImportError:
    nilearn_tests = None

NANS = [float("nan"), np.float32("nan"), Decimal("NaN"), Decimal("sNaN")]
NANS += [np.nan, pd.NaT, pd.NA, np.datetime64("NaT"), np.timedelta64("NaT")]
NULLS = [None, *NANS]
ORDER = ["GreaterOrEqual", "GreaterThan", "LessOrEqual", "LessThan"]
SEVERAL = ["IsIn", "NotIn", "Contains", "NotContains"]
NAMES = ["IsNull", "NotNull", "NotEqual", *ORDER, *SEVERAL, "Pattern"]

quick = partial(
    settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


# --------------------------------------------------------------------------------------
# nilearn's own tests


@pytest.mark.skipif(nilearn_tests is None, reason="this nilearn ships no tests")
@pytest.mark.parametrize(
    "name",
    [
        "test_is_null",
        "test_not_null",
        "test_not_equal",
        "test_order_comp",
        "test_is_in",
        "test_not_in",
        "test_contains",
        "test_not_contains",
        "test_pattern",
        "test_result_filter",
        "test_result_filter_combinations",
    ],
)
def test_nilearns_own_tests_pass(name, monkeypatch):
    for ours in (*NAMES, "ResultFilter"):
        monkeypatch.setattr(neurovault, ours, getattr(filters, ours))
    # The one difference: ours print their terms, nilearn's the name of the class.
    monkeypatch.setattr(ResultFilter, "__str__", lambda _: "ResultFilter")
    getattr(nilearn_tests, name)()


# --------------------------------------------------------------------------------------
# What hypothesis draws

texts = st.text("aAb01-. ", max_size=4) | st.sampled_from(["ses-01", "None", "nan"])
integers = st.integers(-3, 13) | st.sampled_from(
    [
        2**53,
        2**53 + 1,
        -(2**53) - 1,
        2**60,
        2**63 - 1,
        -(2**63),
        2**63,
        2**64 - 1,
        2**70,
    ]
)
# Without -0.0, which a column takes for 0.0.
floats = st.floats(-3, 13).map(lambda x: round(x, 1) + 0.0) | st.sampled_from(
    [np.inf, -np.inf, 2.0**53, 2.0**60, 2.0**63, -(2.0**63), 1e300, 0.1]
)
plain = st.none() | st.booleans() | integers | floats | texts
odd = st.sampled_from(
    [
        *NULLS,
        (),
        [],
        ["a", 0],
        ("a", "b"),
        {"a": 1},
        {"a", 1},
        b"a",
        1j,
        Decimal("3.5"),
        date(2024, 5, 6),
        datetime(2024, 5, 6),
        pd.Timestamp("2024-05-06"),
        np.int64(3),
        np.float32(0.1),
        np.float64(3.7),
        np.bool_(False),
        np.str_("a"),
        np.datetime64("2024-05-06"),
        np.timedelta64(0, "s"),
        np.array([]),
        np.array([0]),
        np.array([1, 2]),
        np.array(["a", "b"]),
        pd.Series([1, 2]),
        pd.DataFrame({"a": [1]}),
        object,
        len,
    ]
)
anything = plain | odd
patterns = st.sampled_from(["a", r".*\d", "[ab]+$", "", r"ses-0[1-3]", "A", "1"])
flags = st.sampled_from([0, re.IGNORECASE, re.IGNORECASE | re.DOTALL])


def special_values(arguments):
    """Return a strategy for the name and the arguments of a special value."""
    several = st.lists(arguments, max_size=4).map(tuple)
    return st.one_of(
        st.tuples(st.sampled_from(["IsNull", "NotNull"]), st.just(())),
        st.tuples(st.sampled_from(["NotEqual", *ORDER]), st.tuples(arguments)),
        st.tuples(st.sampled_from(SEVERAL), several),
        st.tuples(st.just("Pattern"), st.tuples(patterns, flags)),
    )


plain_specials = special_values(plain)
specials = special_values(anything)


def build_special(module, drawn):
    name, arguments = drawn
    return getattr(module, name)(*arguments)


def is_short(record):
    """Tell whether a record has few values that are not null."""
    return sum(value is not None for value in record.values()) < 2


def has_b(record):
    """Tell whether a field is there and not null."""
    return record.get("b") is not None


def filter_plans(tests):
    """Return a strategy for how to build a filter, with any module."""
    terms = st.dictionaries(
        st.sampled_from("abc"),
        plain_specials | st.tuples(st.just("plain"), plain),
        max_size=2,
    )
    leaves = st.tuples(st.just("leaf"), terms, st.sampled_from([None, None, *tests]))
    return st.recursive(
        leaves,
        lambda below: st.one_of(
            st.tuples(st.sampled_from("&|^~"), below, below),
            # a combination that got another term and another test
            st.tuples(st.just("both"), below, plain_specials, below),
        ),
        max_leaves=4,
    )


plans = filter_plans([is_short, has_b])
plans_of_ours = filter_plans([])


def build_filter(module, plan):
    kind, *rest = plan
    if kind == "leaf":
        terms = {
            name: value
            if special == "plain"
            else build_special(module, (special, value))
            for name, (special, value) in rest[0].items()
        }
        filt = module.ResultFilter(terms)
        if rest[1] is not None:
            filt.add_filter(rest[1])
        return filt
    if kind == "both":
        filt = build_filter(module, rest[0]).NOT()
        filt["c"] = build_special(module, rest[1])
        filt.add_filter(build_filter(module, rest[2]))
        return filt
    first, second = (build_filter(module, part) for part in rest)
    if kind == "~":
        return first.NOT()
    method = {"&": first.AND, "|": first.OR, "^": first.XOR}[kind]
    return method(second)


small = st.integers(-3, 13)
int64s = integers.filter(lambda x: -(2**63) <= x < 2**63)
uint64s = integers.filter(lambda x: 0 <= x < 2**64)
some_floats = st.sampled_from([0.1, 1.0, 3.0, -0.0, np.nan, np.inf])
dates = st.sampled_from(["2024-05-06", "1999-01-01", None])
cells = anything.filter(lambda value: not isinstance(value, pd.DataFrame))
maybe_texts = st.none() | texts

COLUMNS = [
    ("int64", int64s),
    ("uint64", uint64s),
    ("int8", small),
    ("uint8", st.integers(0, 13)),
    ("float64", floats | st.just(np.nan)),
    ("float32", some_floats),
    ("bool", st.booleans()),
    ("Int64", st.none() | int64s),
    ("UInt64", st.none() | uint64s),
    ("Int16", st.none() | small),
    ("Float64", st.none() | floats),
    ("Float32", st.none() | some_floats),
    ("boolean", st.none() | st.booleans()),
    ("object", texts),
    ("object", maybe_texts | st.just(np.nan)),
    ("object", st.none() | st.just(pd.NA) | integers),
    ("object", st.booleans()),
    ("object", st.sampled_from([None, np.float32(0.1), np.int8(1), 1, True, "1"])),
    ("object", st.sampled_from(NULLS)),
    ("object", cells),
    ("string", maybe_texts),
    ("str", texts),
    ("category", maybe_texts),
    ("category", st.none() | small),
    ("category", some_floats),
    ("category", st.sampled_from([1, "1", None, 2.5])),
    ("datetime64[ns]", dates),
    ("datetime64[ns, UTC]", dates),
    ("timedelta64[ns]", st.none() | st.integers(0, 2)),
]
if pd.__version__ >= "3":
    COLUMNS += [("str", maybe_texts)]
with contextlib.suppress(ImportError):
    importlib.import_module("pyarrow")
    COLUMNS += [("string[pyarrow]", maybe_texts), ("int64[pyarrow]", st.none() | small)]
    COLUMNS += [("double[pyarrow]", st.none() | floats)]

columns = st.one_of(
    [
        st.lists(elements, max_size=6).map(partial(pd.Series, dtype=dtype))
        for dtype, elements in COLUMNS
    ]
)
records = st.lists(st.dictionaries(st.sampled_from("abd"), plain), max_size=5)


@st.composite
def frames(draw):
    """Draw a DataFrame, maybe empty, with an index that may repeat."""
    drawn = {name: draw(columns) for name in draw(st.sampled_from(["a", "ab", "dba"]))}
    n_rows = min(map(len, drawn.values()))
    df = pd.DataFrame({name: column[:n_rows] for name, column in drawn.items()})
    df.index = draw(st.sampled_from([range(n_rows), [7] * n_rows]))
    return df


def one_by_one(filt, df):
    return [filt(row) for row in df.to_dict("records")]


def assert_mask_agrees(filt, df):
    try:
        mask = filt.mask(df)
    except InvalidQueryError:  # no value of a field can be compared with a bound
        assert any(name in repr(filt) for name in ORDER)
        return
    assert isinstance(mask, np.ndarray)
    assert mask.dtype == bool
    assert mask.shape == (len(df),)
    assert mask.tolist() == one_by_one(filt, df)


# --------------------------------------------------------------------------------------
# Special values


@quick(max_examples=800)
@given(specials, anything)
def test_special_values_mean_what_nilearns_mean(drawn, candidate):
    ours = build_special(filters, drawn)
    theirs = build_special(neurovault, drawn)
    assert repr(ours) == repr(theirs)
    assert (ours != candidate) is not (ours == candidate)
    assert (candidate == ours) is (ours == candidate) or isinstance(
        candidate, (np.generic, np.ndarray, pd.Series, pd.DataFrame, type(pd.NA))
    )
    if drawn[0] in ("IsNull", "NotNull") and any(candidate is nan for nan in NANS):
        assert (ours == candidate) is (drawn[0] == "IsNull")
        return
    if drawn[0] in ORDER and any(candidate is null for null in NULLS):
        assert ours != candidate
        return
    if drawn[0] in ORDER and isinstance(drawn[1][0], (date, np.datetime64)):
        return  # dates compare with dates alone, see below
    try:
        expected = bool(theirs == candidate)
    except Exception:
        expected = None
    assert expected is None or (ours == candidate) is expected


@pytest.mark.parametrize("null", [*NULLS, 0, "", 0.0, False, [], ()])
def test_null_is_falsy_or_not_a_number(null):
    assert IsNull() == null
    assert NotNull() != null


@pytest.mark.parametrize("candidate", [np.array([1, 2]), np.array([]), pd.NA])
@pytest.mark.parametrize(
    ("positive", "negative"),
    [(IsIn("a", 1), NotIn("a", 1)), (IsIn("a"), NotEqual("a"))],
)
def test_candidates_without_a_truth_value_do_not_match(candidate, positive, negative):
    assert positive != candidate
    assert negative == candidate


def test_arrays_are_not_null():
    assert IsNull() != np.array([1, 2])
    assert NotNull() == np.array([1, 2])


@pytest.mark.parametrize("order", ORDER)
@pytest.mark.parametrize(
    ("bound", "candidate"),
    [
        (3, np.inf),
        (3, -np.inf),
        (3, pd.NA),
        (3.0, np.array([1, 2])),
        (3, "x"),
        (3, None),
        (1.0, 10**400),
        (Decimal(3), "x"),
        (None, 3),
    ],
)
def test_what_cannot_be_cast_or_compared_does_not_match(order, bound, candidate):
    assert getattr(filters, order)(bound) != candidate
    assert not ResultFilter(x=getattr(filters, order)(bound))({"x": candidate})


@pytest.mark.parametrize(
    "bound",
    [
        date(2026, 9, 28),
        datetime(2026, 9, 28),
        datetime(2026, 9, 28, 2, tzinfo=timezone(timedelta(hours=2))),
        pd.Timestamp("2026-09-28"),
        np.datetime64("2026-09-28"),
        "2026-09-28",
        "2026-09-28 00:00",
        "2026-09-28T02:00:00+02:00",
    ],
)
def test_dates_compare_with_dates_and_without_a_zone_they_are_utc(bound):
    before = ["2026-09-27T23:59:59.000Z", date(2026, 9, 27), "2026-09-28T00:30+01:00"]
    equal = ["2026-09-28T00:00:00.000Z", datetime(2026, 9, 28), "2026-09-28"]
    after = ["2026-09-28T00:00:01.000Z", pd.Timestamp("2026-09-28 00:00:01")]
    for values, answers in (
        (before, (False, False, True, True)),
        (equal, (False, True, True, False)),
        (after, (True, True, False, False)),
    ):
        for value in values:
            terms = GreaterThan, GreaterOrEqual, LessOrEqual, LessThan
            assert tuple(term(bound) == value for term in terms) == answers
    frame = pd.DataFrame({"when": [*before, *equal, *after, None]}, dtype=object)
    later = ResultFilter(when=GreaterThan(bound))
    assert later.mask(frame).tolist() == [False] * 6 + [True] * 2 + [False]
    utc = pd.to_datetime(["2026-09-27", "2026-09-29", None], utc=True)
    for times in (utc, utc.tz_localize(None)):
        assert later.mask(pd.DataFrame({"when": times})).tolist() == [
            False,
            True,
            False,
        ]


@pytest.mark.parametrize(
    ("bound", "values", "words"),
    [
        (date(2026, 9, 28), [4, 12], "it is int, such as 4, and the bound is date"),
        (pd.Timestamp("2026-09-28"), ["a", None], "it is str, such as 'a'.*Timestamp"),
        (4, ["a", "b", None], "it is str, such as 'a', and the bound is int"),
        (4, [date(2026, 9, 28)], "it is date.*and the bound is int"),
        (None, [4, 12], "it is int, such as 4, and the bound is NoneType"),
    ],
)
@pytest.mark.parametrize("order", ORDER)
def test_a_comparison_that_no_value_allows_is_refused(order, bound, values, words):
    frame = pd.DataFrame({"x": pd.Series(values, dtype=object)})
    term = getattr(filters, order)(bound)
    for filt in (ResultFilter(x=term), ResultFilter(x=4) | ~ResultFilter(x=term)):
        with pytest.raises(InvalidQueryError, match=f"^x cannot be compared.*{words}"):
            filt.mask(frame)
    assert not ResultFilter(x=term)({"x": values[0]})
    assert not ResultFilter(x=term).mask(pd.DataFrame({"x": [None, np.nan]})).any()
    assert ResultFilter(x=term).mask(frame.iloc[:0]).shape == (0,)


def test_a_date_is_compared_with_a_date_in_iso_form_alone():
    frame = pd.DataFrame({"last_modified": ["2025-06-01T10:00:00.000Z", None]})
    assert ResultFilter(last_modified=LessThan("2025-07-01")).mask(frame).sum() == 1
    with pytest.raises(InvalidQueryError, match="write the date as in '2026-09-28'"):
        ResultFilter(last_modified=GreaterThan("01/07/2025")).mask(frame)


def test_a_comparison_that_some_values_allow_is_made():
    frame = pd.DataFrame({"x": pd.Series(["5", "a", 3, None], dtype=object)})
    mask = ResultFilter(x=GreaterThan(4)).mask(frame)
    assert mask.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    "thing",
    [
        ResultFilter(a=1),
        ResultFilter(),
        ResultFilter(a=1) & {"b": 2},
        ResultFilter(a=1) | {"b": 2},
        ~ResultFilter(a=1),
        *(IsNull(), NotNull(), NotEqual(1), IsIn(1), Pattern("a"), Contains("a")),
        GreaterThan(1),
    ],
)
def test_filters_and_special_values_have_no_truth_value(thing):
    for ask in (
        lambda: thing or ResultFilter(b=2),
        lambda: thing and ResultFilter(b=2),
        lambda: not thing,
        lambda: bool(thing),
    ):
        with pytest.raises(InvalidQueryError, match=r"no truth value.* &, \| and ~"):
            ask()


def test_an_item_that_cannot_be_in_a_container_is_not_in_it():
    assert Contains("a", 1) != "abc"
    assert NotContains(1) == "abc"
    assert NotContains(1, "a") != "abc"


@quick(max_examples=150)
@given(plain_specials, plain_specials)
def test_special_values_are_equal_if_built_alike(one, other):
    first = build_special(filters, one)
    assert first == build_special(filters, one)
    second = build_special(filters, other)
    alike = repr(first).replace("-0.0", "0.0") == repr(second).replace("-0.0", "0.0")
    assert (first == second) is alike


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GreaterThan(1), GreaterThan(1.0)),  # casts differ
        (GreaterThan(0), GreaterThan(False)),
        (GreaterThan(1), GreaterOrEqual(1)),
        (IsIn("a", "b"), IsIn("a")),
        (IsIn("a"), NotIn("a")),
        (NotNull(), IsNull()),
        (NotEqual("a"), NotNull()),
        (NotNull(), NotEqual("a")),
        (Pattern("a"), Pattern("a", re.IGNORECASE)),
        (NotEqual((1,)), NotEqual((True,))),
    ],
)
def test_special_values_that_differ(one, other):
    assert one != other
    assert ResultFilter(x=one) != ResultFilter(x=other)


def test_special_values_of_nan_are_equal():
    assert GreaterThan(float("nan")) == GreaterThan(float("nan"))
    assert IsIn(1, float("nan")) == IsIn(1, float("nan"))


@pytest.mark.parametrize(
    "arguments",
    [("(",), (b"a",), (3,), (None,), ("a", "i"), (re.compile("a"), re.IGNORECASE)],
)
def test_pattern_refuses_what_is_no_pattern(arguments):
    with pytest.raises(InvalidQueryError, match="is not a regular expression"):
        Pattern(*arguments)


def test_pattern_takes_a_compiled_one():
    filt = ResultFilter(x=Pattern(re.compile("a", re.IGNORECASE)))
    assert filt({"x": "Abc"})
    assert pickle.loads(pickle.dumps(filt)) == filt == copy.deepcopy(filt)


# --------------------------------------------------------------------------------------
# Filters


def without_nulls(name):
    """Return nilearn's comparison, but such that None never passes."""
    kind = getattr(neurovault, name)

    class Comparison(kind):
        def __eq__(self, other):
            return other is not None and kind.__eq__(self, other)

        __hash__ = None

    return Comparison


nilearns = SimpleNamespace(
    **{name: getattr(neurovault, name) for name in (*NAMES, "ResultFilter")}
)
vars(nilearns).update({name: without_nulls(name) for name in ORDER})


@quick(max_examples=150)
@given(plans, records)
def test_filters_mean_what_nilearns_mean(plan, records):
    ours, theirs = build_filter(filters, plan), build_filter(nilearns, plan)
    for record in records:
        try:
            expected = bool(theirs(record))
        except Exception:
            continue
        assert ours(record) is expected


@quick(max_examples=150)
@given(plans, records)
def test_nilearns_filters_are_accepted(plan, records):
    theirs = build_filter(neurovault, plan)
    ours = build_filter(filters, plan)
    accepted = [
        as_filter(theirs),
        ResultFilter(callable_filter=theirs),
        ResultFilter() & theirs,
        theirs | ~ResultFilter(),
        ResultFilter(b=5).AND(ResultFilter(b=6)) ^ theirs,
    ]
    for record in records:
        try:
            theirs(record)
        except Exception:
            continue
        assert [filt(record) for filt in accepted] == [ours(record)] * len(accepted)


@quick(max_examples=150)
@given(plans_of_ours)
def test_round_trips(plan):
    filt = build_filter(filters, plan)
    namespace = {name: getattr(filters, name) for name in (*NAMES, "ResultFilter")}
    namespace |= {"re": re, "nan": np.nan, "inf": np.inf}
    others = [
        build_filter(filters, plan),
        copy.copy(filt),
        copy.deepcopy(filt),
        pickle.loads(pickle.dumps(filt)),
        eval(repr(filt), namespace),
    ]
    for other in others:
        assert other == filt


@quick(max_examples=60)
@given(plans, frames())
def test_pickled_filters_give_the_same(plan, df):
    filt = build_filter(filters, plan)
    pickled = pickle.loads(pickle.dumps(filt))
    assert pickled == filt
    with contextlib.suppress(InvalidQueryError):  # see assert_mask_agrees
        assert filt.mask(df).tolist() == pickled.mask(df).tolist()


def test_repr_and_str():
    filt = ResultFilter(n_reps=12) & (
        ResultFilter(session="ses-01") | ~ResultFilter(label=Pattern("x"))
    )
    assert repr(filt) == (
        "ResultFilter(n_reps=12) & (ResultFilter(session='ses-01') | "
        "~ResultFilter(label=Pattern(pattern='x', flags=0)))"
    )
    assert str(filt) == repr(filt) == f"{filt}"
    assert str(GreaterThan(4)) == "GreaterThan(4)"
    a, b, c = (ResultFilter({name: 1}) for name in "abc")
    assert repr(a & b & c).count("(") == 3
    assert repr(a | (b | c)) == f"{a!r} | ({b!r} | {c!r})"
    assert repr(~(a ^ b) ^ c) == f"~({a!r} ^ {b!r}) ^ {c!r}"
    assert repr(ResultFilter()) == "ResultFilter()"
    assert (
        repr(ResultFilter(callable_filter=len)) == "ResultFilter(callable_filter=len)"
    )


@pytest.mark.parametrize("name", ["a b", "class", "query_terms", "self", 3])
def test_repr_of_names_that_are_no_keywords(name):
    filt = ResultFilter({name: 1})
    assert repr(filt) == f"ResultFilter({{{name!r}: 1}})"
    assert filt({name: 1})


def test_repr_of_a_combination_with_more_terms_and_tests():
    filt = ResultFilter(a=1) | ResultFilter(a=2)
    filt["b"] = 3
    filt.add_filter(has_b)
    assert repr(filt) == (
        "ResultFilter(b=3) & (ResultFilter(a=1) | ResultFilter(a=2)) & "
        "ResultFilter(callable_filter=has_b)"
    )
    assert eval(repr(filt)) == filt


def test_filters_that_differ():
    a, b = ResultFilter(a=1), ResultFilter(b=1)
    different = [a, b, a & b, a | b, a ^ b, ~a, ~b, ~~a, ResultFilter(a=2)]
    different += [ResultFilter(a=NotNull()), ResultFilter(), as_filter(has_b)]
    different += [ResultFilter(a=IsNull()), ResultFilter(a=None), as_filter(is_short)]
    for i, one in enumerate(different):
        for j, other in enumerate(different):
            assert (one == other) is (i == j)
    assert a != {"a": 1}
    assert a != 1


def test_equality_is_that_of_requirements():
    a, b, c = ResultFilter(a=1), ResultFilter(b=1), ResultFilter(c=1)
    assert a & b == b & a == ResultFilter(b=1, a=1)
    assert (a & b) & c == a & (b & c)
    assert ResultFilter(a=1, callable_filter=b | c) == a & (b | c)


@pytest.mark.parametrize(
    "several",
    [
        ["x", "y"],
        ("x", "y"),
        {"x", "y"},
        frozenset("xy"),
        {"x": 1, "y": 2}.keys(),
        np.array(["x", "y"]),
        pd.Series(["x", "y"]),
        pd.Index(["x", "y"]),
        pd.Series(["x", "y"]).astype("category").unique(),
        {1: "x", 2: "y"}.values(),
        deque("xy"),
    ],
)
def test_a_collection_is_membership(several):
    filt = ResultFilter(a=several)
    assert filt == ResultFilter(a=IsIn("x", "y"))
    assert [filt({"a": value}) for value in ("x", "y", "z", None)] == [1, 1, 0, 0]
    filt["b"] = range(2)
    assert filt["b"] == IsIn(0, 1)


def test_an_iterator_is_membership():
    filt = ResultFilter(a=(name for name in "xy"))
    assert filt == ResultFilter(a=IsIn("x", "y"))
    assert [filt({"a": value}) for value in ("x", "y", "x", "z")] == [1, 1, 1, 0]
    assert ResultFilter(a=map(str, range(2)))["a"] == IsIn("0", "1")
    assert ResultFilter(a="xy")["a"] == "xy"


def test_sets_give_one_repr():
    assert repr(ResultFilter(a={3, 10, 2})) == "ResultFilter(a=IsIn(2, 3, 10))"
    assert repr(ResultFilter(a={"x", 2})) == "ResultFilter(a=IsIn(2, 'x'))"


@pytest.mark.parametrize("null", NULLS)
def test_null_is_null(null):
    for term in (None, null, [None], [null], IsNull(), NotIn(1), NotEqual("a")):
        assert ResultFilter(a=term)({"a": null})
        assert ResultFilter(a=term)({})
    for term in (NotNull(), IsIn(1), NotEqual(None), GreaterThan(0), LessThan(9.0)):
        assert not ResultFilter(a=term)({"a": null})
        assert not ResultFilter(a=term)({})
    assert not ResultFilter(a=None)({"a": 0})
    seen = []
    ResultFilter(callable_filter=seen.append)({"a": null, "b": 1})
    assert seen == [{"a": None, "b": 1}]


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("order", ORDER)
@pytest.mark.parametrize("bound", ["N", "o", "ses-10", False, 3, 3.0])
def test_no_null_is_above_or_below_a_bound(order, bound, null):
    term = getattr(filters, order)(bound)
    assert term != null
    assert not ResultFilter(a=term)({"a": null})
    df = pd.DataFrame({"a": pd.Series([null, None], dtype=object)})
    assert not ResultFilter(a=term).mask(df).any()


@pytest.mark.parametrize("null", NULLS)
def test_nulls_are_null_as_arguments_of_special_values_too(null):
    df = pd.DataFrame({"a": [1.0, np.nan]})
    for term, passes in [
        (IsIn(null), [False, True]),
        (IsIn(1, neurovault.IsIn(null)), [True, True]),
        (NotIn(null), [True, False]),
        (NotEqual(null), [True, False]),
        (neurovault.IsIn(null), [False, True]),
    ]:
        filt = ResultFilter(a=term)
        assert [filt({"a": 1.0}), filt({"a": null})] == passes
        assert filt.mask(df).tolist() == passes


def test_functions_get_none_for_null_in_masks():
    df = pd.DataFrame(
        {
            "i": pd.array([1, None], dtype="Int64"),
            "f": [np.nan, 2.5],
            "t": [pd.Timestamp("2024-05-06"), pd.NaT],
            "s": pd.Series(["x", None], dtype="string"),
        }
    )
    seen = []
    assert not ResultFilter(callable_filter=seen.append).mask(df).any()
    assert seen == [
        {"i": 1, "f": None, "t": pd.Timestamp("2024-05-06"), "s": "x"},
        {"i": None, "f": 2.5, "t": None, "s": None},
    ]


def test_nilearns_special_values_become_ours():
    filt = ResultFilter(a=neurovault.GreaterThan(3), b=[neurovault.Pattern("x"), 2])
    filt["c"] = neurovault.NotIn("x", "y")
    assert filt["a"] == GreaterThan(3)
    assert type(filt["a"]) is GreaterThan
    assert filt["b"] == IsIn(Pattern("x"), 2)
    assert filt["c"] == NotIn("x", "y")
    assert filt({"a": 4, "b": "xyz", "c": "z"})
    assert not filt({"a": np.inf, "b": "xyz", "c": "z"})


class Even(neurovault._SpecialValue):
    """A user's own special value, after nilearn's."""

    def __eq__(self, other):
        return other % 2 == 0

    __hash__ = None


def test_a_users_own_special_value_is_a_term():
    filt = ResultFilter(a=Even())
    df = pd.DataFrame({"a": [1, 2, None, "x"]}, dtype=object)
    assert filt.mask(df).tolist() == [False, True, False, False]
    assert_mask_agrees(filt, df)


class Near(LessThan):
    """A user's own special value, after ours."""

    def __eq__(self, other):
        return other is not None and abs(other - self.arguments[0]) < 2

    __hash__ = None


def test_a_users_subclass_is_asked_itself():
    df = pd.DataFrame({"a": [1, 4, 7]})
    assert ResultFilter(a=Near(5)).mask(df).tolist() == [False, True, False]
    assert_mask_agrees(ResultFilter(a=Near(5)), df)


def test_operands_are_copied():
    a, b, terms = ResultFilter(a=1), neurovault.ResultFilter(b=1), {"c": 1}
    combined = (a & b).AND(terms)
    a["a"], b["b"], terms["c"] = 2, 2, 2
    a.add_filter(lambda record: False)
    assert combined({"a": 1, "b": 1, "c": 1})
    either = ResultFilter(a=1) | ResultFilter(a=2)
    before = either & ResultFilter()
    either["b"] = 1
    assert before({"a": 2})
    assert not either({"a": 2})
    assert either({"a": 2, "b": 1})


class Gatherer:
    """A test that gathers what it is asked, and cannot be copied."""

    def __init__(self):
        self.lock, self.runs = threading.Lock(), []

    def take(self, record):
        with self.lock:
            self.runs.append(record["run"])
        return True

    __call__ = take


@pytest.mark.parametrize("method", ["take", "__call__"])
def test_functions_are_shared_by_copies(method):
    gatherer = Gatherer()
    function = gatherer if method == "__call__" else gatherer.take
    filt = ResultFilter(callable_filter=function)
    for combined in (filt & ResultFilter(run=1), ~filt, copy.copy(filt | {"run": 2})):
        combined({"run": 1})
    assert gatherer.runs == [1, 1, 1]


def test_copies_of_combinations_are_independent():
    inner = ResultFilter(a=1)
    outer = ResultFilter(callable_filter=inner)
    copied = copy.copy(outer)
    inner["b"] = 2
    assert copied({"a": 1})
    assert not outer({"a": 1})


def test_filters_can_be_in_sets():
    filt = ResultFilter(a=1)
    several = {filt, ResultFilter(a=1), ResultFilter(a=2)}
    assert len(several) == 2
    filt["a"] = 3
    assert filt in several
    assert hash(filt) == hash(ResultFilter(a=3))


@quick(max_examples=300)
@given(plans_of_ours)
def test_filters_survive_json(plan):
    filt = build_filter(filters, plan)
    assert as_filter(json.loads(json.dumps(filt.to_dict()))) == filt


def test_filters_as_plain_values():
    filt = ResultFilter(run=3, label=Pattern("x", re.IGNORECASE)) & (
        ResultFilter(session=["ses-01", "ses-02"]) | ~ResultFilter(n_reps=NotNull())
    )
    assert filt.to_dict() == {
        "AND": [
            {"run": 3, "label": {"Pattern": ["x", 2]}},
            {
                "OR": [
                    {"session": ["ses-01", "ses-02"]},
                    {"NOT": [{"n_reps": {"NotNull": []}}]},
                ]
            },
        ]
    }
    assert as_filter(filt.to_dict()) == filt
    assert ResultFilter().to_dict() == {}
    assert json.dumps(ResultFilter(run=np.int64(3)).to_dict()) == '{"run": 3}'
    compiled = ResultFilter(label=Pattern(re.compile("a", re.IGNORECASE)))
    assert as_filter(json.loads(json.dumps(compiled.to_dict())))({"label": "Abc"})
    assert as_filter({"a": {"x": 1}})["a"] == {"x": 1}


def test_plain_values_of_functions_and_objects_are_refused():
    filt = ResultFilter(callable_filter=has_b) | ResultFilter(a=1)
    assert filt.to_dict() == {"OR": [{"callable_filter": "has_b"}, {"a": 1}]}
    with pytest.raises(InvalidQueryError, match="trial_filter.* has_b alone; pass"):
        as_filter(filt.to_dict(), "trial_filter")
    dated = ResultFilter(a=GreaterThan(date(2024, 5, 6)))
    json.dumps(dated.to_dict())
    with pytest.raises(InvalidQueryError, match=r"datetime.date\(2024, 5, 6\)"):
        as_filter(dated.to_dict())


def test_a_copy_is_independent():
    filt = ResultFilter(a=1)
    copied = copy.copy(filt)
    copied["b"] = 2
    copied.add_filter(has_b)
    assert filt == ResultFilter(a=1)


def test_items_and_tests_are_added_to_combinations():
    filt = ~ResultFilter(a=1)
    filt["b"] = [1, 2]
    filt.add_filter(lambda record: record["b"] > 1)
    assert filt({"a": 2, "b": 2})
    assert not filt({"a": 2, "b": 1})
    assert not filt({"a": 1, "b": 2})
    del filt["b"]
    del filt["absent"]
    assert filt({"a": 2, "b": 3})
    with pytest.raises(KeyError):
        filt["b"]


def test_any_operand_may_come_first():
    assert ({"a": 1} & ResultFilter(b=1))({"a": 1, "b": 1})
    assert (has_b | ResultFilter(a=1))({"a": 1})
    assert not ({"a": 1} ^ ResultFilter(b=1))({"a": 1, "b": 1})


def test_as_filter():
    filt = ResultFilter(a=1)
    assert as_filter(filt) is filt
    assert as_filter({"a": 1}) == filt == as_filter(neurovault.ResultFilter(a=1))
    assert as_filter(None) == ResultFilter()
    assert as_filter(has_b)({"b": 0})


@pytest.mark.parametrize("value", ["n_reps=12", 3, ["a"], NotNull()])
def test_as_filter_says_what_it_takes(value):
    with pytest.raises(
        InvalidQueryError, match=r"^trial_filter must be a dict of terms"
    ):
        as_filter(value, "trial_filter")


def test_errors_come_early_and_name_the_argument():
    with pytest.raises(InvalidQueryError, match="query_terms must be a dict"):
        ResultFilter(has_b)
    with pytest.raises(InvalidQueryError, match="query_terms must be a dict"):
        ResultFilter(ResultFilter(a=1))
    with pytest.raises(InvalidQueryError, match="callable_filter must be a function"):
        ResultFilter(callable_filter={"a": 1})
    with pytest.raises(InvalidQueryError, match="callable_filter must be a function"):
        ResultFilter().add_filter("a")
    with pytest.raises(InvalidQueryError, match="operand of & must be"):
        ResultFilter() & 3
    with pytest.raises(InvalidQueryError, match=r"operand of \| must be"):
        ResultFilter().OR("a")


# --------------------------------------------------------------------------------------
# Push-down


def test_fields():
    filt = (ResultFilter(a=1) | ~ResultFilter(b=2)) ^ ResultFilter(
        callable_filter=has_b
    )
    filt["c"] = 3
    filt.add_filter(neurovault.ResultFilter(d=4))
    assert fields(filt) == {"a", "b", "c", "d"}
    assert fields(ResultFilter()) == set()


def test_admits():
    one, two = ResultFilter(session="ses-01"), ResultFilter(session=["ses-02"])
    assert admits(one, "session", "ses-01")
    assert not admits(one, "session", "ses-02")
    assert admits(one, "subject", "sub-01")
    assert not admits(one & two, "session", "ses-01")
    assert admits(one | two, "session", "ses-02")
    assert not admits(one | two, "session", "ses-03")
    assert admits(one | has_b, "session", "ses-03")
    assert admits(~one, "session", "ses-01")
    assert admits(one ^ two, "session", "ses-03")
    assert not admits(one & has_b, "session", "ses-02")
    assert not admits(ResultFilter(session=None), "session", "ses-01")
    assert admits(ResultFilter(session=None), "session", np.nan)
    assert not admits(as_filter(neurovault.ResultFilter(session="a")), "session", "b")


@quick(max_examples=300)
@given(plans, st.dictionaries(st.sampled_from("abc"), plain, min_size=1))
def test_what_passes_is_admitted(plan, record):
    filt = build_filter(filters, plan)
    if filt(record):
        assert all(admits(filt, name, value) for name, value in record.items())


# --------------------------------------------------------------------------------------
# Masks


@quick(max_examples=300)
@given(plans, frames())
def test_mask_is_the_filter_row_by_row(plan, df):
    assert_mask_agrees(build_filter(filters, plan), df)


@quick(max_examples=800)
@given(specials | st.tuples(st.just("plain"), anything), columns)
def test_mask_of_a_term_is_the_term_row_by_row(drawn, column):
    term = drawn[1] if drawn[0] == "plain" else build_special(filters, drawn)
    assert_mask_agrees(ResultFilter(a=term), column.to_frame("a"))


def test_mask_gives_right_answers():
    """Answers written by hand, so that mask and call are not wrong together."""
    df = pd.DataFrame(
        {
            "n": pd.array([12, 4, None, 0], dtype="Int64"),
            "x": [3.7, np.inf, np.nan, -1.0],
            "s": ["ses-01", "ses-02", None, ""],
        },
        index=[1, 1, 1, 1],
    )
    expected = [
        (ResultFilter(n=12), [1, 0, 0, 0]),
        (ResultFilter(n=None), [0, 0, 1, 0]),
        (ResultFilter(n=IsNull()), [0, 0, 1, 1]),
        (ResultFilter(n=GreaterOrEqual(4)), [1, 1, 0, 0]),
        (ResultFilter(n=LessThan(4.5)), [0, 1, 0, 1]),
        (ResultFilter(n=NotIn(4, None)), [1, 0, 0, 1]),
        (ResultFilter(x=GreaterThan(3)), [0, 0, 0, 0]),
        (ResultFilter(x=GreaterThan(3.0)), [1, 1, 0, 0]),
        (ResultFilter(x=LessOrEqual("2")), [0, 0, 0, 1]),
        (ResultFilter(s=NotEqual("ses-01")), [0, 1, 1, 1]),
        (ResultFilter(s=Pattern("ses-0[12]")), [1, 1, 0, 0]),
        (ResultFilter(s=["ses-02", None]), [0, 1, 1, 0]),
        (ResultFilter(s=NotNull()), [1, 1, 0, 0]),
        (ResultFilter(absent=None), [1, 1, 1, 1]),
        (ResultFilter(absent=NotNull()), [0, 0, 0, 0]),
        (ResultFilter(n=12) ^ ResultFilter(s=NotNull()), [0, 1, 0, 0]),
        (~(ResultFilter(n=12) | (lambda row: row["x"] is None)), [0, 1, 0, 1]),
        (ResultFilter(), [1, 1, 1, 1]),
    ]
    for filt, answer in expected:
        assert filt.mask(df).tolist() == answer
        assert one_by_one(filt, df) == answer


def test_values_that_are_equal_but_of_other_types_are_told_apart():
    values = [1, True, 1.0, "1", np.float32(0.1), 0.1, np.int8(1), None]
    df = pd.DataFrame({"a": pd.Series(values, dtype=object)})
    as_text = ["1", "True", "1.0", "1", "0.10000000149011612", "0.1", "1", None]
    for text in {*as_text} - {None}:
        both = ResultFilter(a=GreaterOrEqual(text)) & {"a": LessOrEqual(text)}
        assert both.mask(df).tolist() == [text == one for one in as_text]
        assert_mask_agrees(both, df)
    assert ResultFilter(a=0.1).mask(df).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_mask_of_columns_that_share_a_name():
    df = pd.DataFrame([[1, 2], [2, 1]], columns=["a", "a"])
    assert ResultFilter(a=2).mask(df).tolist() == [True, False]
    function = ResultFilter(callable_filter=lambda row: row == {"a": 2})
    assert function.mask(df).tolist() == [True, False]


def test_mask_without_columns_or_rows():
    assert ResultFilter(a=None).mask(pd.DataFrame(index=range(3))).tolist() == [1, 1, 1]
    function = ResultFilter(callable_filter=lambda row: row == {})
    assert function.mask(pd.DataFrame(index=range(3))).tolist() == [1, 1, 1]
    assert function.mask(pd.DataFrame()).tolist() == []
    assert ResultFilter(a=Pattern("x")).mask(pd.DataFrame({"a": []})).shape == (0,)


def test_functions_see_only_rows_that_are_undecided():
    df = pd.DataFrame({"a": [1, 2, 3, 4]})
    seen = []

    def note(row):
        seen.append(row["a"])
        return True

    both = ResultFilter(a=GreaterThan(2)) & note
    assert both.mask(df).tolist() == [False, False, True, True]
    either = ResultFilter(a=GreaterThan(2)) | note
    assert either.mask(df).all()
    added = ResultFilter(a=1)
    added.add_filter(note)
    added.mask(df)
    assert seen == [3, 4, 1, 2, 1]


def test_mask_leaves_the_table_as_it_is():
    df = pd.DataFrame({"a": [True, False], "b": [1.5, np.nan], "c": ["x", None]})
    before = df.copy(deep=True)
    (ResultFilter(a=1, b=GreaterThan(1), c=Pattern("x")) | has_b).mask(df)
    pd.testing.assert_frame_equal(df, before)
