"""``python -m sr_models.cli`` is ``sr-models``."""

import sys

from sr_models.cli import main

sys.exit(main())
