"""`python -m grun` is the command line."""

import sys

from grun.cli.main import main

sys.exit(main())
