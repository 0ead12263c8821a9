"""Count how large the values of tensors are, by powers of two, from the bits of their exponents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vita_ckpt.checks.values import places
from vita_ckpt.core.checkpoint import TensorRef
from vita_ckpt.core.dataclass import dataclass

Array = npt.NDArray[Any]


class _Format(NamedTuple):
    """Bytes of a number, bits of its mantissa, bias of its exponent, and the pattern of infinity.

    What is above ``infinite`` is NaN. Of a format without infinity it is the pattern before NaN,
    and ``has_infinity`` is false.
    """

    width: int
    mantissa: int
    bias: int
    infinite: int
    has_infinity: bool = True


_FORMATS: Final = {
    "F64": _Format(8, 52, 1023, 0x7FF << 52),
    "F32": _Format(4, 23, 127, 0xFF << 23),
    "BF16": _Format(2, 7, 127, 0xFF << 7),
    "F16": _Format(2, 10, 15, 0x1F << 10),
    "F8_E5M2": _Format(1, 2, 15, 0x7C),
    "F8_E4M3": _Format(1, 3, 7, 0x7E, has_infinity=False),
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """How large values are. Sums combine the values of disjoint pieces.

    ``exponents`` maps e to the number of values whose magnitude is from 2**e up to 2**(e + 1).
    ``uncounted`` are elements whose dtype is no float of 8 bits or more. ``largest`` is the largest
    finite magnitude.
    """

    elements: int = 0
    zeros: int = 0
    nan: int = 0
    infinite: int = 0
    uncounted: int = 0
    largest: float = 0.0
    exponents: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: Distribution) -> Distribution:
        exponents = dict(self.exponents)
        for exponent, number in other.exponents.items():
            exponents[exponent] = exponents.get(exponent, 0) + number
        return Distribution(
            self.elements + other.elements,
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.infinite + other.infinite,
            self.uncounted + other.uncounted,
            max(self.largest, other.largest),
            dict(sorted(exponents.items())),
        )

    @property
    def typical(self) -> float | None:
        """The power of two at or below the median magnitude; None if half of them are zero."""
        left = (self.zeros + sum(self.exponents.values())) / 2 - self.zeros
        if left <= 0:
            return None
        for exponent, number in sorted(self.exponents.items()):
            left -= number
            if left <= 0:
                return 2.0**exponent
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values: ``exponents`` as a list of pairs, lowest first."""
        pairs = [[exponent, number] for exponent, number in sorted(self.exponents.items())]
        return {**asdict(self), "exponents": pairs, "typical": self.typical}


def is_counted(dtype: str) -> bool:
    """Return whether the values of a dtype are counted: floats of 8 bits or more."""
    return dtype in _FORMATS


def distribution_of(tensor: TensorRef, data: memoryview, position: int) -> Distribution:
    """Count the values in ``data``, little-endian, in file order.

    ``position`` is the place of the first element, counted from the tensor's element 0. Bytes
    between the elements of a strided tensor are left out.
    """
    kind = _FORMATS.get(tensor.dtype)
    if kind is None:
        return Distribution()
    bits = np.frombuffer(data, f"<u{kind.width}")
    own = places(tensor, position, len(bits))
    if own is not None:
        bits = bits[own]
    magnitudes = bits & bits.dtype.type((1 << 8 * kind.width - 1) - 1)
    return _counted(magnitudes, kind)


def _counted(magnitudes: Array, kind: _Format) -> Distribution:
    total = len(magnitudes)
    if not total:
        return Distribution()
    infinite = nan = 0
    largest = int(magnitudes.max())
    edge = kind.infinite - kind.has_infinity
    if largest > edge:
        nan = int(np.count_nonzero(magnitudes > kind.infinite))
        infinite = int(np.count_nonzero(magnitudes > edge)) - nan
        magnitudes = magnitudes[magnitudes <= edge]
        largest = int(magnitudes.max(initial=0))
    stored = np.bincount((magnitudes >> kind.mantissa).astype(np.intp))
    zeros = 0
    counts: dict[int, int] = {}
    if len(stored) and stored[0]:
        small = magnitudes[magnitudes < (1 << kind.mantissa)]
        zeros = len(small) - int(np.count_nonzero(small))
        # A subnormal number is its pattern times the smallest one.
        _, lengths = np.frexp(small[small != 0].astype("<f8"))
        least = 1 - kind.bias - kind.mantissa - 1
        for length, number in zip(*np.unique(lengths, return_counts=True), strict=True):
            counts[int(length) + least] = int(number)
    for exponent in np.flatnonzero(stored[1:]):
        counts[int(exponent) + 1 - kind.bias] = int(stored[exponent + 1])
    return Distribution(
        elements=total,
        zeros=zeros,
        nan=nan,
        infinite=infinite,
        largest=_value(largest, kind),
        exponents=counts,
    )


def _value(pattern: int, kind: _Format) -> float:
    exponent, mantissa = pattern >> kind.mantissa, pattern & ((1 << kind.mantissa) - 1)
    significand = mantissa + (1 << kind.mantissa if exponent else 0)
    return float(significand) * 2.0 ** (max(exponent, 1) - kind.bias - kind.mantissa)
