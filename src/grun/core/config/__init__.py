"""The settings of every job, and how settings are declared and checked."""
