"""Tiny models of families that no loader reads, as published: names, shapes and configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fixtures.builder import (
    Shapes,
    Spec,
    TowerSpec,
    below,
    checkpoint_config,
    checkpoint_shapes,
    language_model,
    linear,
    mm_projector,
    norm,
    tower_config,
    vision_tower,
)

CLIP = TowerSpec("clip")
INTERNVIT = TowerSpec("internvit")
SPEC = Spec(tower=CLIP)


@dataclass(frozen=True)
class Family:
    """A model of another family: what inspect calls it, its tensors and its config.

    ``parts`` count its tensors: language model, projector, vision tower.
    """

    label: str
    shapes: Shapes
    config: dict[str, Any]
    parts: tuple[int, int, int]


def renamed(shapes: Shapes, change: Callable[[str], str]) -> Shapes:
    return {change(name): shape for name, shape in shapes.items()}


def plain_config(spec: Spec) -> dict[str, Any]:
    """The config of the language model alone."""
    keys = checkpoint_config(spec, "F32")
    own = ("architectures", "mm_", "use_", "unfreeze", "model_type")
    rest = {key: value for key, value in keys.items() if not key.startswith(own)}
    return {**rest, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def nested_config(model_type: str, architecture: str, tower: TowerSpec) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "text_config": plain_config(SPEC),
        "vision_config": tower_config(tower),
        "vision_feature_layer": -2,
    }


LANGUAGE = language_model(SPEC)
TOWER = vision_tower(CLIP)
_HF_PROJECTOR = linear("linear_1", 8, 16) | linear("linear_2", 16, 16)
_COUNTS = len(LANGUAGE), len(_HF_PROJECTOR), len(TOWER)
_VITA = checkpoint_shapes(SPEC)


def vita_like(model_type: str, architecture: str, **more: Any) -> dict[str, Any]:
    """A config with VITA's keys, as LLaVA, Bunny and LLaVA-NeXT have them."""
    config = checkpoint_config(SPEC, "F32")
    return {**config, "architectures": [architecture], "model_type": model_type, **more}


def _new_spelling(name: str) -> str:
    if name == "lm_head.weight":
        return name
    return name.replace("model.", "model.language_model.", 1)


FAMILIES: dict[str, Family] = {
    "llava-hf": Family(
        "llava-hf",
        below("language_model.", LANGUAGE)
        | below("vision_tower.", TOWER)
        | below("multi_modal_projector.", _HF_PROJECTOR),
        nested_config("llava", "LlavaForConditionalGeneration", CLIP),
        _COUNTS,
    ),
    "llava-hf-new": Family(
        "llava-hf",
        renamed(LANGUAGE, _new_spelling)
        | below("model.vision_tower.", TOWER)
        | below("model.multi_modal_projector.", _HF_PROJECTOR)
        | {"model.image_newline": (16,)},
        nested_config("llava_next", "LlavaNextForConditionalGeneration", CLIP),
        _COUNTS,
    ),
    "internvl": Family(
        "InternVL-chat",
        below("language_model.", LANGUAGE)
        | below("vision_model.", vision_tower(INTERNVIT))
        | below("mlp1.", norm("0", 32) | linear("1", 32, 16) | linear("3", 16, 16)),
        {
            "architectures": ["InternVLChatModel"],
            "model_type": "internvl_chat",
            "llm_config": plain_config(SPEC),
            "vision_config": tower_config(INTERNVIT),
        },
        (len(LANGUAGE), 6, len(vision_tower(INTERNVIT))),
    ),
    "tinyllava": Family(
        "TinyLLaVA",
        below("language_model.", LANGUAGE)
        | below("vision_tower._vision_tower.", TOWER)
        | below("connector._connector.", mm_projector("mlp2x_gelu", 8, 16)),
        nested_config("tinyllava", "TinyLlavaForConditionalGeneration", CLIP),
        (len(LANGUAGE), 4, len(TOWER)),
    ),
    "long-vita": Family(
        "Long-VITA",
        LANGUAGE
        | below("model.vision_model.", vision_tower(INTERNVIT))
        | below("model.vision_projection.", norm("pre_norm", 32) | linear("mlp.0", 32, 16)),
        {
            **plain_config(SPEC),
            "architectures": ["LongVITAForCausalLM"],
            "model_type": "long_vita",
            "visual": tower_config(INTERNVIT),
        },
        (len(LANGUAGE), 4, len(vision_tower(INTERNVIT))),
    ),
    "vita-audio": Family(
        "VITA-Audio",
        LANGUAGE | below("model.", linear("mtp_projectors.0", 32, 16, False)),
        {
            **plain_config(SPEC),
            "architectures": ["Qwen2MTPSenseVoiceForCausalLM"],
            "model_type": "qwen2_mtp_sensevoice",
        },
        (len(LANGUAGE), 0, 0),
    ),
    "vita-e": Family(
        "VITA-E",
        below("vita_model.", _VITA) | linear("action_head.decoder", 8, 8),
        {"architectures": ["GR00T_N1"], "model_type": "gr00t_n1", "action_dim": 32},
        _COUNTS,
    ),
}
# Families whose models have a tower of vision to take out.
WITH_TOWER = tuple(name for name, family in FAMILIES.items() if family.parts[2])
