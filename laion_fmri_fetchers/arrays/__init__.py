"""From files to arrays, a volume at a time.

Rooms, each importing only from those below it::

    betas       load_betas ─┬─ _sessions ──▶ volumes.read_header
                            ├─ voxels.find_voxels
                            ├─ _read ──▶ session.read_session, in joblib's workers
                            └─ _averaged_trials
    session     read_session ─┬─ volumes.iter_volumes ──▶ volumes.scaled
                              ├─ voxels.offsets_of
                              └─ _add_to, _mean_and_deviation
    voxels      find_voxels ──▶ _combine ──▶ _read_mask, _read_map
    resample    resample_file ──▶ _resample ─┬─ volumes.iter_volumes
                find_resampled               └─ volumes.write_volumes
    pictures    load_stimuli ──▶ read_image ──▶ heaps.check_values
    heaps       check_values
    volumes     read_header, iter_volumes, scaled, write_volumes
"""
