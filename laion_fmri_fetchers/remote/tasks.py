"""Functions run in daemon threads, and tried again; all decisions are the caller's.

::

    caller's thread                         daemon threads
    Tasks.submit ─▶ Threads ───────────────▶ function(...) ─┐
    Tasks.next   ◀──────────────────────────────────────────┘
         └ a Fault that may pass: put off, and submitted again when it is due

Threads are daemons so that Ctrl-C waits for no server. They share nothing with a
caller but two queues; a function may ask `Tasks.is_stopped` whether its result is
still wanted.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from laion_fmri_fetchers.messages import tell

from . import retry
from .client import Fault

NAME = "laion-fmri"
"""Name of the threads."""
QUIET = 3.0
"""Seconds of waiting after which a message says for what."""


class Outcome(NamedTuple):
    """What became of a task: its result, or the error of its last try."""

    key: Any
    result: Any = None
    error: BaseException | None = None


class _Task(NamedTuple):
    tasks: Tasks
    key: Any
    function: Callable[..., Any]
    arguments: tuple
    n_tried: int = 0


class Threads:
    """Threads for any number of callers; a context manager that stops them at its end.

    Parameters
    ----------
    n : int
        Threads at most; they are started as there are tasks for them.
    """

    def __init__(self, n: int):
        self.n = n
        self.is_stopped = False
        self._n_started = 0
        self._n_waiting = 0
        self._lock = threading.Lock()
        self._ready: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_stopped = True
        for _thread in range(self._n_started):
            self._ready.put(None)

    def start(self, task: _Task) -> None:
        """Let the next free thread do a task; after the end, return it undone."""
        if self.is_stopped:
            task.tasks.done.put((task, Outcome(task.key)))
            return
        with self._lock:
            self._n_waiting += 1
            if self._n_started < min(self._n_waiting, self.n):
                thread = threading.Thread(target=self._work, daemon=True, name=NAME)
                # Where the system allows no more threads, those there are will do.
                with contextlib.suppress(*([RuntimeError] * (self._n_started > 0))):
                    thread.start()
                    self._n_started += 1
        self._ready.put(task)

    def _work(self) -> None:
        while task := self._ready.get():
            outcome, began = Outcome(task.key), time.monotonic()
            if not (self.is_stopped or task.tasks.is_stopped):
                try:
                    result = task.function(*task.arguments)
                    outcome = Outcome(task.key, result)
                except BaseException as error:
                    outcome = Outcome(task.key, error=error)
                    if isinstance(error, Fault):
                        error.seconds = time.monotonic() - began
            with self._lock:
                self._n_waiting -= 1
            task.tasks.done.put((task, outcome))


class Tasks:
    """Tasks of one caller, which are done by threads.

    Parameters
    ----------
    threads : Threads
        What does them.
    on_retry : callable, optional
        Called with the key of a task that will be tried again, the fault, and the
        seconds until then.
    """

    def __init__(
        self,
        threads: Threads,
        on_retry: Callable[[Any, Fault, float], None] = lambda *_: None,
    ):
        self.n_open = 0
        """Tasks whose outcome was not returned yet."""
        self.is_stopped = False
        self.done: queue.SimpleQueue[tuple[_Task, Outcome]] = queue.SimpleQueue()
        self._threads, self._on_retry = threads, on_retry
        self._n_running = 0
        self._later: list[tuple[float, int, _Task]] = []
        self._numbers = itertools.count()

    def stop(self, seconds: float) -> None:
        """Begin with no task any more, and wait for those that threads are doing."""
        self.is_stopped = True
        until = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while self._n_running:
                self.done.get(timeout=max(0.0, until - time.monotonic()))
                self._n_running -= 1

    def submit(self, key: Any, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function in a thread; its outcome has the key."""
        self.n_open += 1
        self._start(_Task(self, key, function, arguments))

    def next(self, seconds: float) -> Outcome | None:
        """Return the next outcome, or None after so many seconds without one."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                self._start(heapq.heappop(self._later)[2])
            wake = min(until, self._later[0][0]) if self._later else until
            try:
                task, outcome = self.done.get(timeout=max(0.0, wake - now))
            except queue.Empty:
                if time.monotonic() >= until:
                    return None
                continue
            self._n_running -= 1
            fault = outcome.error
            if isinstance(fault, Fault):
                n_tried = 1 if fault.has_progressed else task.n_tried + 1
                if n_tried < fault.tries:
                    wait = retry.wait_before(n_tried, fault.wait)
                    self._on_retry(task.key, fault, wait)
                    entry = time.monotonic() + wait, next(self._numbers)
                    task = task._replace(n_tried=n_tried)
                    heapq.heappush(self._later, (*entry, task))
                    continue
                if n_tried > 1:
                    fault.reason += f" ({n_tried} times)"
            self.n_open -= 1
            return outcome

    def results(self, waiting_for: str, verbose: int) -> Iterator[tuple[Any, Any]]:
        """Yield key and result of each task, also of those submitted meanwhile.

        Parameters
        ----------
        waiting_for : str
            What a line names if it takes long and ``verbose`` is not 0.
        verbose : int
            Whether to say so.

        Raises
        ------
        Exception
            The first error of a task.
        """
        began, is_said = time.monotonic(), False
        while self.n_open:
            outcome = self.next(QUIET)
            if self._threads.is_stopped:
                raise InterruptedError("what was to do the work was stopped")
            if outcome and outcome.error:
                raise outcome.error
            if outcome:
                yield outcome.key, outcome.result
            elif not is_said and time.monotonic() - began >= QUIET:
                is_said = True
                tell(f"Waiting for {waiting_for} ...", verbose)

    def _start(self, task: _Task) -> None:
        self._n_running += 1
        self._threads.start(task)
