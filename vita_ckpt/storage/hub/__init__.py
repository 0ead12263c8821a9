"""Access repositories on the hub: pin, read by byte range, download and push."""
