"""The loss of a run: its terms, their weights, and the recipe that follows from the settings of a job."""
