"""Values and rules: no disk, no terminal, no torch."""
