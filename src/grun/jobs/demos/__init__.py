"""What `grun demo` and `grun chat` show."""
