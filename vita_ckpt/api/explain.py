"""Explain what each loader would do with a directory, and where loaders disagree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.explain.disagreements import divergences
from vita_ckpt.checks.explain.explanation import Explanation
from vita_ckpt.checks.explain.loaders import explain_loaders
from vita_ckpt.checks.explain.matching import TowerLookup
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import find_tower


def explain(path: StrPath, *, stores: Stores | None = None) -> Explanation:
    """Replay VITA's, transformers' and huggingface_hub's loaders over a directory, file by file.

    Headers and configs only; what is broken is where a loader stops, not an error. A tower
    directory that is reachable is looked into. Raises InputError if nothing is there.
    """
    stores = Stores() if stores is None else stores
    files = read_weight_files(locate(path, stores), stores)
    traces = explain_loaders(files, _look_up_tower(files, stores))
    return Explanation(files.root, traces, divergences(traces))


def _look_up_tower(files: WeightFiles, stores: Stores) -> TowerLookup:
    config: Mapping[str, Any] = files.config or {}
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return TowerLookup()
    tower = find_tower(Checkpoint(files.root, "safetensors", {}, config=config), stores)
    if tower is None or tower.path is None:
        return TowerLookup(tower)
    try:
        beside = read_weight_files(tower.path, stores)
    except INCONCLUSIVE:
        raise
    except InputError:
        beside = None
    from_here = not is_remote(tower.path) and "\0" not in name and os.path.exists(name)
    return TowerLookup(tower, beside, from_here)
