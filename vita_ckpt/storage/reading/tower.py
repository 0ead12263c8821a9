"""Find, open and describe vision towers on the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.families import VITA, ModelFamily, family_of
from vita_ckpt.core.anatomy.towers import Tower, TowerDirectory
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import CARRIED_CONFIG, CONFIG, PROCESSOR
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores, find, is_directory, is_file, read_json


def find_tower(checkpoint: Checkpoint, stores: Stores) -> TowerDirectory | None:
    """Return what ``mm_vision_tower`` refers to; None if the config names no tower.

    A relative path is looked up in the working directory, as upstream does, then beside the
    checkpoint, then in it; for a checkpoint on the hub only in its repository. A checkpoint that is
    itself a tower is its own directory. Raises HubError and StaleInputError.
    """
    config = checkpoint.config or {}
    own = towers.tower_of_config(config)
    if own is not None:
        return TowerDirectory(checkpoint.root, None, own, config)
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return None
    path = stores.store_of(checkpoint.root).reached_from(checkpoint.root, name)
    if path is None:
        return TowerDirectory(None, "not reachable from here", None)
    built = (family_of(config) or VITA).dispatch(config, lambda _: True).family
    try:
        return open_tower(path, stores, built)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        return TowerDirectory(path, str(error), None)


def open_tower(path: str, stores: Stores, built: str | None = None) -> TowerDirectory:
    """Describe the tower at ``path`` by its config if it has one, else by its tensors.

    ``built`` is the family whose class a loader builds there, whatever type the config says: where
    it says another or none, the weights decide.
    """
    config_path = os.path.join(path, CONFIG)
    store = stores.store_of(path)
    if is_file(store, config_path):
        config: Mapping[str, Any] = read_json(store, config_path)[0]
        said = towers.family_of_config(config)
        is_doubtful = said is None or (built is not None and said.name != built)
        if is_doubtful and "vision_config" not in config:
            config = _with_model_type(config, path, stores)
        return TowerDirectory(path, None, towers.tower_of_config(config), config)
    return TowerDirectory(path, None, _tower_at(path, stores))


def _with_model_type(config: Mapping[str, Any], path: str, stores: Stores) -> Mapping[str, Any]:
    """Return a tower's config with the type that its weights are of, which loaders do not ask."""
    try:
        tower = _tower_at(path, stores)
    except INCONCLUSIVE:
        raise
    except InputError:
        return config
    if tower is None or tower.traits.lone_file:
        return config
    return {**config, "model_type": tower.traits.model_type}


def _tower_at(path: str, stores: Stores) -> Tower | None:
    tensors = open_checkpoint(path, stores).tensors
    return towers.tower_of_shapes({name: tensor.shape for name, tensor in tensors.items()})


def read_tower_config(
    checkpoint: Checkpoint, stores: Stores, tower: str | os.PathLike[str] | None = None
) -> Mapping[str, Any] | None:
    """Read the config of the tower in a VITA checkpoint; None if the checkpoint has no tower.

    Sources in order of precedence: ``tower`` (a directory or a ``config.json``), the copy that a
    swapped checkpoint carries, the path in its config, its tensors if they determine the config.
    EVA-CLIP's sizes always come from its tensors. Raises InputError naming the option if all fail.
    """
    if tower is None or has_lone_file(checkpoint):
        carried = read_carried_config(checkpoint, stores)
    else:
        carried = read_given_config(tower, stores)
    directory = find_tower(checkpoint, stores) if carried is None else None
    config = carried or (directory.config if directory is not None else None)
    return tower_config_of(checkpoint, () if config is None else (config,))


def tower_config_of(
    checkpoint: Checkpoint, configs: Sequence[Mapping[str, Any]], family: ModelFamily = VITA
) -> Mapping[str, Any] | None:
    """Return the config of the tower in a checkpoint: the first of ``configs``, or its tensors'.

    EVA-CLIP's sizes always come from its tensors. ``family`` is that of the checkpoint. Of a tower
    that the family stores without a part of it, it is the whole one's. Raises InputError
    ``tower-absent`` and ``tower-config-unknown``.
    """
    own = _own_tower(checkpoint)
    if not own:
        if (checkpoint.config or {}).get("mm_vision_tower"):
            raise InputError(
                "tower-absent",
                checkpoint.root,
                expected="the vision tower's tensors, since its config names one",
                got="none",
                hint=f"{family.label}'s loader would leave the tower uninitialised",
            )
        return None
    if has_lone_file(checkpoint):
        return _sizes_of_shapes(checkpoint, own)
    described = next((config for config in configs if towers.family_of_config(config)), None)
    return described or family.whole_tower(own) or _sizes_of_shapes(checkpoint, own)


