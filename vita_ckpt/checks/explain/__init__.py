"""Replay each loader as a pure function over a directory listing."""
