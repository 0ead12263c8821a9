"""Torture: the guarantees of a write held through kills, failing disks, power cuts and rivals."""
