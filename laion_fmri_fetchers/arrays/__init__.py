"""Rooms that are on their way to packages of their own.

::

    batches     LaionDataset ─┬─ query.rows.positions_of
                              └─ pictures.read_image, pictures.decode_image
    align       align ─┬─ query.rows.labels_of, query.rows.positions_of
                       └─ pictures.load_stimuli
    heaps       check_values

    surfaces    project_to_surface ─┬─ templates.load_template
                                    └─ _project ──▶ volumes.iter_volumes
    templates   load_template ──▶ geometry.read_surface
    geometry    read_surface, read_orientation, read_mask
"""
