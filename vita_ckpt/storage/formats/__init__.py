"""Read and write file formats, from a source of bytes."""
