"""The hub: repositories pinned to a commit, read by byte range, downloaded, and pushed to."""
