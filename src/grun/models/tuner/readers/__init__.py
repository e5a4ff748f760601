"""Gates that are fitted, not trained: one looks names and passages up as text, one compares topics."""
