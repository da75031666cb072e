"""Messages to the user, and whether a person can answer."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

AGREEMENT = "I AGREE"
"""The words by which a person accepts terms."""

_N_ASKED = 3

_PACKAGE = os.path.dirname(__file__) + os.sep


def tell(message: str, verbose: int, level: int = 1) -> None:
    """Print a line where ``verbose`` is at least ``level``.

    It goes to stderr, as stdout is for results; in a notebook, which shows stderr as if
    something were wrong, to stdout.
    """
    if verbose >= level:
        show(message, "stderr" if _kernel() is None else "stdout")


def show(message: str, name: str = "stdout") -> None:
    """Print a line for a person to read; a stream that does not take it is no error.

    A stream may be None (``pythonw``, daemons), closed, a pipe that nobody reads, of
    any encoding, or an object of the user's that has ``write`` alone.
    """
    stream = getattr(sys, name)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with contextlib.suppress(AttributeError, OSError, ValueError, LookupError):
        line = message.encode(encoding, "backslashreplace").decode(encoding)
        stream.write(f"{line}\n")
        stream.flush()


def warn(message: str) -> None:
    """Warn with the line of the user's code that led here."""
    frames = list(_frames_to_user())
    with contextlib.suppress(AttributeError, OSError, ValueError):  # of its stream
        warnings.warn(message, stacklevel=len(frames))


def line_of_user() -> tuple[str, int]:
    """Return the file and the number of the line of the user's code that led here."""
    *_, frame = _frames_to_user()
    return frame.f_code.co_filename, frame.f_lineno


def functions_to_user() -> list[str]:
    """Return the names of functions from here up to the user's code."""
    return [frame.f_code.co_name for frame in _frames_to_user()]


def _frames_to_user() -> Iterator[FrameType]:
    """Yield frames up to the first outside this package and those that call it back."""
    frame: FrameType | None = sys._getframe(1)
    while frame:
        yield frame
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        is_inside = frame.f_code.co_filename.startswith(_PACKAGE)
        if not is_inside and root not in ("sklearn", "joblib"):
            return
        frame = frame.f_back


def readable_size(n_bytes: float) -> str:
    """Return a number of bytes with a unit.

    Examples
    --------
    >>> readable_size(0), readable_size(1500), readable_size(3_200_000_000)
    ('0 B', '1.5 kB', '3.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB"


def listed(names: list[str], most: int = 5) -> str:
    """Return names as a list in a sentence; of many, the first ones.

    Examples
    --------
    >>> listed(["FFA1", "PPA"]), listed(list("abcd"), most=2)
    ('FFA1, PPA', 'a, b and 2 more')
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or the plural.

    Examples
    --------
    >>> counted(1, "image"), counted(4000, "image")
    ('1 image', '4,000 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def can_ask() -> bool:
    """Return whether a person can answer, in a terminal or a notebook with input."""
    kernel = _kernel()
    if kernel is not None:
        return bool(getattr(kernel, "_allow_stdin", False))
    return is_terminal(sys.stdin) and None not in (sys.stdout, sys.stderr)


def ask(question: str, preamble: str = "") -> str:
    """Ask on stdout, or on stderr where stdout is a file; return the answer."""
    is_seen = _kernel() is not None or is_terminal(sys.stdout)
    with contextlib.redirect_stdout(sys.stdout if is_seen else sys.stderr):
        if preamble:
            show(preamble)
        return input(question)


def is_terminal(stream: Any) -> bool:
    """Return whether a stream, of any kind or None, is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def agrees(answer: str) -> bool:
    """Return whether an answer is the words of consent, in any case, quoted or not.

    Examples
    --------
    >>> agrees("i agree"), agrees("'I AGREE'"), agrees("yes")
    (True, True, False)
    """
    return answer.strip().strip("'\"").strip().upper() == AGREEMENT


def ask_agreement(action: str, terms: str) -> bool:
    """Ask for the words of consent to an action, as "accept these terms".

    The question is repeated where the answer is neither yes nor no.
    """
    question = f"Type {AGREEMENT} to {action}, or nothing to decline: "
    for i in range(_N_ASKED):
        try:
            answer = ask(question, "" if i else terms)
        except EOFError:
            return False
        if agrees(answer):
            return True
        if answer.strip().upper() in ("", "N", "NO"):
            return False
    return False


def can_draw() -> bool:
    """Return whether a bar can be drawn on stderr: in a terminal or a notebook."""
    is_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return is_notebook or is_terminal(sys.stderr)


def progress_bar(**options: Any) -> tqdm:
    """Return a bar of tqdm; in a notebook without ipywidgets, one of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns that it is of text
        from tqdm.auto import tqdm

    return tqdm(**options)


def _kernel() -> Any:
    """Return the kernel of the notebook in which this runs; None elsewhere."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython(), "kernel", None) if ipython else None
