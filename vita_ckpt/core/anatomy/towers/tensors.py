"""Names and shapes of every tensor of a vision tower, as its config describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.tower import (
    CLIP,
    EVA,
    INTERNVIT,
    SIGLIP,
    config_of_shapes,
    model_type_of,
    tower_of_config,
    tower_of_shapes,
)
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.errors import InputError

# What a config.json that leaves the key out means.
_MLP_DEFAULTS: Final[dict[str, int]] = {SIGLIP: 3072, CLIP: 3072, INTERNVIT: 12800}

# No tower has more layers, wider layers or more positions; a config that says so is not believed.
_MOST_LAYERS: Final = 1024


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Every tensor of a tower by its config, under the names of its own transformer.

    Those are ``embeddings.patch_embedding.weight`` and so on, without a prefix; a parent config is
    looked through to its ``vision_config``. EVA-CLIP's are the sizes that
    :func:`~vita_ckpt.core.anatomy.towers.tower.config_of_shapes` reads from its tensors. Raises
    InputError ``unsupported-tower-config`` where the config describes no tower.
    """
    if "head_out" in config:
        return _eva(config)
    tower = tower_of_config(config)
    if tower is None:
        raise _unsupported("model_type", "a SigLIP, CLIP or InternViT tower", config)
    inner = config.get("vision_config")
    options = inner if isinstance(inner, Mapping) else config
    if tower.layers is None or tower.layers > _MOST_LAYERS:
        raise _unsupported("num_hidden_layers", f"at most {_MOST_LAYERS}", options)
    if not tower.patch_size:
        raise _unsupported("patch_size", "a size in pixels", options)
    if not tower.grid:
        raise _unsupported("image_size", "at least one patch", options)
    width, side = tower.width, tower.patch_size
    mlp = options.get("intermediate_size", _MLP_DEFAULTS[tower.family])
    if type(mlp) is not int or mlp <= 0:
        raise _unsupported("intermediate_size", "a positive integer", options)
    heads = options.get("num_attention_heads", 1)
    if type(heads) is not int or heads <= 0 or width % heads:
        raise _unsupported("num_attention_heads", f"a divisor of {width}", options)
    shapes: dict[str, Shape] = {
        "embeddings.patch_embedding.weight": (width, 3, side, side),
    }
    if tower.family == INTERNVIT:
        return shapes | _internvit(options, width, mlp, tower.grid, tower.layers)
    return shapes | _library_tower(tower.family, options, width, mlp, tower.grid, tower.layers)


def config_of_tensors(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """What a config would have to say for :func:`expected_shapes` to give these own names.

    The layout that most of the tensors have: sizes and options, but for the attention heads, which
    no shape tells. None where the tensors are those of no tower.
    """
    tower = tower_of_shapes(shapes)
    if tower is None or tower.image_size is None or not tower.layers:
        return None
    if tower.family == EVA:
        return config_of_shapes(shapes)
    mlp = next((s[0] for n, s in shapes.items() if n.endswith(".mlp.fc1.bias") and s), 0)
    return {
        "model_type": model_type_of(tower.family),
        "hidden_size": tower.width,
        "intermediate_size": mlp,
        "num_hidden_layers": tower.layers,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "vision_use_head": any(name.startswith("head.") for name in shapes),
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in shapes),
        "qk_normalization": any(name.endswith(".attn.q_norm.weight") for name in shapes),
        "norm_type": "layer_norm"
        if any(name.endswith(".norm1.bias") for name in shapes)
        else "rms_norm",
    }


def _library_tower(
    family: str, options: Mapping[str, Any], width: int, mlp: int, grid: int, layers: int
) -> dict[str, Shape]:
    """CLIP's and SigLIP's vision transformers."""
    shapes: dict[str, Shape] = {
        "embeddings.position_embedding.weight": (grid * grid + (family == CLIP), width)
    }
    if family == CLIP:
        shapes["embeddings.class_embedding"] = (width,)
        shapes |= _affine("pre_layrnorm", (width,), width)
    else:
        shapes["embeddings.patch_embedding.bias"] = (width,)
    for layer in range(layers):
        at = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _affine(f"{at}.self_attn.{name}", (width, width), width)
        shapes |= _mlp(at, width, mlp)
        shapes |= _affine(f"{at}.layer_norm1", (width,), width)
        shapes |= _affine(f"{at}.layer_norm2", (width,), width)
    shapes |= _affine("post_layernorm", (width,), width)
    if family == SIGLIP and options.get("vision_use_head", True) is not False:
        shapes["head.probe"] = (1, 1, width)
        shapes["head.attention.in_proj_weight"] = (3 * width, width)
        shapes["head.attention.in_proj_bias"] = (3 * width,)
        shapes |= _affine("head.attention.out_proj", (width, width), width)
        shapes |= _affine("head.layernorm", (width,), width) | _mlp("head", width, mlp)
    return shapes


