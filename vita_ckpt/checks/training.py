"""Check training state: what its names and shapes mean, and where a run's projector is."""

from __future__ import annotations

from collections.abc import Iterator

from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.filenames import NON_LORA
from vita_ckpt.core.report import Finding
from vita_ckpt.core.training.filenames import is_default_tag

_ZERO_3 = 3


def check_training(subject: Subject) -> Iterator[Finding]:
    """Check a training state, and a step of a run beside one."""
    checkpoint = subject.checkpoint
    state = checkpoint.training
    if state is not None and state.stage == _ZERO_3:
        yield finding(
            "stage-3-shapes",
            "module",
            f"shapes [0] of {len(state.trained)} parameters, which {state.ranks} ranks hold",
            file=checkpoint.root,
        )
    if checkpoint.layout != "lora" or any("mm_projector" in name for name in checkpoint.tensors):
        return
    states = [name for name in checkpoint.left_out if is_default_tag(name)]
    if states and all(shard.name != NON_LORA for shard in checkpoint.shards):
        yield finding(
            "projector-in-training-state",
            states[-1],
            f"expected {NON_LORA} beside the adapter, got none: a projector that was trained too "
            "is in the training state alone",
            hint=f"vita-ckpt consolidate {checkpoint.root} --out DIR writes the whole run",
            file=checkpoint.root,
        )
