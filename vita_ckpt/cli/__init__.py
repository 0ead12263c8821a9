"""The command line: one file per command, each parses, calls the api once and renders."""
