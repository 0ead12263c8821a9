"""Wrap the operating system's services."""
