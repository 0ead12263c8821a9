"""Small files of torch.save, and what torch itself says of a file."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict

import torch

# What torch says of globals and of protocols that it does not take with weights_only.
NOT_ADMITTED = ("Unsupported global", "Unsupported operand", "Unsupported class")


def saved(kind: str) -> bytes:
    """A file with a view, a parameter, two dtypes and a scalar; ``kind`` is how it is written."""
    whole = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    value = OrderedDict(
        a=whole, b=whole.t()[1:], c=torch.nn.Parameter(torch.ones(2).half()), d=torch.tensor(3)
    )
    buffer = io.BytesIO()
    sums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(kind != "zip without checksums")
    try:
        torch.save(value, buffer, _use_new_zipfile_serialization=kind != "legacy")
    finally:
        torch.serialization.set_crc32_options(sums)
    return buffer.getvalue()


def why_not(data: bytes) -> str:
    """Why torch refuses a file; empty if it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 - whatever torch raises
        return f"{type(error).__name__}: {error}"
    return ""
