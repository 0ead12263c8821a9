"""What a checkpoint is and whether its halves agree: described, never mended."""
