"""``python -m kvbench`` is ``kvbench``."""

import sys

from kvbench.cli import main

sys.exit(main())
