"""Which images the trials of the synthetic dataset show, and what is on them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from .facts import LABEL_NUMBER, PARTICIPANTS

CONCEPTS = {
    "face": ("mask", "doll", "clown", "baby", "portrait", "bust"),
    "body": ("dancer", "mannequin", "hand", "gymnast", "glove", "leg"),
    "place": ("barn", "bedroom", "beach", "street", "kitchen", "bridge"),
    "object": ("air_pump", "bracelet", "kettle", "hammer", "lamp", "violin"),
    "word": ("license_plate", "newspaper", "poster", "keyboard", "menu", "book"),
    "motion": ("waterfall", "ceiling_fan", "surfboard", "bicycle", "kite", "train"),
}
"""THINGS-like concept names, by what the images show."""

CONTENT = tuple(CONCEPTS)
"""What the images show; see `content_category`."""

CONTENT_OF = {name: name for name in CONTENT} | {
    "character": "word",
    "moving": "motion",
}
"""What regions of a category, and conditions of localizers, have to do with."""

_SHOWN_BY = {
    name.rpartition("_")[2]: content
    for content, names in CONCEPTS.items()
    for name in names
}

SHARED_12REP = (
    "shared_12rep_LAION_cluster_1003_i0.jpg",
    "shared_12rep_THINGS+_kmeans_211_bracelet2.jpg",
    "shared_12rep_THINGS+_kmeans_17_baby.jpg",
)

SHARED_4REP = (
    *(f"shared_4rep_NSD_special1000_{n}.jpg" for n in (100, 217, 4, 999)),
    # Out-of-distribution images, one of each type.
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
    for word in re.findall("[a-z]+", label):
        if word in _SHOWN_BY:
            return _SHOWN_BY[word]
    return CONTENT[zlib.crc32(label.encode()) % len(CONTENT)]


def trial_tables(
    subject: str, n_main: int, held_out: Sequence[str], n_trials: int, seed: int
) -> dict[str, list[str]]:
    """Return the labels of each session's trials, in order of appearance.

    A held-out session has a quarter of the trials, its own images only: nobody can
    read it.
    """
    main = [f"ses-{i:02d}" for i in range(1, n_main + 1)]
    shared: dict[str, list[str]] = {session: [] for session in main}
    n_planned = min(4, n_main)
    position = PARTICIPANTS.index(subject)
    for i, label in enumerate(SHARED_4REP):
        is_missed = i == position and n_planned == 4
        for repeat in range(n_planned - is_missed):
            shared[main[(i + repeat * n_main // n_planned) % n_main]].append(label)
    with_12rep = main[position % 2 :: 2]
    for i, label in enumerate(SHARED_12REP if with_12rep else ()):
        for repeat in range(12):
            shared[with_12rep[(i + repeat) % len(with_12rep)]].append(label)
    if subject == "sub-01" and main:
        shared[main[-1]].append(ODD_LABEL)

    tables = {}
    for first, common, n in (
        (0, shared, n_trials),
        (10_000, {session: [] for session in held_out}, -(-n_trials // 4)),
    ):
        # Sessions are filled up with images of the subject's own, in random order.
        n_free = sum(max(n - len(labels), 0) for labels in common.values())
        rng = rng_of(seed, subject, str(first), "trials")
        unique = _unique_labels(subject, first, -(-n_free // 4))
        to_show = rng.permutation(np.repeat(unique, 4)).tolist()
        for session, labels in common.items():
            shown = [*labels, *(to_show.pop() for _ in range(n - len(labels)))][:n]
            tables[session] = [shown[i] for i in rng.permutation(n)]
    return tables


def _unique_labels(subject: str, first: int, n: int) -> list[str]:
    """Return labels unique to a subject, their contents about equally frequent."""
    labels = []
    for i in range(first, first + n):
        concept = CONCEPTS[CONTENT[i % 6]][i // 18 % 6]
        image = (
            f"LAION_initial_cluster_{i}_i{i % 9}",
            f"THINGS_{concept}{i}",
            f"THINGS+_kmeans_{i}_{concept}",
        )[i // 6 % 3]
        labels.append(f"unique_{image}_p{LABEL_NUMBER[subject]}.jpg")
    return labels
