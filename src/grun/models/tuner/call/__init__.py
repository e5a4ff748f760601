"""One forward call: where its prompts end, and what gates have read of them and of the cache that it continues."""
