"""Errors, records, settings and files: the base of all other packages, independent of models."""
