"""Plan surgeries: pure functions from checkpoints to plans, without disk or torch."""
