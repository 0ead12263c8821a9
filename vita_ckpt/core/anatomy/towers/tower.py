"""Represent a vision tower, and the directory that holds one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.anatomy.towers.families import FAMILIES
from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower as described by a config or by shapes; unknown values are None.

    ``family`` is the name of its family, ``width`` the hidden size of the transformer,
    ``image_size`` the side of its images in pixels (from shapes: the size that the position table
    fits).
    """

    family: str
    width: int
    layers: int | None = None
    patch_size: int | None = None
    image_size: int | None = None

    @property
    def traits(self) -> Family:
        """The properties of its family."""
        return FAMILIES[self.family]

    @property
    def grid(self) -> int | None:
        """Patches along one side of an image."""
        if not self.patch_size or self.image_size is None:
            return None
        return self.image_size // self.patch_size

    @property
    def has_odd_grid(self) -> bool:
        """Whether its grid of patches is not divisible by its family's pixel shuffle."""
        return self.grid is not None and self.grid % self.traits.pixel_shuffle != 0

    def output_width(self, scales: int = 1) -> int:
        """Return the features per token that the projector receives, ``mm_hidden_size``.

        ``scales`` is the number of S2 scales (1 without S2), whose features are concatenated.
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

    def differences(self, other: Tower) -> tuple[str, ...]:
        """Return the fields in which two towers differ, of those that both are known to have.

        Pixels beyond the last whole patch make no difference.
        """
        fields = ("family", "width", "layers", "patch_size", "image_size")
        pairs = {field: (getattr(self, field), getattr(other, field)) for field in fields}
        differ = [f for f, (a, b) in pairs.items() if None not in (a, b) and a != b]
        if self.patch_size == other.patch_size and self.grid == other.grid:
            differ = [field for field in differ if field != "image_size"]
        return tuple(differ)

    def __str__(self) -> str:
        text = f"{self.traits.label}, width {self.width}"
        text += f", {self.layers} layers" if self.layers is not None else ""
        text += f", patch {self.patch_size}" if self.patch_size is not None else ""
        return text + (f", {self.image_size} px" if self.image_size is not None else "")


@dataclass(frozen=True, slots=True)
class TowerDirectory:
    """The result of following ``mm_vision_tower``: nothing, something unreadable, or a tower.

    ``config`` is the tower's own config, None for a lone weight file.
    """

    path: str | None
    problem: str | None
    tower: Tower | None
    config: Mapping[str, Any] | None = None
