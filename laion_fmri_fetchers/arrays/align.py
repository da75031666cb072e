"""What fetchers of stimuli returned, in the order of trials.

A source is told by the keys of its Bunch; each kind has images, and rows for them::

    align ─┬─ rows.labels_of
           ├─ images_of ────────▶ the images of a source
           ├─ rows.positions_of ▶ which of them each trial shows
           └─ _embeddings, _pictures, _captions, _segmentations, _metadata
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.rows import labels_of, positions_of

from .pictures import load_stimuli

_KINDS = {
    "embeddings": "embeddings",
    "captions": "captions",
    "segmentations": "segmentations",
    "archive": "stimuli",
    "metadata": "metadata",
}
"""A key of a Bunch -> what the Bunch is; the first that is there counts."""


def align(
    trials: Any,
    source: Bunch,
    *,
    model: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Any:
    """Return what is known of images in the order of trials.

    Parameters
    ----------
    trials : :class:`pandas.DataFrame`, :class:`sklearn.utils.Bunch` or list of str
        ``trials`` of `fetch_laion_fmri` or `load_betas`, the Bunch that holds them, or
        labels of images.
    source : :class:`sklearn.utils.Bunch`
        What one of `fetch_laion_embeddings`, `fetch_laion_stimuli`,
        `fetch_laion_captions`, `fetch_laion_segmentations` and
        `fetch_laion_stimulus_metadata` returned, for all images of the trials.
    model : str, optional
        Which of several embeddings in ``source``.
    size : int or (int, int), optional
        Height and width in pixels of images; by default 1000 x 1000 as stored.

    Returns
    -------
    array, list or :class:`pandas.DataFrame`
        With one row or item per trial:

        - of embeddings: array of float16, shape (n_trials, D), as published; most
          arithmetic wants ``.astype("float32")``;
        - of stimuli: array of uint8, shape (n_trials, height, width, 3), as
          `load_stimuli` makes it; an image is decoded once;
        - of captions: list of list of str, in the order of ``caption_idx``;
        - of segmentations: list of DataFrame, one row per mask;
        - of metadata: DataFrame with the index ``image_name``.

    Raises
    ------
    InvalidQueryError
        If ``source`` lacks an image of the trials, or an argument is not valid.
    NotCachedError
        If the archive of images is not on disk.
    CorruptImageError
        If an image cannot be read.

    Warns
    -----
    UserWarning
        If a model gave no embedding of some of the images.

    See Also
    --------
    LaionDataset : The same, trial by trial.

    Examples
    --------
    ::

        clip = fetch_laion_embeddings("CLIP", trials=betas.trials)
        X = align(betas.trials, clip)  # X[i] is of the image of betas.data[i]
    """
    labels = labels_of(trials)
    kind = kind_of(source)
    rows = positions_of(labels, images_of(source), kind)
    if kind == "embeddings":
        return _embeddings(source, chosen_model(source, model), rows)
    if kind == "stimuli":
        return _pictures(source, rows, size)
    if kind == "captions":
        texts = captions_of(source["captions"], source["image_names"])
        return [list(texts[row]) for row in rows]
    if kind == "segmentations":
        parts = dict(tuple(source["segmentations"].groupby("image_name", sort=False)))
        none = source["segmentations"].iloc[:0]
        return [parts.get(label, none).reset_index(drop=True) for label in labels]
    return source["metadata"].iloc[rows]


def kind_of(source: Any, allowed: Sequence[str] = tuple(_KINDS.values())) -> str:
    """Return which fetcher made a Bunch: ``"embeddings"``, ``"stimuli"`` ...

    Raises
    ------
    InvalidQueryError
        If none did, or one that is not allowed.
    """
    keys = list(source) if isinstance(source, dict) else []
    kind = next((kind for key, kind in _KINDS.items() if key in keys), "")
    if kind not in allowed:
        given = f"a {type(source).__name__}"
        if keys:
            given += f" with {listed(list(map(str, keys)))}"
        raise InvalidQueryError(
            f"{given} was given in place of {' or '.join(allowed)}; pass what the "
            "fetcher of these returned"
        )
    return kind


def images_of(source: Bunch) -> list[str]:
    """Return the images of a Bunch, in the order of its rows."""
    if "image_names" in source:
        return source["image_names"]
    return list(labels_of(source["metadata"]))


def chosen_model(source: Bunch, model: str | None = None) -> str:
    """Return the model whose embeddings are meant.

    Raises
    ------
    InvalidQueryError
        If there are several and none is named, it is not one of them, or there is not
        one row per image.
    """
    models = {str(name).lower(): str(name) for name in source["embeddings"]}
    names = list(models.values())
    if model is None and len(names) != 1:
        raise InvalidQueryError(
            f"embeddings hold {listed(names) or 'no model'}; choose a single one"
        )
    chosen = names[0] if model is None else models.get(str(model).lower())
    if chosen is None:
        raise InvalidQueryError(
            f"embeddings hold no model {model!r}; {did_you_mean(model, names)}"
        )
    n_images = len(source["image_names"])
    for key in ("embeddings", "valid"):
        if len(source[key][chosen]) != n_images:
            raise InvalidQueryError(
                f"{key}[{chosen!r}] has {counted(len(source[key][chosen]), 'row')}, "
                f"but image_names {counted(n_images, 'image')}; cut all keys alike"
            )
    return chosen


def captions_of(
    captions: pd.DataFrame, image_names: Sequence[str], source: str | None = None
) -> list[tuple[str, ...]]:
    """Return the captions of each image, in the order of the table.

    Parameters
    ----------
    captions : pandas.DataFrame
        Of `fetch_laion_captions`.
    image_names : sequence of str
        The images.
    source : {"human", "ai"}, optional
        Only captions by these.

    Returns
    -------
    list of tuple of str
        Empty for an image without captions.
    """
    if source is not None:
        captions = captions[captions["source"] == source]
    texts: dict[str, list[str]] = {}
    for name, text in zip(captions["image_name"], captions["caption"], strict=True):
        texts.setdefault(name, []).append(text)
    return [tuple(texts.get(name, ())) for name in image_names]


def _embeddings(source: Bunch, model: str, rows: np.ndarray) -> np.ndarray:
    warn_of_invalid(source, model, rows)
    return source["embeddings"][model][rows]


def warn_of_invalid(source: Bunch, model: str, rows: np.ndarray) -> None:
    """Warn where a model gave no embedding of an image."""
    invalid = np.unique(rows[~source["valid"][model][rows]])
    if len(invalid):
        names = [repr(source["image_names"][row]) for row in invalid]
        warn(
            f"{model} gave no valid embedding of {counted(len(names), 'image')} "
            f"({listed(names, 3)}); valid of the source tells which."
        )


def _pictures(
    source: Bunch, rows: np.ndarray, size: int | tuple[int, int] | None
) -> np.ndarray:
    distinct, row_of = np.unique(rows, return_inverse=True)
    chosen = Bunch(**{**source, "metadata": source["metadata"].iloc[distinct]})
    pictures = load_stimuli(chosen, size=size)
    assert isinstance(pictures, np.ndarray)  # an iterator only with a batch size
    return pictures[row_of]
