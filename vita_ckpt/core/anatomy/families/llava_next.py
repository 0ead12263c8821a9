"""Describe LLaVA-NeXT and OneVision: the checkpoint's tower wins unless ``delay_load`` is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.backbones import Backbone
from vita_ckpt.core.anatomy.families.family import (
    Config,
    Exists,
    Features,
    ImageCount,
    Key,
    Load,
    ModelFamily,
    TowerSource,
)
from vita_ckpt.core.anatomy.families.llava import (
    CLASS_TOKEN,
    CLIP_FAMILY,
    DEFAULT_S2_SCALES,
    KEYS,
    PROJECTOR,
    added_tokens,
    clip_of_path,
    fault,
    has_newline,
    select_layer,
    tiles,
)
from vita_ckpt.core.anatomy.tiles import Tiling

_SIGLIP: Final = "siglip"
_SIGLIP_SIZE: Final = 384
_LAYERS: Final = "num_hidden_layers"
_NUMBER: Final = (int, float)

# Keys that its configs have and LLaVA's do not, which has the same model types.
_OWN_KEYS: Final[dict[str, Key]] = {
    "delay_load": Key((bool,), default=False),
    "mm_tunable_parts": Key((str,)),
    "mm_vision_tower_lr": Key(_NUMBER),
    "vision_tower_pretrained": Key((str,)),
    "mm_resampler_type": Key((str,)),
    "mm_spatial_pool_stride": Key((int,)),
    "mm_spatial_pool_mode": Key((str,)),
    "mm_newline_position": Key((str,), "one_token"),
    "image_crop_resolution": Key((int,)),
    "image_split_resolution": Key((int,)),
    "add_faster_video": Key((bool,), default=False),
    "faster_token_stride": Key((int,)),
    "add_time_instruction": Key((bool,), default=False),
    "force_sample": Key((bool,), default=False),
    "use_pos_skipping": Key((bool,), default=False),
}

# Classes for other paths, in the order in which they are looked for; none of them is known here.
_OTHER_CLASSES: Final = (
    ("hf:", "starts with", "HFVisionTower"),
    ("imagebind_huge", "is", "ImageBindWrapper"),
    ("open_clip_hub", "starts with", "OpenCLIPVisionTower"),
    ("mlcd-vit-bigG-patch14", "holds", "MlcdVisionTower"),
)

# Words for the features of several layers: how many of them are concatenated.
_QUARTERS: Final = "slicefour_"
_FIVE: Final = "slice_m25811_f6_"
_FIVE_LAYERS: Final = (-2, -5, -8, -11, 6)


def _dispatch(config: Config, exists: Exists) -> towers.Dispatch:
    """Choose as LLaVA does; a path that does not exist may also be one of SigLIP and others."""
    found = clip_of_path(config, exists)
    if found is not None:
        return found
    path = str(config.get("mm_vision_tower"))
    if _SIGLIP in path:
        reason = towers.Reason(towers.Outcome.RULE, _SIGLIP, f'"{_SIGLIP}" in the path')
        return towers.Dispatch(_SIGLIP, "SigLipVisionTower", reason)
    for word, how, tower_class in _OTHER_CLASSES:
        if {"starts with": path.startswith(word), "is": path == word, "holds": word in path}[how]:
            why = f'the path {how} "{word}"'
            reason = towers.Reason(towers.Outcome.RULE, text=why)
            return towers.Dispatch(None, tower_class, reason)
    why = "it does not exist, and is no CLIP, SigLIP or other tower of the hub: it raises"
    return towers.Dispatch(None, None, towers.Reason(towers.Outcome.NO_RULE, text=why))


def _is_trained(config: Config) -> bool:
    parts = config.get("mm_tunable_parts")
    tunable = isinstance(parts, str | list) and "mm_vision_tower" in parts
    return bool(config.get("unfreeze_mm_vision_tower")) or tunable


def _is_delayed(config: Config, load: Load) -> bool:
    """Return whether the tower is filled last; a name with v1.5 sets it in the branch of Llama."""
    is_llama = config.get("model_type") == "llava_llama"
    return bool(config.get("delay_load")) or (is_llama and "v1.5" in load.name.lower())


def _tower_source(config: Config, load: Load) -> TowerSource:
    if _is_delayed(config, load) and not _is_trained(config):
        return TowerSource.DIRECTORY
    return TowerSource.CHECKPOINT if load.stored else TowerSource.UNINITIALISED


def _stored_tower(tower: str, config: Config) -> Config:
    """Return the config of a SigLIP without its last layer and its head; any other is whole."""
    if tower != _SIGLIP:
        return config
    inner = towers.inner_config(config)
    layers = inner.get(_LAYERS, towers.FAMILIES[tower].config_defaults[_LAYERS])
    fewer = layers - 1 if type(layers) is int else layers
    return {**inner, _LAYERS: fewer, "vision_use_head": False}


def _features(config: Config, tower: str, states: int) -> Features | None:
    """Return the last state of a SigLIP, whose last layer is cut; what the config says of CLIP."""
    if tower == _SIGLIP:
        return Features((states - 1,))
    word, layer = config.get("mm_vision_select_feature", "patch"), select_layer(config)
    if layer is None or not isinstance(word, str):
        return None
    kind = word.removeprefix(_QUARTERS).removeprefix(_FIVE)
    layers = tuple(_layers(word, layer, states))
    if kind not in CLASS_TOKEN or not layers:
        return None
    if any(not -states <= one < states for one in layers):
        return None
    return Features(layers, CLASS_TOKEN[kind])


def _layers(word: str, layer: int, states: int) -> Iterator[int]:
    if word.startswith(_QUARTERS):
        step = states // 4
        yield from range(step + layer, states, step) if step else ()
    elif word.startswith(_FIVE):
        yield from _FIVE_LAYERS
    else:
        yield layer


def _own_value(config: Config) -> str | None:
    """Return a value that LLaVA's loader does not know and this family's does; None without one."""
    told: tuple[tuple[str, Any], ...] = (
        ("mm_projector_type", ("_res", "pooler")),
        ("mm_vision_select_feature", ("slice",)),
        ("image_aspect_ratio", ("anyres_max",)),
        ("mm_patch_merge_type", ("maxpool2x2", "nobase")),
        ("mm_vision_tower", (_SIGLIP,)),
    )
    for key, words in told:
        value = config.get(key)
        if isinstance(value, str) and any(word in value for word in words):
            return f"{key} {value!r}"
    return None


def _tiling(config: Config) -> Tiling:
    return Tiling.of(config, extended=True)


def _refused_run(config: Config) -> str | None:
    is_qwen = str(config.get("model_type")).startswith("llava_qwen")
    return "ValueError: a projector run on Qwen2 is not supported" if is_qwen else None


LLAVA_NEXT: Final = ModelFamily(
    name="llava-next",
    label="LLaVA-NeXT",
    backbones=(
        Backbone("llava_qwen", "LlavaQwenForCausalLM", "llava_qwen", "Qwen2", "qwen2"),
        Backbone("llava_llama", "LlavaLlamaForCausalLM", "llava_llama", "Llama", "llama"),
        Backbone("llava_mistral", "LlavaMistralForCausalLM", "llava_mistral", "Mistral", "mistral"),
        Backbone("llava_mixtral", "LlavaMixtralForCausalLM", "llava_mixtral", "Mixtral", "mixtral"),
        Backbone("llava_gemma", "LlavaGemmaForCausalLM", "llava_gemma", "Gemma", "gemma"),
        Backbone(
            "llava_qwen_moe", "LlavaQwenMoeForCausalLM", "llava_qwen_moe", "Qwen2Moe", "qwen2_moe"
        ),
    ),
    dispatch=_dispatch,
    tower_source=_tower_source,
    projector_types=projectors.LLAVA_NEXT_TYPES,
    default_projector=PROJECTOR,
    unfreeze_key="unfreeze_mm_vision_tower",
    s2_key="s2",
    default_s2_scales=DEFAULT_S2_SCALES,
    s2_towers=(CLIP_FAMILY,),
    keys=KEYS | _OWN_KEYS,
    loaders=("llava-next",),
    runs_on="transformers 4.40",
    refused_run=_refused_run,
    features=_features,
    tiling=_tiling,
    image_count=ImageCount.LAST_AGAIN,
    own_sizes={_SIGLIP: _SIGLIP_SIZE},
    own_keys=tuple(_OWN_KEYS),
    own_value=_own_value,
    stored_tower=_stored_tower,
    has_newline=has_newline,
    added_tokens=added_tokens,
    dropped=("model.vision_resampler.", "model.faster_token", parts.NEWLINE),
    fault=fault,
    tiles=tiles,
    unscaled=("Qwen2", "Mistral", "Mixtral", "Qwen2Moe", "Gemma"),
)