def _internvit(
    options: Mapping[str, Any], width: int, mlp: int, grid: int, layers: int
) -> dict[str, Shape]:
    """InternViT; what its config leaves out is as in the 6B tower."""
    norm_bias = options.get("norm_type", "rms_norm") == "layer_norm"
    shapes: dict[str, Shape] = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding": (1, grid * grid + 1, width),
    }
    for layer in range(layers):
        at = f"encoder.layers.{layer}"
        shapes |= {f"{at}.ls1": (width,), f"{at}.ls2": (width,)}
        qkv_bias = options.get("qkv_bias", False) is True
        shapes |= _affine(f"{at}.attn.qkv", (3 * width, width), 3 * width, bias=qkv_bias)
        shapes |= _affine(f"{at}.attn.proj", (width, width), width)
        if options.get("qk_normalization", True) is True:
            shapes |= {f"{at}.attn.q_norm.weight": (width,), f"{at}.attn.k_norm.weight": (width,)}
        shapes |= _mlp(at, width, mlp)
        shapes |= _affine(f"{at}.norm1", (width,), width, bias=norm_bias)
        shapes |= _affine(f"{at}.norm2", (width,), width, bias=norm_bias)
    return shapes


def _eva(sizes: Mapping[str, Any]) -> dict[str, Shape]:
    """EVA-CLIP: its rotary buffers are stored at the root and once more in every block."""
    if sizes["layers"] > _MOST_LAYERS:
        raise _unsupported("layers", f"at most {_MOST_LAYERS}", sizes)
    width, mlp, side = sizes["width"], sizes["mlp"], sizes["patch_size"]
    patches = (sizes["image_size"] // side) ** 2
    rope: dict[str, Shape] = {
        f"rope.freqs_{kind}": (patches, width // sizes["heads"]) for kind in ("cos", "sin")
    }
    shapes: dict[str, Shape] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        **_affine("patch_embed.proj", (width, 3, side, side), width),
        **rope,
    }
    for layer in range(sizes["layers"]):
        at = f"blocks.{layer}"
        shapes |= {f"{at}.attn.{name}": shape for name, shape in rope.items()}
        shapes |= {f"{at}.attn.q_bias": (width,), f"{at}.attn.v_bias": (width,)}
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes[f"{at}.attn.{name}.weight"] = (width, width)
        shapes |= _affine(f"{at}.attn.proj", (width, width), width)
        shapes |= _affine(f"{at}.attn.inner_attn_ln", (width,), width)
        for name in ("w1", "w2"):
            shapes |= _affine(f"{at}.mlp.{name}", (mlp, width), mlp)
        shapes |= _affine(f"{at}.mlp.w3", (width, mlp), width)
        shapes |= _affine(f"{at}.mlp.ffn_ln", (mlp,), mlp)
        shapes |= _affine(f"{at}.norm1", (width,), width)
        shapes |= _affine(f"{at}.norm2", (width,), width)
    shapes |= _affine("norm", (width,), width)
    return shapes | _affine("head", (sizes["head_out"], width), sizes["head_out"])


def _mlp(at: str, width: int, inner: int) -> dict[str, Shape]:
    up = _affine(f"{at}.mlp.fc1", (inner, width), inner)
    return up | _affine(f"{at}.mlp.fc2", (width, inner), width)


def _affine(name: str, weight: Shape, out: int, *, bias: bool = True) -> dict[str, Shape]:
    """A linear layer or a norm."""
    return {f"{name}.weight": weight} | ({f"{name}.bias": (out,)} if bias else {})


def _unsupported(key: str, expected: str, options: Mapping[str, Any]) -> InputError:
    return InputError(
        "unsupported-tower-config", key, expected=expected, got=repr(options.get(key))
    )
