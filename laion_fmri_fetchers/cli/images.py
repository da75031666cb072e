"""Commands for images and betas: fetched, stored by voxel, reported."""

from __future__ import annotations

from typing import Any

import laion_fmri_fetchers as package
from laion_fmri_fetchers.exceptions import InvalidQueryError
from laion_fmri_fetchers.messages import tell
from laion_fmri_fetchers.query.terms import parse_terms

from .options import (
    Commands,
    Options,
    Parser,
    add_flag,
    add_max_images,
    add_names,
    add_terms,
    add_transfer_options,
    add_verbosity,
    check_output,
    print_files,
    sessions_of,
    transfer_arguments,
    verbosity_of,
)


def _selection_options(command: Parser) -> None:
    add_names(command, "--subjects", "sub-01", "names such as sub-03, or all")
    add_names(command, "--rois", "all", "names such as FFA1, categories, or none", "*")
    add_names(command, "--sessions", "all", "names such as 01, ranges such as 1-4")
    add_terms(command, "--where", "trials")
    add_terms(command, "--image-where", "image files")
    add_max_images(command, "image files")


def _selected(options: Options, **how: Any) -> Any:
    """Return the Bunch of what the options select."""
    return package.fetch_laion_fmri(
        options.subjects,
        None if options.rois in ([], ["none"]) else options.rois,
        sessions_of(options),
        trial_filter=parse_terms(options.where),
        image_filter=parse_terms(options.image_where),
        max_images=options.max_images,
        **how,
    )


def _fetch_options(command: Parser) -> None:
    _selection_options(command)
    add_flag(command, "--dry-run", "show the plan; download no image")
    add_transfer_options(command)


def _fetch(options: Options) -> None:
    """Fetch images and masks."""
    data = _selected(options, dry_run=options.dry_run, **transfer_arguments(options))
    if not data.images and options.max_images != 0:
        tell("No image file matches the selection.", verbosity_of(options))
    print_files(options, data, [*data.images, *data.rois])


def _report_options(command: Parser) -> None:
    command.add_argument(
        "--output", default="report.html", metavar="FILE", help="default: report.html"
    )
    command.add_argument("--title", help="title of the page")
    _selection_options(command)


def _report(options: Options) -> None:
    """Write an HTML report of files on disk."""
    output = check_output(options) or options.output
    data = _selected(options, mode="offline", data_dir=options.data_dir)
    package.make_report(data, options.title).save_as_html(output)
    print(output)


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
    add_names(command, "--subjects", "sub-01", "names such as sub-03, or all")
    add_names(command, "--rois", "all", "names such as FFA1, categories, or brain")
    add_names(command, "--sessions", "all", "names such as 01, ranges such as 1-4")
    add_terms(command, "--where", "trials")
    _voxel_options(command)
    command.add_argument(
        "--source", default="auto", help="auto (default), model or images"
    )
    add_flag(
        command, "--keep-images", "keep images that are downloaded for their voxels"
    )
    command.add_argument(
        "--output", metavar="FILE", help="save the betas, for load_betas"
    )
    add_flag(command, "--dry-run", "show the plan; download masks and tables only")
    add_transfer_options(command, of_files=False)


def _betas(options: Options) -> None:
    """Fetch the betas of regions into the voxel store."""
    import pandas as pd
    from sklearn.utils import Bunch

    if options.output and (len(options.subjects) > 1 or "all" in options.subjects):
        raise InvalidQueryError("--output is for the betas of one subject")
    output = check_output(options)
    how = transfer_arguments(options)
    del how["allow_missing"]
    by_subject = package.fetch_laion_betas(
        options.subjects,
        options.rois,
        sessions_of(options),
        trial_filter=parse_terms(options.where),
        nc_threshold=options.nc_threshold,
        source=options.source,
        keep_images=options.keep_images,
        dry_run=options.dry_run,
        n_jobs=options.n_jobs,
        **how,
    )
    if options.dry_run:
        plans = Bunch(plan=pd.concat([betas.plan for betas in by_subject.values()]))
        print_files(options, plans, ())
        return
    for subject, betas in by_subject.items():
        n_trials, n_voxels = betas.data.shape
        print(f"{subject}: {n_trials} trials x {n_voxels} voxels")
        if output:
            betas.save(output)
    where = output or "the voxel store, for fetch_laion_betas"
    tell(f"The betas are in {where}", verbosity_of(options))


def _pack_options(command: Parser) -> None:
    add_names(command, "--subjects", "sub-01", "names such as sub-03, or all")
    add_names(command, "--rois", "brain", "names such as FFA1, categories, or brain")
    add_names(command, "--sessions", "all", "names such as 01, ranges such as 1-4")
    _voxel_options(command)
    add_flag(
        command,
        "--remove-images",
        "delete images of which all voxels of the brain are stored",
    )
    add_verbosity(command)


def _pack(options: Options) -> None:
    """Copy voxels of beta images on disk to the voxel store."""
    from laion_fmri_fetchers.betas.load import subjects_in
    from laion_fmri_fetchers.fetchers.pack import remove_packed_images

    verbose = verbosity_of(options)
    rois = [name for name in options.rois if name != "brain"]
    data = package.fetch_laion_fmri(
        options.subjects,
        rois or None,
        sessions_of(options),
        mode="offline",
        data_dir=options.data_dir,
        verbose=0,
    )
    for subject in subjects_in(data):
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


COMMANDS: Commands = {
    "fetch": (_fetch_options, _fetch),
    "fetch-betas": (_betas_options, _betas),
    "pack-betas": (_pack_options, _pack),
    "make-report": (_report_options, _report),
}
