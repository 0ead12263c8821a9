"""Lay out images of any resolution as tiles: which grid of them, and what of it is the image.

The rules are LLaVA's, and those that LLaVA-NeXT adds (FAMILY §1, §3). Sizes are (width, height).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil, inf, sqrt
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass

Size = tuple[int, int]

# The sizes of tiles for which a range of grids, such as "(1x1),...,(6x6)", may be given.
RANGED_TILES: Final = (224, 336, 384, 448, 512)
# Values of ``image_aspect_ratio`` for LLaVA-NeXT's other ways of cutting an image.
UNKNOWN_CUTS: Final = ("highres", "crop_split")
# What LLaVA-NeXT assumes where it finds no grid.
_ASSUMED: Final = (2, 2)
# Above this ratio of the features of an image to those of N tiles it scales them down.
_TOLERATED: Final = 1.1

_MOST_GRIDS: Final = 1 << 12
_NUMBER: Final = "[0-9]{1,6}"
_PAIR: Final = re.compile(rf"[\[(]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[\])]")
_RANGE: Final = re.compile(rf"\(({_NUMBER})x({_NUMBER})\)")
_MOST_TILES: Final = re.compile(rf"anyres_max_({_NUMBER})")


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a checkpoint's images become tiles, and the features of tiles those of an image.

    ``merge`` is its ``mm_patch_merge_type``, ``aspect`` its ``image_aspect_ratio`` and
    ``pinpoints`` its ``image_grid_pinpoints``. ``extended`` adds the rules of LLaVA-NeXT.
    """

    merge: str = "flat"
    aspect: str = "square"
    pinpoints: Any = None
    extended: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], *, extended: bool) -> Tiling:
        """Return the tiling of a checkpoint's config."""
        return cls(
            str(config.get("mm_patch_merge_type", "flat")),
            str(config.get("image_aspect_ratio", "square")),
            config.get("image_grid_pinpoints"),
            extended,
        )

    @property
    def is_spatial(self) -> bool:
        """Whether the features of several tiles are laid out as one map."""
        return self.merge.startswith("spatial")

    @property
    def has_newline(self) -> bool:
        """Whether the model has an ``image_newline``, which ends each row of that map."""
        return "unpad" in self.merge

    @property
    def is_anyres(self) -> bool:
        """Whether an image is cut into the tiles of a grid that fits it."""
        return self.aspect == "anyres" or (self.extended and "anyres_max" in self.aspect)

    @property
    def most_tiles(self) -> int | None:
        """The number of tiles beyond whose features an image's are scaled down; None for none."""
        found = _MOST_TILES.match(self.aspect) if self.extended else None
        return int(found[1]) if found else None

    def sizes(self, tile: int) -> tuple[Size, ...]:
        """Return the sizes in pixels into which an image may be resized; empty without any."""
        return parse_pinpoints(self.pinpoints, tile if self.extended else None)

    def grid(self, image: Size, tile: int) -> Size | None:
        """Return the columns and rows of the tiles of ``tile`` pixels; None where there is none."""
        best = best_size(image, self.sizes(tile)) if self.is_anyres else None
        if best is not None:
            return best[0] // tile, best[1] // tile
        return _ASSUMED if self.extended else None

    def shrunk(self, width: int, height: int, side: int) -> Size:
        """Return the size of a map of features that may be too large, of tiles of side² each."""
        if self.most_tiles is None or not self.has_newline or "maxpool2x2" in self.merge:
            return width, height
        times = sqrt(height * width / (self.most_tiles * side**2)) if self.most_tiles else 0.0
        if times <= _TOLERATED:
            return width, height
        return int(width // times), int(height // times)

    def tokens(
        self, image: Size | None, tiles: int, side: int, tile: int, tokens: int
    ) -> int | None:
        """Return how many tokens an image becomes; None where its tiles cannot be merged.

        ``tiles`` of ``tile`` pixels gave ``tokens`` each, ``side`` along an edge.
        """
        if not self.is_spatial:
            return tiles * tokens if self.merge == "flat" else None
        if tiles == 1:
            return tokens + self.has_newline
        grid = self.grid(image, tile) if image is not None else None
        if grid is None or image is None or side * side != tokens or tiles != grid[0] * grid[1] + 1:
            return None
        width, height = grid[0] * side, grid[1] * side
        base = 0 if self.extended and "nobase" in self.merge else tokens
        if self.extended and "maxpool2x2" in self.merge:
            return base + (width // 2) * (height // 2)
        if not self.has_newline:
            return base + width * height
        rows, columns = unpadded((width, height), image)
        width, height = columns.stop - columns.start, rows.stop - rows.start
        width, height = self.shrunk(width, height, side)
        return base + (width + 1) * height


def parse_pinpoints(value: Any, ranged_tile: int | None = None) -> tuple[Size, ...]:
    """Return the sizes that ``image_grid_pinpoints`` lists; empty if it lists none.

    It is a list of pairs, or its text. With ``ranged_tile`` it may also be a range of grids of
    tiles of that size, as text.
    """
    if isinstance(value, str):
        if "x" in value:
            return _ranged(value, ranged_tile)
        if _PAIR.sub("", value).strip(" ,[]()\n\t"):
            return ()
        value = [(int(one[1]), int(one[2])) for one in _PAIR.finditer(value)]
    if not isinstance(value, Sequence) or not all(_is_size(pair) for pair in value):
        return ()
    return tuple((pair[0], pair[1]) for pair in value)


def best_size(image: Size, sizes: Sequence[Size]) -> Size | None:
    """Return the size that keeps most of an image, and of several the one that wastes least."""
    best: Size | None = None
    most, least = 0, inf
    for width, height in sizes:
        scale = min(width / image[0], height / image[1])
        scaled = int(image[0] * scale) * int(image[1] * scale)
        kept = min(scaled, image[0] * image[1])
        wasted = width * height - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (width, height), kept, wasted
    return best


def fitted(image: Size, target: Size) -> Size:
    """Return the largest size within ``target`` in which an image keeps its aspect, rounded up."""
    across, down = target[0] / image[0], target[1] / image[1]
    if across < down:
        return target[0], min(ceil(image[1] * across), target[1])
    return min(ceil(image[0] * down), target[0]), target[1]


def unpadded(grid: Size, image: Size) -> tuple[slice, slice]:
    """Return the rows and the columns of a map of features that are an image's, without padding."""
    width, height = grid
    if image[0] / image[1] > width / height:
        padding = (height - int(image[1] * (width / image[0]))) // 2
        return slice(padding, height - padding), slice(0, width)
    padding = (width - int(image[0] * (height / image[1]))) // 2
    return slice(0, height), slice(padding, width - padding)


def _ranged(text: str, tile: int | None) -> tuple[Size, ...]:
    """Return the sizes of all grids from the first to the last that a text names."""
    named = _RANGE.findall(text)
    if tile not in RANGED_TILES or not named:
        return ()
    (first_x, first_y), (last_x, last_y) = (map(int, named[0]), map(int, named[-1]))
    across, down = range(first_x, last_x + 1), range(first_y, last_y + 1)
    if len(across) * len(down) > _MOST_GRIDS:
        return ()
    return tuple((x * tile, y * tile) for x in across for y in down)


def _is_size(pair: Any) -> bool:
    return (
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(type(side) is int and 0 < side < 1 << 20 for side in pair)
    )
