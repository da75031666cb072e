"""Stimulus images and what derives from them: read, and put in the order of trials.

table      the public tables: read, checked, rows of them selected
hdf5       HDF5 files, opened; values whose reading would not end are found before
archive    the gated archive of images: downloaded, extracted, decoded
features   captions, masks of objects, embeddings
align      what was fetched, in the order of trials
batches    LaionDataset: trials one by one, for loaders of batches
"""
