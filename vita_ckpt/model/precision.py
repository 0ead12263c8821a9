"""Keep float32 products exact on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """cuDNN's convolutions without TF32, whose ten bits of mantissa are torch's default for them.

    Products of matrices are exact by torch's default. Nothing changes in other dtypes.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
