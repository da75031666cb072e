"""Commands for the data directory: set up, filled, reported and checked; and a demo."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

import laion_fmri_fetchers as package
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import counted, is_terminal, tell

from . import options as opt
from .options import Options, call, command, flag, names, number, option

REGIONS = "names such as FFA1, categories, or"
SELECTION = (
    *(opt.SUBJECTS, names("--rois", "all", f"{REGIONS} none", "*"), opt.SESSIONS),
    *(opt.terms("--where", "trials"), opt.terms("--image-where", "image files")),
    number("--max-images", "maximum number of image files"),
)
VOXELS = (
    option("--nc-threshold", "least noise ceiling", type=float, metavar="PERCENT"),
    number("--n-jobs", "threads", 1),
)
FOLDER = option("folder", "the data directory", metavar="FOLDER", nargs="?")


@command("initialize", FOLDER)
def initialize(options: Options) -> None:
    """Set the data directory of later calls; without FOLDER, show it."""
    if options.folder is None:
        print(call(package.get_data_dir, options))
    else:
        print(package.dataset_initialize(options.folder))


@command("accept-license", flag("--show", "only print the terms"))
def accept_license(options: Options) -> None:
    """Accept the CC0 terms of the data."""
    if options.show:
        from laion_fmri_fetchers.access import license_text

        print(license_text())
    else:
        call(package.accept_license, options)
        folder = call(package.get_data_dir, options)
        print(f"The CC0 terms are accepted for {folder}")


@command("describe")
def describe(options: Options) -> None:
    """Show what the dataset holds."""
    call(package.describe, options)


@command(
    "get-rois",
    names("--subjects", "all", "names such as sub-01"),
    option("--category", "such as face; default: all categories"),
)
def get_rois(options: Options) -> None:
    """List the names of ROIs."""
    print("\n".join(call(package.get_rois, options)))


@command("fetch", *SELECTION, opt.DRY_RUN, *opt.FILES)
def fetch(options: Options) -> None:
    """Fetch images and masks."""
    data = _selected(options)
    if not data.images and options.max_images != 0:
        tell("No image file matches the selection.", options.verbose)
    opt.print_files(options, data, [*data.images, *data.rois])


def _selected(options: Options, **arguments: Any) -> Any:
    """Return the Bunch of what the options select."""
    return call(
        package.fetch_laion_fmri,
        options,
        rois=None if options.rois in ([], ["none"]) else options.rois,
        trial_filter=options.where,
        image_filter=options.image_where,
        **arguments,
    )


@command(
    "fetch-betas",
    *(opt.SUBJECTS, names("--rois", "all", f"{REGIONS} brain"), opt.SESSIONS),
    opt.terms("--where", "trials"),
    *VOXELS,
    option("--source", "auto (default), model or images", default="auto"),
    flag("--keep-images", "keep images that are downloaded for their voxels"),
    option("--output", "save the betas, for load_betas", metavar="FILE"),
    opt.DRY_RUN,
    *opt.TRANSFER,
)
def fetch_betas(options: Options) -> None:
    """Fetch the betas of regions into the voxel store."""
    if options.output and (len(options.subjects) > 1 or "all" in options.subjects):
        raise InvalidQueryError("--output is for the betas of one subject")
    fetched = call(package.fetch_laion_betas, options, trial_filter=options.where)
    for subject, betas in fetched.items():
        if options.dry_run:
            opt.print_files(options, betas, ())
            continue
        n_trials, n_voxels = betas.data.shape
        print(f"{subject}: {n_trials} trials x {n_voxels} voxels")
        if options.output:
            betas.save(options.output)
    if not options.dry_run:
        where = options.output or "the voxel store, for fetch_laion_betas"
        tell(f"The betas are in {where}", options.verbose)


@command(
    "pack-betas",
    *(opt.SUBJECTS, names("--rois", "brain", f"{REGIONS} brain"), opt.SESSIONS),
    *VOXELS,
    flag("--remove-images", "delete images whose voxels are all stored"),
    *opt.VERBOSITY,
)
def pack_betas(options: Options) -> None:
    """Copy voxels of beta images on disk to the voxel store."""
    from laion_fmri_fetchers.betas.load import subjects_in
    from laion_fmri_fetchers.fetchers.betas import remove_packed_images

    rois = [name for name in options.rois if name != "brain"] or None
    on_disk = {"mode": "offline", "verbose": 0}
    data = call(package.fetch_laion_fmri, options, rois=rois, **on_disk)
    for subject in subjects_in(data):
        call(package.pack_betas, options, data=data, subjects=subject)
        if options.remove_images:
            n = len(remove_packed_images(data, subject))
            tell(f"{counted(n, 'image')} of {subject} removed", options.verbose)


@command(
    "make-report",
    option("--output", "default: report.html", default="report.html", metavar="FILE"),
    option("--title", "title of the page"),
    *SELECTION,
)
def make_report(options: Options) -> None:
    """Write an HTML report of files on disk."""
    data = _selected(options, mode="offline")
    package.make_report(data, options.title).save_as_html(options.output)
    print(options.output)


@command("status")
def status(options: Options) -> None:
    """Show what is configured, accepted and cached."""
    call(package.status, options)


@command(
    "verify",
    flag("--repair", "download bad files again"),
    flag("--online", "compare with the bucket of today"),
    opt.PATHS,
    *opt.VERBOSITY,
)
def verify(options: Options) -> int:
    """Check the files on disk."""
    report = call(package.verify_cache, options)
    bad = report[~report["status"].isin(["ok", "unknown", "outdated", "repaired"])]
    # At a terminal, the summary on stderr has named them already.
    if options.paths or options.quiet or not is_terminal(sys.stdout):
        for row in bad.itertuples():
            print(f"{row.status}\t{row.id}")
    return 1 if len(bad) else 0


@command("doctor", opt.JSON, flag("--verbose", "all points", "-v"), opt.TIMEOUT)
def doctor(options: Options) -> int:
    """Compare bucket and machine with expectations."""
    points = call(package.doctor, options)
    states = [point["state"] for point in points]
    if options.json:
        print(json.dumps(points, indent=2))
    else:
        for point in points:
            if options.verbose or point["state"] != "ok":
                print(_lines(**point))
        print(f"{counted(states.count('ok'), 'point')} as expected")
    return 1 if "failed" in states else 0


def _lines(point: str, state: str, found: str, expected: str, advice: str) -> str:
    """Return a point of the doctor in two columns of 80 characters."""
    texts = [found]
    if state != "ok":
        texts += [f"expected: {expected}", f"advice: {advice}"]
    wrapper = textwrap.TextWrapper(50, break_long_words=False, break_on_hyphens=False)
    lines = [line for text in texts for line in wrapper.wrap(text)]
    state = state.upper() if state == "failed" else state
    return f"{state:<8}{point:<22}" + f"\n{' ' * 30}".join(lines)


@command(
    "demo",
    flag("--serve", "only serve the synthetic data, for calls of your own"),
    names("--subjects", None, "with --serve, names such as sub-01"),
    number("--n-sessions", "with --serve, number of public sessions"),
    number("--n-trials", "with --serve, number of trials"),
    option("--output", "output folder", metavar="FOLDER"),
)
def demo(options: Options) -> None:
    """See it work on synthetic data."""
    sizes = {n: getattr(options, n) for n in ("subjects", "n_sessions", "n_trials")}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if options.output if options.serve else sizes:
        raise InvalidQueryError(
            "--subjects, --n-sessions and --n-trials are options of --serve, and "
            "--output is one of the walk without it"
        )
    if options.serve:
        from laion_fmri_fetchers.demo.environment import serve_until_stopped

        try:
            serve_until_stopped(**sizes)
        except ValueError as error:
            raise InvalidQueryError(str(error)) from None
    else:
        from laion_fmri_fetchers.demo.walkthrough import run_demo

        run_demo(options.output)
