"""Commands for the stimuli: access, images, what is known of them, splits."""

from __future__ import annotations

import sys

import laion_fmri_fetchers as package
from laion_fmri_fetchers.exceptions import AccessPendingError
from laion_fmri_fetchers.messages import is_terminal
from laion_fmri_fetchers.query.terms import parse_terms

from .options import (
    Commands,
    Options,
    Parser,
    add_flag,
    add_max_images,
    add_names,
    add_nothing,
    add_terms,
    add_timeout,
    add_transfer_options,
    add_verbosity,
    print_files,
    transfer_arguments,
    verbosity_of,
)
from .wording import on_a_shell


def _request_options(command: Parser) -> None:
    for name in ("name", "email", "institution", "pi", "research-purpose"):
        command.add_argument(f"--{name}", help="prompted for if omitted")
    command.add_argument(
        "--accept-terms-version",
        metavar="VERSION",
        help="accept this version of the Data Use Agreement; prompted for if omitted",
    )
    add_flag(
        command,
        "--acknowledge-privacy",
        "acknowledge the privacy notice; prompted for if omitted",
    )
    add_flag(command, "--renew", "even if a valid id exists")


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
        print(on_a_shell(str(pending), options))


def _login(options: Options) -> None:
    """Store a request_id (prompts for it)."""
    package.login(data_dir=options.data_dir)


def _logout(options: Options) -> None:
    """Forget the request_id."""
    from laion_fmri_fetchers.access import logout

    logout(options.data_dir)


def _stimulus_options(command: Parser) -> None:
    add_names(command, "--labels", None, "labels of stimulus images")
    add_terms(command, "--where", "rows of the table")
    add_transfer_options(command)


def _stimuli_options(command: Parser) -> None:
    _stimulus_options(command)
    add_max_images(command, "stimulus images")
    add_flag(command, "--extract", "write image files")
    add_flag(command, "--dry-run", "show the plan; needs no request_id")


def _stimuli(options: Options) -> None:
    """Fetch the stimulus images."""
    data = package.fetch_laion_stimuli(
        options.labels,
        stimulus_filter=parse_terms(options.where),
        max_images=options.max_images,
        extract=options.extract,
        dry_run=options.dry_run,
        **transfer_arguments(options),
    )
    files = () if options.dry_run else (data.metadata_file, data.archive, *data.images)
    print_files(options, data, files)


def _stimulus_metadata(options: Options) -> None:
    """Print the table of the stimulus images."""
    data = package.fetch_laion_stimulus_metadata(
        options.labels,
        stimulus_filter=parse_terms(options.where),
        **transfer_arguments(options),
    )
    is_short = is_terminal(sys.stdout) and not getattr(options, "paths", False)
    table = data.metadata
    print(table.to_string(max_rows=20) if is_short else table.to_csv().rstrip("\n"))


def _captions(options: Options) -> None:
    """Fetch captions of the stimuli."""
    data = package.fetch_laion_captions(
        options.labels,
        caption_filter=parse_terms(options.where),
        **transfer_arguments(options),
    )
    print_files(options, data, [data.captions_file])


def _embeddings_options(command: Parser) -> None:
    add_names(command, "--models", "all", "names such as CLIP")
    add_names(command, "--labels", None, "labels of stimulus images")
    add_transfer_options(command)


def _embeddings(options: Options) -> None:
    """Fetch embeddings of the stimuli."""
    data = package.fetch_laion_embeddings(
        options.models, options.labels, **transfer_arguments(options)
    )
    print_files(options, data, data.files.values())


def _segmentations(options: Options) -> None:
    """Fetch segmentations of the stimuli."""
    conditions = parse_terms(options.where)
    data = package.fetch_laion_segmentations(
        options.labels, segmentation_filter=conditions, **transfer_arguments(options)
    )
    print_files(options, data, [data.segmentations_file, data.masks_file])


def _splits_options(command: Parser) -> None:
    add_names(
        command, "--names", "all", "splits such as tau, or families such as random"
    )
    command.add_argument(
        "--pool",
        default="shared",
        help="shared (the default), a subject such as sub-01, or pooled",
    )
    command.add_argument(
        "--ood-types", nargs="+", metavar="TYPE", help="such as shape; default: all"
    )
    add_flag(command, "--json", "print JSON with all labels, not a table")
    command.add_argument("--mode", help="download_new (default), overwrite or offline")
    add_timeout(command, "progress")
    add_verbosity(command)


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
        verbose=verbosity_of(options),
    )
    if options.json:
        rows = [
            {
                "name": name,
                "pool": data.pool,
                "source": data.source[name],
                "generation": data.generation[name],
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


COMMANDS: Commands = {
    "request-access": (_request_options, _request),
    "login": (add_nothing, _login),
    "logout": (add_nothing, _logout),
    "fetch-stimuli": (_stimuli_options, _stimuli),
    "fetch-stimulus-metadata": (_stimulus_options, _stimulus_metadata),
    "fetch-captions": (_stimulus_options, _captions),
    "fetch-embeddings": (_embeddings_options, _embeddings),
    "fetch-segmentations": (_stimulus_options, _segmentations),
    "fetch-splits": (_splits_options, _splits),
}
