"""`Selection`: the arguments of a fetcher, checked and in one form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.keys import (
    NIFTI_EXTENSIONS,
    RECORD_FIELDS,
    Record,
    is_held_out,
    is_of_session,
)
from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS
from laion_fmri_fetchers.layout.names import clean_session, clean_subject, rois_named
from laion_fmri_fetchers.layout.trees import FUNCTIONAL_GRID, IMAGE_TYPES

from .arguments import as_limit, right_place
from .filters import ResultFilter, admits, as_filter, fields, is_empty
from .term_checks import check_fields
from .values import IsIn, in_order


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
    return {"space": "T1w", "res": FUNCTIONAL_GRID, "extension": NIFTI_EXTENSIONS[0]}


_EVERYTHING = ResultFilter()


class Selection(NamedTuple):
    """The arguments of a fetcher; None for subjects, sessions and ROIs means all."""

    subjects: tuple[str, ...] | None = None
    sessions: tuple[str, ...] | None = None
    rois: tuple[str, ...] | None = None
    subject_filter: ResultFilter = _EVERYTHING
    image_filter: ResultFilter = _EVERYTHING
    roi_filter: ResultFilter = _EVERYTHING
    trial_filter: ResultFilter = _EVERYTHING
    max_images: int | None = None

    def is_named(self, record: Record) -> bool:
        """Return whether a file was asked for by a name, and not as one of all.

        The nearest name counts: of a mask the ROI, of other files the session, and
        for files without a session the subject. Noise ceilings only go with images.
        """
        if record["roi"]:
            return bool(self.rois)
        if record["image_type"] == "subject_noise_ceiling":
            return False
        return bool(self.sessions if is_of_session(record) else self.subjects)

    def is_in_sessions(self, record: Record) -> bool:
        """Return whether a file is of a selected session, or of the subject."""
        if not is_of_session(record):
            return True
        if self.sessions is None:
            return not is_held_out(record)
        return record["session"] in self.sessions

    def is_newer(self, record: Record) -> bool:
        """Return whether a file passes the terms on its date."""
        return admits(self.image_filter, "last_modified", record["last_modified"])

    def is_updated(self, record: Record) -> bool:
        """Return whether mode "overwrite" fetches a file again that goes with images.

        It does where the file, too, passes the terms on its version.
        """
        is_changed = admits(self.image_filter, "outdated", record["outdated"])
        return is_changed and self.is_newer(record)

    def as_query(self) -> dict[str, Any]:
        """Return the arguments as plain values, to be kept as JSON and asked again.

        Of functions among the filters, only the names are kept, and a query with these
        cannot be asked again.
        """
        query: dict[str, Any] = self._asdict()
        for name, value in query.items():
            if isinstance(value, ResultFilter):
                query[name] = value.to_dict() or None
            elif name != "max_images":
                query[name] = "all" if value is None else [*value]
        return query


def select(
    subjects: object,
    rois: object = "all",
    sessions: object = "all",
    subject_filter: object = None,
    image_filter: object = None,
    roi_filter: object = None,
    trial_filter: object = None,
    max_images: object = None,
    image_terms: Mapping[str, Any] = MappingProxyType({}),
    arguments: Iterable[str] = (),
    **_: object,
) -> Selection:
    """Check the arguments of a fetcher and bring them to one form.

    Others that say how to fetch are passed over, so that all of a call's can be given,
    ``**locals()``; ``arguments`` are their names.

    Raises
    ------
    InvalidQueryError
        If one is not valid; the message names it.
    """
    roi_terms = basic_roi_terms()
    if not admits(as_filter(roi_filter, "roi_filter"), "space", roi_terms["space"]):
        del roi_terms["res"]  # another space has grids of its own
    terms = _image_terms(image_terms, arguments)
    trials = as_filter(trial_filter, "trial_filter")
    check_fields(trials, "trial_filter", [*{*TRIAL_FIELDS} - {"image_index"}])
    examples = "'ses-01', '01', 1 or a name such as '4BarScreenfLoc'"
    return Selection(
        subjects=subject_names(subjects),
        sessions=_names(sessions, "sessions", clean_session, examples),
        rois=_roi_names(rois),
        subject_filter=as_filter(subject_filter, "subject_filter"),
        image_filter=_with_terms(
            image_filter, "image_filter", basic_image_terms(), terms
        ),
        roi_filter=_with_terms(roi_filter, "roi_filter", roi_terms, {}),
        trial_filter=trials,
        max_images=as_limit(max_images),
    )


def subject_names(subjects: object) -> tuple[str, ...] | None:
    """Return the subjects that an argument names; None for "all".

    Raises
    ------
    InvalidQueryError
        If one cannot be the name of a subject.

    Examples
    --------
    >>> subject_names(1), subject_names(["sub-03", "05"])
    (('sub-01',), ('sub-03', 'sub-05'))
    """
    return _names(subjects, "subjects", clean_subject, "'sub-01', '01' or 1")


def choose_subjects(subjects: object, existing: Sequence[str]) -> list[str]:
    """Return the subjects that an argument names; None and "all" stand for each.

    Raises
    ------
    InvalidQueryError
        If one does not exist.

    Examples
    --------
    >>> choose_subjects(3, ["sub-01", "sub-03"]), choose_subjects(None, ["sub-01"])
    (['sub-03'], ['sub-01'])
    """
    names = None if subjects is None else subject_names(subjects)
    for name in names or ():
        if name not in existing:
            hint = did_you_mean(name, existing)
            raise InvalidQueryError(f"data holds nothing of {name}; {hint}")
    return list(existing if names is None else names)


def is_one_name(given: object) -> bool:
    """Return whether an argument is a single name: neither a list nor "all".

    Examples
    --------
    >>> is_one_name("sub-01"), is_one_name(["sub-01"]), is_one_name("all")
    (True, False, False)
    """
    is_all = isinstance(given, str) and given.lower() == "all"
    return not is_all and (isinstance(given, str) or not isinstance(given, Iterable))


def _image_terms(given: Mapping[str, Any], arguments: Iterable[str]) -> dict[str, Any]:
    """Return the terms on images, given as keywords or, as in nilearn, in one dict."""
    terms = dict(given)
    nested = terms.pop("image_terms", None)
    if not isinstance(nested, (dict, type(None))):
        raise InvalidQueryError(
            f"image_terms is {nested!r}; it must be a dict of terms (field -> value). "
            "Filters and functions are given as image_filter=."
        )
    terms = {**(nested or {}), **terms}
    for name, value in terms.items():
        if name in ("subject", "session", "roi") or name not in RECORD_FIELDS:
            hint = right_place(name, value, [*arguments, *RECORD_FIELDS])
            raise InvalidQueryError(
                f"{name!r} is neither an argument nor a term on images; {hint}"
            )
    return terms


def _with_terms(
    given: object, name: str, defaults: dict[str, Any], terms: dict[str, Any]
) -> ResultFilter:
    """Return a filter with terms, and with default terms on fields it lacks."""
    filt = as_filter(given, name)
    check_fields(filt, name, RECORD_FIELDS)
    for field in fields(filt):
        defaults.pop(field, None)
    base = ResultFilter(defaults | terms)
    for each in (base, filt):
        term = each.query_terms_.get("image_type")
        for value in term.arguments if isinstance(term, IsIn) else [term]:
            if isinstance(value, str) and value not in IMAGE_TYPES:
                hint = did_you_mean(value, IMAGE_TYPES)
                raise InvalidQueryError(f"There is no image_type {value!r}; {hint}")
    if is_empty(base) or is_empty(filt):
        return base if is_empty(filt) else filt
    return base & filt


def _roi_names(given: object) -> tuple[str, ...] | None:
    """Return the ROIs and categories asked for; None for all, () for none."""
    values = [] if given is None else _several(given)
    if [str(value).strip().lower() for value in values] in ([], ["none"]):
        return ()

    def clean(value: object) -> str | None:
        return value if isinstance(value, str) and value.strip() else None

    names = _names(values, "rois", clean, "a name such as 'FFA1'")
    if names is None:
        return None
    return tuple(dict.fromkeys(roi for name in names for roi in rois_named(name)))


def _names(
    given: object, argument: str, clean: Callable[[Any], str | None], examples: str
) -> tuple[str, ...] | None:
    """Return names in one form, each once; None for "all"."""
    values = _several(given)
    if not values:
        raise InvalidQueryError(f"{argument} is empty; name at least one, or 'all'")
    if any(isinstance(value, str) and value.lower() == "all" for value in values):
        if len(values) > 1:
            raise InvalidQueryError(
                f"{argument} holds 'all' beside other names; give either 'all' or names"
            )
        return None
    names: dict[str, None] = {}
    for value in values:
        if (name := clean(value)) is None:
            raise InvalidQueryError(
                f"{argument} holds {value!r}; give {examples}, several of them, or "
                "'all'"
            )
        names[name] = None
    return tuple(names)


def _several(given: object) -> list[Any]:
    """Return the values of an argument, which may be a single one."""
    is_single = isinstance(given, (str, bytes)) or not isinstance(given, Iterable)
    return [given] if is_single else in_order(given)  # type: ignore[arg-type]
