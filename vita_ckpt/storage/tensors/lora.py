"""Merge LoRA deltas into weights: the values that peft's ``merge`` computes, row by row.

With W the base and s the scale, all in the dtype D of the result (LORA §3 of upstream's facts)::

    F32   W + (B @ A) · s
    F16   D(W + D((B @ A) · s))
    BF16  D(W + D(D(B @ A) · s))       three roundings

Products are accumulated in float32. With a magnitude m (DoRA) and V = D(W + delta), the result is
D(D(m / n) · V), where n are the L2 norms of V's rows, rounded to D; in float32 they are summed in
torch's order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from math import frexp, prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.checkpoint import LoraMerge, Stored, source_of
from vita_ckpt.errors import CastError
from vita_ckpt.storage.system.threads import in_order
from vita_ckpt.storage.tensors.cast import BecomesInfiniteError, convert
from vita_ckpt.storage.tensors.rounding import F16, F32, Bf16, Rounding

Array = npt.NDArray[Any]

# Returns the bytes of elements ``start`` to ``stop`` of a tensor.
Read = Callable[[Stored, int, int], bytes]

# Elements of one product; large enough for BLAS, small enough that nothing counts beside weights.
_BLOCK: Final = 1 << 20
# Elements that are rounded and added at a time, which stay in the processor's cache.
_CHUNK: Final = 1 << 16
# Two shards are written at a time.
_WRITERS: Final = 2
_MOST_THREADS: Final = 8

_LANES: Final = 8

_STORED: Final = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
_ROUNDINGS: Final[dict[str, Callable[[int], Rounding]]] = {"BF16": Bf16, "F16": F16, "F32": F32}


def merged_bytes(tensor: LoraMerge, read: Read, name: str) -> Iterator[bytes]:
    """Yield the little-endian bytes of ``tensor`` in pieces, whole rows each.

    The next pieces are computed in threads, which call ``read``; a product should take no more
    threads. Raises CastError where a conversion or a sum makes a finite value infinite.
    """
    if 0 in tensor.shape:
        return
    merge = _Merge(tensor, read, name)
    rows = tensor.shape[0]
    step = max(_BLOCK // prod(tensor.shape[1:]), 1)
    spans = ((start, min(start + step, rows)) for start in range(0, rows, step))
    if rows <= step:
        yield merge.rows(0, rows)
        return
    threads = max(1, min((os.cpu_count() or 1) // _WRITERS, _MOST_THREADS))
    yield from in_order((partial(merge.rows, *span) for span in spans), threads)


class _Merge:
    """One merged tensor; its factors are held in float32, with values of its dtype."""

    def __init__(self, tensor: LoraMerge, read: Read, name: str) -> None:
        self._tensor = tensor
        self._read = read
        self._name = name
        self._width = prod(tensor.shape[1:])
        self._scale = np.float32(tensor.scale)
        # Doubling a rounded value rounds nothing.
        self._scales_exactly = tensor.scale >= 1 and frexp(tensor.scale)[0] == 0.5
        self._b = self._factor(tensor.b)
        self._a = None if tensor.a is None else self._factor(tensor.a)
        self._magnitude = None if tensor.magnitude is None else self._factor(tensor.magnitude)

    def rows(self, start: int, stop: int) -> bytes:
        """Return the bytes of rows ``start`` to ``stop``."""
        base = self._stored(self._tensor.base, start * self._width, stop * self._width)
        rounding = _ROUNDINGS[self._tensor.dtype](min(base.size, _CHUNK))
        with np.errstate(all="ignore"):
            values = self._product(start, stop)
            flat = values.reshape(-1)
            result = flat if self._tensor.dtype == "F32" else np.empty_like(base)
            has_magnitude = self._magnitude is not None
            finite = all(
                self._add(flat[at], base[at], rounding)
                and (has_magnitude or rounding.narrow(flat[at], result[at]))
                for at in _chunks(flat.size)
            )
            if finite and self._magnitude is not None:
                finite = self._renorm(values, self._magnitude[start:stop], rounding) and all(
                    rounding.narrow(flat[at], result[at]) for at in _chunks(flat.size)
                )
            return result.tobytes() if finite else self._rows_with_infinities(start, stop, base)

    def _add(self, product: Array, base: Array, rounding: Rounding) -> bool:
        """Turn a product into the sum with the base, in place; return False where not finite."""
        finite = self._tensor.dtype != "BF16" or rounding.round(product)
        product *= self._scale
        if not self._scales_exactly or self._tensor.dtype == "F16":
            finite = finite and rounding.round(product)
        product += rounding.widen(base)
        return finite and (self._magnitude is None or rounding.round(product))

    def _renorm(self, values: Array, magnitude: Array, rounding: Rounding) -> bool:
        """Scale each row to its magnitude, in place; return False where not finite."""
        norms = _norms(values)
        finite = all(rounding.round(norms[at]) for at in _chunks(norms.size))
        factors = magnitude / norms
        finite = finite and all(rounding.round(factors[at]) for at in _chunks(factors.size))
        values *= factors[:, None]
        return finite

    def _rows_with_infinities(self, start: int, stop: int, stored: Array) -> bytes:
        """Return the bytes of rows in which not every value is finite, step by step."""
        dtype = self._tensor.dtype
        base = np.frombuffer(convert(stored.tobytes(), dtype, "F32"), "<f4")

        def rounded(values: Array) -> Array:
            if dtype == "F32":
                return values
            if dtype == "F16":
                return values.astype("<f2").astype("<f4")
            bits = values.view("<u4").astype("<u8")
            bits += 0x7FFF + (bits >> 16 & 1)
            bits &= 0xFFFF0000
            return bits.astype("<u4").view("<f4")

        values = self._product(start, stop).reshape(-1)
        if dtype == "BF16":
            values = rounded(values)
        values = rounded(rounded(values * self._scale) + base)
        if self._magnitude is not None:
            rows = values.reshape(stop - start, -1)
            factors = rounded(self._magnitude[start:stop] / rounded(_norms(rows)))
            values = rounded((rows * factors[:, None]).reshape(-1))
        self._check(values, base, start * self._width)
        return convert(values.tobytes(), "F32", dtype)

    def _product(self, start: int, stop: int) -> Array:
        """Return these rows of B @ A in float32, as a new contiguous array."""
        if self._a is None:
            product: Array = self._b[start:stop].copy()
        elif self._tensor.is_embedding:
            product = np.ascontiguousarray((self._b @ self._a[:, start:stop]).T)
        else:
            product = self._b[start:stop] @ self._a
        return product

    def _factor(self, ref: Stored) -> Array:
        stored = self._stored(ref, 0, prod(ref.shape))
        wide = convert(stored.tobytes(), self._tensor.dtype, "F32")
        return np.frombuffer(wide, "<f4").reshape(ref.shape)

    def _stored(self, ref: Stored, start: int, stop: int) -> Array:
        """Return elements of a tensor as they are stored in the dtype of the result."""
        dtype = self._tensor.dtype
        data = self._read(ref, start, stop)
        try:
            data = convert(data, ref.dtype, dtype)
        except BecomesInfiniteError as error:
            raise self._overflow(ref, start + error.index, error.value) from error
        return np.frombuffer(data, _STORED[dtype])

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


def _norms(values: Array) -> Array:
    """Return the L2 norms of rows, summed as torch does on a CPU.

    It has a sum for each of eight columns, adds these from the first on, and then the columns left.
    """
    squares = values * values
    rows, width = squares.shape
    whole = width - width % _LANES
    sums = np.zeros(rows, "<f4")
    for lane in squares[:, :whole].reshape(rows, -1, _LANES).sum(1).T:
        sums += lane
    for column in squares[:, whole:].T:
        sums += column
    return np.sqrt(sums)


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, _CHUNK):
        yield slice(start, min(start + _CHUNK, size))
