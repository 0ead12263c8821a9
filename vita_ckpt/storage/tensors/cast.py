"""Convert floating dtypes over raw little-endian bytes, bit for bit as torch's ``Tensor.to``.

Rounding is to nearest, ties to even; subnormals are kept. NaNs follow torch's vectorised x86
kernels: a NaN of F32 becomes 0xffff in BF16, a NaN of F16 becomes 0x7fc0 in BF16, and every other
conversion keeps sign and leading payload bits and sets the quiet bit. (torch's scalar tail, the
last elements of a tensor whose size is not a multiple of the vector width, gives other NaNs; finite
values and infinities never differ.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.dtype import INTEGERS, can_cast

Array = npt.NDArray[Any]

_NUMPY: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_HALVES: Final = ("F16", "BF16")
_INFINITY: Final = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_MAGNITUDE: Final = {"F32": 0x7FFFFFFF, "F16": 0x7FFF, "BF16": 0x7FFF}
# The dtypes between which a value that is not zero may become zero.
_NARROWER: Final = frozenset(
    {("F64", "F32"), ("F64", "F16"), ("F64", "BF16")}
    | {("F32", "F16"), ("F32", "BF16"), ("BF16", "F16")}
)
_INTEGERS: Final = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "u1"}


class BecomesInfiniteError(ValueError):
    """A finite value has no finite counterpart in the target dtype."""

    def __init__(self, index: int, value: float) -> None:
        super().__init__(f"{value:g} at element {index}")
        self.index = index
        self.value = value


def convert(data: bytes, source: str, target: str) -> bytes:
    """Return the elements in ``data`` converted from one dtype to another (safetensors codes).

    Integers become float32, rounded to nearest. Raises BecomesInfiniteError where a finite value
    would turn into infinity, and KeyError for any other pair of dtypes that
    :func:`~vita_ckpt.core.dtype.can_cast` rejects.
    """
    if source == target:
        return data
    if source in INTEGERS and target == "F32":
        return np.frombuffer(data, _INTEGERS[source]).astype("<f4").tobytes()
    if not can_cast(source, target):
        raise KeyError((source, target))
    values = np.frombuffer(data, _NUMPY[source])
    if source == "BF16" and target == "F32":
        widened = values.astype("<u4")
        widened <<= 16
        wide: bytes = widened.tobytes()
        return wide
    if source in _HALVES:
        result = _table(source, target)[values.view("<u2")]
    else:
        with np.errstate(all="ignore"):
            result = _rounded(_to_f32(values, source), target)
    _refuse_infinite(values, result, source, target)
    converted: bytes = result.tobytes()
    return converted


def most(dtype: str) -> float:
    """Return the largest finite value of a dtype that is converted to."""
    if dtype == "BF16":
        return float(np.uint32(0x7F7F0000).view(np.float32))
    return float(np.finfo(_NUMPY[dtype]).max)


def count_flushed(data: bytes, converted: bytes, source: str, target: str) -> int:
    """Return how many values of ``data`` that are not zero are zero in ``converted``."""
    if (source, target) not in _NARROWER:
        return 0
    zeros = _count_zeros(converted, target)
    return zeros - _count_zeros(data, source) if zeros else 0


def to_f64(data: bytes, dtype: str) -> Array:
    """Return the elements in ``data`` in float64."""
    values = np.frombuffer(data, _NUMPY[dtype])
    wide: Array = (_to_f32(values, dtype) if dtype == "BF16" else values).astype("<f8")
    return wide


def gather(
    data: bytes, width: int, shape: tuple[int, ...], strides: tuple[int, ...], step: int
) -> Iterator[bytes]:
    """Yield a strided view as contiguous bytes, in pieces of at most about ``step`` bytes.

    ``data`` starts at element 0 of the view and holds everything the view reaches. ``width`` is
    bytes per element (1, 2, 4 or 8), ``strides`` are in elements. A view may be far larger than its
    data.
    """
    elements = np.frombuffer(data, f"<u{width}")
    steps = [stride * width for stride in strides]
    view = np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)
    yield from _pieces(view, max(step // width, 1))


def _pieces(view: Array, most: int) -> Iterator[bytes]:
    if view.size <= most or view.ndim == 0:
        yield view.tobytes()
        return
    rows = most // (view.size // len(view))
    if rows:
        for start in range(0, len(view), rows):
            yield view[start : start + rows].tobytes()
    else:
        for row in view:
            yield from _pieces(row, most)


@cache
def _table(source: str, target: str) -> Array:
    """Return what every pattern of 16 bits becomes: to look it up is quicker."""
    patterns = np.arange(1 << 16, dtype="<u2").view(_NUMPY[source])
    with np.errstate(all="ignore"):
        wide = _to_f32(patterns, source)
        return _rounded(wide, target, 0x7FC0 if source == "F16" else 0xFFFF)


def _rounded(wide: Array, target: str, nan: int = 0xFFFF) -> Array:
    """Return the patterns of float32 values in another dtype; ``nan`` is that of BF16's NaN."""
    if target == "F32":
        bits: Array = wide.view("<u4")
        return bits
    return _f32_to_bf16(wide, nan) if target == "BF16" else _f32_to_f16(wide)


def _refuse_infinite(values: Array, result: Array, source: str, target: str) -> None:
    """Raise BecomesInfiniteError if a finite value has become infinite."""
    infinity = _INFINITY[target]
    infinite = (result & _MAGNITUDE[target]) == infinity
    if not infinite.any():
        return
    bits = values.view(f"<u{values.itemsize}")
    is_finite = np.isfinite(values) if source != "BF16" else (bits & 0x7F80) != 0x7F80
    lost = np.flatnonzero(infinite & is_finite)
    if lost.size:
        index = int(lost[0])
        value = values[index] if source != "BF16" else _to_f32(values[index : index + 1], source)[0]
        raise BecomesInfiniteError(index, float(value))


def _count_zeros(data: bytes, dtype: str) -> int:
    width = np.dtype(_NUMPY[dtype]).itemsize
    bits = np.frombuffer(data, f"<u{width}")
    return bits.size - int(np.count_nonzero(bits & ((1 << (8 * width - 1)) - 1)))


def _to_f32(values: Array, source: str) -> Array:
    if source == "BF16":
        bits: Array = values.astype("<u4") << 16
        wide: Array = bits.view("<f4")
        return wide
    wide = values.astype("<f4") if source != "F32" else values
    if source == "F16":
        bits = wide.view("<u4")
        bits[np.isnan(values)] |= 0x00400000
    return wide


def _f32_to_bf16(values: Array, nan: int) -> Array:
    bits = values.view("<u4")
    # Adding half of the last kept bit, less one unless that bit is odd, rounds to nearest even.
    sums = bits >> 16
    sums &= 1
    sums += 0x7FFF
    sums += bits
    sums >>= 16
    rounded: Array = sums.astype("<u2")
    rounded[np.isnan(values)] = nan
    return rounded


def _f32_to_f16(values: Array) -> Array:
    result = values.astype("<f2").view("<u2")
    nans = np.isnan(values)
    bits = values.view("<u4")[nans]
    result[nans] = ((bits >> 16) & 0x8000) | 0x7E00 | ((bits >> 13) & 0x3FF)
    return result
