"""``python -m laion_fmri_fetchers`` is the command line."""

import sys

from .cli import main

sys.exit(main())
