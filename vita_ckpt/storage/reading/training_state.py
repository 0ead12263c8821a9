"""Open the state of a training run as a Checkpoint whose tensors are pieces of its files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final, Literal, TypeVar

from vita_ckpt.core.checkpoint import (
    Cast,
    Checkpoint,
    File,
    Shape,
    Shard,
    Stored,
    Tensor,
    TensorRef,
    source_of,
)
from vita_ckpt.core.dtype import CAST_SOURCES, CAST_TARGETS, INTEGERS
from vita_ckpt.core.filenames import ADAPTER_CONFIG, CONFIG, SAFETENSORS_SUFFIX
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.training.filenames import (
    DTENSOR,
    HF_SHARD,
    METADATA,
    UNIVERSAL,
    UNIVERSAL_MOMENTS,
    UNIVERSAL_WEIGHTS,
    is_carried,
)
from vita_ckpt.core.training.model_entry import model_entries, optimizer_entries, trained_names
from vita_ckpt.core.training.names import without_wrappers
from vita_ckpt.core.training.pieces import joined, offsets_in_mesh, part_of_vector, tiled
from vita_ckpt.core.training.state import Engine, TrainingState
from vita_ckpt.core.training.zero import (
    Slice,
    merged_shapes,
    pieces_of_frozen,
    slices_of_group,
    slices_of_stage_3,
)
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.dcp import (
    StoredChunk,
    StoredTensor,
    announce,
    chunk_in_safetensors,
    chunk_in_zips,
    is_safetensors,
    read_hf_shard,
    read_metadata,
)
from vita_ckpt.storage.formats.deepspeed import (
    ModelStates,
    OptimizerStates,
    StateFiles,
    read_model_states,
    read_optimizer_states,
    read_universal,
    state_files,
)
from vita_ckpt.storage.formats.dtensor import RankFile, read_rank
from vita_ckpt.storage.formats.safetensors import SafetensorsFile, read_safetensors
from vita_ckpt.storage.reading.index import check_inside
from vita_ckpt.storage.reading.paths import Stores, read_optional
from vita_ckpt.storage.reading.shards import read_shard
from vita_ckpt.storage.reading.training_files import Place, find_state, is_of_run, is_plain_name
from vita_ckpt.storage.stores.base import Source, Store
from vita_ckpt.storage.tensors.stream import Progress, no_progress

_V = TypeVar("_V")

# From this version on, zero_to_fp32 leaves integers as they are; it made float32 of them before.
_KEEPS_INTEGERS: Final = (0, 19)
# Tensors whose masters are compared with their copies: on this disk, and on the hub.
_SAMPLED: Final = 256
_SAMPLED_FAR: Final = 8
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
    _check_sample(store, found)
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


def check_copies(state: Checkpoint, on_progress: OnProgress = unwatched) -> None:
    """Raise MalformedFileError unless all masters of a state on this disk round to their copies."""
    copies = state.training.copies if state.training is not None else {}
    pairs = _pairs(state.tensors, copies)
    size = sum(master.nbytes for master, _ in pairs.values())
    _compare(state.tensors, pairs, progress=Tally(on_progress, "checking", size))


def _check_sample(store: Store, found: _Found) -> None:
    """Raise MalformedFileError unless a sample of the masters rounds to the copies."""
    pairs = _pairs(found.tensors, found.state.copies)
    most = min(len(pairs), _SAMPLED if store.is_local else _SAMPLED_FAR)
    # Spread over all, the last one among them: it is where a wrong layout has shifted the most.
    names = list(pairs)
    sample = {names[-1 - index * len(names) // most] for index in range(most)}
    with ExitStack() as stack:
        sources: dict[str, Source] = {}

        def read(ref: TensorRef) -> bytes:
            path = ref.source.path
            if path not in sources:
                sources[path] = stack.enter_context(store.open(path))
            return sources[path].read(ref.nbytes, ref.offset)

        _compare(found.tensors, {n: pairs[n] for n in pairs if n in sample}, read)


def _compare(
    tensors: Mapping[str, Tensor],
    pairs: Mapping[str, tuple[Tensor, TensorRef]],
    read: Callable[[TensorRef], bytes] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Compare masters with copies: all elements, or the first and last ones that ``read`` reads."""
    if not pairs:
        return
    from vita_ckpt.storage.tensors.copies import differing_copies, differing_in_sample  # noqa: PLC0415 - numpy

    differing = (
        differing_copies(pairs, progress) if read is None else differing_in_sample(pairs, read)
    )
    for name, place in differing.items():
        raise MalformedFileError(
            "masters-differ",
            f"{source_of(tensors[name])}: {name}",
            expected="float32 weights that round to the copies in the model states",
            got=f"another value at element {place}, and {len(differing) - 1} tensors more",
            hint="the files are of two saves, or were converted wrongly; --weights copies takes "
            "what the model ran with",
        )


