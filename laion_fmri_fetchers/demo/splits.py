"""Train/test splits of the synthetic images, and a local server that offers them.

Files have the published form; which image is on which side of a split is made up.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from .facts import PARTICIPANTS, image_fields
from .formats import json_bytes
from .web import Answer, LocalServer

N_FOLDS = 5

REGULAR = {(12, "LAION"), (12, "THINGS+"), (4, "NSD")}
"""Repetitions and source of shared images that are split; others came later."""


def pools(labels: Iterable[str]) -> dict[str, list[str]]:
    """Return the images of each pool, in alphabetical order.

    Examples
    --------
    >>> pools(["unique_THINGS_barn_p04.jpg", "shared_4rep_NSD_a.jpg"])["sub-03"]
    ['shared_4rep_NSD_a.jpg', 'unique_THINGS_barn_p04.jpg']
    """
    pooled = {}
    for label in sorted(labels):
        fields = image_fields(label)
        if fields.subject or (fields.n_reps, fields.dataset) in REGULAR:
            pooled[label] = fields.subject
    by_subject = {
        subject: [label for label in pooled if pooled[label] in (None, subject)]
        for subject in PARTICIPANTS
        if subject in pooled.values()
    }
    shared = [label for label in pooled if pooled[label] is None]
    return {"shared": shared, **by_subject, "pooled": list(pooled)}


def splits_files(labels: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of splits, each ``(path, bytes)``, of every pool of some images.

    Parameters
    ----------
    labels : iterable of str
        Labels of all images.

    Examples
    --------
    >>> labels = [f"shared_4rep_NSD_{i}.jpg" for i in range(9)]
    >>> [path for path, _ in splits_files(labels)][-1]
    'pooled/tau.json'
    """
    labels = list(labels)
    ood = [label for label in labels if image_fields(label).dataset == "OOD"]
    for pool, images in pools(labels).items():
        if len(images) < N_FOLDS:
            continue
        # By family of splits: parameters and test images.
        families: dict[str, tuple[dict[str, Any], list[str]]] = {}
        shuffled, clustered, tau = (
            sorted(images, key=lambda label: zlib.crc32(f"{name} {label}".encode()))
            for name in ("shuffle", "cluster", "tau")
        )
        # Clusters differ in size, as those of k-means do: 1, 2, 3, ... parts of 15.
        ends = [max(i, len(images) * i * (i + 1) // 30) for i in range(N_FOLDS + 1)]
        for i in range(N_FOLDS):
            params = {"method": "shuffled_5fold_cv", "k": 5, "seed": 42, "fold": i}
            if pool not in ("shared", "pooled"):
                params["revision"] = 2
            families[f"random_{i}"] = params, shuffled[i::N_FOLDS]
            params = {"method": "kmeans_clip_k5_holdout", "held_out_cluster": i}
            families[f"cluster_k5_{i}"] = params, clustered[ends[i] : ends[i + 1]]
        families["ood"] = {"method": "ood_dataset_holdout"}, ood
        families["tau"] = {"method": "min_nn_filter"}, tau[: max(1, len(images) // 5)]
        for name, (params, test) in families.items():
            if pool == "pooled" and not name.startswith(("cluster", "tau")):
                continue
            train = sorted(set(images) - set(test))
            variant = {"variant_id": 0, "train_ids": train, "test_ids": sorted(test)}
            content = {
                "name": name,
                "pool": f"synthetic {pool} ({len(images)} images)",
                "splitter": "demo",
                "params": params,
                "n_train": len(train),
                "n_test": len(test),
                "variants": [variant],
            }
            yield f"{pool}/{name}.json", json_bytes(content)


class SplitServer(LocalServer):
    """Offer splits of images on this machine, until the end of a ``with``.

    Parameters
    ----------
    labels : iterable of str
        Labels of all images.
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.

    Attributes
    ----------
    url : str
        Its address, for ``LAION_FMRI_SPLITS_URL``.
    files : dict
        Path, such as ``"shared/tau.json"``, -> bytes.
    requests : list of str
        Path of every request so far.
    answers : dict
        Path -> ``(status, headers, body)`` that is sent instead of the file, or a
        function that returns such an answer, or None.

    Examples
    --------
    >>> with serve_splits(["shared_4rep_NSD_a.jpg"]) as server:  # doctest: +SKIP
    ...     os.environ["LAION_FMRI_SPLITS_URL"] = server.url
    """

    def __init__(self, labels: Iterable[str], *, port: int = 0) -> None:
        self.files = dict(splits_files(labels))
        self.requests: list[str] = []
        self.answers: dict[str, Any] = {}
        super().__init__(port, "/splits")

    def respond(self, environ: dict[str, Any]) -> Answer:
        """Return the answer to a request."""
        path = environ["PATH_INFO"].removeprefix("/splits/")
        self.requests.append(path)
        answer = self.answers.get(path)
        answer = answer() if callable(answer) else answer
        if answer:
            return answer
        if path in self.files:
            return 200, {"Content-Type": "text/plain"}, self.files[path]
        return 404, {"Content-Type": "text/plain"}, b"404: Not Found"


serve_splits = SplitServer
