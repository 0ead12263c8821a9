"""Plan what a training state becomes: a checkpoint, a LoRA run, or a file of its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core.anatomy.parts import LANGUAGE_MODEL, LM_HEAD, part_of
from vita_ckpt.core.binding.modules import is_tied
from vita_ckpt.core.checkpoint import EMPTY, Cast, Checkpoint, Tensor, cast, uncast
from vita_ckpt.core.dtype import CAST_SOURCES, CAST_TARGETS, INTEGERS
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    CONFIG,
    LORA_FILES,
    NON_LORA,
)
from vita_ckpt.core.plan import (
    AddTensor,
    CopyFile,
    Edit,
    Plan,
    PutFile,
    Record,
    ReplaceTensor,
    SetConfig,
)
from vita_ckpt.core.training.filenames import is_carried
from vita_ckpt.core.training.names import adapter_names, is_of_peft, without_wrappers
from vita_ckpt.core.training.state import TrainingState
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.surgery.donors import KEYWORD
from vita_ckpt.surgery.preconditions import require_binding

OPERATION: Final = "consolidate"

_TORCH_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Keys that say where a config came from, not what the model is.
_OF_ORIGIN: Final = frozenset({"_name_or_path", "transformers_version"})
_TENSOR: Final = "of the training state"


def plan_file(
    state: Checkpoint, *, base: Checkpoint | None = None, dtype: str | None = None
) -> Plan:
    """Return a plan for a file of all tensors of ``state``, under the names of its state dict.

    ``base`` supplies the parameters that the state does not have. ``dtype`` is that of all floating
    tensors, by default their own. Raises InputError if ``base`` does not fit.
    """
    training = _training(state)
    edits: list[Edit] = [
        AddTensor(name, _in_dtype(tensor, dtype), _TENSOR) for name, tensor in state.tensors.items()
    ]
    donors = [state]
    if base is not None:
        if is_of_peft(state.tensors):
            raise _base_of_adapter(state)
        named = without_wrappers(state.tensors, state.root)
        donors.append(base)
        edits += [
            AddTensor(name, _in_dtype(tensor, dtype), "of the base")
            for name, tensor in _of_base(base, named).items()
        ]
    notes = (*_notes(training), *_missing_note(training, base))
    return Plan(OPERATION, EMPTY, tuple(edits), tuple(donors), notes)


def plan_directory(
    state: Checkpoint,
    *,
    base: Checkpoint | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    weights: str = "masters",
) -> Plan:
    """Return a plan for a checkpoint directory, or for a LoRA run if ``state`` is of one.

    A checkpoint has unwrapped names and the config that is given, that of the run, or that of
    ``base``, which supplies the parameters that were excluded from the state and keeps its files. A
    LoRA run has ``adapter_model.safetensors`` and, in ``non_lora_trainables.bin``, what was trained
    beside the adapter. Raises InputError if there is no config, or ``base`` does not fit.
    """
    training = _training(state)
    record = Record(("state",), _arguments(training, dtype, weights))
    if is_of_peft(state.tensors):
        if base is not None:
            raise _base_of_adapter(state)
        return _plan_lora_run(state, training, config, dtype, record)
    own = config if config is not None else state.config
    if own is None and (base is None or base.config is None):
        raise InputError(
            "missing-config",
            state.root,
            expected=f"a {CONFIG} in the run, for a checkpoint directory",
            got="none",
            hint="give it with --config, or the checkpoint that was trained with --base; a "
            "FILE.safetensors needs none",
        )
    tensors = _unwrapped(state, training, own or (base.config if base is not None else None) or {})
    tensors = {name: _in_dtype(tensor, dtype) for name, tensor in tensors.items()}
    if base is None:
        plan = _plan_new(state, tensors, own or {}, record)
    else:
        plan = _plan_on_base(state, tensors, base, own, dtype, record)
    return replace(plan, notes=(*_notes(training), *_binding_notes(plan, training, base)))


def lora_run_of(state: Checkpoint) -> Checkpoint:
    """Return the state of a LoRA training as the run that it would have written at its end.

    Any other checkpoint is returned as it is.
    """
    if state.training is None or not is_of_peft(state.tensors):
        return state
    trained = _trained(state, state.training)
    names = adapter_names(trained, state.root)
    tensors = {names.get(origin, origin): tensor for origin, tensor in trained.items()}
    return replace(state, layout="lora", tensors=tensors)


def with_copies(state: Checkpoint) -> Checkpoint:
    """Return ``state`` with the copies in the dtype of training in the place of masters.

    Raises InputError if it has none.
    """
    copies = _training(state).copies
    if not copies:
        raise InputError(
            "no-copies",
            state.root,
            expected="copies in the dtype of training beside float32 masters",
            got="one set of weights",
            hint="leave --weights out; --dtype converts",
        )
    tensors = {
        name: uncast(tensor) if isinstance(tensor, Cast) else tensor
        for name, tensor in state.tensors.items()
    } | dict(copies)
    shared = _training(state).shared
    tensors |= {n: tensors[s] for n, s in shared.items() if n in tensors and s in copies}
    return replace(state, tensors=tensors)


def _training(state: Checkpoint) -> TrainingState:
    if state.training is None:
        raise InputError(
            "not-a-training-state",
            state.root,
            expected="a training state",
            got=f"a checkpoint ({state.layout})",
            hint="name its global_stepN, or the directory with .metadata",
        )
    return state.training


def _arguments(training: TrainingState, dtype: str | None, weights: str) -> dict[str, Any]:
    said = {
        "engine": str(training.engine),
        "version": training.version,
        "stage": training.stage,
        "step": training.step,
        "world_size": training.ranks,
        "weights": weights,
        "dtype": dtype,
    }
    return {key: value for key, value in said.items() if value not in (None, "")}


def _plan_new(
    state: Checkpoint, tensors: Mapping[str, Tensor], config: Mapping[str, Any], record: Record
) -> Plan:
    edits: list[Edit] = [AddTensor(name, tensor, _TENSOR) for name, tensor in tensors.items()]
    whole = dict(config) | _dtype_key(config, tensors)
    edits.append(PutFile(CONFIG, _json(whole), "the run's config"))
    edits += _carried(state)
    return Plan(OPERATION, EMPTY, tuple(edits), (state,), record=record)


def _plan_on_base(
    state: Checkpoint,
    tensors: Mapping[str, Tensor],
    base: Checkpoint,
    config: Mapping[str, Any] | None,
    dtype: str | None,
    record: Record,
) -> Plan:
    # What is tied to a parameter that was excluded is only a copy: the base has the weight itself.
    tied = without_wrappers(state.training.shared if state.training else {}, state.root)
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name in tied and name in base.tensors and tied[name] not in state.tensors)
    }
    missing = _of_base(base, tensors)
    edits: list[Edit] = [
        (ReplaceTensor if name in base.tensors else AddTensor)(name, tensor, _TENSOR)
        for name, tensor in tensors.items()
    ]
    edits += [
        ReplaceTensor(name, _in_dtype(tensor, dtype), "converted")
        for name, tensor in missing.items()
        if _in_dtype(tensor, dtype) != tensor
    ]
    whole = {**missing, **tensors}
    before = base.config or {}
    wanted = {**before, **{k: v for k, v in (config or {}).items() if k not in _OF_ORIGIN}}
    wanted |= _dtype_key(before, whole)
    edits += [
        SetConfig(key, value, "as the run's config says")
        for key, value in wanted.items()
        if key not in before or before[key] != value
    ]
    return Plan(OPERATION, base, tuple(edits), (state,), record=record)


def _plan_lora_run(
    state: Checkpoint,
    training: TrainingState,
    config: Mapping[str, Any] | None,
    dtype: str | None,
    record: Record,
) -> Plan:
    """Return a plan for the directory that the end of a LoRA training would have written."""
    if state.adapter_config is None:
        raise InputError(
            "missing-config",
            state.root,
            expected=f"{ADAPTER_CONFIG} in the run, for a LoRA run's directory",
            got="none",
            hint="copy it from the run; a FILE.safetensors needs none",
        )
    trained = _trained(state, training)
    names = adapter_names(trained, state.root)
    adapter_file = LORA_FILES[0]
    edits: list[Edit] = []
    placed: dict[str, str] = {}
    for origin, tensor in trained.items():
        name = names.get(origin, origin)
        if name in placed:
            raise InputError(
                "duplicate-tensor", f"{state.root}: {origin}", expected="each tensor once", got=name
            )
        placed[name] = adapter_file if origin in names else NON_LORA
        edits.append(AddTensor(name, _in_dtype(tensor, dtype), _TENSOR))
    adapter = _json(dict(state.adapter_config))
    edits.append(PutFile(ADAPTER_CONFIG, adapter, "the run's"))
    own = config if config is not None else state.config
    if own is not None:
        edits.append(PutFile(CONFIG, _json(dict(own)), "the run's config"))
    edits += _carried(state)
    left = len(state.tensors) - len(trained)
    notes = [*_notes(training)]
    if left:
        notes.append(f"left out: {left} frozen tensors and buffers, which the base has")
    return Plan(
        OPERATION, EMPTY, tuple(edits), (state,), tuple(notes), record=record, placed=placed
    )


def _trained(state: Checkpoint, training: TrainingState) -> dict[str, Tensor]:
    """Return the tensors that a LoRA run trained."""
    trained = {n: t for n, t in state.tensors.items() if n in set(training.trained)}
    if not trained:  # nothing says what was: what a LoRA run trains for sure
        of_adapter = adapter_names(state.tensors, state.root)
        trained = {n: t for n, t in state.tensors.items() if n in of_adapter or KEYWORD in n}
    return trained


def _unwrapped(
    state: Checkpoint, training: TrainingState, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint as upstream saves it.

    A tied name has the tensor that it is tied to, and is left out where the config says that it is
    tied. Integers that zero_to_fp32 makes float32 stay integers.
    """
    tensors = dict(state.tensors)
    for name, stored in training.shared.items():
        if name in tensors and stored in tensors:
            tensors[name] = tensors[stored]
    found = without_wrappers(tensors, state.root)
    tied = without_wrappers({n: s for n, s in training.shared.items() if n in tensors}, state.root)
    if is_tied(config):
        for name in tied:
            if name == LM_HEAD:
                found.pop(name, None)
    return {
        name: tensor.ref if isinstance(tensor, Cast) and tensor.ref.dtype in INTEGERS else tensor
        for name, tensor in found.items()
    }


