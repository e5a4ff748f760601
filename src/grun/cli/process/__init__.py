"""The process of the command line: signals, and streams that cannot be written."""
