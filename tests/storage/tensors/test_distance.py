"""The values of every dtype are torch's, and distances are what torch computes in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.distance import Distance
from vita_ckpt.storage.tensors.distance import Meter
from vita_ckpt.storage.tensors.native import BLOCK

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
INTEGERS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
}
DTYPES = FLOATS | INTEGERS | {"C64": torch.complex64}


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy())


def tensor_of(data: bytes, dtype: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(DTYPES[dtype])


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The values in float64 (or complex128), by torch."""
    if tensor.dtype is torch.complex64:
        return tensor.to(torch.complex128)
    return tensor.to(torch.float32).double() if tensor.element_size() == 1 else tensor.double()


def drawn(dtype: str, seed: int, count: int = 1000) -> torch.Tensor:
    """Random values: small ones of a float, the whole range of an integer."""
    generator = torch.Generator().manual_seed(seed)
    kind = DTYPES[dtype]
    if dtype in INTEGERS:
        width = torch.zeros((), dtype=kind).element_size()
        data = torch.randint(0, 256, (count * width,), generator=generator, dtype=torch.uint8)
        return (data % 2 if kind is torch.bool else data).view(kind)
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    if kind is torch.complex64:
        return torch.complex(values, values.flip(0)).to(kind)
    return values.float().to(kind) if kind.itemsize == 1 else values.to(kind)


def check(found: Distance, before: torch.Tensor, after: torch.Tensor) -> None:
    """Against torch, over what is finite on both sides."""
    old, new = wide(before), wide(after)
    finite = torch.isfinite(old) & torch.isfinite(new)
    assert found.elements == len(old)
    assert found.nonfinite_before == int((~torch.isfinite(old)).sum())
    assert found.nonfinite_after == int((~torch.isfinite(new)).sum())
    other = ~((old == new) | (torch.isnan(old) & torch.isnan(new)))
    assert found.changed == int(other.sum())
    old, new = old[finite], new[finite]
    assert found.max_abs == pytest.approx(float((new - old).abs().max()), rel=1e-12)
    relative = float((new - old).norm() / old.norm())
    assert found.relative_l2 == pytest.approx(relative, rel=1e-9)
    cosine = float(torch.vdot(old, new).real / (old.norm() * new.norm()))
    assert found.cosine == pytest.approx(cosine, abs=1e-9)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_every_bit_pattern_has_torchs_value(dtype: str) -> None:
    count = 256 if FLOATS[dtype].itemsize == 1 else 1 << 16
    width = FLOATS[dtype].itemsize
    bits = np.arange(count, dtype=f"u{width}")
    bits <<= np.array(max(8 * width - 16, 0), bits.dtype)  # of a wide dtype the upper half
    values = wide(tensor_of(bits.tobytes(), dtype)).numpy()
    with np.errstate(invalid="ignore"):
        found = Meter()._values(bits.tobytes(), dtype, np.empty(count))
    assert np.array_equal(found, values, equal_nan=True)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_distances_are_torchs(dtype: str) -> None:
    before, after = drawn(dtype, 1), drawn(dtype, 2)
    check(Meter().distance(raw(before), raw(after), (dtype, dtype)), before, after)


@pytest.mark.parametrize(
    "dtypes",
    [
        ("F32", "BF16"),
        ("F16", "F8_E4M3"),
        ("BF16", "F64"),
        ("F32", "C64"),
        ("I8", "F32"),
        ("U8", "I16"),
        ("BOOL", "U8"),
        ("I64", "I32"),
        ("U16", "BF16"),
    ],
)
def test_two_dtypes(dtypes: tuple[str, str]) -> None:
    before, after = drawn(dtypes[0], 3), drawn(dtypes[1], 4)
    found = Meter().distance(raw(before), raw(after), dtypes)
    if "C64" in dtypes:
        before = before.to(torch.complex64)
    check(found, before, after)


def test_a_conversion_is_no_change_of_value() -> None:
    half = drawn("BF16", 5)
    found = Meter().distance(raw(half), raw(half.float()), ("BF16", "F32"))
    assert (found.changed, found.max_abs, found.relative_l2, found.cosine) == (0, 0, 0, 1)


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))))
def test_integers_are_exact(pairs: list[tuple[int, int]]) -> None:
    pairs.append((2**62 + 1, 2**62))
    before, after = (np.array(side, "<i8") for side in zip(*pairs, strict=True))
    found = Meter().distance(before.tobytes(), after.tobytes(), ("I64", "I64"))
    assert found.max_abs == float(max(abs(new - old) for old, new in pairs))
    assert found.changed == sum(old != new for old, new in pairs)


def test_unsigned_beside_signed() -> None:
    before, after = np.array([2**64 - 2, 0], "<u8"), np.array([-2, 5], "<i8")
    found = Meter().distance(before.tobytes(), after.tobytes(), ("U64", "I64"))
    assert (found.max_abs, found.changed) == (float(2**64), 2)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E5M2"])
def test_nan_and_infinities_are_counted_and_left_out(dtype: str) -> None:
    inf, nan = math.inf, math.nan
    pairs = [(1, 2), (nan, nan), (inf, inf), (-inf, inf), (nan, 1), (1, nan), (2, inf), (3, 3)]
    before, after = (
        torch.tensor(side, dtype=torch.float32).to(DTYPES[dtype])
        for side in zip(*pairs, strict=True)
    )
    found = Meter().distance(raw(before), raw(after), (dtype, dtype))
    check(found, before, after)
    assert (found.changed, found.nonfinite_before, found.nonfinite_after) == (5, 4, 5)
    assert (found.max_abs, found.delta, found.before, found.dot) == (1, 1, 10, 11)
    same = Meter().distance(raw(before), raw(before), (dtype, dtype))
    assert (same.elements, same.changed, same.max_abs, same.cosine) == (8, 0, 0, 1)
    assert (same.nonfinite_before, same.nonfinite_after, same.before) == (4, 4, 1 + 1 + 4 + 9)


def test_figures_that_are_not_defined() -> None:
    zero, one = np.zeros(4, "<f4").tobytes(), np.ones(4, "<f4").tobytes()
    grown = Meter().distance(zero, one, ("F32", "F32"))
    assert (grown.max_abs, grown.relative_l2, grown.cosine) == (1, None, None)
    died = Meter().distance(one, zero, ("F32", "F32"))
    assert (died.relative_l2, died.cosine) == (1, None)
    huge = np.full(4, 1e200, "<f8").tobytes()
    overflown = Meter().distance(huge, np.full(4, -1e200, "<f8").tobytes(), ("F64", "F64"))
    assert (overflown.max_abs, overflown.relative_l2, overflown.cosine) == (2e200, None, None)
    assert (Distance().relative_l2, Distance().cosine) == (0, 1)


def test_minus_zero_is_zero() -> None:
    before, after = np.array([0.0, 1], "<f4"), np.array([-0.0, 1], "<f4")
    found = Meter().distance(before.tobytes(), after.tobytes(), ("F32", "F32"))
    assert (found.changed, found.max_abs) == (0, 0)


def test_distances_add_up() -> None:
    before, after = drawn("F32", 6, 3 * BLOCK // 2), drawn("F32", 7, 3 * BLOCK // 2)
    meter, dtypes = Meter(), ("F32", "F32")
    pieces = [(0, BLOCK), (BLOCK, 3 * BLOCK // 2)]
    found = sum(
        (meter.distance(raw(before[a:b]), raw(after[a:b]), dtypes) for a, b in pieces), Distance()
    )
    check(found, before, after)
    both = torch.cat([before, before]), torch.cat([after, after])
    check(found.times(2), *both)
