"""List the changes of tensors and config keys from one checkpoint to another, sorted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vita_ckpt.core.checkpoint import Checkpoint, Tensor


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that one side lacks, or that comes from elsewhere on the other."""

    name: str
    change: Literal["added", "removed", "replaced"]
    before: Tensor | None
    after: Tensor | None


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A config key with another value; None where it is not set."""

    key: str
    before: Any
    after: Any


def diff_tensors(before: Checkpoint, after: Checkpoint) -> tuple[TensorChange, ...]:
    """The changes from one checkpoint to another, by name; where a tensor lies is its identity."""
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
    """The config keys whose values differ."""
    old, new = before.config or {}, after.config or {}
    return tuple(
        ConfigChange(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        # Identity first: a NaN that nobody touched has not changed.
        if (old.get(key) is not new.get(key) and old.get(key) != new.get(key))
        or (key in old) != (key in new)
    )
