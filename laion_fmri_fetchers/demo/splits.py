"""Train/test splits of the synthetic images, and a local server that offers them.

Files have the published form; which image is on which side of a split is made up.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from .facts import PARTICIPANTS, image_fields
from .formats import json_bytes
from .server import Answer, LocalServer

N_FOLDS = 5

REGULAR = {(12, "LAION"), (12, "THINGS+"), (4, "NSD")}
"""Repetitions and source of shared images that are split; others came later."""


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
    fields = {label: image_fields(label) for label in sorted(labels)}
    ood = [label for label in fields if fields[label].dataset == "OOD"]
    shared = [x for x, f in fields.items() if (f.n_reps, f.dataset) in REGULAR]
    pools = {"shared": {*shared}}
    for subject in PARTICIPANTS:
        unique = {x for x, f in fields.items() if f.subject == subject}
        if unique:
            pools[subject] = pools["shared"] | unique
    pools["pooled"] = set().union(*pools.values())
    for pool, images in pools.items():
        if len(images) < N_FOLDS:
            continue
        n = len(images)
        shuffled, clustered, tau = (
            sorted(images, key=lambda label: zlib.crc32(f"{name} {label}".encode()))
            for name in ("shuffle", "cluster", "tau")
        )
        # Parameters and test images of each split.
        splits: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for i in range(N_FOLDS):
            # Clusters differ in size, as those of k-means do: 1, 2, 3, ... parts of 15.
            start, end = (max(k, n * k * (k + 1) // 30) for k in (i, i + 1))
            params = {"method": "kmeans_clip_k5_holdout", "held_out_cluster": i}
            splits[f"cluster_k5_{i}"] = params, clustered[start:end]
        splits["tau"] = {"method": "min_nn_filter"}, tau[: max(1, n // 5)]
        if pool != "pooled":
            splits["ood"] = {"method": "ood_dataset_holdout"}, ood
            for i in range(N_FOLDS):
                params = {"method": "shuffled_5fold_cv", "k": 5, "seed": 42, "fold": i}
                params |= {} if pool == "shared" else {"revision": 2}
                splits[f"random_{i}"] = params, shuffled[i::N_FOLDS]
        for name, (params, test) in splits.items():
            train = sorted(images.difference(test))
            variant = {"variant_id": 0, "train_ids": train, "test_ids": sorted(test)}
            content = {
                "name": name,
                "pool": f"synthetic {pool} ({n} images)",
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

    def __init__(self, labels: Iterable[str]) -> None:
        self.files = dict(splits_files(labels))
        self.requests: list[str] = []
        self.answers: dict[str, Any] = {}
        super().__init__()

    def respond(self, environ: dict[str, Any]) -> Answer:
        """Return the answer to a request."""
        path = environ["PATH_INFO"].removeprefix("/")
        self.requests.append(path)
        answer = self.answers.get(path)
        answer = answer() if callable(answer) else answer
        if answer:
            return answer
        if path in self.files:
            return 200, {"Content-Type": "text/plain"}, self.files[path]
        return 404, {"Content-Type": "text/plain"}, b"404: Not Found"


serve_splits = SplitServer
