"""The dataset's facts: folders, file names, records, labels and grids; no I/O.

Nothing outside this wing spells a folder, an ending or a file name of the bucket.
Rooms, each importing only from those below it::

    grids     resampled_path, resolution_label, can_be_resampled
    keys      clean_key ──▶ the path on disk, or UnsafeKeyError
              record_of ─┬─ _folder ────▶ tree, subject, session
                         └─ _template ──▶ trees.RULES
              is_of_session, is_of_trials, is_held_out, is_nifti, place_of
    labels    stimulus_fields ──▶ label_values;  stimulus_value
    names     clean_subject, clean_session, rois_named, none_if_null
    trees     listings_of, trials_id, embeddings_id, archived_key, stimulus_image
"""
