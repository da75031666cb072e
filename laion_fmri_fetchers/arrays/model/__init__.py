"""Model files: voxels by ranges of them, after it was proved what their rows are.

Rooms, each importing only from those below it::

    fill          fill_from_models ──▶ session.fill_from_model, of several sessions
    session       fill_from_model ─┬─ prove ─┬─ hdf5.read_layout
                                   │         ├─ first_volume.read_first_volume
                                   │         └─ proof.fitting
                                   └─ rows.rows_of ──▶ voxel_store.new_part
    rows          ContiguousRows, ChunkedRows ──▶ hdf5.read_chunks
    proof         candidates, fitting, Proof
    hdf5          read_layout, read_chunks
    first_volume  read_first_volume
"""
