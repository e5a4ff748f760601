"""Training: objectives, losses, forward engines and the trainer."""
