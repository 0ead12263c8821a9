"""Vision towers in torch: one module per family."""
