"""Run one forward pass and report what it shows as findings."""
