"""The library face: what the command line can do, Python can do in one call."""
