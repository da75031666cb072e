"""The command line: ``laion-fmri-fetchers`` and ``python -m laion_fmri_fetchers``.

    main ─▶ _parser     a subparser per row of COMMANDS, with its options
       └▶ options.run   the command's action: a call of the package's Python functions
       └▶ on_a_shell    what warnings and errors say, in words of the command line

Each command is a section below: its options, then its action. Results go to stdout,
all else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import laion_fmri_fetchers as package

from .exceptions import AccessPendingError, InvalidQueryError, LaionFmriError
from .messages import readable_size, tell
from .query.terms import OPERATORS, TERM_FORM, parse_terms

PROGRAM = "laion-fmri-fetchers"

Options = argparse.Namespace
Parser = argparse.ArgumentParser


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
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        _subparsers(parser)[options.command].error(
            f"unrecognized arguments: {' '.join(unknown)}"
        )
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
        return _fail("Stopped. Repeat the command to resume.", 130)
    return code or 0


def _fail(message: object, code: int) -> int:
    print(f"{PROGRAM}: {on_a_shell(str(message))}", file=sys.stderr)
    return code


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"Warning: {on_a_shell(str(message))}", file=sys.stderr)


_COMMAND = rf"'{PROGRAM} [^']*'"
_WORDS: dict[str, str | Callable[[re.Match], str]] = {
    r"mode='(\w+)'": r"--mode \1",
    r"accept_terms_version='([^']*)'": r"--accept-terms-version '\1'",
    r"(?<![\w/.-])(allow_missing|renew)=True": r"--\1",
    r"\brequest_stimulus_access\(([^)]*)\)": rf"'{PROGRAM} request-access \1'",
    r"\bfetch_laion_stimuli\(([^)]*)\)": rf"'{PROGRAM} fetch-stimuli \1'",
    r"\blicense_text\(\)": f"'{PROGRAM} accept-license --show'",
    r"\baccept_license\(\)": f"'{PROGRAM} accept-license'",
    r"\bdataset_initialize\b(\(\))?": f"'{PROGRAM} config FOLDER'",
    r"\bpass it or (?=set LAION_FMRI_REQUEST_ID)": "",
    r"\bcurrent_terms_version\(\)": f"'{PROGRAM} doctor'",
    rf"('{PROGRAM} [a-z-]+) '": r"\1'",
    rf"({_COMMAND}) or \1": r"\1",
    r"\bResultFilter\(((?:[^()]|\([^()]*\))*)\)": r"\1",
    r"=Pattern\(pattern=('[^']*'), flags=\d+\)": r" ~ \1",
    r"\b(\w+)=(\w+)\(([^()]*)\)": lambda term: (
        f"{term[1]} {OPERATORS[term[2]]} {term[3]}" if term[2] in OPERATORS else term[0]
    ),
    r"\b(trial|stimulus|caption|segmentation)_filter\b": "--where",
    r"\bimage_filter\b": "--image-where",
    r"(?<![\w/.-])(data_dir|max_images|n_connections|ood_types)\b(?![\w/.])": r"--\1",
    r"\b(research_purpose|accept_terms_version|acknowledge_privacy)\b": r"--\1",
    r"(?<= )--[a-z_]+|^--[a-z_]+": lambda option: option[0].replace("_", "-"),
    r"\bthe same call\b": "the same command",
}
"""Python in messages of the package, and how a shell spells it; applied in order."""


def on_a_shell(message: str) -> str:
    """Return a message of the package in words of the command line.

    Examples
    --------
    >>> on_a_shell("Download it first, with mode='download_new'.")
    'Download it first, with --mode download_new.'
    >>> on_a_shell("Request access with request_stimulus_access(renew=True).")
    "Request access with 'laion-fmri-fetchers request-access --renew'."
    """
    for pattern, words in _WORDS.items():
        message = re.sub(pattern, words, message)
    return message


# --- Options and output that commands share --------------------------------------


def _no_options(_: Parser) -> None:
    """Add nothing."""


def _flag(command: Parser, option: str, help_text: str) -> None:
    command.add_argument(option, action="store_true", help=help_text)


def _terms(command: Parser, option: str, rows: str) -> None:
    command.add_argument(
        option,
        action="append",
        default=[],
        metavar="TERM",
        help=f"keep only {rows} matching TERM, may be repeated: {TERM_FORM}",
    )


def _names(
    command: Parser,
    option: str,
    default: str | None,
    help_text: str,
    nargs: str = "+",
) -> None:
    metavar = option.strip("-").upper().removesuffix("S")
    names = default if default is None else [default]
    help_text += f"; default: {default or 'all'}"
    command.add_argument(
        option, nargs=nargs, default=names, metavar=metavar, help=help_text
    )


def _timeout(command: Parser, when: str) -> None:
    command.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help=f"give up after SECONDS without {when}; default: 30",
    )


def _verbosity(command: Parser) -> None:
    command.add_argument(
        *("-v", "--verbose"),
        action="count",
        default=1,
        help="one line per file; -vv also logs every request",
    )
    command.add_argument(
        *("-q", "--quiet"), action="store_true", help="errors and warnings only"
    )


def _transfer_options(command: Parser, *, of_files: bool = True) -> None:
    command.add_argument("--mode", help="download_new (default), overwrite or offline")
    command.add_argument(
        "--n-connections",
        type=int,
        default=64,
        metavar="N",
        help="HTTP connections; default: 64",
    )
    _timeout(command, "progress")
    if of_files:
        _flag(command, "--allow-missing", "warn of files that failed")
        _flag(command, "--paths", "print one line per file at a terminal too")
    _verbosity(command)


def _transfer(options: Options) -> dict[str, Any]:
    """Return how to work, as the fetchers' arguments."""
    return {
        "mode": options.mode,
        "data_dir": options.data_dir,
        "allow_missing": getattr(options, "allow_missing", False),
        "n_connections": options.n_connections,
        "timeout": options.timeout,
        "verbose": _verbose(options),
    }


