"""Names of subjects, sessions and ROIs, as people and folders spell them."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Collection, Iterable
from numbers import Real
from typing import Any

# The published participants; a bucket may hold others.
SUBJECTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")

# The published ROI names by category; a subject has most of them.
ROI_CATEGORIES = {
    category: tuple(names.split())
    for category, names in {
        "body": "EBA FBA",
        "character": "VWFA1 VWFA2 mfswords pSTSwords",
        "face": "AFP1 AFP2 FFA1 FFA2 OFA pSTSfaces",
        "laion": "laionEVC laiondorsal laiongeneral laionlateral laionventral",
        "motion": "MST MT",
        "object": "lobjects vobjects",
        "place": "MPA OPA PPA SPL",
        "retinotopy": "EVC IPCS IPS0 LO1 LO2 SPCS TO1 TO2 V1d V1v V2d V2v V3A V3B V3d "
        "V3v VO1 VO2 hV4",
    }.items()
}
# Visual areas that are published as a dorsal and a ventral part.
ROI_UNIONS = {"V1": ("V1d", "V1v"), "V2": ("V2d", "V2v"), "V3": ("V3d", "V3v")}

_PUBLISHED = (*ROI_CATEGORIES, *itertools.chain(*ROI_CATEGORIES.values()))
_ROI_SPELLING = {name.casefold(): name for name in (*_PUBLISHED, *ROI_UNIONS)}
_NULL = re.compile(r"(n/?a|none|null|)", re.IGNORECASE)


def is_published_roi(name: str) -> bool:
    """Return whether a name is that of a published ROI or of a category."""
    return name in _PUBLISHED


def rois_named(name: str) -> tuple[str, ...]:
    """Return the ROIs or the category that a name stands for, in any case.

    Parameters
    ----------
    name : str
        The name of an ROI, with or without hyphens, of a category, or of one of
        `ROI_UNIONS`.

    Returns
    -------
    tuple of str
        The published names; a name that is not among these, without its hyphens.

    Examples
    --------
    >>> rois_named("ffa-1"), rois_named("V1"), rois_named("Face"), rois_named("FFA9")
    (('FFA1',), ('V1d', 'V1v'), ('face',), ('FFA9',))
    """
    clean = name.strip().replace("-", "")
    spelling = _ROI_SPELLING.get(clean.casefold(), clean)
    return ROI_UNIONS.get(spelling, (spelling,))


def with_unions(names: Collection[str]) -> set[str]:
    """Return names of ROIs, and of the unions of which they have all parts.

    Examples
    --------
    >>> sorted(with_unions(["V1d", "V1v", "V2d"]))
    ['V1', 'V1d', 'V1v', 'V2d']
    """
    unions = (name for name, parts in ROI_UNIONS.items() if {*parts} <= {*names})
    return {*names, *unions}


def subjects_among(folders: Iterable[str]) -> tuple[str, ...]:
    """Return the subjects of folders, in whichever tree these are.

    Examples
    --------
    >>> subjects_among(["derivatives/rois/sub-03/", "sub-01/", "derivatives/x/"])
    ('sub-01', 'sub-03')
    """
    names = {folder[:-1].rpartition("/")[2] for folder in folders}
    return tuple(sorted(name for name in names if clean_subject(name) == name))


def clean_subject(value: object) -> str | None:
    """Return ``"sub-01"`` for ``"sub-01"``, ``"01"``, 1 or 1.0; else None.

    Examples
    --------
    >>> clean_subject("sub-01"), clean_subject("1"), clean_subject(1)
    ('sub-01', 'sub-01', 'sub-01')
    >>> clean_subject("subject one") is None
    True
    """
    return _clean_label("sub", value)


def clean_session(value: object) -> str | None:
    """Return ``"ses-01"`` for ``"ses-01"``, ``"01"`` or 1; names are kept.

    None for anything that cannot be the name of a session.

    Examples
    --------
    >>> clean_session("ses-01"), clean_session(31), clean_session("4BarScreenfLoc")
    ('ses-01', 'ses-31', 'ses-4BarScreenfLoc')
    >>> clean_session("ses 1") is None
    True
    """
    number = _clean_label("ses", value)
    if number or not isinstance(value, str):
        return number
    name = re.fullmatch(r"(?:ses-)?([A-Za-z0-9]+)", value.strip())
    return f"ses-{name[1]}" if name and not name[1].isdecimal() else None


def _clean_label(entity: str, value: object) -> str | None:
    text = value if isinstance(value, str) else str(as_integer(value))
    match = re.fullmatch(rf"(?:{entity}-)?(\d{{1,4}})", text.strip())
    return f"{entity}-{int(match[1]):02d}" if match else None


def as_integer(value: Any) -> int | None:
    """Return a whole number, which may be a float, as MATLAB and R send it; else None.

    Examples
    --------
    >>> as_integer(3), as_integer(3.0), as_integer(3.5), as_integer(True)
    (3, 3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        is_whole = isinstance(value, Real) and float(value).is_integer()
        return int(value) if is_whole else None


def none_if_null(value: Any) -> Any:
    """Return None for the strings that stand for a null in the dataset's tables.

    Examples
    --------
    >>> none_if_null("n/a") is None, none_if_null("None") is None, none_if_null("LAION")
    (True, True, 'LAION')
    """
    if isinstance(value, str) and _NULL.fullmatch(value.strip()):
        return None
    return value
