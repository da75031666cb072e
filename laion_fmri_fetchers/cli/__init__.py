"""The command line: ``laion-fmri-fetchers`` and ``python -m laion_fmri_fetchers``.

A command is a function with its options above it, in `data` or `stimuli`, and calls the
function of the package that it is named as. Results go to stdout, all else to stderr.
"""
