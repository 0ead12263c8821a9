"""Documentation, and what generates and checks it."""
