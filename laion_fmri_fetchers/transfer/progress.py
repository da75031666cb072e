"""Progress of a run, on stderr: one bar, or now and then a line without a terminal.

Downloads tell it what happened, from any thread; the caller's thread shows it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Any

from laion_fmri_fetchers.messages import can_draw, progress_bar, readable_size, tell

from . import policy


class Progress:
    """Events so far, and how they are shown.

    Parameters
    ----------
    n_files : int
        Files of the run.
    n_bytes : int
        Bytes of them, as far as is known; it may turn out to be more.
    verbose : int
        0: nothing is shown, 1: the bar, 2: also a line per file, 3: also retries.
    noun : str, default="files"
        What they are, if not files.
    """

    def __init__(self, n_files: int, n_bytes: int, verbose: int, noun: str = "files"):
        self._verbose, self._noun = verbose, noun
        self._lock = threading.Lock()
        self._n_files, self._n_ended = n_files, 0
        self._total, self._arrived, self._reused = n_bytes, 0, 0
        self._lines: deque[str] = deque()
        self._began = self._said_at = time.monotonic()
        self._bar: Any = None
        if verbose and can_draw():
            self._bar = progress_bar(
                total=n_bytes, unit="B", unit_scale=True, miniters=1
            )

    # What happened

    def arrived(self, n_bytes: int) -> None:
        """Count bytes on disk; a negative number takes back useless ones."""
        with self._lock:
            self._arrived += n_bytes

    def reused(self, n_bytes: int) -> None:
        """Count bytes on disk that an earlier call left."""
        with self._lock:
            self._arrived += n_bytes
            self._reused += n_bytes

    def resized(self, n_bytes: int) -> None:
        """Count bytes to fetch beyond those that were known."""
        with self._lock:
            self._total += n_bytes

    def ended(self) -> None:
        """Count a file that is done, or has failed."""
        with self._lock:
            self._n_ended += 1

    def say(self, level: int, line: str) -> None:
        """Show a line at this and higher levels of verbosity."""
        if self._verbose >= level:
            self._lines.append(line)

    # How it is shown, by the caller's thread

    def show(self) -> None:
        """Show how far the run is."""
        if not self._verbose:
            return
        self._show_lines()
        now = time.monotonic()
        if self._bar is not None:
            self._bar.total = max(self._total, self._arrived)
            self._bar.set_postfix_str(self._files(), refresh=False)
            self._count_reused()
            self._bar.update(self._arrived - self._bar.n)
        elif now - self._said_at >= policy.POLICY.line_every:
            self._said_at, arrived = now, self._arrived
            rate = arrived / (now - self._began)
            left = (
                f"{max(self._total - arrived, 0) / rate:.0f} s left"
                if rate
                else "stalled"
            )
            total = max(self._total, arrived)
            size = f"{readable_size(arrived)} of {readable_size(total)}"
            tell(f"{self._files()}, {size}, {readable_size(rate)}/s, {left}", 1)

    def close(self) -> None:
        """Show the end of the run."""
        if not self._verbose:
            return
        self.show()
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
        else:
            seconds = time.monotonic() - self._began
            size = readable_size(self._arrived)
            tell(f"{self._files()}, {size} in {seconds:.1f} s", 1)

    def _show_lines(self) -> None:
        while self._lines:
            line = self._lines.popleft()
            if self._bar is None:
                tell(line, 1)
            else:
                self._bar.write(line, sys.stderr)

    def _count_reused(self) -> None:
        """Move the bar by what earlier calls left, without a change of its rate."""
        reused = self._reused - self._bar.initial
        self._bar.initial += reused
        self._bar.n += reused
        self._bar.last_print_n += reused

    def _files(self) -> str:
        return f"{self._n_ended} of {self._n_files} {self._noun}"
