"""Describe EVA-CLIP's vision transformer, a lone file of weights without a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.shapes import MOST_LAYERS, Shapes, affine, unsupported
from vita_ckpt.core.checkpoint import Shape

_SIZING: Final = ("rope.freqs_cos", "blocks.0.mlp.w1.weight", "head.weight")


def _sizes_of_tensors(shapes: Shapes, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the sizes of the tower; its rotary buffers give the width of a head."""
    head, mlp, out = (shapes.get(name, ()) for name in _SIZING)
    if not head or not mlp or not out or not head[-1] or sizes["width"] % head[-1]:
        return None
    heads = sizes["width"] // head[-1]
    return {**sizes, "mlp": mlp[0], "heads": heads, "head_out": out[0]}


def _expected_shapes(sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """Return every tensor; the rotary buffers are stored at the root and again in every block."""
    if sizes["layers"] > MOST_LAYERS:
        raise unsupported("layers", f"at most {MOST_LAYERS}", sizes)
    width, mlp, side = sizes["width"], sizes["mlp"], sizes["patch_size"]
    patches = (sizes["image_size"] // side) ** 2
    rope: dict[str, Shape] = {
        f"rope.freqs_{kind}": (patches, width // sizes["heads"]) for kind in ("cos", "sin")
    }
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        **affine("patch_embed.proj", (width, 3, side, side), width),
        **rope,
    }
    for layer in range(sizes["layers"]):
        at = f"blocks.{layer}"
        shapes |= {f"{at}.attn.{name}": shape for name, shape in rope.items()}
        shapes |= {f"{at}.attn.q_bias": (width,), f"{at}.attn.v_bias": (width,)}
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes[f"{at}.attn.{name}.weight"] = (width, width)
        shapes |= affine(f"{at}.attn.proj", (width, width), width)
        shapes |= affine(f"{at}.attn.inner_attn_ln", (width,), width)
        for name in ("w1", "w2"):
            shapes |= affine(f"{at}.mlp.{name}", (mlp, width), mlp)
        shapes |= affine(f"{at}.mlp.w3", (width, mlp), width)
        shapes |= affine(f"{at}.mlp.ffn_ln", (mlp,), mlp)
        shapes |= affine(f"{at}.norm1", (width,), width)
        shapes |= affine(f"{at}.norm2", (width,), width)
    shapes |= affine("norm", (width,), width)
    return shapes | affine("head", (sizes["head_out"], width), sizes["head_out"])


EVA: Final = Family(
    name="eva",
    label="EVA-CLIP",
    word="eva",
    tower_class="EvaClipVisionTower",
    patches="patch_embed.proj.weight",
    present=("blocks.0.attn.q_proj.weight",),
    positions="pos_embed",
    class_tokens=1,
    layers="blocks.",
    stored_prefix="vision_tower.model.",
    standalone_prefix="visual.",
    expected_shapes=_expected_shapes,
    sizes_of_tensors=_sizes_of_tensors,
    sizing_tensors=_SIZING,
    config_keys=("head_out",),
)
