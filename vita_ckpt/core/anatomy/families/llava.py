"""Describe LLaVA 1.0 to 1.6: towers are CLIP, and the directory's wins unless it was trained."""

from __future__ import annotations

from typing import Any, Final

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.backbones import Backbone
from vita_ckpt.core.anatomy.families.family import (
    REQUIRED,
    SIDES,
    Config,
    Exists,
    Features,
    Key,
    Load,
    ModelFamily,
    TowerSource,
)
from vita_ckpt.core.anatomy.tiles import Tiling

DEFAULT_S2_SCALES: Final = "336,672,1008"
CLASS_TOKEN: Final = {"patch": False, "cls_patch": True}
CLIP_PREFIXES: Final = ("openai", "laion")
CLIP_WORD: Final = "ShareGPT4V"
CLIP_FAMILY: Final = "clip"
PROJECTOR: Final = "linear"

_NUMBER: Final = (int, float)

# What the configs of both LLaVA and LLaVA-NeXT have, which has more choices.
KEYS: Final[dict[str, Key]] = {
    "mm_vision_tower": Key((str,)),
    "mm_hidden_size": Key((int,)),
    "mm_projector_type": Key((str,), PROJECTOR),
    "use_mm_proj": Key((bool,)),
    "mm_vision_select_layer": Key((int,), REQUIRED),
    "mm_vision_select_feature": Key((str,), "patch"),
    "mm_patch_merge_type": Key((str,), "flat"),
    "image_aspect_ratio": Key((str,), "square"),
    "image_grid_pinpoints": Key((list, str)),
    "mm_use_im_start_end": Key((bool,), default=False),
    "mm_use_im_patch_token": Key((bool,), default=True),
    "unfreeze_mm_vision_tower": Key((bool,), default=False),
    "s2": Key((bool,), default=False),
    "s2_scales": Key((str,), DEFAULT_S2_SCALES),
    "tune_mm_mlp_adapter": Key((bool,), default=False),
    "freeze_mm_mlp_adapter": Key((bool,), default=False),
    "mm_projector_lr": Key(_NUMBER),
    "tokenizer_model_max_length": Key((int,)),
    "tokenizer_padding_side": Key((str,), choices=SIDES),
}


def clip_of_path(config: Config, exists: Exists) -> towers.Dispatch | None:
    """Return CLIP where the path exists, or has the form of a CLIP of the hub; None for others."""
    path = str(config.get("mm_vision_tower"))
    prefix = next((prefix for prefix in CLIP_PREFIXES if path.startswith(prefix)), None)
    if exists(path):
        why = "the path exists, whatever is in it"
    elif prefix is not None:
        why = f'the path starts with "{prefix}"'
    elif CLIP_WORD in path:
        why = f'"{CLIP_WORD}" in the path'
    else:
        return None
    suffix = "S2" if config.get("s2") else ""
    why += " and s2" if suffix else ""
    reason = towers.Reason(towers.Outcome.RULE, CLIP_FAMILY, why)
    tower_class = f"{towers.FAMILIES[CLIP_FAMILY].tower_class}{suffix}"
    return towers.Dispatch(CLIP_FAMILY, tower_class, reason)


def has_newline(config: Config) -> bool:
    """Return whether the merging of tiles appends ``model.image_newline``."""
    merge = config.get("mm_patch_merge_type", "flat")
    return isinstance(merge, str) and "unpad" in merge


def added_tokens(config: Config) -> tuple[str, ...]:
    """Return the tokens that the loader adds, and for which it invents rows that are not stored."""
    patch = ("<im_patch>",) if config.get("mm_use_im_patch_token", True) else ()
    return patch + (("<im_start>", "<im_end>") if config.get("mm_use_im_start_end") else ())


def select_layer(config: Config) -> int | None:
    """Return ``mm_vision_select_layer``, which has no default; None if it is no layer."""
    layer: Any = config.get("mm_vision_select_layer")
    return layer if type(layer) is int else None


