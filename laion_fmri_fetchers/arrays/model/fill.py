"""The store filled from the model files of several sessions at once.

::

    fill_from_models ─┬─ _in_threads    a reader and cores that sessions share
                      └─ _in_workers    joblib's: dask, processes, other machines
                             └─ _fill ─▶ session.fill_from_model

The first session of a subject is proved by a full sample of rows. The others wait for
that, and are proved by a small sample if they have the same mask and order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from typing import NamedTuple

import joblib

from laion_fmri_fetchers.remote import retry
from laion_fmri_fetchers.remote.client import Fault
from laion_fmri_fetchers.remote.progress import Progress
from laion_fmri_fetchers.remote.ranges import RangeReader

from .proof import Candidate
from .session import (
    Agreed,
    Means,
    ModelError,
    Task,
    fill_from_model,
    size_by_model,
)

_AT_ONCE = 8
"""Sessions at work at once: each waits for some requests before its rows are known."""

_SHOW_EVERY = 0.05
_N_CORES = 2
"""Threads that compute, for all sessions at once; most of the time goes to waiting."""

_TRIES = 3
"""Versions of a session's files that are tried where they change meanwhile."""


class Filled(NamedTuple):
    """What became of a session."""

    task: Task
    """With the versions of its files that were read in the end."""
    reason: str = ""
    """Why its model file was not used; empty where it was."""
    status: int | None = None
    """HTTP status, where that was the reason."""
    remedy: str = ""
    """``"server"`` where the server does not send ranges, or denies the file,
    ``"network"`` where the network failed; empty where the file is of no use."""
    agreed: Candidate | None = None
    """What its rows are."""


def fill_from_models(
    tasks: list[Task],
    *,
    n_connections: int,
    timeout: float,
    n_jobs: int | None,
    verbose: int,
) -> list[Filled]:
    """Store the voxels of sessions, taken from their model files.

    Parameters
    ----------
    tasks : list of Task
        What is lacking, of a subject.
    n_connections : int
        HTTP connections at once, of all sessions.
    timeout : float
        Seconds without progress after which a connection is given up.
    n_jobs : int or None
        Workers of joblib; None or 1: threads of this process.
    verbose : int
        0: silent, 1: a progress bar.

    Returns
    -------
    list of Filled
        In the order of tasks.
    """
    n_bytes = sum(map(size_by_model, tasks))
    with Progress(len(tasks), n_bytes, verbose, noun="sessions") as progress:
        if n_jobs in (None, 1):
            return _in_threads(tasks, n_connections, timeout, progress)
        return _in_workers(tasks, n_connections, timeout, n_jobs, progress)


def _in_threads(
    tasks: list[Task], n_connections: int, timeout: float, progress: Progress
) -> list[Filled]:
    arrived: deque[int] = deque()
    reader = RangeReader(n_connections, timeout, arrived.append)
    cores = ThreadPoolExecutor(_N_CORES)
    pool = ThreadPoolExecutor(min(_AT_ONCE, len(tasks)))
    futures: list[Future[Filled]] = []
    try:
        first = pool.submit(_fill, tasks[0], reader, cores, lambda: None)
        futures.append(first)
        futures += [
            pool.submit(_fill, task, reader, cores, lambda: first.result().agreed)
            for task in tasks[1:]
        ]
        _watch(futures, arrived, progress)
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        reader.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        cores.shutdown()


def _watch(
    futures: list[Future[Filled]], arrived: deque[int], progress: Progress
) -> None:
    """Show progress until all sessions are done, or one raises."""
    left = set(futures)
    while left:
        done, left = wait(left, _SHOW_EVERY, FIRST_COMPLETED)
        for future in done:
            future.result()
        progress.show(len(futures) - len(left), sum([*arrived]))


def _in_workers(
    tasks: list[Task],
    n_connections: int,
    timeout: float,
    n_jobs: int | None,
    progress: Progress,
) -> list[Filled]:
    """Let workers of joblib fill sessions; they see the data directory, too."""
    filled = [_fill_alone(tasks[0], n_connections, timeout, None)]
    progress.show(1, size_by_model(tasks[0]))
    backend, _ = joblib.parallel.get_active_backend()
    parallel = joblib.Parallel(
        n_jobs=n_jobs,
        return_as="generator" if backend.supports_return_generator else "list",
    )
    n_each = max(1, n_connections // max(1, parallel._effective_n_jobs()))
    others: Iterator[Filled] = parallel(
        joblib.delayed(_fill_alone)(task, n_each, timeout, filled[0].agreed)
        for task in tasks[1:]
    )
    for session in others:
        filled.append(session)
        progress.show(len(filled), sum(size_by_model(f.task) for f in filled))
    return filled


def _fill_alone(
    task: Task,
    n_connections: int,
    timeout: float,
    agreed: Candidate | None,
) -> Filled:
    with (
        ThreadPoolExecutor(_N_CORES) as cores,
        RangeReader(n_connections, timeout) as reader,
    ):
        return _fill(task, reader, cores, lambda: agreed)


def _fill(task: Task, reader: RangeReader, cores: Executor, agreed: Agreed) -> Filled:
    """Fill a session; where a file changes meanwhile, start over with its version."""
    for _ in range(_TRIES):
        try:
            candidate = fill_from_model(task, Means(reader, cores), agreed)
        except ModelError as error:  # noqa: PERF203
            return Filled(task, str(error))
        except Fault as fault:
            if fault.remedy != "changed":
                return _failed(task, fault)
            try:
                task = _renewed(task, reader)
            except Fault as other:
                return _failed(task, other)
        else:
            return Filled(task, agreed=candidate)
    return Filled(task, "its files change again and again")


def _failed(task: Task, fault: Fault) -> Filled:
    may_pass = fault.status is None or fault.status in retry.RETRIED
    remedy = "network" if may_pass and not fault.remedy else "server"
    return Filled(task, fault.reason, fault.status, remedy)


def _renewed(task: Task, reader: RangeReader) -> Task:
    """Return a task with the versions of its files that the bucket has now."""
    assert task.model is not None
    return task._replace(
        image=reader.look_up(task.image), model=reader.look_up(task.model)
    )
