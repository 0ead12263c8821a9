"""Check the files of a checkpoint: what they are meant to be, what lies beside them, its undo data.

These rules take values alone; whoever calls them has read the files.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core import kinds
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.families import VITA, family_of
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.anatomy.relatives import relative_of
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    AUDIO_RUN,
    GLOBAL_STEP,
    LORA_FILES,
    NON_LORA,
    SAFETENSORS_SUFFIX,
    TRAINED_FILES,
)
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.quantisation import describe, quantisation_of
from vita_ckpt.core.remedies import (
    consolidate,
    merge_lora,
    merge_projector,
    merge_unmerged,
    take_out,
)
from vita_ckpt.core.report import Finding
from vita_ckpt.core.training_state import file_of_training_state
from vita_ckpt.errors import InputError, VitaCkptError

_MODELS: Final = (*kinds.WHOLE, kinds.LANGUAGE_MODEL)
_DECIDE: Final = (
    "decide which of the two is meant, and move the other to a directory of its own: "
    "vita-ckpt diff compares them"
)


def finding_of_error(error: VitaCkptError, file: str) -> Finding:
    """Return the finding that an error of reading ``file`` amounts to."""
    rule = RULES.get(error.code)
    sides = [f"expected {error.expected}" if error.expected else ""]
    sides += [f"got {error.got}" if error.got else ""]
    return Finding(
        error.code,
        rule.severity if rule is not None else "error",
        error.subject,
        ", ".join(filter(None, sides)),
        error.hint,
        file,
    )


def intended_kind(checkpoint: Checkpoint, detected: str) -> str:
    """Return what a checkpoint is meant to be, if its weights are wrapped or could not be read.

    ``detected`` is the kind by its names and shapes; it stands wherever it says something.
    """
    # A projector beside names that nothing is known by may be all of a model that was not wrapped.
    is_rest = detected == kinds.PROJECTOR and any(
        parts.part_of(name) == parts.OTHER for name in checkpoint.tensors
    )
    if detected not in (kinds.UNKNOWN, kinds.TOWER) and not is_rest:
        return detected
    if not checkpoint.tensors and relative_of(checkpoint.config) is not None:
        return kinds.MULTIMODAL
    if checkpoint.layout not in ("safetensors", "torch"):
        return detected
    config = checkpoint.config or {}
    family = family_of(config)
    if family is not None or "mm_vision_tower" in config:
        return kinds.CHECKPOINTS[(family or VITA).name]
    if of_plain_type(config.get("model_type")) is not None:
        return kinds.LANGUAGE_MODEL
    return kinds.TOWER if towers.tower_of_config(config) is not None else detected


def check_kind(checkpoint: Checkpoint, kind: str) -> Iterator[Finding]:
    """Check that the weights, taken for ``kind``, are of one that VITA's loaders read."""
    root, codes = checkpoint.root, quantisation_of(checkpoint)
    relative = kinds.kind_of(checkpoint).relative if kind == kinds.MULTIMODAL else None
    state = file_of_training_state(posixpath.basename(root))
    if relative is not None:
        yield finding(
            "other-family",
            root,
            f"expected a model of {kinds.listed_families()}, got {relative.label}"
            + _model_type_of(checkpoint.config),
            hint="--kind vision-tower, projector or language-model says which part of it is meant; "
            + take_out(relative, checkpoint.tensors),
            file=root,
        )
    elif kind == kinds.PEFT_MODEL:
        yield finding(
            "unmerged-peft",
            root,
            "expected merged weights, got a model of PEFT with its adapter beside the weights: "
            + next(iter(_unmerged_names(checkpoint)), ""),
            hint=f"{merge_unmerged(root)} merges it, FILE being the run's adapter_config.json; in "
            "PEFT, merge_and_unload() before save_pretrained()",
            file=root,
        )
    elif kind == kinds.TRAINING_STATE and state is not None:
        yield _other_kind(checkpoint, state.label, state.remedy)
    elif codes is not None:
        yield _other_kind(
            checkpoint,
            f"quantised ones: {describe(checkpoint, codes)}",
            "take the checkpoint that was quantised",
        )
    elif kind == kinds.UNKNOWN and checkpoint.tensors:
        yield _unknown_kind(checkpoint)


def _unknown_kind(checkpoint: Checkpoint) -> Finding:
    names = list(checkpoint.tensors)
    wrapper = kinds.wrapper_of(names)
    if wrapper is None:
        return _other_kind(checkpoint, f"weights of no known kind: {', '.join(names[:3])}")
    bare = {parts.part_of(name.removeprefix(wrapper)) for name in names}
    hint = f"save its state dict again without {wrapper}, as a checkpoint with its config.json"
    if bare == {parts.MM_PROJECTOR}:
        hint = "merge-projector takes it as it is"
    example = next(name for name in names if name.startswith(wrapper))
    return _other_kind(checkpoint, f"names with {wrapper} before them, such as {example}", hint)