def fault(config: Config, features: Features) -> str:
    """Return why an image makes forward raise, by keys that do not go together."""
    if config.get("tune_mm_mlp_adapter") and config.get("mm_use_im_start_end"):
        return "NotImplementedError: tune_mm_mlp_adapter together with mm_use_im_start_end"
    aspect, merge = config.get("image_aspect_ratio"), config.get("mm_patch_merge_type", "flat")
    if not (isinstance(aspect, str) and "anyres" in aspect):
        return ""
    if not config.get("image_grid_pinpoints"):
        return "AttributeError: image_aspect_ratio 'anyres' without image_grid_pinpoints"
    is_spatial = isinstance(merge, str) and merge.startswith("spatial")
    if merge != "flat" and not is_spatial:
        return f"ValueError: mm_patch_merge_type {merge!r} is neither flat nor spatial"
    if is_spatial and features.class_token:
        return "AssertionError: tiles cannot be laid out with a class token in each of them"
    return ""


def tiles(config: Config) -> str | None:
    """Return how a picture becomes tiles, and what lies between their tokens."""
    aspect, merge = config.get("image_aspect_ratio"), config.get("mm_patch_merge_type", "flat")
    if not (isinstance(aspect, str) and "anyres" in aspect and isinstance(merge, str)):
        return None
    pinpoints = config.get("image_grid_pinpoints")
    sizes = f"{len(pinpoints)} sizes" if isinstance(pinpoints, list) else repr(pinpoints)
    rows = ", the padding cut off, and a newline for each row" if has_newline(config) else ""
    return f"{aspect}, the picture itself and tiles of the best of {sizes}; merged {merge}{rows}"


def _dispatch(config: Config, exists: Exists) -> towers.Dispatch:
    found = clip_of_path(config, exists)
    if found is not None:
        return found
    why = "it does not exist, and is no CLIP of openai, laion or ShareGPT4V: it raises"
    return towers.Dispatch(None, None, towers.Reason(towers.Outcome.NO_RULE, text=why))


def _tower_source(config: Config, load: Load) -> TowerSource:
    """Return which tower wins; a trained one with S2 is read before its class is ready."""
    if not config.get("unfreeze_mm_vision_tower"):
        return TowerSource.DIRECTORY
    if config.get("s2"):
        return TowerSource.RAISES
    return TowerSource.CHECKPOINT if load.stored else TowerSource.UNINITIALISED


def _features(config: Config, tower: str, states: int) -> Features | None:
    layer = select_layer(config)
    word = config.get("mm_vision_select_feature", "patch")
    if layer is None or not -states <= layer < states:
        return None
    if not isinstance(word, str) or word not in CLASS_TOKEN:
        return None
    return Features((layer,), CLASS_TOKEN[word])


def _tiling(config: Config) -> Tiling:
    return Tiling.of(config, extended=False)


LLAVA: Final = ModelFamily(
    name="llava",
    label="LLaVA",
    backbones=(
        Backbone("llava_llama", "LlavaLlamaForCausalLM", "llava", "Llama", "llama"),
        Backbone("llava_mistral", "LlavaMistralForCausalLM", "llava-mistral", "Mistral", "mistral"),
    ),
    dispatch=_dispatch,
    tower_source=_tower_source,
    projector_types=projectors.LLAVA_TYPES,
    default_projector=PROJECTOR,
    unfreeze_key="unfreeze_mm_vision_tower",
    s2_key="s2",
    default_s2_scales=DEFAULT_S2_SCALES,
    s2_towers=(CLIP_FAMILY,),
    keys=KEYS
    | {
        "mm_vision_select_feature": Key((str,), "patch", tuple(CLASS_TOKEN)),
        "mm_patch_merge_type": Key((str,), "flat", ("flat", "spatial", "spatial_unpad")),
        "image_aspect_ratio": Key((str,), "square", ("square", "pad", "anyres")),
    },
    loaders=("llava",),
    runs_on="transformers 4.37.2",
    features=_features,
    tiling=_tiling,
    has_newline=has_newline,
    added_tokens=added_tokens,
    dropped=(parts.NEWLINE,),
    fault=fault,
    tiles=tiles,
    unscaled=("Mistral",),
)
