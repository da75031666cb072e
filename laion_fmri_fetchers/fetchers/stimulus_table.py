"""The public table of the stimuli, in the spelling of their labels."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from laion_fmri_fetchers.cache.inventory import Inventory
from laion_fmri_fetchers.exceptions import (
    CorruptImageError,
)
from laion_fmri_fetchers.layout.labels import LABEL_FIELDS, label_values, stimulus_value
from laion_fmri_fetchers.layout.names import none_if_null
from laion_fmri_fetchers.layout.trees import (
    STIMULUS_TABLE,
    stimulus_image,
)
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.term_checks import check_fields, check_terms

from .public_files import fetch_public
from .stimulus_query import mapped, positions, query, read_table


class StimulusQuery(NamedTuple):
    """Which rows of the table are asked for."""

    names: list[str] | None
    filter: ResultFilter

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments as plain values."""
        return query(self.names, stimulus_filter=self.filter)


class StimulusTable(NamedTuple):
    """The table of images: the record of its file, its rows, those selected."""

    record: dict[str, Any]
    whole: pd.DataFrame
    selected: pd.DataFrame


def fetch_table(asked: StimulusQuery, inventory: Inventory) -> StimulusTable:
    """Fetch the table and select rows of it."""
    (record,), _ = fetch_public([STIMULUS_TABLE], inventory, required=True)
    whole = _read_metadata(record["absolute_path"], asked.filter)
    named = whole
    if asked.names is not None:
        source = "the table of stimuli"
        rows = positions(asked.names, whole["image_name"], source, inventory.settings)
        named = whole.iloc[rows]
    check_fields(asked.filter, "stimulus_filter", whole.columns)
    selected = named[asked.filter.mask(named)]
    check_terms("stimulus_filter", asked.filter, named, len(selected))
    return StimulusTable(record, whole, selected.set_index("image_name"))


def _read_metadata(file: str, given: ResultFilter) -> pd.DataFrame:
    """Read the table of stimuli; a row of it is a row of the archive.

    The table and the labels say the same in different words. Users get the label's,
    which the trials have too, and the table's only for a name that is not a label.
    """
    frame = read_table(file, ["image_name"], given)
    names = frame["image_name"]
    for name in names:
        stimulus_image(name)
    if not names.is_unique:
        twice = names[names.duplicated()].iloc[0]
        raise CorruptImageError(
            f"The table {file} names {twice!r} twice. Fetch it again with "
            "mode='overwrite'."
        )
    labels = [label_values(name) for name in names]
    for at, field in enumerate(LABEL_FIELDS):
        cells = frame.get(field, pd.Series([None] * len(frame), dtype=object))
        cells = mapped(cells, partial(stimulus_value, field))
        frame[field] = pd.Series(
            [
                values[at] if values[0] else cell
                for values, cell in zip(labels, cells, strict=True)
            ],
            frame.index,
            object,
        )
    for field in frame.columns.drop(["image_name", *LABEL_FIELDS]):
        frame[field] = mapped(frame[field], none_if_null)
    frame["n_reps"] = pd.to_numeric(frame["n_reps"]).astype("Int64")
    frame["h5_index"] = np.arange(len(frame))
    return frame
