"""From files to arrays, a volume at a time, and what comes after.

Rooms, each importing only from those below it::

    betas       load_betas ─┬─ rows.rows_with
                            ├─ voxels.find_voxels
                            ├─ _sessions ─┬─ voxel_store.find_stored
                            │             └─ volumes.read_header
                            ├─ _read ──▶ session.read_session, in joblib's workers
                            │            that progress.Progress shows
                            ├─ lazy.lazy_rows ──▶ session.read_session, in dask's
                            ├─ _averaged_trials
                            └─ result.make_betas
    batches     LaionDataset ─┬─ rows.positions_of
                              └─ pictures.read_image, pictures.decode_image
    result      make_betas, read_betas ──▶ Betas ─┬─ voxels.rois_of
                                                  ├─ ceilings.ceiling_of_average
                                                  └─ saved.write_values
    session     read_session ─┬─ volumes.iter_volumes ──▶ volumes.scaled
                              ├─ voxel_store.blocks_of
                              └─ _add_to, _mean_and_deviation
    align       align ─┬─ rows.labels_of, rows.positions_of
                       └─ pictures.load_stimuli
    ceilings    ceiling_of_average, mean_inverse, normalized_score
    saved       write_values, read_values
    voxels      find_voxels ──▶ _combine ──▶ _read_mask, _read_map
    rows        shared_labels, rows_with, positions_of
    heaps       check_values
    volumes     read_header, iter_volumes, scaled, write_volumes

    model          fill.fill_from_models, session.prove: see its own drawing
    extract        extract ──▶ volumes.iter_volumes, voxel_store.new_part
    voxel_store    find_parts, coverage, new_part, blocks_of, compact, check_part

    surfaces    project_to_surface ─┬─ templates.load_template
                                    └─ _project ──▶ volumes.iter_volumes
    templates   load_template ──▶ geometry.read_surface
    geometry    read_surface, read_orientation, read_mask
"""
