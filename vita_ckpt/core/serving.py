"""Tell a server's config from VITA's in a deployment folder, and keep the two consistent.

VITA's demo of vLLM moves VITA's ``config.json`` to ``origin_config.json`` and puts a config of its
own in its place, which describes the same model in nested form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.filenames import CARRIED_CONFIG

# Keys that both configs have at the top.
_SHARED: Final = ("tokenizer_model_max_length", "tokenizer_padding_side", "vocab_size")
# Keys of the nested language model's config.
_NESTED: Final = ("text_config",)
_OWN: Final = ("model_type", "architectures")


def is_serving_config(config: Mapping[str, Any], origin: Mapping[str, Any]) -> bool:
    """Return whether ``config`` is a server's and ``origin``, which lies beside it, is VITA's."""
    nested = isinstance(config.get("text_config"), Mapping) and isinstance(
        config.get("vision_config"), Mapping
    )
    return nested and "mm_vision_tower" not in config and _is_vita(origin)


def followed(
    serving: Mapping[str, Any], changed: Mapping[str, Any], texts: Mapping[str, str]
) -> dict[str, Any]:
    """Return the server's config after keys of VITA's were changed.

    ``changed`` are the keys that are set, ``texts`` the files that are put, among them the config
    of a new tower, which becomes the ``vision_config``. Keys that the server's config does not have
    are not added.
    """
    result = dict(serving)
    for key in _SHARED:
        if key in changed and key in serving:
            result[key] = changed[key]
    for part in _NESTED:
        inner = serving.get(part)
        if isinstance(inner, Mapping):
            result[part] = {
                key: value if key in _OWN else changed.get(key, value)
                for key, value in inner.items()
            }
    if CARRIED_CONFIG in texts:
        tower = dict(towers.inner_config(json.loads(texts[CARRIED_CONFIG])))
        inner = serving.get("vision_config")
        kept = ("architectures", "auto_map") if isinstance(inner, Mapping) else ()
        result["vision_config"] = {
            **{key: inner[key] for key in kept if isinstance(inner, Mapping) and key in inner},
            **{key: value for key, value in tower.items() if key not in kept},
        }
    return result


def builds_tower(serving: Mapping[str, Any], family: str) -> bool:
    """Return whether the server's config describes a tower of this family: its class is fixed."""
    described = towers.family_of_config(serving)
    return described is not None and described.name == family


def _is_vita(config: Mapping[str, Any]) -> bool:
    return str(config.get("model_type")) in BACKBONES or "mm_vision_tower" in config
