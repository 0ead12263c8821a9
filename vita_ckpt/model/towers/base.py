"""Share code between vision towers: sizes, names, the dtype rule, attention without a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.errors import InputError
from vita_ckpt.model.precision import exact_convolutions


class VisionTower(nn.Module):
    """A vision tower whose tensors are below ``vision_tower.`` in its ``state_dict()``.

    ``family`` is the name of its family, ``label`` its name in messages. ``hidden_size`` is the
    width of its *output*, which the projector receives. ``tokens`` is the number of tokens per
    image, ``image_size`` the side in pixels of the images that the processor makes for it, and
    ``tile_size`` of those that its transformer takes at a time. The ``state_dict()`` holds exactly
    what upstream stores, including modules that no output depends on; those are never run.

    A parameter is read only in the forward of the module that owns it, so that a forward pre-hook
    on each owner can supply it.
    """

    vision_tower: nn.Module

    def __init__(self, sizes: Tower, *, scales: int = 1) -> None:
        super().__init__()
        tokens = sizes.tokens()
        if not sizes.patch_size or sizes.image_size is None or not tokens:
            raise unsupported("image_size", "at least one patch", sizes.image_size)
        self.family = sizes.family
        self.label = sizes.traits.label
        self.hidden_size = sizes.output_width(scales)
        self.tokens = tokens
        self.image_size = sizes.image_size
        self.tile_size = sizes.image_size
        self.patch_size = sizes.patch_size

    @property
    def grid(self) -> int:
        """The number of patches along one side of what the transformer takes."""
        return self.tile_size // self.patch_size

    def checkpoint_name(self, name: str) -> str:
        """Return upstream's name, below ``model.vision_tower.``, for a name in ``state_dict()``."""
        return name

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [N, 3, H, W] to features [N, tokens, hidden_size] in the dtype of the pixels.

        The tower computes in its own dtype. Raises InputError ``pixels-do-not-fit-tower``, or
        ``odd-patch-grid`` for an InternViT.
        """
        self.check_pixels(pixel_values)
        dtype = next(self.parameters()).dtype
        with exact_convolutions():
            features = self.features(pixel_values.to(dtype))
        return features.to(pixel_values.dtype)

    def check_pixels(self, pixel_values: Tensor) -> None:
        """Raise InputError for images whose size differs from that of the position table."""
        if not self.accepts(*pixel_values.shape[-2:]):
            raise self.misfit(pixel_values, f"images of {self.image_size} x {self.image_size} px")

    def accepts(self, height: int, width: int) -> bool:
        """Return whether images of this size in pixels can be run."""
        return height == width == self.image_size

    def misfit(self, pixel_values: Tensor, expected: str) -> InputError:
        """Return the error for images that the tower cannot run."""
        return InputError(
            "pixels-do-not-fit-tower",
            "pixel_values",
            expected=expected,
            got=f"{list(pixel_values.shape)}",
            hint=f"prepare the images with the {self.label} tower's own processor",
        )

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] in the tower's dtype to [N, tokens, hidden_size]."""
        raise NotImplementedError


def attend(query: Tensor, key: Tensor, value: Tensor, attn: str | None) -> Tensor:
    """Compute attention of all tokens to all: [N, heads, T, head width] each → [N, T, width].

    ``attn="eager"`` computes the explicit product in the dtype of the input; any other value uses
    torch's fused kernel.
    """
    mixed: Tensor
    if attn == "eager":
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed = scores.softmax(dim=-1) @ value
    else:
        mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """Map [N, T, width] to [N, heads, T, head width]."""
    return hidden.view(*hidden.shape[:2], heads, -1).transpose(1, 2)


def empty_parameter(*shape: int) -> nn.Parameter:
    """Return a parameter of zeros, to be filled from the checkpoint."""
    return nn.Parameter(torch.zeros(*shape))


def unsupported(key: str, expected: str, got: object) -> InputError:
    """Return the error for a value in a tower's config that no tower can be built from."""
    return InputError("unsupported-tower-config", key, expected=expected, got=str(got))


def checked(key: str, value: Any, kind: type) -> Any:
    """Return a config key's ``value`` if it is of type ``kind``.

    An int must be positive; where a float is wanted it becomes one. Raises InputError
    ``unsupported-tower-config`` for any other value.
    """
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and (type(value) is not int or value <= 0):
        raise unsupported(key, "a positive integer", value)
    if type(value) is not kind:
        raise unsupported(key, kind.__name__, value)
    return value


def check_shape_of_layers(width: int, heads: int, hidden_act: str) -> None:
    """Raise InputError ``unsupported-tower-config`` for layers that cannot be built."""
    if width % heads:
        raise unsupported("num_attention_heads", f"a divisor of {width}", heads)
    if hidden_act not in ACT2FN:
        raise unsupported("hidden_act", "an activation that transformers knows", hidden_act)
