"""Compare float32 masters, rounded, with the copies that the model ran with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vita_ckpt.core.checkpoint import Pieces, Tensor, TensorRef, parts_of
from vita_ckpt.core.dtype import BITS
from vita_ckpt.storage.tensors.cast import BecomesInfiniteError, convert
from vita_ckpt.storage.tensors.stream import Inputs, Progress, no_progress, tensor_bytes

# A sample is the first and the last elements of a tensor: a wrong layout shifts one of them.
_SAMPLED: Final = 512

_NUMPY: Final = {"F32": "<f4", "F16": "<f2"}


def differing_in_sample(
    pairs: Mapping[str, tuple[Tensor, TensorRef]], read: Callable[[TensorRef], bytes]
) -> dict[str, int]:
    """Return which masters do not round to their copies, and the first element that does not.

    The first and the last elements of each tensor are compared, which ``read`` returns; views that
    are not contiguous are passed over. NaN equals NaN; a value beyond the range of the copy's dtype
    rounds to infinity.
    """
    found: dict[str, int] = {}
    for name, (master, copy) in pairs.items():
        if not (_is_flat(master) and _is_flat(copy)):
            continue
        elements = prod(master.shape)
        count = min(_SAMPLED, elements)
        for start in dict.fromkeys((0, elements - count)):
            one, other = (
                b"".join(read(ref) for ref in _slices(side, start, count))
                for side in (master, copy)
            )
            first = _first_difference(one, other, master.dtype, copy.dtype)
            if first is not None:
                found.setdefault(name, start + first)
    return found


def differing_copies(
    pairs: Mapping[str, tuple[Tensor, TensorRef]], progress: Progress = no_progress
) -> dict[str, int]:
    """Return what :func:`differing_in_sample` does, from all elements of tensors on this disk.

    ``progress`` is called with the bytes of the masters as they are compared.
    """
    found: dict[str, int] = {}
    with Inputs() as inputs:
        for name, (master, copy) in pairs.items():
            for start, one, other in _blocks(name, master, copy, inputs):
                first = _first_difference(one, other, master.dtype, copy.dtype)
                progress(len(one))
                if first is not None:
                    found[name] = start + first
                    break
    return found


def _is_flat(tensor: Tensor) -> bool:
    if isinstance(tensor, Pieces):
        return tensor.runs == 1 and all(map(_is_flat, tensor.parts))
    return isinstance(tensor, TensorRef) and tensor.strides is None


def _slices(tensor: Tensor, start: int, count: int) -> Iterator[TensorRef]:
    """Yield the ranges of a flat tensor that hold ``count`` elements from ``start`` on."""
    position = 0
    for part in parts_of(tensor):
        assert isinstance(part, TensorRef)  # noqa: S101 - the tensor is flat
        size = prod(part.shape)
        low, high = max(start, position), min(start + count, position + size)
        if low < high:
            offset = part.offset + (low - position) * BITS[part.dtype] // 8
            yield TensorRef(part.source, offset, part.dtype, (high - low,))
        position += size


def _blocks(
    name: str, master: Tensor, copy: TensorRef, inputs: Inputs
) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield blocks of both sides: the first element of each, and their bytes."""
    widths = [BITS[side.dtype] // 8 for side in (master, copy)]
    streams = [tensor_bytes(side, inputs, name) for side in (master, copy)]
    rests = [bytearray(), bytearray()]
    position, elements = 0, prod(master.shape)
    while position < elements:
        for stream, rest in zip(streams, rests, strict=True):
            if not rest:
                rest.extend(next(stream))
        count = min(len(rest) // width for rest, width in zip(rests, widths, strict=True))
        blocks = [bytes(rest[: count * w]) for rest, w in zip(rests, widths, strict=True)]
        for rest, width in zip(rests, widths, strict=True):
            del rest[: count * width]
        yield position, blocks[0], blocks[1]
        position += count


def _first_difference(master: bytes, copy: bytes, dtype: str, copy_dtype: str) -> int | None:
    try:
        rounded = convert(master, dtype, copy_dtype)
        if rounded == copy:
            return None
    except BecomesInfiniteError:
        rounded = None
    wide = np.frombuffer(master, _NUMPY[dtype])
    there = np.frombuffer(copy, f"<u{BITS[copy_dtype] // 8}")
    if rounded is not None:
        ours = np.frombuffer(rounded, there.dtype)
        differ = (ours != there) & ~(np.isnan(wide) & _is_nan(there, copy_dtype))
    else:
        differ = _with_infinities(wide, copy_dtype) != _values(there, copy_dtype)
        differ &= ~(np.isnan(wide) & _is_nan(there, copy_dtype))
    places = np.flatnonzero(differ)
    return int(places[0]) if places.size else None


def _values(bits: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":
        wide: npt.NDArray[Any] = (bits.astype("<u4") << 16).view("<f4")
        return wide
    return bits.view(_NUMPY[dtype])


def _is_nan(bits: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.isnan(_values(bits, dtype))
    return found


def _with_infinities(wide: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return float32 values rounded to a narrower dtype, beyond whose range they are infinite."""
    with np.errstate(all="ignore"):
        if dtype == "F16":
            return wide.astype("<f2")
        bits = wide.view("<u4")
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16 << 16
        whole: npt.NDArray[Any] = rounded.astype("<u4").view("<f4")
        return whole
