"""Where the stories of loaders part, and what of it is wrong with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vita_ckpt.checks.explain.trace import LoaderStory, by_part, some_files


@dataclass(frozen=True, slots=True)
class Divergence:
    """One question that loaders answer differently: the answers, each with who gives it."""

    question: str
    answers: tuple[tuple[str, tuple[str, ...]], ...]


def divergences(stories: Sequence[LoaderStory]) -> tuple[Divergence, ...]:
    """Every question to which there are several answers; a loader may have none to one."""
    asked = [
        Divergence(question, _grouped((s.loader, answer(s)) for s in stories))
        for question, answer in _QUESTIONS.items()
    ]
    asked += _sources(stories)
    return tuple(divergence for divergence in asked if len(divergence.answers) > 1)


_QUESTIONS: Final[Mapping[str, Callable[[LoaderStory], str | None]]] = {
    "outcome": lambda s: f"stops: {s.stopped_by}" if s.stopped_by else s.outcome,
    "class": lambda s: s.model_class,
    "dtype": lambda s: s.dtype,
    "weight files": lambda s: some_files(s.files_read) or None,
    "tower from": lambda s: s.tower,
    "projector from": lambda s: s.projector,
    "lm_head": lambda s: s.lm_head,
    "missing": lambda s: _of_built(s, by_part(s.missing)),
    "left out": lambda s: _of_built(s, by_part(s.ignored)),
}


def _of_built(story: LoaderStory, answer: str) -> str | None:
    """An answer that only who builds a model, and gets that far, can give."""
    return None if story.stopped_by or story.model_class is None else answer or "nothing"


def _sources(stories: Sequence[LoaderStory]) -> Iterator[Divergence]:
    """Tensors that loaders take from different files: one question for all of them."""
    holders: dict[str, dict[str, str]] = {}
    for story in stories:
        for tensor, file in story.sources.items():
            holders.setdefault(tensor, {})[story.loader] = file
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
