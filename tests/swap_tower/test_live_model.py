"""A swap is what the live model becomes whose vision modules are initialised anew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.swap_tower.inputs import FAMILIES, tower_at
from vita_ckpt import load_model, plan_swap_tower

TYPES = ("linear", "mlp2x_gelu", "mlp3x_gelu", "sppv1", "ldp", "vanilla", "minigpt", "identity")
VISION_KEYS = (
    "mm_vision_tower",
    "mm_hidden_size",
    "mm_projector_type",
    "use_mm_proj",
    "use_s2",
    "s2_scales",
)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_is_what_the_live_model_becomes(
    tmp_path: Path, base: Path, family: str, kind: str
) -> None:
    """The live side is read from the modules that were built, not from any table."""
    width = 4 if family == "internvit" and kind == "identity" else 16
    tower = tower_at(tmp_path, family, width=width)
    plan = plan_swap_tower(base, tower, projector="reinit", projector_type=kind)
    target = plan.target()
    model = load_model(base, device="cpu")
    model.initialize_vision_modules(
        SimpleNamespace(
            vision_tower=str(tower),
            mm_projector_type=kind,
            pretrain_mm_mlp_adapter=None,
            use_s2=False,
        )
    )
    state = model.state_dict()
    live = {stored: tuple(state[name].shape) for name, stored in model.stored_names().items()}
    assert {name: tensor.shape for name, tensor in target.tensors.items()} == live
    for key in VISION_KEYS:
        assert (target.config or {}).get(key) == model.config.get(key), key
    written = load_model(target, device="cpu").vision_tower
    assert written is not None
    assert model.vision_tower is not None
    values = written.state_dict()
    for name, tensor in model.vision_tower.state_dict().items():
        assert torch.equal(values[name], tensor), name
