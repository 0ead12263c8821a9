"""Describe audio encoders: settings, tensors, feature statistics, directories."""
