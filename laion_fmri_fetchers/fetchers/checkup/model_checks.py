"""Whether a session's model file can stand for its beta image.

model_file ─▶ model.session.prove, over `_ClientReader` ─▶ layout and mapping
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from laion_fmri_fetchers.arrays.model.session import Means, ModelError, Task, prove
from laion_fmri_fetchers.layout.keys import is_functional_brain_mask
from laion_fmri_fetchers.messages import readable_size
from laion_fmri_fetchers.remote import bucket
from laion_fmri_fetchers.remote.spans import RemoteObject, Span

from .client import Client, NoAnswerError
from .context import Context, Record
from .points import Point, judged, note


def model_file(context: Context) -> Iterator[Point]:
    """Find out where betas lie in the model of the session, and prove its rows."""
    image = context.sample.of_session("betas")
    model = context.sample.of_session("model")
    if image is None or model is None:
        found = f"none of {context.sample.session}; betas come from images alone"
        yield note("model file", found)
        return
    rsquare = context.sample.of_session("rsquare")
    masks = context.sample.of_type("brain_mask")
    mask = next(filter(is_functional_brain_mask, masks), None)
    task = Task(
        "",
        context.sample.subject,
        context.sample.session,
        _remote(image),
        "",
        _remote(model),
        _remote(rsquare) if rsquare else None,
        brain_mask=_remote(mask) if mask else "",
        n_trials=None,
        trials=None,
        shape=None,
        voxels=np.empty(0, dtype=int),
        most_bytes=None,
    )
    try:
        with ThreadPoolExecutor(1) as cores:
            means = Means(_ClientReader(context.client), cores)
            proved = prove(task, means, lambda: None)
    except (ModelError, NoAnswerError) as error:
        yield judged(False, "model file", str(error))
        return
    layout, proof = proved
    place = "contiguous" if layout.chunk_shape == () else f"chunks {layout.chunk_shape}"
    size = readable_size(model["size"] or 0)
    found = f"betasmd {layout.shape} {layout.dtype.name}, {place}; {size}"
    yield judged(True, "model file", found)
    yield judged(True, "rows of the model", f"{proof.mask}, in order {proof.order}")


def _remote(rec: Record) -> RemoteObject:
    url = bucket.object_url(rec["key"])
    return RemoteObject(rec["id"], url, rec["size"], rec["etag"])


class _ClientReader:
    """Reads spans through the client, which counts them, one after the other."""

    n_connections = 1
    worth = 0

    def __init__(self, client: Client):
        self._client = client

    def read(self, target: RemoteObject, spans: Iterable[Span]) -> None:
        """Read spans into their sinks."""
        for span in spans:
            content = self.read_bytes(target, span.start, span.stop)
            span.sink(span.start, memoryview(content))

    def read_bytes(self, target: RemoteObject, start: int, stop: int) -> bytes:
        """Return bytes of an object."""
        reply = self._client.get(target.url, start=start, stop=stop)
        if reply.status != 206 or len(reply.body) != stop - start:
            raise NoAnswerError(f"status {reply.status} to a range of {target.id}")
        return reply.body
