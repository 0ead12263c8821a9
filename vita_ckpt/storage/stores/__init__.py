"""Stores: where files lie, and how they are read."""
