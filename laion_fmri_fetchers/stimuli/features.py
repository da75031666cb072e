"""What is derived from stimulus images: captions, masks of objects, embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.names import none_if_null
from laion_fmri_fetchers.layout.trees import EMBEDDING_MODELS
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.values import in_order

from .hdf5 import check_values, open_hdf5
from .table import read_table, select_rows


def read_captions(file: str, result_filter: ResultFilter) -> pd.DataFrame:
    """Read the table of captions, which are text whatever they say."""
    text, whole = ["image_name", "caption"], ["caption_idx"]
    return read_table(file, result_filter, text=text, whole=whole)


def read_segmentations(file: str, result_filter: ResultFilter) -> pd.DataFrame:
    """Read the table of masks; columns that hold nothing but numbers are numbers."""
    text, whole = ["image_name", "noun"], ["mask_row", "instance_id", "localized"]
    table = read_table(file, result_filter, text=text, whole=whole)
    for name in table.columns.drop([*text, *whole]):
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.notna().equals(table[name].notna()):
            table[name] = numbers.astype(float)
    return table


def select_by_image(
    table: pd.DataFrame,
    wanted: list[str] | None,
    result_filter: ResultFilter,
    name: str,
    order: str,
) -> tuple[pd.DataFrame, list[str]]:
    """Return rows of a table that has several per image, and the images.

    Parameters
    ----------
    table : pandas.DataFrame
        With a column ``image_name``.
    wanted : list of str, optional
        Images, in the order that their rows are wanted in; None: all that have a row
        that passes.
    result_filter : ResultFilter
        Which rows of these to keep.
    name : str
        The argument that this is.
    order : str
        The column by which rows of an image are sorted.
    """
    if wanted is not None:
        table = table[table["image_name"].isin(wanted)]
    chosen = select_rows(table, result_filter, name)
    images = wanted
    if images is None:
        images = list(dict.fromkeys(chosen["image_name"]))
    place = pd.Index(images, dtype=object).get_indexer(pd.Index(chosen["image_name"]))
    chosen = chosen.assign(_place=place).sort_values(["_place", order], kind="stable")
    return chosen.drop(columns="_place").reset_index(drop=True), images


def count_nouns(
    segmentations: pd.DataFrame, image_names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many masks of each noun each image has, and the nouns, sorted."""
    named = segmentations[segmentations["noun"].map(none_if_null).notna()]
    if not len(named):
        return np.zeros((len(image_names), 0), np.int32), np.array([], dtype=object)
    counts = pd.crosstab(named["image_name"], named["noun"])
    counts = counts.reindex(image_names, fill_value=0)
    return counts.to_numpy(np.int32), counts.columns.to_numpy(object)


def model_names(models: Any) -> list[str]:
    """Return the argument ``models`` as models are spelled, each once.

    Examples
    --------
    >>> model_names("all"), model_names(["siglip2", "CLIP"])
    (['CLIP', 'DINOv2', 'PEcore', 'SigLIP2'], ['SigLIP2', 'CLIP'])
    """
    if not isinstance(models, Iterable):
        raise InvalidQueryError(
            f"models is {models!r}; give names such as 'CLIP', several, or 'all'"
        )
    given = [models] if isinstance(models, str) else in_order(models)
    known = {model.lower(): model for model in EMBEDDING_MODELS}
    chosen: list[str] = []
    for model in given:
        lower = str(model).lower()
        if lower != "all" and lower not in known:
            hint = did_you_mean(model, EMBEDDING_MODELS)
            raise InvalidQueryError(f"There is no model {model!r}; {hint}")
        chosen += EMBEDDING_MODELS if lower == "all" else [known[lower]]
    if not chosen:
        raise InvalidQueryError("models is empty; name at least one, or 'all'")
    return list(dict.fromkeys(chosen))


def embedded_images(file: str) -> pd.Index:
    """Return the images in a file of embeddings, in the order of its rows."""
    with open_hdf5(file, "embeddings") as content:
        ids = content["image_ids"]
        check_values(ids, 0, len(ids))
        names = pd.Index(
            [n.decode() if isinstance(n, bytes) else str(n) for n in ids[()]],
            dtype=object,
        )
        if not len(names) == len(content["valid"]) == len(content["embedding"]):
            raise ValueError("its datasets differ in length")
        if not names.is_unique:
            raise ValueError(f"it names {names[names.duplicated()][0]!r} twice")
    return names


def read_embeddings(file: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of embeddings, and whether each is valid."""
    with open_hdf5(file, "embeddings") as content:
        return content["embedding"][()][rows], content["valid"][()].astype(bool)[rows]
