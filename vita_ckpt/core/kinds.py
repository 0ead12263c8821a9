"""What a checkpoint must be for a surgery or a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.backbones import BACKBONES, PLAIN_LANGUAGE_MODELS
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.errors import InputError

_LAYOUTS: Final = {
    "lora": "LoRA run",
    "run": "projector run",
    "file": "lone weight file",
    "none": "nothing",
}


def vita_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The config of a VITA checkpoint: a directory of a model's weights, with vision in its config.

    Raises InputError for an adapter, a run, a lone file, a plain language model or a tower.
    """
    if checkpoint.layout not in ("safetensors", "torch") or checkpoint.config is None:
        layout = _LAYOUTS.get(checkpoint.layout)
        raise InputError(
            "not-a-vita-checkpoint",
            checkpoint.root,
            expected="a checkpoint directory with config.json and the model's weights",
            got=f"a {layout}" if layout is not None else "no config.json",
            hint="an adapter is merged into a checkpoint with merge-projector",
        )
    model_type = checkpoint.config.get("model_type")
    if str(model_type) in BACKBONES or "mm_vision_tower" in checkpoint.config:
        return checkpoint.config
    plain = PLAIN_LANGUAGE_MODELS.get(str(model_type))
    raise InputError(
        "not-a-vita-checkpoint",
        checkpoint.root,
        expected=f"model_type {', '.join(BACKBONES)}",
        got=f"{model_type!r}" + (f", a plain {plain} language model" if plain else ""),
        hint="the config.json is not one of a VITA checkpoint",
    )
