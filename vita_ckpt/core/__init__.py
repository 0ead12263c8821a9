"""Define values and rules, without disk, terminal or torch."""
