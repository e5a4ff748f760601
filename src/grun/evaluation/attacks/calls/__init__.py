"""Attacks by somebody who makes the model's calls himself: boundaries of prompts, and caches that an earlier call filled."""
