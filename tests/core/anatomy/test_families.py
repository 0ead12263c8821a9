"""The families of models: how they are told, which tower is built, and which tower wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import golden_cases
from vita_ckpt.core.anatomy import projectors
from vita_ckpt.core.anatomy.families import (
    BUNNY,
    FAMILIES,
    LLAVA,
    LLAVA_NEXT,
    REQUIRED,
    VITA,
    Features,
    Load,
    TowerSource,
    family_of,
    recognise,
)
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS, expected_shapes
from vita_ckpt.core.anatomy.towers.tensors import expected_shapes as tower_shapes


def here(path: str) -> bool:
    return True


def nowhere(path: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "vita-Qwen2"}, VITA),
        ({"model_type": "mine", "architectures": ["VITAQwen2ForCausalLM"]}, VITA),
        ({"model_type": "bunny-phi3", "architectures": ["Phi3ForCausalLM"]}, BUNNY),
        ({"model_type": "llava_qwen"}, LLAVA_NEXT),
        ({"model_type": "llava_llama", "architectures": ["LlamaForCausalLM"]}, LLAVA),
        ({"model_type": "llava_llama", "mm_newline_position": "grid"}, LLAVA_NEXT),
        ({"model_type": "llava_mistral", "unfreeze_mm_vision_tower": True}, LLAVA),
        ({"model_type": "llava_mistral", "delay_load": False}, LLAVA_NEXT),
        ({"model_type": "llama"}, None),
        ({"model_type": "internvl_chat"}, None),
        (None, None),
    ],
)
def test_a_family_is_told_by_its_names_and_its_own_keys(
    config: dict[str, Any] | None, family: Any
) -> None:
    assert family_of(config) is family


def test_what_two_families_may_have_is_said() -> None:
    one_value = recognise({"model_type": "llava_llama", "mm_projector_type": "pooler"})
    assert one_value is not None
    assert one_value.family is LLAVA_NEXT
    assert "LLaVA has the same names" in one_value.doubt
    none = recognise({"model_type": "llava_llama"})
    assert none is not None
    assert none.evidence == "model_type 'llava_llama', without a key of LLaVA-NeXT's"
    named = recognise({"model_type": "llava_llama"}, ["model.vision_resampler.pool.weight"])
    assert named is not None
    assert named.family is LLAVA_NEXT


@pytest.mark.parametrize(
    ("family", "config", "stored", "absent"),
    [
        (VITA, {}, "CHECKPOINT", "UNINITIALISED"),
        (LLAVA, {}, "DIRECTORY", "DIRECTORY"),
        (LLAVA, {"unfreeze_mm_vision_tower": True}, "CHECKPOINT", "UNINITIALISED"),
        (LLAVA, {"unfreeze_mm_vision_tower": True, "s2": True}, "RAISES", "RAISES"),
        (BUNNY, {}, "DIRECTORY", "DIRECTORY"),
        (BUNNY, {"unfreeze_vision_tower": True}, "CHECKPOINT", "RAISES"),
        (BUNNY, {"continuous_training": True}, "CHECKPOINT", "UNINITIALISED"),
        (LLAVA_NEXT, {}, "CHECKPOINT", "UNINITIALISED"),
        (LLAVA_NEXT, {"delay_load": True}, "DIRECTORY", "DIRECTORY"),
        (
            LLAVA_NEXT,
            {"delay_load": True, "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter"},
            "CHECKPOINT",
            "UNINITIALISED",
        ),
        (
            LLAVA_NEXT,
            {"delay_load": True, "mm_tunable_parts": "mm_mlp_adapter"},
            "DIRECTORY",
            "DIRECTORY",
        ),
    ],
)
def test_which_tower_wins(family: Any, config: dict[str, Any], stored: str, absent: str) -> None:
    assert family.tower_source(config, Load(stored=True)).name == stored
    assert family.tower_source(config, Load(stored=False)).name == absent


def test_which_tower_wins_may_depend_on_files_and_names() -> None:
    unfrozen = {"unfreeze_vision_tower": True}
    in_bin = Load(stored=True, safetensors=False)
    assert BUNNY.tower_source(unfrozen, in_bin) is TowerSource.RAISES
    named = Load(stored=True, name="llava-v1.5-7b")
    llama, qwen = {"model_type": "llava_llama"}, {"model_type": "llava_qwen"}
    assert LLAVA_NEXT.tower_source(llama, named) is TowerSource.DIRECTORY
    assert LLAVA_NEXT.tower_source(qwen, named) is TowerSource.CHECKPOINT


@pytest.mark.parametrize(
    ("family", "path", "exists", "tower", "tower_class"),
    [
        (LLAVA, "towers/siglip", here, "clip", "CLIPVisionTower"),
        (LLAVA, "towers/clip", nowhere, None, None),
        (LLAVA, "openai/clip-vit-large-patch14-336", nowhere, "clip", "CLIPVisionTower"),
        (LLAVA, "Lin-Chen/ShareGPT4V-7B_Pretrained", nowhere, "clip", "CLIPVisionTower"),
        (LLAVA, "google/siglip-so400m-patch14-384", nowhere, None, None),
        (LLAVA, "OpenAI/clip", nowhere, None, None),
        (LLAVA_NEXT, "google/siglip-so400m-patch14-384", nowhere, "siglip", "SigLipVisionTower"),
        (LLAVA_NEXT, "google/siglip-so400m-patch14-384", here, "clip", "CLIPVisionTower"),
        (LLAVA_NEXT, "hf:some/tower", nowhere, None, "HFVisionTower"),
        (LLAVA_NEXT, "towers/clip", nowhere, None, None),
        (BUNNY, "google/SigLIP-so400m", nowhere, "siglip", "SiglipVisionTower"),
        (BUNNY, "BAAI/EVA-CLIP", nowhere, "eva", "EvaClipVisionTower"),
        (BUNNY, "OpenGVLab/InternViT-300M", nowhere, None, None),
        (BUNNY, "a/tower", here, None, None),
        (VITA, "OpenGVLab/InternViT-300M", nowhere, "internvit", "InternViTVisionTower"),
    ],
)
def test_which_tower_is_built(
    family: Any, path: str, exists: Any, tower: str | None, tower_class: str | None
) -> None:
    built = family.dispatch({"mm_vision_tower": path}, exists)
    assert (built.family, built.tower_class) == (tower, tower_class)
    assert str(built.reason)


def test_s2_is_another_class_and_other_keys() -> None:
    config = {"mm_vision_tower": "openai/clip", "s2": True, "use_s2": False}
    built = LLAVA.dispatch(config, nowhere)
    assert built.tower_class == "CLIPVisionTowerS2"
    assert "s2" in str(built.reason)
    assert LLAVA.s2_scales(config) == (336, 672, 1008)
    assert BUNNY.s2_scales(config) == ()
    assert BUNNY.s2_scales({"use_s2": True}) == (384, 768, 1152)
    eva = {"mm_vision_tower": "eva", "use_s2": True}
    assert BUNNY.dispatch(eva, nowhere).tower_class is None
    assert LLAVA.number_of_scales({"s2": True, "s2_scales": "28,56"}) == 2


def test_the_features_are_what_the_config_says() -> None:
    layer = {"mm_vision_select_layer": -2}
    assert LLAVA.features is not None
    assert LLAVA_NEXT.features is not None
    assert LLAVA.features(layer, "clip", 4) == Features((-2,))
    kept = {**layer, "mm_vision_select_feature": "cls_patch"}
    assert LLAVA.features(kept, "clip", 4) == Features((-2,), class_token=True)
    assert LLAVA.features({}, "clip", 4) is None
    assert LLAVA.features({**layer, "mm_vision_select_feature": "cls"}, "clip", 4) is None
    assert LLAVA.keys["mm_vision_select_layer"].default is REQUIRED
    quarters = {**layer, "mm_vision_select_feature": "slicefour_cls_patch"}
    assert LLAVA_NEXT.features(quarters, "clip", 25) == Features((4, 10, 16, 22), class_token=True)
    five = {**layer, "mm_vision_select_feature": "slice_m25811_f6_patch"}
    assert LLAVA_NEXT.features(five, "clip", 25) == Features((-2, -5, -8, -11, 6))
    assert LLAVA_NEXT.features(five, "clip", 4) is None
    assert LLAVA_NEXT.features({}, "siglip", 27) == Features((26,))


def test_a_siglip_is_stored_without_its_last_layer_and_head() -> None:
    own = {"model_type": "siglip_vision_model", "num_hidden_layers": 27}
    stored = LLAVA_NEXT.stored_tower("siglip", own)
    assert (stored["num_hidden_layers"], stored["vision_use_head"]) == (26, False)
    assert LLAVA_NEXT.stored_tower("clip", own) is own
    assert BUNNY.stored_tower("siglip", own) is own


def test_newline_and_tokens_follow_from_the_config() -> None:
    assert LLAVA.has_newline({"mm_patch_merge_type": "spatial_unpad"})
    assert not LLAVA.has_newline({"mm_patch_merge_type": "spatial"})
    assert not LLAVA.has_newline({})
    assert LLAVA.added_tokens({}) == ("<im_patch>",)
    both = {"mm_use_im_start_end": True, "mm_use_im_patch_token": True}
    assert LLAVA.added_tokens(both) == ("<im_patch>", "<im_start>", "<im_end>")
    assert BUNNY.added_tokens(both) == ()


def test_every_backbone_is_on_a_known_language_model() -> None:
    for family in FAMILIES.values():
        for backbone in family.backbones:
            model = LANGUAGE_MODELS[backbone.language_model]
            assert backbone.plain_model_type in model.model_types
            assert expected_shapes(model.name, {})


@pytest.mark.parametrize("value", [None, [], {}, ["a"], [[1]], "x", 0, -1, 10**30, 0.5, True])
def test_a_config_may_hold_anything(value: Any) -> None:
    for family in FAMILIES.values():
        for key in family.keys:
            config = {"mm_vision_select_layer": -2, "mm_vision_tower": "clip", key: value}
            family.dispatch(config, lambda _: False)
            family.tower_source(config, Load(stored=True))
            family.s2_scales(config)
            family.has_newline(config)
            family.added_tokens(config)
            family.tiles(config)
            found = family.features(config, "clip", 4) if family.features is not None else None
            if found is not None:
                family.fault(config, found)


def test_residual_projectors_and_the_pooler() -> None:
    wanted = projectors.expected_shapes(projectors.Projector("mlp2x_res2x_gelu", 32, 64))
    assert wanted["3.pre_norm.weight"] == (64,)
    assert wanted["4.proj.2.weight"] == (64, 64)
    assert len(wanted) == 16
    types = LLAVA_NEXT.projector_types
    assert projectors.candidates(wanted, types) == (
        projectors.Projector("mlp2x_res2x_gelu", 32, 64),
    )
    assert not projectors.candidates(wanted, LLAVA.projector_types)
    pooler = projectors.expected_shapes(projectors.Projector("pooler", 32, 64))
    assert pooler["conv_pool.weight"] == (64, 32, 2, 2)
    assert projectors.candidates(pooler, types) == (projectors.Projector("pooler", 32, 64),)
    assert projectors.tokens_out("pooler", 16) == 4
    assert not projectors.is_known("spp", types)
    assert not projectors.is_known("pooler")


@pytest.mark.parametrize(
    "case",
    golden_cases(*(f"F{number}" for number in range(1, 18) if number not in (5, 6, 11, 12))),
    ids=lambda case: case.name,
)
def test_the_language_model_has_the_tensors_that_upstream_wrote(case: Path) -> None:
    config = json.loads((case / "base/config.json").read_text(encoding="utf-8"))
    family = family_of(config)
    assert family is not None
    backbone = family.backbone(config)
    assert backbone is not None
    names = json.loads((case / "case.json").read_text(encoding="utf-8"))["base_keys"]
    other = ("model.vision_tower.", "model.mm_projector.", "model.image_newline")
    language = {name for name in names if not name.startswith(other)}
    assert set(expected_shapes(backbone.language_model, config)) == language


def test_a_published_tower_is_known_by_what_is_stored_of_it() -> None:
    """LLaVA-NeXT's SigLIP lacks its last layer and its head, and has a config nowhere."""
    whole = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,  # of which a grid of 27 patches takes 378
        "patch_size": 14,
    }
    stored = tower_shapes(LLAVA_NEXT.stored_tower("siglip", whole))
    assert not any("head." in name or "layers.26." in name for name in stored)
    assert LLAVA_NEXT.whole_tower(stored) == whole
    # A family that stores towers whole does not take it for a part of one.
    assert VITA.whole_tower(stored) is None
    assert LLAVA_NEXT.whole_tower(tower_shapes(whole)) is None
    clip = tower_shapes({"model_type": "clip_vision_model", "num_hidden_layers": 11})
    assert LLAVA_NEXT.whole_tower(clip) is None
    assert LLAVA_NEXT.whole_tower({}) is None