def _verbose(options: Options) -> int:
    return 0 if options.quiet else options.verbose


def _print_files(options: Options, data: Any, paths: Iterable[str | None]) -> None:
    """Print the paths of files, or the plan of a dry run: at a terminal, in short."""
    is_terminal = sys.stdout.isatty() and not getattr(options, "paths", False)
    if not getattr(options, "dry_run", False):
        for path in () if is_terminal else filter(None, paths):
            print(path)
    elif is_terminal:
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


# --- config ----------------------------------------------------------------------


def _config_options(command: Parser) -> None:
    command.add_argument("folder", nargs="?", help="the data directory from now on")


def _config(options: Options) -> None:
    """Show or set the data directory."""
    if options.folder:
        print(package.dataset_initialize(options.folder))
    else:
        print(package.get_data_dir(options.data_dir))


# --- accept-license --------------------------------------------------------------


def _accept_options(command: Parser) -> None:
    _flag(command, "--show", "only print the terms")


def _accept(options: Options) -> None:
    """Accept the CC0 terms of the data."""
    if options.show:
        print(package.license_text())
        return
    package.accept_license(options.data_dir)
    print(f"The CC0 terms are accepted for {package.get_data_dir(options.data_dir)}")


# --- info, rois ------------------------------------------------------------------


def _info(options: Options) -> None:
    """Show what the dataset holds."""
    package.describe(data_dir=options.data_dir)


def _rois_options(command: Parser) -> None:
    command.add_argument("--subject", help="such as sub-01; default: all subjects")
    command.add_argument("--category", help="such as face; default: all categories")


def _rois(options: Options) -> None:
    """List the names of ROIs."""
    rois = package.get_rois(
        options.subject, options.category, data_dir=options.data_dir
    )
    print("\n".join(rois))


# --- fetch, report ---------------------------------------------------------------


