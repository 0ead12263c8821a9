"""Distributions, against the same counts from the values that torch reads."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import random_fill, write_safetensors
from vita_ckpt import open_checkpoint
from vita_ckpt.api.distribution import distributions
from vita_ckpt.checks.distribution import Distribution, distribution_of
from vita_ckpt.core.checkpoint import LocalFile, TensorRef

FILE = LocalFile("x", 1 << 20, 0, "")
TORCH = {
    "F64": (torch.float64, torch.int64),
    "F32": (torch.float32, torch.int32),
    "BF16": (torch.bfloat16, torch.int16),
    "F16": (torch.float16, torch.int16),
    "F8_E5M2": (torch.float8_e5m2, torch.uint8),
    "F8_E4M3": (torch.float8_e4m3fn, torch.uint8),
}


def counted(values: list[float]) -> Distribution:
    finite = [abs(value) for value in values if math.isfinite(value)]
    exponents = Counter(math.frexp(value)[1] - 1 for value in finite if value)
    return Distribution(
        elements=len(values),
        zeros=finite.count(0.0),
        nan=sum(map(math.isnan, values)),
        infinite=sum(map(math.isinf, values)),
        largest=max(finite, default=0.0),
        exponents=exponents,
    )


@pytest.mark.parametrize("dtype", TORCH)
@given(data=st.data())
def test_any_bits_are_counted_as_their_values_are(dtype: str, data: st.DataObject) -> None:
    real, whole = TORCH[dtype]
    width = torch.empty(0, dtype=whole).element_size()
    raw = data.draw(st.binary(min_size=width, max_size=64 * width))
    raw = raw[: len(raw) // width * width]
    tensor = torch.frombuffer(bytearray(raw), dtype=whole).view(real)
    ref = TensorRef(FILE, 0, dtype, (len(raw) // width,))
    assert distribution_of(ref, memoryview(raw), 0) == counted(tensor.double().tolist())


def test_every_half_and_byte_is_counted() -> None:
    for dtype, (real, whole) in TORCH.items():
        width = torch.empty(0, dtype=whole).element_size()
        if width <= 2:
            raw = b"".join(n.to_bytes(width, "little") for n in range(256**width))
            tensor = torch.frombuffer(bytearray(raw), dtype=whole).view(real)
            ref = TensorRef(FILE, 0, dtype, (256**width,))
            assert distribution_of(ref, memoryview(raw), 0) == counted(tensor.double().tolist())


def test_pieces_add_up(tmp_path: Path) -> None:
    values = [0.0, -0.0, 1.0, 3.0, -0.5, float("inf"), float("nan"), 1e-40]
    raw = torch.tensor(values).numpy().tobytes()
    ref = TensorRef(FILE, 0, "F32", (8,))
    whole = distribution_of(ref, memoryview(raw), 0)
    parts = [distribution_of(ref, memoryview(raw)[n : n + 4], n // 4) for n in range(0, 32, 4)]
    assert sum(parts, Distribution()) == whole == counted(torch.tensor(values).tolist())
    assert whole.typical == 2.0**-133
    assert Distribution().typical is None
    assert counted([0.0, 0.0, 1.0]).typical is None
    assert counted([1.5, 2.5, 9.0]).typical == 2.0


def test_a_checkpoint_is_counted_by_part(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    torch.save(
        {
            "model.layers.0.a": shared[:, 1],  # bytes between its elements are another tensor's
            "model.mm_projector.0.weight": shared.t().half().bfloat16(),
            "model.mm_projector.steps": torch.arange(5),
            "lm_head.weight": shared.expand(2, 3, 4),
        },
        tmp_path / "w.bin",
    )
    found = distributions(tmp_path / "w.bin")
    assert found["language_model"] == counted([1.0, 5.0, 9.0]) + counted(shared.flatten().tolist())
    assert found["mm_projector"].elements == 12
    assert found["mm_projector"].uncounted == 5
    write_safetensors(tmp_path / "x.safetensors", {"a": ("F32", (1 << 20,))}, random_fill("F32"))
    read = distributions(open_checkpoint(tmp_path / "x.safetensors"))["other"]
    assert read.elements == 1 << 20 == read.zeros + sum(read.exponents.values())
