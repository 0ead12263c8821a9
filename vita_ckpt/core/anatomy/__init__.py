"""Literal tables of the architecture: parts, backbones, towers, projectors, by name and shape."""
