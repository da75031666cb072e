"""Commands for the first day: the data directory, its terms, and what there is."""

from __future__ import annotations

import laion_fmri_fetchers as package

from .options import Commands, Options, Parser, add_flag, add_nothing


def _config_options(command: Parser) -> None:
    command.add_argument("folder", nargs="?", help="the data directory from now on")


def _config(options: Options) -> None:
    """Show or set the data directory."""
    if options.folder:
        print(package.dataset_initialize(options.folder))
    else:
        print(package.get_data_dir(options.data_dir))


def _accept_options(command: Parser) -> None:
    add_flag(command, "--show", "only print the terms")


def _accept(options: Options) -> None:
    """Accept the CC0 terms of the data."""
    if options.show:
        print(package.license_text())
        return
    package.accept_license(options.data_dir)
    print(f"The CC0 terms are accepted for {package.get_data_dir(options.data_dir)}")


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


COMMANDS: Commands = {
    "config": (_config_options, _config),
    "accept-license": (_accept_options, _accept),
    "info": (add_nothing, _info),
    "rois": (_rois_options, _rois),
}
