"""Options and output that commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import is_terminal, readable_size
from laion_fmri_fetchers.query.arguments import user_path
from laion_fmri_fetchers.query.terms import TERM_FORM

Options = argparse.Namespace
Parser = argparse.ArgumentParser
Commands = dict[str, tuple[Callable[[Parser], None], Callable[[Options], int | None]]]
"""What adds the options of a command, and what runs it; its docstring is the help."""


def add_nothing(_: Parser) -> None:
    """Add nothing."""


def add_flag(command: Parser, option: str, help_text: str) -> None:
    """Add an option without a value."""
    command.add_argument(option, action="store_true", help=help_text)


def add_terms(command: Parser, option: str, rows: str) -> None:
    """Add an option for terms on metadata."""
    command.add_argument(
        option,
        action="append",
        default=[],
        metavar="TERM",
        help=f"keep only {rows} matching TERM, may be repeated: {TERM_FORM}",
    )


def add_names(
    command: Parser,
    option: str,
    default: str | None,
    help_text: str,
    nargs: str = "+",
) -> None:
    """Add an option for names; the metavar is that of the option, singular."""
    metavar = option.strip("-").upper().removesuffix("S")
    names = default if default is None else [default]
    help_text += f"; default: {default or 'all'}"
    command.add_argument(
        option, nargs=nargs, default=names, metavar=metavar, help=help_text
    )


def add_max_images(command: Parser, files: str) -> None:
    """Add how many files to fetch at most."""
    command.add_argument(
        "--max-images", type=int, metavar="N", help=f"maximum number of {files}"
    )


def add_timeout(command: Parser, when: str) -> None:
    """Add how long to wait for a server."""
    command.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help=f"give up after SECONDS without {when}; default: 30",
    )


def add_verbosity(command: Parser) -> None:
    """Add how much to say."""
    command.add_argument(
        *("-v", "--verbose"),
        action="count",
        default=1,
        help="one line per file; -vv also logs every request",
    )
    command.add_argument(
        *("-q", "--quiet"), action="store_true", help="errors and warnings only"
    )


def add_transfer_options(command: Parser, *, of_files: bool = True) -> None:
    """Add how to download; and, of commands for files, how to report them."""
    command.add_argument("--mode", help="download_new (default), overwrite or offline")
    command.add_argument(
        "--n-connections",
        type=int,
        default=64,
        metavar="N",
        help="HTTP connections; default: 64",
    )
    add_timeout(command, "progress")
    if of_files:
        add_flag(command, "--allow-missing", "warn of files that failed")
        add_flag(command, "--paths", "print one line per file at a terminal too")
    add_verbosity(command)


def transfer_arguments(options: Options) -> dict[str, Any]:
    """Return how to work, as the fetchers' arguments."""
    return {
        "mode": options.mode,
        "data_dir": options.data_dir,
        "allow_missing": getattr(options, "allow_missing", False),
        "n_connections": options.n_connections,
        "timeout": options.timeout,
        "verbose": verbosity_of(options),
    }


def sessions_of(options: Options) -> list[str]:
    """Return names of sessions, those of ranges such as ``1-4`` one by one."""
    names = []
    for name in options.sessions:
        ends = re.fullmatch(r"(?:ses-)?(\d+)-(?:ses-)?(\d+)", name)
        numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
        names += [str(number) for number in numbers] or [name]
    return names


def check_output(options: Options) -> str | None:
    """Return the path in ``--output``; raise early if it cannot be written."""
    if options.output is None:
        return None
    output = user_path(options.output, "--output")
    folder = os.path.dirname(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise InvalidQueryError(f"There is no folder {folder} for --output.")
    return output


def verbosity_of(options: Options) -> int:
    """Return how much to say, as the package's ``verbose``."""
    return 0 if options.quiet else options.verbose


def print_files(options: Options, data: Any, paths: Iterable[str | None]) -> None:
    """Print the paths of files, or the plan of a dry run: at a terminal, in short."""
    is_short = is_terminal(sys.stdout) and not getattr(options, "paths", False)
    if not getattr(options, "dry_run", False):
        for path in () if is_short else filter(None, paths):
            print(path)
    elif is_short:
        _print_kinds(data.plan)
    else:
        for row in data.plan.itertuples():
            print(f"{row.size}\t{row.reason}\t{row.id}")


def _print_kinds(plan: Any) -> None:
    """Print number and size of planned files, by kind."""
    from laion_fmri_fetchers.layout.keys import record_of

    kinds = [record_of(file_id)["image_type"] for file_id in plan["id"]]
    sizes = plan.groupby(kinds)["size"].agg(["count", "sum"])
    rows = [*sizes.itertuples(), ("total", len(plan), plan["size"].sum())]
    print(f"{'kind':<24}{'files':>8}{'size':>10}")
    for kind, number, size in rows:
        print(f"{kind:<24}{number:>8,}{readable_size(size):>10}")


def subparsers_of(parser: Parser) -> dict[str, Parser]:
    """Return the parsers of commands, by name."""
    choices: Any = next(a.choices for a in parser._actions if a.dest == "command")
    return choices
