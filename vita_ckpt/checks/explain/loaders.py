"""List the loaders, and replay each of them over a directory.

What plain transformers does without VITA's code, and what huggingface_hub does, was read from their
sources and is compared with the installed libraries in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vita_ckpt.checks.explain.hub import hub_metadata, hub_model
from vita_ckpt.checks.explain.matching import Lookup
from vita_ckpt.checks.explain.trace import LoaderTrace, Tracer
from vita_ckpt.checks.explain.transformers import transformers_4_41, transformers_5_6
from vita_ckpt.checks.explain.vita import vita_1_0, vita_1_5
from vita_ckpt.core.binding import (
    HUB_METADATA,
    HUB_MODEL,
    TRANSFORMERS_4_41,
    TRANSFORMERS_5_6,
    VITA_1_0,
    VITA_1_5,
)
from vita_ckpt.core.file_listing import WeightFiles

Replay = Callable[[Tracer, Lookup], None]

# The title of each loader, and the function that replays it.
LOADERS: Final[dict[str, tuple[str, Replay]]] = {
    VITA_1_5: ("VITA-1.5's loader, transformers 4.41.1", vita_1_5),
    VITA_1_0: ("VITA-1.0's loader, transformers 4.41.1", vita_1_0),
    TRANSFORMERS_4_41: ("plain transformers 4.41, from_pretrained", transformers_4_41),
    TRANSFORMERS_5_6: ("plain transformers 5.6 and later, from_pretrained", transformers_5_6),
    HUB_MODEL: ("huggingface_hub's load_torch_model", hub_model),
    HUB_METADATA: ("huggingface_hub's safetensors metadata", hub_metadata),
}


def explain_loaders(files: WeightFiles, lookup: Lookup) -> tuple[LoaderTrace, ...]:
    """Trace what every loader would do with these files."""

    def trace(name: str, replay: Replay) -> LoaderTrace:
        return Tracer(name, files).trace(lambda tracer: replay(tracer, lookup))

    return tuple(trace(name, replay) for name, (_, replay) in LOADERS.items())
