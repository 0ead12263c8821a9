"""Explain what each loader would do with a directory, and where loaders disagree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.explain.disagreements import divergences
from vita_ckpt.checks.explain.explanation import Explanation
from vita_ckpt.checks.explain.loaders import explain_loaders
from vita_ckpt.checks.explain.matching import Lookup
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.core.filenames import ADDED_TOKENS, TOKENIZER, VOCABULARY
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.audio import find_audio_encoder
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tokenizer import count_tokens
from vita_ckpt.storage.reading.tower import find_tower

TOKENIZER_FILES = (TOKENIZER, VOCABULARY, ADDED_TOKENS)


def explain(path: StrPath, *, stores: Stores | None = None) -> Explanation:
    """Replay VITA's, transformers' and huggingface_hub's loaders over a directory, file by file.

    Headers and configs only; what is broken is where a loader stops, not an error. A tower
    directory that is reachable is looked into. Raises InputError if nothing is there.
    """
    stores = Stores() if stores is None else stores
    files = read_weight_files(locate(path, stores), stores)
    traces = explain_loaders(files, _look_up(files, stores))
    return Explanation(files.root, traces, divergences(traces))


def _look_up(files: WeightFiles, stores: Stores) -> Lookup:
    """Look up what the config names: the tower, the audio encoder, and the tokenizer."""
    config: Mapping[str, Any] = files.config or {}
    here = Checkpoint(files.root, "safetensors", {}, config=config)
    audio = find_audio_encoder(here, stores)
    tokens = _count_tokens(files, stores)
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return Lookup(audio=audio, tokens=tokens)
    tower = find_tower(here, stores)
    if tower is None or tower.path is None:
        return Lookup(tower, audio=audio, tokens=tokens)
    try:
        beside = read_weight_files(tower.path, stores)
    except INCONCLUSIVE:
        raise
    except InputError:
        beside = None
    from_here = not is_remote(tower.path) and "\0" not in name and os.path.exists(name)
    return Lookup(tower, beside, from_here, audio, tokens)


def _count_tokens(files: WeightFiles, stores: Stores) -> int | None:
    """Return what ``len(tokenizer)`` will be; None where no readable file tells."""
    store = stores.store_of(files.root)
    paths = {name: os.path.join(files.root, name) for name in files.names}
    entries = {n: store.look(p) for n, p in paths.items() if n in TOKENIZER_FILES}
    found = {n: e.file for n, e in entries.items() if e is not None and e.file is not None}
    try:
        return count_tokens(Checkpoint(files.root, "safetensors", {}, files=found), stores)
    except INCONCLUSIVE:
        raise
    except InputError:
        return None
