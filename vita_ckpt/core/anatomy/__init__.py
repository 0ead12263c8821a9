"""Define the architecture as literal tables: parts, backbones, towers and projectors."""
