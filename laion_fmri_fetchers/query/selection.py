"""What is asked of a fetcher: arguments in all their forms, checked and frozen."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.keys import RECORD_FIELDS, is_of_session
from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS
from laion_fmri_fetchers.layout.names import clean_roi, clean_session, clean_subject
from laion_fmri_fetchers.layout.trees import FUNCTIONAL_GRID, IMAGE_TYPES
from laion_fmri_fetchers.messages import listed, warn

from .filters import ResultFilter, admits, as_filter, fields

MODES = ("download_new", "overwrite", "offline")
_YES = frozenset({"1", "true", "yes", "on"})
_FEW = 20
_ARGUMENT_FOR = {"subject": "subjects", "session": "sessions", "roi": "rois"}


def basic_image_terms() -> dict[str, Any]:
    """Return the terms on images that apply by default.

    A term of your own on the same field replaces them.

    Returns
    -------
    dict
        Field name -> value.

    Examples
    --------
    >>> basic_image_terms()
    {'image_type': 'betas'}
    """
    return {"image_type": "betas"}


def basic_roi_terms() -> dict[str, Any]:
    """Return the terms on ROI masks that apply by default.

    A term of your own on the same field replaces them; one on another ``space`` lifts
    ``res`` too, as a grid belongs to its space. The other grid in T1w space, of 1.5 mm,
    is ``res="1pt5"``.

    Returns
    -------
    dict
        Field name -> value.

    Examples
    --------
    >>> basic_roi_terms()
    {'space': 'T1w', 'res': '1pt8', 'extension': 'nii.gz'}
    """
    return {"space": "T1w", "res": FUNCTIONAL_GRID, "extension": "nii.gz"}


_EVERYTHING = ResultFilter()


class Selection(NamedTuple):
    """What is asked; None for subjects, sessions and ROIs means all."""

    subjects: tuple[str, ...] | None = None
    sessions: tuple[str, ...] | None = None
    rois: tuple[str, ...] | None = None
    subject_filter: ResultFilter = _EVERYTHING
    image_filter: ResultFilter = _EVERYTHING
    roi_filter: ResultFilter = _EVERYTHING
    trial_filter: ResultFilter = _EVERYTHING
    max_images: int | None = None

    def is_named(self, record: dict[str, Any]) -> bool:
        """Tell whether a file was asked for by a name, and not as one of all.

        The nearest name counts: of a mask the ROI, of other files the session, and
        for files of no session the subject. Noise ceilings only go with images.
        """
        if record["roi"]:
            return bool(self.rois)
        if record["image_type"] == "subject_noise_ceiling":
            return False
        return bool(self.sessions if is_of_session(record) else self.subjects)

    def as_query(self) -> dict[str, Any]:
        """Return what is asked, in a form that may be asked again.

        Functions among the filters are told by their names alone.
        """
        return {
            "subjects": "all" if self.subjects is None else list(self.subjects),
            "sessions": "all" if self.sessions is None else list(self.sessions),
            "rois": "all" if self.rois is None else list(self.rois),
            **{
                name: _readable(given)
                for name, given in (
                    ("subject_filter", self.subject_filter),
                    ("image_filter", self.image_filter),
                    ("roi_filter", self.roi_filter),
                    ("trial_filter", self.trial_filter),
                )
            },
            "max_images": self.max_images,
        }


def select(
    subjects: object,
    rois: object,
    sessions: object,
    subject_filter: object,
    image_filter: object,
    roi_filter: object,
    trial_filter: object,
    max_images: object,
    image_terms: dict[str, Any],
    arguments: Iterable[str],
) -> Selection:
    """Check the arguments of a fetcher and bring them to one form.

    Raises
    ------
    InvalidQueryError
        If one is not valid; the message names it.
    """
    for name in image_terms:
        if name in _ARGUMENT_FOR:
            raise InvalidQueryError(
                f"{name}= is no term on images; use the argument "
                f"{_ARGUMENT_FOR[name]}= instead."
            )
        if name in TRIAL_FIELDS and name not in RECORD_FIELDS:
            raise InvalidQueryError(
                f"{name}= is no term on images, but on trials; use "
                f"trial_filter={{{name!r}: {image_terms[name]!r}}} instead."
            )
        if name not in RECORD_FIELDS:
            hint = did_you_mean(name, [*RECORD_FIELDS, *arguments])
            raise InvalidQueryError(
                f"{name!r} is neither an argument nor a field of an image; {hint}"
            )
    images = _with_defaults(
        image_filter, "image_filter", {**basic_image_terms()}, image_terms
    )
    selected_rois = _names(rois, "rois", _clean_roi_name, "a name such as 'FFA1'")
    return Selection(
        subjects=_required(
            _names(subjects, "subjects", clean_subject, "'sub-01', '01' or 1"),
            "subjects",
        ),
        sessions=_required(
            _names(
                sessions,
                "sessions",
                clean_session,
                "'ses-01', '01', 1 or a name such as '4BarScreenfLoc'",
            ),
            "sessions",
        ),
        rois=selected_rois,
        subject_filter=as_filter(subject_filter, "subject_filter"),
        image_filter=images,
        roi_filter=_roi_filter(roi_filter),
        trial_filter=_checked(
            as_filter(trial_filter, "trial_filter"),
            "trial_filter",
            [name for name in TRIAL_FIELDS if name != "image_index"],
        ),
        max_images=as_limit(max_images),
    )


def check_mode(mode: object) -> str:
    """Return a mode in lower case; None is what the environment asks for.

    Raises
    ------
    InvalidQueryError
        If it is not a mode.

    Examples
    --------
    >>> check_mode("OFFLINE"), check_mode(None)
    ('offline', 'download_new')
    """
    if mode is None:
        asked = os.environ.get("LAION_FMRI_OFFLINE", "").strip().lower()
        return "offline" if asked in _YES else "download_new"
    if not isinstance(mode, str) or mode.lower() not in MODES:
        hint = f"{did_you_mean(mode, MODES)} " if isinstance(mode, str) else ""
        raise InvalidQueryError(
            f"mode is {mode!r}; {hint}it must be one of {', '.join(map(repr, MODES))}"
        )
    return mode.lower()


def check_positive(value: Any, name: str, whole: bool = False) -> None:
    """Raise InvalidQueryError for what is no positive number."""
    kind = int if whole else (int, float)
    number = hasattr(value, "__index__") or (not whole and hasattr(value, "__float__"))
    if isinstance(value, (bool, str)) or not number or not value > 0:
        raise InvalidQueryError(
            f"{name} is {value!r}; it must be a positive "
            f"{'whole ' if kind is int else ''}number"
        )


def check_verbose(verbose: Any) -> int:
    """Return a level as int; InvalidQueryError for what is none."""
    if not hasattr(verbose, "__index__"):
        raise InvalidQueryError(f"verbose is {verbose!r}; it must be 0, 1, 2 or 3")
    return int(verbose)


def check_fields(given: ResultFilter, name: str, known: Iterable[str]) -> None:
    """Raise InvalidQueryError for a term on a field that nothing has."""
    known = list(known)
    for field in sorted(fields(given) - set(known)):
        raise InvalidQueryError(
            f"{name} has a term on {field!r}, a field that does not exist; "
            f"{did_you_mean(field, known)}"
        )


def _checked(given: ResultFilter, name: str, known: Iterable[str]) -> ResultFilter:
    check_fields(given, name, known)
    return given


def _with_defaults(
    given: object, name: str, defaults: dict[str, Any], terms: dict[str, Any]
) -> ResultFilter:
    """Return a filter with the default terms on fields it says nothing about."""
    filt = _checked(as_filter(given, name), name, RECORD_FIELDS)
    own = fields(filt) | set(terms)
    all_terms = {f: v for f, v in defaults.items() if f not in own} | terms
    for chosen in (all_terms, filt.query_terms_):
        _check_image_type(chosen.get("image_type"))
    if not all_terms:
        return filt
    base = ResultFilter(all_terms)
    return base if is_empty(filt) else base & filt


def _roi_filter(given: object) -> ResultFilter:
    """Return the filter on ROI masks; another space has grids of its own."""
    defaults = basic_roi_terms()
    if not admits(as_filter(given, "roi_filter"), "space", defaults["space"]):
        del defaults["res"]
    return _with_defaults(given, "roi_filter", defaults, {})


def _check_image_type(value: object) -> None:
    """Raise InvalidQueryError for a mistyped image type; other terms pass."""
    value = ResultFilter(image_type=value)["image_type"]
    for name in getattr(value, "accepted_", [value]):
        if isinstance(name, str) and name not in IMAGE_TYPES:
            raise InvalidQueryError(
                f"There is no image_type {name!r}; {did_you_mean(name, IMAGE_TYPES)}"
            )


def _readable(given: ResultFilter) -> ResultFilter | str | None:
    """Return a filter; None for an empty one, and text for one with functions."""
    text = repr(given)
    return None if is_empty(given) else text if "callable_filter=" in text else given


def warn_of_nothing(name: str, given: ResultFilter, among: Any) -> None:
    """Warn that nothing passes a filter, with the values there are.

    Parameters
    ----------
    name : str
        The argument's name.
    given : ResultFilter
        What nothing passes.
    among : list of dict or pandas.DataFrame
        What there is.
    """
    hints = []
    for field in sorted(fields(given)):
        if hasattr(among, "columns"):
            values = set(among[field].dropna().unique())
        else:
            found = (record.get(field) for record in among)
            values = {value for value in found if isinstance(value, Hashable)} - {None}
        admitted = any(admits(given, field, value) for value in values)
        if 0 < len(values) <= _FEW and not admitted:
            hints.append(f"{field} is {listed(sorted(map(str, values)), _FEW)}")
    hint = f" Of what there is, {'; '.join(hints)}." if hints else ""
    warn(f"Nothing passes {name}, {given!r}.{hint}")


def is_empty(given: ResultFilter) -> bool:
    """Return whether a filter passes everything."""
    return given == ResultFilter()


def _names(
    value: object, argument: str, clean: Callable[[Any], str | None], example: str
) -> tuple[str, ...] | None:
    """Return names in one form, each once; None for "all"."""
    if value is None and argument == "rois":
        return ()
    single = isinstance(value, (str, bytes)) or not isinstance(value, Iterable)
    values = [value] if single else list(value)  # type: ignore[call-overload]
    if any(isinstance(v, str) and v.lower() == "all" for v in values):
        if len(values) > 1:
            raise InvalidQueryError(
                f"{argument} holds 'all' beside other names; give either 'all' or names"
            )
        return None
    names = []
    for one in values:
        name = clean(one)
        if name is None:
            raise InvalidQueryError(
                f"{argument} holds {one!r}; give {example}, several of them, or 'all'"
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def _required(names: tuple[str, ...] | None, argument: str) -> tuple[str, ...] | None:
    if names == ():
        raise InvalidQueryError(f"{argument} is empty; name at least one, or 'all'")
    return names


def _clean_roi_name(value: object) -> str | None:
    return clean_roi(value) if isinstance(value, str) and value.strip() else None


def as_limit(max_images: Any) -> int | None:
    """Return the most images, None for all; InvalidQueryError for no whole number."""
    if max_images is None:
        return None
    if isinstance(max_images, bool) or not hasattr(max_images, "__index__"):
        raise InvalidQueryError(
            f"max_images is {max_images!r}; give a whole number, or None for all"
        )
    return None if max_images < 0 else int(max_images)
