"""Convert floating dtypes over raw little-endian bytes, bit for bit as torch's ``Tensor.to``.

Rounding is to nearest, ties to even; subnormals are kept. NaNs follow torch's vectorised x86
kernels: a NaN of F32 becomes 0xffff in BF16, a NaN of F16 becomes 0x7fc0 in BF16, and every other
conversion keeps sign and leading payload bits and sets the quiet bit. (torch's scalar tail, the
last elements of a tensor whose size is not a multiple of the vector width, gives other NaNs; finite
values and infinities never differ.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.dtype import INTEGERS, can_cast

Array = npt.NDArray[Any]

_NUMPY: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
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
    with np.errstate(all="ignore"):
        wide = _to_f32(values, source)
        if target == "F32":
            result, infinite = wide, np.isinf(wide)
        elif target == "BF16":
            result = _f32_to_bf16(wide, 0x7FC0 if source == "F16" else 0xFFFF)
            infinite = (result & 0x7FFF) == 0x7F80
        else:
            result = _f32_to_f16(wide)
            infinite = np.isinf(result.view("<f2"))
    finite = np.isfinite(values) if source != "BF16" else (values & 0x7F80) != 0x7F80
    lost = np.flatnonzero(infinite & finite)
    if lost.size:
        index = int(lost[0])
        value = values[index] if source == "F64" else wide[index]
        raise BecomesInfiniteError(index, float(value))
    return result.tobytes()


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
    rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    rounded[np.isnan(values)] = nan
    return rounded


def _f32_to_f16(values: Array) -> Array:
    result = values.astype("<f2").view("<u2")
    nans = np.isnan(values)
    bits = values.view("<u4")[nans]
    result[nans] = ((bits >> 16) & 0x8000) | 0x7E00 | ((bits >> 13) & 0x3FF)
    return result
