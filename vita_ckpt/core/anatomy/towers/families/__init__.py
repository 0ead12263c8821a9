"""The table of tower families: one file per family, and one row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.towers.families.clip import CLIP
from vita_ckpt.core.anatomy.towers.families.eva import EVA
from vita_ckpt.core.anatomy.towers.families.internvit import INTERNVIT
from vita_ckpt.core.anatomy.towers.families.siglip import SIGLIP
from vita_ckpt.core.anatomy.towers.family import Family

# In the order in which upstream looks for their words in a path: the first that is found decides.
_IN_ORDER: Final = (
    SIGLIP,
    EVA,
    CLIP,
    INTERNVIT,
)

FAMILIES: Final[dict[str, Family]] = {family.name: family for family in _IN_ORDER}

# As messages and schemas list them: those that transformers has come first.
KNOWN: Final = tuple(sorted(_IN_ORDER, key=lambda family: family.library_class is None))
WITH_CONFIG: Final = tuple(family for family in KNOWN if not family.lone_file)
WITH_S2: Final = tuple(family for family in KNOWN if family.has_s2)


def inner_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ``vision_config`` of a parent config, and any other config as it is."""
    inner = config.get("vision_config")
    return inner if isinstance(inner, Mapping) else config


def family_of_config(config: Mapping[str, Any], *, keys: bool = True) -> Family | None:
    """Return the family that a config describes, None for none of them.

    A parent config (``clip``, ``siglip``, InternVL) is looked through to its ``vision_config``.
    With ``keys`` the sizes that a lone file's tensors give count as its config.
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
