"""Describe VITA: the checkpoint's tower wins, and it must have one."""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.config_keys import VISION_KEYS
from vita_ckpt.core.anatomy.families.family import (
    SIDES,
    Config,
    Exists,
    ImageCount,
    Key,
    Load,
    ModelFamily,
    TowerSource,
)

_DEFAULTS: Final = {
    "mm_projector_type": projectors.DEFAULT_TYPE,
    "use_s2": False,
    "s2_scales": towers.DEFAULT_S2_SCALES,
}

_CHOICES: Final = {"image_aspect_ratio": ("square", "pad"), "tokenizer_padding_side": SIDES}


def dispatch(config: Config, exists: Exists) -> towers.Dispatch:
    """Choose the tower class by the first family's word in the path (UPSTREAM §3)."""
    return towers.dispatch(str(config.get("mm_vision_tower")), bool(config.get("use_s2")))


def _tower_source(config: Config, load: Load) -> TowerSource:
    """Return what VITA-1.5's loader takes: it fills the tower from the checkpoint."""
    return TowerSource.CHECKPOINT if load.stored else TowerSource.UNINITIALISED


VITA: Final = ModelFamily(
    name="vita",
    label="VITA",
    backbones=tuple(BACKBONES.values()),
    dispatch=dispatch,
    tower_source=_tower_source,
    projector_types=projectors.TYPES,
    default_projector=projectors.DEFAULT_TYPE,
    unfreeze_key="unfreeze_vision_tower",
    s2_key="use_s2",
    default_s2_scales=towers.DEFAULT_S2_SCALES,
    s2_towers=tuple(family.name for family in towers.WITH_S2),
    keys={
        key: Key(types, _DEFAULTS.get(key), _CHOICES.get(key, ()))
        for key, types in VISION_KEYS.items()
    },
    loaders=("vita-1.5", "vita-1.0"),
    runs_on="transformers 4.41.1",
    image_count=ImageCount.EXACT,
    has_audio=True,
)
