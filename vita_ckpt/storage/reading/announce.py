"""Announce what opening a checkpoint reads, so that a remote store fetches it all at once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from vita_ckpt.core.anatomy.audio.directory import GLOBAL_CMVN, TRAIN
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    CONFIG,
    ORIGIN_CONFIG,
    PROVENANCE,
    SAFETENSORS_INDEX,
    SAFETENSORS_SUFFIX,
    weight_files_of,
)
from vita_ckpt.storage.reading.index import weight_map_of
from vita_ckpt.storage.reading.paths import read_json
from vita_ckpt.storage.reading.shards import prefetch_shards, read_shard
from vita_ckpt.storage.stores.base import Store

# The files of a tower and of an audio encoder that the config of a checkpoint leads to.
_BESIDE: Final = {"mm_vision_tower": (CONFIG,), "mm_audio_encoder": (TRAIN, GLOBAL_CMVN)}
_LARGEST: Final = 1 << 20  # larger ones are read when they are needed


def announce(
    store: Store,
    root: str,
    names: Iterable[str],
    index: str | None = None,
    weights: Iterable[str] = (),
) -> None:
    """Announce configs, ``index`` and headers of a checkpoint's directory that holds ``names``.

    ``weights`` are its weight files, if that is known; beside an index they are taken to be what
    has the names that ``save_pretrained`` gives. If the index names others, these come after it.
    """
    if store.is_local:
        return
    listed = frozenset(names)
    texts = {CONFIG, ORIGIN_CONFIG, PROVENANCE, index or ADAPTER_CONFIG} & listed
    shards = frozenset(weights)
    if index is not None and not shards:
        suffix = SAFETENSORS_SUFFIX if index == SAFETENSORS_INDEX else ".bin"
        shards = frozenset(n for n in weight_files_of(listed) if n.endswith(suffix))

    def read(path: str) -> None:
        name = os.path.basename(path)
        if name not in texts:
            read_shard(store, path, "")
            return
        value, _ = read_json(store, path)
        if name == CONFIG:
            _announce_beside(store, root, value)
        elif name == index:
            named = dict.fromkeys(weight_map_of(value, path).values())
            prefetch_shards(store, root, (n for n in named if n not in shards))

    store.prefetch([os.path.join(root, name) for name in (*sorted(texts), *sorted(shards))], read)


def _announce_beside(store: Store, root: str, config: dict[str, object]) -> None:
    """Announce what a config leads to, while the headers are on their way."""
    paths = []
    for key, names in _BESIDE.items():
        place = config.get(key)
        found = store.reached_from(root, place) if isinstance(place, str) and place else None
        if found is not None:
            paths += [path for name in names if _is_small(store, path := os.path.join(found, name))]

    def read(path: str) -> None:
        with store.open(path) as source:
            source.read(source.file.size, 0)

    store.prefetch(paths, read)


def _is_small(store: Store, path: str) -> bool:
    """Return whether a file is there that may as well be fetched whole."""
    entry = store.look(path)
    return entry is not None and entry.file is not None and entry.file.size <= _LARGEST
