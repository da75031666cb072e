"""Train/test splits of the images, as the dataset's authors define them.

Which images a pool has, and which of all are OOD, follows from labels. The other splits
are read from JSON files of theirs, checked, and kept in the data directory::

    fetch_laion_splits ─┬─ _fetch_labels ─▶ _images_of
                        └─ _obtain_family ─┬─ sources ─▶ _read_files
                                           └─ _check_family ─▶ as_split

Each is a `StimulusSplit`: a term of a filter, masks over trials, a splitter of
scikit-learn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

from .cache.bunch import Result
from .cache.files import read_file, write_atomically
from .cache.inventory import take_inventory_of_stimuli
from .cache.obtain import fetch_public
from .cache.settings import Settings, make_settings
from .cache.state import state_path
from .exceptions import (
    CorruptImageError,
    DownloadError,
    InvalidQueryError,
    did_you_mean,
)
from .layout.labels import OOD_TYPES, label_values
from .layout.names import SUBJECTS, clean_subject
from .layout.trees import STIMULUS_TABLE
from .messages import counted, functions_to_user, line_of_user, listed, tell, warn
from .query.arguments import only_its_arguments, user_path
from .query.shared_docs import documented
from .query.values import IsIn, check_order, in_order, is_null
from .remote.bucket import read_documents

# Splits that belong together; the test images of folds are the parts of a pool.
FAMILIES = {
    "random": tuple(f"random_{i}" for i in range(5)),
    "cluster_k5": tuple(f"cluster_k5_{i}" for i in range(5)),
    "tau": ("tau",),
    "ood": ("ood",),
}


class _Pool(NamedTuple):
    """A pool as published: its size, which splits there are, and of which sizes."""

    n_images: int
    # Family -> how many images each of its splits tests on, where that is known.
    n_test: dict[str, tuple[int, ...]]
    # Generation of the random splits that is in force.
    current: str | None = None


_N_TEST = {"tau": (1167,), "random": (1167, 1167, 1167, 1166, 1166), "cluster_k5": ()}
_N_TEST_SHARED = {
    "random": (225, 224, 224, 224, 224),
    "cluster_k5": (274, 248, 246, 225, 128),
    "tau": (224,),
    "ood": (371,),
}
POOLS = {
    "shared": _Pool(1121, _N_TEST_SHARED, "b"),
    **dict.fromkeys(SUBJECTS, _Pool(5833, {**_N_TEST_SHARED, **_N_TEST}, "c")),
    "pooled": _Pool(24_681, {"cluster_k5": (), "tau": (4936,)}),
}
# Repetitions and source of shared images that are in pools. Those that are released
# later, such as images of LAION that are shown 4 times, are in none.
_SHARED_FORMS = {(12, "LAION"), (12, "THINGS+"), (4, "NSD")}
# What is wrong with former generations of the random splits.
_FORMER = {
    "a": "independent draws, no folds: some images are tested on often, others never",
    "b": "folds of which known duplicates leak from the training images to the test",
}

PACKAGE = "laion_fmri"
PLACE_VARIABLE = "LAION_FMRI_SPLITS"
URL_VARIABLE = "LAION_FMRI_SPLITS_URL"
# At the commit that has all pools and the corrected random splits.
REPOSITORY_URL = (
    "https://raw.githubusercontent.com/ViCCo-Group/LAION-fMRI/"
    "cf82765ced029de81c3bec7254b8cbd6a65e3686/laion_fmri/splits/data"
)
# Where folders of pools lie in the package, in its repository, or in a part of it.
_ROOTS = ("", "data", "splits/data", "laion_fmri/splits/data")
# The largest file has 1.1 MB, with 45 bytes per label.
MOST_BYTES = 4 * 2**20
_WAYS = (
    f"install the dataset's own package, {PACKAGE}; or name a folder or zip archive of "
    f"its splits by {PLACE_VARIABLE}, or an address that has them by {URL_VARIABLE}"
)


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
    """Fetch train/test splits of the images, as the dataset's authors define them.

    They come with the dataset's own package. They are read from the first of: the data
    directory, where they are kept once read; an installed ``laion_fmri``, of which
    nothing is imported; a folder or zip archive named by ``LAION_FMRI_SPLITS``; and the
    authors' repository, or the address in ``LAION_FMRI_SPLITS_URL``.

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
    splits.StimulusSplit : What each of them does.

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
    pool_name = clean_subject(pool) or str(pool).strip().lower()
    _check_known(pool_name, POOLS, f"pool {pool!r}")
    asked, types = _check_names(names, ood_types, pool_name)
    settings = make_settings(
        mode,
        data_dir,
        allow_missing=False,
        n_connections=64,
        timeout=timeout,
        verbose=verbose,
    )
    labels = _fetch_labels(settings)
    images = _images_of(pool_name, labels)
    if len(images) > POOLS[pool_name].n_images:
        # Later images whose labels look like published ones: a file tells them apart.
        (tau,), _ = _obtain_family("tau", pool_name, images, settings)
        images = sorted(tau.train + tau.test)
    found: dict[str, tuple[StimulusSplit, str]] = {}
    read: tuple[StimulusSplit, ...]
    for family, members in FAMILIES.items():
        if {*members}.isdisjoint(asked):
            continue
        if family == "ood":
            ood = sorted(x for x in labels if label_values(x)[2] == "OOD")
            if ood_types is not None:
                ood = [x for x in ood if label_values(x)[3] in types]
            params = {"method": "ood_dataset_holdout", "ood_types": types}
            read = (StimulusSplit(images, ood, family, pool_name, params),)
            source = "labels of the stimulus table"
        else:
            read, source = _obtain_family(family, pool_name, images, settings)
        generation, current = read[0].generation, POOLS[pool_name].current
        if family == "random" and generation != current:
            what = _FORMER.get(str(generation), "which this version does not know")
            warn(
                f"The random splits of pool {pool_name!r} from {source} are of "
                f"generation {generation!r}, {what}; {current!r} is current. Update or "
                f"remove that source, or unset {PLACE_VARIABLE} if it names it, and "
                "use mode='overwrite'; or update this package."
            )
        found |= {split.name: (split, source) for split in read}
    splits = {name: found[name][0] for name in asked}
    folds = {
        family: StimulusFolds(splits[name] for name in FAMILIES[family])
        for family in ("random", "cluster_k5")
        if splits.keys() >= {*FAMILIES[family]}
    }
    n_splits, n_images = counted(len(splits), "split"), counted(len(images), "image")
    places = ", ".join(dict.fromkeys(source for _, source in found.values()))
    text = f"{n_splits} of pool {pool_name!r}, {n_images}, from {places}"
    tell(text, settings.verbose)
    description = resources.files(__package__).joinpath("laion_splits.rst")
    return SplitsBunch(
        splits=splits,
        **folds,
        pool=pool_name,
        source={name: found[name][1] for name in asked},
        generation={name: split.generation for name, split in splits.items()},
        description=description.read_text("utf-8"),
    )


