"""Trials one by one with their stimuli, for loaders of batches.

A map-style dataset, as torch's DataLoader and others take it. Nothing of torch is
imported. Loaders copy a dataset to worker processes, by fork or by pickling.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import counted, listed
from laion_fmri_fetchers.query.rows import check_rows, labels_of, table_of

from .align import embeddings_of_model, find_rows
from .archive import (
    decode_image,
    existing_archive,
    image_shape,
    open_images,
    read_image,
)


class LaionDataset:
    """Betas and stimuli, trial by trial: a map-style dataset for loaders of batches.

    Parameters
    ----------
    betas : :class:`sklearn.utils.Bunch`
        What `load_betas` returned, of one subject.
    stimuli : :class:`sklearn.utils.Bunch`, optional
        What `fetch_laion_stimuli` returned. An image is read from the archive and
        decoded when its trial is asked for.
    embeddings : :class:`sklearn.utils.Bunch`, optional
        What `fetch_laion_embeddings` returned, of one model.
    captions : :class:`sklearn.utils.Bunch`, optional
        What `fetch_laion_captions` returned.
    transform : callable, optional
        Takes an item and returns what is given in its place.
    size : int or (int, int), optional
        Height and width in pixels to which images are resized, before ``transform``;
        by default they stay as they are, 1000 x 1000.

    Raises
    ------
    InvalidQueryError
        If a source lacks an image of a trial, captions lack one by a person, or an
        argument is not valid.
    NotCachedError
        If the archive of images is not on disk.
    CorruptImageError
        If the archive cannot be read.

    See Also
    --------
    align : The same at once, as arrays.

    Notes
    -----
    ``dataset[i]`` is a dict, the same keys of each trial:

    - ``betas``: array of shape (n_voxels,), a copy of a row of ``betas.data``;
    - ``image``: array of uint8, shape (height, width, 3), as `load_stimuli` makes it;
    - ``embedding``: array of float16, shape (D,);
    - ``caption``: str, the first caption by a person;
    - ``label``, ``subject``, ``session``: str; ``""`` where null, as the session of an
      average over several;
    - ``repetition``: int, from 1: which showing of the image it was; -1 where unknown.

    ``image``, ``embedding`` and ``caption`` are there where their source was given. A
    negative index counts from the end.

    Worker processes may be forked or spawned, and threads may share a dataset: the
    archive is opened for each image, and closed again.

    Examples
    --------
    ::

        dataset = LaionDataset(betas, embeddings=clip)
        loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=4)
        for batch in loader:
            batch["betas"], batch["embedding"]
    """

    def __init__(
        self,
        betas: Bunch,
        stimuli: Bunch | None = None,
        embeddings: Bunch | None = None,
        captions: Bunch | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        *,
        size: int | tuple[int, int] | None = None,
    ):
        if not isinstance(betas, dict) or not {"data", "trials"} <= {*betas}:
            values = betas.values() if isinstance(betas, dict) else ()
            hint = ""
            if any(isinstance(value, dict) and "data" in value for value in values):
                hint = f"; choose a subject, as in betas[{next(iter(betas))!r}]"
            raise InvalidQueryError(
                f"betas is a {type(betas).__name__} without data and trials; it must "
                f"be what load_betas returned{hint}"
            )
        check_rows(betas)
        if transform is not None and not callable(transform):
            raise InvalidQueryError(
                f"transform is {transform!r}; it must be a function of an item"
            )
        trials = table_of(betas["trials"], ["label"], "betas.trials")
        labels = labels_of(trials, "betas.trials")
        self._betas = betas["data"]
        self._transform = transform
        self._shape = image_shape(size)
        self._archive = self._embeddings = None
        # Rows and values are lists of plain types: these are indexed and pickled
        # several times faster than columns of pandas.
        self._values: dict[str, list[Any]] = {}
        if stimuli is not None:
            _, rows = find_rows(labels, stimuli, ["stimuli"])
            self._archive = existing_archive(stimuli)
            with open_images(self._archive):  # an error now, not in a worker
                pass
            self._h5_rows = stimuli["metadata"]["h5_index"].iloc[rows].tolist()
        if embeddings is not None:
            _, rows = find_rows(labels, embeddings, ["embeddings"])
            self._embeddings = embeddings_of_model(embeddings, None, rows)
            self._embedding_rows = rows.tolist()
        if captions is not None:
            find_rows(labels, captions, ["captions"])
            self._values["caption"] = _human_captions(captions["captions"], labels)
        self._values["label"] = labels.tolist()
        for name, null in (("subject", ""), ("session", ""), ("repetition", -1)):
            column = trials.get(name, pd.Series([None] * len(trials)))
            self._values[name] = [
                null if is_null else type(null)(value)
                for value, is_null in zip(column, column.isna(), strict=True)
            ]

    def __len__(self) -> int:
        return len(self._betas)

    def __getitem__(self, index: int) -> Any:
        i, n_trials = operator.index(index), len(self)
        if not -n_trials <= i < n_trials:
            raise IndexError(f"trial {i} of {counted(n_trials, 'trial')}")
        i %= n_trials
        item: dict[str, Any] = {"betas": np.array(self._betas[i])}
        if self._archive:
            name = self._values["label"][i]
            # Opened each time, 0.6 ms beside some 10 for decoding. An archive that
            # stays open is inherited by forked workers, which would read by the file
            # of their parent, and HDF5 finds it again even if they open it themselves.
            with open_images(self._archive) as images:
                data = read_image(images, self._h5_rows[i], name)
            item["image"] = decode_image(data, name, self._shape)
        if self._embeddings is not None:
            item["embedding"] = self._embeddings[self._embedding_rows[i]].copy()
        for name, values in self._values.items():
            item[name] = values[i]
        return item if self._transform is None else self._transform(item)

    def __repr__(self) -> str:
        n_trials, n_voxels = self._betas.shape
        sources = {
            "image": self._archive is not None,
            "embedding": self._embeddings is not None,
            "caption": "caption" in self._values,
        }
        given = listed([name for name, is_given in sources.items() if is_given])
        size = f"{counted(n_trials, 'trial')} at {counted(n_voxels, 'voxel')}"
        return f"LaionDataset of {size}{given and ', with '}{given}"


def _human_captions(captions: pd.DataFrame, labels: np.ndarray) -> list[str]:
    """Return the first caption by a person of the image of each trial."""
    by_people = captions[captions["source"] == "human"].drop_duplicates("image_name")
    text = dict(zip(by_people["image_name"], by_people["caption"], strict=True))
    missing = sorted({repr(label) for label in labels if label not in text})
    if missing:
        raise InvalidQueryError(
            f"captions have no human caption of {counted(len(missing), 'image')}: "
            f"{listed(missing, 3)}"
        )
    return [text[label] for label in labels]
