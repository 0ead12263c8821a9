"""DeepSpeed's files: model states and optimizer states, and the names that they go by.

What is read from a pickle is checked before it is used: a caller's ``client_state`` lies beside the
keys that are needed, and may have overwritten them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.pickled import Record
from vita_ckpt.core.training.filenames import MODEL_STATES, OF_PARALLEL, OPTIMIZER_STATES
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.torch_reader import read_objects
from vita_ckpt.storage.stores.base import Source

_DTYPES: Final = (("bf16", "BF16"), ("bfloat16", "BF16"), ("fp16", "F16"))


@dataclass(frozen=True, slots=True)
class ModelStates:
    """What a file of model states says.

    ``module`` is the model's state dict, where stage 3 has empty shapes. ``groups`` are the shapes
    of the trained parameters of each optimizer group, in storage order; None if the optimizer does
    not partition. ``frozen_shapes`` and ``frozen`` are None if no frozen parameters were recorded.
    ``shared`` maps tied names to the stored ones. ``world_size`` and ``step`` are None if unknown,
    ``dtype`` and ``stage`` are what DeepSpeed's config says. ``master_bytes`` and ``moment_bytes``
    are sizes of what an optimizer without partitions keeps beside the module: its float32 weights
    have no names.
    """

    file: File
    module: Mapping[str, TensorRef]
    buffers: tuple[str, ...]
    groups: tuple[Mapping[str, Shape], ...] | None
    frozen_shapes: Mapping[str, Shape] | None
    frozen: Mapping[str, TensorRef] | None
    shared: Mapping[str, str]
    version: str
    world_size: int | None
    step: int | None
    dtype: str
    stage: int | None
    master_bytes: int = 0
    moment_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OptimizerStates:
    """What a file of optimizer states says.

    ``stage`` is ZeRO's; ``vectors`` are the float32 masters of this rank, one for each group, or of
    stage 3 for each sub-group. ``gaps`` are the elements after each parameter of each group, empty
    if there are none. ``partitions`` is the number of ranks, None if unknown. ``moment_bytes`` is
    the size of the optimizer's state.
    """

    file: File
    stage: int
    vectors: tuple[TensorRef, ...]
    gaps: tuple[tuple[int, ...], ...]
    partitions: tuple[int, ...]
    version: str
    moment_bytes: int


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The files of a directory of DeepSpeed's, by rank."""

    model: Mapping[int, str] = field(default_factory=dict)
    optimizer: Mapping[int, str] = field(default_factory=dict)


def state_files(root: str, names: list[str]) -> StateFiles:
    """Return the files of model and optimizer states among ``names``.

    Raises InputError for files of tensor or pipeline parallelism and of experts.
    """
    model: dict[int, str] = {}
    optimizer: dict[int, str] = {}
    for name in names:
        for pattern, found in ((MODEL_STATES, model), (OPTIMIZER_STATES, optimizer)):
            if (match := pattern.fullmatch(name)) is None:
                continue
            if int(match["mp"]):
                raise _parallel(root, name, "tensor")
            rank = int(match["rank"] or 0)
            if rank in found:
                raise InputError(
                    "ambiguous-training-state",
                    f"{root}/{name}",
                    expected="one file for each rank",
                    got=f"also {found[rank]}",
                    hint="two saves are mixed up: move one of them away",
                )
            found[rank] = name
        if OF_PARALLEL.fullmatch(name):
            raise _parallel(root, name, "expert" if "expert" in name else "pipeline")
    return StateFiles(dict(sorted(model.items())), dict(sorted(optimizer.items())))