def _selection_options(command: Parser) -> None:
    _names(command, "--subjects", "sub-01", "names such as sub-02, or all")
    _names(command, "--rois", "all", "names such as FFA1, categories, or none", "*")
    _names(command, "--sessions", "all", "names such as ses-01")
    _terms(command, "--where", "trials")
    _terms(command, "--image-where", "image files")
    _max_images(command, "image files")


def _max_images(command: Parser, files: str) -> None:
    command.add_argument(
        "--max-images", type=int, metavar="N", help=f"maximum number of {files}"
    )


def _selected(options: Options, **how: Any) -> Any:
    """Return the Bunch of what the options select."""
    return package.fetch_laion_fmri(
        options.subjects,
        None if options.rois in ([], ["none"]) else options.rois,
        options.sessions,
        trial_filter=parse_terms(options.where),
        image_filter=parse_terms(options.image_where),
        max_images=options.max_images,
        **how,
    )


def _fetch_options(command: Parser) -> None:
    _selection_options(command)
    _flag(command, "--dry-run", "show the plan; download no image")
    _transfer_options(command)


def _fetch(options: Options) -> None:
    """Fetch images and masks."""
    data = _selected(options, dry_run=options.dry_run, **_transfer(options))
    if not data.images and options.max_images != 0:
        tell("No image file matches the selection.", _verbose(options))
    _print_files(options, data, [*data.images, *data.rois])


def _report_options(command: Parser) -> None:
    command.add_argument(
        "--output", default="report.html", metavar="FILE", help="default: report.html"
    )
    command.add_argument("--title", help="title of the page")
    _selection_options(command)


def _report(options: Options) -> None:
    """Write an HTML report of files on disk."""
    folder = os.path.dirname(os.path.abspath(options.output))
    if not os.path.isdir(folder):
        raise InvalidQueryError(f"There is no folder {folder} to write the report to.")
    data = _selected(options, mode="offline", data_dir=options.data_dir)
    package.make_report(data, options.title).save_as_html(options.output)
    print(options.output)


# --- fetch-betas, pack -----------------------------------------------------------


def _voxel_options(command: Parser) -> None:
    command.add_argument(
        "--nc-threshold",
        type=float,
        metavar="PERCENT",
        help="only voxels whose noise ceiling is at least this",
    )
    command.add_argument(
        "--n-jobs", type=int, default=1, metavar="N", help="workers; default: 1"
    )


def _betas_options(command: Parser) -> None:
    command.add_argument(
        *("--subject", "--subjects"), default="sub-01", help="default: sub-01"
    )
    _names(command, "--rois", "all", "names such as FFA1, categories, or brain")
    _names(command, "--sessions", "all", "names such as ses-01")
    _terms(command, "--where", "trials")
    _voxel_options(command)
    command.add_argument(
        "--source", default="auto", help="auto (default), model or images"
    )
    _flag(command, "--keep-images", "keep images that are downloaded for their voxels")
    command.add_argument(
        "--output", metavar="FILE", help="save the betas, for load_saved_betas"
    )
    _flag(command, "--dry-run", "show the plan; download masks and tables only")
    _transfer_options(command, of_files=False)


def _betas(options: Options) -> None:
    """Fetch the betas of regions into the voxel store."""
    how = _transfer(options)
    del how["allow_missing"]
    betas = package.fetch_laion_betas(
        options.subject,
        options.rois,
        options.sessions,
        trial_filter=parse_terms(options.where),
        nc_threshold=options.nc_threshold,
        source=options.source,
        keep_images=options.keep_images,
        dry_run=options.dry_run,
        n_jobs=options.n_jobs,
        **how,
    )
    if options.dry_run:
        _print_files(options, betas, ())
    else:
        n_trials, n_voxels = betas.data.shape
        print(f"{n_trials} trials x {n_voxels} voxels")
        if options.output:
            betas.save(options.output)
        where = options.output or "the voxel store, for fetch_laion_betas"
        tell(f"The betas are in {where}", _verbose(options))


