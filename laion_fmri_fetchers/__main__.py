"""``python -m laion_fmri_fetchers`` is the command line."""

import sys

from .cli.main import main

sys.exit(main())
