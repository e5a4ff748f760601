"""From text to token ids: templates, prompts and answers, batches."""
