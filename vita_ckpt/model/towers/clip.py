"""Run CLIP, the vision transformer of transformers, without its CLS token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor

from vita_ckpt.core.anatomy.towers.families.clip import CLIP
from vita_ckpt.model.towers.transformers_tower import TransformersTower


class ClipTower(TransformersTower):
    """CLIP: the patches of hidden state -2, without CLS."""

    def __init__(self, config: Mapping[str, Any], attn: str | None) -> None:
        library = (transformers.CLIPVisionConfig, transformers.CLIPVisionModel)
        super().__init__(CLIP.name, library, config, attn)

    def embed(self, body: Any, pixel_values: Tensor) -> Tensor:
        """Return the embeddings after the pre-norm, under the library's spelling of its name."""
        hidden: Tensor = body.pre_layrnorm(super().embed(body, pixel_values))
        return hidden

    def features(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, tokens, width]."""
        return self.hidden_state(pixel_values)[:, 1:]


TOWER = ClipTower
