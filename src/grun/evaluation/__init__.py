"""Evaluation: evidence, metrics, intervals, comparison and reports."""
