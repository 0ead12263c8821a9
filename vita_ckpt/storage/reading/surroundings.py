"""Look at what lies around a checkpoint, as far as a loader's binding depends on it."""

from __future__ import annotations

import os
from dataclasses import replace

from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.towers import TowerDirectory
from vita_ckpt.core.binding.loaders import model_name
from vita_ckpt.core.binding.modules import Surroundings, builds_audio
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.storage.reading.audio import find_audio_encoder, open_audio_directory
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    find_tower,
    has_lone_file,
    open_tower,
    read_carried_config,
    read_given_config,
)


def look_around(
    checkpoint: Checkpoint,
    stores: Stores,
    tower: str | os.PathLike[str] | None = None,
    audio_encoder: str | os.PathLike[str] | None = None,
) -> Surroundings:
    """Look at what a checkpoint's config leads to: its tower, its audio encoder.

    ``tower`` (a directory or a ``config.json``) takes the place of what lies at
    ``mm_vision_tower``, ``audio_encoder`` of what lies at ``mm_audio_encoder``, if the config names
    any. Raises InputError if they describe none.
    """
    audio = find_audio_encoder(checkpoint, stores)
    if audio_encoder is not None and builds_audio(checkpoint.config or {}):
        audio = open_audio_directory(os.fspath(audio_encoder), stores)
    found = find_tower(checkpoint, stores)
    around = Surroundings(
        found,
        audio=audio,
        path_exists=found is not None and found.path is not None,
        safetensors=all(shard.format == "safetensors" for shard in checkpoint.shards),
        name=model_name(checkpoint.root),
    )
    if tower is None:
        return replace(around, carried=read_carried_config(checkpoint, stores))
    if has_lone_file(checkpoint):
        return replace(around, tower=open_tower(os.fspath(tower), stores))
    given = read_given_config(tower, stores)
    own = TowerDirectory(os.fspath(tower), None, towers.tower_of_config(given), given)
    return replace(around, tower=own, carried=given)
