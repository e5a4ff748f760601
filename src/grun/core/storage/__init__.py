"""Files that are there whole or not at all, run directories, and content hashes."""
