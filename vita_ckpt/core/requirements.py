"""Check the requirements that a surgery or a forward pass has of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.families import VITA, ModelFamily, family_of
from vita_ckpt.core.anatomy.language_tensors import LanguageModel, of_plain_type
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.kinds import (
    AUDIO_ADAPTER,
    LORA_RUN,
    PROJECTOR,
    kind_of,
    refuse_other_family,
    refuse_relative,
)
from vita_ckpt.core.quantisation import refuse_quantised
from vita_ckpt.core.remedies import consolidate
from vita_ckpt.errors import InputError

LAYOUTS: Final = {
    "lora": "a LoRA run",
    "run": "a projector run",
    "file": "a lone weight file",
    "state": "a training state",
    "none": "no weights",
}
_MERGED_WITH: Final = {
    PROJECTOR: "vita-ckpt merge-projector merges it into a checkpoint",
    LORA_RUN: "vita-ckpt merge-lora merges it into its base",
    AUDIO_ADAPTER: "vita-ckpt merge-audio-adapter merges it into a checkpoint",
}


def model_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the config of a whole model: a directory with its weights and a vision config.

    Raises InputError for an adapter, a run, a lone file, a plain language model, a tower, or a
    model that no family's loader reads.
    """
    config = _config(checkpoint)
    refuse_relative(checkpoint, "a checkpoint")
    if family_of(config) is not None or "mm_vision_tower" in config:
        return config
    model_type = config.get("model_type")
    plain = of_plain_type(model_type)
    made = f"merge-projector makes a checkpoint of a {plain.name} and a run" if plain else ""
    if plain is not None and VITA.backbone_on(model_type) is not None:
        made = "swap-tower and merge-projector --tower make a VITA checkpoint of a language model"
    raise InputError(
        "not-a-vita-checkpoint",
        checkpoint.root,
        expected=f"model_type {', '.join(BACKBONES)}",
        got=f"{model_type!r}" + (f", a plain {plain.name} language model" if plain else ""),
        hint=made or "the config.json is not one of a VITA checkpoint",
    )


def vita_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the config of a whole model of VITA, which alone has audio.

    Raises what :func:`model_config` raises, and InputError for a model of another family.
    """
    config = model_config(checkpoint)
    refuse_other_family(checkpoint, VITA, "a checkpoint")
    return config


def family_of_model(checkpoint: Checkpoint) -> ModelFamily:
    """Return the family of a whole model or a run: VITA's if its config does not name another."""
    return family_of(checkpoint.config, checkpoint.tensors) or VITA


def require_runnable(checkpoint: Checkpoint) -> None:
    """Raise InputError unless it is a whole model whose weights can be computed with."""
    model_config(checkpoint)
    refuse_quantised(checkpoint, "which the model computes with")


def plain_language_model(checkpoint: Checkpoint) -> LanguageModel | None:
    """Return what a checkpoint is if it is a plain language model; None for a whole model.

    Raises InputError for any other checkpoint.
    """
    config = _config(checkpoint)
    refuse_relative(checkpoint, "a checkpoint, or a plain language model,")
    plain = of_plain_type(config.get("model_type"))
    if plain is not None and "mm_vision_tower" not in config:
        return plain
    model_config(checkpoint)
    return None


def refuse_training_state(checkpoint: Checkpoint) -> None:
    """Raise InputError ``not-a-checkpoint`` for a training state, of which a checkpoint is made."""
    if checkpoint.training is not None:
        raise InputError(
            "not-a-checkpoint",
            checkpoint.root,
            expected="a directory with a model's weights",
            got="a training state",
            hint=f"{consolidate(checkpoint.root)} makes a checkpoint of it",
        )


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    if checkpoint.layout in ("safetensors", "torch") and checkpoint.config is not None:
        return checkpoint.config
    raise InputError(
        "not-a-vita-checkpoint",
        checkpoint.root,
        expected="a checkpoint directory with config.json and the model's weights",
        got=LAYOUTS.get(checkpoint.layout, "no config.json"),
        hint=_hint(checkpoint),
    )


def _hint(checkpoint: Checkpoint) -> str:
    """Return what to do with something that is no checkpoint."""
    if checkpoint.layout == "state":
        return f"{consolidate(checkpoint.root)} makes a checkpoint of it"
    if checkpoint.layout in ("safetensors", "torch"):
        return "copy config.json from the model that these weights are of"
    return _MERGED_WITH.get(kind_of(checkpoint).name, "name the directory of a checkpoint")
