"""Run CLIP, the vision transformer of transformers, alone or at the scales of S2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor

from vita_ckpt.core.anatomy.families import Features
from vita_ckpt.core.anatomy.towers.families.clip import CLIP
from vita_ckpt.model.towers.s2 import S2Tower
from vita_ckpt.model.towers.transformers_tower import TransformersTower


class ClipTower(TransformersTower):
    """CLIP: by default the patches of hidden state -2, without CLS."""

    traits = CLIP
    config_class = transformers.CLIPVisionConfig
    model_class = transformers.CLIPVisionModel

    def __init__(
        self,
        config: Mapping[str, Any],
        attn: str | None,
        features: Features | None = None,
        scales: int = 1,
    ) -> None:
        super().__init__(config, attn, features, scales)
        self.tokens += self.selected.class_token

    def embed(self, body: Any, pixel_values: Tensor) -> Tensor:
        """Return the embeddings after the pre-norm, under the library's spelling of its name."""
        hidden: Tensor = body.pre_layrnorm(super().embed(body, pixel_values))
        return hidden

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, tokens, width]."""
        states = self.hidden_states(pixel_values)
        return states if self.selected.class_token else states[:, 1:]


class ClipS2Tower(S2Tower, ClipTower):
    """CLIP at each of several scales: LLaVA has it, VITA has not."""

    def accepts(self, height: int, width: int) -> bool:
        """Return whether tiles have the size that the library takes."""
        return height == width == self.tile_size


TOWER = ClipTower
S2_TOWER = ClipS2Tower
