"""Describe the vision towers: families, names, shapes, and what a path builds."""
