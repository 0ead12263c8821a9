"""Read and write checkpoints, on the disk and on the hub."""
