"""Classify the tensors of a VITA checkpoint into parts by the prefixes of their names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

VISION_TOWER: Final = "vision_tower"
MM_PROJECTOR: Final = "mm_projector"
IMAGE_NEWLINE: Final = "image_newline"
VISION_RESAMPLER: Final = "vision_resampler"
LANGUAGE_MODEL: Final = "language_model"
AUDIO_ENCODER: Final = "audio_encoder"
AUDIO_ADAPTER: Final = "audio_adapter"
STATE_PREDICTOR: Final = "state_predictor"
LORA: Final = "lora"
OTHER: Final = "other"

# In the order in which a report shows them.
LABELS: Final[dict[str, str]] = {
    LANGUAGE_MODEL: "language model",
    MM_PROJECTOR: "projector",
    VISION_TOWER: "vision tower",
    IMAGE_NEWLINE: "image newline",
    VISION_RESAMPLER: "vision resampler",
    AUDIO_ENCODER: "audio encoder",
    AUDIO_ADAPTER: "audio adapter",
    STATE_PREDICTOR: "state predictor",
    LORA: "LoRA deltas",
    OTHER: "other",
}

PROJECTOR_PREFIX: Final = "model.mm_projector."
# The module of the model that holds the tower, and the tower in it.
TOWER_MODULE: Final = "model.vision_tower."
TOWER_PREFIX: Final = "model.vision_tower.vision_tower."
NEWLINE: Final = "model.image_newline"
EMBED_TOKENS: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"
LAYERS_PREFIX: Final = "model.layers."
# The norm after the layers, of one language model or another.
LAST_NORMS: Final = ("model.norm.weight", "model.final_layernorm.weight")

# PEFT writes every name of the model it wraps below this prefix.
PEFT_PREFIX: Final = "base_model.model."

# The first matching prefix decides, so the audio adapter comes before the encoder that contains it,
# and the layers, which most names are of, come first. "adpter" is how the checkpoints spell it.
_PREFIXES: Final = (
    (LAYERS_PREFIX, LANGUAGE_MODEL),
    (TOWER_MODULE, VISION_TOWER),
    (PROJECTOR_PREFIX, MM_PROJECTOR),
    ("model.audio_encoder.adpter.", AUDIO_ADAPTER),
    ("model.audio_encoder.", AUDIO_ENCODER),
    ("predictor_head.", STATE_PREDICTOR),
    ("model.embed_tokens.", LANGUAGE_MODEL),
    ("model.norm.", LANGUAGE_MODEL),
    ("model.final_layernorm.", LANGUAGE_MODEL),
    (NEWLINE, IMAGE_NEWLINE),
    ("model.vision_resampler.", VISION_RESAMPLER),
    ("lm_head.", LANGUAGE_MODEL),
)

# All of them begin with this, which is looked for first because it is cheap.
_LORA_WORD: Final = "lora_"
_LORA_COMPONENTS: Final = frozenset(
    {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
)


@lru_cache(1 << 17)
def part_of(name: str) -> str:
    """Return the part that a tensor belongs to, by its on-disk name; PEFT's prefix is ignored."""
    if _LORA_WORD in name and not _LORA_COMPONENTS.isdisjoint(name.split(".")):
        return LORA
    bare = name.removeprefix(PEFT_PREFIX)
    for prefix, part in _PREFIXES:
        if bare.startswith(prefix):
            return part
    return OTHER


def below(prefix: str, names: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the names below ``prefix``, with the prefix removed."""
    return {
        name.removeprefix(prefix): shape for name, shape in names.items() if name.startswith(prefix)
    }
