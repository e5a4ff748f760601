"""What a gate knows of names and passages as text: canonical characters, tokens as bytes, and a table of hashed spans."""
