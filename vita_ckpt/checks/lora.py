"""Check LoRA runs: the config against the deltas, the run against the base, without merging it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core import kinds
from vita_ckpt.core.checkpoint import EMPTY, source_of
from vita_ckpt.core.filenames import ADAPTER_CONFIG
from vita_ckpt.core.lora import Merged, merge_run, read_names
from vita_ckpt.core.lora_config import Problem, read_lora_config
from vita_ckpt.core.report import Finding

# Of many tensors with the same defect this many are named.
_NAMED: Final = 12
# What nothing is known of without a base.
_OF_THE_BASE: Final = frozenset({"lora-target-absent", "lora-tensor-unplaced"})


def check_lora(subject: Subject) -> Iterator[Finding]:
    """Check a LoRA run by every rule about them: what a merge refuses, and what it says."""
    if subject.kind != kinds.LORA_RUN:
        return
    run = subject.checkpoint
    if run.adapter_config is None:
        beside = (
            "the deltas" if read_names(run.tensors).deltas else "what a run trained, and deltas"
        )
        if run.layout == "lora" or beside == "the deltas":
            yield finding(
                "lora-config-missing",
                ADAPTER_CONFIG,
                f"expected it beside {beside}, got none",
                hint="copy it from the run"
                if beside == "the deltas"
                else "copy it and the adapter from the run; merge-projector takes the projector "
                "that is here",
                file=run.root,
            )
        elif kinds.kind_of(run).name != kinds.LORA_RUN:  # it was asked for as one
            yield finding(
                "lora-config-missing",
                ADAPTER_CONFIG,
                "expected it in a LoRA run, got none, and no deltas",
                hint=f"it is not a LoRA run but a {kinds.kind_of(run).name}: leave --kind out",
                file=run.root,
            )
        return
    config, problems = read_lora_config(run.adapter_config)
    yield from _findings(subject, problems)
    if subject.base is None:
        yield _no_base(subject)
    merged = merge_run(run, subject.base or EMPTY, config)
    problems = [p for p in merged.problems if subject.base or p.rule not in _OF_THE_BASE]
    yield from _findings(subject, problems)
    yield from _unmatched(subject, merged)


def _findings(subject: Subject, problems: Sequence[Problem]) -> Iterator[Finding]:
    said: Counter[str] = Counter()
    tensors = subject.checkpoint.tensors
    for problem in problems:
        said[problem.rule] += 1
        if said[problem.rule] > _NAMED:
            continue
        tensor = tensors.get(problem.subject)
        yield finding(
            problem.rule,
            problem.subject,
            f"expected {problem.expected}, got {problem.got}",
            hint=problem.hint,
            file=_config_path(subject) if tensor is None else source_of(tensor),
        )


def _unmatched(subject: Subject, merged: Merged) -> Iterator[Finding]:
    """Yield what peft passes over in silence."""
    for rule, modules, message in (
        ("lora-target-untrained", merged.untrained, "expected a delta, as for every target"),
        ("lora-delta-untargeted", merged.ignored, "expected a target of adapter_config.json"),
        ("lora-bias-absent", merged.without_bias, "expected it in the run, since bias is set"),
    ):
        for module in modules[:_NAMED]:
            count = f" ({len(modules)} in all)" if len(modules) > 1 else ""
            got = "a delta of another module" if rule == "lora-delta-untargeted" else "none"
            yield finding(rule, module, f"{message}, got {got}{count}", file=_config_path(subject))


def _no_base(subject: Subject) -> Finding:
    named = (subject.checkpoint.adapter_config or {}).get("base_model_name_or_path")
    return finding(
        "lora-base-absent",
        "base_model_name_or_path",
        f"expected the base that the run was trained on, got {named!r}: nothing there"
        if isinstance(named, str) and named
        else f"expected the path of the base, got {named!r}",
        hint="copy the base there, or correct the path in adapter_config.json",
        file=_config_path(subject),
    )


def _config_path(subject: Subject) -> str:
    file = subject.checkpoint.files.get(ADAPTER_CONFIG)
    return file.path if file is not None else subject.checkpoint.root
