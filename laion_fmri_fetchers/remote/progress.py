"""Progress on stderr: one bar, or now and then a line where there is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from laion_fmri_fetchers.messages import can_draw, progress_bar, readable_size, tell

_DRAW_EVERY = 0.1
# Seconds between lines where there is no terminal, as in the log of a batch job.
LINE_EVERY = 10.0


class Progress(contextlib.AbstractContextManager["Progress"]):
    """How far a call is; a context manager, used by the caller's thread.

    Parameters
    ----------
    n_items : int
        Files, or whatever the noun says.
    total : int
        Bytes of them, as far as is known; it may turn out to be more.
    verbose : int
        0: nothing is shown, 1: the bar, 2: also a line per file, 3: also what starts
        over.
    noun : str, default="files"
        What the items are.
    """

    def __init__(self, n_items: int, total: int, verbose: int, noun: str = "files"):
        self.total = total
        self._n_items, self._verbose, self._noun = n_items, verbose, noun
        self._began = self._shown_at = time.monotonic()
        self._bar: Any = None
        if verbose and can_draw():
            self._bar = progress_bar(total=total, unit="B", unit_scale=True, miniters=1)
        self._items, self._arrived = f"0 of {n_items} {noun}", 0

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()
        else:
            seconds = time.monotonic() - self._began
            size = readable_size(self._arrived)
            tell(f"{self._items}, {size} in {seconds:.1f} s", self._verbose)

    def say(self, level: int, line: str) -> None:
        """Show a line at this and higher levels of verbosity; from any thread."""
        if self._bar is None:
            tell(line, self._verbose, level)
        elif self._verbose >= level:
            self._bar.write(line, sys.stderr)

    def show(self, n_done: int, arrived: int) -> None:
        """Show how many items are done, and how many bytes have arrived."""
        self._items = f"{n_done} of {self._n_items} {self._noun}"
        self._arrived = arrived
        self.total = max(self.total, arrived)
        now = time.monotonic()
        every = LINE_EVERY if self._bar is None else _DRAW_EVERY
        if now - self._shown_at < every:
            return
        self._shown_at = now
        if self._bar is not None:
            self._draw()
            return
        rate = arrived / (now - self._began)
        left = f"{(self.total - arrived) / rate:.0f} s left" if rate else "stalled"
        size = f"{readable_size(arrived)} of {readable_size(self.total)}"
        tell(f"{self._items}, {size}, {readable_size(rate)}/s, {left}", self._verbose)

    def _draw(self) -> None:
        self._bar.total = self.total
        self._bar.set_postfix_str(self._items, refresh=False)
        self._bar.update(self._arrived - self._bar.n)
        self._bar.refresh()
