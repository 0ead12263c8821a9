"""The tables of the architecture, against real modules and independently written names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import TowerSpec, below, mm_projector, tower_config, vision_tower
from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.projectors import Projector, candidates, expected_shapes, tokens_out
from vita_ckpt.core.anatomy.towers import (
    dispatch,
    parse_s2_scales,
    tower_of_config,
    tower_of_shapes,
)

TYPES = (
    "linear",
    "mlp1x_gelu",
    "mlp2x_gelu",
    "mlp5x_gelu",
    "sppv1",
    "sppv2",
    "sppv3",
    "ldp",
    "vanilla",
    "minigpt",
)
widths = st.integers(1, 300)


@given(kind=st.sampled_from(TYPES), wide=widths, out=widths)
def test_shapes_say_which_projectors_they_can_be(kind: str, wide: int, out: int) -> None:
    shapes = expected_shapes(Projector(kind, wide, out))
    assert shapes == mm_projector(kind, wide, out)
    found = candidates(shapes)
    assert Projector(kind, wide, out) in found
    assert all(projectors.same_tensors(kind, projector.type) for projector in found)
    assert all(expected_shapes(projector) == shapes for projector in found)


@given(kind=st.sampled_from(TYPES), data=st.data())
def test_a_projector_with_a_part_missing_or_odd_is_none(kind: str, data: st.DataObject) -> None:
    shapes = mm_projector(kind, 24, 16)
    name = data.draw(st.sampled_from(sorted(shapes)))
    assert candidates({n: s for n, s in shapes.items() if n != name}) == ()
    assert candidates({**shapes, name: (*shapes[name], 3)}) == ()
    assert candidates({**shapes, "extra": (1,)}) == ()


def test_torch_modules_have_these_names_and_shapes() -> None:
    linear = torch.nn.Linear
    modules = {
        "linear": linear(6, 4),
        "mlp3x_gelu": torch.nn.Sequential(
            linear(6, 4), torch.nn.GELU(), linear(4, 4), torch.nn.GELU(), linear(4, 4)
        ),
        "sppv1": torch.nn.ModuleDict(
            {"linear_0": linear(6, 6), "linear_1": linear(6, 4), "linear_2": linear(4, 4)}
        ),
        "minigpt": torch.nn.ModuleDict({"linear": linear(24, 4)}),
        "identity": torch.nn.Identity(),
    }
    for kind, module in modules.items():
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        assert expected_shapes(Projector(kind, 6, 4)) == shapes


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "mlp0x_gelu",
        "mlp2x_relu",
        "mlpx_gelu",
        "mlp2x_gelu ",
        "spp",
        "sppv4",
        "mlp٢x_gelu",
        "Linear",
    ],
)
def test_types_that_upstream_cannot_run_are_unknown(kind: str) -> None:
    assert not projectors.is_known(kind)
    assert tokens_out(kind, 16) is None
    with pytest.raises(KeyError):
        expected_shapes(Projector(kind, 6, 4))


@pytest.mark.parametrize(
    ("kind", "tokens", "out"),
    [
        ("linear", 25, 25),
        ("mlp2x_gelu", 256, 256),
        ("identity", 7, 7),
        ("sppv1", 576, 144),
        ("sppv2", 729, 169),
        ("ldp", 729, 196),
        ("ldp", 576, 144),
        ("vanilla", 576, 144),
        ("minigpt", 729, None),
        ("spp_v3", 16, 4),
        ("sppv1", 15, None),
    ],
)
def test_tokens_after_each_projector(kind: str, tokens: int, out: int | None) -> None:
    assert tokens_out(kind, tokens) == out


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


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.3.mlp.up_proj.weight", parts.LANGUAGE_MODEL),
        ("lm_head.weight", parts.LANGUAGE_MODEL),
        ("model.mm_projector.0.weight", parts.MM_PROJECTOR),
        ("base_model.model.model.mm_projector.0.weight", parts.MM_PROJECTOR),
        ("model.mm_projector_old.0.weight", parts.OTHER),
        ("model.vision_tower.vision_tower.embeddings.class_embedding", parts.VISION_TOWER),
        ("model.audio_encoder.adpter.project.weight", parts.AUDIO_ADAPTER),
        ("model.audio_encoder.encoder.x", parts.AUDIO_ENCODER),
        ("predictor_head.weight", parts.STATE_PREDICTOR),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", parts.LORA),
        ("model.normal", parts.OTHER),
        ("", parts.OTHER),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert parts.part_of(name) == part
