"""Bytes that two threads read into reused buffers are those of the file, however they are cut."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vita_ckpt import MalformedFileError, open_checkpoint
from vita_ckpt.model.staging import Source, staged
from vita_ckpt.model.weights import TORCH_DTYPES, Weights

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    torch.manual_seed(0)
    made: Tensors = {f"t{n}": torch.randn(n * 37, 5) for n in range(12)}  # the first is empty
    return {
        **made,
        "bf16": torch.randn(333).bfloat16(),
        "scalar": torch.tensor(2.5),
        "bool": torch.rand(99) > 0.5,
        "ids": torch.arange(50),
    }


@pytest.fixture
def wanted(tmp_path: Path, tensors: Tensors) -> Iterator[list[tuple[Source, torch.Tensor]]]:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    refs = open_checkpoint(path).refs
    descriptor = os.open(path, os.O_RDONLY)
    yield [
        (
            Source(descriptor, str(path), refs[name].offset),
            torch.empty(refs[name].shape, dtype=TORCH_DTYPES[refs[name].dtype]),
        )
        for name in tensors
    ]
    os.close(descriptor)


@pytest.mark.parametrize("step", [1, 64, 1000, 1 << 20])
def test_every_tensor_arrives_in_order(
    wanted: list[tuple[Source, torch.Tensor]], tensors: Tensors, step: int
) -> None:
    if step == 1:  # one byte at a time is slow
        wanted, tensors = wanted[-2:], dict(list(tensors.items())[-2:])
    for found, expected in zip(staged(wanted, step), tensors.values(), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_file_that_ends_too_early(wanted: list[tuple[Source, torch.Tensor]]) -> None:
    os.truncate(wanted[0][0].path, 5000)
    with pytest.raises(MalformedFileError, match="truncated-file"):
        list(staged(wanted, 64))


def test_no_thread_is_left_when_nobody_takes_the_rest(
    wanted: list[tuple[Source, torch.Tensor]],
) -> None:
    before = threading.active_count()
    arriving = staged(wanted, 64)
    next(arriving)
    del arriving
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same(tmp_path: Path, tensors: Tensors) -> None:
    device = torch.device("cuda", 0)
    large = {**tensors, "large": torch.randn(40 << 20)}  # more than all buffers together
    save_file(large, tmp_path / "x.safetensors")
    with Weights(open_checkpoint(tmp_path / "x.safetensors")) as weights:
        found = list(weights.on_devices((name, device) for name in large))
    assert {name for (name, _), _ in found} == set(large)
    for (name, _), tensor in found:
        assert tensor.device == device
        assert torch.equal(tensor.cpu(), large[name])
