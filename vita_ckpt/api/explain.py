"""Explain what each loader would do with a directory, and where loaders disagree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.explain.disagreements import Divergence, divergences
from vita_ckpt.checks.explain.loaders import LOADERS, explain_loaders
from vita_ckpt.checks.explain.matching import TowerLookup
from vita_ckpt.checks.explain.trace import LoaderTrace
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import find_tower

REPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Explanation:
    """What every loader would do with ``path``, and the questions they answer differently."""

    path: str
    traces: tuple[LoaderTrace, ...]
    divergences: tuple[Divergence, ...]


def explain(path: StrPath, *, stores: Stores | None = None) -> Explanation:
    """Replay VITA's, transformers' and huggingface_hub's loaders over a directory, file by file.

    Headers and configs only; what is broken is where a loader stops, not an error. A tower
    directory that is reachable is looked into. Raises InputError if nothing is there.
    """
    stores = Stores() if stores is None else stores
    files = read_weight_files(locate(path, stores), stores)
    traces = explain_loaders(files, _look_up_tower(files, stores))
    return Explanation(files.root, traces, divergences(traces))


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """Return the explanation as JSON, in the form of ``schemas/explain-v1.json``."""
    return {
        "format": "vita-ckpt-explain",
        "version": REPORT_VERSION,
        "path": explanation.path,
        "loaders": [
            {"title": LOADERS[trace.loader][0], **_trace(trace)} for trace in explanation.traces
        ],
        "divergences": [
            {
                "question": divergence.question,
                "answers": [
                    {"answer": answer, "loaders": list(loaders)}
                    for answer, loaders in divergence.answers
                ],
            }
            for divergence in explanation.divergences
        ],
    }


def _trace(trace: LoaderTrace) -> dict[str, Any]:
    report: dict[str, Any] = asdict(trace)
    for part in ("tower", "projector"):
        report[part] = None if report[part] is None else str(report[part])
    report["renamed"] = [{"stored": stored, "built": built} for stored, built in trace.renamed]
    report["steps"] = [asdict(step) for step in trace.steps]
    return {key: list(v) if isinstance(v, tuple) else v for key, v in report.items()}


def _look_up_tower(files: WeightFiles, stores: Stores) -> TowerLookup:
    config: Mapping[str, Any] = files.config or {}
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return TowerLookup()
    tower = find_tower(Checkpoint(files.root, "safetensors", {}, config=config), stores)
    if tower is None or tower.path is None:
        return TowerLookup(tower)
    try:
        beside = read_weight_files(tower.path, stores)
    except INCONCLUSIVE:
        raise
    except InputError:
        beside = None
    from_here = not is_remote(tower.path) and "\0" not in name and os.path.exists(name)
    return TowerLookup(tower, beside, from_here)
