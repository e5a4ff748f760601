"""`python -m grun` is the command line."""

import sys

from grun.cli import main

sys.exit(main())
