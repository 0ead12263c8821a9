"""Implement the vision towers in torch: one module per family."""
