"""Find values that no sound checkpoint has: NaN, infinities, what float16 cannot hold, zeros.

Arithmetic on integers, over pieces of a tensor's bytes. In every floating format the highest bit
of the exponent is set from 2.0 on, in infinity and in NaN: where no element has it, as in most
pieces of most weights, all is well after one look at the bits. Else the largest pattern decides:
without its sign, the pattern of a number grows with its magnitude, infinity stands above every
number and NaN above infinity. Only where it says that something is wrong are elements counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from struct import pack, unpack
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.checks.rules import finding
from vita_ckpt.core.anatomy.parts import LORA, part_of
from vita_ckpt.core.checkpoint import TensorRef
from vita_ckpt.core.report import Finding

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Format:
    """Bytes of a number, and the first patterns that are above 65504, infinite, and NaN."""

    width: int
    large: int
    infinite: int
    nan: int


_F32: Final = _Format(4, 0x477FE001, 0x7F800000, 0x7F800001)

# Numbers of other dtypes are not judged: integers and booleans are positions and masks, and the
# formats of 4 and 6 bits, FNUZ and E8M0 occur in quantised models only.
_FORMATS: Final = {
    "F64": _Format(8, 0x40EFFC0000000001, 0x7FF0000000000000, 0x7FF0000000000001),
    "F32": _F32,
    "C64": _F32,
    "BF16": _Format(2, 0x4780, 0x7F80, 0x7F81),
    "F16": _Format(2, 0x7C00, 0x7C00, 0x7C01),
    "F8_E5M2": _Format(1, 0x7C, 0x7C, 0x7D),
    "F8_E4M3": _Format(1, 0x7F, 0x7F, 0x7F),
}
_TRAINING: Final = "training broke down, or the file is damaged: take an earlier checkpoint"


@dataclass(frozen=True, slots=True)
class Tally:
    """How many elements are of a kind; of the first its position and bits, without the sign."""

    count: int = 0
    position: int = 0
    pattern: int = 0

    def __add__(self, other: Tally) -> Tally:
        if not self.count or not other.count:
            return self if self.count else other
        first = min(self, other, key=lambda tally: tally.position)
        return Tally(self.count + other.count, first.position, first.pattern)


_NONE: Final = Tally()


@dataclass(frozen=True, slots=True)
class Values:
    """What is known of the values of some elements of a tensor; sums are of disjoint pieces.

    ``zero``: all of them are zero, of either sign. ``constant``: the bits that all of them have,
    None if they differ.
    """

    count: int = 0
    nan: Tally = _NONE
    infinite: Tally = _NONE
    large: Tally = _NONE
    zero: bool = False
    constant: int | None = None

    def __add__(self, other: Values) -> Values:
        if not self.count or not other.count:
            return self if self.count else other
        return Values(
            self.count + other.count,
            self.nan + other.nan,
            self.infinite + other.infinite,
            self.large + other.large,
            self.zero and other.zero,
            self.constant if self.constant == other.constant else None,
        )


def values_of(tensor: TensorRef, data: memoryview, position: int) -> Values:
    """Summarise the elements that ``data`` holds, little-endian, as they lie in the file.

    ``position`` is that of the first, counted from the tensor's element 0. Of a strided tensor
    ``data`` also holds what lies between its elements: that does not count.
    """
    kind = _FORMATS.get(tensor.dtype)
    if kind is None:
        return Values()
    bits = np.frombuffer(data, f"<u{kind.width}")
    lanes = 2 if tensor.dtype == "C64" else 1
    places = _places(tensor, position, len(bits) // lanes)
    if places is not None:
        bits = bits.reshape(-1, lanes)[places].reshape(-1)
    count = len(bits) // lanes
    if not count:
        return Values()
    constant = _constant(bits if lanes == 1 else bits.view("<u8"))
    sign = 1 << 8 * kind.width - 1
    either = int(np.bitwise_or.reduce(bits)) % sign
    if either < sign // 2 or _peak(bits, sign) < kind.large:
        return Values(count, zero=not either, constant=constant)
    sizes = (bits % sign).reshape(count, lanes)

    def tally(low: int, high: int) -> Tally:
        found = np.logical_and(sizes >= low, sizes < high).any(axis=1)
        if not (number := int(np.count_nonzero(found))):
            return _NONE
        first = int(np.argmax(found))
        at = position + (first if places is None else int(places[first]))
        return Tally(number, at, int(sizes[first].max()))

    return Values(
        count,
        tally(kind.nan, sign),
        tally(kind.infinite, kind.nan),
        tally(kind.large, kind.infinite),
        constant=constant,
    )


def check_tensor(name: str, tensor: TensorRef, values: Values) -> Iterator[Finding]:
    """Check a tensor, given the values of all its elements."""
    if values.nan.count:
        message = f"expected numbers, got NaN {_where(tensor, values.nan)}"
        yield finding("value-nan", name, message, hint=_TRAINING, file=tensor.source.path)
    if values.infinite.count:
        message = f"expected finite values, got infinity {_where(tensor, values.infinite)}"
        yield finding("value-inf", name, message, hint=_TRAINING, file=tensor.source.path)
    if values.large.count:
        size = _number(tensor.dtype, values.large.pattern)
        message = f"expected |x| ≤ 65504, got {size} {_where(tensor, values.large)}"
        hint = "run it in bfloat16 or float32, not with upstream's loader"
        yield finding("value-float16-overflow", name, message, hint=hint, file=tensor.source.path)
    # Biases start at zero, norms and scales at one value: only what has rows and columns is judged.
    if len(tensor.shape) < 2 or prod(tensor.shape) < 2:
        return
    if values.zero:
        untrained = part_of(name) == LORA
        rule = "lora-untrained" if untrained else "value-all-zero"
        message = f"expected trained values, got zero in all {prod(tensor.shape)} elements"
        hint = "merging it changes nothing" if untrained else "take the weights from a sound copy"
        yield finding(rule, name, message, hint=hint, file=tensor.source.path)
    elif values.constant is not None and not values.nan.count and not values.infinite.count:
        number = _number(tensor.dtype, values.constant)
        message = f"expected trained values, got {number} in all {prod(tensor.shape)} elements"
        yield finding("value-constant", name, message, file=tensor.source.path)


def _peak(bits: Array, sign: int) -> int:
    """Return the largest pattern without its sign, from two maxima, without a copy.

    Among signed integers every number without the sign bit is above every one with it; among
    unsigned ones it is the other way round.
    """
    positive = int(np.maximum.reduce(bits.view(f"<i{bits.itemsize}")))
    negative = int(np.maximum.reduce(bits)) - sign
    return max(positive, negative)


def _constant(elements: Array) -> int | None:
    first = int(elements[0])
    if first != elements[-1] or first != np.minimum.reduce(elements):
        return None
    return first if first == np.maximum.reduce(elements) else None


def _where(tensor: TensorRef, tally: Tally) -> str:
    index = [0] * len(tensor.shape)
    rest = tally.position
    repeats = prod(tensor.shape)
    for stride, size, axis in _axes(tensor):
        index[axis] = min(rest // stride, size - 1)
        rest -= index[axis] * stride
        repeats //= size
    count = tally.count * repeats
    return f"in {count} of {prod(tensor.shape)} elements, the first at {index}"


def _places(tensor: TensorRef, position: int, count: int) -> Array | None:
    """Return which of ``count`` elements in the file are the tensor's; None if all of them are.

    Exact where no element is reached in two ways, as in every slice, transposition and expansion.
    """
    if tensor.strides is None:
        return None
    axes = _axes(tensor)
    dense = 1
    for stride, size, _ in reversed(axes):
        dense *= size if stride == dense else 0
    if dense:
        return None
    rest = np.arange(position, position + count)
    for stride, size, _ in axes:
        rest -= np.minimum(rest // stride, size - 1) * stride
    return np.flatnonzero(rest == 0)


def _axes(tensor: TensorRef) -> list[tuple[int, int, int]]:
    """Return stride, size and number of the axes that lead to other elements, widest first."""
    strides = tensor.strides
    if strides is None:
        strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    axes = zip(strides, tensor.shape, range(len(tensor.shape)), strict=True)
    return sorted((axis for axis in axes if axis[0] and axis[1] > 1), reverse=True)


def _number(dtype: str, bits: int) -> str:
    """Format the number of a bit pattern, as bits if Python does not know the dtype."""
    kinds = {"F64": ("<Q", "<d", 0), "F32": ("<I", "<f", 0), "BF16": ("<I", "<f", 16)}
    kinds |= {"F16": ("<H", "<e", 0), "F8_E5M2": ("<H", "<e", 8)}
    if dtype not in kinds:
        return f"the bits {bits:#x}"
    whole, real, shift = kinds[dtype]
    return f"{unpack(real, pack(whole, bits << shift))[0]:.6g}"
