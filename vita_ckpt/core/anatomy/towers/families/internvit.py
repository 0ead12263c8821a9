"""Describe InternViT: its vision transformer, and the pixel shuffle after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.shapes import Shapes, affine, mlp, read_sizes
from vita_ckpt.core.checkpoint import Shape

# The sizes of the 6B tower.
_DEFAULTS: Final = {
    "hidden_size": 3200,
    "num_hidden_layers": 48,
    "image_size": 224,
    "patch_size": 14,
    "intermediate_size": 12800,
    "num_attention_heads": 25,
}


def _expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    sizes = read_sizes(config, _DEFAULTS)
    width, side = sizes.width, sizes.patch_size
    norm_bias = config.get("norm_type", "rms_norm") == "layer_norm"
    shapes: dict[str, Shape] = {
        "embeddings.patch_embedding.weight": (width, 3, side, side),
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding": (1, sizes.grid**2 + 1, width),
    }
    for layer in range(sizes.layers):
        at = f"encoder.layers.{layer}"
        shapes |= {f"{at}.ls1": (width,), f"{at}.ls2": (width,)}
        qkv_bias = config.get("qkv_bias", False) is True
        shapes |= affine(f"{at}.attn.qkv", (3 * width, width), 3 * width, bias=qkv_bias)
        shapes |= affine(f"{at}.attn.proj", (width, width), width)
        if config.get("qk_normalization", True) is True:
            shapes |= {f"{at}.attn.q_norm.weight": (width,), f"{at}.attn.k_norm.weight": (width,)}
        shapes |= mlp(at, width, sizes.mlp)
        shapes |= affine(f"{at}.norm1", (width,), width, bias=norm_bias)
        shapes |= affine(f"{at}.norm2", (width,), width, bias=norm_bias)
    return shapes


def _options_of_tensors(shapes: Shapes) -> Mapping[str, Any]:
    layer_norm = any(name.endswith(".norm1.bias") for name in shapes)
    return {
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in shapes),
        "qk_normalization": any(name.endswith(".attn.q_norm.weight") for name in shapes),
        "norm_type": "layer_norm" if layer_norm else "rms_norm",
    }


INTERNVIT: Final = Family(
    name="internvit",
    label="InternViT",
    word="internvit",
    tower_class="InternViTVisionTower",
    patches="embeddings.patch_embedding.weight",
    present=("encoder.layers.0.attn.qkv.weight",),
    positions="embeddings.position_embedding",
    class_tokens=1,
    layers="encoder.layers.",
    expected_shapes=_expected_shapes,
    model_types=("intern_vit_6b",),
    config_defaults=_DEFAULTS,
    # OpenGVLab/InternViT-300M-448px and InternViT-6B
    published={
        (1024, 24): {
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "qkv_bias": True,
            "qk_normalization": False,
            "norm_type": "layer_norm",
        },
        (3200, 45): {
            "num_attention_heads": 25,
            "intermediate_size": 12800,
            "qkv_bias": False,
            "qk_normalization": True,
            "norm_type": "rms_norm",
        },
    },
    options_of_tensors=_options_of_tensors,
    pixel_shuffle=2,
)
