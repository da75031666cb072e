"""The page on moving names everything that the dataset's own package offers."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "doc" / "moving.rst").read_text("utf-8")

NAMES = """
dataset_initialize get_data_dir
get_subjects get_rois get_available_categories describe inspect_bucket
download download_raw download_stimuli download_captions download_embeddings
download_segmentations accept_license request_stimulus_access
include_stimuli include_freesurfer include_anatomical include_raw include_localizers
load_subject get_sessions get_betas get_trial_info metadata get_noise_ceiling
get_brain_mask get_roi_mask get_roi_data get_available_rois get_voxel_coordinates
to_nifti to_template get_t1w get_t2w get_anatomical_brain_mask has_raw get_events
get_raw_bold get_sbref images embeddings captions segmentations get_stimulus_metadata
to_torch_dataset mask_source streaming nc_threshold stimuli
load_subjects get_shared_betas get_shared_images get_shared_stimulus_metadata
list_pools list_splits list_ood_types load_split load_all_splits get_train_test_ids
get_split_masks localizer_statmap_path localizer_effect_path LaionFMRIDataset
Captions Embeddings Segmentations Stimuli load_embeddings load_stimuli as_displayed_rgb
resolve_subject_id set_data_dir
DataDirNotSetError DataNotDownloadedError DataNotFoundError NoMatchingDataError
StimuliNotDownloadedError SubjectNotFoundError
volume_to_surface volume_to_template surface_to_template MNI152NLin6Asym
MNI152NLin2009cAsym output_dir fsaverage6
get_roi_masks get_n_voxels get_n_stimuli has_stimuli has_freesurfer has_anatomical
get_freesurfer_dir get_anatomical_dir source res
images.get images.array images.all embeddings.all segmentations.nouns
segmentations.has_image segmentations.get captions.human captions.ai captions.get
captions.list include_embeddings accept_licenses split_family params variants
"""

COMMANDS = "config info download download-raw download-stimuli request-access"


def test_every_name_and_command_has_a_row():
    rows = [row.split("\n     - ")[0] for row in PAGE.split("\n   * - ")[1:]]
    left = " ".join(quoted for row in rows for quoted in re.findall("``.+?``", row))
    names = set(NAMES.split())
    assert {name for name in names if not re.search(rf"\b{name}\b", left)} == set()
    for command in COMMANDS.split():
        assert f"   * - ``{command}" in PAGE
    for command in ("login", "logout"):  # which only this package has
        assert f"   * - ``{command}" not in PAGE
        assert f"``, ``{command}``\n     - " not in PAGE
