"""Describe CLIP's vision transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.shapes import affine, library_encoder, read_sizes
from vita_ckpt.core.checkpoint import Shape

_DEFAULTS: Final = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    sizes = read_sizes(config, _DEFAULTS)
    width = sizes.width
    embeddings: dict[str, Shape] = {
        "embeddings.position_embedding.weight": (sizes.grid**2 + 1, width),
        "embeddings.class_embedding": (width,),
        **affine("pre_layrnorm", (width,), width),
    }
    return library_encoder(sizes, embeddings)


CLIP: Final = Family(
    name="clip",
    label="CLIP",
    word="clip",
    tower_class="CLIPVisionTower",
    patches="embeddings.patch_embedding.weight",
    present=("encoder.layers.0.self_attn.q_proj.weight", "embeddings.class_embedding"),
    absent=("encoder.layers.0.attn.qkv.weight",),
    positions="embeddings.position_embedding.weight",
    class_tokens=1,
    layers="encoder.layers.",
    stored_prefix="vision_tower.vision_model.",
    standalone_prefix="vision_model.",
    expected_shapes=_expected_shapes,
    model_types=("clip", "clip_vision_model"),
    config_defaults=_DEFAULTS,
    # openai/clip-vit-base-patch16 and -patch32, openai/clip-vit-large-patch14 and -336
    published={
        (768, 12): {"num_attention_heads": 12, "intermediate_size": 3072},
        (1024, 24): {"num_attention_heads": 16, "intermediate_size": 4096},
    },
    transformers_class="CLIPVisionModel",
)
