"""Describe checkpoints and check them by rules; change nothing."""
