"""`python -m grun` is the command line."""

import sys

from grun.cli.process.program import run

sys.exit(run())
