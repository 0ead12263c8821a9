"""Opening and describing: headers only, whatever a checkpoint weighs."""

from __future__ import annotations

from fnmatch import fnmatchcase

from vita_ckpt.api.locate import StrPath, open_checkpoint
from vita_ckpt.checks.inspect import (
    Inspection,
    ModuleRow,
    TensorRow,
    inspect_checkpoint,
    module_rows,
    tensor_rows,
)
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.storage.reading.tower import find_tower


def inspect(checkpoint: Checkpoint | StrPath) -> Inspection:
    """What a checkpoint, adapter, run or tower is, and whether its config agrees with its weights.

    Headers and configs only. A vision tower directory that is not reachable from here is reported,
    not an error. Raises InputError if the checkpoint itself cannot be read.
    """
    opened = as_checkpoint(checkpoint)
    return inspect_checkpoint(opened, find_tower(opened))


def list_tensors(checkpoint: Checkpoint | StrPath, pattern: str = "*") -> list[TensorRow]:
    """Name, dtype, shape, shard and bytes of each tensor whose name matches a glob, by name."""
    opened = as_checkpoint(checkpoint)
    return tensor_rows(opened, sorted(n for n in opened.tensors if fnmatchcase(n, pattern)))


def module_tree(checkpoint: Checkpoint | StrPath, depth: int) -> list[ModuleRow]:
    """Tensors, parameters and bytes of every module down to ``depth`` parts of a name."""
    return module_rows(as_checkpoint(checkpoint), depth)


def as_checkpoint(checkpoint: Checkpoint | StrPath) -> Checkpoint:
    """A checkpoint as it is, a path opened."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