def _of_base(base: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the base that the state does not have, once their shapes fit."""
    for name, tensor in tensors.items():
        old = base.tensors.get(name)
        if old is not None and old.shape != tensor.shape:
            raise InputError(
                "base-does-not-fit-run",
                base.root,
                expected=f"{name} {list(tensor.shape)}, as in the training state",
                got=str(list(old.shape)),
                hint="the run was trained on another base",
            )
    strange = [
        name
        for name in tensors
        if name not in base.tensors and name != LM_HEAD and part_of(name) == LANGUAGE_MODEL
    ]
    if strange or not base.tensors.keys() & tensors.keys():
        raise InputError(
            "base-does-not-fit-run",
            base.root,
            expected=f"names of the training state, as {(*strange, *tensors)[0]}",
            got=", ".join(list(base.tensors)[:3]),
            hint="the run was trained on another base",
        )
    return {n: t for n, t in base.tensors.items() if n not in tensors}


def _carried(state: Checkpoint) -> list[Edit]:
    """Return the edits that take a run's tokenizer and other small files along."""
    return [
        CopyFile(name, file, "the run's") for name, file in state.files.items() if is_carried(name)
    ]


def _in_dtype(tensor: Tensor, dtype: str | None) -> Tensor:
    """Return a floating tensor in another dtype; others stay as they are."""
    if dtype is None or uncast(tensor).dtype not in CAST_SOURCES or dtype not in CAST_TARGETS:
        return tensor
    return cast(tensor, dtype)


def _dtype_key(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return ``torch_dtype`` for the config: the dtype of most bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    most = max(sizes, key=sizes.__getitem__, default="")
    key = "dtype" if "dtype" in config and "torch_dtype" not in config else "torch_dtype"
    return {key: _TORCH_DTYPES[most]} if most in _TORCH_DTYPES else {}


def _notes(training: TrainingState) -> tuple[str, ...]:
    return (f"training state: {', '.join(training.summary())}", *training.notes)


def _missing_note(training: TrainingState, base: Checkpoint | None) -> tuple[str, ...]:
    if not training.excluded or base is not None:
        return ()
    return ("frozen parameters were excluded from the state: --base CKPT supplies them",)


def _binding_notes(plan: Plan, training: TrainingState, base: Checkpoint | None) -> tuple[str, ...]:
    """Return what does not bind, as a note; raise InputError if it was excluded from the state."""
    target = plan.target()
    if target.config is None:
        target = replace(target, config=json.loads(target.texts[CONFIG]))
    try:
        require_binding(replace(plan, base=target, edits=()))
    except InputError as error:
        if training.excluded and base is None:
            raise InputError(
                "excluded-parameters",
                plan.donors[0].root,
                expected="every tensor of the model",
                got=f"a state without its frozen parameters: {error.got or error.expected}",
                hint="--base CKPT supplies them; a FILE.safetensors has what is there",
            ) from error
        return (f"the config does not fit: expected {error.expected}, got {error.got}",)
    return ()


def _base_of_adapter(state: Checkpoint) -> UsageError:
    return UsageError(
        "base-of-lora-run",
        state.root,
        expected="no --base: a LoRA run is written as it was trained, beside its base",
        hint="merge the directory that this writes into the base afterwards",
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
