"""List the loaders, and replay each of them over a directory.

What plain transformers does without VITA's code, and what huggingface_hub does, was read from their
sources and is compared with the installed libraries in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from vita_ckpt.checks.explain.families import replay
from vita_ckpt.checks.explain.hub import hub_metadata, hub_model
from vita_ckpt.checks.explain.matching import Lookup
from vita_ckpt.checks.explain.trace import LoaderTrace, Tracer
from vita_ckpt.checks.explain.transformers import transformers_4_41, transformers_5_6
from vita_ckpt.checks.explain.vita import vita_1_0, vita_1_5
from vita_ckpt.core.anatomy.families import (
    FAMILIES,
    VITA,
    family_of,
)
from vita_ckpt.core.binding.loaders import (
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
    **{
        name: (f"{family.label}'s builder.py, {family.runs_on}", replay(family))
        for family in FAMILIES.values()
        if family is not VITA
        for name in family.loaders
    },
    HUB_MODEL: ("huggingface_hub's load_torch_model", hub_model),
    HUB_METADATA: ("huggingface_hub's safetensors metadata", hub_metadata),
}


def loaders_of(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Name the loaders that a model is for: those of its family, by default VITA's, and others."""
    family = family_of(config) or VITA
    others = {name for one in FAMILIES.values() if one is not family for name in one.loaders}
    return tuple(name for name in LOADERS if name not in others)


def explain_loaders(files: WeightFiles, lookup: Lookup) -> tuple[LoaderTrace, ...]:
    """Trace what every loader that these files are for would do with them."""

    def trace(name: str) -> LoaderTrace:
        _, run = LOADERS[name]
        return Tracer(name, files).trace(lambda tracer: run(tracer, lookup))

    return tuple(map(trace, loaders_of(files.config)))
