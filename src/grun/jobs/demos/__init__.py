"""What `grun demo` shows."""
