"""What the pickles beside the weights would do when they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from vita_ckpt.checks.rules import finding
from vita_ckpt.core.checkpoint import Shard
from vita_ckpt.core.pickle_globals import Judgement, judge
from vita_ckpt.core.reading_notes import listed
from vita_ckpt.core.report import Finding


class Pickle(Protocol):
    """A pickle that was looked through."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def globals(self) -> frozenset[tuple[str, str]]: ...  # noqa: D102
    @property
    def computed(self) -> bool: ...  # noqa: D102
    @property
    def failure(self) -> str: ...  # noqa: D102


def check_pickles(pickles: Iterable[Pickle]) -> Iterator[Finding]:
    """Yield what pickles could do, one finding for each kind of global in a file."""
    for pickle in pickles:
        by_kind: dict[Judgement, list[str]] = {}
        for module, name in sorted(pickle.globals):
            by_kind.setdefault(judge(module, name), []).append(f"{module}.{name}")
        if pickle.computed:
            by_kind.setdefault("runs-code", []).append("a global whose name is computed")
        if "runs-code" in by_kind:
            yield finding(
                "pickle-runs-code",
                pickle.name,
                f"expected values only, got {listed(by_kind['runs-code'])}",
                hint="do not load it: remove it, and ask where it came from",
                file=pickle.path,
            )
        if "unknown" in by_kind:
            yield finding(
                "pickle-unknown-global",
                pickle.name,
                f"expected what trainers write, got {listed(by_kind['unknown'])}",
                hint="find out what wrote it before anybody loads it",
                file=pickle.path,
            )
        if "trainer" in by_kind:
            message = f"what trainers write: {listed(by_kind['trainer'])}"
            yield finding("pickle-of-trainer", pickle.name, message, file=pickle.path)
        if pickle.failure:
            yield finding(
                "pickle-not-read",
                pickle.name,
                f"expected a pickle that can be looked through, got {pickle.failure}",
                hint="load it only if you know what wrote it",
                file=pickle.path,
            )


def check_weights(shards: Iterable[Shard]) -> Iterator[Finding]:
    """Yield what weight files of torch.save hold beside the tensors that were read."""
    for shard in shards:
        name = shard.name or shard.file.path
        if shard.objects:
            yield finding(
                "weights-with-objects",
                name,
                f"expected tensors and plain values only, got {listed(shard.objects)}",
                hint="save the state dict alone, or as safetensors",
                file=shard.file.path,
            )
        if shard.other_keys:
            yield finding(
                "several-state-dicts",
                name,
                f"expected one, got {shard.key}, which was read, and {listed(shard.other_keys)}",
                hint="save the one that counts alone",
                file=shard.file.path,
            )
