"""Decode elements of any dtype, and measure how far two sides are apart."""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.distance import Distance
from vita_ckpt.storage.tensors.native import BLOCK, LANES

Array = npt.NDArray[Any]

_FEW: Final = 1 << 8

_NUMPY: Final = {
    "BOOL": "u1",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
# Bits of the mantissa and bias of the exponent, as the OCP and FNUZ formats define them.
_FLOAT8: Final = {
    "F8_E4M3": (3, 7),
    "F8_E5M2": (2, 15),
    "F8_E4M3FNUZ": (3, 8),
    "F8_E5M2FNUZ": (2, 16),
}


class Meter:
    """A meter of blocks of at most ``BLOCK`` elements. Its buffers belong to one thread."""

    def __init__(self) -> None:
        self._before = np.empty(BLOCK)
        self._after = np.empty(BLOCK)
        self._delta = np.empty(BLOCK)
        self._products = np.empty(BLOCK)
        self._bits = np.empty(BLOCK, "<u4")

    def distance(
        self, before: memoryview | bytes, after: memoryview | bytes, dtypes: tuple[str, str]
    ) -> Distance:
        """Return the distance of ``after`` from ``before``, elements of ``dtypes`` in C order."""
        with np.errstate(all="ignore"):
            if dtypes[0] == dtypes[1] and _are_equal(before, after):
                return self._same(before, dtypes[0])
            integers = [_integers(data, d) for data, d in zip((before, after), dtypes, strict=True)]
            if integers[0] is not None and integers[1] is not None:
                common = np.result_type(*integers)
                if common.kind in "ui":  # no integer dtype holds both U64 and a signed one
                    sides = (i.astype(common) for i in integers if i is not None)
                    return self._integer_distance(*sides)
            old = self._values(before, dtypes[0], self._before)
            new = self._values(after, dtypes[1], self._after)
            if np.iscomplexobj(old) or np.iscomplexobj(new):
                old, new = old.astype("<c16"), new.astype("<c16")
                delta = new - old
            else:
                delta = np.subtract(new, old, out=self._delta[: len(old)])
            return self._float_distance(old, new, delta)

    def _same(self, data: memoryview | bytes, dtype: str) -> Distance:
        """Return the distance of a block from itself."""
        values = self._values(data, dtype, self._before)
        square, nonfinite = self._dot(values, values), 0
        if not isfinite(square):
            finite = np.isfinite(values)
            nonfinite = len(values) - int(np.count_nonzero(finite))
            values = values[finite]
            square = self._dot(values, values)
        return Distance(
            elements=len(values) + nonfinite,
            nonfinite_before=nonfinite,
            nonfinite_after=nonfinite,
            before=square,
            after=square,
            dot=square,
        )

    def _integer_distance(self, before: Array, after: Array) -> Distance:
        """Return the distance of integers.

        Differences are taken in integers, since float64 could not hold them, before they are
        squared.
        """
        unsigned = f"<u{before.itemsize}"
        larger, smaller = np.maximum(before, after), np.minimum(before, after)
        delta = larger.view(unsigned) - smaller.view(unsigned)
        old, new, wide = before.astype("<f8"), after.astype("<f8"), delta.astype("<f8")
        return Distance(
            elements=len(delta),
            changed=int(np.count_nonzero(delta)),
            max_abs=float(delta.max()),
            delta=self._dot(wide, wide),
            before=self._dot(old, old),
            after=self._dot(new, new),
            dot=self._dot(old, new),
        )

    def _float_distance(self, before: Array, after: Array, delta: Array) -> Distance:
        elements = len(delta)
        squares = self._dot(before, before), self._dot(after, after)
        old = new = changed = 0
        if not (isfinite(squares[0]) and isfinite(squares[1])):
            finite = np.isfinite(before), np.isfinite(after)
            both = finite[0] & finite[1]
            old, new = (elements - int(np.count_nonzero(side)) for side in finite)
            other = (before != after) & ~(np.isnan(before) & np.isnan(after)) & ~both
            changed = int(np.count_nonzero(other))
            before, after, delta = before[both], after[both], delta[both]
            squares = self._dot(before, before), self._dot(after, after)
        square = self._dot(delta, delta)
        if delta.dtype.kind != "c" and squares[0] / 4 < squares[1] < squares[0] * 4:
            # Nothing is lost that the sums themselves do not lose.
            dot = (squares[0] + squares[1] - square) / 2
        else:
            dot = self._dot(before, after)
        return Distance(
            elements=elements,
            changed=changed + int(np.count_nonzero(delta != 0)),
            nonfinite_before=old,
            nonfinite_after=new,
            max_abs=_largest(delta),
            delta=square,
            before=squares[0],
            after=squares[1],
            dot=dot,
        )

    def _dot(self, one: Array, other: Array) -> float:
        """Return the real part of the inner product, in the order of native.c."""
        one, other = one.view("<f8"), other.view("<f8")  # a complex number as two real ones
        products = self._products[: len(one)] if len(one) <= BLOCK else None
        products = np.multiply(one, other, out=products)
        whole = len(one) // LANES * LANES
        lanes = np.add.reduce(products[:whole].reshape(-1, LANES), axis=0)  # row by row
        lanes[: len(one) - whole] += products[whole:]
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        return float(lanes[0])

    def _values(self, data: memoryview | bytes, dtype: str, out: Array) -> Array:
        """Return the elements as float64 in ``out``, or as a new array of complex128."""
        if dtype == "C64":
            return np.frombuffer(data, _NUMPY[dtype]).astype("<c16")
        if dtype == "BF16":
            bits = np.frombuffer(data, "<u2")
            wide = self._bits[: len(bits)]
            wide[:] = bits  # a shift that widens as it goes is slower than the two by themselves
            wide <<= 16
            elements = wide.view("<f4")
        elif dtype in _NUMPY:
            elements = np.frombuffer(data, _NUMPY[dtype])
        else:
            elements = _table(dtype)[np.frombuffer(data, "u1")]
        values = out[: len(elements)]
        values[:] = elements
        return values


def _are_equal(before: memoryview | bytes, after: memoryview | bytes) -> bool:
    """Return whether two blocks are the same bytes, which the first few mostly tell."""
    if bytes(before[:_FEW]) != bytes(after[:_FEW]):
        return False
    return np.array_equal(np.frombuffer(before, "u1"), np.frombuffer(after, "u1"))


def _integers(data: memoryview | bytes, dtype: str) -> Array | None:
    kind = np.dtype(_NUMPY.get(dtype, "f4"))
    return np.frombuffer(data, kind) if kind.kind in "ui" else None


def _largest(delta: Array) -> float:
    if not len(delta):
        return 0.0
    if np.iscomplexobj(delta):
        return float(np.abs(delta).max())
    return max(float(delta.max()), -float(delta.min()))


@lru_cache
def _table(dtype: str) -> Array:
    """Return the values of the 256 bit patterns of an 8-bit float."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        scales = np.ldexp(1.0, codes - 127)
        scales[255] = np.nan
        return scales
    bits, bias = _FLOAT8[dtype]
    exponent, mantissa = (codes & 0x7F) >> bits, codes & ((1 << bits) - 1)
    normal = exponent > 0
    significand = mantissa + np.where(normal, 1 << bits, 0)
    values: Array = np.ldexp(significand.astype("<f8"), np.maximum(exponent, 1) - bias - bits)
    values[codes >= 0x80] *= -1.0
    if dtype == "F8_E4M3":
        values[[0x7F, 0xFF]] = np.nan
    elif dtype == "F8_E5M2":
        values[[0x7C, 0xFC]] = np.inf, -np.inf
        values[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    else:
        values[0x80] = np.nan
    return values
