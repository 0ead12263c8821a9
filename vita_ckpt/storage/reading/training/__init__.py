"""Open the state of a training run."""
