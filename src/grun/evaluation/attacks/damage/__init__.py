"""Ordinary questions beside what was forgotten, whose answers must stay."""
