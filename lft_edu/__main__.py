"""``python -m lft_edu …`` is ``lft-edu …``; launchers of many processes want a module."""

import sys

from .cli import main

sys.exit(main())
