"""A vision tower, and the directory that holds one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vita_ckpt.core.anatomy.towers.families import FAMILIES
from vita_ckpt.core.anatomy.towers.family import Family

# In a tower's directory, and the name under which a swapped checkpoint carries the config.


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower as a config or as shapes describe it; None is what they do not say.

    ``family`` is the name of its family, ``width`` the hidden size of the transformer,
    ``image_size`` the side of its images in pixels (from shapes: the size that the table of
    positions fits).
    """

    family: str
    width: int
    layers: int | None = None
    patch_size: int | None = None
    image_size: int | None = None

    @property
    def traits(self) -> Family:
        """What distinguishes its family from the others."""
        return FAMILIES[self.family]

    @property
    def grid(self) -> int | None:
        """Patches along one side of an image."""
        if not self.patch_size or self.image_size is None:
            return None
        return self.image_size // self.patch_size

    @property
    def has_odd_grid(self) -> bool:
        """Whether the pixel shuffle of its family cannot divide its grid of patches."""
        return self.grid is not None and self.grid % self.traits.pixel_shuffle != 0

    def output_width(self, scales: int = 1) -> int:
        """Return the features per token that the projector receives, ``mm_hidden_size``.

        ``scales`` is the number of S2 scales (1 without S2): their features are concatenated.
        """
        shuffle = self.traits.pixel_shuffle
        return self.width * (shuffle**2 if shuffle > 1 else scales)

    def tokens(self, image_size: int | None = None) -> int | None:
        """Return the tokens per image before the projector, None if unknown or not computable.

        ``image_size`` replaces the tower's own (the smallest scale of S2).
        """
        image_size = self.image_size if image_size is None else image_size
        if not self.patch_size or image_size is None:
            return None
        grid, rest = divmod(image_size // self.patch_size, self.traits.pixel_shuffle)
        return None if rest else grid * grid

    def __str__(self) -> str:
        text = f"{self.traits.label}, width {self.width}"
        text += f", {self.layers} layers" if self.layers is not None else ""
        text += f", patch {self.patch_size}" if self.patch_size is not None else ""
        return text + (f", {self.image_size} px" if self.image_size is not None else "")


@dataclass(frozen=True, slots=True)
class TowerDirectory:
    """What lies where ``mm_vision_tower`` points: nothing, something unreadable, or a tower.

    ``config`` is the tower's own config, None for a lone file of weights.
    """

    path: str | None
    problem: str | None
    tower: Tower | None
    config: Mapping[str, Any] | None = None
