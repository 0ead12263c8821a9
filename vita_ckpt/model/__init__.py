"""The model in torch: the only place that imports torch, transformers and accelerate."""
