"""The published train/test splits of images: names, pools, sizes and where files lie.

A pool is a set of images; a split parts it into images to train and to test on. What
follows from labels alone (pools, and the OOD images) is worked out here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .labels import label_values
from .names import SUBJECTS

POOLS = ("shared", *SUBJECTS, "pooled")

OOD = "ood"
"""The split that tests on all OOD images; it follows from labels."""

FAMILIES = {
    "random": tuple(f"random_{i}" for i in range(5)),
    "cluster_k5": tuple(f"cluster_k5_{i}" for i in range(5)),
}
"""Splits that belong together; the test images of a family are parts of the pool."""

REPOSITORY_URL = (
    "https://raw.githubusercontent.com/ViCCo-Group/LAION-fMRI/"
    "cf82765ced029de81c3bec7254b8cbd6a65e3686/laion_fmri/splits/data"
)
"""The publishers' files, at the commit that has all pools and the corrected folds."""

GENERATIONS = {
    "a": "five independent draws of May 2026, which are no folds: some images are "
    "tested on several times, others never",
    "b": "five folds of June 2026, of which known duplicates leak from the images to "
    "train on into those to test on",
    "c": "five folds of 2026-09-28, of which known duplicates share one",
}
"""What the random splits of a generation are; "c" is of the pools of subjects alone."""

N_OOD = 371
"""OOD images that were published."""

_POOL_SIZES = {"shared": 1121, **dict.fromkeys(SUBJECTS, 5833), "pooled": 24_681}

_SHARED_FORMS = {(12, "LAION"), (12, "THINGS+"), (4, "NSD")}
"""Repetitions and source of the regular shared images that were published."""

_SHARED_CLUSTERS = (274, 248, 246, 225, 128)


class Pool(NamedTuple):
    """A pool of images, by its labels in alphabetical order."""

    name: str
    labels: tuple[str, ...]

    @property
    def n_published(self) -> int:
        """How many images were published."""
        return _POOL_SIZES[self.name]

    @property
    def is_published(self) -> bool:
        """Whether it has the published images; images released later may be more."""
        return len(self.labels) >= self.n_published


def family_of(name: str) -> str:
    """Return the family of a split, or its own name where it has none.

    Examples
    --------
    >>> family_of("random_3"), family_of("tau")
    ('random', 'tau')
    """
    family = name.rpartition("_")[0]
    return family if name in FAMILIES.get(family, ()) else name


def members(family: str) -> tuple[str, ...]:
    """Return the splits of a family, or the name of a split that has none."""
    return FAMILIES.get(family, (family,))


def splits_of(pool: str) -> tuple[str, ...]:
    """Return the names of the splits that are published of a pool.

    Examples
    --------
    >>> splits_of("pooled")[-2:], splits_of("shared")[-2:]
    (('cluster_k5_4', 'tau'), ('tau', 'ood'))
    """
    if pool == "pooled":
        return (*FAMILIES["cluster_k5"], "tau")
    return (*FAMILIES["random"], *FAMILIES["cluster_k5"], "tau", OOD)


def file_of(pool: str, name: str) -> str:
    """Return the path of a split's file below the folder of all splits."""
    return f"{pool}/{name}.json"


def pool_of(labels: Iterable[str], name: str) -> Pool:
    """Return the images of a pool among labels.

    Shared images that are released later, such as those of LAION that are shown 4
    times, have labels of another form than those of the pools, and are in none.

    Parameters
    ----------
    labels : iterable of str
        Labels of all images; those outside the grammar are of no pool.
    name : str
        One of `POOLS`.

    Examples
    --------
    >>> labels = ["unique_THINGS_air_pump_p03.jpg", "shared_4rep_NSD_a.jpg"]
    >>> len(pool_of(labels, "shared").labels), len(pool_of(labels, "sub-05").labels)
    (1, 2)
    """
    chosen = []
    for label in labels:
        kind, n_reps, dataset, _, participant = label_values(label)
        if kind == "shared":
            is_in = (n_reps, dataset) in _SHARED_FORMS
        else:
            is_in = participant is not None and name in (participant, "pooled")
        if is_in:
            chosen.append(label)
    return Pool(name, tuple(sorted(chosen)))


def ood_labels(labels: Iterable[str], ood_types: Iterable[str] | None) -> list[str]:
    """Return the OOD images among labels, of some types or of all.

    Examples
    --------
    >>> ood_labels(["shared_4rep_OOD_shape_a.png", "shared_4rep_NSD_a.jpg"], ["gabor"])
    []
    """
    chosen = None if ood_types is None else set(ood_types)
    ood = []
    for label in labels:
        _, _, dataset, ood_type, _ = label_values(label)
        if dataset == "OOD" and (chosen is None or ood_type in chosen):
            ood.append(label)
    return sorted(ood)


def current_generation(pool: str) -> str:
    """Return the generation of the random splits of a pool that is in force.

    Examples
    --------
    >>> current_generation("shared"), current_generation("sub-01")
    ('b', 'c')
    """
    return "b" if pool == "shared" else "c"


def published_test_size(pool: str, name: str) -> int | None:
    """Return how many images a published split tests on; None where it is not known.

    Examples
    --------
    >>> published_test_size("shared", "random_0"), published_test_size("sub-01", "tau")
    (225, 1167)
    """
    family, _, number = name.rpartition("_")
    if family == "random":
        larger, n_larger = (225, 1) if pool == "shared" else (1167, 3)
        return larger if int(number) < n_larger else larger - 1
    if family == "cluster_k5":
        return _SHARED_CLUSTERS[int(number)] if pool == "shared" else None
    return {"shared": 224, "pooled": 4936}.get(pool, 1167)
