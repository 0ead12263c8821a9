"""Run audio encoders: encoder, adapters, and the embeddings that take the place of -500."""
