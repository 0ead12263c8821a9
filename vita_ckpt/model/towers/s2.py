"""Run a tower with S2: at several scales of one image, concatenated along the channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vita_ckpt.core.anatomy.families import Features
from vita_ckpt.core.anatomy.towers.s2 import MOST_TILES
from vita_ckpt.errors import InputError
from vita_ckpt.model.towers.transformers_tower import TransformersTower


class S2Tower(TransformersTower):
    """A mixin that runs the tower class after it at each of ``scales`` (pixels, in any order).

    An image of any size is resized to each scale and cut into a grid of tiles of about the smallest
    scale. The tiles are run, and their feature maps are joined, pooled to one tile's grid and
    concatenated in ascending order of scale (UPSTREAM §3; Shi et al., "When Do We Not Need Larger
    Vision Models?"). ``image_size`` is the largest scale, which is the size that upstream's
    processor makes. Raises InputError ``s2-scales-do-not-fit-tower``.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        scales: Sequence[int],
        attn: str | None,
        features: Features | None = None,
    ) -> None:
        super().__init__(config, attn, features, len(scales))
        self.scales = tuple(sorted(scales))
        self._check_scales()
        self.image_size = self.scales[-1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [N, 3, H, W] to [N, tokens, width * scales] in the dtype of the pixels."""
        maps = [self._map_at(scale, pixel_values) for scale in self.scales]
        return torch.cat(maps, dim=1).flatten(2).transpose(1, 2)

    def accepts(self, height: int, width: int) -> bool:
        """Return whether tiles of this size fit the position table."""
        return height // self.patch_size == width // self.patch_size == self.grid

    def _map_at(self, scale: int, pixel_values: Tensor) -> Tensor:
        """Return the feature map of one scale, [N, width, grid, grid]."""
        boards = self._boards(scale)
        resized = _resize(pixel_values, scale, "bicubic")
        features = super().forward(_cut(resized, boards))
        tiles = features.transpose(1, 2).reshape(len(features), -1, self.grid, self.grid)
        return _resize(_join(tiles, boards), self.grid, "area")

    def _boards(self, scale: int) -> int:
        """Return the number of tiles along one side."""
        return -(-scale // self.scales[0])

    def _check_scales(self) -> None:
        for scale in self.scales:
            tiles = self._boards(scale) if scale > 0 else 1
            side, rest = divmod(scale, tiles)
            if rest or tiles > MOST_TILES or not self.accepts(side, side):
                raise InputError(
                    "s2-scales-do-not-fit-tower",
                    "s2_scales",
                    expected=f"multiples of {self.tile_size}, the size of the tower's images",
                    got=", ".join(map(str, self.scales)),
                )
        if not self.scales:
            raise InputError("s2-scales-do-not-fit-tower", "s2_scales", expected="scales, got none")


def _resize(images: Tensor, side: int, mode: str) -> Tensor:
    """Map [N, C, H, W] to [N, C, side, side], computed in float32, in the dtype of the input."""
    corners = False if mode == "bicubic" else None
    resized = functional.interpolate(
        images.to(torch.float32), size=(side, side), mode=mode, align_corners=corners
    )
    return resized.to(images.dtype)


def _cut(images: Tensor, boards: int) -> Tensor:
    """Map [N, C, H, W] to [N * boards², C, H / boards, W / boards], an image's tiles row by row."""
    count, channels, height, width = images.shape
    board = images.reshape(count, channels, boards, height // boards, boards, width // boards)
    return board.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _join(tiles: Tensor, boards: int) -> Tensor:
    """Join tiles into images, the inverse of ``_cut``."""
    _, channels, height, width = tiles.shape
    board = tiles.reshape(-1, boards, boards, channels, height, width)
    joined = board.permute(0, 3, 1, 4, 2, 5)
    return joined.reshape(-1, channels, boards * height, boards * width)
