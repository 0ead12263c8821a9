"""Names without the levels that wrappers add."""

from __future__ import annotations

import pytest

from vita_ckpt.core.anatomy.wrappers import unwrapped


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.model.norm.weight", "model.norm.weight"),
        (
            "model.layers.3._fsdp_wrapped_module.mlp.up_proj.weight",
            "model.layers.3.mlp.up_proj.weight",
        ),
        ("model.layers.3._checkpoint_wrapped_module.mlp.b", "model.layers.3.mlp.b"),
        ("base_model.model.model.norm.weight", "model.norm.weight"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("base_model.norm.weight", "base_model.norm.weight"),
        ("lm_head.modules_to_save.other.weight", "lm_head.modules_to_save.other.weight"),
        ("lm_head.original_module.weight", "lm_head.original_module.weight"),
        ("_orig_mod.module.module.x", "x"),
        ("model.module", "model.module"),  # the tensor itself
        ("module", "module"),
        ("modules.module_list.0.weight", "modules.module_list.0.weight"),
        ("", ""),
    ],
)
def test_levels_of_wrappers_are_removed_wherever_they_are(name: str, own: str) -> None:
    assert unwrapped(name) == own
