"""Draw tensors anew: torch's distributions from numpy's Philox."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from typing import Final

import numpy as np

from vita_ckpt.core.checkpoint import RandomInit
from vita_ckpt.storage.tensors.cast import convert

# Elements drawn at a time.
_STEP: Final = 1 << 20

# A float32 has 24 significant bits, so a draw is a multiple of 2^-24 in [0, 1), as torch's is.
_BITS: Final = 24


def drawn_bytes(tensor: RandomInit) -> Iterator[bytes]:
    """The little-endian bytes of ``tensor`` in pieces.

    Uniform values are drawn in float32, whatever the dtype, from a counter-based generator whose
    key is the SHA-256 of seed and name: numpy promises its raw output for all versions.
    """
    key = hashlib.sha256(f"{tensor.seed} {tensor.name}".encode("utf-8", "surrogatepass")).digest()
    stream = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    left = prod(tensor.shape)
    while left:
        count = min(left, _STEP)
        if tensor.bound is None:
            values = np.full(count, tensor.fill, dtype="<f4")
        else:
            unit = (stream.random_raw(count) >> (64 - _BITS)).astype(np.float32) / (1 << _BITS)
            values = (unit * np.float32(2 * tensor.bound) - np.float32(tensor.bound)).astype("<f4")
        yield convert(values.tobytes(), "F32", tensor.dtype)
        left -= count
