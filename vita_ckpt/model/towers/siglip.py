"""Run SigLIP, the vision transformer of transformers, alone or at the scales of S2."""

from __future__ import annotations

import transformers
from torch import Tensor

from vita_ckpt.core.anatomy.towers.families.siglip import SIGLIP
from vita_ckpt.model.towers.s2 import S2Tower
from vita_ckpt.model.towers.transformers_tower import TransformersTower


class SiglipTower(TransformersTower):
    """SigLIP: by default all patches of hidden state -2."""

    traits = SIGLIP
    config_class = transformers.SiglipVisionConfig
    model_class = transformers.SiglipVisionModel

    def accepts(self, height: int, width: int) -> bool:
        """Return whether the grid fits; pixels beyond the last whole patch are ignored."""
        grid = self.image_size // self.patch_size
        return height // self.patch_size == width // self.patch_size == grid

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, tokens, width]."""
        return self.hidden_states(pixel_values)


class SiglipS2Tower(S2Tower, SiglipTower):
    """SigLIP at each of several scales."""


TOWER = SiglipTower
S2_TOWER = SiglipS2Tower
