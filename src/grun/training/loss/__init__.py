"""The loss of a run: its terms, their weights, and the recipe that a job's settings make."""
