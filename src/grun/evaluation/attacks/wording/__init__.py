"""Attacks that write a question otherwise: in other words, letters, spaces, or with something else for the name."""
