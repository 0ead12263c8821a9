"""What a training run leaves on disk: layouts of its files, as pure functions."""
