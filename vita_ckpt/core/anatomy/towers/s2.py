"""Parse and check S2, the scales at which upstream runs a tower."""

from __future__ import annotations

import re
from typing import Final

from vita_ckpt.core.anatomy.towers.tower import Tower

# Upstream's default when the config asks for S2 without naming scales.
DEFAULT_S2_SCALES: Final = "384,768,1152"

# Along a side of the largest scale. Upstream's default has three.
MOST_TILES: Final = 16


def parse_s2_scales(text: str) -> tuple[int, ...] | None:
    """Return the scales in a list such as ``"384,768,1152"``, ascending; None if it is invalid."""
    if not re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", text, re.ASCII):
        return None
    scales = tuple(sorted(int(scale) for scale in text.split(",")))
    return scales if scales[0] else None


def fits_s2_scales(tower: Tower, scales: tuple[int, ...]) -> bool:
    """Return whether images of each scale (ascending) divide into tiles of the tower's size."""
    if not tower.patch_size or not scales or scales[-1] > MOST_TILES * scales[0]:
        return False
    for scale in scales:
        side, rest = divmod(scale, -(-scale // scales[0]))
        if rest or side // tower.patch_size != tower.grid:
            return False
    return True
