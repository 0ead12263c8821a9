"""Keep float32 products exact on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Disable TF32 in cuDNN's convolutions, which torch enables by default.

    TF32 has a mantissa of only ten bits. Torch's matrix products are exact by default. Other dtypes
    are not affected.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
