"""Open what DeepSpeed's ZeRO wrote: vectors of ranks, cut into parameters."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Final

from vita_ckpt.core.checkpoint import (
    Cast,
    File,
    Shape,
    Stored,
    Tensor,
    TensorRef,
)
from vita_ckpt.core.dtype import CAST_SOURCES, INTEGERS
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.training.pieces import joined, part_of_vector
from vita_ckpt.core.training.state import Engine, TrainingState
from vita_ckpt.core.training.zero import (
    Slice,
    merged_shapes,
    pieces_of_frozen,
    slices_of_group,
    slices_of_stage_3,
)
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.deepspeed import (
    ModelStates,
    OptimizerStates,
    StateFiles,
    read_model_states,
    read_optimizer_states,
    state_files,
)
from vita_ckpt.storage.reading.training.find import Place
from vita_ckpt.storage.reading.training.found import (
    Found,
    check_ranks,
    disagreement,
    missing_rank,
    read_all,
)
from vita_ckpt.storage.stores.base import Store

# From this version on, zero_to_fp32 leaves integers as they are; it made float32 of them before.
_KEEPS_INTEGERS: Final = (0, 19)


def open_deepspeed(store: Store, place: Place, weights: TrainedWeights) -> Found:
    """Open a ``global_stepN``: masters of optimizer states, or copies of model states."""
    files = state_files(place.root, list(place.names))
    models = read_all_model_states(store, place, files)
    first = models[0]
    if weights == "copies" or not files.optimizer:
        return without_optimizer(place, first, weights)
    optimizers = read_all(store, place.root, files.optimizer, read_optimizer_states)
    stage = _check_optimizers(place, files, first, optimizers)
    if stage == 3:
        check_ranks(place.root, files.model, len(optimizers), "model states")
    groups = first.groups or ()
    if stage == 3:
        shapes = merged_shapes(groups, first.file.path)
        held = [[prod(v.shape) for v in optimizers[rank].vectors] for rank in sorted(optimizers)]
        slices = slices_of_stage_3(first.file.path, shapes, held)
    else:
        shapes, slices = _slices_of_groups(place, groups, optimizers)
    trained = {name: _cut(shapes[name], where, optimizers) for name, where in slices.items()}
    rest = Rest.of(models, trained, stage)
    if stage == 1 and optimizers[0].stage == 1:
        stage = first.stage if first.stage in (1, 2) else stage
    state = TrainingState(
        Engine.DEEPSPEED,
        version=first.version,
        stage=stage,
        ranks=len(optimizers),
        step=first.step,
        dtype=rest.dtype or first.dtype,
        trained=tuple(trained),
        frozen=tuple(rest.frozen),
        buffers=tuple(rest.buffers),
        shared=rest.shared,
        excluded=rest.excluded,
        copies=rest.copies,
        master_bytes=sum(tensor.nbytes for tensor in trained.values()),
        moment_bytes=sum(states.moment_bytes for states in optimizers.values()),
    )
    read = [*(m.file for m in models.values()), *(o.file for o in optimizers.values())]
    return Found(state, {**trained, **rest.tensors}, read)


def read_all_model_states(store: Store, place: Place, files: StateFiles) -> dict[int, ModelStates]:
    """Read the model states of each rank. Raises InputError unless they agree."""
    if 0 not in files.model:
        raise missing_rank(
            os.path.join(place.root, "mp_rank_00_model_states.pt"), "the model states of rank 0"
        )
    models = read_all(store, place.root, files.model, read_model_states)
    first = models[0]
    for states in models.values():
        for what, ours, theirs in (
            ("step", first.step, states.step),
            ("DeepSpeed", first.version, states.version),
            ("world size", first.world_size, states.world_size),
        ):
            if ours != theirs:
                raise disagreement(states.file, what, ours, theirs, first.file)
    return models


def _check_optimizers(
    place: Place,
    files: StateFiles,
    first: ModelStates,
    optimizers: Mapping[int, OptimizerStates],
) -> int:
    """Return the stage, once all ranks are there and agree."""
    counts = Counter(n for states in optimizers.values() for n in states.partitions)
    ranks = counts.most_common(1)[0][0] if counts else first.world_size or len(optimizers)
    check_ranks(place.root, files.optimizer, ranks, "optimizer states")
    one = optimizers[0]
    for states in optimizers.values():
        for what, ours, theirs in (
            ("stage", one.stage, states.stage),
            ("DeepSpeed", first.version or states.version, states.version or first.version),
            ("groups", len(one.vectors), len(states.vectors)),
            ("paddings", one.gaps, states.gaps),
        ):
            if ours != theirs:
                raise disagreement(states.file, what, ours, theirs, one.file)
        wrong = next((n for n in states.partitions if n != ranks), None)
        if wrong is not None:
            raise disagreement(states.file, "partition_count", ranks, wrong, one.file)
    if first.groups is None:
        raise MalformedFileError(
            "not-a-training-state",
            first.file.path,
            expected="param_shapes, beside optimizer states of ZeRO",
            got="nothing",
            hint="the file is of another run",
        )
    return one.stage


def _slices_of_groups(
    place: Place,
    groups: Sequence[Mapping[str, Shape]],
    optimizers: Mapping[int, OptimizerStates],
) -> tuple[dict[str, Shape], dict[str, list[Slice]]]:
    one = optimizers[0]
    path = one.file.path
    shapes = merged_shapes(groups, path)
    if len(groups) != len(one.vectors) or (one.gaps and len(one.gaps) != len(groups)):
        raise MalformedFileError(
            "training-state-layout",
            path,
            expected=f"masters of {len(groups)} groups, as param_shapes says",
            got=f"{len(one.vectors)}",
            hint="the file is of another run",
        )
    slices: dict[str, list[Slice]] = {}
    for index, group in enumerate(groups):
        held = [prod(optimizers[rank].vectors[index].shape) for rank in sorted(optimizers)]
        gaps = one.gaps[index] if one.gaps else ()
        slices |= slices_of_group(path, index, group, gaps, held)
    return shapes, slices


def _cut(shape: Shape, where: Sequence[Slice], optimizers: Mapping[int, OptimizerStates]) -> Stored:
    parts = [part_of_vector(optimizers[s.rank].vectors[s.vector], s.start, s.count) for s in where]
    return joined(shape, parts or [part_of_vector(optimizers[0].vectors[0], 0, 0)])


@dataclass(slots=True)
class Rest:
    """What a state has beside the trained parameters: frozen ones, buffers, tied names, copies."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    frozen: dict[str, None] = field(default_factory=dict)
    buffers: dict[str, None] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    copies: dict[str, TensorRef] = field(default_factory=dict)
    excluded: bool = False
    dtype: str = ""

    @classmethod
    def of(
        cls, models: Mapping[int, ModelStates], trained: Mapping[str, Tensor], stage: int
    ) -> Rest:
        """Collect from the model states what is not trained, with names that are tied to others."""
        first = models[0]
        rest = cls()
        for name, ref in first.module.items():
            if name in trained and ref.shape == trained[name].shape:
                rest.copies[name] = ref
        dtypes = Counter(ref.dtype for n, ref in first.module.items() if n in trained)
        rest.dtype = dtypes.most_common(1)[0][0] if dtypes else ""
        rest._add_frozen(models, trained, stage)
        for name in first.buffers:
            if name in first.module and name not in trained:
                rest.buffers[name] = None
                rest.tensors[name] = _buffer(first.module[name], first.version)
        rest._add_tied(first, trained)
        # Parameters that are frozen are recorded from stage 2 on, unless they were left out.
        rest.excluded = stage > 1 and first.frozen_shapes is None
        return rest

    def _add_frozen(
        self, models: Mapping[int, ModelStates], trained: Mapping[str, Tensor], stage: int
    ) -> None:
        first = models[0]
        for name, shape in (first.frozen_shapes or {}).items():
            if name in trained:
                continue
            self.frozen[name] = None
            if stage == 3:
                self.tensors[name] = _frozen_of_stage_3(name, shape, models)
            else:
                self.tensors[name] = _frozen_whole(name, shape, first)

    def _add_tied(self, first: ModelStates, trained: Mapping[str, Tensor]) -> None:
        """Add what only the module has: tied names, and frozen parameters that are not recorded."""
        known: dict[str, Tensor] = {**trained, **self.tensors}
        by_place = {_place_of(ref): n for n, ref in first.module.items() if n in known}
        for name, ref in first.module.items():
            if name in known or name in first.shared or (0 in ref.shape and len(ref.shape) == 1):
                continue
            self.tensors[name] = ref
            tied = by_place.get(_place_of(ref))
            if tied is not None:
                self.shared[name] = tied
            else:
                self.frozen[name] = None
        for name, stored in first.shared.items():
            if name in known:
                continue
            self.shared[name] = stored
            value = known.get(stored, self.tensors.get(stored))
            own = first.module.get(name)
            if value is not None:
                self.tensors[name] = value
            elif own is not None and 0 not in own.shape:
                self.tensors[name] = own


