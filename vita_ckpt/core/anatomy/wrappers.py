"""Take the levels out of a tensor's name that wrappers around a model or its modules add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# What wrappers put into a name, as a whole level, and what they are: anywhere, and in front, since
# further inside a model may have a module of this name. A parameter that FSDP has flattened is none
# of the model's.
ANYWHERE: Final = {
    "_orig_mod": "a torch.compile wrapper",
    "_fsdp_wrapped_module": "an FSDP wrapper",
    "_checkpoint_wrapped_module": "an activation checkpoint wrapper",
}
IN_FRONT: Final = "module"
FLAT: Final = "_flat_param"
# PEFT keeps a layer with deltas, and a module that it trains whole twice: as it was, and by the
# name of the adapter. Embeddings of which it trains some rows keep these beside them.
BASE_LAYER: Final = "base_layer"
MODULES_TO_SAVE: Final = "modules_to_save"
ORIGINAL_MODULE: Final = "original_module"
TOKEN_ADAPTER: Final = "token_adapter"  # noqa: S105 - of embeddings
PEFT_MODEL: Final = "base_model"
WRAPPERS: Final = {
    **ANYWHERE,
    IN_FRONT: "a DataParallel or DeepSpeed wrapper",
    BASE_LAYER: "PEFT layers that were not merged",
    MODULES_TO_SAVE: "PEFT modules that were not merged",
    PEFT_MODEL: "a PEFT wrapper",
}

# Those that stand for nothing: around a whole model, and around a module that is trained whole.
_LEVELS: Final = (
    *((word,) for word in (*ANYWHERE, IN_FRONT)),
    (PEFT_MODEL, "model"),
    (MODULES_TO_SAVE, "default"),
)


def unwrapped(name: str) -> str:
    """Return a tensor's name without the levels of wrappers, wherever in it they are.

    ``base_model.model._orig_mod.model.norm.weight`` becomes ``model.norm.weight``. Whether the
    result is the name of a tensor is for the caller to check: a model may have a module ``module``
    of its own.
    """
    levels = name.split(".")
    kept: list[str] = []
    at = 0
    while at < len(levels):
        wrapper = _wrapper_at(levels, at)
        if not wrapper:
            kept.append(levels[at])
        at += max(wrapper, 1)
    return ".".join(kept)


def _wrapper_at(levels: Sequence[str], at: int) -> int:
    """Return how many levels from ``at`` on belong to a wrapper; the last one is the tensor."""
    for wrapper in _LEVELS:
        end = at + len(wrapper)
        if end < len(levels) and tuple(levels[at:end]) == wrapper:
            return len(wrapper)
    return 0
