"""Read checkpoints and what lies around them, down to their headers."""
