"""Open a universal directory of DeepSpeed: a folder for each parameter."""

from __future__ import annotations

import os
from dataclasses import replace
from math import prod

from vita_ckpt.core.checkpoint import (
    File,
    Shape,
    Tensor,
    TensorRef,
)
from vita_ckpt.core.dtype import CAST_SOURCES
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.training.filenames import (
    UNIVERSAL,
    UNIVERSAL_MOMENTS,
    UNIVERSAL_WEIGHTS,
)
from vita_ckpt.core.training.state import Engine, TrainingState
from vita_ckpt.core.training.zero import (
    merged_shapes,
)
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.deepspeed import (
    read_universal,
    state_files,
)
from vita_ckpt.storage.reading.training.deepspeed import (
    Rest,
    read_all_model_states,
    without_optimizer,
)
from vita_ckpt.storage.reading.training.find import Place, is_plain_name
from vita_ckpt.storage.reading.training.found import Found, read_all
from vita_ckpt.storage.stores.base import Store


def open_universal(store: Store, place: Place, weights: TrainedWeights) -> Found:
    """Open a universal directory: masters by name, or the copies of the model states."""
    files = state_files(place.root, list(place.names))
    models = read_all_model_states(store, place, files)
    first = models[0]
    if weights == "copies":
        return without_optimizer(place, first, weights)
    folder = os.path.join(place.root, UNIVERSAL)
    names = [name for name in store.listing(folder) if is_plain_name(name)]
    present = {
        number: name
        for number, name in enumerate(names)
        if store.stays_below(place.root, f"{UNIVERSAL}/{name}/x")
        and store.look(os.path.join(folder, name, UNIVERSAL_WEIGHTS)) is not None
    }
    paths = {number: f"{name}/{UNIVERSAL_WEIGHTS}" for number, name in present.items()}
    refs = read_all(store, folder, paths, read_universal)
    shapes = merged_shapes(first.groups or (), first.file.path)
    whole = shapes | dict(first.frozen_shapes or {})
    found: dict[str, Tensor] = {}
    for number, name in present.items():
        found[name] = _in_shape(refs[number], whole.get(name), name)
    missing = [name for name in shapes if name not in found]
    if missing:
        raise InputError(
            "missing-parameter",
            os.path.join(folder, missing[0]),
            expected=f"a directory for each of {len(shapes)} trained parameters",
            got=f"{len(missing)} less",
            hint="the conversion was interrupted, or the copy: convert or copy it again",
        )
    trained = {name: tensor for name, tensor in found.items() if name in shapes} or found
    stage = 3 if len(models) > 1 else first.stage or 1
    rest = Rest.of(models, found, stage)
    copies = {
        name: ref
        for name, ref in rest.copies.items()
        if ref.dtype in CAST_SOURCES and found[name].dtype == "F32" and name not in first.buffers
    }
    state = TrainingState(
        Engine.UNIVERSAL,
        version=first.version,
        stage=first.stage,
        ranks=first.world_size,
        step=first.step,
        dtype=rest.dtype or first.dtype,
        trained=tuple(trained),
        frozen=(*(n for n in found if n not in trained and n not in first.buffers), *rest.frozen),
        buffers=(*(n for n in first.buffers if n in found), *rest.buffers),
        shared={n: s for n, s in first.shared.items() if n in found or n in rest.tensors},
        excluded=rest.excluded and not found.keys() - shapes.keys(),
        copies=copies,
        master_bytes=sum(tensor.nbytes for tensor in trained.values()),
        moment_bytes=sum(
            found[name].nbytes
            for name in trained
            for moment in UNIVERSAL_MOMENTS
            if store.look(os.path.join(folder, name, moment)) is not None
        ),
    )
    read = [*(m.file for m in models.values()), *(_file_of(ref) for ref in refs.values())]
    return Found(state, {**found, **rest.tensors}, read)


def _in_shape(ref: TensorRef, shape: Shape | None, name: str) -> TensorRef:
    """Return a tensor of a universal directory in its shape: stage 3 leaves vectors there."""
    if shape is None or ref.shape == shape:
        return ref
    if len(ref.shape) != 1 or ref.strides is not None or prod(shape) != prod(ref.shape):
        raise MalformedFileError(
            "training-state-layout",
            f"{ref.source.path}: {name}",
            expected=f"{list(shape)}, as param_shapes says",
            got=str(list(ref.shape)),
            hint="the file is of another run",
        )
    return replace(ref, shape=shape)


def _file_of(ref: TensorRef) -> File:
    return ref.source
