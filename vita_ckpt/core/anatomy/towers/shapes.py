"""Compute the shapes of layers that towers share, and read the sizes in a tower's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError

Shapes = Mapping[str, Shape]

# An upper limit, to reject implausible configs: no width, depth or image is larger.
_LARGEST_SIZE: Final = 1 << 20

# An upper limit, to reject implausible configs: no tower has more layers.
MOST_LAYERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a vision transformer; ``grid`` is the number of patches along one side."""

    width: int
    mlp: int
    layers: int
    patch_size: int
    grid: int


def size(config: Mapping[str, Any], key: str, default: int) -> int | None:
    """Return the value of ``key``, by default ``default``; None if it is not a valid size."""
    value = config.get(key, default)
    return value if type(value) is int and 0 < value < _LARGEST_SIZE else None


def read_sizes(config: Mapping[str, Any], defaults: Mapping[str, int]) -> Sizes:
    """Read the sizes in a ``config.json`` that uses transformers' keys.

    ``defaults`` has the values of keys that the config omits. Raises InputError
    ``unsupported-tower-config`` for a value that no tower can have.
    """
    width, layers, patch_size, image_size = (
        size(config, key, defaults[key])
        for key in ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
    )
    if width is None:
        raise unsupported("hidden_size", "a positive integer", config)
    if layers is None or layers > MOST_LAYERS:
        raise unsupported("num_hidden_layers", f"at most {MOST_LAYERS}", config)
    if patch_size is None:
        raise unsupported("patch_size", "a size in pixels", config)
    grid = (image_size or 0) // patch_size
    if not grid:
        raise unsupported("image_size", "at least one patch", config)
    mlp = config.get("intermediate_size", defaults["intermediate_size"])
    if type(mlp) is not int or mlp <= 0:
        raise unsupported("intermediate_size", "a positive integer", config)
    heads = config.get("num_attention_heads", 1)
    if type(heads) is not int or heads <= 0 or width % heads:
        raise unsupported("num_attention_heads", f"a divisor of {width}", config)
    return Sizes(width, mlp, layers, patch_size, grid)


def library_encoder(sizes: Sizes, embeddings: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return CLIP's or SigLIP's transformer, with the family's own ``embeddings``."""
    width, side = sizes.width, sizes.patch_size
    shapes: dict[str, Shape] = {
        "embeddings.patch_embedding.weight": (width, 3, side, side),
        **embeddings,
    }
    for layer in range(sizes.layers):
        at = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= affine(f"{at}.self_attn.{name}", (width, width), width)
        shapes |= mlp(at, width, sizes.mlp)
        shapes |= affine(f"{at}.layer_norm1", (width,), width)
        shapes |= affine(f"{at}.layer_norm2", (width,), width)
    return shapes | affine("post_layernorm", (width,), width)


def mlp(at: str, width: int, inner: int) -> dict[str, Shape]:
    """Return the two linear layers of a feed-forward block below ``at``."""
    up = affine(f"{at}.mlp.fc1", (inner, width), inner)
    return up | affine(f"{at}.mlp.fc2", (width, inner), width)


def affine(name: str, weight: Shape, out: int, *, bias: bool = True) -> dict[str, Shape]:
    """Return the weight and the bias of a linear layer or a norm."""
    return {f"{name}.weight": weight} | ({f"{name}.bias": (out,)} if bias else {})


def unsupported(key: str, expected: str, config: Mapping[str, Any]) -> InputError:
    """Return the error for a value of ``key`` that no tower can have."""
    return InputError("unsupported-tower-config", key, expected=expected, got=repr(config.get(key)))
