"""Commands, and the options and the output that they share."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.layout.keys import record_of
from laion_fmri_fetchers.messages import is_terminal, readable_size
from laion_fmri_fetchers.query.arguments import user_path

from .terms import TERM_FORM, parse_terms

Options = argparse.Namespace
Run = Callable[[Options], "int | None"]


# What ``add_argument`` of a parser takes: names, and the rest.
Option = tuple[tuple[str, ...], dict[str, Any]]

COMMANDS: dict[str, tuple[tuple[Option, ...], Run]] = {}
"""Options of a command and what runs it, in the order of the help."""


def command(name: str, *options: Option) -> Callable[[Run], Run]:
    """Make a function a command with these options; its docstring is the help."""

    def register(run: Run) -> Run:
        COMMANDS[name] = options, run
        return run

    return register


def option(name: str, help_text: str, *other_names: str, **how: Any) -> Option:
    """Return an option, or an argument without hyphens."""
    return (*other_names, name), {**how, "help": help_text}


def flag(name: str, help_text: str, *other_names: str) -> Option:
    """Return an option without a value."""
    return option(name, help_text, *other_names, action="store_true")


def number(
    name: str, help_text: str, default: float | None = None, unit: str = "N"
) -> Option:
    """Return an option for a number, of the type of its default."""
    kind = int if default is None else type(default)
    help_text += f"; default: {default:g}" if default else ""
    return option(name, help_text, type=kind, default=default, metavar=unit)


def names(name: str, default: str | None, help_text: str, nargs: str = "+") -> Option:
    """Return an option for names; its metavar is the singular of its own."""
    metavar = name.strip("-").upper().removesuffix("S")
    how = {"default": [default] if default else None, "metavar": metavar}
    return option(name, f"{help_text}; default: {default or 'all'}", nargs=nargs, **how)


def terms(name: str, rows: str) -> Option:
    """Return an option for terms on metadata."""
    help_text = f"keep only {rows} matching TERM, may be repeated: {TERM_FORM}"
    return option(name, help_text, action="append", default=[], metavar="TERM")


DATA_DIR = option("--data-dir", "use this data directory", metavar="FOLDER")
SUBJECTS = names("--subjects", "sub-01", "names such as sub-03, or all")
SESSIONS = names("--sessions", "all", "names such as 01, ranges such as 1-4")
DRY_RUN = flag("--dry-run", "show the plan; download no images")
PATHS = flag("--paths", "print one line per file at a terminal too")
JSON = flag("--json", "print JSON, not a table")
MODE = option("--mode", "download_new (default), overwrite or offline")
TIMEOUT = number("--timeout", "seconds without progress", 30.0, "SECONDS")
VERBOSE = "one line per file; -vv also logs every request"
VERBOSITY = (
    option("--verbose", VERBOSE, "-v", action="count", default=1),
    flag("--quiet", "errors and warnings only", "-q"),
)
CONNECTIONS = number("--n-connections", "HTTP connections", 64)
TRANSFER = (MODE, CONNECTIONS, TIMEOUT, *VERBOSITY)
FILES = (*TRANSFER, flag("--allow-missing", "warn of files that failed"), PATHS)


def convert(options: Options) -> None:
    """Replace what was written on a shell by values that the package takes.

    Raises
    ------
    InvalidQueryError
        If a term cannot be parsed, or there is no folder for ``--output``.
    """
    given = vars(options)
    for name in {"where", "image_where"} & given.keys():
        given[name] = parse_terms(given[name])
    if "sessions" in given:
        sessions = []
        for name in given["sessions"]:
            ends = re.fullmatch(r"(?:ses-)?(\d+)-(?:ses-)?(\d+)", name)
            numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
            sessions += [str(number) for number in numbers] or [name]
        given["sessions"] = sessions
    if given.get("output") is not None:
        given["output"] = user_path(given["output"], "--output")
        folder = os.path.dirname(os.path.abspath(given["output"]))
        if not os.path.isdir(folder):
            raise InvalidQueryError(f"There is no folder {folder} for --output.")
    if given.get("quiet"):
        given["verbose"] = 0


def call(function: Callable[..., Any], options: Options, **arguments: Any) -> Any:
    """Call a function with the options that it has as arguments, and with others."""
    known = inspect.signature(function).parameters
    given = {name: value for name, value in vars(options).items() if name in known}
    return function(**{**given, **arguments})


def print_files(options: Options, data: Any, paths: Iterable[str | None]) -> None:
    """Print the paths of files, or the plan of a dry run: at a terminal, in short."""
    given = vars(options)
    is_short = is_terminal(sys.stdout) and not given.get("paths")
    lines = [path for path in paths if path and not is_short]
    if given.get("dry_run"):
        plan = data.plan
        lines = [f"{row.size}\t{row.reason}\t{row.id}" for row in plan.itertuples()]
        if is_short:
            kinds = [record_of(path)["image_type"] for path in plan["id"]]
            sizes = plan.groupby(kinds)["size"].agg(["count", "sum"])
            sizes.loc["total"] = len(plan), plan["size"].sum()
            lines = [f"{'kind':<24}{'files':>8}{'size':>10}"]
            for kind, n, size in sizes.itertuples():
                lines.append(f"{kind:<24}{n:>8,}{readable_size(size):>10}")
    print(*lines, sep="\n", end="\n" * bool(lines))
