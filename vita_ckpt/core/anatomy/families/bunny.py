"""Describe Bunny, VITA's parent: the directory's tower wins unless the config says otherwise."""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.backbones import Backbone
from vita_ckpt.core.anatomy.families.family import (
    SIDES,
    Config,
    Exists,
    Key,
    Load,
    ModelFamily,
    TowerSource,
)

_NUMBER: Final = (int, float)
_INTERNVIT: Final = "internvit"


def _dispatch(config: Config, exists: Exists) -> towers.Dispatch:
    """Choose by the first family's word in the path: as VITA, which added InternViT."""
    path = str(config.get("mm_vision_tower"))
    found = towers.dispatch(path, bool(config.get("use_s2")))
    if _INTERNVIT not in (found.family, found.reason.family):
        return found
    words = ", ".join(f'"{f.word}"' for f in towers.FAMILIES.values() if f.name != _INTERNVIT)
    reason = towers.Reason(towers.Outcome.NO_WORD, text=f"none of {words} in the path: it raises")
    return towers.Dispatch(None, None, reason)


def _tower_source(config: Config, load: Load) -> TowerSource:
    """Return which tower wins: a trained one is read again, strictly, from safetensors files."""
    if config.get("unfreeze_vision_tower"):
        found = load.stored and load.safetensors
        return TowerSource.CHECKPOINT if found else TowerSource.RAISES
    if config.get("continuous_training"):
        return TowerSource.CHECKPOINT if load.stored else TowerSource.UNINITIALISED
    return TowerSource.DIRECTORY


def _refused_run(config: Config) -> str | None:
    trained = config.get("unfreeze_vision_tower")
    return "AssertionError: unfreeze_vision_tower in its config" if trained else None


BUNNY: Final = ModelFamily(
    name="bunny",
    label="Bunny",
    backbones=(
        Backbone("bunny-qwen2", "BunnyQwen2ForCausalLM", "qwen1.5-1.8b", "Qwen2", "qwen2"),
        Backbone("bunny-llama", "BunnyLlamaForCausalLM", "llama3-8b", "Llama", "llama"),
        Backbone("bunny-phi", "BunnyPhiForCausalLM", "phi-2", "Phi", "phi"),
        Backbone("bunny-phi3", "BunnyPhi3ForCausalLM", "phi-3", "Phi3", "phi3"),
        Backbone(
            "bunny-stablelm",
            "BunnyStableLMForCausalLM",
            "stablelm-2",
            "StableLm",
            "stablelm_epoch",
        ),
        Backbone("bunny-minicpm", "BunnyMiniCPMForCausalLM", "minicpm", "MiniCPM", "minicpm"),
    ),
    dispatch=_dispatch,
    tower_source=_tower_source,
    projector_types=projectors.TYPES,
    default_projector=projectors.DEFAULT_TYPE,
    unfreeze_key="unfreeze_vision_tower",
    s2_key="use_s2",
    default_s2_scales=towers.DEFAULT_S2_SCALES,
    s2_towers=tuple(family.name for family in towers.WITH_S2),
    keys={
        "mm_vision_tower": Key((str,)),
        "mm_hidden_size": Key((int,)),
        "mm_projector_type": Key((str,), projectors.DEFAULT_TYPE),
        "use_mm_proj": Key((bool,)),
        "use_s2": Key((bool,), default=False),
        "s2_scales": Key((str,), towers.DEFAULT_S2_SCALES),
        "unfreeze_vision_tower": Key((bool,), default=False),
        "continuous_training": Key((bool,), default=False),
        "image_aspect_ratio": Key((str,), choices=("square", "pad")),
        "tune_mm_mlp_adapter": Key((bool,)),
        "freeze_mm_mlp_adapter": Key((bool,)),
        "mm_projector_lr": Key(_NUMBER),
        "tokenizer_model_max_length": Key((int,)),
        "tokenizer_padding_side": Key((str,), choices=SIDES),
    },
    loaders=("bunny",),
    runs_on="transformers 4.38",
    refused_run=_refused_run,
    unscaled=("Qwen2",),
)
