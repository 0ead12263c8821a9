"""Load a checkpoint's files into a model that runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.towers import TowerDirectory
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.modules import Surroundings, builds_audio, is_audio
from vita_ckpt.core.binding.result import Binding, PartSource
from vita_ckpt.core.checkpoint import Checkpoint, RemoteFile
from vita_ckpt.core.diagnosis import diagnose
from vita_ckpt.core.dtype import SPELLINGS
from vita_ckpt.core.relocation import Relocation, remote_refs
from vita_ckpt.core.requirements import family_of_model, require_runnable
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.model.language import check_language_values
from vita_ckpt.model.pipeline import cut
from vita_ckpt.model.placement import dispatch, free_memory, offered, place
from vita_ckpt.model.projectors import check_type
from vita_ckpt.model.towers.build import check_tower_values
from vita_ckpt.model.vita import VitaModel, build
from vita_ckpt.model.weights import TORCH_DTYPES, Observer, Weights, load_resident
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.fetch import download
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.surroundings import look_around
from vita_ckpt.storage.reading.tower import tower_config_of

StrPath = str | os.PathLike[str]

# What keeps upstream's loader from a directory, and this one not.
_ELSEWHERE: Final = (
    "tower-path-unreachable",
    "audio-files-missing",
    "audio-directory-unreadable",
)


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
    stage: tuple[int, int] | None = None,
) -> VitaModel:
    """Load the model of a checkpoint, ready to run.

    ``device`` is ``"auto"`` (GPUs if there are any), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    ``dtype`` is a torch dtype or its name, by default the checkpoint's. ``attn`` is the library's
    attention implementation. ``tower`` is the tower's directory, needed if the config's path does
    not lead to it; its weights are run where the loader of the checkpoint's family takes those.
    ``audio_encoder`` is the audio encoder's, without which its tensors are not run. ``max_memory``
    limits the memory for weights, in bytes or as ``"4GB"``, by GPU number or ``"cpu"``. Its default
    is most of what is free, and on a CPU at least half a gigabyte. Weights are placed on one GPU if
    they fit, else on several GPUs if they fit on those together (only the GPUs in ``max_memory``,
    if it names any). Otherwise they stream from the files, module by module.

    ``observe`` is called with every stored name and tensor that a module receives; while streaming,
    ``model.observe_rest()`` calls it with the others. ``stores`` resolves paths. ``stage`` is a
    number and how many there are: only that stage of a pipeline is loaded.

    Raises InputError if the checkpoint cannot be read, is of an unknown kind, or its tensors are
    not exactly those of the model; UsageError for a device that is not available.
    """
    stores = Stores() if stores is None else stores
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, stores)
    require_runnable(checkpoint)
    devices = offered(device, max_memory or {}, torch.cuda.device_count(), free_memory)
    kind = dtype_of(dtype, checkpoint)
    around = look_around(checkpoint, stores, tower, audio_encoder)
    bound = require_binding(checkpoint, around, stores)
    return load_bound(
        checkpoint,
        around,
        bound,
        devices,
        kind,
        attn=attn,
        observe=observe,
        stage=stage,
        stores=stores,
    )


def load_bound(
    checkpoint: Checkpoint,
    around: Surroundings,
    bound: Binding,
    devices: Iterable[tuple[torch.device, int]],
    kind: torch.dtype,
    *,
    attn: str | None = None,
    observe: Observer | None = None,
    stage: tuple[int, int] | None = None,
    stores: Stores,
) -> VitaModel:
    """Load the model of a checkpoint whose tensors are known to bind, in the dtype ``kind``.

    ``stage`` and ``stores`` are as in :func:`load_model`.
    """
    names = bound.renamed
    if names:
        tensors = {names.get(name, name): t for name, t in checkpoint.tensors.items()}
        checkpoint = replace(checkpoint, tensors=tensors)
    tower = tower_config(checkpoint, around, bound, stores)
    checkpoint = _with_tower(checkpoint, around, bound, stores)
    family = family_of_model(checkpoint)
    model = build(checkpoint, tower, kind, attn, runnable_audio(checkpoint, around), family)
    if stage is not None:
        cut(model, *stage)
    placement = place(model, devices)
    weights = Weights(checkpoint)
    if placement.device_map is None:
        model.stream(weights, kind, placement.device, observe)
        return model
    with weights:
        load_resident(model, model.stored_names(), weights, placement.device_map, observe)
    if len(placement.device_map) > 1:
        dispatch(model, placement.device_map)
    return model


def require_binding(checkpoint: Checkpoint, around: Surroundings, stores: Stores) -> Binding:
    """Return what the loader of a checkpoint's family binds; raise InputError unless it is all.

    Nothing is built for it: what a config asks for takes memory only if the tensors are there.
    Audio is left aside where none is stored, and where the config builds none.
    """
    config = checkpoint.config or {}
    check_language_values(config)
    bound = bind(config, checkpoint.tensors, around)
    check_values(checkpoint, around, bound, stores)
    fit = dict(bound.parts)
    if not (builds_audio(config) and any(map(is_audio, checkpoint.tensors))):
        fit.pop(parts.AUDIO_ENCODER, None)
    causes = diagnose(bound, checkpoint.root)
    replace(bound, parts=fit).mismatch.refuse(
        checkpoint.root,
        "exactly the tensors that its config describes",
        "; ".join(f"{cause.what}: {cause.mend}" for cause in causes)
        or "vita-ckpt inspect shows where config and weights disagree",
    )
    if bound.stop is not None and bound.stop.code not in _ELSEWHERE:
        raise InputError(bound.stop.code, checkpoint.root, got=bound.stop.detail)
    if bound.integers:
        raise InputError(
            "weights-do-not-fit",
            checkpoint.root,
            expected="real numbers",
            got=f"integers in {bound.integers[0]}",
        )
    return bound


def runnable_audio(checkpoint: Checkpoint, around: Surroundings) -> AudioEncoder | None:
    """Return the settings to run a checkpoint's audio encoder with; None if they are not known."""
    stored = any(map(is_audio, checkpoint.tensors))
    return around.audio.settings if around.audio is not None and stored else None


