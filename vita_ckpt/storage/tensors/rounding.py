"""Round float32 values to BF16 or F16 where they are, a piece at a time that stays in the cache.

numpy has no BF16, and its F16 takes 60 times as long for values below 2^-14, as most LoRA deltas
are. Everything rounds to nearest, ties to even, and keeps subnormals and the signs of zeros. What
is infinite or no number is told, and not converted.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The largest values that round to a finite one lie below half a step above the largest.
_F16_LIMIT: Final = 65520.0
_F16_INFINITY: Final = 0x7C00
_EXPONENT: Final = 0x7F800000
_SMALLEST_F16: Final = 0x38800000  # 2^-14 as float32: below it the step no longer shrinks
_SHIFT: Final = 13 << 23  # float32 has 13 bits more than F16
_HALF: Final = 1 << 22


class Rounding(Protocol):
    """Rounding of pieces of up to as many values as it was made for; not for several threads."""

    def widen(self, stored: Array) -> Array:
        """Return stored values, of the dtype, as float32: until the next call."""

    def round(self, values: Array) -> bool:
        """Round float32 values in place; return False if one is not finite."""

    def narrow(self, values: Array, out: Array) -> bool:
        """Store float32 values, rounded, in ``out``; return False if one is not finite."""


class Bf16:
    """Rounding to BF16, whose bits are the upper half of float32's."""

    def __init__(self, size: int) -> None:
        self._bits = np.empty(size, "<u4")
        self._wide = np.empty(size, "<u4")

    def widen(self, stored: Array) -> Array:
        """Return stored values as float32: until the next call."""
        wide = self._wide[: stored.size]
        np.copyto(wide, stored)
        wide <<= 16
        floats: Array = wide.view("<f4")
        return floats

    def round(self, values: Array) -> bool:
        """Round float32 values in place. What is not finite is told by :meth:`narrow`."""
        bits = values.view("<u4")
        np.bitwise_and(self._carried(bits), 0xFFFF0000, out=bits)
        return True

    def narrow(self, values: Array, out: Array) -> bool:
        """Store float32 values, rounded, in ``out``; return False if one is not finite."""
        sums = self._carried(values.view("<u4"))
        finite = bool(np.isfinite(sums.view("<f4")).all())
        sums >>= 16
        np.copyto(out, sums, casting="unsafe")
        return finite

    def _carried(self, bits: Array) -> Array:
        """Return ``bits`` with the carry of the lower half in the upper one."""
        sums = self._bits[: bits.size]
        np.right_shift(bits, 16, out=sums)
        sums &= 1
        sums += 0x7FFF
        sums += bits
        return sums


class F16:
    """Rounding to F16: adding a power of two pushes out the bits that it has not."""

    def __init__(self, size: int) -> None:
        self._bits = np.empty(size, "<u4")
        self._sums = np.empty(size, "<f4")
        self._wide = np.empty(size, "<u4")

    def widen(self, stored: Array) -> Array:
        """Return stored values as float32: until the next call."""
        wide = self._wide[: stored.size]
        signs = self._bits[: stored.size]
        np.copyto(wide, stored.view("<u2"))
        np.bitwise_and(wide, 0x8000, out=signs)
        signs <<= 16
        wide &= 0x7FFF
        if wide.max() >= _F16_INFINITY:
            return stored.astype("<f4")
        wide <<= 13
        floats: Array = wide.view("<f4")
        floats *= np.float32(2.0**112)
        wide |= signs
        return floats

    def round(self, values: Array) -> bool:
        """Round float32 values in place; return False if one is not finite."""
        if not self._fit(values):
            return False
        powers = self._powers(values)
        powers += _HALF  # of the same binade whatever the sign
        sums = self._sums[: values.size]
        np.add(values, powers.view("<f4"), out=sums)
        sums -= powers.view("<f4")
        np.copysign(sums, values, out=values)
        return True

    def narrow(self, values: Array, out: Array) -> bool:
        """Store float32 values, rounded, in ``out``; return False if one is not finite."""
        if not self._fit(values):
            return False
        powers = self._powers(values)
        sums = self._sums[: values.size]
        np.abs(values, out=sums)
        sums += powers.view("<f4")
        # Its lower bits count the steps of F16, its exponent tells which ones.
        bits = sums.view("<u4")
        bits -= powers
        powers >>= 13
        powers -= 126 << 10
        bits += powers
        np.right_shift(values.view("<u4"), 16, out=powers)
        powers &= 0x8000
        bits |= powers
        np.copyto(out.view("<u2"), bits, casting="unsafe")
        return True

    def _fit(self, values: Array) -> bool:
        return bool(values.max() < _F16_LIMIT and values.min() > -_F16_LIMIT)

    def _powers(self, values: Array) -> Array:
        """Return for each value the power of two whose last bit is that of F16 at the value."""
        powers = self._bits[: values.size]
        np.bitwise_and(values.view("<u4"), _EXPONENT, out=powers)
        np.maximum(powers, _SMALLEST_F16, out=powers)
        powers += _SHIFT
        return powers


class F32:
    """No rounding: float32 stays as it is."""

    def __init__(self, _size: int) -> None:
        pass

    def widen(self, stored: Array) -> Array:
        """Return the values."""
        return stored

    def round(self, _values: Array) -> bool:
        """Leave the values as they are. What is not finite is told by :meth:`narrow`."""
        return True

    def narrow(self, values: Array, out: Array) -> bool:
        """Return False if a value is not finite. ``out`` is not used: they are stored already."""
        del out
        return bool(np.isfinite(values).all())