def _pairs(
    tensors: Mapping[str, Tensor], copies: Mapping[str, TensorRef]
) -> dict[str, tuple[Tensor, TensorRef]]:
    """Return the masters that have a copy, with it."""
    return {
        name: (tensors[name], copy)
        for name, copy in copies.items()
        if name in tensors
        and tensors[name] != copy
        and tensors[name].dtype == "F32"
        and copy.dtype in CAST_TARGETS
        and tensors[name].shape == copy.shape
    }


@dataclass(slots=True)
class _Found:
    """The tensors of a state, what describes it, and the files that were read."""

    state: TrainingState
    tensors: dict[str, Tensor] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)


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


def _read_all(
    store: Store, root: str, names: Mapping[int, str], read: Callable[[Source], _V]
) -> dict[int, _V]:
    """Read a file of each rank."""
    paths = {rank: os.path.join(root, name) for rank, name in names.items()}

    def opened(path: str) -> _V:
        with store.open(path) as source:
            return read(source)

    store.prefetch(list(paths.values()), opened)
    return {rank: opened(path) for rank, path in paths.items()}


# DeepSpeed


def _open_deepspeed(store: Store, place: Place, weights: TrainedWeights) -> _Found:
    files = state_files(place.root, list(place.names))
    models = _model_states(store, place, files)
    first = models[0]
    if weights == "copies" or not files.optimizer:
        return _without_optimizer(place, first, weights)
    optimizers = _read_all(store, place.root, files.optimizer, read_optimizer_states)
    stage = _check_optimizers(place, files, first, optimizers)
    if stage == 3:
        _check_ranks(place.root, files.model, len(optimizers), "model states")
    groups = first.groups or ()
    if stage == 3:
        shapes = merged_shapes(groups, first.file.path)
        held = [[prod(v.shape) for v in optimizers[rank].vectors] for rank in sorted(optimizers)]
        slices = slices_of_stage_3(first.file.path, shapes, held)
    else:
        shapes, slices = _slices_of_groups(place, groups, optimizers)
    trained = {name: _cut(shapes[name], where, optimizers) for name, where in slices.items()}
    rest = _Rest.of(models, trained, stage)
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
    return _Found(state, {**trained, **rest.tensors}, read)


def _model_states(store: Store, place: Place, files: StateFiles) -> dict[int, ModelStates]:
    if 0 not in files.model:
        raise _missing_rank(
            os.path.join(place.root, "mp_rank_00_model_states.pt"), "the model states of rank 0"
        )
    models = _read_all(store, place.root, files.model, read_model_states)
    first = models[0]
    for states in models.values():
        for what, ours, theirs in (
            ("step", first.step, states.step),
            ("DeepSpeed", first.version, states.version),
            ("world size", first.world_size, states.world_size),
        ):
            if ours != theirs:
                raise _disagreement(states.file, what, ours, theirs, first.file)
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
    _check_ranks(place.root, files.optimizer, ranks, "optimizer states")
    one = optimizers[0]
    for states in optimizers.values():
        for what, ours, theirs in (
            ("stage", one.stage, states.stage),
            ("DeepSpeed", first.version or states.version, states.version or first.version),
            ("groups", len(one.vectors), len(states.vectors)),
            ("paddings", one.gaps, states.gaps),
        ):
            if ours != theirs:
                raise _disagreement(states.file, what, ours, theirs, one.file)
        wrong = next((n for n in states.partitions if n != ranks), None)
        if wrong is not None:
            raise _disagreement(states.file, "partition_count", ranks, wrong, one.file)
    if first.groups is None:
        raise MalformedFileError(
            "not-a-training-state",
            first.file.path,
            expected="param_shapes, beside optimizer states of ZeRO",
            got="nothing",
            hint="the file is of another run",
        )
    return one.stage