def _model_type_of(config: Mapping[str, Any] | None) -> str:
    model_type = (config or {}).get("model_type")
    return f", model_type {model_type!r}" if isinstance(model_type, str) else ""


def _unmerged_names(checkpoint: Checkpoint) -> Iterator[str]:
    marks = (".base_layer.", ".original_module.", ".lora_")
    return (name for name in checkpoint.tensors if any(mark in name for mark in marks))


def _other_kind(checkpoint: Checkpoint, got: str, hint: str = "") -> Finding:
    message = f"expected weights that VITA's loaders read, got {got}"
    return finding("other-kind", checkpoint.root, message, hint=hint, file=checkpoint.root)


def check_left_out(subject: Subject) -> Iterator[Finding]:
    """Check for weights that are not part of the checkpoint, and for the state of its training."""
    checkpoint = subject.checkpoint
    reads_again = subject.kind in kinds.WHOLE and subject.family.reads_tower_again
    for name, reason in checkpoint.left_out.items():
        path = posixpath.join(checkpoint.root, name)
        if reason is LeftOut.TRAINING_STATE:
            yield finding("training-state", name, "not part of the checkpoint", file=path)
        elif not checkpoint.shards or reason is not LeftOut.OTHER_WEIGHTS:
            continue  # where no weights could be read, they are perhaps among these
        elif name in subject.taken:
            continue  # the index is stale, not the file
        elif name in TRAINED_FILES and subject.kind in _MODELS:
            yield from _trained(subject, name, path)
        elif reads_again and name.endswith(SAFETENSORS_SUFFIX):
            yield finding(
                "stale-weights",
                name,
                "expected only files that the checkpoint consists of, got one that upstream's "
                "loader reads all the same when unfreeze_vision_tower is set"
                + _against(subject, name),
                hint=_DECIDE,
                file=path,
            )
        else:
            yield finding(
                "other-weights",
                name,
                "expected only files that the checkpoint consists of, got other weights, which no "
                f"loader of VITA reads{_against(subject, name)}",
                hint=_DECIDE,
                file=path,
            )
    yield from _state_of_step(subject)


def _against(subject: Subject, name: str) -> str:
    """Return what distinguishes a file from the checkpoint beside it, as the end of a sentence."""
    rival = subject.rivals.get(name)
    return f"; {rival}" if rival is not None and str(rival) else ""


def _trained(subject: Subject, name: str, path: str) -> Iterator[Finding]:
    """Report what a run trained and nobody merged: no loader reads it beside a whole model."""
    root = subject.checkpoint.root
    if name == ADAPTER_CONFIG:
        return  # said of the adapter's weights
    if name in LORA_FILES:
        message = "a LoRA run lies beside the checkpoint, whose loaders do not read it"
        hint = (
            "move adapter_config.json, the adapter and non_lora_trainables.bin to a directory RUN, "
            f"then {merge_lora(root, 'RUN')}"
        )
    elif name == NON_LORA:
        if any(other in subject.checkpoint.left_out for other in LORA_FILES):
            return  # said of the adapter
        message = "what a LoRA run trained beside its deltas lies here, and no loader reads it"
        hint = merge_projector(root, path)
    elif name == AUDIO_RUN:
        message = "a trained audio adapter lies beside the checkpoint, whose loaders do not read it"
        hint = "upstream's training takes it as pretrain_audio_mlp_adapter"
    else:
        message = "a trained projector lies beside the checkpoint, whose loaders do not read it"
        hint = merge_projector(root, path)
    yield finding("trained-beside", name, message + _against(subject, name), hint=hint, file=path)


def _state_of_step(subject: Subject) -> Iterator[Finding]:
    """Report the step of a LoRA run whose trained tensors beside the deltas are in its state."""
    checkpoint = subject.checkpoint
    if subject.kind != kinds.LORA_RUN or any(
        parts.part_of(name) != parts.LORA for name in checkpoint.tensors
    ):
        return
    for name in checkpoint.left_out:
        if GLOBAL_STEP.fullmatch(name):
            state = posixpath.join(checkpoint.root, name)
            yield finding(
                "trained-in-state",
                NON_LORA,
                f"expected it beside the deltas, got none: what was trained beside them, such as "
                f"the projector, is in {name}",
                hint=f"{consolidate(state)} writes a run with it; merge-projector takes it from "
                "the step as it is",
                file=state,
            )


def check_undo_data(damaged: Iterable[str]) -> Iterator[Finding]:
    """Report each file, or range of a file, of the undo data that holds other bytes than saved."""
    for subject in damaged:
        message = "expected the bytes that were saved, got others"
        yield finding("undo-damaged", subject, message, file=subject.partition(": ")[0])


def unreadable_undo_data(error: InputError) -> Finding:
    """Return the finding for undo data that cannot be read."""
    message = f"expected what was saved, got {error.got}"
    return finding("undo-damaged", error.subject, message, file=error.subject)
