"""Public data derived from the stimulus images: captions, embeddings, masks.

Each fetcher goes the same way: files from the public bucket, then rows of them, by
names of images and a filter. All return their rows in the order of ``image_names``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

from laion_fmri_fetchers.arrays.align import warn_of_invalid
from laion_fmri_fetchers.arrays.heaps import check_values, open_hdf5
from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.settings import Settings, make_settings
from laion_fmri_fetchers.exceptions import (
    InvalidQueryError,
    did_you_mean,
)
from laion_fmri_fetchers.layout.labels import stimulus_fields
from laion_fmri_fetchers.layout.names import none_if_null
from laion_fmri_fetchers.layout.trees import (
    CAPTIONS,
    EMBEDDING_MODELS,
    SEGMENTATIONS,
    SEGMENTATIONS_TABLE,
    embeddings_id,
)
from laion_fmri_fetchers.messages import counted, listed, tell, warn
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.query.term_checks import check_fields, check_terms
from laion_fmri_fetchers.query.values import in_order

from .public_files import fetch_public, take_inventory_of_stimuli
from .stimulus_query import (
    description,
    images_labelled,
    mapped,
    positions,
    query,
    read_table,
    with_terms,
)

_BLOCK = 1024


@documented
def fetch_laion_captions(
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    caption_filter: Any = None,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **caption_terms: Any,
) -> Bunch:
    """Fetch captions of the stimulus images, written by people and by models.

    Parameters
    ----------
    %(labels)s
    caption_filter : dict, `ResultFilter` or callable, optional
        Which rows of ``captions`` to keep.
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn about names without captions, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    **caption_terms
        Terms on columns of ``captions``, as in ``source="human"``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``captions``: :class:`pandas.DataFrame`, one row per caption, in the order of
          ``image_names`` and of ``caption_idx``: ``image_name``, ``caption_idx`` (0
          for the model's), ``source`` ("human" or "ai"), ``caption``,
          ``origin_collection``, ``participant_id``, ``ai_model``.
        - ``image_names``: list of str, the images.
        - ``captions_file``: str, the table as published.
        %(files_meta)s
        - ``failed``: list; ``data_dir``: str; ``query``: dict, the arguments of the
          call; ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument, a name or a term is not valid.
    NotCachedError
        Offline, if the table is not on disk.
    BucketError
        If the bucket cannot be read and the table is not on disk.
    DownloadError
        If it could not be fetched.
    CorruptImageError
        If it cannot be read.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file than on disk, or if no
        caption passes the filter.

    Examples
    --------
    What people wrote about the images of some trials::

        written = fetch_laion_captions(data.trials, source="human")
        written.captions.groupby("image_name")["caption"].first()
    """
    wanted = images_labelled(labels)
    filt = with_terms(caption_filter, "caption_filter", caption_terms)
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    files, failed = fetch_public(
        [CAPTIONS], take_inventory_of_stimuli(settings), required=True
    )
    file = files[0]["absolute_path"]
    table = _read(file, ["image_name", "caption"], ["caption_idx"], filt)
    if wanted is not None:
        known = table["image_name"].unique()
        rows = positions(wanted, known, "the table of captions", settings)
        wanted = [str(known[row]) for row in rows]
    chosen, shown = _choose(table, wanted, filt, "caption_filter", "caption_idx")
    tell(f"{counted(len(chosen), 'caption')} of {_stimuli(shown)}", settings.verbose)
    return Result(
        captions=chosen,
        image_names=shown,
        captions_file=file,
        files_meta=files,
        **_common(settings, failed, wanted, caption_filter=filt),
    )


@only_its_arguments
@documented
def fetch_laion_embeddings(
    models: str | Sequence[str] = "all",
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Bunch:
    """Fetch embeddings of the stimulus images by vision models.

    Parameters
    ----------
    models : str or sequence of str, default="all"
        ``"CLIP"``, ``"DINOv2"``, ``"PEcore"``, ``"SigLIP2"``, several, or ``"all"``;
        in any case. A file is about 51 MB.
    %(labels)s
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn about images and models that are missing, instead of raising. Images that
        one of the models lacks are left out of all.
    %(n_connections)s
    %(timeout)s
    %(verbose)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``embeddings``: dict, model -> array of float16, shape (n_images, D), rows in
          the order of ``image_names``. D is 1024, for SigLIP2 1152. Only the selected
          rows are read.
        - ``valid``: dict, model -> array of bool, shape (n_images,), whether the model
          gave an embedding of the image.
        - ``image_names``: list of str, in the order of ``labels`` (each once) or of the
          files.
        - ``files``: dict, model -> path.
        %(files_meta)s
        - ``failed``: list of dict, ``id`` and ``reason``; ``data_dir``: str;
          ``query``: dict, the arguments of the call; ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument, a model or a name is not valid.
    NotCachedError
        Offline, if a file is not on disk.
    BucketError
        If the bucket cannot be read and a file is not on disk.
    DownloadError
        If a file could not be fetched.
    CorruptImageError
        If a file cannot be read, or names an image twice.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file than on disk, or if a model gave no
        embedding of some of the images.

    Examples
    --------
    One row per trial::

        clip = fetch_laion_embeddings("CLIP", data.trials)
        row = pd.Index(clip.image_names).get_indexer(data.trials["label"])
        X = clip.embeddings["CLIP"][row]
    """
    chosen = _models(models)
    wanted = images_labelled(labels)
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    models_by_id = {embeddings_id(model): model for model in chosen}
    recs, failed = fetch_public(models_by_id, take_inventory_of_stimuli(settings))
    files = {models_by_id[rec["id"]]: rec["absolute_path"] for rec in recs}
    names_of = {model: _embedded_images(file) for model, file in files.items()}
    common = _images_of_all(names_of, wanted, settings)
    embeddings, valid = {}, {}
    for model, file in files.items():
        rows = names_of[model].get_indexer(pd.Index(common, dtype=object))
        embeddings[model], valid[model] = _read_embeddings(file, rows)
    tell(f"{listed(list(files))} of {_stimuli(common)}", settings.verbose)
    bunch = Result(
        embeddings=embeddings,
        valid=valid,
        image_names=common,
        files=files,
        files_meta=recs,
        **_common(settings, failed, wanted, models=chosen),
    )
    for model in embeddings:
        warn_of_invalid(bunch, model, np.arange(len(common)))
    return bunch


@documented
def fetch_laion_segmentations(
    labels: str | Iterable[str] | pd.DataFrame | None = None,
    *,
    segmentation_filter: Any = None,
    vectorize_nouns: bool = False,
    masks: bool = True,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    allow_missing: bool = False,
    n_connections: int = 64,
    timeout: float = 30.0,
    verbose: int = 1,
    **segmentation_terms: Any,
) -> Bunch:
    """Fetch masks of the objects in the shared stimulus images, with their nouns.

    Parameters
    ----------
    %(labels)s
        Only shared images have masks.
    segmentation_filter : dict, `ResultFilter` or callable, optional
        Which rows of ``segmentations`` to keep.
    vectorize_nouns : bool, default=False
        Count the masks of each noun in each image.
    masks : bool, default=True
        Fetch the masks too, not only the table.
    %(mode)s
    %(data_dir)s
    allow_missing : bool, default=False
        Warn if the masks could not be fetched, instead of raising.
    %(n_connections)s
    %(timeout)s
    %(verbose)s
    **segmentation_terms
        Terms on columns of ``segmentations``, as in ``noun="dog"`` or ``localized=1``.

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``segmentations``: :class:`pandas.DataFrame`, one row per mask, in the order
          of ``image_names`` and of ``mask_row``: ``mask_row``, ``image_name``,
          ``noun``, ``instance_id``, score, bounding box, ``localized`` (0 where the
          noun was found but could not be bounded).
        - ``image_names``: list of str, in the order of ``labels`` (each once, also
          those without masks) or of the table.
        - ``masks_file``: str, HDF5 file whose dataset ``masks`` has one mask per row,
          (1000, 1000) uint8, at ``mask_row``; None without ``masks``.
        - ``segmentations_file``: str, the table as published.
        - ``noun_counts``: array of int32, shape (n_images, n_nouns), and
          ``vocabulary``: array of str, shape (n_nouns,), the nouns of its columns;
          with ``vectorize_nouns`` only.
        %(files_meta)s
        - ``failed``: list of dict, ``id`` and ``reason``; ``data_dir``: str;
          ``query``: dict, the arguments of the call; ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument or a term is not valid.
    NotCachedError
        Offline, if a file is not on disk.
    BucketError
        If the bucket cannot be read and a file is not on disk.
    DownloadError
        If a file could not be fetched.
    CorruptImageError
        If the table cannot be read.

    Warns
    -----
    UserWarning
        If the bucket has a newer version of a file than on disk, or if no mask
        passes the filter.

    Examples
    --------
    ::

        import h5py

        dogs = fetch_laion_segmentations(noun="dog", localized=1)
        with h5py.File(dogs.masks_file, locking=False) as file:
            mask = file["masks"][dogs.segmentations["mask_row"].iloc[0]]
    """
    wanted = images_labelled(labels)
    filt = with_terms(segmentation_filter, "segmentation_filter", segmentation_terms)
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=allow_missing,
        n_connections=n_connections,
        timeout=timeout,
        verbose=verbose,
    )
    inventory = take_inventory_of_stimuli(settings)
    files, failed = fetch_public([SEGMENTATIONS_TABLE], inventory, required=True)
    file = files[0]["absolute_path"]
    table = _read(
        file,
        ["image_name", "noun"],
        ["mask_row", "instance_id", "localized"],
        filt,
        numbers=True,
    )
    if wanted is not None:
        _warn_of_unsegmented(wanted, table)
    chosen, shown = _choose(table, wanted, filt, "segmentation_filter", "mask_row")
    of_masks: list[dict[str, Any]] = []
    if masks and len(chosen):
        of_masks, failed = fetch_public([SEGMENTATIONS], inventory)
    bunch = Result(
        segmentations=chosen,
        image_names=shown,
        masks_file=of_masks[0]["absolute_path"] if of_masks else None,
        segmentations_file=file,
        files_meta=files + of_masks,
        **_common(settings, failed, wanted, segmentation_filter=filt),
    )
    if vectorize_nouns:
        bunch.noun_counts, bunch.vocabulary = _count_nouns(chosen, shown)
    tell(f"{counted(len(chosen), 'mask')} of {_stimuli(shown)}", settings.verbose)
    return bunch


def _stimuli(names: list[str]) -> str:
    return counted(len(names), "stimulus image")


def _common(
    settings: Settings, failed: list[dict], wanted: list[str] | None, **asked: Any
) -> dict[str, Any]:
    """Return the keys that all Bunches have."""
    filters = {k: v for k, v in asked.items() if isinstance(v, ResultFilter)}
    others = {k: v for k, v in asked.items() if k not in filters}
    return {
        "failed": failed,
        "data_dir": settings.data_dir,
        "query": {**query(wanted, **filters), **others},
        "description": description(),
    }


# --- Tables ----------------------------------------------------------------------


def _read(
    file: str,
    text: list[str],
    whole: list[str],
    given: ResultFilter,
    numbers: bool = False,
) -> pd.DataFrame:
    """Read a table whose columns ``text`` stay text and ``whole`` are whole numbers.

    With ``numbers``, other columns that hold nothing but numbers are numbers too.
    """
    frame = read_table(file, text, given, whole)
    for name in frame.columns.drop([*text, *whole]):
        frame[name] = mapped(frame[name], none_if_null)
        if numbers:
            converted = pd.to_numeric(frame[name], errors="coerce")
            if converted.notna().equals(frame[name].notna()):
                frame[name] = converted.astype(float)
    return frame


def _choose(
    table: pd.DataFrame,
    wanted: list[str] | None,
    filt: ResultFilter,
    name: str,
    then_by: str,
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of images that pass, in order, and the images."""
    check_fields(filt, name, table.columns)
    if wanted is not None:
        table = table[table["image_name"].isin(wanted)]
    chosen = table[filt.mask(table)]
    check_terms(name, filt, table, len(chosen))
    shown = list(dict.fromkeys(chosen["image_name"])) if wanted is None else wanted
    place = pd.Index(shown, dtype=object).get_indexer(pd.Index(chosen["image_name"]))
    chosen = chosen.assign(_at=place).sort_values(["_at", then_by], kind="stable")
    return chosen.drop(columns="_at").reset_index(drop=True), shown


def _warn_of_unsegmented(wanted: list[str], table: pd.DataFrame) -> None:
    known = set(table["image_name"])
    lacking = [
        one
        for one in wanted
        if one not in known and stimulus_fields(one)["unique_or_shared"] != "unique"
    ]
    if lacking:
        names = listed([repr(one) for one in lacking])
        warn(f"The table of segmentations has no masks of {names}.")


def _count_nouns(chosen: pd.DataFrame, own: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of nouns in images, and the nouns."""
    from sklearn.feature_extraction import DictVectorizer

    counts: dict[str, Counter] = {one: Counter() for one in own}
    for image, noun in zip(chosen["image_name"], chosen["noun"], strict=True):
        if none_if_null(noun) is not None:
            counts[image][noun] += 1
    if not counts:
        return np.zeros((0, 0), np.int32), np.array([], dtype=object)
    vectorizer = DictVectorizer(dtype=np.int32, sparse=False)
    matrix = vectorizer.fit_transform(counts.values())
    return matrix, np.array(vectorizer.feature_names_, dtype=object)


# --- Embeddings ------------------------------------------------------------------


def _models(models: Any) -> list[str]:
    """Return names of models as they are published, each once."""
    if not isinstance(models, Iterable):
        raise InvalidQueryError(
            f"models is {models!r}; give names such as 'CLIP', several, or 'all'"
        )
    given = [models] if isinstance(models, str) else in_order(models)
    if any(isinstance(one, str) and one.lower() == "all" for one in given):
        return list(EMBEDDING_MODELS)
    by_lower = {model.lower(): model for model in EMBEDDING_MODELS}
    for one in given:
        if not isinstance(one, str) or one.lower() not in by_lower:
            hint = did_you_mean(one, EMBEDDING_MODELS)
            raise InvalidQueryError(f"There is no model {one!r}; {hint}")
    if not given:
        raise InvalidQueryError("models is empty; name at least one, or 'all'")
    return list(dict.fromkeys(by_lower[one.lower()] for one in given))


def _embedded_images(file: str) -> pd.Index:
    """Return the names of the images in a file of embeddings, in the order of rows."""
    with open_hdf5(file, "embeddings") as content:
        check_values(content["image_ids"], 0, len(content["image_ids"]))
        raw = content["image_ids"][()]
        names = pd.Index(
            [n.decode() if isinstance(n, bytes) else str(n) for n in raw], dtype=object
        )
        if not len(names) == len(content["valid"]) == len(content["embedding"]):
            raise ValueError("its datasets differ in length")
        if not names.is_unique:
            raise ValueError(f"it names {names[names.duplicated()][0]!r} twice")
    return names


def _images_of_all(
    names_of: dict[str, pd.Index], wanted: list[str] | None, settings: Settings
) -> list[str]:
    """Return the images that all models have; raise or warn about others."""
    if wanted is None:
        wanted = list(dict.fromkeys(chain.from_iterable(names_of.values())))
    for model, names in names_of.items():
        rows = positions(wanted, names, f"the embeddings of {model}", settings)
        wanted = [str(names[row]) for row in rows]
    return wanted


def _read_embeddings(file: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of embeddings, and whether each is valid."""
    with open_hdf5(file, "embeddings") as content:
        embedding, valid = content["embedding"], content["valid"][()].astype(bool)
        if np.array_equal(rows, np.arange(len(embedding))):
            return embedding[()], valid
        return _rows(embedding, rows), valid[rows]


def _rows(dataset: Any, rows: np.ndarray) -> np.ndarray:
    """Return some rows of a dataset; read block by block, only blocks with any."""
    found = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    for start in np.unique(rows // _BLOCK) * _BLOCK:
        inside = np.flatnonzero((rows >= start) & (rows < start + _BLOCK))
        first, last = rows[inside].min(), rows[inside].max()
        found[inside] = dataset[first : last + 1][rows[inside] - first]
    return found
