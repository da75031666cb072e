"""The check-up: the real services, met once, against what is known of them.

What is known of the dataset is in `layout` and in the checks; here it is compared with
the bucket, the access service and this machine, by a sample that is quick and kind::

    reach ─▶ name, connection, TLS, proxy, first pages of the listing
      └▶ survey ─▶ Sample: listings of a subject in every tree, and of a session
           └▶ CHECKS, several at once: (context) ─▶ points
    checks of this machine and of the access service need neither

A check is a generator function of the `Context`, and a row of `CHECKS`. It reads by
``context.client``, whose bytes are counted and limited. What it raises becomes a failed
point; where what it needs was not reached, it becomes a note.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from multiprocessing import TimeoutError as LateError
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import NamedTuple

from laion_fmri_fetchers.exceptions import LaionFmriError
from laion_fmri_fetchers.messages import counted, readable_size

from . import content_checks, layout_checks, machine_checks, service_checks
from .client import CONNECT_TIMEOUT, Client
from .context import Context, survey
from .points import FAILED, Point, failed, note, ok, without_secrets
from .reach import reach

N_THREADS = 8


class Check(NamedTuple):
    """A function of the context, and what it needs to run."""

    points: Callable[[Context], Iterable[Point]]
    needs: str
    """"nothing", "network", or "bucket": a bucket that was listed."""


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
    Check(content_checks.held_out, "bucket"),
    Check(content_checks.gated_archive, "bucket"),
    Check(content_checks.stimulus_table, "bucket"),
    Check(content_checks.captions_and_masks, "bucket"),
    Check(service_checks.access_manifest, "network"),
    Check(service_checks.archive_size, "bucket"),
    Check(service_checks.access_pages, "network"),
    Check(service_checks.request_id, "nothing"),
)


def doctor(
    *, data_dir: str | os.PathLike | None = None, timeout: float = 30.0
) -> list[dict[str, str]]:
    """Compare bucket, access service and this machine with what is expected of them.

    A sample is looked at: one subject and one session. At most 20 MB are read, nothing
    is downloaded into the data directory, and no licence is asked for. The result holds
    no secret, and can go into a report of a bug.

    Parameters
    ----------
    data_dir : str or path, optional
        The data directory, see `get_data_dir`. A file is written to it for a moment, to
        see whether that works.
    timeout : float, default=30.0
        Seconds without an answer after which a server is asked no more.

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
    client = Client(timeout)
    context = Context(data_dir, client)
    is_offline = os.environ.get("LAION_FMRI_OFFLINE", "").strip() not in ("", "0")
    missing = dict.fromkeys(("network", "bucket"), _OFFLINE) if is_offline else {}
    # Its threads are daemons: Ctrl-C does not wait for servers that are silent.
    with ThreadPool(N_THREADS) as pool:
        tasks = _begin(pool, ("nothing", "network"), context, missing)
        points: list[Point] = []
        if not is_offline:
            points += _guarded(lambda: reach(client, pool), "bucket")
            if all(point.state != FAILED for point in points):
                context, more = _surveyed(context, pool)
                points += more
            if any(point.state == FAILED for point in points):
                missing["bucket"] = _NOT_LISTED
        tasks |= _begin(pool, ("bucket",), context, missing)
        limit = 2 * (timeout + CONNECT_TIMEOUT)
        for check in CHECKS:
            points += _result(check, tasks[check], limit)
        # When nothing else is under way.
        if "bucket" not in missing:
            points += _guarded(lambda: content_checks.speed(context), "speed")
    amount = counted(len(client.latencies), "answer")
    points.append(ok("traffic", f"{readable_size(client.n_bytes)} in {amount}"))
    return [without_secrets(point)._asdict() for point in points]


_OFFLINE = "LAION_FMRI_OFFLINE is set"
_NOT_LISTED = "the bucket was not listed"


def _begin(
    pool: ThreadPool, needs: Collection[str], context: Context, missing: dict[str, str]
) -> dict[Check, AsyncResult]:
    """Start the checks that need no more than is there."""
    return {
        check: pool.apply_async(_run, (check, context, missing.get(check.needs)))
        for check in CHECKS
        if check.needs in needs
    }


def _surveyed(context: Context, pool: ThreadPool) -> tuple[Context, list[Point]]:
    """Return the context with a sample of the bucket, or a point that says why not."""
    try:
        return context._replace(sample=survey(context.client, pool)), []
    except LaionFmriError as error:
        return context, [failed("listings", str(error))]


def _run(check: Check, context: Context, missing: str | None) -> list[Point]:
    if missing:
        return [note(_name(check), f"not checked, because {missing}")]
    return _guarded(lambda: check.points(context), _name(check))


def _guarded(check: Callable[[], Iterable[Point]], name: str) -> list[Point]:
    """Return the points of a check; what it raises is the last of them."""
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


def _result(check: Check, task: AsyncResult, limit: float) -> list[Point]:
    try:
        return task.get(limit)
    except LateError:
        return [failed(_name(check), f"no result within {limit:g} s")]


def _name(check: Check) -> str:
    return check.points.__name__.replace("_", " ")
