"""Change a checkpoint where it lies, and put it back."""
