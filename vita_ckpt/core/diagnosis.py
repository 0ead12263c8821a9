"""Explain why names do not bind: what wrote them instead of the names that a loader looks for."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator
from string import digits
from typing import Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.wrappers import BASE_LAYER, PEFT_MODEL, WRAPPERS
from vita_ckpt.core.binding.result import Binding
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.remedies import merge_unmerged

_VISION_LEVEL: Final = "vision_model"
_FUSED_EXPERTS: Final = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj", ".mlp.gate.weight")
_SPLIT_EXPERTS: Final = ".block_sparse_moe."
# base_model.model is the longest that a wrapper puts in.
_MOST_COMPONENTS: Final = 2
_DIGITS: Final = digits.encode()


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why names do not bind, for all the names that it explains.

    ``what`` says it in words, ``example`` is a stored name, ``mend`` says what to do. ``explains``
    are missing and unexpected names. ``twice`` is set where the tensors also bind under the right
    names.
    """

    what: str
    example: str
    mend: str
    explains: frozenset[str]
    twice: bool = False


# No model has names as long: each word less of one is a name that is looked up.
_MOST_WORDS: Final = 64


def diagnose(binding: Binding, root: str) -> tuple[Cause, ...]:
    """Return why names do not bind, as far as it is known; ``root`` is the checkpoint's path."""
    mismatch = binding.mismatch
    if not mismatch.unexpected:
        return ()
    return tuple(_causes(mismatch.missing, mismatch.unexpected, binding.found.values(), root))


def _causes(
    missing: Collection[str], unexpected: Collection[str], bound: Iterable[str], root: str
) -> Iterator[Cause]:
    convert = f"vita-ckpt convert {shlex.quote(root)} --names upstream --out DIR"
    lacking, strange = set(missing), dict.fromkeys(unexpected)
    fused = [name for name in strange if name.endswith(_FUSED_EXPERTS)]
    split = [name for name in lacking if _SPLIT_EXPERTS in name]
    if fused and split:
        what = f"transformers 5 wrote Mixtral's experts fused: {fused[0]}"
        yield Cause(what, fused[0], convert, frozenset((*fused, *split)))
        lacking -= set(split)
        strange = {name: None for name in strange if name not in fused}
    deltas = {name for name in strange if parts.part_of(name) == parts.LORA}
    own = [name for name in strange if name not in deltas] if deltas else list(strange)
    for added, pairs in _grouped(own, lacking).items():
        wrapper = next((word for word in added.split(".") if word in WRAPPERS), None)
        example = pairs[0][0]
        names = {name for pair in pairs for name in pair}
        if wrapper is None:
            what, mend = f"{len(pairs)} names have {added}. too many", "rename the tensors"
        else:
            what, mend = f"{WRAPPERS[wrapper]}: {added}. is in {len(pairs)} names", convert
        if wrapper == BASE_LAYER or (wrapper == PEFT_MODEL and deltas):
            what = f"{WRAPPERS[BASE_LAYER]}: {added}. is in {len(pairs)} names"
            mend = f"{merge_unmerged(root)} merges them, as peft's merge_and_unload() does"
            names |= deltas
        yield Cause(f"{what}, such as {example}", example, mend, frozenset(names))
        strange = {name: None for name in strange if name not in names}
        lacking -= names
    for lost, pairs in _grouped(lacking, strange.keys()).items():
        example = pairs[0][1]
        what, mend = f"{len(pairs)} names lack {lost}.", "rename the tensors"
        if lost == _VISION_LEVEL:
            if 2 * len(pairs) < sum(_VISION_LEVEL in name.split(".") for name in lacking):
                continue  # another family's tower, some of whose names happen to be alike
            what = f"transformers 5.6 or newer wrote {len(pairs)} names, without {lost}."
            mend = convert
        names = {name for pair in pairs for name in pair}
        yield Cause(f"{what}, such as {example}", example, mend, frozenset(names))
        strange = {name: None for name in strange if name not in names}
    known = bound if isinstance(bound, set) else set(bound)
    for added, pairs in _grouped(strange, known).items():
        if not pairs[0][0].startswith(f"{added}.") and WRAPPERS.keys().isdisjoint(added.split(".")):
            continue
        example, right = pairs[0]
        yield Cause(
            f"{len(pairs)} tensors stand under two names: {example} is also {right}",
            example,
            "save the model again without the copies",
            frozenset(name for name, _ in pairs),
            twice=True,
        )


def _grouped(longer: Collection[str], shorter: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """Group (long, short) names by the components that the long one has too many."""
    groups: dict[str, list[tuple[str, str]]] = {}
    if not longer or not shorter:
        return groups
    # Names that differ in their numbers alone have the same words too many: most have none.
    patterns = {*map(_without_digits, shorter)}
    hopeful: dict[str, bool] = {}
    for name in longer:
        pattern = _without_digits(name)
        if pattern not in hopeful:
            hopeful[pattern] = any(rest in patterns for _, rest in _without(pattern))
        if not hopeful[pattern]:
            continue
        for added, rest in _without(name):
            if rest in shorter:
                groups.setdefault(added, []).append((name, rest))
                break
    return groups


def _without_digits(name: str) -> str:
    # Of bytes, which takes a sixth of the time that it takes of a text.
    return (
        name.encode("utf-8", "surrogatepass")
        .translate(None, _DIGITS)
        .decode("utf-8", "surrogatepass")
    )


def _without(name: str) -> Iterator[tuple[str, str]]:
    """Yield the name without each run of components, and the run."""
    words = name.split(".")
    if len(words) > _MOST_WORDS:
        return
    for length in range(1, min(_MOST_COMPONENTS, len(words) - 1) + 1):
        for start in range(len(words) - length + 1):
            end = start + length
            yield ".".join(words[start:end]), ".".join(words[:start] + words[end:])
