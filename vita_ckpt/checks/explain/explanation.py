"""An explanation as a value: what every loader does with a directory, and where they part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from vita_ckpt.checks.explain.disagreements import Divergence
from vita_ckpt.checks.explain.loaders import LOADERS
from vita_ckpt.checks.explain.trace import LoaderStory
from vita_ckpt.core.display import Displayed

REPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Displayed):
    """What every loader would do with ``path``, and the questions they answer differently."""

    path: str
    stories: tuple[LoaderStory, ...]
    divergences: tuple[Divergence, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON, in the form of ``schemas/explain-v1.json``."""
        return {
            "format": "vita-ckpt-explain",
            "version": REPORT_VERSION,
            "path": self.path,
            "loaders": [_story_to_dict(story) for story in self.stories],
            "divergences": [
                {
                    "question": divergence.question,
                    "answers": [
                        {"answer": answer, "loaders": list(loaders)}
                        for answer, loaders in divergence.answers
                    ],
                }
                for divergence in self.divergences
            ],
        }

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield the path, how each loader ends, and the questions they answer differently."""
        yield "path", self.path
        for story in self.stories:
            yield story.loader, f"stops: {story.stopped_by}" if story.stopped_by else story.outcome
        yield from (("diverge in", divergence.question) for divergence in self.divergences)


def _story_to_dict(story: LoaderStory) -> dict[str, Any]:
    values: dict[str, Any] = asdict(story)
    values["renamed"] = [{"stored": stored, "built": built} for stored, built in story.renamed]
    values["steps"] = [asdict(step) for step in story.steps]
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    return {"title": LOADERS[story.loader][0], **lists}
