"""Load a checkpoint's files into a model that runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import torch

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.requirements import vita_config
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import UsageError
from vita_ckpt.model.placement import dispatch, free_memory, offered, place
from vita_ckpt.model.vita import VitaModel, build
from vita_ckpt.model.weights import TORCH_DTYPES, Observer, Weights, load_resident
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import read_tower_config

StrPath = str | os.PathLike[str]

# Tensors of a checkpoint that this model does not run.
_NOT_RUN: Final = (parts.AUDIO_ENCODER, parts.AUDIO_ADAPTER)


def load_model(
    path: Checkpoint | StrPath,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    tower: StrPath | None = None,
    attn: str | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
    observe: Observer | None = None,
    strict: bool = True,
    stores: Stores | None = None,
) -> VitaModel:
    """The model of a VITA checkpoint, ready to run: text and images, no audio.

    ``device`` is ``"auto"`` (GPUs if there are any), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``;
    ``dtype`` a torch dtype or its name, by default the checkpoint's; ``tower`` the tower's
    directory, where the config's path does not lead to it; ``attn`` the library's attention
    implementation. ``max_memory`` is what weights may take: bytes or ``"4GB"``, by GPU number or
    ``"cpu"``; by default most of every GPU's free memory, half a gigabyte of a CPU's. Weights lie
    on one GPU if they fit there, on several if they fit on those together (only ``max_memory``'s,
    where it names some), and otherwise stream from the checkpoint's own files, module by module.
    ``observe`` is called with every stored name and tensor that a module is given; while streaming
    ``model.observe_rest()`` shows it the others. With ``strict=False`` a checkpoint that does not
    fit gives a model without weights. ``stores`` are those that paths lead to.

    Raises InputError if the checkpoint cannot be read, is of no known kind, or its tensors are not
    exactly those of the model; UsageError for a device that is not there.
    """
    stores = Stores() if stores is None else stores
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, stores)
    vita_config(checkpoint)
    devices = offered(device, max_memory or {}, torch.cuda.device_count(), free_memory)
    kind = _dtype(dtype, checkpoint)
    model = build(checkpoint, read_tower_config(checkpoint, stores, tower), kind, attn)
    mismatch = fit(model, checkpoint)
    if strict:
        mismatch.refuse(
            checkpoint.root,
            "exactly the tensors that its config describes",
            "vita-ckpt inspect shows where config and weights disagree",
        )
    elif mismatch:
        return model
    placement = place(model, devices)
    weights = Weights(checkpoint)
    if placement.device_map is None:
        model.stream(weights, kind, placement.device, observe)
        return model
    with weights:
        names = model.stored_names()
        load_resident(model, names, weights, placement.device_map, kind, observe)
    if len(placement.device_map) > 1:
        dispatch(model, placement.device_map)
    return model


def fit(model: VitaModel, checkpoint: Checkpoint) -> KeyMismatch:
    """How the checkpoint's tensors differ from the model's; audio is left aside."""
    state = model.state_dict()
    wanted = {stored: tuple(state[name].shape) for name, stored in model.stored_names().items()}
    found = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if parts.part_of(name) not in _NOT_RUN
    }
    if model.config.get("tie_word_embeddings") is True:
        found.pop(parts.LM_HEAD, None)
    return compare(wanted, found)


def _dtype(dtype: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise UsageError("unknown-dtype", dtype, expected="float32, bfloat16 or float16")
        return named
    return _stored_dtype(checkpoint)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the language model, told by its last norm."""
    norm = checkpoint.tensors.get("model.norm.weight")
    return TORCH_DTYPES[norm.dtype] if norm is not None else torch.float32