def _pack_options(command: Parser) -> None:
    _names(command, "--subjects", "sub-01", "names such as sub-03, or all")
    _names(command, "--rois", "brain", "names such as FFA1, categories, or brain")
    _names(command, "--sessions", "all", "names such as ses-01")
    _voxel_options(command)
    _flag(
        command,
        "--remove-images",
        "delete images of which all voxels of the brain are stored",
    )
    _verbosity(command)


def _pack(options: Options) -> None:
    """Copy voxels of beta images on disk to the voxel store."""
    from laion_fmri_fetchers.fetchers.pack import remove_packed_images

    verbose = _verbose(options)
    rois = [name for name in options.rois if name != "brain"]
    data = package.fetch_laion_fmri(
        options.subjects,
        rois or None,
        options.sessions,
        mode="offline",
        data_dir=options.data_dir,
        verbose=0,
    )
    for subject in sorted({meta["subject"] for meta in data.images_meta}):
        package.pack_betas(
            data,
            subject,
            options.rois,
            nc_threshold=options.nc_threshold,
            n_jobs=options.n_jobs,
            verbose=verbose,
        )
        if options.remove_images:
            removed = remove_packed_images(data, subject)
            tell(f"{len(removed)} images of {subject} removed", verbose)


# --- request-access, login, logout -----------------------------------------------


def _request_options(command: Parser) -> None:
    for name in ("name", "email", "institution", "pi", "research-purpose"):
        command.add_argument(f"--{name}", help="prompted for if omitted")
    command.add_argument(
        "--accept-terms-version",
        metavar="VERSION",
        help="accept this version of the Data Use Agreement; prompted for if omitted",
    )
    _flag(
        command,
        "--acknowledge-privacy",
        "acknowledge the privacy notice; prompted for if omitted",
    )
    _flag(command, "--renew", "even if a valid id exists")


