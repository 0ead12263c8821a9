"""Load a checkpoint's files into a model that runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import torch

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.language_tensors import DEFAULTS, expected_shapes
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.towers import Tower
from vita_ckpt.core.anatomy.towers import tensors as tower_tensors
from vita_ckpt.core.anatomy.towers.shapes import affine, unsupported
from vita_ckpt.core.binding import is_harmless
from vita_ckpt.core.checkpoint import Checkpoint, Shape
from vita_ckpt.core.quantisation import refuse_quantised
from vita_ckpt.core.requirements import vita_config
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import UsageError
from vita_ckpt.model.language import check_language_values
from vita_ckpt.model.placement import dispatch, free_memory, offered, place
from vita_ckpt.model.projectors import check_type
from vita_ckpt.model.towers.build import check_tower_values
from vita_ckpt.model.vita import STATES, VitaModel, build
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
    stores: Stores | None = None,
) -> VitaModel:
    """Load the model of a VITA checkpoint, ready to run: text and images, no audio.

    ``device`` is ``"auto"`` (GPUs if there are any), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    ``dtype`` is a torch dtype or its name, by default the checkpoint's. ``tower`` is the tower's
    directory, needed if the config's path does not lead to it. ``attn`` is the library's attention
    implementation. ``max_memory`` limits the memory for weights, in bytes or as ``"4GB"``, by GPU
    number or ``"cpu"``. Its default is most of every GPU's free memory, and half a gigabyte on a
    CPU. Weights are placed on one GPU if they fit, else on several GPUs if they fit on those
    together (only the GPUs in ``max_memory``, if it names any). Otherwise they stream from the
    checkpoint's own files, module by module.

    ``observe`` is called with every stored name and tensor that a module receives; while streaming,
    ``model.observe_rest()`` calls it with the others. ``stores`` resolves paths.

    Raises InputError if the checkpoint cannot be read, is of an unknown kind, or its tensors are
    not exactly those of the model; UsageError for a device that is not available.
    """
    stores = Stores() if stores is None else stores
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, stores)
    vita_config(checkpoint)
    refuse_quantised(checkpoint, "which the model computes with")
    devices = offered(device, max_memory or {}, torch.cuda.device_count(), free_memory)
    kind = dtype_of(dtype, checkpoint)
    tower_config = read_tower_config(checkpoint, stores, tower)
    fit(checkpoint, tower_config).refuse(
        checkpoint.root,
        "exactly the tensors that its config describes",
        "vita-ckpt inspect shows where config and weights disagree",
    )
    model = build(checkpoint, tower_config, kind, attn)
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


def fit(checkpoint: Checkpoint, tower_config: Mapping[str, Any] | None) -> KeyMismatch:
    """Return how the checkpoint's tensors differ from the model's; audio is left aside.

    Nothing is built for it: what a config asks for takes memory only if the tensors are there.
    Raises InputError for a config that describes no model.
    """
    wanted = wanted_shapes(checkpoint, tower_config)
    found = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if parts.part_of(name) not in _NOT_RUN and not is_harmless(name)
    }
    if (checkpoint.config or {}).get("tie_word_embeddings") is True:
        found.pop(parts.LM_HEAD, None)
    return compare(wanted, found)


def wanted_shapes(
    checkpoint: Checkpoint, tower_config: Mapping[str, Any] | None
) -> dict[str, Shape]:
    """Return every tensor of the model that :func:`~vita_ckpt.model.vita.build` builds.

    Raises InputError for a config that describes no model.
    """
    config = checkpoint.config or {}
    family = check_language_values(config)
    wanted = expected_shapes(family, config)
    hidden = config.get("hidden_size", DEFAULTS[family]["hidden_size"])
    if "predictor_head.weight" in checkpoint.tensors:
        wanted |= affine("predictor_head", (STATES, hidden), STATES)
    if tower_config is not None:
        check_tower_values(tower_config)
        shapes = tower_tensors.expected_shapes(tower_config)
        tower = _tower(tower_config)
        prefix = parts.TOWER_MODULE + tower.traits.stored_prefix
        wanted |= {prefix + name: shape for name, shape in shapes.items()}
        kind = str(config.get("mm_projector_type", projectors.DEFAULT_TYPE))
        check_type(kind)
        width = config.get("mm_hidden_size")
        if width is None:
            width = tower.output_width(towers.number_of_scales(config))
        shapes = projectors.expected_shapes(Projector(kind, width, hidden))
        wanted |= {parts.PROJECTOR_PREFIX + name: shape for name, shape in shapes.items()}
    return wanted


def _tower(config: Mapping[str, Any]) -> Tower:
    """Describe the tower of a config, or of the sizes that a lone file's tensors give."""
    family = towers.family_of_config(config)
    if family is not None and family.lone_file:
        return Tower(family.name, config["width"])
    tower = towers.tower_of_config(config)
    if tower is None:
        raise unsupported("model_type", "a known tower", config)
    return tower


def dtype_of(dtype: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype to compute in: what is asked for, by default the checkpoint's."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise UsageError("unknown-dtype", dtype, expected="float32, bfloat16 or float16")
        return named
    return _stored_dtype(checkpoint)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype of the language model, taken from its last norm."""
    norm = checkpoint.tensors.get("model.norm.weight")
    return TORCH_DTYPES[norm.dtype] if norm is not None else torch.float32
