"""Gates from outside: what they read, how they are fitted, and thresholds with a guarantee."""
