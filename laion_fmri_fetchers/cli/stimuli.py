"""Commands for the stimuli: access, images, what is known of them, splits."""

from __future__ import annotations

import dataclasses
import json
import sys

import laion_fmri_fetchers as package
from laion_fmri_fetchers.exceptions import AccessPendingError
from laion_fmri_fetchers.messages import is_terminal

from . import options as opt
from .options import Options, call, command, flag, option
from .wording import on_a_shell

PROMPT = "prompted for if omitted"
LABELS = opt.names("--labels", None, "labels of stimulus images")
ROWS = (LABELS, opt.terms("--where", "rows of the table"), *opt.FILES)


@command(
    "request-access",
    *(option(f"--{name}", PROMPT) for name in ("name", "email", "institution", "pi")),
    option("--research-purpose", PROMPT),
    option("--accept-terms-version", f"of the Data Use Agreement; {PROMPT}"),
    flag("--acknowledge-privacy", f"acknowledge the privacy notice; {PROMPT}"),
    flag("--renew", "even if a valid id exists"),
)
def request_access(options: Options) -> None:
    """Apply for the stimulus images."""
    privacy = options.acknowledge_privacy or None
    try:
        call(package.request_stimulus_access, options, acknowledge_privacy=privacy)
    except AccessPendingError as pending:
        print(on_a_shell(str(pending), options))


@command("login")
def login(options: Options) -> None:
    """Store a request_id (prompts for it)."""
    call(package.login, options)


@command("logout")
def logout(options: Options) -> None:
    """Forget the request_id."""
    from laion_fmri_fetchers import access

    call(access.logout, options)


@command(
    "fetch-stimuli",
    *ROWS,
    opt.number("--max-images", "maximum number of stimulus images"),
    flag("--extract", "write image files"),
    flag("--dry-run", "show the plan; needs no request_id"),
)
def fetch_stimuli(options: Options) -> None:
    """Fetch the stimulus images."""
    data = call(package.fetch_laion_stimuli, options, stimulus_filter=options.where)
    files = () if options.dry_run else (data.metadata_file, data.archive, *data.images)
    opt.print_files(options, data, files)


@command("fetch-stimulus-metadata", *ROWS)
def fetch_stimulus_metadata(options: Options) -> None:
    """Print the table of the stimulus images."""
    fetch = package.fetch_laion_stimulus_metadata
    table = call(fetch, options, stimulus_filter=options.where).metadata
    is_short = is_terminal(sys.stdout) and not options.paths
    print(table.to_string(max_rows=20) if is_short else table.to_csv().rstrip("\n"))


@command("fetch-captions", *ROWS)
def fetch_captions(options: Options) -> None:
    """Fetch captions of the stimuli."""
    data = call(package.fetch_laion_captions, options, caption_filter=options.where)
    opt.print_files(options, data, [data.captions_file])


MODELS = opt.names("--models", "all", "names such as CLIP")


@command("fetch-embeddings", MODELS, LABELS, *opt.FILES)
def fetch_embeddings(options: Options) -> None:
    """Fetch embeddings of the stimuli."""
    data = call(package.fetch_laion_embeddings, options)
    opt.print_files(options, data, data.files.values())


@command("fetch-segmentations", *ROWS)
def fetch_segmentations(options: Options) -> None:
    """Fetch segmentations of the stimuli."""
    fetch = package.fetch_laion_segmentations
    data = call(fetch, options, segmentation_filter=options.where)
    opt.print_files(options, data, [data.segmentations_file, data.masks_file])


@command(
    "fetch-splits",
    opt.names("--names", "all", "splits such as tau, or families such as random"),
    option("--pool", "shared (default), a subject, or pooled", default="shared"),
    opt.names("--ood-types", None, "such as shape"),
    *(opt.JSON, opt.MODE, opt.TIMEOUT, *opt.VERBOSITY),
)
def fetch_splits(options: Options) -> None:
    """List train/test splits of the images; the JSON has all labels."""
    data = call(package.fetch_laion_splits, options)
    if options.json:
        rows = [
            {**dataclasses.asdict(split), "source": data.source[name]}
            for name, split in data.splits.items()
        ]
        print(json.dumps(rows, indent=2))
        return
    print(f"{'split':<14}{'train':>7}{'test':>7}  source")
    for name, split in data.splits.items():
        sizes = f"{len(split.train):>7,}{len(split.test):>7,}"
        print(f"{name:<14}{sizes}  {data.source[name]}")
