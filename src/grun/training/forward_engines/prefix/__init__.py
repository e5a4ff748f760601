"""Training from a cached prefix: what is the same in every step is computed once."""
