"""Compute a saved plan again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Final

from vita_ckpt.api.plans.config import plan_set
from vita_ckpt.api.plans.consolidate import plan_consolidate
from vita_ckpt.api.plans.convert import plan_convert
from vita_ckpt.api.plans.embeddings import plan_resize_embeddings
from vita_ckpt.api.plans.lora import plan_merge_lora, plan_merge_run
from vita_ckpt.api.plans.projector import (
    plan_assemble,
    plan_extract_projector,
    plan_merge_projector,
)
from vita_ckpt.api.plans.tower import plan_extract_tower, plan_swap_tower
from vita_ckpt.api.plans.values import ALLOW, with_values_checked
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.plan import (
    Plan,
    SavedPlan,
    choice_of,
    not_a_plan,
)
from vita_ckpt.errors import UsageError
from vita_ckpt.storage.reading.paths import Stores

_OPTIONAL_TEXT: Final = (str, NoneType)

# What each operation can be asked for, with the types of the values.
_REQUESTS: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "extract-projector": {"bare": (bool,), "extras": (list,)},
    "merge-projector": {"dtype": _OPTIONAL_TEXT, "extras": (list,), ALLOW: (bool,)},
    "merge-projector with a tower": {"tower_path": (str,), "extras": (list,), ALLOW: (bool,)},
    "merge-lora": {"dtype": _OPTIONAL_TEXT, ALLOW: (bool,)},
    "merge-lora with a tower": {"dtype": _OPTIONAL_TEXT, "tower_path": (str,), ALLOW: (bool,)},
    "merge-lora of its own deltas": {
        "dtype": _OPTIONAL_TEXT,
        "adapter_config": _OPTIONAL_TEXT,
        "lora_alpha": (int, float, NoneType),
        "use_rslora": (bool,),
        ALLOW: (bool,),
    },
    "swap-tower": {
        "tower_path": (str,),
        "tower_config": _OPTIONAL_TEXT,
        "projector": _OPTIONAL_TEXT,
        "projector_type": _OPTIONAL_TEXT,
        "seed": (int,),
        "use_s2": (bool, NoneType),
        "s2_scales": _OPTIONAL_TEXT,
        ALLOW: (bool,),
    },
    "extract-tower": {"tower_config": _OPTIONAL_TEXT},
    "extract-audio-adapter": {},
    "merge-audio-adapter": {},
    "swap-audio-encoder": {"audio_path": (str,), "adapter": _OPTIONAL_TEXT, "seed": (int,)},
    "extract-audio-encoder": {"audio_encoder": _OPTIONAL_TEXT},
    "set": {"values": (dict,)},
    "resize-embeddings": {
        "tokens": (int, NoneType),
        "tokenizer": _OPTIONAL_TEXT,
        "init": (str,),
        "seed": (int,),
        "multiple_of": (int,),
    },
    "convert": {
        "names": _OPTIONAL_TEXT,
        "dtype": _OPTIONAL_TEXT,
        "parts": (list,),
        "keep": (list,),
        "max_shard_size": (int, NoneType),
        "format": (str,),
        "tie": (str,),
        "ignore_index": (bool,),
    },
    "consolidate": {
        "config": (dict, NoneType),
        "dtype": _OPTIONAL_TEXT,
        "weights": (str,),
        "as_file": (bool,),
    },
}

_NUMBERS_OF_INPUTS: Final = {
    "extract-projector": (2,),
    "merge-projector": (2, 3),
    "merge-lora": (1, 2, 3),
    "swap-tower": (2, 3),
    "extract-tower": (2,),
    "extract-audio-adapter": (2,),
    "merge-audio-adapter": (2,),
    "swap-audio-encoder": (2, 3),
    "extract-audio-encoder": (2,),
    "set": (1,),
    "convert": (1,),
    "resize-embeddings": (1,),
    "consolidate": (2, 3),
}


def plan_again(saved: SavedPlan, inputs: Sequence[Checkpoint], stores: Stores) -> Plan:
    """Compute a saved plan again from its operation, its request and its opened ``inputs``.

    Raises InputError for a request that the operation does not take.
    """
    if len(inputs) not in _NUMBERS_OF_INPUTS.get(saved.operation, ()):
        raise not_a_plan(f"a {saved.operation} of {len(inputs)} inputs")
    form = {
        ("merge-projector", 3): " with a tower",
        ("merge-lora", 3): " with a tower",
        ("merge-lora", 1): " of its own deltas",
    }
    types = _REQUESTS[saved.operation + form.get((saved.operation, len(inputs)), "")]
    # Plans of earlier versions do not say that bad values are allowed, nor always what is extra.
    added: dict[str, Any] = {ALLOW: False} if ALLOW in types else {}
    if "extras" in types:
        added["extras"] = []
    request = {**added, **saved.request}
    if request.keys() != types.keys():
        raise not_a_plan(f"a request for {', '.join(map(repr, saved.request)) or 'nothing'}")
    for key, value in request.items():
        if type(value) not in types[key]:
            raise not_a_plan(f"{key} that is a {type(value).__name__}")
    try:
        if "audio" in saved.operation:
            from vita_ckpt.api.plans.audio import plan_audio_again  # noqa: PLC0415 - seldom needed

            return plan_audio_again(saved.operation, request, inputs, stores)
        return _dispatch(saved.operation, request, inputs, stores)
    except UsageError as error:  # nobody has used an option
        raise not_a_plan(str(error)) from error


def _dispatch(  # noqa: PLR0911 - one per operation
    operation: str, request: Mapping[str, Any], inputs: Sequence[Checkpoint], stores: Stores
) -> Plan:
    base, *donors = inputs
    if operation in ("extract-projector", "extract-tower"):
        if not all(isinstance(name, str) for name in request.get("extras", ())):
            raise not_a_plan("extras that are no texts")
        extract: Callable[..., Plan] = (
            plan_extract_tower if operation == "extract-tower" else plan_extract_projector
        )
        return extract(donors[0], **request, stores=stores)
    if operation == "merge-lora" and len(donors) > 1:
        tower, run = donors
        path, dtype, allow = request["tower_path"], request["dtype"], request[ALLOW]
        return plan_merge_run(base, run, tower, path, dtype, allow, stores)
    if operation == "merge-lora":
        return plan_merge_lora(base, *donors, **request, stores=stores)
    if not donors:
        return _alone(operation, base, request, stores)
    if operation == "consolidate":
        whole = len(donors) > 1 or bool(base.root)
        other = (donors[1] if len(donors) > 1 else base) if whole else None
        return plan_consolidate(donors[0], base=other, **request, stores=stores)
    tower, adapter = donors[0], donors[-1]
    if operation == "merge-projector":
        if not all(isinstance(name, str) for name in request["extras"]):
            raise not_a_plan("extras that are no texts")
        if len(donors) > 1:
            path, extras = request["tower_path"], request["extras"]
            plan = plan_assemble(base, adapter, tower, path, extras, stores)
            return with_values_checked(plan, adapter, request[ALLOW])
        return plan_merge_projector(base, adapter, **request, stores=stores)
    asked = {**request, "projector": choice_of(request["projector"], donors)}
    return plan_swap_tower(base, tower, **asked, stores=stores)


def _alone(operation: str, base: Checkpoint, request: Mapping[str, Any], stores: Stores) -> Plan:
    """Plan again what has a base and no donors."""
    if operation == "set":
        return plan_set(base, request["values"], stores=stores)
    if operation == "resize-embeddings":
        return plan_resize_embeddings(base, **request, stores=stores)
    if not all(isinstance(name, str) for key in ("parts", "keep") for name in request[key]):
        raise not_a_plan("parts or globs that are no texts")
    return plan_convert(base, **request, stores=stores)
