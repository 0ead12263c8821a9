"""The tower that a config names: looked for, and described by its config or its tensors."""

from __future__ import annotations

import os
from typing import Final

from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.towers import TowerDirectory
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.errors import InputError
from vita_ckpt.storage.directory import CONFIG, open_checkpoint
from vita_ckpt.storage.source import read_json_object

# A swapped checkpoint carries the config of its tower under this name.
CARRIED_CONFIG: Final = "vision_tower_config.json"


def find_tower(checkpoint: Checkpoint) -> TowerDirectory | None:
    """What lies at ``mm_vision_tower``; None if the config names no tower.

    A relative path is looked up where the command runs, as upstream does, then beside the
    checkpoint, then in it. A checkpoint that is itself a tower is its own directory.
    """
    config = checkpoint.config or {}
    own = towers.tower_of_config(config)
    if own is not None:
        return TowerDirectory(checkpoint.root, None, own, config)
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return None
    root = checkpoint.root
    if checkpoint.layout == "file":
        root = os.path.dirname(root)
    places = (os.curdir, os.path.dirname(root), root)
    found = (os.path.normpath(os.path.join(place, name)) for place in places)
    path = next((p for p in found if "\0" not in p and os.path.exists(p)), None)
    if path is None:
        return TowerDirectory(None, "not reachable from here", None)
    try:
        return open_tower(os.path.abspath(path))
    except InputError as error:
        return TowerDirectory(path, str(error), None)


def open_tower(path: str) -> TowerDirectory:
    """The tower at ``path``, by its config if it has one, else by its tensors."""
    config_path = os.path.join(path, CONFIG)
    if os.path.isfile(config_path):
        config, _ = read_json_object(config_path)
        return TowerDirectory(path, None, towers.tower_of_config(config), config)
    tensors = open_checkpoint(path).tensors
    tower = towers.tower_of_shapes({name: tensor.shape for name, tensor in tensors.items()})
    return TowerDirectory(path, None, tower)
