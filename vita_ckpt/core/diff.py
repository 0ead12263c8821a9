"""List the changes of tensors and config keys between two checkpoints, sorted."""

from __future__ import annotations

from typing import Any, Literal

from vita_ckpt.core.checkpoint import Checkpoint, Tensor
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that is missing on one side, or that has different sources on the two sides."""

    name: str
    change: Literal["added", "removed", "replaced"]
    before: Tensor | None
    after: Tensor | None


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A config key whose value differs; None where it is not set."""

    key: str
    before: Any
    after: Any


def diff_tensors(before: Checkpoint, after: Checkpoint) -> tuple[TensorChange, ...]:
    """Return the tensor changes by name; tensors with the same location are the same."""
    changes: list[TensorChange] = []
    for name in sorted(before.tensors.keys() | after.tensors.keys()):
        old, new = before.tensors.get(name), after.tensors.get(name)
        if old is None:
            changes.append(TensorChange(name, "added", old, new))
        elif new is None:
            changes.append(TensorChange(name, "removed", old, new))
        elif old != new:
            changes.append(TensorChange(name, "replaced", old, new))
    return tuple(changes)


def diff_config(before: Checkpoint, after: Checkpoint) -> tuple[ConfigChange, ...]:
    """Return the config keys whose values differ."""
    old, new = before.config or {}, after.config or {}
    return tuple(
        ConfigChange(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        # Identity is compared first, so that an untouched NaN counts as unchanged.
        if (old.get(key) is not new.get(key) and old.get(key) != new.get(key))
        or (key in old) != (key in new)
    )
