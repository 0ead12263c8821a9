"""Check training state: what its names and shapes mean."""

from __future__ import annotations

from collections.abc import Iterator

from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.report import Finding

_ZERO_3 = 3


def check_training(subject: Subject) -> Iterator[Finding]:
    """Explain what is strange in a training state and sound."""
    checkpoint = subject.checkpoint
    state = checkpoint.training
    if state is not None and state.stage == _ZERO_3:
        yield finding(
            "stage-3-shapes",
            "module",
            f"shapes [0] of {len(state.trained)} parameters, which {state.ranks} ranks hold",
            file=checkpoint.root,
        )
