"""Commands that look after a data directory: status, verify, doctor."""

from __future__ import annotations

import sys

import laion_fmri_fetchers as package
from laion_fmri_fetchers.messages import is_terminal

from .options import (
    Commands,
    Options,
    Parser,
    add_flag,
    add_nothing,
    add_timeout,
    add_verbosity,
    verbosity_of,
)


def _status(options: Options) -> None:
    """Show what is configured, accepted and cached."""
    package.status(data_dir=options.data_dir)


def _verify_options(command: Parser) -> None:
    add_flag(command, "--repair", "download bad files again")
    add_flag(command, "--online", "compare with the bucket of today")
    add_flag(command, "--paths", "print one line per file at a terminal too")
    add_verbosity(command)


def _verify(options: Options) -> int:
    """Check the files on disk."""
    report = package.verify_cache(
        data_dir=options.data_dir,
        repair=options.repair,
        online=options.online,
        verbose=verbosity_of(options),
    )
    bad = report[~report["status"].isin(["ok", "unknown", "outdated", "repaired"])]
    # At a terminal, the summary on stderr has named them already.
    if options.paths or options.quiet or not is_terminal(sys.stdout):
        for row in bad.itertuples():
            print(f"{row.status}\t{row.id}")
    return 1 if len(bad) else 0


def _doctor_options(command: Parser) -> None:
    add_flag(command, "--json", "print JSON, not a table")
    add_timeout(command, "an answer")


def _doctor(options: Options) -> int:
    """Compare bucket and machine with expectations."""
    import json

    from laion_fmri_fetchers.fetchers.checkup.points import Point, summary, table

    points = package.doctor(data_dir=options.data_dir, timeout=options.timeout)
    if options.json:
        print(json.dumps(points, indent=2))
    else:
        rows = [Point(**point) for point in points]
        print(table(rows), summary(rows), sep="\n\n")
    return 1 if any(point["state"] == "failed" for point in points) else 0


COMMANDS: Commands = {
    "status": (add_nothing, _status),
    "verify": (_verify_options, _verify),
    "doctor": (_doctor_options, _doctor),
}
