"""Draw tensors at random: torch's distributions from numpy's Philox."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.checkpoint import RandomInit
from vita_ckpt.storage.tensors.cast import convert

# Elements drawn at a time.
_STEP: Final = 1 << 20

# A float32 has 24 significant bits, so a draw is a multiple of 2^-24 in [0, 1), as in torch.
_BITS: Final = 24
_WIDE_BITS: Final = 53  # of a float64


def drawn_bytes(tensor: RandomInit) -> Iterator[bytes]:
    """Yield the little-endian bytes of ``tensor`` in pieces.

    Uniform values are drawn in float32, whatever the dtype, normal ones in float64 by the method of
    Box and Muller. They come from a counter-based
    generator whose key is the SHA-256 of seed and name; numpy guarantees its raw output across
    versions.
    """
    key = hashlib.sha256(f"{tensor.seed} {tensor.name}".encode("utf-8", "surrogatepass")).digest()
    stream = np.random.Philox(key=int.from_bytes(key[:16], "little"))
    left = prod(tensor.shape)
    while left:
        count = min(left, _STEP)
        if tensor.std is not None:
            values = (_normal(stream, count) * tensor.std).astype("<f4")
        elif tensor.bound is None:
            values = np.full(count, tensor.fill, dtype="<f4")
        else:
            unit = (stream.random_raw(count) >> (64 - _BITS)).astype(np.float32) / (1 << _BITS)
            values = (unit * np.float32(2 * tensor.bound) - np.float32(tensor.bound)).astype("<f4")
        yield convert(values.tobytes(), "F32", tensor.dtype)
        left -= count


def _normal(stream: np.random.Philox, count: int) -> npt.NDArray[np.float64]:
    """Return normally distributed values; of two that belong together the sine is not used."""
    raw = stream.random_raw(2 * count).astype(np.uint64) >> np.uint64(64 - _WIDE_BITS)
    radius, angle = raw[0::2], raw[1::2]
    unit = (radius.astype(np.float64) + 1) / (1 << _WIDE_BITS)  # in (0, 1]: it has a logarithm
    turn = angle.astype(np.float64) / (1 << _WIDE_BITS)
    values: npt.NDArray[np.float64] = np.sqrt(-2 * np.log(unit)) * np.cos(2 * np.pi * turn)
    return values
