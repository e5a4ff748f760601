"""Attacks by what stands around a question: earlier turns, instructions, other text, a begun answer, a cache."""