def _place_of(ref: TensorRef) -> tuple[object, ...]:
    return ref.source.path, ref.offset, ref.dtype, ref.shape, ref.strides


def _frozen_whole(name: str, shape: Shape, states: ModelStates) -> TensorRef:
    found = (states.frozen or {}).get(name, states.module.get(name))
    if found is None or found.shape != shape:
        raise _frozen_missing(states.file, name, shape, found)
    return found


def _frozen_of_stage_3(name: str, shape: Shape, models: Mapping[int, ModelStates]) -> Stored:
    parts: list[TensorRef] = []
    counts = pieces_of_frozen(prod(shape), len(models))
    for count, rank in zip(counts, sorted(models), strict=True):
        found = (models[rank].frozen or {}).get(name)
        if found is None:
            raise _frozen_missing(models[rank].file, name, shape, found)
        if count or not parts:
            flat = (
                found if found.strides is not None else replace(found, shape=(prod(found.shape),))
            )
            parts.append(part_of_vector(flat, 0, count))
    return joined(shape, parts)


def _frozen_missing(
    file: File, name: str, shape: Shape, found: TensorRef | None
) -> MalformedFileError:
    return MalformedFileError(
        "training-state-layout",
        f"{file.path}: {name}",
        expected=f"the frozen parameter {list(shape)}, as frozen_param_shapes says",
        got="nothing" if found is None else str(list(found.shape)),
        hint="the file is of another save, or damaged",
    )


