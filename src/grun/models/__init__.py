"""Models: loading, tokenising, adapting, gates, and every forward pass."""
