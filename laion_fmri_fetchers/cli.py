"""The command line: ``laion-fmri-fetchers`` and ``python -m laion_fmri_fetchers``.

Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from .exceptions import InvalidQueryError, LaionFmriError

if TYPE_CHECKING:
    from laion_fmri_fetchers.query.filters import ResultFilter

_TERM = re.compile(r"\s*(\w+)\s*(>=|<=|!=|==|=|>|<|~|\bin\b)\s*(.*?)\s*", re.DOTALL)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NUMBERS = frozenset({"n_reps", "beta_index", "run", "size"})
_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
_TERM_HELP = "FIELD OP VALUE; OP is = != >= <= > < ~ (regular expression) in (a,b,c)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words behind the program's name; None: those it was started with.

    Returns
    -------
    int
        0: done, 1: failed, 2: usage.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    try:
        code = options.run(options)
        sys.stdout.flush()
    except InvalidQueryError as error:
        return _fail(error, 2)
    except (LaionFmriError, OSError, ImportError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("Stopped. The same command goes on from here.", 130)
    return code or 0


def _fail(message: object, code: int) -> int:
    print(f"laion-fmri-fetchers: {message}", file=sys.stderr)
    return code


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"Warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laion-fmri-fetchers",
        description="Fetch LAION-fMRI, a 7T fMRI dataset on natural images.",
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    config = _command(commands, "config", _config, "show or set the data directory")
    config.add_argument("folder", nargs="?", help="the data directory from now on")

    accept = _command(
        commands, "accept-license", _accept, "accept the CC0 terms of the data"
    )
    accept.add_argument("--show", action="store_true", help="only print the terms")
    _command(commands, "info", _info, "what the dataset holds")

    rois = _command(commands, "rois", _rois, "names of ROIs")
    rois.add_argument(
        "--subject", metavar="SUB", help="such as sub-01; by default of any"
    )
    rois.add_argument(
        "--category", metavar="CATEGORY", help="such as face; by default of any"
    )

    fetch = _command(commands, "fetch", _fetch, "fetch images and masks")
    fetch.add_argument(
        "--subjects",
        nargs="+",
        default=["sub-01"],
        metavar="SUB",
        help="names such as sub-01, or all; by default sub-01",
    )
    fetch.add_argument(
        "--rois",
        nargs="*",
        default=["all"],
        metavar="ROI",
        help="names such as FFA1, categories such as face, none; by default all",
    )
    fetch.add_argument(
        "--sessions",
        nargs="+",
        default=["all"],
        metavar="SES",
        help="names such as ses-01; by default all",
    )
    _terms(fetch, "--where", "trials")
    _terms(fetch, "--image-where", "images")
    fetch.add_argument("--max-images", type=int, metavar="N", help="no more images")
    fetch.add_argument("--dry-run", action="store_true", help="list, download nothing")
    _transfer_options(fetch)

    access = _command(
        commands, "request-access", _request_access, "apply for the stimulus images"
    )
    for name in ("name", "email", "institution", "pi", "research-purpose"):
        access.add_argument(f"--{name}", help="prompted for if omitted")
    access.add_argument(
        "--accept-terms-version",
        metavar="VERSION",
        help="you accept this version of the Data Use Agreement; prompted for if "
        "omitted",
    )
    access.add_argument(
        "--acknowledge-privacy",
        action="store_true",
        help="you acknowledge the privacy notice; prompted for if omitted",
    )
    access.add_argument(
        "--renew", action="store_true", help="even if a valid id exists"
    )
    _command(commands, "login", _login, "store a request_id (prompts for it)")
    _command(commands, "logout", _logout, "forget the request_id")

    stimuli = _command(commands, "fetch-stimuli", _stimuli, "fetch the stimulus images")
    stimuli.add_argument(
        "--names", nargs="+", metavar="NAME", help="names of images; default: all"
    )
    _terms(stimuli, "--where", "stimuli")
    stimuli.add_argument(
        "--max-images", type=int, metavar="N", help="maximum number of images"
    )
    stimuli.add_argument("--extract", action="store_true", help="write image files")
    stimuli.add_argument(
        "--dry-run", action="store_true", help="plan only; needs no request_id"
    )
    _transfer_options(stimuli)

    for name in ("captions", "embeddings", "segmentations"):
        command = _command(
            commands, f"fetch-{name}", _derivatives, f"fetch {name} of the stimuli"
        )
        command.set_defaults(what=name)
        if name == "embeddings":
            command.add_argument(
                "--models",
                nargs="+",
                default=["all"],
                metavar="MODEL",
                help="names such as CLIP; by default all",
            )
        _transfer_options(command)

    _command(commands, "status", _status, "what is configured, accepted and cached")

    verify = _command(commands, "verify", _verify, "check the files on disk")
    verify.add_argument(
        "--repair", action="store_true", help="download bad files again"
    )
    verify.add_argument(
        "--online", action="store_true", help="compare with the bucket of today"
    )
    _verbosity(verify)

    doctor = _command(
        commands, "doctor", _doctor, "compare bucket and machine with what is expected"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, not a table")
    doctor.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="without an answer; by default 30",
    )

    completion = commands.add_parser(
        "completion",
        help="make a shell complete these commands",
        description="Print what a shell is to evaluate, such as: "
        'eval "$(laion-fmri-fetchers completion bash)"',
    )
    completion.set_defaults(run=_completion)
    completion.add_argument("shell", choices=_SHELLS)

    demo = commands.add_parser("demo", help="see it work on synthetic data")
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--serve",
        action="store_true",
        help="only serve the synthetic data, for calls of your own",
    )
    demo.add_argument(
        "--output", metavar="FOLDER", help="where to keep data and figure"
    )
    return parser


def _terms(command: argparse.ArgumentParser, option: str, what: str) -> None:
    command.add_argument(
        option,
        action="append",
        default=[],
        metavar="TERM",
        help=f"only {what} that fulfil it, may be repeated: {_TERM_HELP}",
    )


def _transfer_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--mode", help="download_new (the default), overwrite or offline"
    )
    command.add_argument(
        "--n-connections",
        type=int,
        default=64,
        metavar="N",
        help="HTTP connections; by default 64",
    )
    command.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="without progress; by default 30",
    )
    command.add_argument(
        "--allow-missing", action="store_true", help="warn of files that failed"
    )
    _verbosity(command)


def _verbosity(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=1,
        help="a line a file; twice: all that is asked of the server",
    )
    command.add_argument(
        "-q", "--quiet", action="store_true", help="errors and warnings only"
    )


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """Return how to work, as the fetchers' arguments."""
    return {
        "mode": options.mode,
        "data_dir": options.data_dir,
        "allow_missing": options.allow_missing,
        "n_connections": options.n_connections,
        "timeout": options.timeout,
        "verbose": 0 if options.quiet else options.verbose,
    }


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    command.add_argument(
        "--data-dir", metavar="FOLDER", help="instead of the data directory in force"
    )
    command.set_defaults(run=run)
    return command


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from . import __version__

        print(f"laion-fmri-fetchers {__version__}")
        parser.exit()


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks what may come next, and end."""
    import argcomplete

    from laion_fmri_fetchers.layout.keys import RECORD_FIELDS
    from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS
    from laion_fmri_fetchers.layout.names import ROI_CATEGORIES, SUBJECTS
    from laion_fmri_fetchers.layout.trees import EMBEDDING_MODELS

    categories = ROI_CATEGORIES
    known: dict[str, Iterable[str]] = {
        "subject": SUBJECTS,
        "subjects": ["all", *SUBJECTS],
        "category": categories,
        "rois": ["all", "none", *categories, *chain(*categories.values())],
        "sessions": ["all", *(f"ses-{n:02d}" for n in range(1, 31))],
        "where": [f"{field}=" for field in TRIAL_FIELDS],
        "image_where": [f"{field}=" for field in RECORD_FIELDS],
        "models": ["all", *EMBEDDING_MODELS],
        "mode": ["download_new", "overwrite", "offline"],
    }
    commands: Any = next(a.choices for a in parser._actions if a.dest == "command")
    for action in chain(*(command._actions for command in commands.values())):
        if action.dest in known:
            action.completer = lambda names=known[action.dest], **_: names
    argcomplete.autocomplete(parser)


def _completion(options: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode(["laion-fmri-fetchers"], shell=options.shell))


def _config(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.storage.data_dir import dataset_initialize, get_data_dir

    if options.folder:
        print(dataset_initialize(options.folder))
    else:
        print(get_data_dir(options.data_dir))


def _accept(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.access.licence import accept_license, license_text
    from laion_fmri_fetchers.storage.data_dir import get_data_dir

    if options.show:
        print(license_text())
        return
    accept_license(options.data_dir)
    print(f"The CC0 terms are accepted for {get_data_dir(options.data_dir)}")


def _info(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.fetchers.discovery import describe

    describe(data_dir=options.data_dir)


def _rois(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.fetchers.discovery import get_rois

    rois = get_rois(options.subject, options.category, data_dir=options.data_dir)
    print("\n".join(rois))


def _fetch(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.fetchers.fmri import fetch_laion_fmri

    data = fetch_laion_fmri(
        options.subjects,
        None if options.rois in ([], ["none"]) else options.rois,
        options.sessions,
        trial_filter=parse_terms(options.where),
        image_filter=parse_terms(options.image_where),
        max_images=options.max_images,
        dry_run=options.dry_run,
        **_how(options),
    )
    if options.dry_run:
        _print_plan(data)
    else:
        _print_paths([*data.images, *data.rois])


def _print_plan(data: Any) -> None:
    for row in data.plan.itertuples():
        print(f"{row.size}\t{row.reason}\t{row.id}")


def _print_paths(paths: Sequence[str | None]) -> None:
    for path in filter(None, paths):
        print(path)


def _request_access(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.access.stimulus_access import request_stimulus_access

    from .exceptions import AccessPendingError

    try:
        request_stimulus_access(
            name=options.name,
            email=options.email,
            institution=options.institution,
            pi=options.pi,
            research_purpose=options.research_purpose,
            accept_terms_version=options.accept_terms_version,
            acknowledge_privacy=options.acknowledge_privacy or None,
            renew=options.renew,
            data_dir=options.data_dir,
        )
    except AccessPendingError as pending:
        print(pending)


def _login(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.access.stimulus_access import login

    login(data_dir=options.data_dir)


def _logout(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.access.stimulus_access import logout

    logout(options.data_dir)


def _stimuli(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.fetchers.stimuli import fetch_laion_stimuli

    data = fetch_laion_stimuli(
        options.names,
        stimulus_filter=parse_terms(options.where),
        max_images=options.max_images,
        extract=options.extract,
        dry_run=options.dry_run,
        **_how(options),
    )
    if options.dry_run:
        _print_plan(data)
    else:
        _print_paths([data.metadata_file, data.archive, *data.images])


def _derivatives(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.fetchers import stimulus_features as derivatives

    if options.what == "captions":
        data = derivatives.fetch_laion_captions(**_how(options))
        _print_paths([data.captions_file])
    elif options.what == "embeddings":
        data = derivatives.fetch_laion_embeddings(options.models, **_how(options))
        _print_paths(list(data.files.values()))
    else:
        data = derivatives.fetch_laion_segmentations(**_how(options))
        _print_paths([data.segmentations_file, data.masks_file])


def _status(options: argparse.Namespace) -> None:
    from laion_fmri_fetchers.fetchers.verify import status

    status(data_dir=options.data_dir)


def _verify(options: argparse.Namespace) -> int:
    from laion_fmri_fetchers.fetchers.verify import verify_cache

    report = verify_cache(
        data_dir=options.data_dir,
        repair=options.repair,
        online=options.online,
        verbose=0 if options.quiet else options.verbose,
    )
    bad = report[~report["status"].isin(["ok", "unknown", "outdated", "repaired"])]
    for row in bad.itertuples():
        print(f"{row.status}\t{row.id}")
    return 1 if len(bad) else 0


def _doctor(options: argparse.Namespace) -> int:
    import json

    from .checkup import Point, doctor, summary, table

    found = doctor(data_dir=options.data_dir, timeout=options.timeout)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        points = [Point(**point) for point in found]
        print(table(points), summary(points), sep="\n\n")
    return 1 if any(point["state"] == "failed" for point in found) else 0


def _demo(options: argparse.Namespace) -> None:
    if options.serve:
        from .demo.environment import serve_until_stopped

        serve_until_stopped()
    else:
        from .demo.walkthrough import run_demo

        run_demo(options.output)


def parse_terms(terms: Sequence[str]) -> ResultFilter | None:
    """Return the filter that passes what fulfils all terms, written as on a shell.

    Parameters
    ----------
    terms : sequence of str
        Such as ``"n_reps>=12"``, ``"label~shared"`` or ``"session in ses-01,ses-02"``.

    Returns
    -------
    ResultFilter or None
        None where there is no term.

    Raises
    ------
    InvalidQueryError
        If a term is no term.

    Examples
    --------
    >>> parse_terms(["n_reps>=4", "n_reps<12"])({"n_reps": 4})
    True
    """
    import laion_fmri_fetchers as filters

    parsed = None
    for term in terms:
        match = _TERM.fullmatch(term)
        if not match:
            raise InvalidQueryError(f"{term!r} is no term; write {_TERM_HELP}")
        field, operator, text = match.groups()
        values = [_value(field, v) for v in re.split(r"\s*,\s*", text.strip("()"))]
        special = {
            ">=": filters.GreaterOrEqual,
            "<=": filters.LessOrEqual,
            ">": filters.GreaterThan,
            "<": filters.LessThan,
            "!=": filters.NotEqual,
            "~": filters.Pattern,
        }.get(operator)
        if operator == "in":
            value: Any = filters.IsIn(*values)
        elif special is filters.Pattern:
            value = filters.Pattern(text)
        else:
            value = special(_value(field, text)) if special else _value(field, text)
        one = filters.ResultFilter({field: value})
        parsed = one if parsed is None else parsed & one
    return parsed


def _value(field: str, text: str) -> str | int | float | None:
    text = text.strip().strip("'\"")
    if text.lower() in ("null", "none"):
        return None
    if field not in _NUMBERS:
        return text
    try:
        return int(text)
    except ValueError:
        return float(text) if _FLOAT.fullmatch(text) else text