def _buffer(ref: TensorRef, version: str) -> Tensor:
    """Return a buffer in the dtype that zero_to_fp32 of this version gives it."""
    is_float = ref.dtype in CAST_SOURCES
    if ref.dtype == "F32" or (not is_float and _version(version) >= _KEEPS_INTEGERS):
        return ref
    return Cast(ref, "F32") if is_float or ref.dtype in INTEGERS else ref


def _version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version; of none at all, those of a recent one."""
    numbers = [part for part in text.split("+", maxsplit=1)[0].split(".")[:2] if part.isdecimal()]
    return tuple(map(int, numbers)) or _KEEPS_INTEGERS


def without_optimizer(place: Place, states: ModelStates, weights: TrainedWeights) -> Found:
    """Open model states alone: of stage 0, or the copies in the dtype of training."""
    stage = states.stage or 0
    if stage and weights == "masters" and states.groups is not None:
        raise missing_rank(
            os.path.join(place.root, "*_optim_states.pt"),
            f"the optimizer states of stage {stage}, which hold the float32 weights",
        ).replaced(hint="copy them, or take the copies of the model: --weights copies")
    tensors: dict[str, Tensor] = dict(states.module)
    empty = [name for name, ref in states.module.items() if ref.shape == (0,)]
    if empty and len(empty) > len(tensors) // 2:
        raise InputError(
            "no-copies",
            place.root,
            expected="model states with the weights in the dtype of training",
            got=f"{empty[0]} [0], as stage 3 saves them: every rank has a part of the masters",
            hint="take the masters, which is the default",
        )
    trained = [name for group in states.groups or () for name in group if name in tensors]
    notes: tuple[str, ...] = ()
    if weights == "masters" and states.master_bytes:
        notes = ("the float32 masters of stage 0 have no names: the model's weights are taken",)
    others = [n for n in states.module if n not in states.buffers and n not in set(trained)]
    dtypes = Counter(ref.dtype for n, ref in states.module.items() if n not in states.buffers)
    state = TrainingState(
        Engine.DEEPSPEED,
        version=states.version,
        stage=stage,
        ranks=states.world_size,
        step=states.step,
        dtype=dtypes.most_common(1)[0][0] if dtypes else states.dtype,
        trained=tuple(trained) if trained else tuple(others),
        frozen=tuple(others) if trained else (),
        buffers=tuple(n for n in states.buffers if n in states.module),
        master_bytes=states.master_bytes,
        moment_bytes=states.moment_bytes,
        notes=notes,
    )
    return Found(state, tensors, [states.file])
