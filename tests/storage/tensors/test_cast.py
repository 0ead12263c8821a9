"""Conversions equal torch's, bit for bit, on every edge pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.dtype import CAST_SOURCES, CAST_TARGETS, can_cast
from vita_ckpt.storage.tensors.cast import BecomesInfiniteError, convert, gather

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
UNSIGNED = {8: np.uint64, 4: np.uint32, 2: np.uint16}
PAIRS = [(s, t) for s in CAST_SOURCES for t in CAST_TARGETS if s != t]

# torch's vectorised kernels handle blocks of this many elements; its scalar tail gives other NaNs.
BLOCK = 64


def by_torch(data: bytes, source: str, target: str) -> bytes:
    values = torch.frombuffer(bytearray(data), dtype=TORCH[source])
    return bytes(values.to(TORCH[target]).view(torch.uint8).numpy())


def edge_patterns(dtype: str) -> np.ndarray:
    """Every 16-bit pattern, or the neighbourhood of every exponent with both signs."""
    if dtype in ("F16", "BF16"):
        return np.arange(1 << 16, dtype=np.uint16)
    bits, mantissa = (32, 23) if dtype == "F32" else (64, 52)
    kind = UNSIGNED[bits // 8]
    exponents = np.arange(1 << (bits - mantissa), dtype=np.uint64) << np.uint64(mantissa)
    tails = {0, 1, 2, (1 << mantissa) - 1, 1 << (mantissa - 1), (1 << (mantissa - 1)) + 1}
    for bit in range(mantissa):
        tails |= {
            1 << bit,
            (1 << bit) - 1,
            (1 << mantissa) - (1 << bit),
            (3 << bit) % (1 << mantissa),
        }
    offsets = np.array(sorted(tails), dtype=np.uint64)
    return (exponents[:, None] | offsets[None, :]).ravel().astype(kind)


def without_overflow(patterns: np.ndarray, source: str, target: str) -> np.ndarray:
    """The patterns that do not turn from finite to infinite; padded to whole blocks."""
    values = torch.from_numpy(patterns.view(f"i{patterns.itemsize}").copy()).view(TORCH[source])
    kept = patterns[~(torch.isfinite(values) & torch.isinf(values.to(TORCH[target]))).numpy()]
    return np.resize(kept, -(-len(kept) // BLOCK) * BLOCK)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_all_edge_patterns_equal_torch(source: str, target: str) -> None:
    data = without_overflow(edge_patterns(source), source, target).tobytes()
    assert convert(data, source, target) == by_torch(data, source, target)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@given(data=st.data())
def test_random_patterns_equal_torch(source: str, target: str, data: st.DataObject) -> None:
    width = TORCH[source].itemsize
    raw = data.draw(st.binary(min_size=width * BLOCK, max_size=width * BLOCK))
    patterns = without_overflow(np.frombuffer(raw, UNSIGNED[width]), source, target)
    if len(patterns):
        assert convert(patterns.tobytes(), source, target) == by_torch(
            patterns.tobytes(), source, target
        )


@pytest.mark.parametrize(
    ("source", "target", "value"),
    [
        ("F32", "F16", 65520.0),
        ("F32", "F16", -1e30),
        ("BF16", "F16", 66048.0),
        ("F64", "F32", 1e39),
        ("F64", "BF16", 3.4e38),
        ("F32", "BF16", 3.4e38),
    ],
)
def test_a_finite_value_never_becomes_infinite(source: str, target: str, value: float) -> None:
    raw = torch.tensor([1.0, value, 0.0], dtype=TORCH[source]).view(torch.uint8).numpy().tobytes()
    with pytest.raises(BecomesInfiniteError) as error:
        convert(raw, source, target)
    assert error.value.index == 1
    assert error.value.value == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_infinity_itself_is_kept(source: str, target: str) -> None:
    raw = torch.tensor([float("inf"), -float("inf")] * 32, dtype=TORCH[source])
    data = raw.view(torch.uint8).numpy().tobytes()
    assert convert(data, source, target) == by_torch(data, source, target)


def test_the_largest_half_is_not_an_overflow() -> None:
    data = np.array([65504.0, 65519.996], dtype="<f4").tobytes()
    assert np.frombuffer(convert(data, "F32", "F16"), "<f2").tolist() == [65504.0, 65504.0]


def test_undefined_conversions_are_refused() -> None:
    assert not can_cast("I64", "F32")
    assert can_cast("I64", "I64")
    with pytest.raises(KeyError):
        convert(bytes(8), "I64", "BF16")


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    order=st.permutations(range(3)),
    width=st.sampled_from([1, 2, 4, 8]),
)
def test_gather_is_numpys_own_view(shape: list[int], order: list[int], width: int) -> None:
    axes = [axis for axis in order if axis < len(shape)]
    whole = np.arange(np.prod(shape), dtype=f"<u{width}").reshape(shape)
    view = whole.transpose(axes)
    strides = tuple(stride // width for stride in view.strides)
    for step in (1, 3 * width, 1 << 20):
        pieces = gather(whole.tobytes(), width, view.shape, strides, step)
        assert b"".join(pieces) == view.tobytes()


def test_integers_become_float32_as_torch_makes_them() -> None:
    numbers = np.array([0, -1, 4, 2**24 + 1, 2**62 + 12345], "<i8")
    wanted = torch.from_numpy(numbers).float().numpy().tobytes()
    assert convert(numbers.tobytes(), "I64", "F32") == wanted
    assert convert(b"\x00\x01", "BOOL", "F32") == np.array([0, 1], "<f4").tobytes()
