"""List the tower families: one file per family, and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.families.clip import CLIP
from vita_ckpt.core.anatomy.towers.families.eva import EVA
from vita_ckpt.core.anatomy.towers.families.internvit import INTERNVIT
from vita_ckpt.core.anatomy.towers.families.siglip import SIGLIP
from vita_ckpt.core.anatomy.towers.family import Family

# In the order in which upstream looks for their words in a path; the first one found decides.
_IN_ORDER: Final = (
    SIGLIP,
    EVA,
    CLIP,
    INTERNVIT,
)

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in _IN_ORDER}

# The order in messages and schemas: families that transformers implements come first.
KNOWN: Final = tuple(sorted(_IN_ORDER, key=lambda family: family.transformers_class is None))
WITH_CONFIG: Final = tuple(family for family in KNOWN if not family.lone_file)
WITH_S2: Final = tuple(family for family in KNOWN if family.has_s2)


def inner_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``vision_config`` of a parent config, or any other config unchanged."""
    inner = config.get("vision_config")
    return inner if isinstance(inner, Mapping) else config


def family_of_config(config: Mapping[str, Any], *, keys: bool = True) -> Family | None:
    """Return the family that a config describes; None if unknown.

    For a parent config (``clip``, ``siglip``, InternVL) its ``vision_config`` is used. With
    ``keys``, the sizes that are derived from a lone file's tensors count as its config.
    """
    for family in KNOWN if keys else ():
        if family.config_keys and all(key in config for key in family.config_keys):
            return family
    for level in (inner_config(config), config):
        model_type = str(level.get("model_type"))
        for family in KNOWN:
            if model_type in family.model_types:
                return family
    return None