class SplitsBunch(Result):
    """A Bunch that finds splits by their name, too, and says which were not fetched."""

    def __missing__(self, name: str) -> StimulusSplit:
        if name in self.get("splits", {}):
            return self["splits"][name]
        known = _known_names(self.get("pool", "shared"))
        hint = did_you_mean(name, known)
        if name in known:
            hint = f"fetch_laion_splits({name!r}, {self.pool!r}) fetches it"
        raise KeyError(f"{name!r} was not fetched; {hint}")

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(*error.args) from None


def _known_names(pool: str) -> dict[str, tuple[str, ...]]:
    """Return what may be asked for of a pool -> the splits that it stands for."""
    families = {family: FAMILIES[family] for family in POOLS[pool].n_test}
    every = tuple(itertools.chain(*families.values()))
    return {**{name: (name,) for name in every}, **families, "all": every}


def _check_known(name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        raise InvalidQueryError(f"There is no {what}; {did_you_mean(name, known)}")


def _check_names(names: Any, ood_types: Any, pool: str) -> tuple[list[str], list[str]]:
    """Return the splits asked for, each once, and the types of OOD images, sorted."""
    known = _known_names(pool)
    asked: dict[str, None] = {}
    for name in _strings(names, "names"):
        _check_known(name.lower(), known, f"split {name!r} of pool {pool!r}")
        asked |= dict.fromkeys(known[name.lower()])
    if ood_types is None:
        return list(asked), sorted(OOD_TYPES)
    if "ood" not in asked:
        raise InvalidQueryError("ood_types is given, but 'ood' is not among names")
    types = sorted({*_strings(ood_types, "ood_types")})
    for ood_type in types:
        _check_known(ood_type, OOD_TYPES, f"OOD type {ood_type!r}")
    return list(asked), types


def _strings(given: Any, argument: str, nulls: bool = False) -> list[str]:
    """Return one string or several as a list; those of a set are sorted."""
    is_list = isinstance(given, Iterable) and not isinstance(given, (bytes, Mapping))
    strings = [given] if isinstance(given, str) else in_order(given) if is_list else []
    if not strings:
        raise InvalidQueryError(f"{argument} is {_shown(given)}; give names in a list")
    for text in strings:
        if not (isinstance(text, str) or (nulls and is_null(text))):
            raise InvalidQueryError(
                f"{argument} holds {_shown(text)}, which is not a name"
            )
    return strings


def _shown(value: Any) -> str:
    """Return a value as text of a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- From labels ----------------------------------------------------------------------


def _fetch_labels(settings: Settings) -> list[str]:
    """Return the labels of all images, from the public table of stimuli."""
    import pandas as pd

    inventory = take_inventory_of_stimuli(settings)
    (record,), _ = fetch_public([STIMULUS_TABLE], inventory, required=True)
    file = record["absolute_path"]
    try:
        table = pd.read_csv(file, usecols=["image_name"], dtype=str, na_filter=False)
    except ValueError as error:  # such are those of pandas, and of decoding
        advice = "Fetch it again with mode='overwrite'."
        raise CorruptImageError(f"{file} is broken: {error}. {advice}") from error
    return table["image_name"].unique().tolist()


def _images_of(pool: str, labels: Iterable[str]) -> list[str]:
    """Return the images of a pool, in alphabetical order."""
    images = []
    for label in labels:
        kind, n_reps, dataset, _, subject = label_values(label)
        is_shared = kind == "shared" and (n_reps, dataset) in _SHARED_FORMS
        if is_shared or (subject is not None and pool in (subject, "pooled")):
            images.append(label)
    own = "unique_" if pool in SUBJECTS else ""
    if not any(label.startswith(own) for label in images):
        raise InvalidQueryError(f"The table of stimuli has no images of pool {pool!r}")
    return sorted(images)


# --- From files -----------------------------------------------------------------------


class Source(NamedTuple):
    """A place that may have files of splits: a folder, a zip archive, or an address."""

    # "package", "variable" or "web".
    kind: str
    place: str


def sources() -> Iterator[Source]:
    """Yield the places outside the data directory, in the order of asking.

    Raises
    ------
    InvalidQueryError
        If a variable of the environment names nothing that can be one.
    """
    spec = importlib.util.find_spec(PACKAGE)  # which imports nothing of it
    for folder in (spec and spec.submodule_search_locations) or ():
        place = os.path.join(folder, "splits", "data")
        if os.path.isdir(place):
            yield Source("package", place)
    if given := os.environ.get(PLACE_VARIABLE):
        place = user_path(given, PLACE_VARIABLE)
        if not (os.path.isdir(place) or zipfile.is_zipfile(place)):
            raise InvalidQueryError(
                f"{PLACE_VARIABLE} is {given!r}, which is neither a folder nor a zip "
                "archive; name one that holds shared/tau.json and others"
            )
        yield Source("variable", place)
    url = (os.environ.get(URL_VARIABLE) or REPOSITORY_URL).rstrip("/")
    # A login or token in it would be shown in messages.
    if not re.fullmatch(r"https?://[^@?#]+", url):
        raise InvalidQueryError(
            f"{URL_VARIABLE} must be an http(s) address without a login and a query, "
            "such that tau.json of the pool shared is at shared/tau.json below it"
        )
    yield Source("web", url)


def _obtain_family(
    family: str, pool: str, images: list[str], settings: Settings
) -> tuple[tuple[StimulusSplit, ...], str]:
    """Return the splits of a family and where they were read, and keep them.

    They come from one source and are kept in one file, so that they are of one version.
    """
    file = state_path(settings.data_dir, "splits", pool, f"{family}.json")
    if not settings.overwrites and os.path.exists(file):
        try:
            kept = json.loads(read_file(file))
            return _check_family(family, kept["files"], pool, images), kept["source"]
        except (OSError, KeyError, RecursionError, TypeError, ValueError) as error:
            warn(f"{file} cannot be used: {error}. The splits are read anew.")
    which = f"The splits {family} of pool {pool!r} are not in {file.parent.parent}"
    problem = "it does not have them"
    for source in sources():
        if source.kind == "web":
            advice = f"Read them from {source.place}, or {_WAYS}."
            settings.refuse_offline(f"{which}. {advice}")
        try:
            files = read_files(source, pool, FAMILIES[family], settings)
            splits = _check_family(family, files, pool, images) if files else ()
        except DownloadError as error:
            problem, splits = str(error), ()
        except ValueError as error:
            # The package has splits of the published images. A demo, or a mirror of
            # a part of the dataset, has other pools, for which they are no error.
            if source.kind == "package" and len(images) < POOLS[pool].n_images:
                continue
            raise CorruptImageError(
                f"The splits of pool {pool!r} from {source.place} are not valid: "
                f"{error}. Nothing of them was kept. Update or remove that source, or "
                "correct the variable that names it."
            ) from None
        if splits:
            content = json.dumps({"source": source.place, "files": files})
            with contextlib.suppress(OSError):  # of a directory that cannot be written
                write_atomically(file, content.encode())
            return splits, source.place
    raise DownloadError(
        f"{which} and could not be downloaded ({source.place}: {problem}). Check the "
        f"network and call again; or {_WAYS}.",
        failed=[{"id": family, "reason": problem}],
    )


def read_files(
    source: Source, pool: str, names: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Return what the files of splits that a source has hold, by name.

    Raises
    ------
    ValueError
        If one cannot be read, or is not JSON.
    DownloadError
        If a server cannot be reached, or refuses one.
    """
    if source.kind == "web":
        documents = read_documents(
            [f"{source.place}/{pool}/{name}.json" for name in names],
            most_bytes=MOST_BYTES,
            timeout=settings.timeout,
            verbose=settings.verbose,
        )
        files = {n: d for n, d in zip(names, documents, strict=True) if d is not None}
    else:
        files = read_local(source.place, pool, names)
    contents = {}
    for name, content in files.items():
        try:
            contents[name] = json.loads(content)
        except (ValueError, RecursionError) as error:  # noqa: PERF203
            raise ValueError(f"{name}.json: it is not JSON ({error})") from None
    return contents


def read_local(place: str, pool: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read files of a folder or zip archive, of which nothing is unpacked."""
    files: dict[str, bytes] = {}
    try:
        tops: list[Any] = [Path(place)]
        if os.path.isfile(place):
            archive = zipfile.Path(place)
            # GitHub's archive of a repository has it in a folder.
            tops = [archive, *(entry for entry in archive.iterdir() if entry.is_dir())]
        for top, root, name in itertools.product(tops, _ROOTS, names):
            file = top / root / pool / f"{name}.json"
            if name not in files and file.is_file():
                files[name] = file.read_bytes()
    # Of an archive that is damaged, has a password, or is packed in an unknown way.
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"it cannot be read ({error})") from None
    return files


def _check_family(
    family: str, files: Mapping[str, Any], pool: str, images: list[str]
) -> tuple[StimulusSplit, ...]:
    """Return the splits that files describe, checked one by one and as a whole.

    Raises
    ------
    ValueError
        If a file is missing or not a split of the pool, or the family is not whole; the
        text begins with the name of the file.
    """
    published, splits = POOLS[pool], []
    # Images may be more than published: those released later make no split incomplete.
    n_images = min(len(images), published.n_images)
    for name in FAMILIES[family]:
        try:
            if name not in files:
                raise ValueError("it is missing, though others are there")
            split = as_split(files[name], name, pool)
            labels = {*split.train, *split.test}
            if len(labels) != n_images or labels.difference(images):
                raise ValueError(
                    f"it does not split the {n_images:,} images of the pool {pool}; "
                    f"{_shown(min(labels.symmetric_difference(images)))} differs"
                )
        except ValueError as error:
            raise ValueError(f"{name}.json: {error}") from None
        splits.append(split)
    tests = [label for split in splits for label in split.test]
    is_partition = len(tests) == len({*tests}) == len(images)
    generation = _generation_of(splits, is_partition) if family == "random" else None
    if family == "cluster_k5" and not is_partition:
        raise ValueError(f"{family}: an image is tested on twice, or never")
    sizes, expected = tuple(len(s.test) for s in splits), published.n_test[family]
    is_whole = len(images) >= published.n_images and generation != "a"
    if is_whole and expected not in ((), sizes):
        raise ValueError(f"{family} tests on {sizes} images; published are {expected}")
    return tuple(replace(split, generation=generation) for split in splits)


def as_split(content: Any, name: str, pool: str | None = None) -> StimulusSplit:
    """Return the split that a file describes; ValueError says what is wrong with it."""
    try:
        (variant,) = content["variants"]
        train, test = variant["train_ids"], variant["test_ids"]
        params = dict(content.get("params", {}))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("it has no single variant of train_ids and test_ids") from None
    if content.get("name", name) != name:
        raise ValueError(f"it is named {_shown(content['name'])}")
    return StimulusSplit(train, test, name, pool, params)


def _generation_of(splits: Sequence[StimulusSplit], is_partition: bool) -> str:
    """Return the generation of random splits; of later ones, their revision."""
    revisions = {str(split.params.get("revision")) for split in splits}
    are_folds = any("fold" in split.params for split in splits)
    if not (is_partition or are_folds) and revisions == {"None"}:
        return "a"
    if not is_partition or len(revisions) > 1:
        raise ValueError(
            "random: an image is tested on twice, or never, or the files are not of "
            "one generation"
        )
    (revision,) = revisions
    if revision == "2" and splits[0].pool != "shared":
        return "c"
    return "b" if revision == "None" else f"revision {revision}"


# --- Splits ---------------------------------------------------------------------------


class _Splitter:
    """What scikit-learn asks of the ``cv`` argument of its functions."""

    # The splits, one or several.
    _splits: Any

    @cached_property
    def _told(self) -> set[tuple]:
        """Lines of the user's code, and kinds of rows of which they were told."""
        return set()

    def __deepcopy__(self, memo: dict) -> _Splitter:
        return self  # scikit-learn copies its splitter often; it does not change

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002, N803
        """Return the number of splits; the arguments are those of scikit-learn."""
        return len(self._splits)

    def split(
        self,
        X: Any,  # noqa: N803
        y: Any = None,  # noqa: ARG002
        groups: Any = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows to train and to test on, as scikit-learn's splitters do.

        Parameters
        ----------
        X : array-like, shape (n_trials, …)
            One row per trial, or per image where repeats are averaged; it is not read.
        y : object, optional
            Not used.
        groups : sequence of str or DataFrame, shape (n_trials,)
            The label of each row: ``trials["label"]``.

        Yields
        ------
        train, test : numpy.ndarray of int
            Rows of X. A row whose image is in neither set is in neither.

        Raises
        ------
        InvalidQueryError
            If groups are missing, are not the labels of the rows, or leave nothing to
            train or to test on.

        Warns
        -----
        UserWarning
            If rows are in neither set; the text says how many, and which images. If
            scikit-learn's ``permutation_test_score`` has ``groups``: it permutes ``y``
            only among rows of a group, here an image.
        """
        if groups is None:
            raise InvalidQueryError("groups are missing; pass groups=trials['label']")
        labels = _row_labels(groups, "groups")
        n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
        if n_rows != len(labels):
            raise InvalidQueryError(f"X has {n_rows} rows, groups {len(labels)} labels")
        callers = functions_to_user()
        # A search on this split calls it too, whatever the test outside it permutes.
        if "permutation_test_score" in callers and "fit" not in callers:
            self._warn_once(
                ["permutation"],
                "permutation_test_score with groups permutes y only among rows of the "
                "same image, so its p-value does not tell whether y depends on images. "
                "Average repeats, leave out groups, and pass "
                "cv=list(split.split(X, groups=labels)).",
            )
        for train, test in self._masks(labels):
            yield train.nonzero()[0], test.nonzero()[0]

    def _masks(self, labels: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the masks of each split, and warn of rows that are in none of them."""
        import pandas as pd

        index = pd.Index(labels, dtype=object)
        masks, left_out = [], np.ones(len(labels), bool)
        for split in self._splits:
            train, test = index.isin(split.train), index.isin(split.test)
            if not (train.any() and test.any()):
                raise InvalidQueryError(
                    f"None of the {len(labels)} rows shows a "
                    f"{'test' if train.any() else 'train'} image of {split!r}. Take a "
                    "split of a pool whose images the trials show, or more trials."
                )
            left_out &= ~(train | test)
            masks.append((train, test))
        kinds: Counter[str] = Counter()
        subjects: set[Any] = set()
        for label in itertools.compress(labels, left_out):
            _, _, dataset, _, subject = label_values(str(label))
            source = f"images of {dataset or 'no known source'}"
            kinds[f"images unique to {subject}" if subject else source] += 1
            subjects |= {subject} - {None}
        each = ", ".join(f"{n:,} of {kind}" for kind, n in kinds.most_common())
        text = (
            f"{kinds.total():,} of {counted(len(labels), 'row')} are in neither set of "
            f"{self!r}, and left out: {each}."
        )
        if subjects and self._splits[0].pool:
            text += (
                " Images unique to a subject are in the splits of that subject, as of "
                f"fetch_laion_splits(pool={min(subjects)!r})."
            )
        self._warn_once(kinds, text)
        return masks

    def _warn_once(self, kinds: Iterable[str], message: str) -> None:
        """Warn, unless of these kinds of rows this line of the user's code was told.

        A search or a permutation test calls a splitter many times, and Python's own
        filter forgets lines as soon as scikit-learn alters it.
        """
        line = line_of_user()
        if new := {(line, kind) for kind in kinds} - self._told:
            self._told.update(new)
            warn(message)

    def get_metadata_routing(self) -> Any:
        """Return what scikit-learn passes on where its metadata routing is enabled."""
        from sklearn.utils.metadata_routing import MetadataRequest

        request = MetadataRequest(owner=type(self).__name__)
        request.split.add_request(param="groups", alias=True)
        return request


@dataclass(frozen=True, repr=False)
class StimulusSplit(_Splitter):
    """A split of images into those to train and those to test on.

    Images, not trials, are split, so that all repeats of an image are on one side. It
    is a splitter of scikit-learn: pass it as ``cv``, with ``groups=trials["label"]``.

    Parameters
    ----------
    train, test : iterable of str
        Labels of images, as in ``trials["label"]``; none twice, none in both.
    name : str, default="split"
        Its name.
    pool : str, optional
        The pool of images that was split.
    params : dict, optional
        How it was made.
    generation : str, optional
        Which of several versions it is.

    Attributes
    ----------
    train, test : list of str
        Labels of images.
    name : str
        Its name, such as ``"tau"``.
    pool : str or None
        ``"shared"``, a subject, or ``"pooled"``.
    params : dict
        How it was made, as published.
    generation : str or None
        Of the random splits, ``"a"``, ``"b"`` or ``"c"``, see `.fetch_laion_splits`.

    Raises
    ------
    InvalidQueryError
        If labels are not str, or one is given twice.

    See Also
    --------
    laion_fmri_fetchers.fetch_laion_splits : The splits of the dataset's authors.

    Examples
    --------
    A split of one's own, and the trials on each side of it:

    >>> split = StimulusSplit(["a.jpg", "b.jpg"], ["c.jpg"], name="mine")
    >>> split
    <StimulusSplit 'mine': 2 train, 1 test>
    >>> train, test = split.masks(["c.jpg", "a.jpg", "other.jpg", "a.jpg"])
    >>> train
    array([False,  True, False,  True])
    >>> test
    array([ True, False, False, False])

    As a term, it decides which sessions of a subject are fetched::

        data = fetch_laion_fmri("sub-01", trial_filter={"label": split.is_test()})
    """

    train: list[str] = field(hash=False)
    test: list[str] = field(hash=False)
    name: str = "split"
    pool: str | None = None
    params: dict[str, Any] = field(default_factory=dict, hash=False)
    generation: str | None = None

    def __post_init__(self) -> None:
        for side in ("train", "test"):
            object.__setattr__(self, side, _strings(getattr(self, side), side))
        for label, n in Counter(self.train + self.test).items():
            if n > 1:
                raise InvalidQueryError(f"{_shown(label)} is in train or test twice")

    _splits = property(lambda self: (self,))

    def is_train(self) -> IsIn:
        """Return the term that the labels of train images fulfil.

        Examples
        --------
        >>> StimulusSplit(["a.jpg"], ["b.jpg"]).is_train() == "a.jpg"
        True
        """
        return IsIn(*self.train)

    def is_test(self) -> IsIn:
        """Return the term that the labels of test images fulfil; see `is_train`."""
        return IsIn(*self.test)

    def masks(self, trials: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return which trials show train images, and which test images.

        Parameters
        ----------
        trials : pandas.DataFrame or sequence of str
            Trials with a column ``label``, a Bunch that has them, metadata of stimuli,
            or labels alone.

        Returns
        -------
        train, test : numpy.ndarray of bool, shape (n_trials,)
            A trial whose image is in neither set is False in both.

        Raises
        ------
        InvalidQueryError
            If there are no labels in ``trials``, or none shows a train image, or none
            a test image.

        Warns
        -----
        UserWarning
            If trials are in neither set; the text says how many, and which images.
        """
        if isinstance(trials, dict) and hasattr(trials.get("trials"), "columns"):
            trials = trials["trials"]
        return self._masks(_row_labels(trials, "trials"))[0]

    def __repr__(self) -> str:
        pool = f" of pool {self.pool!r}" if self.pool else ""
        sizes = f"{len(self.train)} train, {len(self.test)} test"
        return f"<StimulusSplit {self.name!r}{pool}: {sizes}>"


class StimulusFolds(_Splitter, tuple):
    """The splits of a family, also as one splitter of scikit-learn, as in ``cv=folds``.

    Examples
    --------
    >>> folds = StimulusFolds([
    ...     StimulusSplit(["a.jpg"], ["b.jpg"], "halves_0"),
    ...     StimulusSplit(["b.jpg"], ["a.jpg"], "halves_1"),
    ... ])
    >>> folds
    <StimulusFolds 'halves': 2 splits>
    >>> [test.tolist() for _, test in folds.split([0, 1], groups=["a.jpg", "b.jpg"])]
    [[1], [0]]
    """

    _splits = property(tuple)

    def __repr__(self) -> str:
        pool = f" of pool {self[0].pool!r}" if self[0].pool else ""
        family = self[0].name.rpartition("_")[0]
        return f"<StimulusFolds {family!r}{pool}: {len(self)} splits>"


def _row_labels(rows: Any, argument: str) -> list[str]:
    """Return the label of each row: of a table, or given as such."""
    if hasattr(rows, "columns"):
        table = rows if {"label", "image_name"} & {*rows} else rows.reset_index()
        rows = table.get("label", table.get("image_name"))
        if rows is None:
            what = f"it has {listed([*map(str, table)])}"
            raise InvalidQueryError(f"{argument} has no column 'label'; {what}")
    check_order(rows, argument)
    return _strings(rows, argument, nulls=True)
