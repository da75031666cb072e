"""Commands for the first day: the data directory, its terms, and what there is."""

from __future__ import annotations

import laion_fmri_fetchers as package
from laion_fmri_fetchers.access import license_text

from .options import Commands, Options, Parser, add_flag, add_names, add_nothing


def _initialize_options(command: Parser) -> None:
    command.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        help="the data directory from now on",
    )


def _initialize(options: Options) -> None:
    """Set the data directory; without FOLDER, show it."""
    if options.folder is not None:
        print(package.dataset_initialize(options.folder))
    else:
        print(package.get_data_dir(options.data_dir))


def _accept_options(command: Parser) -> None:
    add_flag(command, "--show", "only print the terms")


def _accept(options: Options) -> None:
    """Accept the CC0 terms of the data."""
    if options.show:
        print(license_text())
        return
    package.accept_license(options.data_dir)
    print(f"The CC0 terms are accepted for {package.get_data_dir(options.data_dir)}")


def _describe(options: Options) -> None:
    """Show what the dataset holds."""
    package.describe(data_dir=options.data_dir)


def _rois_options(command: Parser) -> None:
    add_names(command, "--subjects", "all", "names such as sub-01")
    command.add_argument("--category", help="such as face; default: all categories")


def _rois(options: Options) -> None:
    """List the names of ROIs."""
    rois = package.get_rois(
        options.subjects, options.category, data_dir=options.data_dir
    )
    print("\n".join(rois))


COMMANDS: Commands = {
    "initialize": (_initialize_options, _initialize),
    "accept-license": (_accept_options, _accept),
    "describe": (add_nothing, _describe),
    "get-rois": (_rois_options, _rois),
}
