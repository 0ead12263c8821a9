"""What torch.distributed.checkpoint saves, against what was given to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
from torch.distributed.checkpoint.state_dict_saver import save

from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.training.state import open_training_state
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["TORCH_SAVE", "SAFETENSORS"])
def test_tensors_of_one_shape_are_told_apart(tmp_path: Path, format: str) -> None:
    model = {f"layers.{i}.weight": torch.randn(3, 4) for i in range(5)}
    model |= {f"x.{dtype}": torch.ones(2, 2).to(dtype) for dtype in DTYPES}
    model |= {"scalar": torch.tensor(7), "last": torch.randn(6)}
    state: dict[str, Any] = {"model": model}
    if format == "TORCH_SAVE":  # the other holds nothing but tensors
        state |= {"step": 3, "extra": {"list": [1, {"a": torch.ones(2)}]}}
    writer = FileSystemWriter(tmp_path / "s", serialization_format=SerializationFormat[format])
    save(state, storage_writer=writer, no_dist=True)
    opened = open_training_state(tmp_path / "s", Stores())
    assert opened.tensors.keys() == model.keys()
    with Inputs() as inputs:
        for name, tensor in model.items():
            found = b"".join(tensor_bytes(opened.tensors[name], inputs, name))
            assert opened.tensors[name].shape == tuple(tensor.shape)
            assert found == tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), name
