"""The disk: one way in (directory), one way out (commit)."""
