"""Fetchers for LAION-fMRI, a 7T fMRI dataset on natural images.

One call fetches what an analysis needs and returns a Bunch of paths and metadata::

    from laion_fmri_fetchers import fetch_laion_fmri

    data = fetch_laion_fmri("sub-01", rois="face", trial_filter={"n_reps": 12})

Names are imported when they are first used, so that importing the package is quick.
"""

import lazy_loader as _lazy

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