def _own_tower(checkpoint: Checkpoint) -> towers.Shapes:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    return parts.below(parts.TOWER_PREFIX, shapes)


def has_lone_file(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint's tower is of a family without a config of its own."""
    found = towers.tower_of_shapes(_own_tower(checkpoint))
    return found is not None and found.traits.lone_file


def read_carried_config(checkpoint: Checkpoint, stores: Stores) -> Mapping[str, Any] | None:
    """Read the tower's config that a checkpoint or the target of a plan carries."""
    if CARRIED_CONFIG in checkpoint.texts:
        carried: Mapping[str, Any] = json.loads(checkpoint.texts[CARRIED_CONFIG])
        return carried
    if CARRIED_CONFIG in checkpoint.files:
        return read_json(stores, checkpoint.files[CARRIED_CONFIG].path)[0]
    return None


def read_given_config(path: str | os.PathLike[str], stores: Stores) -> Mapping[str, Any]:
    """Read the tower's config at ``path``: a tower directory, a checkpoint or a ``config.json``.

    Raises InputError if it describes no tower.
    """
    store = stores.store_of(os.fspath(path))
    given = find(store, path)[0]
    config: Mapping[str, Any] | None
    if is_file(store, given) and given.endswith(".json"):
        config = read_json(store, given)[0]
    else:
        config = open_tower(given, stores).config
    if config is None or towers.tower_of_config(config) is None:
        raise InputError(
            "tower-config-unknown",
            given,
            expected=f"the config.json of a {towers.listed(towers.WITH_CONFIG)} tower, "
            "or its directory",
            got="no config.json" if config is None else f"model_type {config.get('model_type')!r}",
            hint="give the tower's own config.json",
        )
    return config


def read_processor(
    checkpoint: Checkpoint, stores: Stores, tower: str | os.PathLike[str] | None = None
) -> Mapping[str, Any] | None:
    """Read the ``preprocessor_config.json`` of a checkpoint or tower; None if there is none.

    It is looked up beside ``tower``, then where :func:`processor_around` looks.
    """
    if tower is not None and (given := _processor_at(os.fspath(tower), stores)) is not None:
        return given
    return processor_around(checkpoint, find_tower(checkpoint, stores), stores)


def processor_around(
    checkpoint: Checkpoint, directory: TowerDirectory | None, stores: Stores
) -> Mapping[str, Any] | None:
    """Read the image processor in the tower's directory, where loaders look, or the checkpoint's.

    ``directory`` is the result of :func:`find_tower`. None if neither has one.
    """
    place = None if directory is None else directory.path
    if place is not None and (own := _processor_at(place, stores)) is not None:
        return own
    if PROCESSOR in checkpoint.texts:
        carried: Mapping[str, Any] = json.loads(checkpoint.texts[PROCESSOR])
        return carried
    if PROCESSOR in checkpoint.files:
        return read_json(stores, checkpoint.files[PROCESSOR].path)[0]
    return None


def _processor_at(place: str, stores: Stores) -> Mapping[str, Any] | None:
    store = stores.store_of(place)
    folder = (
        place if is_directory(store, place) else os.path.dirname(place)
    )  # a lone file of weights
    path = os.path.join(folder, PROCESSOR)
    return read_json(store, path)[0] if is_file(store, path) else None


def _sizes_of_shapes(checkpoint: Checkpoint, shapes: towers.Shapes) -> Mapping[str, Any]:
    config = towers.config_of_shapes(shapes)
    if config is None:
        raise InputError(
            "tower-config-unknown",
            checkpoint.root,
            expected="the config.json of its vision tower, which its tensors do not determine",
            got=f"mm_vision_tower {(checkpoint.config or {}).get('mm_vision_tower')!r}",
            hint="give the tower's directory, with --tower-config or verify's --tower",
        )
    return config
