"""Describe a checkpoint: its parts, its config against its weights, what upstream would build."""
