"""Opening and describing: headers only, whatever a checkpoint weighs."""

from __future__ import annotations

import os

from vita_ckpt.checks.inspection import Inspection, inspect_checkpoint
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.storage.directory import open_checkpoint
from vita_ckpt.storage.tower_directory import find_tower

StrPath = str | os.PathLike[str]


def inspect(checkpoint: Checkpoint | StrPath) -> Inspection:
    """What a checkpoint, adapter, run or tower is, and whether its config agrees with its weights.

    Headers and configs only. A vision tower directory that is not reachable from here is reported,
    not an error. Raises InputError if the checkpoint itself cannot be read.
    """
    opened = as_checkpoint(checkpoint)
    return inspect_checkpoint(opened, find_tower(opened))


def as_checkpoint(checkpoint: Checkpoint | StrPath) -> Checkpoint:
    """A checkpoint as it is, a path opened."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
