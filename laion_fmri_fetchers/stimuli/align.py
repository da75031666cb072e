"""What fetchers of stimuli returned, in the order of trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.messages import counted, listed, warn
from laion_fmri_fetchers.query.rows import labels_of, positions_of

from .archive import load_stimuli

# A key of a Bunch -> what the Bunch is; the first that is there counts.
_KINDS = {
    "embeddings": "embeddings",
    "captions": "captions",
    "segmentations": "segmentations",
    "archive": "stimuli",
    "metadata": "metadata",
}


def align(
    trials: Any,
    source: Bunch,
    *,
    model: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Any:
    """Align features or stimuli to trials.

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
    kind, rows = find_rows(labels, source, tuple(_KINDS.values()))
    if kind == "embeddings":
        return embeddings_of_model(source, model, rows)[rows]
    if kind == "stimuli":
        distinct, row_of = np.unique(rows, return_inverse=True)
        shown = Bunch(**{**source, "metadata": source["metadata"].iloc[distinct]})
        pictures: Any = load_stimuli(shown, size=size)
        return pictures[row_of]
    if kind == "captions":
        texts = source["captions"].groupby("image_name")["caption"].agg(list)
        return [list(texts.get(label, [])) for label in labels]
    if kind == "segmentations":
        masks = source["segmentations"]
        of_image = dict(iter(masks.groupby("image_name")))
        parts = [of_image.get(label, masks[:0]) for label in labels]
        return [part.reset_index(drop=True) for part in parts]
    return source["metadata"].iloc[rows]


def find_rows(
    labels: np.ndarray, source: Any, allowed: Sequence[str]
) -> tuple[str, np.ndarray]:
    """Return what a Bunch is, and which of its images each trial shows.

    Parameters
    ----------
    labels : numpy.ndarray of str
        The label of each trial.
    source : :class:`sklearn.utils.Bunch`
        What a fetcher of stimuli returned.
    allowed : sequence of str
        What it may be: ``"embeddings"``, ``"stimuli"`` ...

    Raises
    ------
    InvalidQueryError
        If it is something else, or lacks an image of the trials.
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
    names = source["image_names"] if "image_names" in keys else source["metadata"].index
    return kind, positions_of(labels, list(names), kind)


def embeddings_of_model(
    source: Bunch, model: str | None, rows: np.ndarray
) -> np.ndarray:
    """Return the embeddings of a model; warn of those of rows that are not valid.

    Raises
    ------
    InvalidQueryError
        If there are several models and none is named, it is not one of them, or there
        is not one row per image.
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
    warn_of_invalid(source, chosen, rows)
    return source["embeddings"][chosen]


def warn_of_invalid(source: Bunch, model: str, rows: np.ndarray) -> None:
    """Warn where a model gave no embedding of an image."""
    invalid = np.unique(rows[~source["valid"][model][rows]])
    if len(invalid):
        names = [repr(source["image_names"][row]) for row in invalid]
        warn(
            f"{model} gave no valid embedding of {counted(len(names), 'image')} "
            f"({listed(names, 3)}); valid of the source tells which."
        )
