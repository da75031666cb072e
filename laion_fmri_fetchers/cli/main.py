"""``laion-fmri-fetchers``, and ``python -m laion_fmri_fetchers``: runs a command."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError, LaionFmriError
from laion_fmri_fetchers.messages import show

from . import demo, images, setup, stimuli, upkeep
from .options import Commands, Options, Parser, subparsers_of
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
        subparsers_of(parser)[options.command].error(
            f"unrecognized arguments: {' '.join(unknown)}"
        )
    fail = functools.partial(_fail, options)
    warnings.showwarning = functools.partial(_show_warning, options)
    try:
        code = options.run(options)
        sys.stdout.flush()
    except InvalidQueryError as error:
        return fail(error, 2)
    except (LaionFmriError, OSError, ImportError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("Stopped. Repeat the command to resume.", 130)
    return code or 0


def _fail(options: Options, message: object, code: int) -> int:
    show(f"{PROGRAM}: {on_a_shell(str(message), options)}", "stderr")
    return code


def _show_warning(options: Options, message: Any, *_: Any, **__: Any) -> None:
    show(f"Warning: {on_a_shell(str(message), options)}", "stderr")


COMMANDS: Commands = {
    **setup.COMMANDS,
    **images.COMMANDS,
    **stimuli.COMMANDS,
    **upkeep.COMMANDS,
    **demo.COMMANDS,
}
"""In the order of the help."""


def _parser() -> Parser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Fetch LAION-fMRI, a 7T fMRI dataset on natural images.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version and exit"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add_options, run) in COMMANDS.items():
        purpose = run.__doc__ or name
        help_text = f"{purpose[0].lower()}{purpose[1:].rstrip('.')}"
        command = subparsers.add_parser(name, help=help_text, description=purpose)
        command.set_defaults(run=run)
        if name != "demo":
            command.add_argument(
                "--data-dir", metavar="FOLDER", help="use this data directory"
            )
        add_options(command)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: Parser, *_: Any) -> None:
        from laion_fmri_fetchers import __version__

        print(f"{PROGRAM} {__version__}")
        parser.exit()
