"""Provide the stores: where files are, and how they are read."""
