"""List element types by their safetensors code, with their widths in bits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import UsageError

BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# Names that users and torch give the dtypes in which a projector can be written.
SPELLINGS: dict[str, str] = {
    "f32": "F32",
    "fp32": "F32",
    "float32": "F32",
    "float": "F32",
    "f16": "F16",
    "fp16": "F16",
    "float16": "F16",
    "half": "F16",
    "bf16": "BF16",
    "bfloat16": "BF16",
}

# The dtypes between which conversion is defined; ``storage.tensors.cast`` implements it.
CAST_SOURCES = ("F64", "F32", "F16", "BF16")
CAST_TARGETS = ("F32", "F16", "BF16")

# Integers, of which only training state asks for float32: as torch's ``Tensor.float`` makes it.
INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")

# Dtypes smaller than a byte; the format does not define the order of elements in a byte.
PACKED = ("F4", "F6_E2M3", "F6_E3M2")

_U64 = 1 << 64


def can_cast(source: str, target: str) -> bool:
    """Return whether a tensor of dtype ``source`` can be converted to dtype ``target``."""
    return source == target or (source in CAST_SOURCES and target in CAST_TARGETS)


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor.

    Raises OverflowError where a 64-bit reader would overflow, even if a later dimension is zero,
    and ValueError where a sub-byte tensor does not end on a byte boundary.
    """
    bits = prod(shape) * BITS[dtype]
    if 0 < bits < _U64 and not bits % 8:  # so is what is computed on the way
        return bits // 8
    elements = 1
    for size in shape:
        elements *= size
        if elements >= _U64:
            raise OverflowError(f"{dtype} {list(shape)} has 2^64 elements or more")
    bits = elements * BITS[dtype]
    if bits >= _U64:
        raise OverflowError(f"{dtype} {list(shape)} needs 2^64 bits or more")
    if bits % 8:
        raise ValueError(f"{dtype} {list(shape)} does not end on a byte")
    return bits // 8


def is_real(dtype: str) -> bool:
    """Return whether elements of this type are real numbers, and neither integers nor complex."""
    return dtype.startswith(("F", "BF"))


def dtype_code(name: str | None) -> str | None:
    """Return safetensors' name of a dtype, however it is spelt. Raises UsageError."""
    if name is None or name in SPELLINGS.values():
        return name
    if name.lower() not in SPELLINGS:
        raise UsageError(
            "unknown-dtype",
            name,
            expected=", ".join(sorted(SPELLINGS)),
            hint=did_you_mean(name, SPELLINGS) or "name one of these",
        )
    return SPELLINGS[name.lower()]
