"""Run InternViT: its vision transformer, and the pixel shuffle of four patches into a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from vita_ckpt.core.anatomy.towers.families.internvit import INTERNVIT
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError
from vita_ckpt.model.towers.base import (
    VisionTower,
    attend,
    check_shape_of_layers,
    checked,
    empty_parameter,
    split_heads,
    unsupported,
)


@dataclass(frozen=True, slots=True)
class InternViTConfig:
    """The keys of an InternViT ``config.json`` that determine the architecture.

    The defaults are those of upstream's config class, which describe the 6B tower.
    """

    hidden_size: int = 3200
    intermediate_size: int = 12800
    num_hidden_layers: int = 48
    num_attention_heads: int = 25
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    qkv_bias: bool = False
    qk_normalization: bool = True
    norm_type: str = "rms_norm"
    layer_norm_eps: float = 1e-6


class InternViTTower(VisionTower):
    """InternViT: the last hidden state without CLS, halved, then shuffled (UPSTREAM §3).

    There is no final norm. Square images of any size with an even grid of patches are accepted.
    """

    def __init__(self, config: Mapping[str, Any], attn: str | None) -> None:
        options = read_config(config)
        grid = options.image_size // options.patch_size
        if grid % 2:
            raise _odd_grid("image_size", grid)
        sizes = Tower(
            INTERNVIT.name,
            options.hidden_size,
            options.num_hidden_layers,
            options.patch_size,
            options.image_size,
        )
        super().__init__(sizes)
        self.vision_tower = InternViT(options, attn)

    def check_pixels(self, pixel_values: Tensor) -> None:
        """Raise InputError for images that are not square or have an odd grid of patches."""
        rows, columns = (side // self.patch_size for side in pixel_values.shape[-2:])
        if rows != columns or not rows:
            raise self.misfit(pixel_values, "square images")
        if rows % 2:
            raise _odd_grid("pixel_values", rows)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, patches / 4, 4 · width]."""
        patches = self.vision_tower(pixel_values)[:, 1:]
        return pixel_shuffle(patches * 0.5)


class InternViT(nn.Module):
    """The transformer under its stored names: [N, 3, H, W] → [N, 1 + patches, width]."""

    def __init__(self, config: InternViTConfig, attn: str | None) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            _Layer(config, attn) for _ in range(config.num_hidden_layers)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Run all layers."""
        hidden: Tensor = self.embeddings(pixel_values)
        layers: Any = self.encoder.layers
        for layer in layers:
            hidden = layer(hidden)
        return hidden


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32, with a weight and no bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Map […, width] to […, width]."""
        wide = hidden.to(torch.float32)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        result: Tensor = self.weight * (wide * scale).to(hidden.dtype)
        return result


class _Embeddings(nn.Module):
    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        width, side = config.hidden_size, config.patch_size
        self.grid = config.image_size // side
        self.class_embedding = empty_parameter(1, 1, width)
        self.position_embedding = empty_parameter(1, self.grid**2 + 1, width)
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=side, stride=side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches: Tensor = self.patch_embedding(pixel_values)
        positions = self._positions(*patches.shape[-2:])
        first = self.class_embedding.expand(len(patches), -1, -1)
        return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + positions

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Interpolate the position table to the image's grid: [1, 1 + patches, width]."""
        first, table = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        square = table.to(torch.float32).transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        stretched = functional.interpolate(
            square, size=(rows, columns), mode="bicubic", align_corners=False
        )
        return torch.cat([first, stretched.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


class _Layer(nn.Module):
    def __init__(self, config: InternViTConfig, attn: str | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = _norm(config)
        self.attn = _Attention(config, attn)
        self.ls1 = empty_parameter(width)
        self.norm2 = _norm(config)
        self.mlp = _Mlp(config)
        self.ls2 = empty_parameter(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        result: Tensor = hidden + self.mlp(self.norm2(hidden)) * self.ls2
        return result


class _Attention(nn.Module):
    def __init__(self, config: InternViTConfig, attn: str | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.attn = attn
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        # The norms cover all heads together, so they are applied before the heads are split.
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.qk_normalization:
            self.q_norm = RMSNorm(width, config.layer_norm_eps)
            self.k_norm = RMSNorm(width, config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
        result: Tensor = self.proj(attend(query, key, value, self.attn))
        return result


class _Mlp(nn.Module):
    def __init__(self, config: InternViTConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.act(self.fc1(hidden)))
        return result


def pixel_shuffle(patches: Tensor) -> Tensor:
    """Map [N, grid², C] to [N, (grid / 2)², 4 C]: each 2x2 square of patches becomes one token.

    This is the second version of InternVL's pixel shuffle by 0.5. Squares are in row order, and
    within a token the upper two patches come before the lower two.
    """
    count, _, width = patches.shape
    half = isqrt(patches.shape[1]) // 2
    squares = patches.reshape(count, half, 2, half, 2, width).transpose(2, 3)
    return squares.reshape(count, half * half, 4 * width)


def read_config(config: Mapping[str, Any]) -> InternViTConfig:
    """Read the options of a ``config.json``. Raises InputError ``unsupported-tower-config``."""
    defaults = asdict(InternViTConfig())
    options = InternViTConfig(
        **{
            key: checked(key, config.get(key, value), type(value))
            for key, value in defaults.items()
        }
    )
    if options.norm_type not in ("layer_norm", "rms_norm"):
        raise unsupported("norm_type", "layer_norm or rms_norm", options.norm_type)
    check_shape_of_layers(options.hidden_size, options.num_attention_heads, options.hidden_act)
    return options


def _norm(config: InternViTConfig) -> nn.Module:
    if config.norm_type == "rms_norm":
        return RMSNorm(config.hidden_size, config.layer_norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _odd_grid(subject: str, grid: int) -> InputError:
    return InputError(
        "odd-patch-grid",
        subject,
        expected=f"{INTERNVIT.grid_needed}, for {INTERNVIT.label}'s pixel shuffle",
        got=str(grid),
    )


TOWER = InternViTTower
