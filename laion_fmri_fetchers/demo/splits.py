"""Train/test splits of the synthetic images, and a local server that offers them.

    serve_splits ─▶ SplitServer ─▶ splits_files ─▶ pools ─▶ <pool>/<name>.json

Files have the published form; which image is on which side of a split is made up.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .facts import PARTICIPANTS, image_fields
from .formats import json_bytes

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
    shared, unique = [], []
    for label in sorted(labels):
        fields = image_fields(label)
        if fields.kind == "shared":
            if (fields.n_reps, fields.dataset) in REGULAR:
                shared.append(label)
        elif fields.kind == "unique" and fields.subject:
            unique.append((label, fields.subject))
    named = {"shared": shared}
    for subject in PARTICIPANTS:
        of_subject = [label for label, owner in unique if owner == subject]
        if of_subject:
            named[subject] = sorted(shared + of_subject)
    named["pooled"] = sorted(shared + [label for label, _ in unique])
    return named


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
    ood = sorted(label for label in labels if image_fields(label).dataset == "OOD")
    for pool, images in pools(labels).items():
        if len(images) < N_FOLDS:
            continue
        shuffled = sorted(images, key=lambda label: _number("shuffle", label))
        # Clusters differ in size, as those of k-means do: 1, 2, 3, ... parts of 15.
        clustered = sorted(images, key=lambda label: _number("cluster", label))
        ends = [max(i, len(images) * i * (i + 1) // 30) for i in range(N_FOLDS + 1)]
        for i in range(N_FOLDS):
            if pool != "pooled":
                params = {"method": "shuffled_5fold_cv", "k": 5, "seed": 42, "fold": i}
                if pool != "shared":
                    params["revision"] = 2
                yield _file(pool, f"random_{i}", params, images, shuffled[i::N_FOLDS])
        for i in range(N_FOLDS):
            test = clustered[ends[i] : ends[i + 1]]
            params = {"method": "kmeans_clip_k5_holdout", "held_out_cluster": i}
            yield _file(pool, f"cluster_k5_{i}", params, images, test)
        if pool != "pooled":
            params = {"method": "ood_dataset_holdout"}
            yield _file(pool, "ood", params, images, ood)
        held_out = sorted(images, key=lambda label: _number("tau", label))
        test = held_out[: max(1, len(images) // 5)]
        yield _file(pool, "tau", {"method": "min_nn_filter"}, images, test)


def _number(purpose: str, label: str) -> int:
    return zlib.crc32(f"{purpose} {label}".encode())


def _file(
    pool: str,
    name: str,
    params: dict[str, Any],
    images: Sequence[str],
    test: Sequence[str],
) -> tuple[str, bytes]:
    held_out = set(test)
    train = [label for label in images if label not in held_out]
    content = {
        "name": name,
        "pool": f"synthetic {pool} ({len(images)} images)",
        "splitter": "demo",
        "params": params,
        "n_train": len(train),
        "n_test": len(test),
        "variants": [
            {"variant_id": 0, "train_ids": train, "test_ids": sorted(test)},
        ],
    }
    return f"{pool}/{name}.json", json_bytes(content)


@contextlib.contextmanager
def serve_splits(labels: Iterable[str], *, port: int = 0) -> Iterator[SplitServer]:
    """Offer splits of images on this machine.

    Parameters
    ----------
    labels : iterable of str
        Labels of all images.
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.

    Yields
    ------
    SplitServer
        The server, which is stopped at the end.

    Examples
    --------
    >>> with serve_splits(["shared_4rep_NSD_a.jpg"]) as server:  # doctest: +SKIP
    ...     os.environ["LAION_FMRI_SPLITS_URL"] = server.url
    """
    server = SplitServer(dict(splits_files(labels)), port=port)
    try:
        yield server
    finally:
        server.stop()


class SplitServer:
    """A web server of files of splits; see `serve_splits` for how to start one.

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
    """

    def __init__(self, files: Mapping[str, bytes], *, port: int = 0) -> None:
        from .handler import HttpServer

        self.files = dict(files)
        self.requests: list[str] = []
        self.answers: dict[str, Any] = {}
        self._http = HttpServer(self, port)
        self.url = f"http://127.0.0.1:{self._http.port}/splits"

    def __repr__(self) -> str:
        return f"<SplitServer {self.url}>"

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._http.running:
            self._http.stop()

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        """Answer one request: the WSGI application."""
        path = environ["PATH_INFO"].removeprefix("/splits/")
        self.requests.append(path)
        answer = self.answers.get(path)
        answer = answer() if callable(answer) else answer
        if answer is None and path in self.files:
            answer = 200, {}, self.files[path]
        status, headers, body = answer or (404, {}, b"404: Not Found")
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            **headers,
        }
        start_response(str(status), list(headers.items()))
        return [body]
