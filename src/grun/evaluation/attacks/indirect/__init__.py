"""Attacks that ask about a subject without its name, by what the rows to forget say of it."""
