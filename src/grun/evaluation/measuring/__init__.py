"""Measuring a model on splits of rows: everything that metrics read, once per row."""
