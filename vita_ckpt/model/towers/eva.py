"""Run EVA-CLIP, the EVA-02 vision transformer with rotary positions, except its last block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_ckpt.core.anatomy.towers.families.eva import EVA
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.model.towers.base import (
    VisionTower,
    attend,
    checked,
    empty_parameter,
    split_heads,
    unsupported,
)

_EPS: Final = 1e-6

# Rotary positions are scaled to this length for any grid, as in pre-training.
_ROTARY_LENGTH: Final = 16
_ROTARY_THETA: Final = 10000.0


@dataclass(frozen=True, slots=True)
class EvaSizes:
    """The sizes of an EVA tower, by default those of EVA02-L/14-336, which upstream builds."""

    width: int = 1024
    layers: int = 24
    mlp: int = 2730
    heads: int = 16
    patch_size: int = 14
    image_size: int = 336
    head_out: int = 768


class EvaTower(VisionTower):
    """EVA-CLIP: the patches after all blocks but the last, without final norm and CLS."""

    def __init__(self, config: Mapping[str, Any], attn: str | None) -> None:
        sizes = read_sizes(config)
        super().__init__(
            Tower(EVA.name, sizes.width, sizes.layers, sizes.patch_size, sizes.image_size)
        )
        # Upstream's wrapper adds one more level, `model.`, before the tower's own names.
        self.vision_tower = nn.ModuleDict({"model": EvaViT(sizes, attn)})

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, patches, width]."""
        towers: Any = self.vision_tower
        hidden: Tensor = towers["model"](pixel_values)
        return hidden[:, 1:]


class EvaViT(nn.Module):
    """The transformer under its stored names: [N, 3, H, W] → [N, 1 + patches, width]."""

    def __init__(self, sizes: EvaSizes, attn: str | None) -> None:
        super().__init__()
        grid = sizes.image_size // sizes.patch_size
        head_width = sizes.width // sizes.heads
        self.cls_token = empty_parameter(1, 1, sizes.width)
        self.pos_embed = empty_parameter(1, grid**2 + 1, sizes.width)
        self.patch_embed = _PatchEmbed(sizes)
        # Upstream has one buffer, which is stored once here and once in each block.
        self.rope = Rotary(grid, head_width)
        self.blocks = nn.ModuleList(_Block(sizes, grid, attn) for _ in range(sizes.layers))
        self.norm = _norm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.head_out)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Run all blocks but the last."""
        patches: Tensor = self.patch_embed(pixel_values)
        first = self.cls_token.expand(len(patches), -1, -1)
        hidden = torch.cat([first, patches], dim=1) + self.pos_embed
        for block in self.blocks[:-1]:
            hidden = block(hidden)
        return hidden


class Rotary(nn.Module):
    """Rotary positions in two dimensions: [N, heads, patches, head width] in and out.

    The tables ``freqs_cos`` and ``freqs_sin``, [patches, head width], belong to the checkpoint.
    Their initial values are computed as upstream does: the first half of a head is rotated by the
    row of the patch, the second by its column, each pair of neighbours by one angle.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, grid: int, head_width: int) -> None:
        super().__init__()
        angles = _angles(grid, head_width)
        dtype = torch.get_default_dtype()
        self.register_buffer("freqs_cos", angles.cos().to(dtype))
        self.register_buffer("freqs_sin", angles.sin().to(dtype))

    def forward(self, heads: Tensor) -> Tensor:
        """Rotate each pair (x, y) by its angle: (x cos - y sin, y cos + x sin)."""
        even, odd = heads[..., 0::2], heads[..., 1::2]
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return heads * self.freqs_cos + turned * self.freqs_sin


class _PatchEmbed(nn.Module):
    def __init__(self, sizes: EvaSizes) -> None:
        super().__init__()
        side = sizes.patch_size
        self.proj = nn.Conv2d(3, sizes.width, kernel_size=side, stride=side)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches: Tensor = self.proj(pixel_values)
        return patches.flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, sizes: EvaSizes, grid: int, attn: str | None) -> None:
        super().__init__()
        self.norm1 = _norm(sizes.width)
        self.attn = _Attention(sizes, grid, attn)
        self.norm2 = _norm(sizes.width)
        self.mlp = _SwiGlu(sizes.width, sizes.mlp)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden))
        result: Tensor = hidden + self.mlp(self.norm2(hidden))
        return result


class _Attention(nn.Module):
    """Attention with biases on queries and values only, and a norm before the projection."""

    def __init__(self, sizes: EvaSizes, grid: int, attn: str | None) -> None:
        super().__init__()
        width = sizes.width
        self.attn = attn
        self.heads = sizes.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = empty_parameter(width)
        self.v_bias = empty_parameter(width)
        self.rope = Rotary(grid, width // sizes.heads)
        self.inner_attn_ln = _norm(width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query = split_heads(self.q_proj(hidden) + self.q_bias, self.heads)
        key = split_heads(self.k_proj(hidden), self.heads)
        value = split_heads(self.v_proj(hidden) + self.v_bias, self.heads)
        mixed = attend(self._turn(query), self._turn(key), value, self.attn)
        result: Tensor = self.proj(self.inner_attn_ln(mixed))
        return result

    def _turn(self, heads: Tensor) -> Tensor:
        """Apply the rotary positions to the patches, but not to CLS."""
        first, patches = heads[:, :, :1], heads[:, :, 1:]
        return torch.cat([first, self.rope(patches).to(heads.dtype)], dim=2)


class _SwiGlu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.ffn_ln = _norm(inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        gated = functional.silu(self.w1(hidden)) * self.w2(hidden)
        result: Tensor = self.w3(self.ffn_ln(gated))
        return result


def read_sizes(config: Mapping[str, Any]) -> EvaSizes:
    """Read the sizes in ``config``. Raises InputError ``unsupported-tower-config``."""
    names = [field.name for field in fields(EvaSizes)]
    sizes = EvaSizes(**{name: checked(name, config[name], int) for name in names if name in config})
    if sizes.width % (4 * sizes.heads):
        raise unsupported("heads", f"heads of width 4, 8, … in {sizes.width}", sizes.heads)
    return sizes


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=_EPS)


def _angles(grid: int, head_width: int) -> Tensor:
    """Return the angles in radians, [grid², head width] (EVA-02, Fang et al.)."""
    half = head_width // 2
    speeds = _ROTARY_THETA ** -(torch.arange(0, half, 2, dtype=torch.float32) / half)
    positions = torch.arange(grid, dtype=torch.float32) / grid * _ROTARY_LENGTH
    along = torch.outer(positions, speeds).repeat_interleave(2, dim=-1)
    rows = along[:, None, :].expand(grid, grid, half)
    columns = along[None, :, :].expand(grid, grid, half)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


TOWER = EvaTower
