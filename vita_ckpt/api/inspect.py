"""Describe checkpoints from their headers, whatever they weigh."""

from __future__ import annotations

from fnmatch import fnmatchcase

from vita_ckpt.api.locate import StrPath, as_checkpoint
from vita_ckpt.checks.inspection.inspect import inspect_checkpoint
from vita_ckpt.checks.inspection.rows import ModuleRow, TensorRow, module_rows, tensor_rows
from vita_ckpt.checks.inspection.summary import Inspection
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import dtype_code
from vita_ckpt.storage.reading.audio import find_audio_encoder
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import find_tower


def inspect(
    checkpoint: Checkpoint | StrPath,
    *,
    dtype: str | None = None,
    batch: int = 1,
    stores: Stores | None = None,
) -> Inspection:
    """Describe a checkpoint, adapter, run or tower, and compare its config with its weights.

    Headers and configs only. A vision tower directory that is not reachable from here is reported,
    not an error. ``dtype`` (by default the commonest of the weights) and ``batch`` are those of the
    memory that is estimated. Raises InputError if the checkpoint itself cannot be read, UsageError
    for an unknown dtype.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    return inspect_checkpoint(
        opened,
        find_tower(opened, stores),
        find_audio_encoder(opened, stores),
        dtype=dtype_code(dtype),
        batch=batch,
    )


def list_tensors(
    checkpoint: Checkpoint | StrPath, pattern: str = "*", *, stores: Stores | None = None
) -> list[TensorRow]:
    """List name, dtype, shape, shard and bytes of the tensors whose names match a glob, by name."""
    opened = as_checkpoint(checkpoint, stores)
    return tensor_rows(opened, sorted(n for n in opened.tensors if fnmatchcase(n, pattern)))


def module_tree(
    checkpoint: Checkpoint | StrPath, depth: int, *, stores: Stores | None = None
) -> list[ModuleRow]:
    """List tensors, parameters and bytes of every module, down to ``depth`` parts of a name."""
    return module_rows(as_checkpoint(checkpoint, stores), depth)
