"""Find the questions to which loaders give different answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from vita_ckpt.checks.explain.trace import (
    LoaderTrace,
    by_part,
    some_files,
)
from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Divergence:
    """One question that loaders answer differently: the answers, each with who gives it."""

    question: str
    answers: tuple[tuple[str, tuple[str, ...]], ...]


def divergences(traces: Sequence[LoaderTrace]) -> tuple[Divergence, ...]:
    """Return every question that gets several answers; a loader may give none."""
    asked = [
        Divergence(question, _grouped((s.loader, answer(s)) for s in traces))
        for question, answer in _QUESTIONS.items()
    ]
    asked += _sources(traces)
    return tuple(divergence for divergence in asked if len(divergence.answers) > 1)


_QUESTIONS: Final[Mapping[str, Callable[[LoaderTrace], str | None]]] = {
    "outcome": lambda s: f"stops: {s.stopped_by}" if s.stopped_by else s.outcome,
    "class": lambda s: s.model_class,
    "dtype": lambda s: s.dtype,
    "weight files": lambda s: some_files(s.files_read) or None,
    "tower from": lambda s: _worded(s.tower),
    "projector from": lambda s: _worded(s.projector),
    "lm_head": lambda s: s.lm_head,
    "missing": lambda s: _of_built(s, by_part(s.missing)),
    "left out": lambda s: _of_built(s, by_part(s.ignored)),
}


def _worded(source: PartSource | None) -> str | None:
    return None if source is None else str(source)


def _of_built(trace: LoaderTrace, answer: str) -> str | None:
    """Return the answer of a loader that builds a model and does not stop before."""
    return None if trace.stopped_by or trace.model_class is None else answer or "nothing"


def _sources(traces: Sequence[LoaderTrace]) -> Iterator[Divergence]:
    """Ask one question about all tensors that loaders take from different files."""
    holders: dict[str, dict[str, str]] = {}
    for trace in traces:
        for tensor, file in trace.sources.items():
            holders.setdefault(tensor, {})[trace.loader] = file
    torn = [tensor for tensor, files in sorted(holders.items()) if len(set(files.values())) > 1]
    if torn:
        more = f" and {len(torn) - 1} more" if len(torn) > 1 else ""
        yield Divergence(f"file of {torn[0]}{more}", _grouped(holders[torn[0]].items()))


def _grouped(
    answers: Iterable[tuple[str, str | None]],
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    groups: dict[str, list[str]] = {}
    for loader, answer in answers:
        if answer is not None:
            groups.setdefault(answer, []).append(loader)
    return tuple((answer, tuple(loaders)) for answer, loaders in groups.items())
