"""Wrap what the operating system offers."""