def _request(options: Options) -> None:
    """Apply for the stimulus images."""
    try:
        package.request_stimulus_access(
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
        print(on_a_shell(str(pending)))


def _login(options: Options) -> None:
    """Store a request_id (prompts for it)."""
    package.login(data_dir=options.data_dir)


def _logout(options: Options) -> None:
    """Forget the request_id."""
    package.logout(options.data_dir)


# --- fetch-stimuli, stimulus-metadata, fetch-captions and others -----------------


def _stimulus_options(command: Parser) -> None:
    _names(command, "--names", None, "names of stimulus images")
    _terms(command, "--where", "rows of the table")
    _transfer_options(command)


def _stimuli_options(command: Parser) -> None:
    _stimulus_options(command)
    _max_images(command, "stimulus images")
    _flag(command, "--extract", "write image files")
    _flag(command, "--dry-run", "show the plan; needs no request_id")


def _stimuli(options: Options) -> None:
    """Fetch the stimulus images."""
    data = package.fetch_laion_stimuli(
        options.names,
        stimulus_filter=parse_terms(options.where),
        max_images=options.max_images,
        extract=options.extract,
        dry_run=options.dry_run,
        **_transfer(options),
    )
    files = () if options.dry_run else (data.metadata_file, data.archive, *data.images)
    _print_files(options, data, files)


def _stimulus_metadata(options: Options) -> None:
    """Print the table of the stimulus images."""
    data = package.fetch_laion_stimulus_metadata(
        options.names, stimulus_filter=parse_terms(options.where), **_transfer(options)
    )
    is_terminal = sys.stdout.isatty() and not getattr(options, "paths", False)
    table = data.metadata
    print(table.to_string(max_rows=20) if is_terminal else table.to_csv().rstrip("\n"))


def _captions(options: Options) -> None:
    """Fetch captions of the stimuli."""
    data = package.fetch_laion_captions(
        options.names, caption_filter=parse_terms(options.where), **_transfer(options)
    )
    _print_files(options, data, [data.captions_file])


def _embeddings_options(command: Parser) -> None:
    _names(command, "--models", "all", "names such as CLIP")
    _names(command, "--names", None, "names of stimulus images")
    _transfer_options(command)


def _embeddings(options: Options) -> None:
    """Fetch embeddings of the stimuli."""
    data = package.fetch_laion_embeddings(
        options.models, options.names, **_transfer(options)
    )
    _print_files(options, data, data.files.values())


def _segmentations(options: Options) -> None:
    """Fetch segmentations of the stimuli."""
    conditions = parse_terms(options.where)
    data = package.fetch_laion_segmentations(
        options.names, segmentation_filter=conditions, **_transfer(options)
    )
    _print_files(options, data, [data.segmentations_file, data.masks_file])


# --- splits ----------------------------------------------------------------------


def _splits_options(command: Parser) -> None:
    _names(command, "--names", "all", "splits such as tau, or families such as random")
    command.add_argument(
        "--pool",
        default="shared",
        help="shared (the default), a subject such as sub-01, or pooled",
    )
    command.add_argument(
        "--ood-types", nargs="+", metavar="TYPE", help="such as shape; default: all"
    )
    _flag(command, "--json", "print JSON with all labels, not a table")
    command.add_argument("--mode", help="download_new (default), overwrite or offline")
    _timeout(command, "progress")
    _verbosity(command)


def _splits(options: Options) -> None:
    """List train/test splits of the images."""
    import json

    data = package.fetch_laion_splits(
        options.names,
        options.pool,
        ood_types=options.ood_types,
        mode=options.mode,
        data_dir=options.data_dir,
        timeout=options.timeout,
        verbose=_verbose(options),
    )
    if options.json:
        rows = [
            {
                "name": name,
                "pool": data.pool,
                "source": data.source[name],
                "version": data.version[name],
                "train": split.train,
                "test": split.test,
            }
            for name, split in data.splits.items()
        ]
        print(json.dumps(rows, indent=2))
        return
    print(f"{'split':<14}{'train':>7}{'test':>7}  source")
    for name, split in data.splits.items():
        sizes = f"{len(split.train):>7,}{len(split.test):>7,}"
        print(f"{name:<14}{sizes}  {data.source[name]}")


# --- status, verify, doctor ------------------------------------------------------


def _status(options: Options) -> None:
    """Show what is configured, accepted and cached."""
    package.status(data_dir=options.data_dir)


def _verify_options(command: Parser) -> None:
    _flag(command, "--repair", "download bad files again")
    _flag(command, "--online", "compare with the bucket of today")
    _flag(command, "--paths", "print one line per file at a terminal too")
    _verbosity(command)


def _verify(options: Options) -> int:
    """Check the files on disk."""
    report = package.verify_cache(
        data_dir=options.data_dir,
        repair=options.repair,
        online=options.online,
        verbose=_verbose(options),
    )
    bad = report[~report["status"].isin(["ok", "unknown", "outdated", "repaired"])]
    # At a terminal, the summary on stderr has named them already.
    if options.paths or options.quiet or not sys.stdout.isatty():
        for row in bad.itertuples():
            print(f"{row.status}\t{row.id}")
    return 1 if len(bad) else 0


def _doctor_options(command: Parser) -> None:
    _flag(command, "--json", "print JSON, not a table")
    _timeout(command, "an answer")


def _doctor(options: Options) -> int:
    """Compare bucket and machine with expectations."""
    import json

    from .checkup.points import Point, summary, table

    points = package.doctor(data_dir=options.data_dir, timeout=options.timeout)
    if options.json:
        print(json.dumps(points, indent=2))
    else:
        rows = [Point(**point) for point in points]
        print(table(rows), summary(rows), sep="\n\n")
    return 1 if any(point["state"] == "failed" for point in points) else 0


# --- completion, demo ------------------------------------------------------------

_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def _completion_options(command: Parser) -> None:
    command.description = (
        "Print what a shell has to evaluate, such as: "
        f'eval "$({PROGRAM} completion bash)"'
    )
    command.add_argument("shell", choices=_SHELLS)


def _completion(options: Options) -> None:
    """Make a shell complete these commands."""
    import argcomplete

    print(argcomplete.shellcode([PROGRAM], shell=options.shell))


_DEMO_SIZES = ("subjects", "n_sessions", "n_trials")


def _demo_options(command: Parser) -> None:
    _flag(command, "--serve", "only serve the synthetic data, for calls of your own")
    _names(command, "--subjects", None, "with --serve, names such as sub-01")
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
    if options.serve:
        from .demo.environment import serve_until_stopped

        try:
            serve_until_stopped(**sizes)
        except ValueError as error:
            raise InvalidQueryError(str(error)) from None
    else:
        from .demo.walkthrough import run_demo

        run_demo(options.output)


# --- The table of commands -------------------------------------------------------

COMMANDS: dict[str, tuple[Callable, Callable[[Options], int | None]]] = {
    "config": (_config_options, _config),
    "accept-license": (_accept_options, _accept),
    "info": (_no_options, _info),
    "rois": (_rois_options, _rois),
    "fetch": (_fetch_options, _fetch),
    "fetch-betas": (_betas_options, _betas),
    "pack": (_pack_options, _pack),
    "report": (_report_options, _report),
    "request-access": (_request_options, _request),
    "login": (_no_options, _login),
    "logout": (_no_options, _logout),
    "fetch-stimuli": (_stimuli_options, _stimuli),
    "stimulus-metadata": (_stimulus_options, _stimulus_metadata),
    "fetch-captions": (_stimulus_options, _captions),
    "fetch-embeddings": (_embeddings_options, _embeddings),
    "fetch-segmentations": (_stimulus_options, _segmentations),
    "splits": (_splits_options, _splits),
    "status": (_no_options, _status),
    "verify": (_verify_options, _verify),
    "doctor": (_doctor_options, _doctor),
    "completion": (_completion_options, _completion),
    "demo": (_demo_options, _demo),
}
"""What adds the options of a command, and what runs it; its docstring is the help."""
_WITHOUT_DATA_DIR = ("completion", "demo")


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
        if name not in _WITHOUT_DATA_DIR:
            command.add_argument(
                "--data-dir", metavar="FOLDER", help="use this data directory"
            )
        add_options(command)
    return parser


def _subparsers(parser: Parser) -> dict[str, Parser]:
    choices: Any = next(a.choices for a in parser._actions if a.dest == "command")
    return choices


class _Version(argparse.Action):
    def __call__(self, parser: Parser, *_: Any) -> None:
        from . import __version__

        print(f"{PROGRAM} {__version__}")
        parser.exit()


def _complete(parser: Parser) -> None:
    """Answer the shell, which asks for the words that may follow, and exit."""
    import argcomplete

    from laion_fmri_fetchers.layout.keys import RECORD_FIELDS
    from laion_fmri_fetchers.layout.labels import TRIAL_FIELDS
    from laion_fmri_fetchers.layout.names import ROI_CATEGORIES, SUBJECTS
    from laion_fmri_fetchers.layout.splits import POOLS
    from laion_fmri_fetchers.layout.trees import EMBEDDING_MODELS

    categories = ROI_CATEGORIES
    words: dict[str, Iterable[str]] = {
        "subject": SUBJECTS,
        "subjects": ["all", *SUBJECTS],
        "category": categories,
        "rois": ["all", "none", *categories, *chain(*categories.values())],
        "sessions": ["all", *(f"ses-{n:02d}" for n in range(1, 31))],
        "where": [f"{field}=" for field in TRIAL_FIELDS],
        "image_where": [f"{field}=" for field in RECORD_FIELDS],
        "models": ["all", *EMBEDDING_MODELS],
        "pool": POOLS,
        "mode": ["download_new", "overwrite", "offline"],
    }
    for command in _subparsers(parser).values():
        for action in command._actions:
            if action.dest in words:
                action.completer = lambda names=words[action.dest], **_: names  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)
