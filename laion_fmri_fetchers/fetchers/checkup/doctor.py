"""`doctor`: the checks, run several at once, and their points in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import NamedTuple

from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.messages import counted, readable_size
from laion_fmri_fetchers.query.arguments import check_mode, check_timeout

from . import (
    content_checks,
    layout_checks,
    machine_checks,
    model_checks,
    service_checks,
)
from .client import CONNECT_TIMEOUT, Client, begin
from .context import Context, survey
from .points import FAILED, Point, failed, note, ok, without_secrets
from .reach import reach


class Check(NamedTuple):
    """A function of the context, and its requirements."""

    points: Callable[[Context], Iterable[Point]]
    needs: str
    """"nothing", "network", or "bucket": a bucket that was listed."""

    @property
    def name(self) -> str:
        """Return its name, in words."""
        return self.points.__name__.replace("_", " ")


CHECKS = (
    Check(machine_checks.versions, "nothing"),
    Check(machine_checks.settings, "nothing"),
    Check(machine_checks.saved_configuration, "nothing"),
    Check(machine_checks.data_directory, "nothing"),
    Check(machine_checks.free_space, "nothing"),
    Check(machine_checks.state_folder, "nothing"),
    Check(layout_checks.root_files, "bucket"),
    Check(layout_checks.trees, "bucket"),
    Check(layout_checks.subjects, "bucket"),
    Check(layout_checks.sessions, "bucket"),
    Check(layout_checks.keys, "bucket"),
    Check(layout_checks.image_types, "bucket"),
    Check(layout_checks.roi_names, "bucket"),
    Check(layout_checks.grids_of_masks, "bucket"),
    Check(layout_checks.stimulus_files, "bucket"),
    Check(content_checks.participants, "bucket"),
    Check(content_checks.trial_table, "bucket"),
    Check(content_checks.images, "bucket"),
    Check(content_checks.ranges, "bucket"),
    Check(content_checks.checksums, "bucket"),
    Check(model_checks.model_file, "bucket"),
    Check(content_checks.held_out, "bucket"),
    Check(content_checks.gated_archive, "bucket"),
    Check(content_checks.stimulus_table, "bucket"),
    Check(content_checks.captions_and_masks, "bucket"),
    Check(service_checks.access_manifest, "network"),
    Check(service_checks.archive_size, "bucket"),
    Check(service_checks.access_pages, "network"),
    Check(service_checks.request_id, "nothing"),
    Check(service_checks.splits, "network"),
)


def doctor(
    *, data_dir: str | os.PathLike | None = None, timeout: float = 30.0
) -> list[dict[str, str]]:
    """Compare bucket, access service and this machine with expectations.

    A sample is looked at: one subject and one session. At most 20 MB are read, nothing
    is downloaded into the data directory, and no licence is asked for. The result holds
    no secret, and can be part of a bug report.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`. A file is written to it for a moment, to
        see whether that works.
    timeout : float, default=30.0
        Seconds without an answer after which a server is given up.

    Returns
    -------
    list of dict
        One per point, each with the texts ``point`` (its name), ``state`` ("ok",
        "note": worth knowing, or "failed": something that calls need is not as
        expected), ``found``, ``expected`` and ``advice``.

    See Also
    --------
    verify_cache : Check the files on disk.
    status : Print what is configured, accepted and cached.

    Examples
    --------
    Needs the bucket and the access service::

        >>> points = doctor()  # doctest: +SKIP
        >>> [p["point"] for p in points if p["state"] == "failed"]  # doctest: +SKIP
        []
    """
    timeout = check_timeout(timeout)
    client = Client(timeout)
    context = Context(data_dir, client)
    missing = {}
    if check_mode(None) == "offline":
        missing = dict.fromkeys(("network", "bucket"), _OFFLINE)
    tasks = _begin(("nothing", "network"), context, missing)
    points: list[Point] = []
    if not missing:
        points += _guarded("bucket", lambda: reach(client))
        if all(point.state != FAILED for point in points):
            try:
                context = context._replace(sample=survey(client))
            except LaionFmriError as error:
                points.append(failed("listings", str(error)))
        if any(point.state == FAILED for point in points):
            missing["bucket"] = _NOT_LISTED
    tasks |= _begin(("bucket",), context, missing)
    limit = 2 * (timeout + CONNECT_TIMEOUT)
    for check in CHECKS:
        points += _result(check, tasks[check], limit)
    if "bucket" not in missing:  # now that nothing else takes a share of the bandwidth
        points += _guarded("speed", lambda: content_checks.speed(context))
    amount = counted(client.n_answers, "answer")
    points.append(ok("traffic", f"{readable_size(client.n_bytes)} in {amount}"))
    return [without_secrets(point)._asdict() for point in points]


_OFFLINE = "LAION_FMRI_OFFLINE is set"
_NOT_LISTED = "the bucket was not listed"


def _begin(
    needs: tuple[str, ...], context: Context, missing: dict[str, str]
) -> dict[Check, Future]:
    """Start the checks with some needs."""
    return {
        check: begin(_run, check, context, missing.get(check.needs))
        for check in CHECKS
        if check.needs in needs
    }


def _run(check: Check, context: Context, missing: str | None) -> list[Point]:
    if missing:
        return [note(check.name, f"not checked, because {missing}")]
    return _guarded(check.name, lambda: check.points(context))


def _result(check: Check, task: Future, limit: float) -> list[Point]:
    try:
        return task.result(limit)
    except LateError:
        return [failed(check.name, f"no result within {limit:g} s")]


def _guarded(name: str, check: Callable[[], Iterable[Point]]) -> list[Point]:
    """Return the points of a check; an error it raises is the last of them."""
    points: list[Point] = []
    try:
        points.extend(check())
    except LaionFmriError as error:
        points.append(failed(name, str(error)))
    except Exception as error:
        # What is not as expected may break a check in any way; the others go on.
        points.append(failed(name, f"{type(error).__name__}: {error}", *_UNEXPECTED))
    return points


_UNEXPECTED = (
    "what this check understands",
    "Report this to the developers of this package.",
)
