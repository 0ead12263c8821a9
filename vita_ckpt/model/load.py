"""Loading: from a checkpoint's files to a model that runs, nothing copied on the way to disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import torch
from accelerate.utils import convert_file_size_to_int

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.fit import Misfit, compare
from vita_ckpt.core.kinds import vita_config
from vita_ckpt.errors import UsageError
from vita_ckpt.model.vita import VitaModel, build
from vita_ckpt.model.weights import TORCH_DTYPES, Observer, Weights, load_resident
from vita_ckpt.storage.directory import open_checkpoint
from vita_ckpt.storage.tower_directory import read_tower_config

StrPath = str | os.PathLike[str]

# On the CPU a model of up to this many bytes is kept in memory; a larger one streams.
_RESIDENT_ON_CPU: Final = 512 << 20
# Of a GPU's free memory, what weights may take: the rest is for activations.
_GPU_SHARE: Final = 0.9

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
) -> VitaModel:
    """The model of a VITA checkpoint, ready to run: text and images, no audio.

    ``device`` is ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``;
    ``dtype`` a torch dtype or its name, by default the checkpoint's; ``tower`` the tower's
    directory, where the config's path does not lead to it; ``attn`` the library's attention
    implementation. Weights that do not fit into ``max_memory`` (bytes or ``"4GB"``, by ``"cpu"`` or
    GPU number; by default most of a GPU, half a gigabyte of a CPU) stream from the checkpoint's own
    files, module by module.
    ``observe`` is called with every stored name and tensor that a module is given. With
    ``strict=False`` a checkpoint that does not fit gives a model without weights.

    Raises InputError if the checkpoint cannot be read, is of no known kind, or its tensors are not
    exactly those of the model; UsageError for a device that is not there.
    """
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path)
    vita_config(checkpoint)
    where = _device(device)
    kind = _dtype(dtype, checkpoint)
    model = build(checkpoint, read_tower_config(checkpoint, tower), kind, attn)
    misfit = fit(model, checkpoint)
    if strict:
        misfit.refuse(
            checkpoint.root,
            "exactly the tensors that its config describes",
            "vita-ckpt inspect shows where config and weights disagree",
        )
    elif misfit:
        return model
    weights = Weights(checkpoint)
    names = model.stored_names()
    needed = sum(checkpoint.tensors[n].nbytes for n in set(names.values()))
    needed = needed * kind.itemsize // _stored_dtype(checkpoint).itemsize
    if needed > _room(where, max_memory or {}):
        model.stream(weights, kind, where, observe)
        return model
    with weights:
        load_resident(model, names, weights, where, kind, observe)
    return model


def fit(model: VitaModel, checkpoint: Checkpoint) -> Misfit:
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


def _device(device: str | torch.device) -> torch.device:
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise UsageError("unknown-device", device, expected="auto, cpu, cuda or cuda:N") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "no-such-device",
            device,
            expected="a GPU that torch sees",
            got=f"{torch.cuda.device_count()} of them",
            hint="use --device cpu",
        )
    return where


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


def _room(where: torch.device, max_memory: Mapping[Any, int | str]) -> int:
    """Bytes that weights may take on a device."""
    key: str | int = where.type if where.type == "cpu" else where.index or 0
    if key in max_memory:
        size = max_memory[key]
        try:
            return int(size) if str(size).isdecimal() else int(convert_file_size_to_int(size))
        except ValueError as error:
            raise UsageError(
                "invalid-max-memory", f"{key}={size}", expected="bytes, or a size such as 4GB"
            ) from error
    if where.type == "cpu":
        return _RESIDENT_ON_CPU
    free, _ = torch.cuda.mem_get_info(where)
    return int(free * _GPU_SHARE)
