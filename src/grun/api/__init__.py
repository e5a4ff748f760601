"""The door for Python: every job as a function that takes names or objects and returns a result; see `grun.unlearn`.

The command line calls `run` with the same settings, so both do the same.
"""
