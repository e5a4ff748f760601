"""Removal requests: the ledger that records them, and the commands that change, export and verify it."""
