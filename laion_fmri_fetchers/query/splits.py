"""Train/test splits of images: of trials, and as splitters of scikit-learn.

StimulusSplit ─┬─ .is_train, .is_test ─▶ IsIn, a term on "label" in a filter
               ├─ .masks(trials) ──────▶ two bool arrays
               └─ .split, .get_n_splits ◀─ scikit-learn, with groups=trials["label"]
StimulusFolds ──▶ several of them as one splitter
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.labels import label_values
from laion_fmri_fetchers.messages import (
    counted,
    functions_to_user,
    line_of_user,
    listed,
    warn,
)

from .values import IsIn, check_order, in_order

if TYPE_CHECKING:
    import numpy as np


class Splitter:
    """What scikit-learn asks of the ``cv`` argument of its functions."""

    _told: set[tuple]
    """Lines of the user's code, and kinds of images of which it was told there."""

    def _splits(self) -> Sequence[StimulusSplit]:
        raise NotImplementedError

    def __deepcopy__(self, memo: dict) -> Splitter:
        return self  # it does not change; scikit-learn copies its splitter often

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:  # noqa: ARG002, N803
        """Return the number of splits; the arguments are those of scikit-learn."""
        return len(self._splits())

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
            raise InvalidQueryError(
                "groups are missing: a split needs the label of each row; pass "
                "groups=trials['label']"
            )
        labels = _labels_of(groups, "groups")
        n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
        if n_rows != len(labels):
            raise InvalidQueryError(
                f"X has {n_rows} rows, but groups has {len(labels)} labels; pass the "
                "label of each row of X"
            )
        self._tell_of_permutations()
        for train, test in self._masks(labels, self._told):
            yield train.nonzero()[0], test.nonzero()[0]

    def _masks(
        self, labels: list, told: set[tuple]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return masks for each split, and say which rows are left out.

        A search or a permutation test calls a splitter many times. What was told in a
        line of the user's code is not told there again, unless rows of another kind are
        left out; Python's own filter forgets lines as soon as scikit-learn alters it.
        """
        import numpy as np

        masks = []
        left_out = np.zeros(len(labels), bool)
        for split in self._splits():
            train, test = (
                np.fromiter(map(side.__contains__, labels), bool, len(labels))
                for side in split._sets
            )
            for kind, mask in (("train", train), ("test", test)):
                if not mask.any():
                    raise InvalidQueryError(
                        f"None of the {len(labels)} rows shows a {kind} image of "
                        f"{split!r}. Take a split of a pool whose images the trials "
                        "show, or more trials."
                    )
            masks.append((train, test))
            left_out |= ~(train | test)
        kinds = Counter(map(_kind_of, itertools.compress(labels, left_out)))
        line = line_of_user()
        if new := {(line, kind) for kind in kinds} - told:
            told |= new
            warn(_about_left_out(self, kinds, len(labels)))
        return masks

    def _tell_of_permutations(self) -> None:
        """Warn, once in a line, of a permutation test that permutes within images."""
        callers = functions_to_user()
        # A search on this split calls it too, whatever the test outside it permutes.
        if "permutation_test_score" not in callers or "fit" in callers:
            return
        told = (line_of_user(), "permutation")
        if told not in self._told:
            self._told.add(told)
            warn(
                "permutation_test_score with groups permutes y only among rows of the "
                "same image, so its p-value does not tell whether y depends on images. "
                "Average repeats, leave out groups, and pass "
                "cv=list(split.split(X, groups=labels))."
            )

    def get_metadata_routing(self) -> Any:
        """Return what scikit-learn passes on where its metadata routing is enabled."""
        from sklearn.utils.metadata_routing import MetadataRequest

        request = MetadataRequest(owner=type(self).__name__)
        request.split.add_request(param="groups", alias=True)
        return request


class StimulusSplit(Splitter):
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
        Of the random splits, ``"a"``, ``"b"`` or ``"c"``, see `fetch_laion_splits`.

    Raises
    ------
    InvalidQueryError
        If labels are not str, or one is given twice.

    See Also
    --------
    laion_fmri_fetchers.fetch_laion_splits : The splits that the publishers define.

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

    def __init__(
        self,
        train: Iterable[str],
        test: Iterable[str],
        name: str = "split",
        pool: str | None = None,
        params: Mapping[str, Any] | None = None,
        generation: str | None = None,
    ):
        self._train = _checked(train, "train")
        self._test = _checked(test, "test")
        self._sets = frozenset(self._train), frozenset(self._test)
        if both := sorted(self._sets[0] & self._sets[1]):
            raise InvalidQueryError(
                f"train and test share {listed([_shown(label) for label in both])}; "
                "an image is on one side of a split"
            )
        self._name = str(name)
        self._pool = pool
        self._params = deepcopy(dict(params or {}))
        self._generation = generation
        self._told: set[tuple] = set()

    # Attributes are read only, as a copy: splits are shared, and kept as sets too.

    @property
    def train(self) -> list[str]:
        """Labels of the images to train on."""
        return list(self._train)

    @property
    def test(self) -> list[str]:
        """Labels of the images to test on."""
        return list(self._test)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def pool(self) -> str | None:
        """The pool of images that was split."""
        return self._pool

    @property
    def params(self) -> dict[str, Any]:
        """How it was made."""
        return deepcopy(self._params)

    @property
    def generation(self) -> str | None:
        """Which of several versions it is."""
        return self._generation

    def is_train(self) -> IsIn:
        """Return the term that the labels of train images fulfil.

        Examples
        --------
        >>> StimulusSplit(["a.jpg"], ["b.jpg"]).is_train() == "a.jpg"
        True
        """
        return IsIn(*self._train)

    def is_test(self) -> IsIn:
        """Return the term that the labels of test images fulfil; see `is_train`."""
        return IsIn(*self._test)

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
        (masks,) = self._masks(_labels_of(trials, "trials"), set())
        return masks

    def _splits(self) -> Sequence[StimulusSplit]:
        return (self,)

    def _key(self) -> tuple:
        return self._name, self._pool, self._train, self._test, self._generation

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StimulusSplit):
            return NotImplemented
        return self._key() == other._key() and self._params == other._params

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple:
        values = (self._train, self._test, self._name, self._pool, self._params)
        return type(self), (*values, self._generation)

    def __repr__(self) -> str:
        pool = f" of pool {self._pool!r}" if self._pool else ""
        sizes = f"{len(self._train)} train, {len(self._test)} test"
        return f"<StimulusSplit {self._name!r}{pool}: {sizes}>"


class StimulusFolds(Splitter):
    """A family of splits as one splitter of scikit-learn, as in ``cv=folds``.

    Parameters
    ----------
    name : str
        Name of the family.
    folds : iterable of StimulusSplit
        Its splits, in order; ``folds[0]``, ``len(folds)`` and a loop give them back.

    Examples
    --------
    >>> folds = StimulusFolds("halves", [
    ...     StimulusSplit(["a.jpg"], ["b.jpg"]), StimulusSplit(["b.jpg"], ["a.jpg"])
    ... ])
    >>> folds
    <StimulusFolds 'halves': 2 splits>
    >>> [test.tolist() for _, test in folds.split([0, 1], groups=["a.jpg", "b.jpg"])]
    [[1], [0]]
    """

    def __init__(self, name: str, folds: Iterable[StimulusSplit]):
        self.name = name
        self._folds = tuple(folds)
        self._told: set[tuple] = set()

    @property
    def pool(self) -> str | None:
        """The pool of images that was split."""
        return self._folds[0].pool

    @property
    def generation(self) -> str | None:
        """Which of several versions they are."""
        return self._folds[0].generation

    def _splits(self) -> Sequence[StimulusSplit]:
        return self._folds

    def __iter__(self) -> Iterator[StimulusSplit]:
        return iter(self._folds)

    def __len__(self) -> int:
        return len(self._folds)

    def __getitem__(self, number: int) -> StimulusSplit:
        return self._folds[number]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StimulusFolds):
            return NotImplemented
        return (self.name, self._folds) == (other.name, other._folds)

    def __hash__(self) -> int:
        return hash((self.name, self._folds))

    def __reduce__(self) -> tuple:
        return type(self), (self.name, self._folds)

    def __repr__(self) -> str:
        pool = f" of pool {self.pool!r}" if self.pool else ""
        return f"<StimulusFolds {self.name!r}{pool}: {len(self)} splits>"


def _checked(labels: Iterable[str], side: str) -> tuple[str, ...]:
    """Return the labels of a side, each once."""
    is_table = isinstance(labels, Mapping) or hasattr(labels, "columns")
    if isinstance(labels, (str, bytes)) or is_table or not isinstance(labels, Iterable):
        raise InvalidQueryError(f"{side} is {_shown(labels)}; give a list of labels")
    each = tuple(in_order(labels))
    for label in each:
        if not isinstance(label, str):
            raise InvalidQueryError(f"{side} holds {_shown(label)}; labels are str")
    if len(set(each)) < len(each):
        (twice, _), *_ = Counter(each).most_common(1)
        raise InvalidQueryError(f"{side} holds {_shown(twice)} twice")
    # Sets have another order in each process.
    return tuple(map(str, sorted(each) if isinstance(labels, Set) else each))


def _kind_of(label: Any) -> tuple[str, str | None]:
    """Return what an image in neither set is, and the one subject that saw it."""
    kind, _, dataset, _, subject = label_values(str(label))
    if subject:
        return f"images unique to {subject}", str(subject)
    if dataset == "OOD":
        return "OOD images", None
    return "other shared images" if kind == "shared" else "other labels", None


def _about_left_out(
    splitter: Any, kinds: Counter[tuple[str, str | None]], n_rows: int
) -> str:
    """Return sentences on rows that are in neither set: of which images, which pool."""
    text = (
        f"{kinds.total():,} of {counted(n_rows, 'row')} are in neither set of "
        f"{splitter!r}, and left out: "
    )
    text += ", ".join(f"{n:,} of {kind}" for (kind, _), n in kinds.most_common())
    subjects = sorted({subject for _, subject in kinds if subject})
    if subjects and splitter.pool:
        text += (
            f". Images unique to a subject are in the splits of that subject, as of "
            f"fetch_laion_splits(pool={subjects[0]!r})"
        )
    return f"{text}."


def _labels_of(trials: Any, argument: str) -> list:
    """Return the label of each trial."""
    if isinstance(trials, Mapping):
        raise InvalidQueryError(
            f"{argument} is a {type(trials).__name__}; give its trials, or their labels"
        )
    if getattr(trials, "ndim", 1) == 2 and hasattr(trials, "columns"):
        column = next((c for c in ("label", "image_name") if c in trials), None)
        if column is None and trials.index.name not in ("label", "image_name"):
            raise InvalidQueryError(
                f"{argument} has no column 'label'; it has "
                f"{listed(list(map(str, trials.columns)))}"
            )
        trials = trials.index if column is None else trials[column]
    if isinstance(trials, (str, bytes, Set)) or not isinstance(trials, Iterable):
        raise InvalidQueryError(
            f"{argument} is {_shown(trials)}; give trials, or a label for each, in "
            "their order"
        )
    check_order(trials, argument)
    labels = trials.tolist() if hasattr(trials, "tolist") else list(trials)
    if labels and not any(isinstance(label, str) for label in labels):
        raise InvalidQueryError(
            f"{argument} holds {_shown(labels[0])}; labels are names of images, as in "
            "trials['label'] or betas.groups['label']"
        )
    try:
        set(labels)
    except TypeError:
        raise InvalidQueryError(
            f"{argument} must be one label for each trial, not lists of them"
        ) from None
    return labels


def _shown(value: Any) -> str:
    """Return a value as text of a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
