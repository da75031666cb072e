"""The publishers' train/test splits of images.

fetch_laion_splits ─┬─ _check_pool, _check_names, _check_types
                    ├─ fetch_table ─▶ pool_of, ood_labels    from labels alone
                    └─ obtain_splits                         from files
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from typing import Any

from sklearn.utils import Bunch

from laion_fmri_fetchers.cache.bunch import Result
from laion_fmri_fetchers.cache.settings import make_settings
from laion_fmri_fetchers.cache.splits import obtain_splits
from laion_fmri_fetchers.exceptions import InvalidQueryError, did_you_mean
from laion_fmri_fetchers.layout.labels import OOD_TYPES
from laion_fmri_fetchers.layout.names import clean_subject
from laion_fmri_fetchers.layout.splits import (
    FAMILIES,
    N_OOD,
    OOD,
    POOLS,
    Pool,
    family_of,
    members,
    ood_labels,
    pool_of,
    splits_of,
)
from laion_fmri_fetchers.messages import counted, tell, warn
from laion_fmri_fetchers.query.arguments import only_its_arguments
from laion_fmri_fetchers.query.filters import ResultFilter
from laion_fmri_fetchers.query.shared_docs import documented
from laion_fmri_fetchers.query.splits import StimulusFolds, StimulusSplit
from laion_fmri_fetchers.query.values import in_order

from .public_files import take_inventory_of_stimuli
from .stimulus_table import StimulusQuery, fetch_table

_FROM_LABELS = "labels of the stimulus table"


@documented
@only_its_arguments
def fetch_laion_splits(
    names: str | Iterable[str] = "all",
    pool: str | int = "shared",
    *,
    ood_types: str | Iterable[str] | None = None,
    mode: str | None = None,
    data_dir: str | os.PathLike | None = None,
    timeout: float = 30.0,
    verbose: int = 1,
) -> Bunch:
    """Fetch train/test splits of the images, as the publishers define them.

    They come with the dataset's own package. They are read from the first of: the data
    directory, where they are kept once read; an installed ``laion_fmri``, of which
    nothing is imported; a folder or zip archive named by ``LAION_FMRI_SPLITS``; and the
    publishers' repository, or the address in ``LAION_FMRI_SPLITS_URL``.

    Parameters
    ----------
    names : str or iterable of str, default="all"
        ``"tau"`` (80/20, of matched distribution), ``"ood"`` (tests on all OOD images),
        ``"random_0"`` to ``"random_4"``, ``"cluster_k5_0"`` to ``"cluster_k5_4"`` (a
        cluster of CLIP embeddings is held out), the families ``"random"`` and
        ``"cluster_k5"``, or ``"all"`` of the pool.
    pool : str or int, default="shared"
        Which images are split: ``"shared"`` (1,121 regular images that all subjects
        saw), a subject (``"sub-01"``, ``"01"`` or 1: those and 4,712 of its own), or
        ``"pooled"`` (24,681 of all subjects; ``tau`` and ``cluster_k5`` only).
    ood_types : str or iterable of str, optional
        Types of OOD images on which ``"ood"`` tests, such as ``"shape"``; None: all.
    %(mode)s
    %(data_dir)s
    %(timeout)s
    %(verbose)s

    Returns
    -------
    :class:`sklearn.utils.Bunch`
        - ``splits``: dict of str to `.StimulusSplit`, in the order of ``names``. The
          Bunch finds them by name, too: ``splits["tau"]``.
        - ``random``, ``cluster_k5``: the five splits of a family as one splitter of
          scikit-learn, with ``len()``, items and a loop; only where all five were
          fetched.
        - ``pool``: str.
        - ``source``: dict of str to str, where each split was read.
        - ``generation``: dict of str to str, of the random splits: ``"a"`` (May 2026,
          five independent draws, no folds), ``"b"`` (June 2026, five folds) or ``"c"``
          (2026-09-28, pools of subjects only: known duplicates share a fold); None for
          the others.
        - ``description``: str.

    Raises
    ------
    InvalidQueryError
        If an argument is not valid, or ``LAION_FMRI_SPLITS`` names nothing to read.
    NotCachedError
        Offline, if a split or the table of stimuli is not on disk.
    DownloadError
        If a split could not be downloaded; the text names other ways to get it.
    BucketError
        If the bucket cannot be read and the table of stimuli is not on disk.
    CorruptImageError
        If a file is not a split of the pool, or the table cannot be read. Of such
        files nothing is kept.

    Warns
    -----
    UserWarning
        If the random splits are of a former generation: not ``"b"`` in the pool
        ``"shared"``, or not ``"c"`` in that of a subject.

    See Also
    --------
    query.splits.StimulusSplit : What each of them does.

    Notes
    -----
    A pool has the images that were published with the splits: regular images shown 12
    times, those of NSD shown 4 times, and unique ones. Shared images that are released
    later are in no pool, and in neither set of a split.

    Examples
    --------
    Fit on the train images and score on the test images::

        splits = fetch_laion_splits(pool="sub-01")
        cross_val_score(model, X, y, groups=trials["label"], cv=splits["tau"])

    Fetch nothing but sessions that show OOD images of a type::

        ood = fetch_laion_splits("ood", ood_types="shape")["ood"]
        data = fetch_laion_fmri("sub-01", trial_filter={"label": ood.is_test()})

    On synthetic data:

    >>> from laion_fmri_fetchers.demo import serve_demo
    >>> with serve_demo(subjects=["sub-01"]):
    ...     splits = fetch_laion_splits(["tau", "ood"], verbose=0)
    >>> splits["ood"]
    <StimulusSplit 'ood' of pool 'shared': 7 train, 9 test>
    """
    pool_name = _check_pool(pool)
    asked = _check_names(names, pool_name)
    types = _check_types(ood_types, asked)
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=False,
        n_connections=64,
        timeout=timeout,
        verbose=verbose,
    )
    everything = StimulusQuery(None, ResultFilter())
    table = fetch_table(everything, take_inventory_of_stimuli(settings))
    labels = table.whole["image_name"]
    images = _checked_pool(pool_of(labels, pool_name))
    if len(images.labels) > images.n_published:
        # Later images whose labels look like published ones: files tell them apart.
        tau = obtain_splits(["tau"], images, settings)["tau"].splits["tau"]
        images = Pool(pool_name, tuple(sorted(tau.train + tau.test)))
    read = dict.fromkeys(family_of(name) for name in asked if name != OOD)
    families = obtain_splits(list(read), images, settings)
    splits, source, generation = {}, {}, {}
    for name in asked:
        family = families.get(family_of(name))
        splits[name] = family.splits[name] if family else _ood(labels, images, types)
        source[name] = family.source if family else _FROM_LABELS
        generation[name] = splits[name].generation
    bunch = SplitsBunch(
        splits=splits,
        **{
            family: StimulusFolds(family, [splits[name] for name in names])
            for family, names in FAMILIES.items()
            if splits.keys() >= set(names)
        },
        pool=pool_name,
        source=source,
        generation=generation,
        description=_description(),
    )
    tell(_summary(bunch, images), settings.verbose)
    return bunch


class SplitsBunch(Result):
    """A Bunch that finds splits by their name, too, and says which were not fetched."""

    def __missing__(self, name: str) -> StimulusSplit:
        splits = self.get("splits", {})
        if name in splits:
            return splits[name]
        valid = _valid_names(self.get("pool", "shared"))
        if name not in valid:
            hint = did_you_mean(name, valid)
            raise KeyError(f"{name!r} is not among the splits; {hint}")
        raise KeyError(
            f"{name!r} was not fetched; fetch_laion_splits({name!r}, {self.pool!r}) "
            "fetches it"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(*error.args) from None


def _valid_names(pool: str) -> list[str]:
    """Return the names of the splits and families of a pool."""
    published = splits_of(pool)
    return list(dict.fromkeys([*published, *map(family_of, published)]))


def _check_pool(pool: Any) -> str:
    """Return the name of a pool."""
    text = pool.strip().lower() if isinstance(pool, str) else pool
    name = text if text in POOLS else clean_subject(text)
    if name not in POOLS:
        raise InvalidQueryError(
            f"There is no pool {pool!r}; {did_you_mean(name or pool, POOLS)}"
        )
    return str(name)


def _listed(given: Any, argument: str) -> list[str]:
    """Return one name or several as a list."""
    several = [given] if isinstance(given, str) else given
    if isinstance(several, (bytes, dict)) or not isinstance(several, Iterable):
        raise InvalidQueryError(f"{argument} is {given!r}; give a name, or several")
    each = in_order(several)
    for name in each:
        if not isinstance(name, str):
            raise InvalidQueryError(f"{argument} holds {name!r}; names are str")
    if not each:
        raise InvalidQueryError(f"{argument} is empty; give a name, or several")
    return each


def _check_names(names: Any, pool: str) -> list[str]:
    """Return the names of splits, each once; families stand for their members."""
    published = splits_of(pool)
    asked: list[str] = []
    for name in _listed(names, "names"):
        each = published if name.lower() == "all" else members(name.lower())
        for split in each:
            if split not in published:
                raise InvalidQueryError(
                    f"There is no split {name!r} of pool {pool!r}; "
                    f"{did_you_mean(name, _valid_names(pool))}"
                )
        asked += each
    return list(dict.fromkeys(asked))


def _check_types(types: Any, asked: list[str]) -> list[str]:
    """Return types of OOD images, in alphabetical order."""
    if types is None:
        return sorted(OOD_TYPES)
    if OOD not in asked:
        raise InvalidQueryError(
            "ood_types is given, but names lacks 'ood', the split that it is for"
        )
    chosen = _listed(types, "ood_types")
    for name in chosen:
        if name not in OOD_TYPES:
            raise InvalidQueryError(
                f"There is no OOD type {name!r}; {did_you_mean(name, OOD_TYPES)}"
            )
    return sorted(set(chosen))


def _checked_pool(pool: Pool) -> Pool:
    """Return a pool; raise where the table has none of its images."""
    has_own = pool.name in ("shared", "pooled") or any(
        label.startswith("unique_") for label in pool.labels
    )
    if not pool.labels or not has_own:
        raise InvalidQueryError(
            f"The table of stimuli lists no images of the pool {pool.name!r}, so that "
            "there is nothing to split. Take another pool."
        )
    return pool


def _ood(labels: Iterable[str], pool: Pool, types: list[str]) -> StimulusSplit:
    """Return the split that trains on the pool and tests on OOD images."""
    are_all = len(types) == len(OOD_TYPES)
    if (n_ood := len(ood_labels(labels, None))) > N_OOD:
        warn(
            f"The table of stimuli lists {n_ood} OOD images, more than the {N_OOD} "
            "that were published with the splits; 'ood' tests on the later ones, too."
        )
    test = ood_labels(labels, None if are_all else types)
    params = {"method": "ood_dataset_holdout", "ood_types": types}
    return StimulusSplit(pool.labels, test, OOD, pool.name, params)


def _summary(bunch: Bunch, pool: Pool) -> str:
    """Return a line on what was read, where, and of which generation."""
    n_splits, n_images = counted(len(bunch.splits), "split"), len(pool.labels)
    text = f"{n_splits} of pool {pool.name!r}, {counted(n_images, 'image')}"
    by_source: dict[str, list[str]] = {}
    for name, source in bunch.source.items():
        kind = bunch.generation[name]
        text_of_kind = f" (generation {kind!r})" if kind else ""
        by_source.setdefault(source, []).append(f"{family_of(name)}{text_of_kind}")
    for source, names in by_source.items():
        text += f"; {', '.join(dict.fromkeys(names))}: {source}"
    return text


def _description() -> str:
    file = resources.files(__package__).joinpath("laion_splits.rst")
    return file.read_text("utf-8")
