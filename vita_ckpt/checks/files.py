"""Check the files of a checkpoint: what they are meant to be, what lies beside them, its undo data.

These rules take values alone; whoever calls them has read the files.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from vita_ckpt.checks import kinds
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.backbones import BACKBONES, PLAIN_LANGUAGE_MODELS
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import SAFETENSORS_SUFFIX
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.report import Finding
from vita_ckpt.errors import InputError, VitaCkptError

# Ends of the names that tensors of quantised models have beside the packed weights.
_QUANTISED_SUFFIXES: Final = (
    ".qweight",
    ".qzeros",
    ".SCB",
    ".absmax",
    ".weight_scale",
    ".weight_packed",
)
_REMOVE_IT: Final = "remove it, or move it out of the directory"


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
    if detected not in (kinds.UNKNOWN, kinds.TOWER):
        return detected
    if checkpoint.layout not in ("safetensors", "torch"):
        return detected
    config = checkpoint.config or {}
    model_type = str(config.get("model_type"))
    if model_type in BACKBONES or "mm_vision_tower" in config:
        return kinds.VITA
    if model_type in PLAIN_LANGUAGE_MODELS:
        return kinds.LANGUAGE_MODEL
    return kinds.TOWER if towers.tower_of_config(config) is not None else detected


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Return whether the config or the names of tensors are those of a quantised model."""
    config = checkpoint.config or {}
    return isinstance(config.get("quantization_config"), Mapping) or any(
        name.endswith(_QUANTISED_SUFFIXES) for name in checkpoint.tensors
    )


def check_kind(checkpoint: Checkpoint, kind: str) -> Iterator[Finding]:
    """Check that the weights are of a kind that VITA's loaders read."""
    if is_quantised(checkpoint):
        yield _other_kind(checkpoint, "quantised weights (take what they were made of)")
    elif kind == kinds.UNKNOWN and checkpoint.tensors:
        names = ", ".join(list(checkpoint.tensors)[:3])
        yield _other_kind(checkpoint, f"weights of no known kind: {names}")


def _other_kind(checkpoint: Checkpoint, got: str) -> Finding:
    message = f"expected weights that VITA's loaders read, got {got}"
    return finding("other-kind", checkpoint.root, message, file=checkpoint.root)


def check_left_out(subject: Subject) -> Iterator[Finding]:
    """Check for weights that are not part of the checkpoint, and for the state of its training."""
    checkpoint = subject.checkpoint
    is_vita = subject.kind == kinds.VITA
    for name, reason in checkpoint.left_out.items():
        path = posixpath.join(checkpoint.root, name)
        if reason is LeftOut.TRAINING_STATE:
            yield finding("training-state", name, "not part of the checkpoint", file=path)
        elif not checkpoint.shards or reason is not LeftOut.OTHER_WEIGHTS:
            continue  # where no weights could be read, they are perhaps among these
        elif is_vita and name.endswith(SAFETENSORS_SUFFIX):
            yield finding(
                "stale-weights",
                name,
                "expected only files that the checkpoint consists of, got one that upstream's "
                "loader reads all the same when unfreeze_vision_tower is set",
                hint=_REMOVE_IT,
                file=path,
            )
        else:
            yield finding(
                "other-weights",
                name,
                "expected only files that the checkpoint consists of, got other weights",
                hint=_REMOVE_IT,
                file=path,
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
