"""The projector of a donor by its names: wrappers, other spellings, other families."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fixtures.builder import TowerSpec, tower_config, vision_tower
from vita_ckpt.core.anatomy import projectors
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.checkpoint import Checkpoint, LocalFile, Shard, TensorRef
from vita_ckpt.errors import AdapterError
from vita_ckpt.surgery.donors import projector_of
from vita_ckpt.surgery.projector import plan_extract_projector, plan_merge_projector
from vita_ckpt.surgery.vision.vision_modules import plan_extract_tower

Shapes = dict[str, tuple[int, ...]]
MLP: Shapes = {"0.weight": (4, 6), "0.bias": (4,), "2.weight": (4, 4), "2.bias": (4,)}


def donor(shapes: Shapes, config: dict[str, Any] | None = None) -> Checkpoint:
    file = LocalFile("/donor/x.bin", 1 << 30, 1)
    tensors = {n: TensorRef(file, 256 * i, "F32", s) for i, (n, s) in enumerate(shapes.items())}
    return Checkpoint("/donor", "file", tensors, (Shard("x.bin", file, "torch"),), config)


def named(pattern: str) -> Shapes:
    """The projector with each name put into a pattern."""
    return {pattern.format(*name.split(".")): shape for name, shape in MLP.items()}


PATTERNS = {
    "model.mm_projector.{0}.{1}": (),
    "mm_projector.{0}.{1}": (),
    "module.model.mm_projector.{0}.{1}": ("module",),
    "_orig_mod.model.mm_projector.{0}.{1}": ("_orig_mod",),
    "_orig_mod.module.model.mm_projector.{0}.{1}": ("_orig_mod", "module"),
    "module._orig_mod.model.mm_projector.{0}.{1}": ("_orig_mod", "module"),
    "model.mm_projector._orig_mod.{0}.{1}": ("_orig_mod",),
    "model.mm_projector.module.{0}.{1}": ("module",),
    "model.mm_projector.{0}._orig_mod.{1}": ("_orig_mod",),
    "_fsdp_wrapped_module.model._fsdp_wrapped_module.mm_projector.{0}.{1}": (
        "_fsdp_wrapped_module",
    ),
    "model.mm_projector._checkpoint_wrapped_module.{0}.{1}": ("_checkpoint_wrapped_module",),
    "base_model.model.model.mm_projector.modules_to_save.default.{0}.{1}": (
        "modules_to_save.default",
    ),
    "base_model.model.model.mm_projector.{0}.{1}": (),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_wrappers_are_left_out_of_the_names(pattern: str) -> None:
    found = projector_of(donor(named(pattern)))
    assert {name: t.shape for name, t in found.tensors.items()} == MLP
    assert set(found.origins.values()) == set(named(pattern))
    said = " ".join(found.notes)
    assert all(wrapper in said for wrapper in PATTERNS[pattern])
    assert bool(said) == bool(PATTERNS[pattern])


def test_peft_keeps_an_untrained_copy_that_is_not_taken() -> None:
    base = "base_model.model.model.mm_projector"
    shapes = named(base + ".original_module.{0}.{1}") | named(
        base + ".modules_to_save.default.{0}.{1}"
    )
    found = projector_of(donor(shapes))
    assert all("modules_to_save" in origin for origin in found.origins.values())
    assert not found.others


def test_two_trained_copies_are_ambiguous() -> None:
    base = "base_model.model.model.mm_projector.modules_to_save"
    with pytest.raises(AdapterError, match="ambiguous-key"):
        projector_of(donor(named(base + ".a.{0}.{1}") | named(base + ".b.{0}.{1}")))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_names_of_transformers_llava(prefix: str) -> None:
    shapes: Shapes = {
        f"{prefix}multi_modal_projector.linear_1.weight": (4, 6),
        f"{prefix}multi_modal_projector.linear_1.bias": (4,),
        f"{prefix}multi_modal_projector.linear_2.weight": (4, 4),
        f"{prefix}multi_modal_projector.linear_2.bias": (4,),
        "language_model.model.norm.weight": (4,),
    }
    plan = plan_extract_projector(donor(shapes))
    assert {edit.name for edit in plan.edits} == {f"model.mm_projector.{name}" for name in MLP}  # type: ignore[union-attr]
    assert any("linear_1" in note and "mlp2x_gelu" in note for note in plan.notes)
    with pytest.raises(AdapterError, match=r"unknown-projector.*quick_gelu"):
        projector_of(donor(shapes, {"projector_hidden_act": "quick_gelu"}))


def test_a_projector_of_audio_is_not_taken_for_one_of_images() -> None:
    shapes: Shapes = {
        "multi_modal_projector.linear.weight": (4, 24),
        "multi_modal_projector.linear.bias": (4,),
    }
    with pytest.raises(AdapterError, match=r"unknown-projector.*linear\.weight"):
        projector_of(donor(shapes))


def test_internvl_has_a_norm_that_no_type_has() -> None:
    shapes: Shapes = {
        "mlp1.0.weight": (6,),
        "mlp1.0.bias": (6,),
        "mlp1.1.weight": (4, 6),
        "mlp1.1.bias": (4,),
        "mlp1.3.weight": (4, 4),
        "mlp1.3.bias": (4,),
        "vision_model.embeddings.class_embedding": (1, 1, 6),
    }
    with pytest.raises(AdapterError, match=r"unknown-projector.*LayerNorm.*mlp1\.0\.weight"):
        projector_of(donor(shapes))


def test_wrappers_inside_a_tower_are_left_out_of_its_names() -> None:
    shapes = vision_tower(TowerSpec(family="clip"))
    wrapped = {
        f"visual.{name.replace('.self_attn.', '._checkpoint_wrapped_module.self_attn.')}": shape
        for name, shape in shapes.items()
    }
    config = tower_config(TowerSpec(family="clip"))
    plan = plan_extract_tower(donor(wrapped, config), config)
    assert {edit.name: edit.tensor.shape for edit in plan.tensor_edits} == shapes
    clash = {**wrapped, next(iter(shapes)): (1,), f"_orig_mod.{next(iter(shapes))}": (1,)}
    with pytest.raises(AdapterError, match="ambiguous-key"):
        plan_extract_tower(donor(clash, config), config)


def test_a_projector_of_another_family_is_named() -> None:
    shapes = projectors.expected_shapes(Projector("mlp2x_res2x_gelu", 6, 4))
    base = donor({"model.mm_projector.weight": (4, 6), "model.embed_tokens.weight": (9, 4)})
    base = replace(base, layout="safetensors", config={"model_type": "vita-Qwen2"})
    with pytest.raises(AdapterError, match=r"unknown-projector.*VITA builds.*mlp2x_res2x_gelu"):
        plan_merge_projector(base, donor({f"mm_projector.{n}": s for n, s in shapes.items()}))


def test_bare_names_are_those_of_a_whole_projector() -> None:
    found = projector_of(donor(dict(MLP)))
    assert {name: t.shape for name, t in found.tensors.items()} == MLP
    assert "without a prefix" in found.notes[0]
    others: list[Shapes] = [{"0.weight": (4, 6)}, {**MLP, "norm.weight": (4,)}]
    for shapes in others:
        with pytest.raises(AdapterError, match="adapter-no-projector"):
            projector_of(donor(shapes))


def test_a_flat_parameter_is_no_projector() -> None:
    name = "_fsdp_wrapped_module.model.mm_projector._fsdp_wrapped_module._flat_param"
    with pytest.raises(AdapterError, match=r"flat-parameter.*FULL_STATE_DICT"):
        projector_of(donor({name: (44,)}))
