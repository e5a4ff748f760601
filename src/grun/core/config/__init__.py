"""The settings of every job, their declaration and their checks."""
