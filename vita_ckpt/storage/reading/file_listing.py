"""Read the header, or the error, of every file that a loader could take for weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from vita_ckpt.core.checkpoint import TensorRef
from vita_ckpt.core.file_listing import Index, Trouble, WeightFile, WeightFiles
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    CONFIG,
    ORIGIN_CONFIG,
    PICKLE_SUFFIXES,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TORCH_INDEX,
    TRAINING_STATE,
    index_of,
)
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.announce import announce
from vita_ckpt.storage.reading.checkpoint import check_no_json, vita_and_serving
from vita_ckpt.storage.reading.in_progress import check_whole
from vita_ckpt.storage.reading.index import (
    check_inside,
    index_mismatches,
    tensors_by_shard,
    weight_map_of,
)
from vita_ckpt.storage.reading.paths import Stores, find, is_file, read_json, read_optional
from vita_ckpt.storage.reading.rival_weights import other_weights
from vita_ckpt.storage.reading.shards import read_shard
from vita_ckpt.storage.stores.base import Store

_T = TypeVar("_T")

_INDEXES: Final[tuple[str, ...]] = (SAFETENSORS_INDEX, TORCH_INDEX)
_SUFFIXES: Final = (".safetensors", ".bin", ".pt")


def read_weight_files(path: str | os.PathLike[str], stores: Stores) -> WeightFiles:
    """Read the directory or the lone weight file at ``path``, without selecting or rejecting files.

    Names in an index that lead out of the directory are not followed. Raises InputError if nothing
    is there, or if an in-place surgery of it is incomplete.
    """
    store = stores.store_of(os.fspath(path))
    root, entry = find(store, path)
    check_whole(store, root if entry.is_directory else store.folder_of(root))
    if not entry.is_directory:
        check_no_json(root)
        name = os.path.basename(root)
        folder = os.path.dirname(root)
        return WeightFiles(root, (name,), {name: _weight_file(store, folder, name)}, {}, lone=True)
    names = tuple(n for n in store.listing(root) if is_file(store, os.path.join(root, n)))
    weights = {n for n in names if n.endswith(_SUFFIXES) and not TRAINING_STATE.fullmatch(n)}
    announce(store, root, names, index_of(names), weights)
    indexes = {n: _index(store, root, n) for n in _INDEXES if n in names}
    files = {name: _weight_file(store, root, name) for name in sorted(weights)}
    for index in indexes.values():
        for name in sorted(set(index.weight_map.values()) - files.keys()):
            files[name] = _indexed(store, root, name, index.name)
    if not files:
        store.check_known(f"{root}: weights")
    indexes = {name: _compared(root, index, files) for name, index in indexes.items()}
    config, trouble = _attempt(lambda: read_optional(store, root, CONFIG)[0])
    origin, _ = _attempt(lambda: read_optional(store, root, ORIGIN_CONFIG)[0])
    config, serving, _ = vita_and_serving(config, origin)
    adapter, _ = _attempt(lambda: read_optional(store, root, ADAPTER_CONFIG)[0])
    other = _other_pickled(files, indexes) if store.is_local else None
    return WeightFiles(
        root, names, files, indexes, config, trouble, adapter, serving, other_pickled=other
    )


def _compared(root: str, index: Index, files: Mapping[str, WeightFile]) -> Index:
    """Return the index with the first thing that its files say otherwise."""
    path = os.path.join(root, index.name)
    shards = tensors_by_shard(index.weight_map)
    if any(files[name].trouble is not None for name in shards):
        return index  # where a loader stops
    for name, promised in shards.items():
        for error in index_mismatches(path, index.weight_map, name, promised, files[name].tensors):
            return replace(index, mismatch=Trouble(error.code, str(error)))
    return index


def _other_pickled(files: Mapping[str, WeightFile], indexes: Mapping[str, Index]) -> str | None:
    """Return a tensor by which complete pickled weights differ from the safetensors files."""
    pickled: dict[str, TensorRef] = {}
    for name, file in files.items():
        if name.startswith("pytorch_model") and name.endswith(PICKLE_SUFFIXES):
            pickled |= file.tensors
    if not pickled:
        return None
    index = indexes.get(SAFETENSORS_INDEX)
    named = [SAFETENSORS] if index is None else sorted({*index.weight_map.values()})
    own = [files[name] for name in named if name in files]
    return other_weights({n: t for file in own for n, t in file.tensors.items()}, pickled)


def _index(store: Store, root: str, name: str) -> Index:
    path = os.path.join(root, name)

    def read() -> tuple[dict[str, Any], dict[str, str]]:
        value = read_json(store, path)[0]
        return value, {} if value.get("weight_map") == {} else weight_map_of(value, path)

    result, trouble = _attempt(read)
    if result is None:
        return Index(name, trouble=trouble)
    value, weight_map = result
    metadata = value.get("metadata")
    return Index(name, weight_map, metadata if isinstance(metadata, dict) else None)


def _indexed(store: Store, root: str, name: str, index: str) -> WeightFile:
    """Read a file that only an index names: in a subdirectory, outside, or missing."""
    _, outside = _attempt(lambda: check_inside(store, root, name, os.path.join(root, index)))
    if outside is not None:
        return WeightFile(name, trouble=outside)
    if not is_file(store, os.path.join(root, name)):
        store.check_known(os.path.join(root, name))
        error = InputError(
            "missing-shard", os.path.join(root, name), expected=f"the file that {index} names"
        )
        return WeightFile(name, trouble=Trouble(error.code, str(error)))
    return _weight_file(store, root, name)


def _weight_file(store: Store, root: str, name: str) -> WeightFile:
    result, trouble = _attempt(lambda: read_shard(store, root, name))
    if result is None:
        return WeightFile(name, trouble=trouble)
    shard, tensors = result
    declared_format = shard.metadata.get("format", "") if shard.metadata else None
    return WeightFile(name, tensors, declared_format)


def _attempt(read: Callable[[], _T]) -> tuple[_T | None, Trouble | None]:
    try:
        return read(), None
    except INCONCLUSIVE:
        raise
    except InputError as error:
        return None, Trouble(error.code, str(error))
