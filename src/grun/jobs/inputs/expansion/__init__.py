"""Rows about a topic, written from its name alone."""
