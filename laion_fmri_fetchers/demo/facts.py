"""Published facts of LAION-fMRI that the demo needs, in tables of its own.

The library has the same facts in its layout, and nothing is shared with it on purpose:
a demo that took its facts from the library would agree with every mistake there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PARTICIPANTS = ("sub-01", "sub-03", "sub-05", "sub-06", "sub-07")

LABEL_NUMBER = dict(zip(PARTICIPANTS, ("01", "04", "03", "02", "05"), strict=True))
"""Number of a subject's acquisition: ``p<NN>`` in the labels of its own images."""

HELD_OUT = ("ses-31", "ses-32", "ses-33", "ses-34")

ARCHIVE = "stimuli/task-images_stimuli.h5"
STIMULUS_TABLE = "stimuli/task-images_metadata.csv"

DENIED = re.compile(
    r"^(?!derivatives/localizers/)(.*/)?ses-3[1-4]/|^stimuli/task-images_stimuli\.h5$"
)
"""Keys whose GET answers 403: held-out sessions except localizers, and the images."""

EMBEDDING_LENGTHS = {"CLIP": 1024, "DINOv2": 1024, "PEcore": 1024, "SigLIP2": 1152}
"""Length of an embedding by model."""

INVERSE_REPEATS = {
    "4rep": 1 / 4,
    "12rep": 1 / 12,
    "Allrep": (881 / 12 + 5323 / 4) / 6204,
}
"""Mean of 1/n over the images of a noise ceiling map, n the repeats as planned."""


# Tasks, conditions and contrasts of localizers, by session. MotionLoc pools the others.
LOCALIZERS = {
    "ses-4BarScreenfLoc": (
        "floc",
        "face body place object character",
        "faceVsOthers bodyVsOthers placeVsOthers objectVsOthers characterVsOthers "
        "faceVsBaseline bodyVsBaseline placeVsBaseline objectVsBaseline "
        "characterVsBaseline faceVsObject bodyVsObject placeVsObject characterVsFace",
    ),
    "ses-31": (
        "oloc",
        "object scrambled",
        "objectVsScrambled objectVsBaseline scrambledVsBaseline",
    ),
    "ses-MotionLocBarsSML": (
        "MotionLoc MotionLeft MotionRight",
        "moving static",
        "movingVsStatic movingVsBaseline staticVsBaseline",
    ),
}

_SHARED = re.compile(r"shared_(12|4)rep_(LAION|NSD|THINGS\+|OOD)_.+\.(?:jpg|png)")
_UNIQUE = re.compile(r"unique_(LAION|THINGS\+?)_.+_p(\d\d)\.jpg")
_SUBJECT_OF = {number: subject for subject, number in LABEL_NUMBER.items()}


class ImageFields(NamedTuple):
    """Fields of the label of an image; None where it has none."""

    dataset: str | None = None
    kind: str | None = None  # "shared" or "unique"
    n_reps: int | None = None
    subject: str | None = None


def image_fields(label: str) -> ImageFields:
    """Return the fields of the label of an image: all None outside the grammar.

    Examples
    --------
    >>> image_fields("unique_THINGS+_kmeans_211_barn_p04.jpg")
    ImageFields(dataset='THINGS+', kind='unique', n_reps=4, subject='sub-03')
    >>> image_fields("shared_12rep_LAION_cluster_1003_i0.jpg")
    ImageFields(dataset='LAION', kind='shared', n_reps=12, subject=None)
    """
    if shared := _SHARED.fullmatch(label):
        return ImageFields(shared[2], "shared", int(shared[1]))
    if unique := _UNIQUE.fullmatch(label):
        return ImageFields(unique[1], "unique", 4, _SUBJECT_OF.get(unique[2]))
    return ImageFields()
