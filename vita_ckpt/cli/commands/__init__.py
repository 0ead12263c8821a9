"""The commands: one file each, which parses, makes one call and renders."""
