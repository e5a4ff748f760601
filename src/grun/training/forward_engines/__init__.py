"""Forward engines: ways of rows through the model in training, whole or on from a cached prefix."""
