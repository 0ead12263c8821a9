"""Open the state of a training run as a Checkpoint whose tensors are pieces of its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from vita_ckpt.core.checkpoint import (
    Checkpoint,
    File,
    Shard,
)
from vita_ckpt.core.filenames import ADAPTER_CONFIG, CONFIG, SAFETENSORS_SUFFIX
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.training.filenames import (
    METADATA,
    is_carried,
)
from vita_ckpt.core.training.names import without_wrappers
from vita_ckpt.core.training.state import Engine, TrainingState
from vita_ckpt.errors import InputError
from vita_ckpt.storage.reading.paths import Stores, read_optional
from vita_ckpt.storage.reading.shards import read_shard
from vita_ckpt.storage.reading.training.copies import check_sample
from vita_ckpt.storage.reading.training.dcp import open_dcp
from vita_ckpt.storage.reading.training.deepspeed import open_deepspeed
from vita_ckpt.storage.reading.training.find import Place, find_state, is_of_run
from vita_ckpt.storage.reading.training.found import Found, main_dtype, refuse_copies
from vita_ckpt.storage.reading.training.ranks import open_dtensors, open_hf_shards
from vita_ckpt.storage.reading.training.universal import open_universal
from vita_ckpt.storage.stores.base import Store

# How far above a state the config of its run may lie.
_LEVELS_TO_CONFIG: Final = 3


def open_training_state(
    path: str | os.PathLike[str],
    stores: Stores,
    *,
    tag: str | None = None,
    weights: TrainedWeights = "masters",
) -> Checkpoint:
    """Open a training state: pickles and headers only, whatever its size.

    ``path`` is the directory of a state, a run above it (then ``tag`` or ``latest`` picks one), or
    the file of a wrapped model. Trained tensors are the float32 masters, or as ``weights`` says the
    copies in the dtype of training; the names are those of the model's state dict. Raises
    InputError (or a subclass) naming the file that is missing, damaged, or of another run.
    """
    store = stores.store_of(os.fspath(path))
    return open_place(store, find_state(store, path, tag), weights)


def open_place(store: Store, place: Place, weights: TrainedWeights = "masters") -> Checkpoint:
    """Open the training state at a place that was found; see :func:`open_training_state`."""
    found = _OPENERS[place.engine](store, place, weights)
    if not found.tensors:
        raise InputError(
            "no-tensors", place.root, expected="weights", got="a state without a single tensor"
        )
    check_sample(store, found)
    config, adapter, files = _of_run(store, place)
    shards: list[Shard] = []
    for file in dict.fromkeys(found.files):
        name = "" if place.engine is Engine.FILE else os.path.relpath(file.path, place.root)
        if name != METADATA:
            kind: Literal["safetensors", "torch"] = (
                "safetensors" if name.endswith(SAFETENSORS_SUFFIX) else "torch"
            )
            shards.append(Shard(name, file, kind))
        else:
            files[name] = file
    return Checkpoint(
        place.root,
        "state",
        found.tensors,
        tuple(shards),
        config=config,
        adapter_config=adapter,
        files=files,
        training=found.state,
    )


def _of_run(
    store: Store, place: Place
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, File]]:
    """Return the config and the adapter's config of the run, and what it has beside them.

    They lie beside a state or above it; what is nearer counts.
    """
    at = os.path.dirname(place.root) if place.engine is Engine.FILE else place.root
    configs: dict[str, dict[str, Any]] = {}
    files: dict[str, File] = {}
    for _ in range(_LEVELS_TO_CONFIG):
        for name in store.listing(at):
            if name in files:
                continue
            if name in (CONFIG, ADAPTER_CONFIG):
                config, found = read_optional(store, at, name)
                if config is not None:
                    configs[name] = config
                    files |= found
            elif is_carried(name):
                entry = store.look(os.path.join(at, name))
                if entry is not None and entry.file is not None:
                    files[name] = entry.file
        if not is_of_run(os.path.basename(at)):
            break
        at = os.path.dirname(at)
    return configs.get(CONFIG), configs.get(ADAPTER_CONFIG), files


def _open_file(store: Store, place: Place, weights: TrainedWeights) -> Found:
    refuse_copies(place, weights)
    shard, tensors = read_shard(store, place.root, "")
    named = without_wrappers(tensors, place.root)
    state = TrainingState(
        Engine.FILE,
        dtype=main_dtype(named),
        master_bytes=sum(tensor.nbytes for tensor in named.values()),
    )
    return Found(state, dict(named), [shard.file])


_OPENERS: Final[Mapping[Engine, Callable[[Store, Place, TrainedWeights], Found]]] = {
    Engine.DEEPSPEED: open_deepspeed,
    Engine.UNIVERSAL: open_universal,
    Engine.DCP: open_dcp,
    Engine.HF_SHARDS: open_hf_shards,
    Engine.DTENSOR: open_dtensors,
    Engine.FILE: _open_file,
}
