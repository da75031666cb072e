"""The command that shows the package at work on synthetic data."""

from __future__ import annotations

from laion_fmri_fetchers.exceptions import InvalidQueryError

from .options import Commands, Options, Parser, add_flag, add_names, check_output

_DEMO_SIZES = ("subjects", "n_sessions", "n_trials")


def _demo_options(command: Parser) -> None:
    add_flag(command, "--serve", "only serve the synthetic data, for calls of your own")
    add_names(command, "--subjects", None, "with --serve, names such as sub-01")
    for name, noun in (("--n-sessions", "public sessions"), ("--n-trials", "trials")):
        number = f"with --serve, number of {noun}"
        command.add_argument(name, type=int, metavar="N", help=number)
    command.add_argument("--output", metavar="FOLDER", help="output folder")


def _demo(options: Options) -> None:
    """See it work on synthetic data."""
    given = {name: getattr(options, name) for name in _DEMO_SIZES}
    sizes = {name: value for name, value in given.items() if value is not None}
    if options.serve if options.output else sizes and not options.serve:
        raise InvalidQueryError(
            "--subjects, --n-sessions and --n-trials are options of --serve, and "
            "--output is one of the walk without it"
        )
    check_output(options)
    if options.serve:
        from laion_fmri_fetchers.demo.environment import serve_until_stopped

        try:
            serve_until_stopped(**sizes)
        except ValueError as error:
            raise InvalidQueryError(str(error)) from None
    else:
        from laion_fmri_fetchers.demo.walkthrough import run_demo

        run_demo(options.output)


COMMANDS: Commands = {
    "demo": (_demo_options, _demo),
}
