"""Plan changes of config keys that touch no weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.config_keys import LANGUAGE_KEYS, LARGEST_NUMBER, Types
from vita_ckpt.core.anatomy.families import FAMILIES, VITA, ModelFamily
from vita_ckpt.core.anatomy.parts import EMBED_TOKENS, LM_HEAD
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.plan import Plan, Record, SetConfig
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.requirements import family_of_model, model_config
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import InputError, UsageError

# The keys of every family, by the first that has one.
_KEYS: Final[Mapping[str, Types]] = {
    **{name: key.types for one in reversed(FAMILIES.values()) for name, key in one.keys.items()},
    **LANGUAGE_KEYS,
}

_PATHS = ("mm_vision_tower", "mm_audio_encoder")
# Numbers that may be 0, and those that may be less.
_FROM_ZERO: Final = ("mm_projector_lr", "mm_vision_tower_lr", "audio_prompt_num")
_ANY_NUMBER: Final = ("mm_vision_select_layer",)


def plan_set(
    checkpoint: Checkpoint, values: Mapping[str, Any], *, head_is_table: bool | None = None
) -> Plan:
    """Return a plan that sets keys of the vision and audio config of a checkpoint, by its family.

    None stands for JSON's null. ``vocab_size`` and ``tie_word_embeddings`` of the language model
    are taken where the tensors agree; ``head_is_table`` says whether a stored ``lm_head`` equals
    the embeddings, None if that is not known. Raises UsageError for a key that is neither and for a
    value that is invalid for its key, InputError if it is no checkpoint of a family, or its tensors
    do not agree.
    """
    model_config(checkpoint)
    family = family_of_model(checkpoint)
    for key, value in values.items():
        _check(key, value, family)
        if key in LANGUAGE_KEYS:
            _check_agreement(checkpoint, key, value, head_is_table)
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
    types = _types(key, _KEYS)
    if text == "null":
        return None
    if str in types and not (list in types and text.startswith("[")):
        return text
    try:
        value = json.loads(text.lower() if bool in types else text)
    except (ValueError, RecursionError):
        raise _wrong(key, text) from None
    if type(value) not in types:
        raise _wrong(key, text)
    return value


def _check(key: str, value: Any, family: ModelFamily) -> None:
    types = _types(key, {name: one.types for name, one in family.keys.items()} | LANGUAGE_KEYS)
    if value is None and key in family.keys:
        return
    if type(value) not in types or not _is_possible(key, value, family):
        raise _wrong(key, value, family)


def _check_agreement(
    checkpoint: Checkpoint, key: str, value: Any, head_is_table: bool | None
) -> None:
    """Raise InputError where the tensors say something else than a key of the language model."""
    refs = checkpoint.refs
    table, head = refs.get(EMBED_TOKENS), refs.get(LM_HEAD)
    wrong = ""
    if key == "vocab_size":
        stored = {EMBED_TOKENS: table, LM_HEAD: head}
        shapes = {name: ref.shape for name, ref in stored.items() if ref is not None}
        wrong = next(
            (f"{name} {list(shape)}" for name, shape in shapes.items() if shape[:1] != (value,)),
            "" if shapes else "no embeddings",
        )
    elif not value:
        wrong = "" if head is not None else f"no {LM_HEAD}"
    elif head is not None and not head_is_table:
        wrong = f"{LM_HEAD} that " + (
            "differs from the embeddings" if head_is_table is False else "was not compared"
        )
    if wrong:
        raise InputError(
            "weights-disagree",
            f"{checkpoint.root}: {key}",
            expected=f"tensors that agree with {json.dumps(value)}",
            got=wrong,
            hint="vita-ckpt resize-embeddings changes the rows"
            if key == "vocab_size"
            else "vita-ckpt convert --tie untie makes the head a tensor of its own",
        )


def _is_possible(key: str, value: Any, family: ModelFamily) -> bool:
    """Return whether a value of the right type is valid."""
    choices = _choices(key, family)
    if choices:
        return value in choices
    if key == "mm_projector_type":
        return projectors.is_known(value, family.projector_types)
    if key == "s2_scales":
        return towers.parse_s2_scales(value) is not None
    if isinstance(value, str):
        return bool(value) and value.isprintable()
    if isinstance(value, bool | list) or key in _ANY_NUMBER:
        return True
    return bool(0 <= value < LARGEST_NUMBER and (value > 0 or key in _FROM_ZERO))


def _choices(key: str, family: ModelFamily) -> tuple[str, ...]:
    return family.keys[key].choices if key in family.keys else ()


def _types(key: str, known: Mapping[str, Types]) -> Types:
    if key not in known:
        raise UsageError(
            "unknown-config-key",
            key,
            expected=f"one of {', '.join(known)}",
            hint=did_you_mean(
                key, known, "other keys describe the weights, which set does not touch"
            ),
        )
    return known[key]


def _wrong(key: str, value: Any, family: ModelFamily = VITA) -> UsageError:
    names = {
        str: "text",
        int: "a positive integer",
        float: "a number",
        bool: "true or false",
        list: "a list",
    }
    expected = " or ".join(_choices(key, family) or [names[_KEYS[key][-1]]])
    if key == "mm_projector_type":
        expected = f"a projector type: {projectors.listed(family.projector_types)}"
    if key == "s2_scales":
        expected = "sizes in pixels, as 384,768,1152"
    words = _choices(key, family) or (("true", "false") if _KEYS[key][-1] is bool else ())
    hint = did_you_mean(str(value), words)
    if key == "mm_projector_type":
        hint = projectors.meant(str(value), family.projector_types)
    return UsageError("invalid-config-value", f"{key}={value}", expected=expected, hint=hint)
