"""Which images the trials of the synthetic dataset show, and what is on them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from .facts import LABEL_NUMBER, PARTICIPANTS

CONTENT = ("face", "body", "place", "object", "word", "motion")
"""What the images show; see `content_category`."""

CONCEPTS = {
    "face": ("mask", "doll", "clown", "baby", "portrait", "bust"),
    "body": ("dancer", "mannequin", "hand", "gymnast", "glove", "leg"),
    "place": ("barn", "bedroom", "beach", "street", "kitchen", "bridge"),
    "object": ("air_pump", "bracelet", "kettle", "hammer", "lamp", "violin"),
    "word": ("license_plate", "newspaper", "poster", "keyboard", "menu", "book"),
    "motion": ("waterfall", "ceiling_fan", "surfboard", "bicycle", "kite", "train"),
}
"""THINGS-like concept names, by what the images show."""

_CONTENT_OF = {name: content for content in CONTENT for name in CONCEPTS[content]}
_CONCEPT = re.compile(
    rf"(?:^|[_+ -])({'|'.join(sorted(_CONTENT_OF, key=len, reverse=True))})"
    r"\d*(?=[_+. -]|$)"
)

SHARED_12REP = (
    "shared_12rep_LAION_cluster_1003_i0.jpg",
    "shared_12rep_THINGS+_kmeans_211_bracelet2.jpg",
    "shared_12rep_THINGS+_kmeans_17_baby.jpg",
)

OOD_LABELS = (
    "shared_4rep_OOD_cropped_portrait_02.jpg",
    "shared_4rep_OOD_gabor_sf4.0_ori45.png",
    "shared_4rep_OOD_gaudy_street+night.jpg",
    "shared_4rep_OOD_illusion-classic_Ebbinghaus v1.2.png",
    "shared_4rep_OOD_illusion-natural_beach-01.jpg",
    "shared_4rep_OOD_relations_dancer_on_book.jpg",
    "shared_4rep_OOD_selfmade_kitchen.jpg",
    "shared_4rep_OOD_shape_blob_round-01.png",
    "shared_4rep_OOD_unusual_Screenshot 2024-05-06 at 14.45.09.jpg",
)
"""Out-of-distribution images, one of each type."""

SHARED_4REP = (
    *(f"shared_4rep_NSD_special1000_{n}.jpg" for n in (100, 217, 4, 999)),
    *OOD_LABELS,
)

MISSED = {
    "sub-01": "shared_4rep_NSD_special1000_999.jpg",
    "sub-03": "shared_4rep_NSD_special1000_4.jpg",
    "sub-05": "shared_4rep_NSD_special1000_217.jpg",
    "sub-06": "shared_4rep_NSD_special1000_100.jpg",
    "sub-07": "shared_4rep_OOD_selfmade_kitchen.jpg",
}
"""The image of which a subject missed the fourth repeat."""

ODD_LABEL = "fixation test (old) v2.final.jpg"
"""A label outside the grammar: one trial of the last main session of sub-01."""


def rng_of(seed: int, *names: str) -> np.random.Generator:
    """Return the generator of random numbers for what has these names."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def content_category(label: str) -> str:
    """Return what an image of the synthetic dataset shows.

    Parameters
    ----------
    label : str
        Stimulus file name, as in the trial tables.

    Returns
    -------
    str
        One of `CONTENT`: by the concept in the name if there is one, else by
        chance, but always the same for a label.

    Examples
    --------
    >>> content_category("unique_THINGS_air_pump_p03.jpg")
    'object'
    >>> content_category("shared_4rep_OOD_selfmade_kitchen.jpg")
    'place'
    """
    if concept := _CONCEPT.search(label):
        return _CONTENT_OF[concept[1]]
    return CONTENT[zlib.crc32(label.encode()) % len(CONTENT)]


def trial_tables(
    subject: str, n_main: int, held_out: Sequence[str], n_trials: int, seed: int
) -> dict[str, list[str]]:
    """Return the labels of each session's trials, in order of appearance.

    A held-out session has a quarter of the trials, its own images only: nobody can
    read it.
    """
    main = [f"ses-{i:02d}" for i in range(1, n_main + 1)]
    shared = _shared_labels(subject, main)
    n_held_out = -(-n_trials // 4)
    return {
        **_filled(subject, "main", shared, n_trials, seed),
        **_filled(subject, "held-out", {s: [] for s in held_out}, n_held_out, seed),
    }


def _shared_labels(subject: str, main: Sequence[str]) -> dict[str, list[str]]:
    """Return the shared images that each main session shows."""
    n_main = len(main)
    shared: dict[str, list[str]] = {session: [] for session in main}
    for i, label in enumerate(SHARED_4REP):
        n_planned = min(4, n_main)
        is_missed = label == MISSED[subject] and n_planned == 4
        for repeat in range(n_planned - is_missed):
            shared[main[(i + repeat * n_main // n_planned) % n_main]].append(label)
    parity = PARTICIPANTS.index(subject) % 2
    with_12rep = [session for i, session in enumerate(main) if i % 2 == parity]
    for i, label in enumerate(SHARED_12REP):
        for repeat in range(12 if with_12rep else 0):
            shared[with_12rep[(i + repeat) % len(with_12rep)]].append(label)
    if subject == "sub-01" and main:
        shared[main[-1]].append(ODD_LABEL)
    return shared


def _filled(
    subject: str, name: str, shared: dict[str, list[str]], n_trials: int, seed: int
) -> dict[str, list[str]]:
    """Return sessions filled up with images of the subject's own, in random order."""
    n_free = [max(n_trials - len(labels), 0) for labels in shared.values()]
    unique = _unique_labels(subject, name, -(-sum(n_free) // 4))
    rng = rng_of(seed, subject, name, "trials")
    to_show = list(rng.permutation(np.repeat(unique, 4)))
    tables = {}
    for (session, common), n in zip(shared.items(), n_free, strict=True):
        unique_here = [str(to_show.pop()) for _ in range(n)]
        labels = [*common, *unique_here][:n_trials]
        tables[session] = [labels[i] for i in rng.permutation(n_trials)]
    return tables


def _unique_labels(subject: str, purpose: str, n: int) -> list[str]:
    """Return labels unique to a subject, their contents about equally frequent."""
    rng = rng_of(0, subject, purpose, "unique")
    number = LABEL_NUMBER[subject]
    labels: dict[str, None] = {}
    while len(labels) < n:
        content = CONTENT[len(labels) % len(CONTENT)]
        source = ("LAION", "THINGS", "THINGS+")[len(labels) // len(CONTENT) % 3]
        concept = rng.choice(CONCEPTS[content])
        image = {
            "LAION": f"initial_cluster_{rng.integers(5000)}_i{rng.integers(9)}",
            "THINGS": concept,
            "THINGS+": f"kmeans_{rng.integers(999)}_{concept}",
        }[source]
        label = f"unique_{source}_{image}_p{number}.jpg"
        if label in labels:
            label = f"unique_{source}_{image}{rng.integers(2, 10_000)}_p{number}.jpg"
        if content_category(label) == content:
            labels[label] = None
    return list(labels)
