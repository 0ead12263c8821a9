"""Names of one loader become those of another, and nothing else becomes a name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import Spec, TowerSpec, checkpoint_config, checkpoint_shapes
from vita_ckpt.core.names import library_spellings, upstream_names
from vita_ckpt.errors import InputError

SPECS = {
    "internvit": Spec(),
    "clip": Spec(tower=TowerSpec("clip", image_size=16, patch_size=4), tied=True),
    "siglip": Spec(model_type="vita-mixtral", tower=TowerSpec("siglip"), audio=True, experts=3),
    "eva": Spec(tower=TowerSpec("eva", width=16), model_type="vita-fo-Qwen2"),
}
WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_model.model",
    "modules_to_save.default",
)


@given(data=st.data(), family=st.sampled_from(sorted(SPECS)))
def test_any_nesting_of_wrappers_is_taken_away(data: st.DataObject, family: str) -> None:
    spec = SPECS[family]
    shapes = checkpoint_shapes(spec)
    before = data.draw(st.lists(st.sampled_from(WRAPPERS), max_size=3))
    place = data.draw(st.sampled_from(("", "model", "layers", "vision_tower", "experts", "0")))
    inside = data.draw(st.lists(st.sampled_from(WRAPPERS), min_size=1, max_size=3))
    wrapped: dict[str, str] = {}
    for name in shapes:
        levels = name.split(".")
        at = levels.index(place) + 1 if place in levels[:-1] else 0
        wrapped[".".join([*before, *levels[:at], *inside, *levels[at:]])] = name
    stored = {name: shapes[own] for name, own in wrapped.items()}
    found = upstream_names(checkpoint_config(spec, "F32"), stored)
    assert found == {name: (own,) for name, own in wrapped.items()}


@pytest.mark.parametrize("family", SPECS)
def test_sound_names_stay(family: str) -> None:
    spec = SPECS[family]
    shapes = checkpoint_shapes(spec)
    found = upstream_names(checkpoint_config(spec, "F32"), shapes)
    assert found == {name: (name,) for name in shapes}


@pytest.mark.parametrize("family", SPECS)
def test_names_of_the_library_and_back(family: str) -> None:
    spec = SPECS[family]
    shapes = checkpoint_shapes(spec)
    library = {spelling.name: spelling for spelling in library_spellings(shapes)}
    assert [n for s in library.values() for n in s.pieces if n not in shapes] == []
    assert sum(len(s.pieces) for s in library.values()) == len(shapes)
    stored = {name: spelling.shape for name, spelling in library.items()}
    found = upstream_names(checkpoint_config(spec, "F32"), stored)
    assert found == {name: spelling.pieces for name, spelling in library.items()}
    if family == "siglip":
        at = "model.layers.1.mlp.experts"
        assert library[f"{at}.gate_up_proj"].shape == (3, 2 * spec.mlp, spec.hidden)
        assert library[f"{at}.gate_up_proj"].pieces[:2] == (
            "model.layers.1.block_sparse_moe.experts.0.w1.weight",
            "model.layers.1.block_sparse_moe.experts.0.w3.weight",
        )
        assert library[f"{at}.down_proj"].shape == (3, spec.hidden, spec.mlp)
        assert "model.vision_tower.vision_tower.embeddings.patch_embedding.weight" in library


@pytest.mark.parametrize("form", ["old", "new"])
def test_the_names_of_llava_hf(form: str) -> None:
    spec = SPECS["clip"]
    shapes = checkpoint_shapes(spec)
    renamed: dict[str, str] = {}
    for name in shapes:
        place = name.removeprefix("model.")
        if name.startswith("model.vision_tower.vision_tower."):
            there = place.removeprefix("vision_tower.")
        elif name.startswith("model.mm_projector."):
            there = place.replace("mm_projector.0", "multi_modal_projector.linear_1").replace(
                "mm_projector.2", "multi_modal_projector.linear_2"
            )
        else:
            there = f"language_model.{name if form == 'old' else place}"
        renamed[there if form == "old" else f"model.{there}"] = name
    stored = {name: shapes[own] for name, own in renamed.items()}
    found = upstream_names(checkpoint_config(spec, "F32"), stored)
    assert found == {name: (own,) for name, own in renamed.items()}


def test_a_collision_names_both() -> None:
    spec = Spec()
    shapes = checkpoint_shapes(spec)
    for name in ("model.norm.weight", "model.vision_tower.vision_tower.embeddings.class_embedding"):
        twice = {**shapes, f"module.{name}": shapes[name]}
        with pytest.raises(InputError, match="tensor-names-collide") as caught:
            upstream_names(checkpoint_config(spec, "F32"), twice)
        assert name in str(caught.value) and f"module.{name}" in str(caught.value)


def test_what_is_no_name_of_the_loader_stays() -> None:
    spec = Spec()
    shapes = checkpoint_shapes(spec)
    strange = {"module.what.weight": (3,), "x.model.norm.weight": (16,), "ema._orig_mod.y": (1,)}
    found = upstream_names(checkpoint_config(spec, "F32"), {**shapes, **strange})
    assert {name: found[name] for name in strange} == {name: (name,) for name in strange}


def test_fused_experts_of_another_size_are_none() -> None:
    spec = SPECS["siglip"]
    shapes = {s.name: s.shape for s in library_spellings(checkpoint_shapes(spec))}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = upstream_names(checkpoint_config(spec, "F32"), {**shapes, name: (3, 2, 2)})
    assert found[name] == (name,)
