"""Opening and describing: headers only, whatever a checkpoint weighs."""

from __future__ import annotations

import os

from vita_ckpt.checks.inspection import Inspection, TowerDirectory, inspect_checkpoint
from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.errors import InputError
from vita_ckpt.storage.directory import CONFIG, open_checkpoint
from vita_ckpt.storage.source import read_json_object

StrPath = str | os.PathLike[str]


def inspect(checkpoint: Checkpoint | StrPath) -> Inspection:
    """What a checkpoint, adapter, run or tower is, and whether its config agrees with its weights.

    Headers and configs only. A vision tower directory that is not reachable from here is reported,
    not an error. Raises InputError if the checkpoint itself cannot be read.
    """
    opened = as_checkpoint(checkpoint)
    return inspect_checkpoint(opened, _tower_directory(opened))


def as_checkpoint(checkpoint: Checkpoint | StrPath) -> Checkpoint:
    """A checkpoint as it is, a path opened."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)


def _tower_directory(checkpoint: Checkpoint) -> TowerDirectory | None:
    """What lies at ``mm_vision_tower``: looked for where the command runs, then beside the base."""
    config = checkpoint.config or {}
    own = towers.tower_of_config(config)
    if own is not None:
        return TowerDirectory(checkpoint.root, None, own)
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return None
    places = (os.getcwd(), os.path.dirname(checkpoint.root), checkpoint.root)
    found = (os.path.normpath(os.path.join(place, name)) for place in places)
    path = next((p for p in found if "\0" not in p and os.path.exists(p)), None)
    if path is None:
        return TowerDirectory(None, "not reachable from here", None)
    try:
        return TowerDirectory(path, None, _tower_at(path))
    except InputError as error:
        return TowerDirectory(path, str(error), None)


def _tower_at(path: str) -> towers.Tower | None:
    config = os.path.join(path, CONFIG)
    if os.path.isfile(config):
        value, _ = read_json_object(config)
        return towers.tower_of_config(value)
    tensors = open_checkpoint(path).tensors
    return towers.tower_of_shapes({name: tensor.shape for name, tensor in tensors.items()})