def read_model_states(source: Source) -> ModelStates:
    """Read a file of model states down to its pickle.

    Raises InputError (or a subclass) for a file of another kind, or one whose entries are not what
    DeepSpeed writes.
    """
    path = source.file.path
    opened = read_objects(source)
    entries = _dict(opened.value, path, "model states")
    module = entries.get("module")
    if not isinstance(module, dict):
        raise _other(path, "a state dict under 'module'", module)
    groups = entries.get("param_shapes")
    frozen_shapes, frozen = (
        entries.get(key) for key in ("frozen_param_shapes", "frozen_param_fragments")
    )
    shared = entries.get("shared_params")
    if isinstance(shared, list):  # pairs, in some versions
        shared = {pair[0]: pair[1] for pair in shared if isinstance(pair, list | tuple)}
    optimizer = entries.get("optimizer")
    config = entries.get("ds_config")
    parallel = entries.get("mp_world_size")
    if isinstance(parallel, int) and parallel > 1:
        raise _parallel(path, "mp_world_size", "tensor")
    return ModelStates(
        file=opened.file,
        module=_tensors(module),
        buffers=tuple(n for n in _list(entries.get("buffer_names")) if isinstance(n, str)),
        groups=None
        if groups is None
        else tuple(_shapes(group, path, "param_shapes") for group in _groups(groups)),
        frozen_shapes=None
        if frozen_shapes is None
        else _shapes(frozen_shapes, path, "frozen_param_shapes"),
        frozen=None if frozen is None else _tensors(_dict(frozen, path, "frozen_param_fragments")),
        shared={
            name: stored
            for name, stored in (shared.items() if isinstance(shared, dict) else ())
            if isinstance(name, str) and isinstance(stored, str)
        },
        version=_text(entries.get("ds_version")),
        world_size=_count(entries.get("dp_world_size")),
        step=_count(entries.get("global_steps")),
        dtype=_dtype(config),
        stage=_configured_stage(config),
        master_bytes=_master_bytes(optimizer),
        moment_bytes=_moment_bytes(optimizer),
    )


def read_optimizer_states(source: Source) -> OptimizerStates:
    """Read a file of optimizer states down to its pickle.

    Raises InputError (or a subclass) for a file of another kind, for masters that are not float32,
    and for state that was swapped out of memory.
    """
    path = source.file.path
    opened = read_objects(source)
    entries = _dict(opened.value, path, "optimizer states")
    state = entries.get("optimizer_state_dict")
    if not isinstance(state, dict):
        raise _other(path, "'optimizer_state_dict'", state)
    whole = "fp32_flat_groups" in state
    vectors = state.get("fp32_flat_groups" if whole else "single_partition_of_fp32_groups")
    found = _flat_list(vectors)
    if not isinstance(vectors, list) or len(found) != len(vectors) or not found:
        raise _other(
            path,
            "float32 masters, as fp32_flat_groups or single_partition_of_fp32_groups",
            vectors,
            hint="a run that swaps its optimizer to NVMe, or is partitioned further (hpZ, MiCS), "
            "leaves none in the files: save it without these options",
        )
    for vector in found:
        if vector.dtype != "F32" or len(vector.shape) != 1:
            got = f"{vector.dtype} {list(vector.shape)}"
            raise MalformedFileError(
                "training-state-layout", path, expected="vectors of float32 masters", got=got
            )
    stage = _stage(state.get("zero_stage"), 3 if whole else 1)
    if (stage == 3) != whole:
        raise _other(path, f"the masters of stage {stage}", "those of another stage")
    counts = state.get("partition_count")
    gaps = state.get("param_alignment_paddings")
    return OptimizerStates(
        file=opened.file,
        stage=stage,
        vectors=found,
        gaps=tuple(_numbers(group, path) for group in gaps) if isinstance(gaps, list) else (),
        partitions=_numbers(counts if isinstance(counts, list | tuple) else [counts], path)
        if counts is not None
        else (),
        version=_text(entries.get("ds_version")) or _text(state.get("ds_version")),
        moment_bytes=_moment_bytes(
            state.get("base_optimizer_state") or state.get("optimizer_state_dict")
        ),
    )


def read_universal(source: Source) -> TensorRef:
    """Return the tensor in a file of a universal directory: alone, or as ``param``.

    Raises InputError (or a subclass) for a file that holds none.
    """
    opened = read_objects(source)
    value = opened.value
    if isinstance(value, dict):
        value = value.get("param")
    if not isinstance(value, TensorRef):
        raise _other(source.file.path, "a tensor, or one under 'param'", value)
    return value


