"""``laion-fmri-fetchers``, and ``python -m laion_fmri_fetchers``: runs a command."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence

from laion_fmri_fetchers import __version__
from laion_fmri_fetchers.exceptions import InvalidQueryError, LaionFmriError
from laion_fmri_fetchers.messages import show

from . import data, stimuli  # noqa: F401 - their commands
from .options import COMMANDS, DATA_DIR, convert
from .wording import PROGRAM, on_a_shell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words behind the program's name; None: those it was started with.

    Returns
    -------
    int
        0: done, 1: failed, 2: usage, 130: stopped by Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, io.StringIO())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")

    def tell(beginning: str, message: object) -> None:
        show(f"{beginning}: {on_a_shell(str(message), options)}", "stderr")

    warnings.showwarning = lambda message, *_, **__: tell("Warning", message)
    try:
        convert(options)
        code = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads what Python would flush at its end; without this it complains.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LaionFmriError, OSError, ImportError, MemoryError) as error:
        tell(PROGRAM, error)
        return 2 if isinstance(error, InvalidQueryError) else 1
    except KeyboardInterrupt:
        tell(PROGRAM, "Stopped. Repeat the command to resume.")
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    """Return the parser, with a subparser for each command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Fetch LAION-fMRI, a 7T fMRI dataset on natural images.",
    )
    version = f"{PROGRAM} {__version__}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (options, run) in COMMANDS.items():
        purpose = run.__doc__ or name
        help_text = f"{purpose[0].lower()}{purpose[1:].rstrip('.')}"
        command = subparsers.add_parser(name, help=help_text, description=purpose)
        command.set_defaults(run=run, parser=command)
        for names, how in options if name == "demo" else (DATA_DIR, *options):
            command.add_argument(*names, **how)
    return parser
