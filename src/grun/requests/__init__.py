"""Removal requests: a ledger of what is in force, and what is done with it."""