def _dict(value: Any, path: str, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _other(path, f"a dict of {what}", value)
    return value


def _list(value: Any) -> list[Any]:
    if isinstance(value, Record) and isinstance(value.items, list):  # a set
        return value.items
    return list(value) if isinstance(value, list | tuple) else []


def _groups(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tensors(value: Mapping[Any, Any]) -> dict[str, TensorRef]:
    return {n: t for n, t in value.items() if isinstance(n, str) and isinstance(t, TensorRef)}


def _flat_list(value: Any) -> tuple[TensorRef, ...]:
    """Return the tensors of a list, or of a list of lists."""
    found: list[TensorRef] = []
    for item in _list(value):
        if isinstance(item, TensorRef):
            found.append(item)
        else:
            found += [inner for inner in _list(item) if isinstance(inner, TensorRef)]
    return tuple(found)


def _shapes(value: Any, path: str, what: str) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, shape in _dict(value, path, what).items():
        sizes = shape.args[0] if isinstance(shape, Record) and shape.args else shape
        if not isinstance(name, str) or not _is_shape(sizes):
            raise _other(path, f"names and sizes in {what}", shape)
        found[name] = tuple(sizes)
    return found


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(size) is int and 0 <= size < _LARGEST for size in value)
    )


_MOST_DIMENSIONS: Final = 64
_LARGEST: Final = 1 << 48


def _numbers(value: Any, path: str) -> tuple[int, ...]:
    numbers = _list(value)
    if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
        raise _other(path, "numbers of elements or ranks", value)
    return tuple(numbers)


def _stage(value: Any, default: int) -> int:
    if isinstance(value, Record) and value.args:  # ZeroStageEnum(2)
        value = value.args[0]
    return value if type(value) is int and 0 <= value <= 3 else default


def _dtype(config: Any) -> str:
    """Return the dtype of training that DeepSpeed's config enables."""
    for key, dtype in _DTYPES:
        part = config.get(key) if isinstance(config, dict) else None
        if isinstance(part, dict) and part.get("enabled") is True:
            return dtype
    return "F32" if isinstance(config, dict) else ""


def _configured_stage(config: Any) -> int | None:
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    is_stage = type(stage) is int and 0 <= stage <= 3
    return stage if isinstance(config, dict) and is_stage else None


def _master_bytes(optimizer: Any) -> int:
    groups = optimizer if isinstance(optimizer, dict) else {}
    keys = ("fp32_groups", "fp32_groups_flat")
    return sum(tensor.nbytes for key in keys for tensor in _flat_list(groups.get(key)))


def _moment_bytes(state: Any) -> int:
    """Return the bytes of the tensors in an optimizer's state, each counted once."""
    inner = state.get("state") if isinstance(state, dict) else None
    if inner is None and isinstance(state, list):  # one for each group
        return sum(map(_moment_bytes, state))
    found: set[TensorRef] = set()
    for value in inner.values() if isinstance(inner, dict) else ():
        if isinstance(value, dict):
            found |= {tensor for tensor in value.values() if isinstance(tensor, TensorRef)}
    return sum(tensor.nbytes for tensor in found)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST else None


def _other(path: str, expected: str, got: Any, hint: str = "") -> MalformedFileError:
    what = got if isinstance(got, str) else f"a {type(got).__name__}"
    return MalformedFileError(
        "not-a-training-state",
        path,
        expected=expected,
        got="nothing" if got is None else what,
        hint=hint or "the file is of another kind, or its keys were overwritten",
    )


def _parallel(root: str, name: str, kind: str) -> InputError:
    return InputError(
        "parallel-training-state",
        f"{root}: {name}",
        expected="one model in data-parallel ranks",
        got=f"a part of {kind} parallelism",
        hint="gather the parts with the framework that trained it",
    )
