"""Find values that no sound checkpoint has: NaN, infinities, float16 overflows, constants.

The checks use integer arithmetic on pieces of a tensor's bytes. In every floating format the
highest bit of the exponent is set for magnitudes from 2.0 on, infinity and NaN. If it is clear in
every element, as in most pieces of most weights, the piece is valid. Otherwise the largest bit
pattern decides. Without the sign bit, patterns grow with magnitude; infinity is above every finite
number and NaN above infinity. Elements are counted only if that pattern shows a problem. The first
elements of a piece tell which of the two is likely to be needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from struct import pack, unpack
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.checks.rules import finding
from vita_ckpt.core.anatomy.parts import LORA, part_of
from vita_ckpt.core.checkpoint import Pieces, Stored, TensorRef, refs_of
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.report import Finding

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Format:
    """The width of a number in bytes, and its first patterns above 65504, infinite and NaN."""

    width: int
    large: int
    infinite: int
    nan: int


_F32: Final = _Format(4, 0x477FE001, 0x7F800000, 0x7F800001)

# Other dtypes are not checked: integers and booleans are positions and masks, and the 4-bit, 6-bit,
# FNUZ and E8M0 formats occur only in quantised models.
_FORMATS: Final = {
    "F64": _Format(8, 0x40EFFC0000000001, 0x7FF0000000000000, 0x7FF0000000000001),
    "F32": _F32,
    "C64": _F32,
    "BF16": _Format(2, 0x4780, 0x7F80, 0x7F81),
    "F16": _Format(2, 0x7C00, 0x7C00, 0x7C01),
    "F8_E5M2": _Format(1, 0x7C, 0x7C, 0x7D),
    "F8_E4M3": _Format(1, 0x7F, 0x7F, 0x7F),
}
# Elements of a piece that tell what to expect of it.
_FEW: Final = 1 << 10
_TRAINING: Final = "training broke down, or the file is damaged: take an earlier checkpoint"


@dataclass(frozen=True, slots=True)
class Tally:
    """The number of elements of a kind; position and bits (without the sign) of the first one."""

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
    """A summary of the values of some elements of a tensor. Sums combine disjoint pieces.

    ``zero`` is set if all elements are zero, of either sign. ``constant`` holds the bits that all
    elements share, None if they differ.
    """

    count: int = 0
    nan: Tally = _NONE
    infinite: Tally = _NONE
    large: Tally = _NONE
    zero: bool = False
    constant: int | None = None

    def moved(self, place: Callable[[int], int]) -> Values:
        """Return the same values at other places, which keep their order."""
        tallies = {
            key: replace(tally, position=place(tally.position))
            for key in ("nan", "infinite", "large")
            if (tally := getattr(self, key)).count
        }
        return replace(self, **tallies)

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
    """Summarise the elements in ``data``, little-endian, in file order.

    ``position`` is the position of the first element, counted from the tensor's element 0. For a
    strided tensor ``data`` also holds the bytes between its elements, which are ignored.
    """
    kind = _FORMATS.get(tensor.dtype)
    if kind is None:
        return Values()
    bits = np.frombuffer(data, f"<u{kind.width}")
    lanes = 2 if tensor.dtype == "C64" else 1
    own = places(tensor, position, len(bits) // lanes)
    if own is not None:
        bits = bits.reshape(-1, lanes)[own].reshape(-1)
    count = len(bits) // lanes
    if not count:
        return Values()
    constant = _constant(bits if lanes == 1 else bits.view("<u8"))
    sign = 1 << 8 * kind.width - 1
    high = sign // 2
    if _union(bits[:_FEW], sign) < high and (union := _union(bits, sign)) < high:
        return Values(count, zero=not union, constant=constant)
    if (peak := _peak(bits, sign)) < kind.large:
        return Values(count, zero=not peak, constant=constant)
    sizes = (bits % sign).reshape(count, lanes)

    def tally(low: int, high: int) -> Tally:
        found = np.logical_and(sizes >= low, sizes < high).any(axis=1)
        if not (number := int(np.count_nonzero(found))):
            return _NONE
        first = int(np.argmax(found))
        at = position + (first if own is None else int(own[first]))
        return Tally(number, at, int(sizes[first].max()))

    return Values(
        count,
        tally(kind.nan, sign),
        tally(kind.infinite, kind.nan),
        tally(kind.large, kind.infinite),
        constant=constant,
    )


def width_of(dtype: str) -> int | None:
    """Return the bytes of a number whose largest pattern tells whether it is valid, else None."""
    return _FORMATS[dtype].width if dtype in _FORMATS and dtype != "C64" else None


def values_up_to(dtype: str, count: int, largest: int, same: int | None) -> Values | None:
    """Summarise elements by their largest pattern, without the sign, and the one all of them share.

    None if they must be looked at one by one. ``dtype`` has a :func:`width_of` a number.
    """
    if largest >= _FORMATS[dtype].large:
        return None
    return Values(count, zero=not largest, constant=same)


def values_of_pieces(tensor: Stored, seen: Mapping[TensorRef, Values]) -> Values:
    """Combine the values of a tensor's pieces; positions become those in the whole tensor."""
    if isinstance(tensor, TensorRef):
        return seen[tensor]
    sizes = [prod(part.shape) // tensor.runs for part in tensor.parts]
    row, before, total = sum(sizes), 0, Values()
    for part, size in zip(tensor.parts, sizes, strict=True):
        assert isinstance(part, TensorRef | Pieces)  # noqa: S101 - what is stored is not converted
        own = values_of_pieces(part, seen)
        total += own.moved(partial(_in_row, size, row, before))
        before += size
    return total


def _in_row(size: int, row: int, before: int, position: int) -> int:
    """Return the place of an element of a part whose runs of ``size`` lie in rows of a tensor."""
    run, within = divmod(position, max(size, 1))
    return run * row + before + within


def as_one(tensor: Stored) -> TensorRef:
    """Return a tensor in pieces as if it lay in one place, of the first file, for messages."""
    if isinstance(tensor, TensorRef):
        return tensor
    return TensorRef(refs_of(tensor)[0].source, 0, tensor.dtype, tensor.shape)


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
    # Biases start at zero, norms and scales at one value: only matrices are checked.
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


def _union(bits: Array, sign: int) -> int:
    """Return the bits but the sign that are set in any pattern."""
    return int(np.bitwise_or.reduce(bits)) % sign


def _peak(bits: Array, sign: int) -> int:
    """Return the largest pattern without its sign, from two maxima and without a copy.

    As signed integers, patterns without the sign bit are larger than those with it; as unsigned
    integers it is the reverse.
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


def places(tensor: TensorRef, position: int, count: int) -> Array | None:
    """Return the indices of the tensor's elements among ``count`` in the file; None for all.

    The result is exact unless strides reach an element in two ways, which no slice, transposition
    or expansion does.
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
    """Return stride, size and number of axes that reach other elements, largest stride first."""
    strides = tensor.strides
    if strides is None:
        strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    axes = zip(strides, tensor.shape, range(len(tensor.shape)), strict=True)
    return sorted((axis for axis in axes if axis[0] and axis[1] > 1), reverse=True)


def _number(dtype: str, bits: int) -> str:
    """Format the number that a bit pattern encodes; the bits if Python does not know the dtype."""
    kinds = {"F64": ("<Q", "<d", 0), "F32": ("<I", "<f", 0), "BF16": ("<I", "<f", 16)}
    kinds |= {"F16": ("<H", "<e", 0), "F8_E5M2": ("<H", "<e", 8)}
    if dtype not in kinds:
        return f"the bits {bits:#x}"
    whole, real, shift = kinds[dtype]
    return f"{unpack(real, pack(whole, bits << shift))[0]:.6g}"
