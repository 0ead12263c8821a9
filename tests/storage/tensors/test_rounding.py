"""Rounding in place equals torch's, bit for bit, for every float32 that stays finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.storage.tensors.rounding import F16, F32, Bf16, Rounding

SIZE = 1 << 12
KINDS: dict[str, tuple[Callable[[int], Rounding], torch.dtype]] = {
    "bf16": (Bf16, torch.bfloat16),
    "f16": (F16, torch.float16),
}


def patterns() -> np.ndarray:
    """Around every exponent of both signs: all upper halves, with lower ones about every tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    return (upper[:, None] | np.array(lower, np.uint32)[None, :]).ravel()


def check(kind: str, values: np.ndarray) -> None:
    """Values one piece at a time: rounded in place, and stored."""
    made, dtype = KINDS[kind]
    rounding = made(SIZE)
    expected = torch.from_numpy(values.copy()).to(dtype)
    for start in range(0, values.size, SIZE):
        piece = values[start : start + SIZE].copy()
        wanted = expected[start : start + SIZE]
        wide = wanted.float().numpy().view("<u4")
        out = np.empty(piece.size, "<u2")
        assert rounding.narrow(piece, out)
        assert (out == wanted.view(torch.int16).numpy().view("<u2")).all()
        assert rounding.round(piece)
        assert (piece.view("<u4") == wide).all()
        assert (rounding.widen(out.view("<f2") if kind == "f16" else out).view("<u4") == wide).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_exponent_and_every_tie(kind: str) -> None:
    values = patterns().view("<f4")
    rounded = torch.from_numpy(values.copy()).to(KINDS[kind][1])
    check(kind, values[torch.isfinite(rounded).numpy()])


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(0, 1 << 32), st.sampled_from([1e-8, 1e-6, 1e-4, 1.0, 1e3]))
def test_random_values(kind: str, seed: int, size: float) -> None:
    drawn = np.random.default_rng(seed).standard_normal(5000, dtype=np.float32)
    check(kind, drawn * np.float32(size))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 65520.0, -65520.0, 3.4e38, -3.4e38])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_told(kind: str, value: float) -> None:
    made, dtype = KINDS[kind]
    rounding = made(SIZE)
    values = np.ones(100, np.float32)
    values[70] = value
    is_finite = bool(torch.isfinite(torch.tensor(value).to(dtype)))
    assert rounding.narrow(values.copy(), np.empty(100, "<u2")) is is_finite
    if kind == "f16":  # BF16 keeps an infinity until it is stored
        assert rounding.round(values) is is_finite


def test_infinities_are_widened() -> None:
    stored = np.array([0x7C00, 0xFC00, 0x7E00, 0x3C00], "<u2")
    wide = F16(SIZE).widen(stored.view("<f2"))
    assert wide[0] == np.inf
    assert wide[1] == -np.inf
    assert np.isnan(wide[2])
    assert wide[3] == 1


def test_float32_stays_as_it_is() -> None:
    values = np.array([1.0, np.inf], np.float32)
    rounding = F32(SIZE)
    assert rounding.round(values)
    assert rounding.widen(values) is values
    assert rounding.narrow(values[:1], values[:1])
    assert not rounding.narrow(values, values)
