"""Reports as pages: one file each, without script, without anything to load, for every screen."""
