"""Plan what a training state becomes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.api.locate import StrPath, as_checkpoint, locate, whole
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import dtype_code
from vita_ckpt.core.filenames import CONFIG
from vita_ckpt.core.options import (
    TRAINED_WEIGHTS,
    TrainedWeights,
)
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores, is_file, read_json
from vita_ckpt.storage.reading.training.state import open_training_state
from vita_ckpt.surgery import consolidate as consolidation


def plan_consolidate(
    state: Checkpoint | StrPath,
    *,
    base: Checkpoint | StrPath | None = None,
    config: Mapping[str, Any] | StrPath | None = None,
    dtype: str | None = None,
    weights: TrainedWeights = "masters",
    tag: str | None = None,
    as_file: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan what a training state becomes: a checkpoint directory, or a file of its tensors.

    ``state`` is a state or a run above it, of which ``tag`` picks one: DeepSpeed's, universal,
    ``torch.distributed.checkpoint``'s, shards of ranks, or the file of a wrapped model. Trained
    weights are the float32 masters, or with ``weights="copies"`` what the model ran with; ``dtype``
    converts all floating tensors. ``base`` supplies the parameters that were left out of the state.

    ``as_file`` keeps the names of the model's state dict. A directory has the names without
    wrappers and ``config`` (a ``config.json``, its directory or its content), by default that of
    the run or of ``base``; the state of a LoRA run becomes such a run.

    Raises InputError (or a subclass) for a state that is incomplete or does not add up, without a
    config for a directory, and where ``base`` does not fit.
    """
    stores = Stores() if stores is None else stores
    if weights not in TRAINED_WEIGHTS:
        raise UsageError(
            "unknown-weights",
            weights,
            expected=" or ".join(TRAINED_WEIGHTS),
            hint=did_you_mean(weights, TRAINED_WEIGHTS),
        )
    opened = _as_state(state, weights, tag, stores)
    code = dtype_code(dtype)
    given = _given_config(config, stores)
    other = None if base is None else as_checkpoint(base, stores)
    if as_file:
        plan = consolidation.plan_file(opened, base=other, dtype=code)
    else:
        plan = consolidation.plan_directory(
            opened, base=other, config=given, dtype=code, weights=weights
        )
    request = {"config": given, "dtype": code, "weights": weights, "as_file": as_file}
    return replace(plan, request=request)


def _as_state(
    state: Checkpoint | StrPath, weights: TrainedWeights, tag: str | None, stores: Stores
) -> Checkpoint:
    """Return an opened training state with the weights that are asked for."""
    if isinstance(state, Checkpoint):
        if state.training is None and state.layout == "file":
            return open_training_state(state.root, stores, weights=weights)
        is_changed = weights == "copies" and state.training is not None
        return consolidation.with_copies(state) if is_changed else state
    path = locate(state, stores)
    try:
        opened = open_training_state(path, stores, tag=tag)
    except InputError as error:
        if weights == "masters" or error.code not in ("missing-rank", "masters-differ"):
            raise
        return open_training_state(path, stores, tag=tag, weights=weights)
    return consolidation.with_copies(opened) if weights == "copies" else opened


def _given_config(
    config: Mapping[str, Any] | StrPath | None, stores: Stores
) -> dict[str, Any] | None:
    if config is None or isinstance(config, Mapping):
        return None if config is None else dict(config)
    path = whole(config, stores)
    store = stores.store_of(path)
    file = path if is_file(store, path) else os.path.join(path, CONFIG)
    return read_json(store, file)[0]