def _check_ranks(root: str, files: Mapping[int, str], ranks: int, what: str) -> None:
    """Raise InputError unless there is a file for each of ``ranks`` ranks, and for no other."""
    missing = [rank for rank in range(min(ranks, len(files) + 1)) if rank not in files]
    if missing:
        example = next(iter(files.values()), "")
        raise _missing_rank(
            os.path.join(root, example),
            f"the {what} of {ranks} ranks, rank {missing[0]} among them",
            f"{len(files)} files",
        )
    more = [name for rank, name in files.items() if rank >= ranks]
    if more:
        raise InputError(
            "left-over-rank",
            os.path.join(root, more[0]),
            expected=f"the {what} of {ranks} ranks",
            got=f"{len(files)} files: some are left over from a run with more ranks",
            hint="move the files of that run away",
        )


def _missing_rank(path: str, expected: str, got: str = "nothing there") -> InputError:
    return InputError(
        "missing-rank",
        path,
        expected=expected,
        got=got,
        hint="copy the files of every machine into one directory",
    )


def _disagreement(file: File, what: str, ours: Any, theirs: Any, other: File) -> InputError:
    return InputError(
        "ranks-disagree",
        file.path,
        expected=f"{what} {ours!r}, as in {os.path.basename(other.path)}",
        got=repr(theirs),
        hint="the files are of two saves or runs: take those of one",
    )


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
class _Rest:
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
    ) -> _Rest:
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


