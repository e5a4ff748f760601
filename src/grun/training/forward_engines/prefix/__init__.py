"""Training on from a cached prefix: states that are the same in every step are computed once."""
