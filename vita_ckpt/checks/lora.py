"""Check LoRA runs: the config against the deltas, the deltas against the base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, Final

from vita_ckpt.checks import kinds
from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint, Shape, source_of
from vita_ckpt.core.filenames import ADAPTER_CONFIG
from vita_ckpt.core.report import Finding

# ``…q_proj.lora_A.weight``, with the adapter's name if it was saved by hand.
_DELTA: Final = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<half>[AB])(\.[^.]+)?(\.weight)?", re.ASCII
)

_MAGNITUDE: Final = ".lora_magnitude_vector"

# Of many deltas with the same defect this many are named.
_NAMED: Final = 12


def check_lora(subject: Subject) -> Iterator[Finding]:
    """Check a LoRA run by every rule about them."""
    if subject.kind != kinds.LORA_RUN:
        return
    checkpoint = subject.checkpoint
    config = checkpoint.adapter_config
    pairs = _pairs(checkpoint)
    if config is None:
        if pairs:
            yield finding(
                "lora-config-missing",
                ADAPTER_CONFIG,
                "expected it beside the deltas, got none",
                hint="copy it from the run",
                file=checkpoint.root,
            )
        return
    yield from _scale(subject, config)
    yield from _halves(checkpoint, config, pairs)
    yield from _magnitudes(checkpoint, config, pairs)
    yield from _base(subject, config, pairs)


_Pairs = dict[str, dict[str, str]]


def _pairs(checkpoint: Checkpoint) -> _Pairs:
    """Group the two halves of each module's delta, by ``A`` and ``B``."""
    pairs: _Pairs = {}
    for name in checkpoint.tensors:
        if parts.part_of(name) == parts.LORA and (match := _DELTA.fullmatch(name)) is not None:
            pairs.setdefault(match["module"], {})[match["half"]] = name
    return pairs


def _scale(subject: Subject, config: Mapping[str, Any]) -> Iterator[Finding]:
    file = _config_path(subject)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank <= 0:
        message = f"expected a positive integer, got {rank!r}"
        yield finding("lora-rank-mismatch", "r", message, file=file)
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not 0 < alpha < inf:
        message = f"expected a positive number, got {alpha!r}"
        yield finding("lora-alpha", "lora_alpha", message, file=file)


def _halves(checkpoint: Checkpoint, config: Mapping[str, Any], pairs: _Pairs) -> Iterator[Finding]:
    refs = checkpoint.tensors
    wrong_ranks = 0
    for module, halves in pairs.items():
        if len(halves) < 2:
            half, name = next(iter(halves.items()))
            other = name.replace(f"lora_{half}", f"lora_{'B' if half == 'A' else 'A'}")
            yield finding(
                "lora-pair-incomplete",
                name,
                f"expected {other} too, got none",
                file=source_of(refs[name]),
            )
            continue
        shapes = refs[halves["A"]].shape, refs[halves["B"]].shape
        ranks = {shapes[0][0] if shapes[0] else 0, shapes[1][1] if len(shapes[1]) > 1 else 0}
        wanted = _rank(module, config)
        if type(wanted) is int and ranks != {wanted}:
            wrong_ranks += 1
            if wrong_ranks <= _NAMED:
                yield finding(
                    "lora-rank-mismatch",
                    halves["A"],
                    f"expected rank {wanted}, as adapter_config.json says, got "
                    f"{list(shapes[0])} and {list(shapes[1])}",
                    file=source_of(refs[halves["A"]]),
                )


def _magnitudes(
    checkpoint: Checkpoint, config: Mapping[str, Any], pairs: _Pairs
) -> Iterator[Finding]:
    """Check that a DoRA run has the magnitude of every module that has a delta."""
    if not config.get("use_dora"):
        return
    present = {name.partition(_MAGNITUDE)[0] for name in checkpoint.tensors if _MAGNITUDE in name}
    absent = [module for module in pairs if module not in present]
    for module in absent[:_NAMED]:
        name = next(iter(pairs[module].values()))
        yield finding(
            "dora-magnitude-missing",
            module,
            f"expected {module}{_MAGNITUDE} for each of {len(pairs)} deltas, since use_dora is "
            f"set, got none for {len(absent)}",
            file=source_of(checkpoint.tensors[name]),
        )


def _rank(module: str, config: Mapping[str, Any]) -> Any:
    """Return the rank of a module: of ``rank_pattern``, matched at its name's end, else ``r``."""
    patterns = config.get("rank_pattern")
    if isinstance(patterns, Mapping):
        for pattern, rank in patterns.items():
            if module == pattern or module.endswith("." + str(pattern)):
                return rank
        if patterns:
            return None  # patterns may be expressions: nothing is concluded
    return config.get("r")


def _base(subject: Subject, config: Mapping[str, Any], pairs: _Pairs) -> Iterator[Finding]:
    named = config.get("base_model_name_or_path")
    if subject.base is None:
        yield finding(
            "lora-base-absent",
            "base_model_name_or_path",
            f"expected the base that the run was trained on, got {named!r}: nothing there"
            if isinstance(named, str) and named
            else f"expected the path of the base, got {named!r}",
            hint="copy the base there, or correct the path in adapter_config.json",
            file=_config_path(subject),
        )
        return
    refs = subject.checkpoint.tensors
    wrong = 0
    for module, halves in pairs.items():
        target = f"{module.removeprefix(parts.PEFT_PREFIX)}.weight"
        weight = subject.base.tensors.get(target)
        shapes = {half: refs[name].shape for half, name in halves.items()}
        if weight is not None and (len(shapes) < 2 or _fits(weight.shape, shapes)):
            continue
        wrong += 1
        if wrong <= _NAMED:
            name = next(iter(halves.values()))
            yield finding(
                "lora-target-absent",
                name,
                f"expected {target} in the base {subject.base.root}, got none"
                if weight is None
                else f"expected halves for {target} {list(weight.shape)} of the base, got "
                + " and ".join(str(list(shape)) for shape in shapes.values()),
                file=source_of(refs[name]),
            )


def _fits(weight: Shape, shapes: Mapping[str, Shape]) -> bool:
    """Return whether B · A has the shape of the weight (of its transpose, for an embedding)."""
    one, two = shapes["A"], shapes["B"]
    if len(one) < 2 or len(two) < 2 or len(weight) < 2:
        return False
    return {two[0], one[1]} == {weight[0], weight[1]}


def _config_path(subject: Subject) -> str:
    file = subject.checkpoint.files.get(ADAPTER_CONFIG)
    return file.path if file is not None else subject.checkpoint.root
