"""The tables of towers, against independently written names."""

from __future__ import annotations

import pytest

from fixtures.builder import TowerSpec, below, tower_config, vision_tower
from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.towers import (
    dispatch,
    parse_s2_scales,
    tower_of_config,
    tower_of_shapes,
)


@pytest.mark.parametrize(
    ("path", "s2", "tower_class", "decides"),
    [
        ("google/siglip-so400m-patch14-384", False, "SiglipVisionTower", '"sig"'),
        ("google/siglip-so400m-patch14-384", True, "SiglipVisionTowerS2", "use_s2"),
        ("/data/design/InternViT-300M", False, "SiglipVisionTower", '"sig"'),
        ("/evaluation/clip-vit-large", False, "EvaClipVisionTower", '"eva"'),
        ("openai/CLIP-vit-large", False, "CLIPVisionTower", '"clip"'),
        ("OpenGVLab/InternViT-300M-448px", False, "InternViTVisionTower", '"internvit"'),
        ("OpenGVLab/InternViT-300M-448px", True, None, "no S2"),
        ("/models/vit", False, None, "none of"),
        ("", False, None, "none of"),
    ],
)
def test_upstream_takes_the_first_substring(
    path: str, s2: bool, tower_class: str | None, decides: str
) -> None:
    built = dispatch(path, s2)
    assert built.tower_class == tower_class
    assert decides in str(built.reason)


@pytest.mark.parametrize("family", ["siglip", "clip", "eva", "internvit"])
@pytest.mark.parametrize(
    "prefix", ["", "vision_model.", "visual.", "model.vision_tower.vision_tower."]
)
def test_towers_are_told_by_names_and_shapes_below_any_prefix(family: str, prefix: str) -> None:
    spec = TowerSpec(family=family, width=12, layers=3, image_size=24, patch_size=4)
    others = {"logit_scale": (), "text_model.embeddings.token_embedding.weight": (4, 4)}
    tower = tower_of_shapes({**others, **below(prefix, vision_tower(spec))})
    assert tower == towers.Tower(family, 12, 3, 4, 24)
    bare = {n.removeprefix("vision_model."): s for n, s in vision_tower(spec).items()}
    assert tower_of_shapes(below(prefix, bare)) == tower


@pytest.mark.parametrize("family", ["siglip", "clip", "internvit"])
def test_tower_configs(family: str) -> None:
    spec = TowerSpec(family=family)
    config = tower_config(spec)
    expected = tower_of_shapes(vision_tower(spec))
    assert tower_of_config(config) == expected
    assert tower_of_config({"model_type": "internvl_chat", "vision_config": config}) == expected


def test_tower_configs_leave_out_the_librarys_defaults() -> None:
    assert tower_of_config({"model_type": "clip_vision_model"}) == towers.Tower(
        "clip", 768, 12, 32, 224
    )
    parent = {"model_type": "siglip", "vision_config": {"hidden_size": 1152, "image_size": 384}}
    assert tower_of_config(parent) == towers.Tower("siglip", 1152, 12, 16, 384)
    for config in ({}, {"model_type": "qwen2"}, {"model_type": ["clip"]}, {"vision_config": 3}):
        assert tower_of_config(config) is None
    odd = {"model_type": "siglip_vision_model", "hidden_size": "wide", "image_size": True}
    assert tower_of_config(odd) is None


def test_widths_and_tokens_of_the_published_towers() -> None:
    intern = towers.Tower("internvit", 1024, 24, 14, 448)
    assert (intern.output_width(), intern.tokens()) == (4096, 256)
    siglip = towers.Tower("siglip", 1152, 27, 14, 384)
    assert (siglip.output_width(3), siglip.tokens()) == (3456, 729)
    assert towers.Tower("eva", 1024, 24, 14, 336).tokens() == 576
    assert towers.Tower("internvit", 1024, 24, 14, 434).tokens() is None


def test_s2_scales() -> None:
    assert parse_s2_scales("768, 384,1152") == (384, 768, 1152)
    for text in ("", "384;768", "a", "384,,768", "٣", "0,384"):
        assert parse_s2_scales(text) is None