def _without_optimizer(place: Place, states: ModelStates, weights: TrainedWeights) -> _Found:
    """Open model states alone: of stage 0, or the copies in the dtype of training."""
    stage = states.stage or 0
    if stage and weights == "masters" and states.groups is not None:
        raise _missing_rank(
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
    return _Found(state, tensors, [states.file])


def _open_universal(store: Store, place: Place, weights: TrainedWeights) -> _Found:
    files = state_files(place.root, list(place.names))
    models = _model_states(store, place, files)
    first = models[0]
    if weights == "copies":
        return _without_optimizer(place, first, weights)
    folder = os.path.join(place.root, UNIVERSAL)
    names = [name for name in store.listing(folder) if is_plain_name(name)]
    present = {
        number: name
        for number, name in enumerate(names)
        if store.stays_below(place.root, f"{UNIVERSAL}/{name}/x")
        and store.look(os.path.join(folder, name, UNIVERSAL_WEIGHTS)) is not None
    }
    paths = {number: f"{name}/{UNIVERSAL_WEIGHTS}" for number, name in present.items()}
    refs = _read_all(store, folder, paths, read_universal)
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
    rest = _Rest.of(models, found, stage)
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
    return _Found(state, {**found, **rest.tensors}, read)


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


# torch.distributed.checkpoint


def _open_dcp(store: Store, place: Place, weights: TrainedWeights) -> _Found:
    _refuse_copies(place, weights)
    if METADATA not in place.names:
        raise InputError(
            "incomplete-save",
            place.root,
            expected=f"{METADATA}, which is written last",
            got="files of ranks without it",
            hint="the save was interrupted: take an earlier one",
        )
    with store.open(os.path.join(place.root, METADATA)) as source:
        metadata = read_metadata(source)
    paths = {name: tensor.path for name, tensor in metadata.tensors.items()}
    entries = model_entries(paths)
    if not entries:
        raise InputError(
            "no-model",
            place.root,
            expected="a model among the entries",
            got=", ".join(list(metadata.tensors)[:4]) or "no tensors",
            hint="an optimizer's directory? name the model's beside it",
        )
    chunks = [
        (metadata.tensors[entry], chunk)
        for entry in entries
        for chunk in metadata.tensors[entry].chunks
    ]
    placed, files = _placed(store, place, chunks)
    tensors: dict[str, Tensor] = {}
    for entry, name in entries.items():
        stored = metadata.tensors[entry]
        tensors[name] = tiled(
            f"{metadata.file.path}: {entry}",
            stored.shape,
            [(chunk.offsets, placed[entry, chunk]) for chunk in stored.chunks],
        )
    moments = optimizer_entries(paths)
    trained = trained_names(tensors, (paths[entry] for entry in moments))
    rest = tuple(name for name in tensors if name not in set(trained)) if trained else ()
    state = TrainingState(
        Engine.DCP,
        version=metadata.version,
        ranks=_ranks_of(place.names),
        step=_step_of(place.root),
        dtype=_main_dtype(tensors),
        trained=trained,
        frozen=rest,
        master_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        moment_bytes=sum(
            chunk.length for entry in moments for chunk in metadata.tensors[entry].chunks
        ),
    )
    return _Found(state, tensors, [metadata.file, *files])


def _placed(
    store: Store, place: Place, chunks: Sequence[tuple[StoredTensor, StoredChunk]]
) -> tuple[dict[tuple[str, StoredChunk], TensorRef], list[File]]:
    """Return where the values of each tensor's chunks are, and the files that hold them."""
    by_file: dict[str, list[tuple[StoredTensor, StoredChunk]]] = {}
    for stored, chunk in chunks:
        by_file.setdefault(chunk.file, []).append((stored, chunk))
    placed: dict[tuple[str, StoredChunk], TensorRef] = {}
    files: list[File] = []
    for name, held in by_file.items():
        path = os.path.join(place.root, name)
        check_inside(store, place.root, name, os.path.join(place.root, METADATA))
        if store.look(path) is None:
            raise _missing_rank(path, f"the file that {METADATA} names")
        with store.open(path) as source:
            opened: SafetensorsFile | None = None
            if is_safetensors(source):
                opened = read_safetensors(source)
            else:
                announce(source, (chunk for _, chunk in held))
            files.append(source.file if opened is None else opened.file)
            for stored, chunk in held:
                placed[stored.name, chunk] = (
                    chunk_in_zips(source, stored, chunk)
                    if opened is None
                    else chunk_in_safetensors(opened, stored, chunk)
                )
    return placed, files


def _ranks_of(names: Iterable[str]) -> int | None:
    ranks = {name.split("_")[2] for name in names if name.startswith("__") and "_" in name[2:]}
    return len(ranks) or None


def _step_of(root: str) -> int | None:
    digits = os.path.basename(root).rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 12 else None


def _open_hf(store: Store, place: Place, weights: TrainedWeights) -> _Found:
    _refuse_copies(place, weights)
    matches = [match for name in place.names if (match := HF_SHARD.fullmatch(name)) is not None]
    ranks = sorted({int(match["rank"]) for match in matches})
    there = {(int(match["rank"]), int(match["file"])) for match in matches}
    for match in matches:
        for number in range(1, int(match["files"]) + 1):
            if (int(match["rank"]), number) not in there:
                raise _missing_rank(
                    os.path.join(place.root, match[0]), f"file {number} of {match['files']} too"
                )
    if ranks != list(range(1, len(ranks) + 1)):
        missing = next(n for n in range(1, len(ranks) + 1) if n not in ranks)
        raise _missing_rank(
            os.path.join(place.root, matches[0][0]), f"files of every rank, {missing} among them"
        )
    files = {number: match[0] for number, match in enumerate(matches)}
    shards = _read_all(store, place.root, files, read_hf_shard)
    parts: dict[str, list[tuple[Shape, TensorRef]]] = {}
    for opened, offsets in shards.values():
        for name, ref in opened.tensors.items():
            parts.setdefault(name, []).append((offsets[name], ref))
    tensors: dict[str, Tensor] = {}
    for name, held in parts.items():
        if len({len(ref.shape) for _, ref in held}) > 1:
            raise _disagreement(
                held[1][1].source, name, held[0][1].shape, held[1][1].shape, held[0][1].source
            )
        ends = [tuple(map(sum, zip(o, ref.shape, strict=True))) for o, ref in held]
        shape = tuple(map(max, zip(*ends, strict=True)))
        tensors[name] = tiled(f"{place.root}: {name}", shape, held)
    state = TrainingState(
        Engine.HF_SHARDS,
        ranks=len(ranks),
        step=_step_of(place.root),
        dtype=_main_dtype(tensors),
        master_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )
    return _Found(state, tensors, [opened.file for opened, _ in shards.values()])


def _open_dtensors(store: Store, place: Place, weights: TrainedWeights) -> _Found:
    _refuse_copies(place, weights)
    matches = [match for name in place.names if (match := DTENSOR.fullmatch(name)) is not None]
    of_model = [m for m in matches if m["what"] not in ("optim", "extra_state")] or matches
    what = Counter(match["what"] for match in of_model).most_common(1)[0][0]
    named = {int(m["rank"]): m[0] for m in of_model if m["what"] == what}
    sizes = {int(m["ranks"]) for m in of_model if m["what"] == what}
    ranks = min(sizes)
    if len(sizes) > 1:
        raise InputError(
            "left-over-rank",
            os.path.join(place.root, max(named.values())),
            expected="files of one world size",
            got=f"files of {', '.join(map(str, sorted(sizes)))} ranks",
            hint="move those of the other run away",
        )
    _check_ranks(place.root, named, ranks, "parts")
    files = _read_all(store, place.root, named, read_rank)
    tensors: dict[str, Tensor] = dict(files[0].whole)
    for name in files[0].parts:
        tensors[name] = _of_mesh(name, files)
    state = TrainingState(
        Engine.DTENSOR,
        ranks=ranks,
        dtype=_main_dtype(tensors),
        master_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )
    return _Found(state, tensors, [file.file for file in files.values()])


def _of_mesh(name: str, files: Mapping[int, RankFile]) -> Stored:
    """Return a tensor whose parts are in the files of the ranks."""
    parts = [file.parts[name] for file in files.values() if name in file.parts]
    one = parts[0]
    for part, file in zip(parts, files.values(), strict=False):
        same = (part.shape, part.shards) == (one.shape, one.shards)
        if len(parts) != len(files) or not same:
            raise _disagreement(
                file.file, name, (one.shape, one.shards), (part.shape, part.shards), files[0].file
            )
    sizes = [1 + max(part.coordinates[i] for part in parts) for i in range(len(one.shards))]
    chunks = [
        (offsets_in_mesh(part.shape, part.shards, part.coordinates, sizes), part.local)
        for part in parts
    ]
    return tiled(f"{files[0].file.path}: {name}", one.shape, chunks)


# A lone file


def _open_file(store: Store, place: Place, weights: TrainedWeights) -> _Found:
    _refuse_copies(place, weights)
    shard, tensors = read_shard(store, place.root, "")
    named = without_wrappers(tensors, place.root)
    state = TrainingState(
        Engine.FILE,
        dtype=_main_dtype(named),
        master_bytes=sum(tensor.nbytes for tensor in named.values()),
    )
    return _Found(state, dict(named), [shard.file])


def _refuse_copies(place: Place, weights: TrainedWeights) -> None:
    if weights == "copies":
        raise InputError(
            "no-copies",
            place.root,
            expected="copies in the dtype of training beside float32 masters",
            got=f"{place.engine}, which has one set of weights",
            hint="leave --weights out; --dtype converts",
        )


def _main_dtype(tensors: Mapping[str, Tensor]) -> str:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else ""


_OPENERS: Final[Mapping[Engine, Callable[[Store, Place, TrainedWeights], _Found]]] = {
    Engine.DEEPSPEED: _open_deepspeed,
    Engine.UNIVERSAL: _open_universal,
    Engine.DCP: _open_dcp,
    Engine.HF_SHARDS: _open_hf,
    Engine.DTENSOR: _open_dtensors,
    Engine.FILE: _open_file,
}
