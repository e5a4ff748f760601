"""The fit of gates for topics: a space of topics for each base model, and the prompts that a gate compares with."""
