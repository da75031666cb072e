"""The state folder, in the data directory beside the data.

Data files mirror the bucket below the data directory. Beside them, the folder
``.laion_fmri`` keeps::

    license_accepted      marker of the accepted CC0 terms
    auth.json             request_id of the stimulus access service, mode 0600
    manifest.json         size and SHA-256 of the archive of stimuli, as downloaded
    listings/*.json       what the bucket held when a prefix was last listed
    brain_masks/          brain masks derived where the bucket has none
    voxels/sub-XX/ses-YY/ voxels of betas with all trials side by side
    splits/*/*.json       train/test splits by pool, with where they were read
    partial/              unfinished downloads

Every file appears whole under its name, by an atomic rename.
"""

from __future__ import annotations

import os
from pathlib import Path

from laion_fmri_fetchers.layout.trees import STATE_FOLDER, brain_mask_name


def state_path(data_dir: str, *parts: str) -> Path:
    """Return a path in the state folder."""
    return Path(data_dir, STATE_FOLDER, *parts)


def license_marker(data_dir: str) -> Path:
    """Return the file that marks the CC0 terms as accepted."""
    return state_path(data_dir, "license_accepted")


def auth_file(data_dir: str) -> Path:
    """Return the file that keeps the ``request_id`` of the access service."""
    return state_path(data_dir, "auth.json")


def official_auth_file() -> Path | None:
    """Return the file in which the dataset's own package keeps its ``request_id``."""
    return home_path(".cache", "laion-fmri", "auth.json")


def home_path(*parts: str) -> Path | None:
    """Return a path in the user's home directory; None where there is none.

    A container that runs as ``docker run --user 12345`` has none.
    """
    home = os.path.expanduser("~")
    return None if home == "~" else Path(home, *parts)


def partial_dir(data_dir: str) -> Path:
    """Return the folder of unfinished downloads."""
    return state_path(data_dir, "partial")


def brain_mask_file(data_dir: str, subject: str) -> Path:
    """Return the brain mask derived for a subject without one in the bucket."""
    return state_path(data_dir, "brain_masks", brain_mask_name(subject))
