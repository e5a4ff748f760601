"""Rows of text from files, the hub and benchmarks."""
