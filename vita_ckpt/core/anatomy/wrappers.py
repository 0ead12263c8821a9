"""Take the levels out of a tensor's name that wrappers around a model or its modules add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# torch.compile, DataParallel and DeepSpeed, FSDP, activation checkpoints; PEFT around a whole model
# and around a module that it trains whole.
_WRAPPERS: Final = (
    ("_orig_mod",),
    ("module",),
    ("_fsdp_wrapped_module",),
    ("_checkpoint_wrapped_module",),
    ("base_model", "model"),
    ("modules_to_save", "default"),
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
    for wrapper in _WRAPPERS:
        end = at + len(wrapper)
        if end < len(levels) and tuple(levels[at:end]) == wrapper:
            return len(wrapper)
    return 0
