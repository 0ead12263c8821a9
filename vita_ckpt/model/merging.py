"""Merge the features of an image's tiles, or of a video's frames, into the tokens of one."""

from __future__ import annotations

from math import ceil
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from vita_ckpt.core.anatomy.tiles import Size, Tiling, unpadded
from vita_ckpt.errors import UsageError

# Each side of a frame's map is divided by this.
_STRIDE: Final = 2


def merge_tiles(
    features: Tensor,
    image: Size | None,
    tiling: Tiling,
    newline: Tensor | None,
    side: int,
    tile: int,
) -> Tensor:
    """Return the tokens [T, hidden] of an image from the features [tiles, tokens, hidden] of tiles.

    The first tile is the whole image, the others are those of its grid, row by row. ``image`` is
    its width and height in pixels before it was cut, ``side`` the number of tokens along an edge of
    a tile of ``tile`` pixels. ``newline`` [hidden] ends each row of the map where the merge type
    asks for it.

    Raises UsageError ``tiles-do-not-merge`` where upstream raises too.
    """
    if tiling.merge == "flat":
        return features.flatten(0, 1)
    if not tiling.is_spatial:
        raise _misfit("flat or a spatial mm_patch_merge_type", tiling.merge)
    if len(features) == 1:
        return torch.cat([features[0], _line(newline)]) if tiling.has_newline else features[0]
    whole, parts = features[0], features[1:]
    grid = _grid(features, image, tiling, side, tile)
    # A map [hidden, rows * side, columns * side]
    laid = parts.reshape(grid[1], grid[0], side, side, -1)
    laid = laid.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    if tiling.extended and "maxpool2x2" in tiling.merge:
        tokens = _tokens(functional.max_pool2d(laid, 2))
    elif tiling.has_newline:
        tokens = _tokens(_ended(_unpadded(laid, image, tiling, side), newline))
    else:
        tokens = _tokens(laid)
    if tiling.extended and "nobase" in tiling.merge:
        return tokens
    return torch.cat([whole, tokens])


def _grid(features: Tensor, image: Size | None, tiling: Tiling, side: int, tile: int) -> Size:
    """Return the columns and rows of the tiles after the first."""
    if side * side != features.shape[1]:
        raise _misfit(f"{side * side} tokens of a tile, without CLS", str(features.shape[1]))
    if not tiling.is_anyres and not tiling.extended:
        raise _misfit("image_aspect_ratio anyres", tiling.aspect)
    if image is None and (tiling.has_newline or not tiling.extended):
        raise _misfit("image_sizes, the width and height of each image", "none")
    grid = tiling.grid(image or (1, 1), tile)
    if grid is None or len(features) - 1 != grid[0] * grid[1]:
        wanted = "image_grid_pinpoints" if grid is None else f"{grid[0]} x {grid[1]} tiles and one"
        raise _misfit(wanted, f"{len(features)} tiles of {image}")
    return grid


def _unpadded(laid: Tensor, image: Size | None, tiling: Tiling, side: int) -> Tensor:
    """Cut off what is no part of the image, and scale down what is more than may be."""
    assert image is not None  # noqa: S101 - checked with the grid
    height, width = laid.shape[1:]
    rows, columns = unpadded((width, height), image)
    laid = laid[:, rows, columns]
    height, width = laid.shape[1:]
    shrunk = tiling.shrunk(width, height, side)
    if shrunk == (width, height):
        return laid
    size = [shrunk[1], shrunk[0]]
    return functional.interpolate(laid[None], size=size, mode="bilinear")[0]


def merge_frames(
    features: Tensor, config_position: str, tiling: Tiling, newline: Tensor | None
) -> Tensor:
    """Return the tokens [T, hidden] of a video from its frames' features [frames, tokens, hidden].

    ``config_position`` is ``mm_newline_position``.
    """
    if tiling.merge == "flat" or config_position == "no_token":
        return features.flatten(0, 1)
    if config_position == "one_token":
        tokens = features.flatten(0, 1)
        return torch.cat([tokens, _line(newline)]) if tiling.has_newline else tokens
    if config_position == "frame":
        lines = _line(newline).expand(len(features), 1, -1)
        return torch.cat([features, lines], dim=1).flatten(0, 1)
    if config_position != "grid":
        raise _misfit("mm_newline_position grid, frame, one_token or no_token", config_position)
    side = int(features.shape[1] ** 0.5)
    rows = features.reshape(-1, side, features.shape[2])
    return torch.cat([rows, _line(newline).expand(len(rows), 1, -1)], dim=1).flatten(0, 1)


def pool_frames(features: Tensor, side: int, mode: str) -> Tensor:
    """Map the features of frames [frames, side², hidden] to half as many along each side.

    ``mode`` is ``mm_spatial_pool_mode``: ``average``, ``max`` or ``bilinear``.
    """
    if side * side != features.shape[1]:
        raise _misfit(f"{side * side} tokens of a frame", str(features.shape[1]))
    laid = features.transpose(1, 2).reshape(len(features), -1, side, side)
    if mode == "average":
        pooled = functional.avg_pool2d(laid, _STRIDE)
    elif mode == "max":
        pooled = functional.max_pool2d(laid, _STRIDE)
    elif mode == "bilinear":
        half = ceil(side / _STRIDE)
        pooled = functional.interpolate(laid, size=[half, half], mode="bilinear")
    else:
        raise _misfit("mm_spatial_pool_mode average, max or bilinear", mode)
    return pooled.flatten(2).transpose(1, 2)


def _ended(laid: Tensor, newline: Tensor | None) -> Tensor:
    """Append a newline to each row of a map [hidden, rows, columns]."""
    column = _line(newline)[0][:, None, None].expand(*laid.shape[:-1], 1)
    return torch.cat([laid, column], dim=2)


def _tokens(laid: Tensor) -> Tensor:
    """Map [hidden, rows, columns] to [rows * columns, hidden]."""
    return laid.flatten(1, 2).transpose(0, 1)


def _line(newline: Tensor | None) -> Tensor:
    """Return the newline as a token [1, hidden]."""
    if newline is None:
        raise _misfit("an image_newline", "a model without one")
    return newline[None]


def _misfit(expected: str, got: str) -> UsageError:
    return UsageError("tiles-do-not-merge", "tiles_per_image", expected=expected, got=got)
