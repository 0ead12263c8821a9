"""Merge LoRA deltas into weights: the values that peft's ``merge`` computes, row by row.

With W the base and s the scale, all in the dtype D of the result (LORA §3 of upstream's facts)::

    F32   W + (B @ A) · s
    F16   D(W + D((B @ A) · s))
    BF16  D(W + D(D(B @ A) · s))       three roundings

Products are accumulated in float32. With a magnitude m (DoRA) and V = D(W + delta), the result is
D(D(m / n) · V), where n are the L2 norms of V's rows, rounded to D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.checkpoint import LoraMerge, Stored, source_of
from vita_ckpt.errors import CastError
from vita_ckpt.storage.tensors.cast import BecomesInfiniteError, convert

Array = npt.NDArray[Any]

# Returns the bytes of elements ``start`` to ``stop`` of a tensor.
Read = Callable[[Stored, int, int], bytes]

# Elements of one product; large enough for BLAS, small enough that nothing counts beside weights.
_BLOCK: Final = 1 << 20
# Elements that are rounded and added at a time, which stay in the processor's cache.
_CHUNK: Final = 1 << 16


def merged_bytes(tensor: LoraMerge, read: Read, name: str) -> Iterator[bytes]:
    """Yield the little-endian bytes of ``tensor`` in pieces, whole rows each.

    Raises CastError where a conversion or a sum makes a finite value infinite.
    """
    if 0 in tensor.shape:
        return
    merge = _Merge(tensor, read, name)
    rows = tensor.shape[0]
    step = max(_BLOCK // prod(tensor.shape[1:]), 1)
    for start in range(0, rows, step):
        yield merge.rows(start, min(start + step, rows))


class _Merge:
    """One merged tensor; its factors are held in float32, with values of its dtype."""

    def __init__(self, tensor: LoraMerge, read: Read, name: str) -> None:
        self._tensor = tensor
        self._read = read
        self._name = name
        self._width = prod(tensor.shape[1:])
        self._scale = np.float32(tensor.scale)
        self._b = self._factor(tensor.b)
        self._a = None if tensor.a is None else self._factor(tensor.a)
        self._magnitude = None if tensor.magnitude is None else self._factor(tensor.magnitude)
        self._round = {"BF16": _round_to_bf16, "F16": _round_to_f16, "F32": _keep}[tensor.dtype]

    def rows(self, start: int, stop: int) -> bytes:
        """Return the bytes of rows ``start`` to ``stop``."""
        base = self._elements(self._tensor.base, start * self._width, stop * self._width)
        with np.errstate(all="ignore"):
            values = self._product(start, stop)
            flat = values.reshape(-1)
            for at in range(0, flat.size, _CHUNK):
                self._add(flat[at : at + _CHUNK], base[at : at + _CHUNK])
            if self._magnitude is not None:
                self._renorm(values, self._magnitude[start:stop])
            if not np.isfinite(flat).all():
                self._check(flat, base, start * self._width)
                return convert(flat.tobytes(), "F32", self._tensor.dtype)
        if self._tensor.dtype == "BF16":
            return (flat.view("<u4") >> 16).astype("<u2").tobytes()
        return flat.astype("<f2" if self._tensor.dtype == "F16" else "<f4").tobytes()

    def _product(self, start: int, stop: int) -> Array:
        """Return these rows of B @ A in float32, as a new contiguous array."""
        if self._a is None:
            product: Array = self._b[start:stop].copy()
        elif self._tensor.is_embedding:
            product = np.ascontiguousarray((self._b @ self._a[:, start:stop]).T)
        else:
            product = self._b[start:stop] @ self._a
        return product

    def _add(self, product: Array, base: Array) -> None:
        """Turn a product into the sum with the base, in place."""
        if self._tensor.dtype == "BF16":
            _round_to_bf16(product)
        product *= self._scale
        self._round(product)
        product += base
        self._round(product)

    def _renorm(self, values: Array, magnitude: Array) -> None:
        """Scale each row to its magnitude, in place."""
        norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
        norms = norms.astype("<f4")
        self._round(norms)
        factors = magnitude / norms
        self._round(factors)
        values *= factors[:, None]
        for at in range(0, values.size, _CHUNK):
            self._round(values.reshape(-1)[at : at + _CHUNK])

    def _factor(self, ref: Stored) -> Array:
        return self._elements(ref, 0, prod(ref.shape)).reshape(ref.shape)

    def _elements(self, ref: Stored, start: int, stop: int) -> Array:
        """Return elements of a tensor, converted to the dtype of the result, in float32."""
        dtype = self._tensor.dtype
        data = self._read(ref, start, stop)
        try:
            data = convert(data, ref.dtype, dtype)
        except BecomesInfiniteError as error:
            raise self._overflow(ref, start + error.index, error.value) from error
        return np.frombuffer(convert(data, dtype, "F32"), "<f4")

    def _check(self, values: Array, base: Array, position: int) -> None:
        """Raise CastError if a value became infinite that was finite in the base."""
        lost = np.flatnonzero(np.isinf(values) & np.isfinite(base))
        if lost.size:
            index = int(lost[0])
            raise self._overflow(self._tensor.base, position + index, float(base[index]))

    def _overflow(self, ref: Stored, index: int, value: float) -> CastError:
        return CastError(
            "cast-overflow",
            f"{source_of(ref)}: {self._name}",
            expected=f"values that {self._tensor.dtype} can hold, merged",
            got=f"{value:g} before the merge at element {index}",
            hint="merge in another --dtype",
        )


def _round_to_bf16(values: Array) -> None:
    """Round float32 values to the nearest of BF16, ties to even, in place.

    A NaN must have come of BF16 values: its low bits are zero, so that it stays one.
    """
    bits = values.view("<u4")
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    bits += odd
    bits &= 0xFFFF0000


def _round_to_f16(values: Array) -> None:
    values[...] = values.astype("<f2")


def _keep(_values: Array) -> None:
    """Round float32 to itself."""
