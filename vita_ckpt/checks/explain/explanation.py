"""Hold what every loader would do with a directory, and where loaders disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from vita_ckpt.checks.explain.disagreements import Divergence
from vita_ckpt.checks.explain.loaders import LOADERS
from vita_ckpt.checks.explain.trace import LoaderTrace
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed

REPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Displayed):
    """What every loader would do with ``path``, and the questions they answer differently.

    ``remarks`` say what it is where that is no plain model of VITA: another family's, quantised.
    """

    path: str
    traces: tuple[LoaderTrace, ...]
    divergences: tuple[Divergence, ...]
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as JSON, in the form of ``schemas/explain-v1.json``."""
        return {
            "format": "vita-ckpt-explain",
            "version": REPORT_VERSION,
            "path": self.path,
            "loaders": [_trace_to_dict(trace) for trace in self.traces],
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
            "remarks": list(self.remarks),
        }

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield the path, how each loader ends, and the questions they answer differently."""
        yield "path", self.path
        yield from (("is", remark) for remark in self.remarks)
        for trace in self.traces:
            yield trace.loader, f"stops: {trace.stopped_by}" if trace.stopped_by else trace.outcome
        yield from (("diverge in", divergence.question) for divergence in self.divergences)


def _trace_to_dict(trace: LoaderTrace) -> dict[str, Any]:
    values: dict[str, Any] = asdict(trace)
    for part in ("tower", "projector"):
        values[part] = None if values[part] is None else str(values[part])
    values["renamed"] = [{"stored": stored, "built": built} for stored, built in trace.renamed]
    values["steps"] = [asdict(step) for step in trace.steps]
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    return {"title": LOADERS[trace.loader][0], **lists}
