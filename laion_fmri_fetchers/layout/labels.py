"""The fields of a stimulus: from its label, and from a row of the stimulus table."""

from __future__ import annotations

import re
from typing import Any

from .names import clean_subject, none_if_null

LABEL_FIELDS = ("unique_or_shared", "n_reps", "dataset", "ood_type", "participant")

TRIAL_FIELDS = (
    *("subject", "session", "run", "beta_index", "label", "image_index"),
    *(*LABEL_FIELDS, "repetition"),
)

# The number of an acquisition, `p<NN>` of a label, to the BIDS subject.
PARTICIPANT_OF_NUMBER = {
    "01": "sub-01",
    "02": "sub-06",
    "03": "sub-05",
    "04": "sub-03",
    "05": "sub-07",
}
# Where images were taken from, as labels name it.
SOURCES = ("LAION", "THINGS", "THINGS+", "NSD", "OOD")
OOD_TYPES = frozenset(
    (
        *("cropped", "gabor", "gaudy", "illusion-classic", "illusion-natural"),
        *("relations", "selfmade", "shape", "unusual"),
    )
)

# The mean of 1/n over images, n the repeats that are averaged, of each published map of
# noise ceilings. `Allrep` is of the 6,204 images of a subject as planned: 881 are shown
# 12 times, 5,323 are shown 4 times.
MEAN_INVERSE_REPEATS = {
    "4rep": 1 / 4,
    "12rep": 1 / 12,
    "Allrep": (881 / 12 + 5323 / 4) / 6204,
}

_LABEL = re.compile(
    r"shared_(12|4)rep_(LAION|THINGS\+|NSD|OOD)_(.+)\.(?:jpg|png)"
    r"|unique_(LAION|THINGS\+?)_.+_p([0-9]{2})\.jpg",
    re.DOTALL,
)
_NUMBER_OF_REPS = re.compile(r"(\d+)(?:\s*reps?)?", re.IGNORECASE)
_SOURCE_OF_DATASET = {"THINGSplus": "THINGS+"}


def stimulus_fields(label: str) -> dict[str, Any]:
    """Return the fields of a stimulus from its label.

    Parameters
    ----------
    label : str
        File name of the stimulus image, as in the trial tables.

    Returns
    -------
    dict
        ``unique_or_shared`` ("unique" or "shared"), ``n_reps`` (int: times the image
        is shown to a participant over the main sessions; 4 for a unique one),
        ``dataset`` (the label's SOURCE), ``ood_type`` and ``participant`` ("sub-05").
        Missing fields are None, and so are all fields of an unknown label.

    Examples
    --------
    >>> stimulus_fields("shared_12rep_THINGS+_kmeans_211_bracelet2.jpg")["dataset"]
    'THINGS+'
    >>> stimulus_fields("unique_THINGS_air_pump_p03.jpg")["participant"]
    'sub-05'
    """
    return dict(zip(LABEL_FIELDS, label_values(label), strict=True))


def label_values(label: str) -> tuple[str | int | None, ...]:
    """Return the values of `stimulus_fields` alone, in the order of `LABEL_FIELDS`."""
    match = _LABEL.fullmatch(label)
    if not match:
        return (None,) * len(LABEL_FIELDS)
    n_reps, source, name, own_source, number = match.groups()
    if own_source:
        return "unique", 4, own_source, None, PARTICIPANT_OF_NUMBER.get(number)
    ood_type, _, rest = name.partition("_")
    is_ood = source == "OOD" and ood_type in OOD_TYPES and rest
    return "shared", int(n_reps), source, ood_type if is_ood else None, None


def stimulus_value(field: str, value: object) -> str | int | None:
    """Return a cell of the stimulus table in the spelling of labels.

    Parameters
    ----------
    field : str
        The column, one of `LABEL_FIELDS`; cells of others are returned unchanged.
    value : object
        The cell: ``"12rep"``, ``"THINGSplus"``, or a list of participants.

    Examples
    --------
    >>> stimulus_value("n_reps", "12rep"), stimulus_value("dataset", "THINGSplus")
    (12, 'THINGS+')
    >>> stimulus_value("participant", "sub-05")
    'sub-05'
    >>> stimulus_value("participant", "sub-01;sub-03") is None
    True
    """
    value = none_if_null(value)
    if value is None:
        return None
    text = str(value).strip()
    if field == "n_reps":
        number = _NUMBER_OF_REPS.fullmatch(text)
        return int(number[1]) if number else None
    if field == "dataset":
        return _SOURCE_OF_DATASET.get(text, text)
    if field == "participant":
        return text if clean_subject(text) == text else None
    return text
