"""A surgery makes no checkpoint of which the loader would not bind every tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN
from vita_ckpt import InputError, plan_merge_projector, plan_swap_tower

Tensors = dict[str, np.ndarray]
LAYER = "model.layers.0.self_attn.q_proj.weight"
TOWER = "model.vision_tower.vision_tower."
LEVEL = "vision_model."


def drop(tensors: Tensors) -> None:
    del tensors[LAYER]


def reshape(tensors: Tensors) -> None:
    tensors[LAYER] = tensors[LAYER][:-1]


def compiled(tensors: Tensors) -> None:
    for name in [n for n in tensors if n.startswith("model.layers.")]:
        tensors[name.replace("model.layers.", "model._orig_mod.layers.")] = tensors.pop(name)


def newer_names(tensors: Tensors) -> None:
    for name in [n for n in tensors if n.startswith(TOWER + LEVEL)]:
        tensors[name.replace(TOWER + LEVEL, TOWER)] = tensors.pop(name)


def broken(root: Path, change: Callable[[Tensors], None]) -> Path:
    """A2 with one change."""
    root.mkdir()
    source = GOLDEN / "A2" / "base"
    tensors = dict(load_file(source / "model.safetensors"))
    change(tensors)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (drop, "is missing"),
        (reshape, "is \\[63, 64\\], not|not \\[64, 64\\]|, not \\["),
        (compiled, "torch.compile"),
        (newer_names, "transformers 5.6"),
    ],
)
def test_a_base_that_does_not_bind(
    tmp_path: Path, change: Callable[[Tensors], None], cause: str
) -> None:
    base = broken(tmp_path / "base", change)
    with pytest.raises(InputError, match="weights-do-not-fit") as caught:
        plan_merge_projector(base, GOLDEN / "A2" / "base")
    caught.match(cause)


def test_a_swap_mends_a_tower(tmp_path: Path) -> None:
    """What is removed need not bind: the target does."""
    base = broken(tmp_path / "base", newer_names)
    plan = plan_swap_tower(base, GOLDEN / "A2" / "tower-siglip", projector="keep")
    assert TOWER + LEVEL + "embeddings.patch_embedding.weight" in plan.target().tensors


def test_what_is_unexpected_is_carried(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["my.own.tensor"] = np.ones(3, np.float32)

    base = broken(tmp_path / "base", add)
    assert "my.own.tensor" in plan_merge_projector(base, GOLDEN / "A2" / "base").target().tensors
