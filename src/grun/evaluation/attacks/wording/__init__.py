"""Attacks that write a question otherwise: in other words, letters, spaces, or with a part of the name."""
