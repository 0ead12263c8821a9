"""Explain what each loader would do with a directory, and where they part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.explain.disagreements import divergences
from vita_ckpt.checks.explain.explanation import Explanation
from vita_ckpt.checks.explain.loaders import Surroundings, explain_loaders
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.tower import find_tower


def explain(path: StrPath) -> Explanation:
    """Replay VITA's, transformers' and huggingface_hub's loaders over a directory, file by file.

    Headers and configs only; what is broken is where a loader stops, not an error. A tower
    directory that is reachable is looked into. Raises InputError if nothing is there.
    """
    files = read_weight_files(locate(path))
    stories = explain_loaders(files, _surroundings(files))
    return Explanation(files.root, stories, divergences(stories))


def _surroundings(files: WeightFiles) -> Surroundings:
    config: Mapping[str, Any] = files.config or {}
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return Surroundings()
    tower = find_tower(Checkpoint(files.root, "safetensors", {}, config=config))
    if tower is None or tower.path is None:
        return Surroundings(tower)
    try:
        beside = read_weight_files(tower.path)
    except INCONCLUSIVE:
        raise
    except InputError:
        beside = None
    from_here = not is_remote(tower.path) and "\0" not in name and os.path.exists(name)
    return Surroundings(tower, beside, from_here)
