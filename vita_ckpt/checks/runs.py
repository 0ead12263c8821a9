"""Check runs of VITA's relatives: whether their own loaders take them, and what stays unset."""

from __future__ import annotations

from collections.abc import Iterator

from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core import kinds
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import VITA
from vita_ckpt.core.report import Finding
from vita_ckpt.core.runs import stop_of_run, unfilled_by_run


def check_run(subject: Subject) -> Iterator[Finding]:
    """Check a LoRA or projector run of another family than VITA, by its config."""
    run, family = subject.checkpoint, subject.family
    if run.layout not in ("run", "lora") or run.config is None or family is VITA:
        return
    is_lora = subject.kind == kinds.LORA_RUN
    table = None if subject.base is None else subject.base.tensors.get(parts.EMBED_TOKENS)
    rows = table.shape[0] if table is not None and table.shape else None
    names = run.tensors
    stop = stop_of_run(run.config, names, family, is_lora=is_lora, rows=rows)
    if stop is not None:
        yield finding(
            "run-not-loadable",
            run.root,
            f"{family.label}'s loader takes no such run: {stop.detail}",
            hint="merge-projector merges what it holds into the base that it was trained on",
            file=run.root,
        )
    whole = subject.base is not None and "mm_vision_tower" in (subject.base.config or {})
    for name in unfilled_by_run(
        run.config, names, family, is_lora=is_lora, rows=rows, base_is_whole=whole
    ):
        if name == parts.NEWLINE:
            yield finding(
                "newline-absent",
                name,
                "expected it in the run, since mm_patch_merge_type is "
                f"{run.config.get('mm_patch_merge_type')!r}, got none: pretraining leaves it out, "
                "and the next stage draws it",
                file=run.root,
            )
        else:
            yield finding(
                "run-rows-absent",
                name,
                f"expected the rows of added tokens, as its config says with vocab_size "
                f"{run.config.get('vocab_size')!r}, got none",
                hint="train again with a base that has the rows: resize-embeddings adds them",
                file=run.root,
            )
