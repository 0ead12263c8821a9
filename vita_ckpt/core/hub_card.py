"""Write the model card of a checkpoint for the hub's pages and searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vita_ckpt.core.address import SCHEME, looks_like_repository
from vita_ckpt.core.anatomy.families import VITA, family_of
from vita_ckpt.errors import printable

_KEYS: Final = ("model_type", "mm_vision_tower", "mm_projector_type")


def hub_card(title: str, config: Mapping[str, Any], operations: Sequence[Any]) -> str:
    """Return a model card for a checkpoint that lacks one: metadata, base models and description.

    ``operations`` are those of ``vita_ckpt.json``.
    """
    bases = sorted({name for entry in operations for name in _repositories(entry)})
    metadata = ["library_name: transformers", "pipeline_tag: image-text-to-text", "tags:"]
    metadata += [f"- {(family_of(config) or VITA).name}", "- multimodal"]
    metadata += ["base_model:", *(f"- {base}" for base in bases)] if bases else []
    facts = [f"{key} `{_text(config[key])}`" for key in _KEYS if isinstance(config.get(key), str)]
    family = family_of(config) or VITA
    about = f"Weights for {family.label}."
    if facts:
        about = f"A {family.label} checkpoint: {', '.join(facts)}."
    return "\n".join(["---", *metadata, "---", "", f"# {title}", "", about, ""])


def _repositories(entry: Any) -> Iterator[str]:
    """Yield the repositories on the hub that an operation took its inputs from.

    Entries that are not well-formed are skipped.
    """
    inputs = entry.get("inputs") if isinstance(entry, Mapping) else None
    for given in inputs.values() if isinstance(inputs, Mapping) else ():
        name = given.get("name") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name.startswith(SCHEME):
            repository = name.removeprefix(SCHEME).partition("@")[0]
            if looks_like_repository(repository):
                yield repository


def _text(value: object) -> str:
    return printable(value).replace("`", "'")
