"""Forms of checkpoints and files that the builder of the fixtures does not write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vita_ckpt import OnProgress


def while_writing(step: Callable[[int], object]) -> OnProgress:
    """Return what calls ``step`` with the bytes that were written since its last call."""
    before = 0

    def on_progress(what: str, done: int, _total: int) -> None:
        nonlocal before
        if what == "writing":
            if done:
                step(done - before)
            before = done

    return on_progress


def as_bins(root: Path, *, shards: int = 1, legacy: bool = False) -> Path:
    """Turn the safetensors of a checkpoint into ``pytorch_model*.bin``."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(root.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (root / "model.safetensors.index.json").unlink(missing_ok=True)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = (
            f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
            if shards > 1
            else "pytorch_model.bin"
        )
        part = {n: tensors[n] for n in names[number::shards]}
        torch.save(part, root / name, _use_new_zipfile_serialization=not legacy)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (root / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return root


Tensors = dict[str, torch.Tensor]


def change(root: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(root / "model.safetensors")
    edit(tensors)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})


def lively(root: Path) -> Path:
    """Weights of the size that training gives them, so that every input reaches the logits."""

    def redraw(tensors: Tensors) -> None:
        torch.manual_seed(0)
        for name, tensor in sorted(tensors.items()):
            if "norm" in name and name.endswith("weight"):
                tensor.fill_(1.0)
            else:
                tensor.normal_(0, 0.3)

    change(root, redraw)
    return root


class Runs:
    """A pickle that calls something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call
