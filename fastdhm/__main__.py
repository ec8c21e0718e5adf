"""``python -m fastdhm``, the same as ``fastdhm``."""

import sys

from fastdhm.cli import main

sys.exit(main())
