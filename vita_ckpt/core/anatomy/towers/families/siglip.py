"""Describe SigLIP's vision transformer, the only one with an S2 variant upstream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.shapes import (
    Shapes,
    affine,
    library_encoder,
    mlp,
    read_sizes,
)
from vita_ckpt.core.checkpoint import Shape

_DEFAULTS: Final = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 16,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    sizes = read_sizes(config, _DEFAULTS)
    width = sizes.width
    embeddings: dict[str, Shape] = {
        "embeddings.position_embedding.weight": (sizes.grid**2, width),
        "embeddings.patch_embedding.bias": (width,),
    }
    shapes = library_encoder(sizes, embeddings)
    if config.get("vision_use_head", True) is not False:
        shapes["head.probe"] = (1, 1, width)
        shapes["head.attention.in_proj_weight"] = (3 * width, width)
        shapes["head.attention.in_proj_bias"] = (3 * width,)
        shapes |= affine("head.attention.out_proj", (width, width), width)
        shapes |= affine("head.layernorm", (width,), width) | mlp("head", width, sizes.mlp)
    return shapes


def _options_of_tensors(shapes: Shapes) -> Mapping[str, Any]:
    return {"vision_use_head": any(name.startswith("head.") for name in shapes)}


SIGLIP: Final = Family(
    name="siglip",
    label="SigLIP",
    word="sig",
    tower_class="SiglipVisionTower",
    has_s2=True,
    patches="embeddings.patch_embedding.weight",
    present=("encoder.layers.0.self_attn.q_proj.weight",),
    absent=("embeddings.class_embedding", "encoder.layers.0.attn.qkv.weight"),
    positions="embeddings.position_embedding.weight",
    layers="encoder.layers.",
    stored_prefix="vision_tower.vision_model.",
    standalone_prefix="vision_model.",
    expected_shapes=_expected_shapes,
    model_types=("siglip", "siglip_vision_model"),
    config_defaults=_DEFAULTS,
    # google/siglip-base, -large, -so400m
    published={
        (768, 12): {"num_attention_heads": 12, "intermediate_size": 3072},
        (1024, 24): {"num_attention_heads": 16, "intermediate_size": 4096},
        (1152, 27): {"num_attention_heads": 16, "intermediate_size": 4304},
    },
    options_of_tensors=_options_of_tensors,
    processor="siglip",
    transformers_class="SiglipVisionModel",
)
