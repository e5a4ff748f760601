"""`grun attack`: rows asked in many ways, measured, and what that says."""
