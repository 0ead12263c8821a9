"""Read, convert, draw, digest and compare the bytes of tensors."""
