"""What checks are given: settings, the client, and listings of a sample of the bucket.

The sample is one subject of each tree and one session, in three rounds of listings,
each round at once::

    the top, derivatives/, subjects, stimuli/, archive/
        └▶ the subject in every tree
              └▶ its session in trees that have some, and a held-out session
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from laion_fmri_fetchers.layout.keys import record_of
from laion_fmri_fetchers.layout.names import SUBJECTS, subjects_among
from laion_fmri_fetchers.layout.trees import (
    ARCHIVED,
    DERIVATIVES,
    GLM,
    HELD_OUT,
    RAW,
    STIMULI,
    TEDANA,
    TREES,
)

from .client import Client

Record = dict[str, Any]

FIRST_EMBEDDINGS = f"{ARCHIVED}embeddings/v1/"
"""Embeddings as first published."""


class Sample(NamedTuple):
    """What some levels of the bucket hold."""

    trees: list[str]
    """Folders of the top, but for subjects, and of ``derivatives/``."""
    subjects: list[str]
    subject: str
    """Whose files were listed."""
    sessions: list[str]
    """The subject's sessions with betas, held-out ones included."""
    session: str
    """Whose files were listed."""
    records: list[Record]

    def of_type(self, *image_types: str) -> list[Record]:
        """Return the records listed of some image types."""
        return [rec for rec in self.records if rec["image_type"] in image_types]

    def of_session(self, image_type: str) -> Record | None:
        """Return the first record of a kind in the session sampled."""
        recs = self.of_type(image_type)
        return next((rec for rec in recs if rec["session"] == self.session), None)

    def file(self, id_: str) -> Record | None:
        """Return the record of a file, if it was listed."""
        return next((rec for rec in self.records if rec["id"] == id_), None)


NO_SAMPLE = Sample([], [], "", [], "", [])
"""Of a bucket that was not listed."""


class Context(NamedTuple):
    """Everything that a check may use."""

    data_dir: str | os.PathLike | None
    client: Client
    sample: Sample = NO_SAMPLE


def survey(client: Client) -> Sample:
    """List a sample of the bucket."""
    of_top = client.list_prefixes(
        [(level, "/") for level in ("", DERIVATIVES, GLM, STIMULI, FIRST_EMBEDDINGS)]
    )
    top, derivatives, glm = of_top[:3]
    subjects = subjects_among(glm["prefixes"])
    subject = subjects[0] if subjects else SUBJECTS[0]
    of_subject = client.list_prefixes(
        [(f"{tree}{subject}/", "/" if tree in _WITH_SESSIONS else "") for tree in TREES]
    )
    sessions = [
        folder.split("/")[-2]
        for listing in of_subject
        for folder in listing["prefixes"]
        if folder.startswith(f"{GLM}{subject}/ses-")
    ]
    public = [name for name in sessions if name not in HELD_OUT]
    session = public[0] if public else "ses-01"
    held_out = [name for name in sessions if name in HELD_OUT][:1]
    folders = [f"{tree}{subject}/{session}/" for tree in sorted(_WITH_SESSIONS)]
    folders += [f"{GLM}{subject}/{name}/" for name in held_out]
    of_session = client.list_prefixes([(folder, "") for folder in folders])
    listings = (*of_top, *of_subject, *of_session)
    objects = {entry.key: entry for listing in listings for entry in listing["objects"]}
    names = [folder for folder in top["prefixes"] if folder != DERIVATIVES]
    return Sample(
        trees=[n for n in names if not n.startswith("sub-")] + derivatives["prefixes"],
        subjects=list(subjects),
        subject=subject,
        sessions=sessions,
        session=session,
        records=[record_of(*objects[key]) for key in sorted(objects)],
    )


_WITH_SESSIONS = frozenset({GLM, TEDANA, RAW})
"""Trees of which one session is listed, and of the others all of the subject."""
