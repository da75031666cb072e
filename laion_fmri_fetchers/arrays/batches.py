"""Trials one by one with their stimuli, for loaders of batches.

A map-style dataset, as torch's DataLoader and others take it. Nothing of torch is
imported. Loaders copy a dataset to worker processes, by fork or by pickling; each
process opens the archive of images when it first reads from it::

    LaionDataset ─┬─ rows.labels_of, rows.positions_of, of each source
                  └─ _Pictures ──▶ pictures.read_image, pictures.decode_image
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError, NotCachedError
from laion_fmri_fetchers.messages import counted, listed

from .align import captions_of, chosen_model, images_of, kind_of, warn_of_invalid
from .pictures import decode_image, image_shape, open_images, read_image
from .rows import labels_of, positions_of


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

    Worker processes may be forked or spawned. Each process opens the archive when it
    first reads an image, and a pickled dataset holds no open file.

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
        _check_betas(betas)
        if transform is not None and not callable(transform):
            raise InvalidQueryError(
                f"transform is {transform!r}; it must be a function of an item"
            )
        trials = betas["trials"]
        labels = labels_of(trials)
        self._rows = betas["data"]
        self._text = {
            "label": labels.astype(str),
            "subject": _text(trials, "subject"),
            "session": _text(trials, "session"),
        }
        self._repetition = _repetition(trials)
        self._pictures = self._embeddings = self._captions = None
        self._row_in: dict[str, np.ndarray] = {}
        if stimuli is not None:
            self._row_in["image"] = _positions(labels, stimuli, "stimuli")
            self._pictures = _Pictures(stimuli, size)
        if embeddings is not None:
            self._row_in["embedding"] = rows = _positions(
                labels, embeddings, "embeddings"
            )
            model = chosen_model(embeddings)
            warn_of_invalid(embeddings, model, rows)
            self._embeddings = embeddings["embeddings"][model]
        if captions is not None:
            rows = _positions(labels, captions, "captions")
            self._row_in["caption"] = rows
            self._captions = _first_human(captions, rows)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._repetition)

    def __getitem__(self, index: int) -> Any:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"trial {i} of {counted(len(self), 'trial')}")
        i %= len(self)
        item: dict[str, Any] = {"betas": np.array(self._rows[i])}
        if self._pictures is not None:
            item["image"] = self._pictures.read(self._row_in["image"][i])
        if self._embeddings is not None:
            item["embedding"] = self._embeddings[self._row_in["embedding"][i]].copy()
        if self._captions is not None:
            item["caption"] = self._captions[self._row_in["caption"][i]]
        for name, values in self._text.items():
            item[name] = str(values[i])
        item["repetition"] = int(self._repetition[i])
        return item if self._transform is None else self._transform(item)

    def __repr__(self) -> str:
        sources = f", with {listed(list(self._row_in))}" if self._row_in else ""
        n_voxels = self._rows.shape[1]
        size = f"{counted(len(self), 'trial')} at {counted(n_voxels, 'voxel')}"
        return f"LaionDataset of {size}{sources}"


class _Handle(NamedTuple):
    """The archive, as a process opened it."""

    images: Any
    opened: contextlib.ExitStack
    """Closes it."""


def _open(archive: str) -> _Handle:
    """Open the archive by a file of this process alone.

    By its name, HDF5 would find that the archive is open already, as a forked process
    inherits what it knows of files, and would read by the file of its parent.
    """
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(open(archive, "rb", buffering=0))
        images = opened.enter_context(open_images(archive, stream))
        return _Handle(images, opened.pop_all())


class _Pictures:
    """Images of the archive, opened by each process that reads from it."""

    def __init__(self, stimuli: Bunch, size: int | tuple[int, int] | None):
        self._handles: dict[int, _Handle] = {}  # by process; of others: inherited
        self._shape = None if size is None else image_shape(size)
        self._archive = stimuli["archive"]
        self._names = list(stimuli["metadata"].index)
        self._places = stimuli["metadata"]["h5_index"].to_numpy()
        if not self._archive or not os.path.exists(self._archive):
            raise NotCachedError(
                f"The archive of stimuli, {self._archive}, is not on disk. Fetch it "
                "with fetch_laion_stimuli."
            )
        with open_images(self._archive):  # an error now, not in a worker
            pass

    def read(self, row: int) -> np.ndarray:
        """Return an image as RGB."""
        name = self._names[row]
        data = read_image(self._images(), int(self._places[row]), name)
        return decode_image(data, name, self._shape, as_displayed=True)

    def _images(self) -> Any:
        """Return the images, opened by this process."""
        handle = self._handles.get(os.getpid())
        if handle is None:
            handle = _open(self._archive)
            # Threads may open the archive at once; the first to note it wins. Not a
            # lock, as another thread might hold it while this process is forked.
            noted = self._handles.setdefault(os.getpid(), handle)
            if handle is not noted:
                handle.opened.close()
            handle = noted
        return handle.images

    def __del__(self) -> None:
        for handle in self._handles.values():
            handle.opened.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}


def _check_betas(betas: Any) -> None:
    if isinstance(betas, dict) and {"data", "trials"} <= {*betas}:
        shape: tuple[int, ...] = getattr(betas["data"], "shape", ())
        if len(shape) == 2 and shape[0] == len(betas["trials"]):
            return
        raise InvalidQueryError(
            f"betas.data has the shape {shape}, and betas.trials "
            f"{counted(len(betas['trials']), 'row')}; both need one row per trial"
        )
    hint = ""
    if isinstance(betas, dict) and any(
        isinstance(value, dict) and "data" in value for value in betas.values()
    ):
        hint = f"; choose a subject, as in betas[{next(iter(betas))!r}]"
    raise InvalidQueryError(
        f"betas is a {type(betas).__name__} without data and trials; it must be what "
        f"load_betas returned{hint}"
    )


def _positions(labels: np.ndarray, source: Any, kind: str) -> np.ndarray:
    kind_of(source, (kind,))
    return positions_of(labels, images_of(source), kind)


def _text(trials: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as an array of str, "" where it is null or not there."""
    if name not in trials:
        return np.full(len(trials), "")
    values = trials[name].astype(object)
    return values.where(values.notna(), "").to_numpy().astype(str)


def _repetition(trials: pd.DataFrame) -> np.ndarray:
    """Return which showing of its image each trial was, -1 where unknown."""
    if "repetition" not in trials:
        return np.full(len(trials), -1)
    numbers = pd.to_numeric(trials["repetition"]).astype("Int64")
    return numbers.fillna(-1).to_numpy(dtype=np.int64)


def _first_human(captions: Bunch, rows: np.ndarray) -> list[str]:
    """Return the first caption by a person of each image of a Bunch."""
    names = captions["image_names"]
    texts = captions_of(captions["captions"], names, "human")
    lacking = [repr(names[row]) for row in np.unique(rows) if not texts[row]]
    if lacking:
        raise InvalidQueryError(
            f"captions hold none by a person of {counted(len(lacking), 'image')}: "
            f"{listed(lacking, 3)}"
        )
    return [text[0] if text else "" for text in texts]
