"""Plan surgery: checkpoints or paths in, plans out, one module per subject."""
