"""Attacks by somebody who holds the weights: what was forgotten is asked for after a change to the model or its input."""
