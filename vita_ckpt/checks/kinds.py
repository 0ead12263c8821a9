"""Name what a checkpoint is: a VITA model, a projector, a LoRA run, a tower."""

from __future__ import annotations

from collections import Counter
from typing import Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.core.checkpoint import Checkpoint

VITA: Final = "vita-checkpoint"
LANGUAGE_MODEL: Final = "language-model"
PROJECTOR: Final = "projector"
LORA_RUN: Final = "lora-run"
TOWER: Final = "vision-tower"
AUDIO_ADAPTER: Final = "audio-adapter"
UNKNOWN: Final = "unknown"


def kind_of(checkpoint: Checkpoint, tower: Tower | None = None) -> str:
    """Return the kind of a checkpoint by its layout, names and model type."""
    found = Counter(parts.part_of(name) for name in checkpoint.tensors)
    if checkpoint.layout == "lora" or found[parts.LORA]:
        return LORA_RUN
    has_layers = any(name.startswith(parts.LAYERS_PREFIX) for name in checkpoint.tensors)
    has_vision = bool(found[parts.VISION_TOWER] or found[parts.MM_PROJECTOR])
    if has_layers:
        model_type = str((checkpoint.config or {}).get("model_type"))
        return VITA if has_vision or model_type in BACKBONES else LANGUAGE_MODEL
    if found[parts.MM_PROJECTOR] and not found[parts.VISION_TOWER]:
        return PROJECTOR
    if found[parts.AUDIO_ADAPTER] and len(found) == 1:
        return AUDIO_ADAPTER
    if tower is not None and not found[parts.MM_PROJECTOR]:
        return TOWER
    return VITA if has_vision else UNKNOWN