def check_values(
    checkpoint: Checkpoint, around: Surroundings, bound: Binding, stores: Stores
) -> None:
    """Raise InputError for a config that describes no model."""
    config = checkpoint.config or {}
    check_language_values(config)
    tower = tower_config(checkpoint, around, bound, stores)
    if tower is not None:
        family = family_of_model(checkpoint)
        check_tower_values(tower)
        check_type(str(family.projector_type(config)), family.projector_types)


def tower_config(
    checkpoint: Checkpoint, around: Surroundings, bound: Binding, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the config of the tower that a checkpoint's loader runs; None if it runs none.

    Raises InputError ``tower-path-unreachable`` for a tower whose values are its directory's, and
    that is not here; ``tower-absent`` and ``tower-config-unknown``.
    """
    if not _is_of_directory(bound):
        family = family_of_model(checkpoint)
        return tower_config_of(checkpoint, around.tower_configs, family)
    directory = _directory(checkpoint, around)
    if directory.config is not None:
        return directory.config
    tensors = open_checkpoint(str(directory.path), stores).tensors
    return towers.config_of_shapes({name: tensor.shape for name, tensor in tensors.items()})


def _with_tower(
    checkpoint: Checkpoint, around: Surroundings, bound: Binding, stores: Stores
) -> Checkpoint:
    """Return a checkpoint with the tower that wins: its own, or its directory's in its place."""
    if not _is_of_directory(bound):
        return checkpoint
    path = str(_directory(checkpoint, around).path)
    found = open_checkpoint(os.path.dirname(path) if path.endswith(".json") else path, stores)
    found = _downloaded(found, stores)
    names = towers.stored_names({name: tensor.shape for name, tensor in found.tensors.items()})
    wanted = bound.part(parts.VISION_TOWER).wanted
    own = {parts.TOWER_MODULE + to: found.tensors[name] for name, to in names.items()}
    own = {name: tensor for name, tensor in own.items() if name in wanted}
    compare(wanted, {name: tensor.shape for name, tensor in own.items()}).refuse(
        found.root, "exactly the tensors that the tower's config describes"
    )
    others = {n: t for n, t in checkpoint.tensors.items() if not n.startswith(parts.TOWER_MODULE)}
    return replace(checkpoint, tensors=others | own)


def _downloaded(tower: Checkpoint, stores: Stores) -> Checkpoint:
    """Return a tower with its weights on the disk."""
    sources = {ref.source for ref in remote_refs(tower.tensors)}
    far = {source for source in sources if isinstance(source, RemoteFile)}
    if not far:
        return tower
    return Relocation(download(stores.hub, far)).checkpoint(tower)


def _is_of_directory(bound: Binding) -> bool:
    return bound.part(parts.VISION_TOWER).source is PartSource.TOWER_DIRECTORY


def _directory(checkpoint: Checkpoint, around: Surroundings) -> TowerDirectory:
    """Return the directory of the tower; raise InputError unless it is here."""
    directory = around.tower
    if directory is None or directory.path is None or directory.problem is not None:
        raise InputError(
            "tower-path-unreachable",
            checkpoint.root,
            expected="the directory of its tower, whose values its loader takes",
            got=f"mm_vision_tower {(checkpoint.config or {}).get('mm_vision_tower')!r}",
            hint="give the tower's directory with --tower",
        )
    return directory


def dtype_of(dtype: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype to compute in: what is asked for, by default the checkpoint's."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        named = TORCH_DTYPES.get(SPELLINGS.get(dtype, "")) or getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise UsageError(
                "unknown-dtype",
                dtype,
                expected="float32, bfloat16 or float16",
                hint=did_you_mean(dtype, ("float32", "bfloat16", "float16")),
            )
        return named
    return _stored_dtype(checkpoint)


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype of the language model, taken from its last norm."""
    norms = (checkpoint.tensors.get(name) for name in parts.LAST_NORMS)
    norm = next((norm for norm in norms if norm is not None), None)
    return TORCH_DTYPES[norm.dtype] if norm is not None else torch.float32
