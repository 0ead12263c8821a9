"""Plan changes of vision config keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.config_keys import LARGEST_NUMBER, VISION_KEYS
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.plan import Plan, Record, SetConfig
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.requirements import vita_config
from vita_ckpt.errors import UsageError

_CHOICES = {
    "image_aspect_ratio": ("square", "pad"),
    "tokenizer_padding_side": ("left", "right"),
}

_PATHS = ("mm_vision_tower", "mm_audio_encoder")


def plan_set(checkpoint: Checkpoint, values: Mapping[str, Any]) -> Plan:
    """Return a plan that sets keys of the vision config of a VITA checkpoint.

    None stands for JSON's null. Raises UsageError for a key that is not in the vision config and
    for a value that is invalid for its key, InputError if it is not a VITA checkpoint.
    """
    vita_config(checkpoint)
    for key, value in values.items():
        _check(key, value)
    edits = tuple(SetConfig(key, value, "asked for") for key, value in values.items())
    # The lineage records only the last component of a path.
    asked = {k: v.rpartition("/")[2] if k in _PATHS and v else v for k, v in values.items()}
    record = Record(arguments=asked, needs_alignment=needs_alignment(checkpoint))
    return Plan("set", checkpoint, edits, record=record)


def parse_value(key: str, text: str) -> Any:
    """Parse ``text`` by the type of ``key``. Raises UsageError if it is invalid.

    ``null``, numbers and booleans are written as in JSON, booleans in any case. A string is taken
    as it is.
    """
    types = _types(key)
    if text == "null":
        return None
    if str in types:
        return text
    try:
        value = json.loads(text.lower() if bool in types else text)
    except (ValueError, RecursionError):
        raise _wrong(key, text) from None
    if type(value) not in types:
        raise _wrong(key, text)
    return value


def _check(key: str, value: Any) -> None:
    types = _types(key)
    if value is None:
        return
    if type(value) not in types or not _is_possible(key, value):
        raise _wrong(key, value)


def _is_possible(key: str, value: Any) -> bool:
    """Return whether a value of the right type is valid."""
    if key in _CHOICES:
        return value in _CHOICES[key]
    if key == "mm_projector_type":
        return projectors.is_known(value)
    if key == "s2_scales":
        return towers.parse_s2_scales(value) is not None
    if isinstance(value, str):
        return bool(value) and value.isprintable()
    if key in ("mm_projector_lr", "audio_prompt_num"):
        return bool(0 <= value < LARGEST_NUMBER)
    return isinstance(value, bool) or 0 < value < LARGEST_NUMBER


def _types(key: str) -> tuple[type, ...]:
    if key not in VISION_KEYS:
        raise UsageError(
            "unknown-config-key",
            key,
            expected=f"one of {', '.join(VISION_KEYS)}",
            hint="other keys describe the weights, which set does not touch",
        )
    return VISION_KEYS[key]


def _wrong(key: str, value: Any) -> UsageError:
    names = {str: "text", int: "a positive integer", float: "a number", bool: "true or false"}
    expected = " or ".join(_CHOICES.get(key, [names[VISION_KEYS[key][-1]]]))
    if key == "mm_projector_type":
        expected = "a projector type that upstream builds"
    if key == "s2_scales":
        expected = "sizes in pixels, as 384,768,1152"
    return UsageError("invalid-config-value", f"{key}={value}", expected=expected)
