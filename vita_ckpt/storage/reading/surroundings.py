"""Look at what lies around a checkpoint, as far as a loader's binding depends on it."""

from __future__ import annotations

import os

from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.towers import TowerDirectory
from vita_ckpt.core.binding import Surroundings
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.references import reaches
from vita_ckpt.storage.reading.tower import (
    find_tower,
    has_lone_file,
    open_tower,
    read_carried_config,
    read_given_config,
)


def look_around(
    checkpoint: Checkpoint, stores: Stores, tower: str | os.PathLike[str] | None = None
) -> Surroundings:
    """Look at what a checkpoint's config leads to: its tower, its audio encoder.

    ``tower`` (a directory or a ``config.json``) takes the place of what lies at
    ``mm_vision_tower``. Raises InputError if it describes no tower.
    """
    audio = (checkpoint.config or {}).get("mm_audio_encoder")
    reaches_audio = isinstance(audio, str) and reaches(checkpoint, audio, stores) is not None
    if tower is None:
        carried = read_carried_config(checkpoint, stores)
        return Surroundings(find_tower(checkpoint, stores), carried, reaches_audio)
    if has_lone_file(checkpoint):
        return Surroundings(open_tower(os.fspath(tower), stores), None, reaches_audio)
    given = read_given_config(tower, stores)
    own = TowerDirectory(os.fspath(tower), None, towers.tower_of_config(given), given)
    return Surroundings(own, given, reaches_audio)
