"""Attacks that ask for no answer, but whether something was forgotten or never known."""
