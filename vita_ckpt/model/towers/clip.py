"""Run CLIP, the vision transformer of transformers, alone or at the scales of S2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from torch import Tensor

from vita_ckpt.core.anatomy.families import Features
from vita_ckpt.core.anatomy.towers.families.clip import CLIP
from vita_ckpt.model.towers.s2 import S2Tower
from vita_ckpt.model.towers.transformers_tower import TransformersTower


class ClipTower(TransformersTower):
    """CLIP: by default the patches of hidden state -2, without CLS."""

    def __init__(
        self,
        config: Mapping[str, Any],
        attn: str | None,
        features: Features | None = None,
        scales: int = 1,
    ) -> None:
        library = (transformers.CLIPVisionConfig, transformers.CLIPVisionModel)
        super().__init__(CLIP.name, library, config, attn, scales, features)
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
    """CLIP at each of ``scales``, in pixels: LLaVA has it, VITA has not."""

    def __init__(
        self,
        config: Mapping[str, Any],
        scales: Sequence[int],
        attn: str | None,
        features: Features | None = None,
    ) -> None:
        ClipTower.__init__(self, config, attn, features, len(scales))
        self.use_scales(scales)

    def accepts(self, height: int, width: int) -> bool:
        """Return whether tiles have the size that the library takes."""
        return height == width == self.tile_size


TOWER = ClipTower
S2_TOWER = ClipS2Tower
