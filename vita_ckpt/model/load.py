"""Load a checkpoint's files into a model that runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import (
    AUDIO_PREFIX,
    settings_of_shapes,
    wanted_tensors,
)
from vita_ckpt.core.anatomy.language_tensors import DEFAULTS, expected_shapes
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.towers import Tower
from vita_ckpt.core.anatomy.towers import tensors as tower_tensors
from vita_ckpt.core.anatomy.towers.shapes import affine, unsupported
from vita_ckpt.core.binding import builds_audio, is_audio, is_harmless
from vita_ckpt.core.checkpoint import Checkpoint, Shape
from vita_ckpt.core.requirements import vita_config
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import UsageError
from vita_ckpt.model.language import check_language_values
from vita_ckpt.model.placement import dispatch, free_memory, offered, place
from vita_ckpt.model.projectors import check_type
from vita_ckpt.model.towers.build import check_tower_values
from vita_ckpt.model.vita import STATES, VitaModel, build
from vita_ckpt.model.weights import TORCH_DTYPES, Observer, Weights, load_resident
from vita_ckpt.storage.reading.audio import find_audio_encoder, open_audio_directory
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import read_tower_config

StrPath = str | os.PathLike[str]


def load_model(
    path: Checkpoint | StrPath,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    tower: StrPath | None = None,
    audio_encoder: StrPath | None = None,
    attn: str | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
    observe: Observer | None = None,
    stores: Stores | None = None,
) -> VitaModel:
    """Load the model of a VITA checkpoint, ready to run.

    ``device`` is ``"auto"`` (GPUs if there are any), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    ``dtype`` is a torch dtype or its name, by default the checkpoint's. ``tower`` is the tower's
    directory, needed if the config's path does not lead to it; ``audio_encoder`` that of the audio
    encoder, without which its tensors are not run. ``attn`` is the library's attention
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
    devices = offered(device, max_memory or {}, torch.cuda.device_count(), free_memory)
    kind = dtype_of(dtype, checkpoint)
    tower_config = read_tower_config(checkpoint, stores, tower)
    audio = audio_directory(checkpoint, stores, audio_encoder)
    fit(checkpoint, tower_config, audio).refuse(
        checkpoint.root,
        "exactly the tensors that its config describes",
        "vita-ckpt inspect shows where config and weights disagree",
    )
    model = build(checkpoint, tower_config, kind, attn, runnable_audio(checkpoint, audio))
    placement = place(model, devices)
    weights = Weights(checkpoint)
    if placement.device_map is None:
        model.stream(weights, kind, placement.device, observe)
        return model
    with weights:
        names = model.stored_names()
        load_resident(model, names, weights, placement.device_map, observe)
    if len(placement.device_map) > 1:
        dispatch(model, placement.device_map)
    return model


def audio_directory(
    checkpoint: Checkpoint, stores: Stores, given: StrPath | None = None
) -> AudioDirectory | None:
    """Return the audio encoder's directory: ``given``, or what the config leads to.

    Raises InputError for one that is given and cannot be read.
    """
    if given is None or not builds_audio(checkpoint.config or {}):
        return find_audio_encoder(checkpoint, stores)
    return open_audio_directory(os.fspath(given), stores)


def runnable_audio(checkpoint: Checkpoint, directory: AudioDirectory | None) -> AudioEncoder | None:
    """Return the settings to run a checkpoint's audio encoder with; None if they are not known."""
    stored = any(map(is_audio, checkpoint.tensors))
    return directory.settings if directory is not None and stored else None


def fit(
    checkpoint: Checkpoint,
    tower_config: Mapping[str, Any] | None,
    audio: AudioDirectory | None = None,
) -> KeyMismatch:
    """Return how the checkpoint's tensors differ from the model's.

    Nothing is built for it: what a config asks for takes memory only if the tensors are there.
    Audio tensors are bound by ``audio``, or by themselves without it, and are left aside where the
    config builds no audio encoder. Raises InputError for a config that describes no model.
    """
    config = checkpoint.config or {}
    wanted = wanted_shapes(checkpoint, tower_config)
    found = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if not is_harmless(name) and (builds_audio(config) or not is_audio(name))
    }
    if builds_audio(config) and any(map(is_audio, found)):
        wanted |= _wanted_audio(config, found, audio, wanted["model.norm.weight"][0])
    if (checkpoint.config or {}).get("tie_word_embeddings") is True:
        found.pop(parts.LM_HEAD, None)
    return compare(wanted, found)


def _wanted_audio(
    config: Mapping[str, Any], found: Mapping[str, Shape], audio: AudioDirectory | None, hidden: int
) -> dict[str, Shape]:
    """Return the audio tensors of a model whose language model has a width of ``hidden``."""
    settings = audio.settings if audio is not None else None
    settings = settings or settings_of_shapes(parts.below(AUDIO_PREFIX, found))
    if settings is None:
        return {}
    fitting = replace(settings, adapter=replace(settings.adapter, out_width=hidden))
    return wanted_tensors(config, found, fitting)


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
