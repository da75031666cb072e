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
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.exceptions import InvalidQueryError, NotCachedError
from laion_fmri_fetchers.messages import counted, listed
from laion_fmri_fetchers.query.rows import check_rows, labels_of, positions_of, table_of

from .align import captions_of, chosen_model, images_of, kind_of, warn_of_invalid
from .pictures import decode_image, image_shape, open_images, read_image


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
        trials = table_of(betas["trials"], ["label"], "betas.trials")
        labels = labels_of(trials, "betas.trials")
        self._betas = betas["data"]
        self._pictures = self._embeddings = None
        self._picture_rows: list[int] = []
        self._embedding_rows: list[int] = []
        self._values: dict[str, list] = {}
        """What is kept per trial, of plain types."""
        if stimuli is not None:
            self._picture_rows = _positions(labels, stimuli, "stimuli").tolist()
            self._pictures = _Pictures(stimuli, size)
        if embeddings is not None:
            rows = _positions(labels, embeddings, "embeddings")
            model = chosen_model(embeddings)
            warn_of_invalid(embeddings, model, rows)
            self._embedding_rows = rows.tolist()
            self._embeddings = embeddings["embeddings"][model]
        if captions is not None:
            rows = _positions(labels, captions, "captions")
            self._values["caption"] = _human_captions(captions, rows)
        self._values["label"] = labels.tolist()
        self._values["subject"] = _text(trials, "subject")
        self._values["session"] = _text(trials, "session")
        self._values["repetition"] = _repetition(trials)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._betas)

    def __getitem__(self, index: int) -> Any:
        i, n_trials = operator.index(index), len(self)
        if not -n_trials <= i < n_trials:
            raise IndexError(f"trial {i} of {counted(n_trials, 'trial')}")
        i %= n_trials
        item: dict[str, Any] = {"betas": np.array(self._betas[i])}
        if self._pictures is not None:
            item["image"] = self._pictures.read(self._picture_rows[i])
        if self._embeddings is not None:
            item["embedding"] = self._embeddings[self._embedding_rows[i]].copy()
        for name, values in self._values.items():
            item[name] = values[i]
        return item if self._transform is None else self._transform(item)

    def __repr__(self) -> str:
        n_trials, n_voxels = self._betas.shape
        sources = {
            "image": self._pictures is not None,
            "embedding": self._embeddings is not None,
            "caption": "caption" in self._values,
        }
        given = listed([name for name, is_given in sources.items() if is_given])
        size = f"{counted(n_trials, 'trial')} at {counted(n_voxels, 'voxel')}"
        return f"LaionDataset of {size}{given and ', with '}{given}"


class _Handle(NamedTuple):
    """The archive, as a process opened it."""

    images: Any
    descriptor: int
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
        return _Handle(images, stream.fileno(), opened.pop_all())


class _Pictures:
    """Images of the archive, opened by each process that reads from it."""

    def __init__(self, stimuli: Bunch, size: int | tuple[int, int] | None):
        self._close_in_the_end()
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
        images, descriptor, _ = self._handle()
        data = read_image(images, int(self._places[row]), name, descriptor)
        picture = decode_image(data, name, self._shape, as_displayed=True)
        return np.array(picture)  # one that a transform may write to

    def _handle(self) -> _Handle:
        """Return the archive, opened by this process."""
        handle = self._handles.get(os.getpid())
        if handle is None:
            handle = _open(self._archive)
            # Threads may open the archive at once; the first to note it wins. Not a
            # lock, as another thread might hold it while this process is forked.
            noted = self._handles.setdefault(os.getpid(), handle)
            if handle is not noted:
                handle.opened.close()
            handle = noted
        return handle

    def _close_in_the_end(self) -> None:
        """Close what was opened with this object, or before the interpreter ends.

        HDF5 closes what is open after that, by calls into Python that is gone.
        """
        self._handles: dict[int, _Handle] = {}  # by process; of others: inherited
        weakref.finalize(self, _close_all, self._handles)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_handles"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close_in_the_end()


def _close_all(handles: dict[int, _Handle]) -> None:
    for handle in handles.values():
        handle.opened.close()


def _check_betas(betas: Any) -> None:
    if isinstance(betas, dict) and {"data", "trials"} <= {*betas}:
        check_rows(betas)
        return
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


def _text(trials: pd.DataFrame, name: str) -> list[str]:
    """Return a column as str, "" where it is null or not there."""
    if name not in trials:
        return [""] * len(trials)
    return ["" if is_null else str(value) for value, is_null in _cells(trials[name])]


def _repetition(trials: pd.DataFrame) -> list[int]:
    """Return which showing of its image each trial was, -1 where unknown."""
    if "repetition" not in trials:
        return [-1] * len(trials)
    cells = _cells(trials["repetition"])
    return [-1 if is_null else int(value) for value, is_null in cells]


def _cells(column: pd.Series) -> Iterator[tuple[Any, bool]]:
    """Yield each value of a column, and whether it is null."""
    return zip(column.tolist(), column.isna().tolist(), strict=True)


def _human_captions(captions: Bunch, rows: np.ndarray) -> list[str]:
    """Return the first caption by a person of the image of each trial."""
    names = captions["image_names"]
    texts = captions_of(captions["captions"], names, "human")
    lacking = [repr(names[row]) for row in np.unique(rows) if not texts[row]]
    if lacking:
        raise InvalidQueryError(
            f"captions hold none by a person of {counted(len(lacking), 'image')}: "
            f"{listed(lacking, 3)}"
        )
    return [texts[row][0] for row in rows]
