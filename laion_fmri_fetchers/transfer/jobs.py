"""A queue of jobs for threads: by priority, put off, withdrawn, stopped.

It knows nothing of files: a job is a function, which its group may be withdrawn with.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple


class Job(NamedTuple):
    """Work for a thread; lower ``priority`` numbers come first, then earlier jobs."""

    do: Callable[[], None]
    priority: int
    group: Hashable = None


class _Entry(NamedTuple):
    """A job in a heap; the number keeps the order of those with equal keys."""

    key: float
    number: int
    job: Job


class JobQueue:
    """Jobs, and the threads that do them.

    Parameters
    ----------
    n_threads : int
        Threads at most; they are started as there are jobs for them.
    on_error : callable
        Called with what a job raises, which ends the thread.
    n_at_first : int, optional
        Threads at most until `widen` is called; by default ``n_threads``.
    """

    def __init__(
        self,
        n_threads: int,
        on_error: Callable[[BaseException], None],
        n_at_first: int | None = None,
    ):
        self._most_threads, self._on_error = n_threads, on_error
        self._n_threads = min(n_threads, n_at_first or n_threads)
        self._changed = threading.Condition()
        self._ready: list[_Entry] = []
        self._later: list[_Entry] = []
        self._n_put = 0
        self._threads: list[threading.Thread] = []
        self._n_idle = 0
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        """Whether no job is begun any more; jobs may ask, and end early."""
        return self._is_stopped

    def put(self, jobs: Iterable[Job]) -> None:
        """Queue jobs for the next free threads."""
        with self._changed:
            for job in jobs:
                self._n_put += 1
                heapq.heappush(self._ready, _Entry(job.priority, self._n_put, job))
            self._hire()

    def widen(self) -> None:
        """Start as many threads as there are jobs for, up to the most."""
        with self._changed:
            self._n_threads = self._most_threads
            self._hire()

    def put_off(self, job: Job, seconds: float) -> None:
        """Let a job be done after a while."""
        with self._changed:
            self._n_put += 1
            due = time.monotonic() + seconds
            heapq.heappush(self._later, _Entry(due, self._n_put, job))
            self._changed.notify()

    def withdraw(self, group: Hashable) -> int:
        """Forget the jobs of a group that are not begun; return their number."""
        with self._changed:
            n_before = len(self._ready) + len(self._later)
            for heap in (self._ready, self._later):
                heap[:] = [entry for entry in heap if entry.job.group is not group]
                heapq.heapify(heap)
            return n_before - len(self._ready) - len(self._later)

    def stop(self) -> None:
        """Begin no job any more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait until all threads have ended, but not for long."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _hire(self) -> None:
        """Start or wake threads for jobs that are ready; the queue's lock is held."""
        n_ready = len(self._ready)
        n_free = self._n_threads - len(self._threads)
        for _ in range(0 if self._is_stopped else min(n_ready - self._n_idle, n_free)):
            thread = threading.Thread(target=self._work, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system's limit of threads: those that there are will do.
                if not self._threads:
                    raise
                break
            self._threads.append(thread)
        self._changed.notify(n_ready)

    def _work(self) -> None:
        try:
            while job := self._next():
                job.do()
        except BaseException as error:
            self._on_error(error)

    def _next(self) -> Job | None:
        """Return the next job, once it is due; None after the end."""
        with self._changed:
            while not self._is_stopped:
                now = time.monotonic()
                while self._later and self._later[0].key <= now:
                    entry = heapq.heappop(self._later)
                    due = entry._replace(key=entry.job.priority)
                    heapq.heappush(self._ready, due)
                if self._ready:
                    return heapq.heappop(self._ready).job
                self._n_idle += 1
                self._changed.wait(self._later[0].key - now if self._later else None)
                self._n_idle -= 1
        return None
