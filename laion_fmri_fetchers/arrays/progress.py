"""Progress of joblib's workers, on stderr: one bar, or now and then a line.

As that of downloads, but a task is all that is counted: workers may be other processes,
of which this one hears when a task of theirs is done.
"""

from __future__ import annotations

import time
from typing import Any

import joblib

from laion_fmri_fetchers.messages import can_draw, counted, progress_bar, tell
from laion_fmri_fetchers.remote import progress as lines


class Progress:
    """How many of some tasks are done, and how it is shown; a context.

    Parameters
    ----------
    n_tasks : int
        Number of tasks.
    noun : str
        A task, in the singular: ``"session"``.
    verbose : int
        0: nothing is shown; more: the bar, or lines without a terminal.
    """

    def __init__(self, n_tasks: int, noun: str, verbose: int):
        self._n_tasks, self._noun, self._verbose = n_tasks, noun, verbose
        self._began = self._said_at = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._verbose and can_draw():
            self._bar = progress_bar(
                total=self._n_tasks, unit=f" {self._noun}s", miniters=1
            )
        return self

    def reach(self, n_done: int) -> None:
        """Show that so many tasks are done; from any thread."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(n_done - self._bar.n)
        elif n_done and now - self._said_at >= lines.LINE_EVERY:
            self._said_at = now
            left = (now - self._began) / n_done * (self._n_tasks - n_done)
            tell(
                f"{n_done} of {counted(self._n_tasks, self._noun)}, {left:.0f} s left",
                self._verbose,
            )

    def __exit__(self, kind: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            seconds = time.monotonic() - self._began
            tell(
                f"{counted(self._n_tasks, self._noun)} in {seconds:.1f} s",
                self._verbose,
            )


class WatchedParallel(joblib.Parallel):
    """joblib.Parallel whose finished tasks are shown.

    All backends count them by the same method, also those whose results are had only
    when all tasks are done.

    Parameters
    ----------
    progress : Progress
        Where to show them.
    **options
        Arguments of :class:`joblib.Parallel`.
    """

    def __init__(self, progress: Progress, **options: Any):
        super().__init__(**options)
        self._progress = progress

    def print_progress(self) -> None:
        """Show the tasks that are done; joblib calls it after each batch of them."""
        self._progress.reach(self.n_completed_tasks)
        super().print_progress()
