"""What every other package stands on, and what knows nothing of models: errors, records, settings, files."""
