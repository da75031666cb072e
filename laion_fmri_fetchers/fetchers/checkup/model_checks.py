"""Whether a session's model file can stand for its beta image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from laion_fmri_fetchers.betas.model import ModelError, describe_model
from laion_fmri_fetchers.betas.sources import remote_object
from laion_fmri_fetchers.layout.keys import is_functional_brain_mask
from laion_fmri_fetchers.remote.client import RemoteObject
from laion_fmri_fetchers.remote.ranges import Sink

from .client import Client, NoAnswerError
from .context import Context
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
    reader: Any = _ClientReader(context.client)
    try:
        layout, rows = describe_model(
            reader,
            remote_object(model),
            remote_object(image),
            brain_mask=remote_object(mask) if mask else None,
            rsquare=remote_object(rsquare) if rsquare else None,
        )
    except (ModelError, NoAnswerError) as error:
        yield judged(False, "model file", str(error))
        return
    yield judged(True, "model file", layout)
    yield judged(True, "rows of the model", rows)


class _ClientReader:
    """Reads ranges through the client, which counts them, one after the other."""

    def __init__(self, client: Client):
        self._client = client

    def read(
        self, target: RemoteObject, ranges: Iterable[tuple[int, int]], sink: Sink
    ) -> None:
        """Read ranges into a sink."""
        for start, stop in ranges:
            sink(start, memoryview(self.read_bytes(target, start, stop)))

    def read_bytes(self, target: RemoteObject, start: int, stop: int) -> bytes:
        """Return bytes of an object."""
        reply = self._client.get(target.url, start=start, stop=stop)
        if reply.status != 206 or len(reply.body) != stop - start:
            raise NoAnswerError(f"status {reply.status} to a range of {target.id}")
        return reply.body
