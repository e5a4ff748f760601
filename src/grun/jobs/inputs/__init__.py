"""What each job reads, from its settings."""
